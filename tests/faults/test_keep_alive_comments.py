"""A silent event stream contains a keep-alive comment at least every 15 s, so that no proxy closes it as idle."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import upstream as wire
from asking import SSE, ask
from server import Rill
from upstream import Answer, Step, Upstream
from witness import in_one_segment

MAX_SECONDS = 15.0
WATCHED = 34.0
BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one")))

SILENCES: dict[str, Sequence[Step]] = {
    "silence": (*BEGUN, wire.silence()),
    # The first comment follows a ping that came too early to cause one.
    "one ping, then silence": (*BEGUN, wire.pause(4.7), wire.send(wire.ping()), wire.silence()),
    "silence after one segment": (in_one_segment(wire.opening()), wire.silence()),
    "silence before the first text": (wire.head(), wire.send(wire.opening()), wire.pause(0.2), wire.silence()),
    "thinking": (*BEGUN, *(step for _ in range(100) for step in (wire.pause(0.5), wire.send(wire.thinking("hm"))))),
}


def play_named_script(answer: Answer) -> None:
    for step in SILENCES[answer.request.json["messages"][0]["content"]]:
        step(answer)


def longest_gap(rill: Rill, which: str) -> float:
    """Return the longest time without a byte of the answer, in seconds."""
    with ask(rill, headers=SSE, q=which, timeout=WATCHED) as asked:
        assert asked.status == 200
        begun = last = time.monotonic()
        longest = 0.0
        while last < begun + WATCHED:
            asked.socket.settimeout(max(0.1, begun + WATCHED - last))
            try:
                asked.next_chunk()
            except TimeoutError:
                return max(longest, time.monotonic() - last)
            assert asked.ended is None
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest


@pytest.mark.waits
def test_an_event_stream_gets_a_keep_alive_comment_at_least_every_15_seconds(service: Rill, upstream: Upstream) -> None:
    upstream.always(play_named_script)
    with ThreadPoolExecutor(len(SILENCES)) as clients:
        watched = {which: clients.submit(longest_gap, service, which) for which in SILENCES}
        gaps = {which: each.result() for which, each in watched.items()}
    assert {which: gap for which, gap in gaps.items() if not 1 < gap <= MAX_SECONDS} == {}
