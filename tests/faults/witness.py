"""What the fault tests see of a running server from outside: its log, and whether everything is back at its baseline.

Greenlets are counted by `probe:app`, which adds one route to the service; all else is read from /proc and from sockets.
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
    """A server on the upstream at `url`, which answers as the service does and at /__probe too."""
    return Rill({**SETTINGS, "ANTHROPIC_BASE_URL": url, **env}, (*PROBE, *arguments), app="probe:app")


def name_request() -> str:
    """A request id that no other request of this process has."""
    return f"{os.getpid()}-{next(_names)}"


def in_one_segment(event: bytes) -> wire.Step:
    """The head of an event stream and its first chunk in one write, as a busy upstream sends them."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return wire.raw(head + b"%x\r\n%b\r\n" % (len(event), event))


# The listener and the log


def refuses_connections(rill: Rill) -> bool:
    """Whether nobody listens on the server's port."""
    try:
        rill.ask("GET", "/healthz").close()
    except ConnectionRefusedError:
        return True
    return False


def log_lines(output: str) -> list[dict[str, Any]]:
    """Every whole line about an answer."""
    return [json.loads(line) for line in output.split("\n")[:-1] if line.startswith('{"event": "answer"')]


def logged(rill: Rill, name: str, timeout: float = 10) -> dict[str, Any]:
    """Wait for the one line about the answer to the request `name`."""
    deadline = time.monotonic() + timeout
    while not (found := [line for line in log_lines(rill.output()) if line["request_id"] == name]):
        assert time.monotonic() < deadline, f"no line about {name} in:\n{rill.output()[-4000:]}"
        time.sleep(0.01)
    assert len(found) == 1
    return found[0]


# The gauges


class Gauges(NamedTuple):
    """What a worker holds; `descriptors` without the kept connections to the upstream."""

    greenlets: int
    descriptors: int
    clients: int


def ports_to(process: psutil.Process, port: int) -> set[int]:
    """The process's own ports of its connections to another's `port`."""
    return {each.laddr.port for each in process.net_connections("tcp4") if each.raddr and each.raddr.port == port}


def clients_of(process: psutil.Process, port: int) -> int:
    """How many connections a process has at its own `port`."""
    return sum(bool(each.raddr) and each.laddr.port == port for each in process.net_connections("tcp4"))


def look_inside(rill: Rill) -> dict[str, Any]:
    """What /__probe tells of the one worker."""
    with rill.ask("GET", "/__probe", {"Connection": "close"}) as asked:
        inside: dict[str, Any] = json.loads(asked.read_rest())
        return inside


def wait_until_all_serve(rill: Rill, workers: int) -> None:
    """Wait until so many workers have answered: a server is healthy with the first of them."""
    served: set[int] = set()

    def is_full() -> bool:
        served.add(look_inside(rill)["pid"])
        return len(served) == workers

    wait_until(is_full, rill.output, timeout=15)


def read_gauges(rill: Rill, upstream_port: int) -> Gauges:
    """The gauges now; an answer that is still open counts as many greenlets too many."""
    inside = look_inside(rill)
    (worker,) = rill.workers()
    kept = len(ports_to(worker, upstream_port))
    greenlets = inside["greenlets"] + (0 if inside["no_answer_open"] else 1000)
    return Gauges(greenlets, worker.num_fds() - kept, clients_of(worker, rill.port))


def rest(rill: Rill, upstream: Upstream) -> Gauges:
    """The gauges at rest: the least of some looks, after one whole answer has warmed everything up."""
    upstream.script(*wire.answer("warm"))
    with ask(rill, headers={"Connection": "close"}) as asked:
        assert asked.read_rest() == b"warm"
    upstream.wait_until(lambda: upstream.answers[-1].outcome == "sent", "the end of the first answer")
    wait_until(lambda: read_gauges(rill, upstream.port).clients == 0, lambda: "the first client stays connected")
    looks = [read_gauges(rill, upstream.port) for _ in range(3)]
    return Gauges(*map(min, zip(*looks, strict=True)))


def wait_for_rest(rill: Rill, upstream: Upstream, before: Gauges, timeout: float = 10) -> None:
    """Wait until no gauge is above what it was, and every connection that the upstream has is the worker's too."""
    seen: list[object] = []

    def is_back() -> bool:
        now = read_gauges(rill, upstream.port)
        (worker,) = rill.workers()
        lost = upstream.open_peer_ports - ports_to(worker, upstream.port)
        seen[:] = [now, lost]
        return all(mine <= theirs for mine, theirs in zip(now, before, strict=True)) and not lost

    wait_until(is_back, lambda: f"{seen} is not back at {before}", timeout)


def take_every_place(rill: Rill, upstream: Upstream, streams: int = STREAMS) -> None:
    """Hold as many answers as there are places, see the next one refused, and let all end whole."""
    upstream.clear()
    upstream.always(
        wire.head(), wire.send(wire.opening(), wire.text("a")), wire.gate("all"), wire.send(wire.stop()), wire.end()
    )
    with ExitStack() as stack:
        asked = [stack.enter_context(ask(rill, headers={"Connection": "close"})) for _ in range(streams)]
        assert [each.next_chunk() for each in asked] == [b"a"] * streams
        with ask(rill, headers={"Connection": "close"}) as refused:
            assert refused.status == 503
        upstream.open("all")
        assert [(each.read_rest(), each.ended) for each in asked] == [(b"", "clean")] * streams
    upstream.wait_until(lambda: all(each.outcome == "sent" for each in upstream.answers), "the end of them all")


@contextmanager
def unharmed(rill: Rill, upstream: Upstream, streams: int = STREAMS) -> Iterator[None]:
    """Whatever happens in this context, the worker is afterwards as it was: nothing held, nothing crashed."""
    before = rest(rill, upstream)
    upstream.clear()
    said = len(rill.output())
    yield
    assert upstream.faults == [], "\n".join(upstream.faults)
    wait_for_rest(rill, upstream, before)
    take_every_place(rill, upstream, streams)
    wait_for_rest(rill, upstream, before)
    assert "Traceback" not in rill.output()[said:]
