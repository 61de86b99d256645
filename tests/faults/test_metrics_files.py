"""The metrics of several workers: the totals are correct, and a full disk or a scrape affects no stream."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import upstream as wire
from asking import wait_until
from conversation import Conversation, request_bytes
from server import ROOT, Rill, StartRill
from upstream import Upstream

from rill.telemetry.metrics_files import SIZES

ANSWER = (
    wire.head(),
    wire.send(wire.opening(), wire.text("some text"), wire.block_stop(), wire.stop()),
    wire.end(),
)
SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
WARNING = "This worker is not counted in /metrics"


def scrape(rill: Rill) -> str:
    with rill.ask("GET", "/metrics", {"Connection": "close", "x-api-key": "s0"}, b"") as asked:
        assert asked.status == 200
        return asked.read_rest().decode()


def total(rill: Rill, wanted: str) -> float:
    return sum(float(value) for name, _, value in SERIES.findall(scrape(rill)) if name == wanted)


def ask_many(rill: Rill, times: int) -> None:
    for _ in range(times):
        with rill.ask("GET", "/stream?q=hi") as asked:
            assert asked.read_rest() == b"some text"


def directories(parent: Path) -> list[Path]:
    return sorted(parent.glob("*rill-metrics-*")) + sorted(parent.glob(".rill-metrics-*"))


def test_one_worker_shares_no_files_and_a_second_worker_logs_a_warning(
    start_rill: StartRill, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.always(*ANSWER)
    rill = start_rill(TMPDIR=str(tmp_path), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    ask_many(rill, 3)
    wait_until(lambda: total(rill, "rill_requests_total") == 3)
    assert list(tmp_path.iterdir()) == []
    rill.signal(signal.SIGTTIN)
    rill.wait_for_workers(2, 40)
    assert rill.output().count("each worker's /metrics counts for that worker alone") == 1
    ask_many(rill, 3)
    assert list(tmp_path.iterdir()) == []


def test_one_worker_and_two_have_the_same_metrics(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*ANSWER)
    found = []
    for workers in ("1", "2"):
        rill = start_rill(WEB_CONCURRENCY=workers)
        ask_many(rill, 1)
        wait_until(lambda rill=rill: total(rill, "rill_requests_total") == 1)  # type: ignore[misc]
        found.append({(name, labels) for name, labels, _ in SERIES.findall(scrape(rill))})
    assert found[0] == found[1]
    assert not [name for name, _ in found[0] if name.endswith("_created")]


def test_a_shutdown_removes_the_files(start_rill: StartRill, tmp_path: Path) -> None:
    rill = start_rill(TMPDIR=str(tmp_path), WEB_CONCURRENCY="2")
    assert [path.name.startswith("rill-metrics-") for path in tmp_path.iterdir()] == [True]
    assert rill.stop().exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_removes_the_files_of_a_killed_server_and_keeps_those_of_a_running_one(
    start_rill: StartRill, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.always(*ANSWER)
    killed = start_rill(TMPDIR=str(tmp_path), WEB_CONCURRENCY="2")
    workers = killed.wait_for_workers(2)
    (stale,) = directories(tmp_path)
    killed.signal(signal.SIGKILL, everyone=True)
    killed.wait()
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in workers))
    running = start_rill(TMPDIR=str(tmp_path), WEB_CONCURRENCY="2")
    start_rill(TMPDIR=str(tmp_path), WEB_CONCURRENCY="2")
    assert stale not in directories(tmp_path)
    assert len(directories(tmp_path)) == 2
    ask_many(running, 2)
    wait_until(lambda: total(running, "rill_requests_total") == 2)


def test_replaced_workers_keep_the_totals_correct_and_the_number_of_files_bounded(
    start_rill: StartRill, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.always(*ANSWER)
    rill = start_rill(TMPDIR=str(tmp_path), WEB_CONCURRENCY="2")
    for round_number in range(1, 4):
        ask_many(rill, 4)
        wait_until(
            lambda: total(rill, "rill_requests_total") == total(rill, "rill_request_duration_seconds_count") >= 1
        )
        before = rill.wait_for_workers(2, 40)
        if round_number == 2:
            rill.signal(signal.SIGHUP)
        else:
            before[0].kill()
        wait_until(lambda old=before[0]: old not in rill.workers())  # type: ignore[misc]
        rill.wait_for_workers(2, 40)
        wait_until(lambda n=4 * round_number: total(rill, "rill_requests_total") == n)  # type: ignore[misc]
    assert total(rill, "rill_streams_active") == 0
    (directory,) = directories(tmp_path)
    assert len(list(directory.iterdir())) <= 4 * len(SIZES)


# A full disk


@pytest.mark.parametrize("size", [1 << 16, 1 << 12], ids=["64 KB", "one page"])
def test_a_full_disk_at_the_start_loses_metrics_but_no_worker(
    start_rill: StartRill, upstream: Upstream, mounted: Callable[[int], Path], size: int
) -> None:
    upstream.always(*ANSWER)
    rill = start_rill(TMPDIR=str(mounted(size)), WEB_CONCURRENCY="2")
    before = rill.wait_for_workers(2, 40)
    ask_many(rill, 20)
    scrape(rill)
    assert rill.workers() == before
    assert rill.output().count(WARNING) == 2
    assert rill.stop().exit_code == 0


def test_a_disk_that_fills_up_later_ends_neither_a_worker_nor_the_master(
    start_rill: StartRill, upstream: Upstream, mounted: Callable[[int], Path]
) -> None:
    upstream.always(*ANSWER)
    directory = mounted(8 << 20)
    api_keys = ",".join(f"{'n' * 400}{n}=s{n}" for n in range(100))
    rill = start_rill(TMPDIR=str(directory), WEB_CONCURRENCY="2", RILL_API_KEYS=api_keys)
    before = rill.wait_for_workers(2, 40)
    with (directory / "junk").open("wb", buffering=0) as junk, suppress(OSError):
        while True:
            junk.write(bytes(4096))
    for n in range(100):
        with rill.ask("GET", "/stream?q=hi", {"x-api-key": f"s{n}"}) as asked:
            assert asked.read_rest() == b"some text"
    wait_until(lambda: total(rill, "rill_requests_total") == 100)
    assert rill.workers() == before
    before[0].kill()
    wait_until(lambda: before[0] not in rill.workers())
    rill.wait_for_workers(2, 40)
    with rill.ask("GET", "/stream?q=hi", {"x-api-key": "s1"}) as asked:
        assert asked.read_rest() == b"some text"
    assert total(rill, "rill_requests_total") >= 100
    assert rill.stop().exit_code == 0


FILL = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from rill.telemetry import metrics_files
metrics_files.take_slot(sys.argv[1], 1)
from rill.telemetry.record import Record
from rill.telemetry.metrics import Telemetry
models = [f"{'m' * 100}{n}" for n in range(30)]
telemetry = Telemetry(named=True, models=models)
for n in range(int(sys.argv[2]), int(sys.argv[2]) + 3000):
    telemetry.begin()
    telemetry.end(Record(f"r{n}", "text", "\\u00e9" * 20 + str(n), models[n % 30], outcome=f"e{n % 40}",
                         usage={"input_api_keys": 1, "output_api_keys": 1}))
print(len(telemetry.render()))
"""


