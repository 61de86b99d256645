"""Server-sent events: a parser of the specification reads the same text, however it was split."""

import json
import re
import time
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from rill.dialects import SSE
from rill.dialects.base import COMMENT_SECONDS
from rill.dialects.sse import SSEEncoder
from rill.events import End, Event, Heartbeat, Start, Text
from rill.problems import Problem
from rill.prompt import ReplyFormat

END = End("end_turn", {"input_tokens": 3, "output_tokens": 5})
texts = st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8)
line_ends = st.lists(st.text(alphabet="\r\n a:\u2028\x85\x00\ufeff", min_size=1, max_size=5), max_size=8)


class Dispatched(NamedTuple):
    """An event as a browser dispatches it."""

    type: str
    data: str
    id: str


def parse(stream: bytes) -> list[Dispatched]:
    """Parse a stream: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation"""
    dispatched = []
    type, data, last_id = "", "", ""
    lines = re.split("\r\n|\n|\r", stream.decode().removeprefix("\ufeff"))
    for line in lines[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                dispatched.append(Dispatched(type or "message", data.removesuffix("\n"), last_id))
            type, data = "", ""
        elif field == "event":
            type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
    return dispatched


def write(*events: Event) -> bytes:
    encoder = SSEEncoder("m", ReplyFormat(), "r")
    return b"".join(map(encoder.encode, events))


def text_of(stream: bytes) -> str:
    return "".join(event.data for event in parse(stream) if event.type == "message" and event.data != "[DONE]")


@given(pieces=texts | line_ends)
@examples(75)
def test_text_is_preserved_with_its_line_ends_as_newlines(pieces: list[str]) -> None:
    text = "".join(pieces).replace("\r\n", "\n").replace("\r", "\n")
    assert text_of(write(Start(), *map(Text, pieces))) == text


@given(text=st.text(alphabet="\r\n ab:", min_size=1), data=st.data())
@examples(50)
def test_text_arrives_the_same_however_it_is_split(text: str, data: st.DataObject) -> None:
    points = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=6))})
    pieces = [text[begin:end] for begin, end in pairwise(points)]
    assert text_of(write(*map(Text, pieces))) == text_of(write(Text(text)))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("Hello", "Hello"),
        (" two  spaces ", " two  spaces "),
        ("a\nb", "a\nb"),
        ("\n", "\n"),
        ("a\n\n", "a\n\n"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("id: 9\nevent: done\ndata: x", "id: 9\nevent: done\ndata: x"),
        (": no comment", ": no comment"),
        ("溪🌊\u2028\x85\x0b", "溪🌊\u2028\x85\x0b"),
    ],
)
def test_each_text_is_one_unnamed_event_with_an_id(text: str, data: str) -> None:
    assert parse(write(Text(text))) == [Dispatched("message", data, "1")]


def test_a_completed_answer_is_its_texts_then_done_with_its_statistics_then_the_end_mark() -> None:
    *texts, done, mark = parse(write(Start(), Text("Hello"), Heartbeat(True), Text(" world"), END))
    assert [event.data for event in texts] == ["Hello", " world"]
    assert done.type == "done"
    statistics = json.loads(done.data)
    assert 0 <= statistics.pop("elapsed_seconds") < 60
    assert statistics == {"stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 5}}
    assert mark[:2] == ("message", "[DONE]")


@pytest.mark.parametrize(
    "usage", [{}, {"service_tier": "standard"}, {"cache_creation": {"ephemeral_5m_input_tokens": 0}, "note": "\ud83d"}]
)
def test_any_usage_can_be_encoded(usage: dict[str, Any]) -> None:
    done, _ = parse(write(End(None, usage)))
    assert json.loads(done.data)["usage"] == usage


def test_every_event_has_an_id_of_its_own() -> None:
    ids = [event.id for event in parse(write(Start(), Text("a"), Text("b\nc"), END))]
    assert "" not in ids
    assert len(set(ids)) == len(ids)


def test_the_start_is_sent_at_once_and_dispatches_nothing_but_an_id() -> None:
    opening = write(Start())
    assert opening
    assert parse(opening) == []
    assert parse(opening + b"data: x\n\n")[0].id != ""


def test_a_failure_is_an_error_event_with_the_problem_and_no_end_mark() -> None:
    encoder = SSEEncoder("m", ReplyFormat(), "r")
    stream = encoder.encode(Text("Hel\r")) + encoder.encode_error(Problem("upstream_overloaded", 'two\nlines "溪"'))
    text, error = parse(stream)
    assert text.data == "Hel\n"
    assert error.type == "error"
    assert json.loads(error.data)["detail"] == 'two\nlines "溪"'
    assert json.loads(error.data)["status"] == 503
    assert b"[DONE]" not in stream


def test_a_heartbeat_soon_after_a_byte_sends_nothing() -> None:
    encoder = SSEEncoder("m", ReplyFormat(), "r")
    assert encoder.encode(Heartbeat(False)) == b""
    encoder.encode(Text("a"))
    assert [encoder.encode(Heartbeat(working)) for working in (True, False, True)] == [b"", b"", b""]


def test_a_later_heartbeat_is_one_comment_which_dispatches_nothing() -> None:
    encoder = SSEEncoder("m", ReplyFormat(), "r")
    encoder.encode(Text("a"))
    time.sleep(COMMENT_SECONDS + 0.05)  # pacing: the test waits for this time to pass
    comment = encoder.encode(Heartbeat(True))
    assert comment.startswith(b":")
    assert parse(comment) == []
    assert encoder.encode(Heartbeat(True)) == b""


def test_a_heartbeat_between_the_halves_of_a_line_end_changes_nothing() -> None:
    assert text_of(write(Text("a\r"), Heartbeat(True), Text("\nb"))) == "a\nb"


def test_server_sent_events_begin_at_the_upstreams_first_event() -> None:
    assert not SSE.wants_text
    assert SSE.media_type == "text/event-stream; charset=utf-8"
    assert isinstance(SSE.open_encoder("m", ReplyFormat(), "r"), SSEEncoder)
    SSE.check_beginning([Start(), End("refusal", {}, "Not that.")])  # the done event reports it
