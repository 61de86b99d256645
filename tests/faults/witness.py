"""Helpers that observe a running server from outside: its log, and whether its resources are back at their baseline.

`probe:app`, the service with one more route, counts greenlets; everything else is read from /proc and from sockets.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import upstream as wire
from asking import ask, wait_until
from server import Rill
from tcp_sockets import tcp_sockets
from upstream import Upstream

STREAMS = 6
SETTINGS = {
    "ANTHROPIC_API_KEY": "sk-test-key",
    "RILL_ALLOWED_MODELS": "*",
    "RILL_RATE_LIMIT": "1000000/second",
    "RILL_MAX_STREAMS": str(STREAMS),
    "RILL_MAX_STREAMS_PER_CLIENT": "1000000",
}
PROBE = ("--pythonpath", str(Path(__file__).parent))

_names = itertools.count()


def probed(url: str, *arguments: str, **env: str) -> Rill:
    """Return a server with the probe, for the upstream at `url`."""
    return Rill({**SETTINGS, "ANTHROPIC_BASE_URL": url, **env}, (*PROBE, *arguments), app="probe:app")


def name_request() -> str:
    """Return a unique request id."""
    return f"{os.getpid()}-{next(_names)}"


def in_one_segment(event: bytes) -> wire.Step:
    """Send the head of an event stream and its first chunk in one write, as a busy upstream does."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return wire.raw(head + b"%x\r\n%b\r\n" % (len(event), event))


# The listener and the log


def refuses_connections(rill: Rill) -> bool:
    """Return whether the server's port refuses connections."""
    try:
        rill.ask("GET", "/healthz").close()
    except ConnectionRefusedError:
        return True
    return False


def log_lines(output: str) -> list[dict[str, Any]]:
    """Return every complete log line of an answer."""
    return [json.loads(line) for line in output.split("\n")[:-1] if line.startswith('{"event": "answer"')]


def logged(rill: Rill, name: str, timeout: float = 10) -> dict[str, Any]:
    """Wait for the one log line of the request `name`, and return it."""
    deadline = time.monotonic() + timeout
    while not (found := [line for line in log_lines(rill.output()) if line["request_id"] == name]):
        assert time.monotonic() < deadline, f"no log line of {name} in:\n{rill.output()[-4000:]}"
        time.sleep(0.01)
    assert len(found) == 1
    return found[0]


# The gauges


class Gauges(NamedTuple):
    """The resources of a worker; `descriptors` without the pooled connections to the upstream."""

    greenlets: int
    descriptors: int
    clients: int


def ports_to(process: psutil.Process, port: int) -> set[int]:
    """Return the local ports of a process's connections to the remote `port`."""
    return {each.local_port for each in tcp_sockets(process.pid) if each.remote_port == port}


def clients_of(process: psutil.Process, port: int) -> int:
    """Return the number of client connections that a process has at its own `port`."""
    return sum(each.local_port == port and not each.listens for each in tcp_sockets(process.pid))


def look_inside(rill: Rill) -> dict[str, Any]:
    """Return what /__probe reports about the single worker."""
    with rill.ask("GET", "/__probe", {"Connection": "close"}) as asked:
        inside: dict[str, Any] = json.loads(asked.read_rest())
        return inside


def wait_until_all_serve(rill: Rill, workers: int) -> None:
    """Wait until `workers` workers have answered: a server is healthy as soon as the first one has."""
    served: set[int] = set()

    def is_full() -> bool:
        served.add(look_inside(rill)["pid"])
        return len(served) == workers

    wait_until(is_full, rill.output, timeout=15)


def read_gauges(rill: Rill, upstream_port: int) -> Gauges:
    """Return the current gauges; an open answer adds 1,000 greenlets, so that it is never at the baseline."""
    inside = look_inside(rill)
    (worker,) = rill.workers()
    kept = len(ports_to(worker, upstream_port))
    greenlets = inside["greenlets"] + (0 if inside["no_answer_open"] else 1000)
    return Gauges(greenlets, worker.num_fds() - kept, clients_of(worker, rill.port))


def baseline(rill: Rill, upstream: Upstream) -> Gauges:
    """Return the gauges of an idle server: the minimum of three readings, after one complete answer as a warm-up."""
    upstream.script(*wire.answer("warm"))
    with ask(rill, headers={"Connection": "close"}) as asked:
        assert asked.read_rest() == b"warm"
    upstream.wait_until(lambda: upstream.answers[-1].outcome == "sent", "the end of the first answer")
    wait_until(lambda: read_gauges(rill, upstream.port).clients == 0, lambda: "the first client stays connected")
    readings = [read_gauges(rill, upstream.port) for _ in range(3)]
    return Gauges(*map(min, zip(*readings, strict=True)))


def wait_for_baseline(rill: Rill, upstream: Upstream, before: Gauges, timeout: float = 10) -> None:
    """Wait until no gauge exceeds `before`, and the worker holds every connection that the upstream has."""
    seen: list[object] = []

    def is_back() -> bool:
        now = read_gauges(rill, upstream.port)
        (worker,) = rill.workers()
        lost = upstream.open_peer_ports - ports_to(worker, upstream.port)
        seen[:] = [now, lost]
        return all(mine <= theirs for mine, theirs in zip(now, before, strict=True)) and not lost

    wait_until(is_back, lambda: f"{seen} is not back at {before}", timeout)


def take_every_slot(rill: Rill, upstream: Upstream, streams: int = STREAMS) -> None:
    """Take every slot, check that the next request is rejected, and complete all answers."""
    upstream.clear()
    upstream.always(
        wire.head(), wire.send(wire.opening(), wire.text("a")), wire.gate("all"), wire.send(wire.stop()), wire.end()
    )
    with ExitStack() as stack:
        asked = [stack.enter_context(ask(rill, headers={"Connection": "close"})) for _ in range(streams)]
        assert [each.next_chunk() for each in asked] == [b"a"] * streams
        with ask(rill, headers={"Connection": "close"}) as rejected:
            assert rejected.status == 503
        upstream.open("all")
        assert [(each.read_rest(), each.ended) for each in asked] == [(b"", "clean")] * streams
    upstream.wait_until(lambda: all(each.outcome == "sent" for each in upstream.answers), "the end of all answers")


@contextmanager
def assert_no_leaks(rill: Rill, upstream: Upstream, streams: int = STREAMS) -> Iterator[None]:
    """Assert that the worker holds afterwards what it held before the context, and logged no traceback."""
    before = baseline(rill, upstream)
    upstream.clear()
    offset = len(rill.output())
    yield
    assert upstream.faults == [], "\n".join(upstream.faults)
    wait_for_baseline(rill, upstream, before)
    take_every_slot(rill, upstream, streams)
    wait_for_baseline(rill, upstream, before)
    assert "Traceback" not in rill.output()[offset:]
