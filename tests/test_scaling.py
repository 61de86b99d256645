"""docs/scaling.md agrees with the measurements, the simulation and the calculations."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from statistics import NormalDist, fmean

import pytest
import upstream as wire
from redis_server import RedisServer
from server import ROOT, Rill, StartRill
from upstream import Upstream

from bench import simulate
from bench.simulate import LEAST, RANDOM, ROUND_ROBIN, TWO_CHOICES, Cell

PAGE = (ROOT / "docs" / "scaling.md").read_text("utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text("utf-8")
SECONDS = simulate.TOKENS / simulate.RATE  # of an answer, on average
PORTS = 60_999 - 32_768 + 1  # Linux's default ip_local_port_range
ONE_WORKER_MB = 239 - 5_000 * simulate.STREAM_MB  # open5000, MB, without its streams
REDIS_CALLS = 10_000  # per second: half of the measured maximum of one Redis
ROUTER_CPU = 13e-6  # a token
ROUTINGS = pytest.mark.parametrize("routing", [RANDOM, ROUND_ROBIN, TWO_CHOICES, LEAST])


# The simulation agrees with the theory


def test_the_result_depends_on_the_seed_only() -> None:
    first, again, other = (Cell(100, 4, RANDOM, seed=seed).run(60, 2, 10) for seed in (1, 1, 2))
    assert vars(first)["cores"] == vars(again)["cores"]
    assert (first.arrived, first.truncated, first.counts) == (again.arrived, again.truncated, again.counts)
    assert first.counts != other.counts


@ROUTINGS
def test_open_streams_are_the_arrivals_times_their_length(routing: str) -> None:
    cell = Cell(500, 10, routing, slots=10_000).run(600)  # Little's law
    assert cell.arrived / 600 == pytest.approx(500 / SECONDS, rel=0.02)
    assert fmean(cell.counts) == pytest.approx(500, rel=0.03)


@pytest.mark.parametrize(("streams", "slots"), [(10, 10), (10, 15), (40, 30)])
def test_a_worker_rejects_as_many_as_erlangs_formula_predicts(streams: int, slots: int) -> None:
    blocking = 1.0  # https://en.wikipedia.org/wiki/Erlang_(unit)#Erlang_B_formula
    for slot in range(1, slots + 1):
        blocking = streams * blocking / (slot + streams * blocking)
    cell = Cell(streams, 1, slots=slots).run(200_000 // streams)
    assert cell.rejected / cell.arrived == pytest.approx(blocking, abs=0.015)


def test_random_routing_overloads_workers_as_often_as_poisson_predicts() -> None:
    streams, starts = NormalDist(150, math.sqrt(150)), NormalDist(15, math.sqrt(15))
    core = streams * (simulate.RATE * simulate.TOKEN) + starts * simulate.START
    cell = Cell(15_000, 100, RANDOM, slots=10_000).run(30)
    over = fmean(busy > simulate.BUSY for busy in cell.cores)
    assert over == pytest.approx(1 - core.cdf(simulate.BUSY), abs=0.03)


def test_random_routing_has_the_busiest_worker_and_least_connections_the_least_busy_one() -> None:
    worst = {
        routing: max(Cell(3_000, 30, routing).run(60).cores) for routing in (RANDOM, ROUND_ROBIN, TWO_CHOICES, LEAST)
    }
    assert worst[RANDOM] == max(worst.values())
    assert worst[LEAST] == min(worst.values())
    assert worst[RANDOM] > 1.15 * worst[LEAST]


@ROUTINGS
def test_cores_are_as_busy_as_their_tokens_and_starts(routing: str) -> None:
    cell = Cell(2_000, 20, routing).run(300)
    expected = 100 * (simulate.RATE * simulate.TOKEN + simulate.START / SECONDS)
    assert fmean(cell.cores) == pytest.approx(expected, rel=0.03)


def test_a_lost_machine_truncates_its_answers_and_each_client_retries() -> None:
    calm, lost = Cell(1_000, 10).run(60), Cell(1_000, 10).run(60, stop=5)
    assert lost.truncated == lost.stopped == pytest.approx(500, rel=0.1)
    assert lost.arrived == pytest.approx(calm.arrived + lost.truncated, rel=0.03)
    assert len(lost.cores) == 60 * 5


def left_after(seconds: float) -> float:
    """Return the share of open answers that are still open after `seconds`: the log-normal's residual life."""
    normal, log = NormalDist(), math.log(seconds * simulate.RATE)
    longer = normal.cdf((simulate.LOG_MEAN + simulate.SIGMA**2 - log) / simulate.SIGMA)
    return longer - seconds / SECONDS * normal.cdf((simulate.LOG_MEAN - log) / simulate.SIGMA)


@pytest.mark.parametrize("drain", [5, 20, 60])
def test_a_drain_truncates_the_answers_that_outlive_it(drain: int) -> None:
    cell = Cell(10_000, 100, slots=10_000).run(drain + 5, stop=50, drain=drain)
    assert cell.truncated / cell.stopped == pytest.approx(left_after(drain), abs=0.02)


