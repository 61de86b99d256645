"""Random requests, disconnects, and kills of workers and of Redis: the charges are those of the upstream."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
import upstream as wire
from asking import ask, wait_until
from redis_server import RedisServer
from server import Rill, StartRill
from test_budget import token_of
from upstream import Answer, Upstream

SECRET = "0123456789abcdef0123456789abcdef"
BUDGET, SMALL_BUDGET = 10_000_000, 12_000
MAX_TOKENS = 200
# 12 bytes are 4 tokens for this upstream, as Rill estimates.
PIECE, PIECE_TOKENS = "twelve bytes", 4
DIALECTS = ("text", "sse", "anthropic", "openai", "openai whole")
WORKERS = 2


class KeptRedis(RedisServer):
    """A Redis that loses nothing when it is killed."""

    def _options(self) -> list[str]:
        return [*super()._options(), "--appendonly", "yes", "--dir", str(self.folder)]


class Billing:
    """The upstream's script: random answers, and what they cost each client."""

    def __init__(self) -> None:
        self.billed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, answer: Answer) -> None:
        client, pieces, _ = answer.request.json["messages"][0]["content"].split(" ", 2)
        count = min(int(pieces), answer.request.json["max_tokens"] // PIECE_TOKENS)
        read = len(answer.request.json["messages"][0]["content"]) // 3
        wire.head()(answer)
        self._bill(client, read)
        wire.send(wire.start(input_tokens=read), wire.block_start())(answer)
        for _ in range(count):
            wire.send(wire.text(PIECE))(answer)
            self._bill(client, PIECE_TOKENS)
            answer.wait(seconds=0.002)
        wire.send(wire.block_stop() + wire.stop(output_tokens=count * PIECE_TOKENS))(answer)
        wire.end()(answer)

    def _bill(self, client: str, tokens: int) -> None:
        with self._lock:
            self.billed[client] += tokens


def name_of(number: int) -> str:
    return f"{'small' if number % 2 else 'large'}-{number}"


def send_requests(rill: Rill, left: "SimpleQueue[int]", statuses: "Counter[int | None]") -> None:
    """Send a random request for each number that is left, and read it to its end or disconnect early."""
    while True:
        try:
            number = left.get_nowait()
        except Empty:
            return
        chance = random.Random(number)
        name = name_of(number % 10)
        headers = token_of(name, **({"rill_budget": f"{SMALL_BUDGET}/year"} if name[0] == "s" else {}))
        text = f"{name} {chance.randint(0, 60)} " + "x" * chance.randint(0, 300)
        with (
            suppress(OSError),
            ask(
                rill, chance.choice(DIALECTS), headers, q=text, max_tokens=chance.choice([20, MAX_TOKENS]), timeout=30
            ) as asked,
        ):
            statuses[asked.status] += 1
            if chance.random() < 0.3:
                for _ in range(chance.randint(0, 5)):
                    asked.next_chunk()
            else:
                asked.read_rest()


@contextmanager
def kills(rill: Rill, redis: RedisServer, seconds: float, times: int) -> Iterator[None]:
    """Kill a worker, or Redis for a moment, so many times, once in so many seconds."""
    over = threading.Event()

    def kill() -> None:
        for number in range(times):
            if over.wait(seconds):
                return
            if number % 2:
                redis.kill()
                over.wait(1.0)
                redis.start()
            else:
                os.kill(random.choice(rill.workers()).pid, signal.SIGKILL)

    running = threading.Thread(target=kill)
    running.start()
    try:
        yield
    finally:
        over.set()
        running.join(30)


def used_by(rill: Rill, client: str) -> tuple[int, int]:
    """Return what a client has used, and what is reserved for it."""
    with rill.ask("GET", "/usage", {"Accept": "application/json", **token_of(client)}) as asked:
        (budget,) = json.loads(asked.read_rest())["budgets"]
    return budget["used"], budget["reserved"]


@pytest.mark.parametrize(
    ("count", "threads", "deaths", "every"),
    [
        pytest.param(400, 12, 0, 1.0, id="some"),
        pytest.param(10_000, 50, 8, 10.0, id="10000", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_the_charges_are_those_of_the_upstream_and_no_budget_is_exceeded(
    start_rill: StartRill, upstream: Upstream, tmp_path: Path, count: int, threads: int, deaths: int, every: float
) -> None:
    billing = Billing()
    upstream.always(billing)
    with KeptRedis(tmp_path) as redis:
        rill = start_rill(
            WEB_CONCURRENCY=str(WORKERS),
            REDIS_URL=redis.url,
            RILL_JWT_SECRET=SECRET,
            RILL_TOKEN_BUDGET=f"{BUDGET}/year",
            RILL_MAX_STREAMS_PER_CLIENT="1000",
        )
        rill.wait_for_workers(WORKERS)
        left: SimpleQueue[int] = SimpleQueue()
        for number in range(count):
            left.put(number)
        statuses: Counter[int | None] = Counter()
        with kills(rill, redis, every, deaths):
            clients = [threading.Thread(target=send_requests, args=(rill, left, statuses)) for _ in range(threads)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        # The reservations of a killed worker are freed by time only.
        names = [name_of(number) for number in range(10)]
        if not deaths:
            wait_until(lambda: not any(used_by(rill, name)[1] for name in names), "a reservation remains")
        else:
            time.sleep(8.0)  # pacing: the workers pay what they charged while Redis was lost
        used = {name: used_by(rill, name)[0] for name in names}
    charged, billed = sum(used.values()), billing.billed.total()
    report = f"{statuses}, charged {charged}, billed {billed}: {used} {dict(billing.billed)}"
    assert statuses[200] > count / 3, report
    assert abs(charged - billed) <= 0.02 * billed, report
    largest = MAX_TOKENS + 250  # the estimated input with it
    assert all(used[name] <= SMALL_BUDGET + WORKERS * largest for name in names if name.startswith("small")), report
    if count > 1000:
        assert statuses[429], report
        assert all(used[name] > SMALL_BUDGET * 0.9 for name in names if name.startswith("small")), report