def test_many_clients_do_not_grow_the_files_and_every_request_is_counted(tmp_path: Path) -> None:
    for first in (0, 1500, 9000):  # processes that use the slot one after the other
        command = [sys.executable, "-c", FILL, str(tmp_path), str(first)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=100, stdout=subprocess.DEVNULL)
        assert {path.stat().st_size for path in tmp_path.iterdir()} == set(SIZES.values())
    command = [sys.executable, "-c", RENDER, str(tmp_path)]
    text = subprocess.run(command, cwd=ROOT, check=True, timeout=100, capture_output=True, text=True).stdout
    counts = [(labels, float(value)) for name, labels, value in SERIES.findall(text) if name == "rill_requests_total"]
    assert sum(value for _, value in counts) == 9000
    assert 1000 < len(counts) < 6000
    assert sum(value for labels, value in counts if 'client="other"' in labels) > 0


RENDER = """
import sys
from rill.telemetry import metrics_files
metrics_files.directory = sys.argv[1]
from rill.telemetry.metrics import Telemetry
print(Telemetry(named=True, models=[]).render().decode())
"""


# Scrapes


class Reader(threading.Thread):
    """A thread that reads a paced stream, and records when each chunk arrives."""

    def __init__(self, stream: Conversation) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.arrivals: list[float] = []

    def run(self) -> None:
        while self.stream.next_chunk():
            self.arrivals.append(time.monotonic())

    def longest_gap(self, begun: float, ended: float) -> float:
        """Return the longest time without a chunk between two moments, in seconds."""
        within = [begun, *(each for each in self.arrivals if begun < each < ended), ended]
        return max(later - earlier for earlier, later in pairwise(within))


