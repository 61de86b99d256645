"""A request beyond the slots is rejected at once, and open streams are not disturbed."""

import threading
import time
from contextlib import ExitStack

import pytest
import requests
import upstream as wire
from asking import ask
from conversation import Conversation
from server import Rill
from upstream import Upstream
from witness import STREAMS, logged, name_request

MAX_SECONDS = 0.100
REJECTIONS = 20
FLOW = (
    wire.head(), wire.send(wire.opening(), wire.text("one ")),
    *(step for _ in range(6000) for step in (wire.pause(0.01), wire.send(wire.text("more ")))), wire.close(),
)  # fmt: skip


def reject_once(rill: Rill) -> float:
    """Return the seconds until a request beyond the slots is rejected."""
    name = name_request()
    begun = time.monotonic()
    with ask(rill, headers={"Connection": "close"}, name=name) as rejected:
        assert rejected.status == 503
        took = time.monotonic() - begun
        assert int(rejected.headers["retry-after"]) >= 1
        assert b"at capacity" in rejected.read_rest()
    line = logged(rill, name)
    assert (line["status"], line["outcome"]) == (503, "at_capacity")
    return took


def longest_gap(asked: Conversation, over: threading.Event, gaps: list[float]) -> None:
    last, longest = time.monotonic(), 0.0
    while not over.is_set():
        assert asked.next_chunk()
        now = time.monotonic()
        last, longest = now, max(longest, now - last)
    gaps.append(longest)


def measure(rill: Rill, streams: list[Conversation]) -> tuple[float, float]:
    """Return the time of the slowest rejection, and the longest gap in an open stream meanwhile, in seconds."""
    over, gaps = threading.Event(), list[float]()
    readers = [threading.Thread(target=longest_gap, args=(each, over, gaps)) for each in streams]
    for each in readers:
        each.start()
    try:
        slowest = max(reject_once(rill) for _ in range(REJECTIONS))
    finally:
        over.set()
        for each in readers:
            each.join()
    assert len(gaps) == len(streams)
    return slowest, max(gaps)


@pytest.mark.timing
def test_a_request_beyond_the_slots_is_rejected_at_once_while_streams_flow(rill: Rill, upstream: Upstream) -> None:
    upstream.always(*FLOW)
    with ExitStack() as stack:
        streams = [stack.enter_context(ask(rill)) for _ in range(STREAMS)]
        for each in streams:
            assert each.next_chunk().startswith(b"one ")
        assert max(measure(rill, streams)) < MAX_SECONDS
        assert len(upstream.requests) == STREAMS
        with rill.ask("GET", "/readyz") as ready:
            assert ready.status == 503
        with rill.ask("GET", "/healthz") as alive:
            assert alive.status == 200


def test_a_slot_that_a_disconnect_released_can_be_taken_at_once(rill: Rill, upstream: Upstream) -> None:
    upstream.always(wire.head(), wire.send(wire.opening(), wire.text("one ")), wire.silence())
    with ExitStack() as stack:
        for _ in range(STREAMS - 1):
            assert stack.enter_context(ask(rill)).next_chunk() == b"one "
        with ask(rill) as last:
            assert last.next_chunk() == b"one "
            assert requests.get(f"{rill.url}/stream", {"q": "hello"}, timeout=10).status_code == 503
        upstream.wait_for_disconnect()
        with ask(rill) as again:
            assert again.next_chunk() == b"one "
