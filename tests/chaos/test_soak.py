"""Five minutes of every fault at once: afterwards no answer is lost or billed twice, and nothing has leaked."""

import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import upstream as wire
from asking import ask, wait_until
from conversation import Conversation, request_bytes
from plan import Play
from redis_server import RedisServer
from run import Clients, report
from server import Rill, rill_env
from upstream import Answer, Upstream

CLIENTS = 300
SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
SLOW_READERS = 10
DRAIN_SECONDS = 5.0
# The master waits for the workers of one reload before it begins the next one.
LATE_DRAIN_SECONDS = 4 * DRAIN_SECONDS
BETWEEN_SECONDS = 4.0
SUSPENDED_SECONDS = 1.0
# Descriptors and memory of a worker at rest, beyond those of a fresh one.
MOST_DESCRIPTORS = 20
MOST_BYTES = 40_000_000
TEMPORARY_BYTES = 8_000_000
ENV = {
    "WEB_CONCURRENCY": "2",
    "RILL_START_TIMEOUT_SECONDS": "20",
    "RILL_IDLE_TIMEOUT_SECONDS": "15",
    "RILL_SHUTDOWN_GRACE_SECONDS": str(DRAIN_SECONDS),
    "RILL_MAX_STREAMS_PER_CLIENT": "1000",
}
BIG = (wire.head(), wire.send(wire.opening()), *[wire.send(wire.text("x" * 8000))] * 200, wire.close())


class PlayAll(Play):
    """The plan's script, or an answer larger than a client reads."""

    def __call__(self, answer: Answer) -> None:
        if answer.request.json["messages"][-1]["content"] != "big":
            super().__call__(answer)
            return
        for step in BIG:
            step(answer)


@contextmanager
def stalled_pipe() -> Iterator[int]:
    """Yield the write end of a small pipe that nothing reads."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield write
    finally:
        os.close(read)
        os.close(write)


class Faults:
    """Faults of the server while clients send prompts, one after the other."""

    def __init__(self, rill: Rill, clients: Clients, redis: RedisServer, temporary: Path) -> None:
        self._rill = rill
        self._clients = clients
        self._redis = redis
        self._temporary = temporary
        self._chance = random.Random(7)
        self.done: list[str] = []

    def cause_until(self, end: float) -> None:
        """Cause faults until `end` (monotonic)."""
        kinds: tuple[Callable[[], None], ...] = (
            self.kill_a_worker,
            self.reload,
            self.add_and_remove_a_worker,
            self.lose_redis,
            self.fill_the_temporary_folder,
            self.connect_slow_readers,
            self.suspend_a_worker,
        )
        while time.monotonic() < end:
            kind = self._chance.choice(kinds)
            self.done.append(kind.__name__)
            kind()
            time.sleep(BETWEEN_SECONDS)

    def kill_a_worker(self) -> None:
        """Kill a worker: its answers and log lines are lost."""
        self._clients.disturb(time.monotonic() - 1, 3)
        self._chance.choice(self._rill.workers()).kill()

    def suspend_a_worker(self) -> None:
        """Suspend a worker for a moment: nothing is lost."""
        worker = self._chance.choice(self._rill.workers())
        worker.suspend()
        time.sleep(SUSPENDED_SECONDS)
        worker.resume()

    def reload(self) -> None:
        """Replace the workers; answers that do not end in time have the outcome `shutdown`."""
        self._clients.disturb(time.monotonic() + DRAIN_SECONDS - 1, LATE_DRAIN_SECONDS)
        self._rill.signal(signal.SIGHUP)

    def add_and_remove_a_worker(self) -> None:
        """Change the number of workers; answers that do not end in time have the outcome `shutdown`."""
        self._rill.signal(signal.SIGTTIN)
        time.sleep(BETWEEN_SECONDS)
        self._clients.disturb(time.monotonic() + DRAIN_SECONDS - 1, LATE_DRAIN_SECONDS)
        self._rill.signal(signal.SIGTTOU)

    def lose_redis(self) -> None:
        """Kill Redis, and restart it."""
        self._redis.kill()
        time.sleep(BETWEEN_SECONDS)
        self._redis.start()

    def fill_the_temporary_folder(self) -> None:
        """Fill the folder in which workers share their metrics."""
        filler = self._temporary / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            for _ in range(TEMPORARY_BYTES // 4096):
                file.write(b"x" * 4096)
        time.sleep(BETWEEN_SECONDS)
        filler.unlink(missing_ok=True)

    def connect_slow_readers(self) -> None:
        """Ask for long answers and do not read them."""
        request = request_bytes("GET", "/stream?q=big")
        readers = [Conversation(self._rill.port, request) for _ in range(SLOW_READERS)]
        time.sleep(BETWEEN_SECONDS)
        for reader in readers:
            reader.close()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_five_minutes_of_faults_lose_no_answer_and_leak_nothing(
    upstream: Upstream, tmp_path: Path, mounted: Callable[[int], Path]
) -> None:
    upstream.always(PlayAll())
    temporary = mounted(TEMPORARY_BYTES)
    with RedisServer(tmp_path) as redis, stalled_pipe() as stalled:
        env = {**rill_env(upstream), **ENV, "REDIS_URL": redis.url, "TMPDIR": str(temporary)}
        with Rill(env, outputs=(None, stalled)) as rill:
            soak(rill, upstream, redis, temporary)


def soak(rill: Rill, upstream: Upstream, redis: RedisServer, temporary: Path) -> None:
    """Run many clients during the faults, and compare everything afterwards."""
    fresh = usage(rill.wait_for_workers(2))
    with Clients(rill, CLIENTS, seed=int(time.time())) as clients:
        faults = Faults(rill, clients, redis, temporary)
        thread = threading.Thread(target=faults.cause_until, args=(time.monotonic() + SECONDS,))
        thread.start()
        thread.join()
    time.sleep(DRAIN_SECONDS)
    contradictions = [fault for fault in clients.judge(upstream) if "big" not in fault]
    print(report(clients, contradictions), faults.done, sep="\n")
    assert not contradictions, report(clients, contradictions)
    wait_until(lambda: upstream.open_connections <= 2 * 100, lambda: "connections to the upstream stay open", 30)
    with ask(rill, headers={"Connection": "close"}, q="big") as asked:
        assert asked.status == 200
    descriptors, memory = usage(rill.wait_for_workers(2))
    print(f"descriptors {fresh[0]} -> {descriptors}, memory {fresh[1]} -> {memory}")
    kept = upstream.open_connections
    assert descriptors <= fresh[0] + kept + MOST_DESCRIPTORS
    assert memory <= fresh[1] + MOST_BYTES
    assert "Traceback" not in rill.output()
    assert "SIGBUS" not in rill.output()


def usage(workers: list[psutil.Process]) -> tuple[int, int]:
    """Return the largest number of descriptors and of bytes of memory among the workers."""
    return max(each.num_fds() for each in workers), max(each.memory_info().rss for each in workers)