CLIENTS = 1500
SEEDED = 12


def fill_labels(rill: Rill, directory: Path) -> int:
    """Create series of rejected clients, or files of many workers; return the minimum number of series."""
    if found := directories(directory):
        seed = directory / "seed"
        seed.mkdir()
        command = [sys.executable, "-c", FILL, str(seed), "0"]
        subprocess.run(command, cwd=ROOT, check=True, timeout=100, stdout=subprocess.DEVNULL)
        for slot in range(100, 100 + SEEDED):
            (found[0] / f"counter_{slot}.db").write_bytes((seed / "counter_1.db").read_bytes())
        return 700
    with rill.ask("GET", "/healthz") as asked:
        asked.read_rest()
        for number in range(CLIENTS):
            asked.ask(request_bytes("GET", "/stream?q=hi", {"x-api-key": f"s{number}"}))
            assert asked.status == 503
            asked.read_rest()
    return CLIENTS


@pytest.fixture
def paced() -> Iterator[list[Reader]]:
    readers: list[Reader] = []
    yield readers
    for each in readers:
        each.stream.socket.shutdown(socket.SHUT_RDWR)
        each.join()
        each.stream.close()


@pytest.mark.timing
@pytest.mark.parametrize("workers", [1, 2])
def test_scrapes_of_thousands_of_series_do_not_pause_a_stream(
    start_rill: StartRill, upstream: Upstream, paced: list[Reader], workers: int, tmp_path: Path
) -> None:
    pieces = [step for _ in range(10_000) for step in (wire.pause(0.02), wire.send(wire.text("x")))]
    upstream.always(wire.head(), wire.send(wire.opening()), *pieces, wire.silence())
    api_keys = ",".join(f"client-{n}=s{n}" for n in range(CLIENTS))
    rill = start_rill(WEB_CONCURRENCY=str(workers), RILL_API_KEYS=api_keys, RILL_MAX_STREAMS="1", TMPDIR=str(tmp_path))
    rill.wait_for_workers(workers)
    while len(paced) < workers:  # one on each worker
        stream = rill.ask("GET", "/stream?q=hi", {"x-api-key": "s0"})
        if stream.status == 200:
            paced.append(Reader(stream))
            paced[-1].start()
        else:
            stream.close()
    series = fill_labels(rill, tmp_path)
    moments = [time.monotonic()]
    time.sleep(1.5)
    moments.append(time.monotonic())
    for _ in range(5):
        text = scrape(rill)
    moments.append(time.monotonic())
    assert text.count("rill_requests_total{") >= series
    quiet, scraped = (max(each.longest_gap(*moments[part : part + 2]) for each in paced) for part in (0, 1))
    seconds = (moments[2] - moments[1]) / 5
    print(f"\nlongest gap {scraped:.3f} s during scrapes of {seconds:.3f} s, {quiet:.3f} s before")
    assert scraped < 0.25 + quiet