def test_a_worker_that_was_replaced_serves_again() -> None:
    cell = Cell(500, 5, TWO_CHOICES).run(60, stop=1, drain=10)
    completing = [life == cell.life[worker] for _, kind, worker, life in cell.events if kind == "complete"]
    assert sum(cell.open) == sum(completing)  # a truncated answer ends only once
    assert len(cell.cores) == 60 * 5 - 2  # the two seconds in which it boots
    assert cell.open[0] > 50


# The figures match the measurements


def measured(scenario: str, figure: str) -> float:
    """Return a figure of Rill in the table of docs/performance.md."""
    heads, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table_of(PERFORMANCE, "| scenario"))
    [row] = [row for row in rows if row[:2] == [scenario, figure]]
    return float(row[heads.index("Rill")].replace(",", ""))


def table_of(text: str, start: str) -> list[str]:
    """Return the lines of the table whose head starts with `start`."""
    lines = text[text.index(f"\n{start}") + 1 :].splitlines()
    return lines[: next((at for at, line in enumerate(lines) if not line.startswith("|")), len(lines))]


def test_the_simulation_uses_the_figures_of_the_performance_page() -> None:
    assert measured("steady1000", "CPU µs/token") == pytest.approx(simulate.TOKEN_CPU * 1e6)
    assert measured("open5000", "KB/stream") == pytest.approx(simulate.STREAM_MB * 1e3)
    two_workers = simulate.REST_MB + 10_000 * simulate.STREAM_MB
    assert measured("two_workers10k", "MB") == pytest.approx(two_workers)
    assert measured("open5000", "MB") == pytest.approx(ONE_WORKER_MB + 5_000 * simulate.STREAM_MB)
    assert measured("starts1000", "CPU ms/start") == pytest.approx(simulate.START_CPU * 1e3, rel=0.02)


def costs() -> Iterator[str]:
    """Yield the costs that the page lists."""
    for line in table_of(PAGE, "| item")[2:]:
        yield line.split("|")[2].strip()


def test_the_page_lists_the_figures_of_the_simulation() -> None:
    assert list(costs()) == [
        f"{simulate.TOKEN_CPU * 1e6:.0f} µs of a core",
        f"{simulate.START_CPU * 1e3:.1f} ms of a core",
        f"{simulate.STREAM_MB * 1e3:.0f} KB",
        f"{ONE_WORKER_MB:.0f} MB",
        f"{simulate.REST_MB:.0f} MB",
        f"{simulate.TLS_TOKEN_CPU * 1e6:.0f} µs per token, {simulate.TLS_START_CPU * 1e3:.1f} ms per new connection",
        f"{simulate.TLS_STREAM_MB * 1e3:.0f} KB per stream",
        f"{simulate.REDIS_START_CPU * 1e3:.1f} ms per start",
    ]


# The tables agree with the simulation and the calculations


