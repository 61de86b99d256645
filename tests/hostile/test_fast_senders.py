"""A client that sends at full speed never stalls another client's stream in the same worker."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import upstream as wire
from conversation import Conversation, request_bytes
from fast_sender import KEY, SENDERS
from raw import play
from server import Rill, StartRill
from upstream import Upstream

PACE_SECONDS = 0.05
TOKENS = 20
# The longest time between two tokens of another client's stream.
GAP_SECONDS = 0.25
SENDER = Path(__file__).parent / "fast_sender.py"
PACED = (
    wire.head(),
    wire.send(wire.opening()),
    *(step for _ in range(TOKENS) for step in (wire.pause(PACE_SECONDS), wire.send(wire.text("t")))),
    wire.send(wire.stop()),
    wire.end(),
)


@pytest.fixture
def service(start_rill: StartRill) -> Rill:
    """Return a server with one worker that requires an API key; pipelined requests outlive their sender."""
    return start_rill(RILL_API_KEYS=f"alice={KEY}")


@contextmanager
def sending(rill: Rill, *names: str) -> Iterator[None]:
    """Run these senders at full speed during the context."""
    seconds = PACE_SECONDS * TOKENS + 10
    with ExitStack() as stack:
        for name in names:
            command = [sys.executable, str(SENDER), str(rill.port), name, str(seconds)]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        yield


def longest_gap(rill: Rill) -> float:
    """Return the longest time between two tokens of a paced stream, in seconds."""
    asked = request_bytes("GET", "/stream?q=paced", {"x-api-key": KEY, "Connection": "close"})
    with Conversation(rill.port, asked, timeout=20) as stream:
        assert stream.status == 200
        arrivals = []
        while stream.next_chunk():
            arrivals.append(time.monotonic())
        assert stream.ended == "clean"
    return max(after - before for before, after in itertools.pairwise(arrivals))


def play_paced(answer: wire.Answer) -> None:
    """Send the paced answer to the client that is measured, and a short one to every other."""
    if answer.request.json["messages"][-1]["content"] == "paced":
        for step in PACED:
            step(answer)
    else:
        play(answer)


ONE_BY_ONE = [pytest.param([name], marks=pytest.mark.soak, id=name) for name in SENDERS]


@pytest.mark.timing
@pytest.mark.parametrize("names", [*ONE_BY_ONE, pytest.param(list(SENDERS), id="all together")])
def test_a_fast_sender_never_stalls_another_clients_stream(service: Rill, upstream: Upstream, names: list[str]) -> None:
    upstream.always(play_paced)
    workers = [worker.pid for worker in service.workers()]
    with sending(service, *names):
        gap = longest_gap(service)
    print(f"longest gap with {', '.join(names)}: {gap * 1000:.0f} ms")
    assert gap < GAP_SECONDS
    assert [worker.pid for worker in service.workers()] == workers
