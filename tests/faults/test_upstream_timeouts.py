"""A silent upstream, or one that sends only pings, is a timeout; thinking counts as content."""

import json
import time

import pytest
import requests
import upstream as wire
from asking import SSE, ask
from server import Rill
from upstream import Step, Upstream
from witness import in_one_segment, logged, name_request

START, IDLE, TOTAL = 1.0, 1.5, 4.0
# How much later than its timeout an answer may end, on a busy machine.
LATE = 1.0
ENV = {"RILL_START_TIMEOUT_SECONDS": "1", "RILL_IDLE_TIMEOUT_SECONDS": "1.5", "RILL_TOTAL_TIMEOUT_SECONDS": "4"}
BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one ")))


def repeated(event: bytes, seconds: float, times: int = 1000) -> list[Step]:
    return [step for _ in range(times) for step in (wire.pause(seconds), wire.send(event))]


NO_START = {
    "before its headers": (wire.silence(),),
    "after its headers": (wire.head(), wire.silence()),
    "only pings after its headers": (wire.head(), *repeated(wire.ping(), 0.2)),
}


@pytest.mark.parametrize("when", NO_START)
@pytest.mark.parametrize("headers", [{}, SSE], ids=["text", "sse"])
def test_an_answer_that_does_not_start_is_a_504_after_the_start_timeout(
    rill: Rill, upstream: Upstream, headers: dict[str, str], when: str
) -> None:
    upstream.script(*NO_START[when])
    name = name_request()
    begun = time.monotonic()
    with ask(rill, headers=headers, name=name) as asked:
        assert asked.status == 504
    assert START <= time.monotonic() - begun < START + LATE
    assert logged(rill, name)["outcome"] == "start_timeout"
    upstream.wait_for_disconnect(0.5)
    assert len(upstream.requests) == 1


IDLE_ANSWERS = {
    "silence during the answer": ((*BEGUN, wire.silence()), b"one "),
    "only pings": ((*BEGUN, *repeated(wire.ping(), 0.2)), b"one "),
    "silence before the first text": ((wire.head(), wire.send(wire.opening()), wire.silence()), b""),
    "silence after a head and a start in one segment": ((in_one_segment(wire.opening()), wire.silence()), b""),
    "pings before the first text": ((wire.head(), wire.send(wire.opening()), *repeated(wire.ping(), 0.2)), b""),
}


@pytest.mark.parametrize("how", IDLE_ANSWERS)
def test_an_idle_upstream_aborts_a_plain_text_answer(rill: Rill, upstream: Upstream, how: str) -> None:
    steps, text = IDLE_ANSWERS[how]
    upstream.script(*steps)
    name = name_request()
    begun = time.monotonic()
    with ask(rill, name=name) as asked:
        assert asked.status == 200
        assert (asked.read_rest(), asked.ended) == (text, "truncated")
    assert IDLE <= time.monotonic() - begun < IDLE + LATE
    assert logged(rill, name)["outcome"] == "idle_timeout"
    upstream.wait_for_disconnect(0.5)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", IDLE_ANSWERS)
def test_an_idle_upstream_ends_an_event_stream_with_an_error_event(rill: Rill, upstream: Upstream, how: str) -> None:
    upstream.script(*IDLE_ANSWERS[how][0])
    name = name_request()
    with ask(rill, headers=SSE, name=name) as asked:
        got = asked.read_rest()
        assert asked.ended == "clean"
    assert b"[DONE]" not in got
    assert json.loads(got.split(b"event: error\ndata: ")[1])["code"] == "idle_timeout"
    assert logged(rill, name)["outcome"] == "idle_timeout"
    upstream.wait_for_disconnect(0.5)


def test_thinking_counts_as_content(rill: Rill, upstream: Upstream) -> None:
    thoughts = repeated(wire.thinking("hm"), 0.3, times=9)
    upstream.script(
        wire.head(), wire.send(wire.start(), wire.block_start(0, "thinking")), *thoughts,
        wire.send(wire.block_stop(), wire.block_start(1), wire.text("so", 1), wire.stop()), wire.end(),
    )  # fmt: skip
    name = name_request()
    with ask(rill, name=name) as asked:
        assert (asked.read_rest(), asked.ended) == (b"so", "clean")
    line = logged(rill, name)
    assert line["outcome"] == "completed"
    assert line["duration_ms"] > 1000 * IDLE


@pytest.mark.parametrize("event", [wire.text("more "), wire.thinking("hm")], ids=["text", "thinking"])
@pytest.mark.parametrize("headers", [{}, SSE], ids=["text", "sse"])
def test_an_endless_answer_ends_after_the_total_timeout(
    rill: Rill, upstream: Upstream, headers: dict[str, str], event: bytes
) -> None:
    upstream.script(*BEGUN, *repeated(event, 0.1))
    name = name_request()
    begun = time.monotonic()
    with ask(rill, headers=headers, name=name) as asked:
        got = asked.read_rest()
        assert asked.ended == ("clean" if headers else "truncated")
    assert TOTAL <= time.monotonic() - begun < TOTAL + LATE
    assert b"[DONE]" not in got
    assert (b'"code": "total_timeout"' in got) == bool(headers)
    assert logged(rill, name)["outcome"] == "total_timeout"
    upstream.wait_for_disconnect(0.5)


def test_a_library_raises_after_an_idle_timeout(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*BEGUN, wire.silence())
    with requests.get(f"{rill.url}/stream", {"q": "hello"}, stream=True, timeout=10) as response:
        pieces = response.iter_content(None)
        assert next(pieces) == b"one "
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            next(pieces)


def test_an_http_1_0_connection_is_reset_after_an_idle_timeout(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*BEGUN, wire.silence())
    with ask(rill, version="HTTP/1.0") as asked:
        assert (asked.read_rest(), asked.ended) == (b"one ", "reset")