@pytest.fixture(scope="module")
def simulated() -> list[str]:
    """Return the table that `python bench/simulate.py` prints."""
    command = [sys.executable, "bench/simulate.py"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def streams_table() -> Iterator[str]:
    """Yield how many streams a worker and a machine carry, by the rate of each."""
    stream = simulate.STREAM_MB + simulate.TLS_STREAM_MB
    dyno, machine = (512 - ONE_WORKER_MB) / stream, (4_000 - simulate.REST_MB) / stream
    for rate in (0.5, 1, 2, 10, 20, 60, 100):
        core = simulate.BUSY / rate / (simulate.TOKEN + simulate.START / simulate.TOKENS)
        small = {"CPU": core, "memory": dyno}
        large = {"CPU": 2 * core, "memory": machine, "ports": PORTS}
        ends = [min(of, key=of.__getitem__) for of in (small, large)]
        cells = [f"{rate:g}", f"{core:,.0f}", f"{min(small.values()):,.0f}", ends[0]]
        yield f"| {' | '.join([*cells, f'{min(large.values()):,.0f}', ends[1]])} |"


def test_the_table_of_streams_matches_the_costs() -> None:
    assert table_of(PAGE, "| tokens/s per stream")[2:] == list(streams_table())


def sizes_table(simulated: list[str]) -> Iterator[str]:
    """Yield the resources of three sizes; the machines are simulated."""
    machines = {}
    for line in simulated:
        scale, event, _, count, *_ = (cell.strip() for cell in line.split("|")[1:-1])
        if event.endswith(("one spare", "one spare per cell")):
            machines[scale] = int(count.replace(",", ""))
    scales = {int(scale.replace(",", "")): count for scale, count in machines.items() if scale != "5,000"}
    starts = {scale: scale / SECONDS for scale in scales}
    cells = {scale: max(1, scale // simulate.CELL) for scale in scales}
    yield from (
        sized("starts per second", "calculated", starts.values()),
        sized("tokens per second", "calculated", (scale * simulate.RATE for scale in scales)),
        sized("output tokens per minute", "calculated", (scale * simulate.RATE * 60 for scale in scales)),
        sized("cells", "chosen", cells.values()),
        sized("machines, one spare per cell", "simulated", scales.values()),
        sized("streams per machine", "calculated", (scale / count for scale, count in scales.items())),
        sized("Redis calls per second", "calculated", starts.values()),
        sized("Redis servers", "calculated", (math.ceil(each / REDIS_CALLS) for each in starts.values())),
        sized("connections to Redis, at most", "calculated", (16 * count for count in scales.values())),
        sized("shared outgoing addresses", "calculated", (math.ceil(scale / PORTS) for scale in scales)),
        sized("cores of the routers", "calculated", (scale * simulate.RATE * ROUTER_CPU for scale in scales)),
    )


def sized(item: str, source: str, values: Iterable[float]) -> str:
    """Return a row of the table of sizes."""
    return f"| {item} | {' | '.join(f'{value:,.0f}' for value in values)} | {source} |"


def test_the_table_of_sizes_matches_the_simulation_and_the_costs(simulated: list[str]) -> None:
    assert table_of(PAGE, "| | 1,000 open")[2:] == list(sizes_table(simulated))


def test_the_sentences_of_the_page_match_the_same_simulation(simulated: list[str]) -> None:
    page, rows = " ".join(PAGE.split()), [[cell.strip() for cell in line.split("|")[1:-1]] for line in simulated]
    machines = {routing: int(count) for size, event, routing, count, *_ in rows if (size, event) == ("5,000", "none")}
    few, many = machines[TWO_CHOICES], machines[RANDOM]
    assert machines[LEAST] == few
    assert f"random routing needs {many} machines for 5,000 streams, these need {few}." in page
    small, large = (float(row[7].rstrip("%")) for row in rows if row[1].endswith("no spare"))
    assert f"over 70% for {small:.0f}% of the next 30 s (1,000 streams) or {large:.0f}% (5,000)" in page
    core = simulate.BUSY / simulate.RATE / (simulate.TOKEN + simulate.START / simulate.TOKENS)
    assert f"a core carries {core:.0f} streams of {simulate.RATE} tokens per second" in page
    assert f"{simulate.SLOTS} slots per worker" in page
    short, long = ((few + 1) * (drain + simulate.BOOT_SECONDS) / 60 for drain in (20, 120))
    assert f"{few + 1} machines take {short:.0f} minutes with 20 s, and {long:.0f} with 120 s" in page


def test_the_page_lists_how_many_answers_outlive_a_drain() -> None:
    listed = re.findall(r"a drain of (\d+) s truncates ([\d.]+)%", " ".join(PAGE.split()))
    assert len(listed) >= 3
    assert listed == [(seconds, f"{left_after(int(seconds)):.1%}"[:-1]) for seconds, _ in listed]


# The calls to Redis, and the scripts that measure


def command(script: str, *arguments: str) -> list[str]:
    """Return a command of the page, with other arguments."""
    found = re.search(rf"`(?:PYTHONPATH=\. )?\.venv/bin/python (bench/{script}\.py) [^`]*`", PAGE)
    assert found
    return [sys.executable, found[1], *arguments]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


def script_calls(redis: RedisServer) -> int:
    """Return how many calls of a script it has executed."""
    with redis.client() as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


def test_each_request_calls_redis_once_however_long_its_answer(
    redis: RedisServer, upstream: Upstream, start_rill: StartRill
) -> None:
    rill = start_rill(REDIS_URL=redis.url)
    upstream.always(*wire.answer("one"))
    answer_of(rill)  # the first also loads the script
    before = script_calls(redis)
    answer_of(rill)
    assert script_calls(redis) == before + 1
    upstream.always(*wire.answer(*(f"word {number} " for number in range(200))))
    assert "word 199" in answer_of(rill)
    assert script_calls(redis) == before + 2


def test_a_rejected_request_calls_redis_once_too(redis: RedisServer, upstream: Upstream, start_rill: StartRill) -> None:
    rill = start_rill(REDIS_URL=redis.url, RILL_RATE_LIMIT="1/hour;2/day")
    upstream.always(*wire.answer("one"))
    answer_of(rill)
    before = script_calls(redis)
    assert answer_of(rill).startswith("At most 1 per hour")
    assert script_calls(redis) == before + 1


def answer_of(rill: Rill) -> str:
    """Return a whole answer."""
    with rill.ask("GET", "/stream?q=hi") as asked:
        return asked.read_rest().decode()


def test_the_script_that_measures_redis_runs(redis: RedisServer) -> None:
    env = {"PYTHONPATH": ".", "PATH": os.environ["PATH"]}
    ran = subprocess.run(
        command("redis_cost", redis.url, "200"), cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    # So few clients may need less memory than Redis frees in the meantime.
    assert re.fullmatch(r"\d+ µs in Redis, \d+ µs in the worker, -?\d+ bytes per client\n", ran.stdout), ran.stderr


@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_script_that_measures_a_start_runs() -> None:
    for _ in range(4):  # A port that is free when it is chosen may be taken when it is used.
        ran = subprocess.run(command("start_cost", "20"), cwd=ROOT, capture_output=True, text=True, check=False)
        if "did not start" not in ran.stderr:
            break
    assert re.fullmatch(r"[\d.]+ ms per start\n[\d.]+ ms per start over TLS\n", ran.stdout), ran.stderr
