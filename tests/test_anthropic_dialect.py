"""The Messages API's own dialect forwards requests and answers unchanged, and never sends a partial event."""

import json
from itertools import accumulate, pairwise
from typing import Any

import pytest
import upstream as wire
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from rill.dialects import ANTHROPIC
from rill.dialects.anthropic import AnthropicEncoder, encode_problem, encode_whole, read_messages
from rill.events import Bytes, End, Event, Heartbeat, Start, Text
from rill.problems import KINDS, Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

END = End("end_turn", {})
ASKED: dict[str, Any] = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "溪"}]}
HI = {"role": "user", "content": "hi"}
RECORDED = sorted(wire.expected())
LINE_ENDS = pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
recordings = st.sampled_from(RECORDED).map(wire.recorded)


def make_settings(**env: str) -> Settings:
    return Settings(**{"ANTHROPIC_API_KEY": "sk-test", "RILL_ALLOWED_MODELS": "small,large", **env})  # type: ignore[arg-type]


SETTINGS = make_settings()


def read(fields: object, headers: dict[str, str] | None = None, query: dict[str, str] | None = None) -> Prompt:
    return read_messages(json.dumps(fields).encode(), headers or {}, query or {}, SETTINGS)[0]


def split(data: st.DataObject, stream: bytes) -> list[bytes]:
    """Return the stream, split into arbitrary reads."""
    points = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=12))})
    return [stream[begin:end] for begin, end in pairwise(points)]


def events_of(stream: bytes, line_end: bytes = b"\n") -> list[bytes]:
    return [event + line_end * 2 for event in stream.split(line_end * 2) if event]


# Requests


def test_every_field_of_a_request_is_forwarded() -> None:
    options = {"system": [{"type": "text", "text": "x"}], "tools": [{"name": "t"}], "thinking": {"nothing": None}}
    prompt = read({**ASKED, **options, "stream": True}, query={"beta": "true"})
    assert (prompt.model, prompt.max_tokens, prompt.messages) == ("small", 9, ASKED["messages"])
    assert prompt.options == {**options, "stream": True}
    assert prompt.query == {"beta": "true"}
    assert prompt.is_streamed


@pytest.mark.parametrize("stream", [{}, {"stream": False}])
def test_only_stream_true_is_streamed(stream: dict[str, Any]) -> None:
    prompt = read({**ASKED, **stream})
    assert prompt.is_streamed is False
    assert prompt.options == {"stream": False}


def test_settings_add_nothing_to_the_request() -> None:
    settings = make_settings(RILL_SYSTEM_PROMPT="Be brief.", RILL_DEFAULT_MAX_TOKENS="77")
    prompt, _ = read_messages(json.dumps(ASKED).encode(), {}, {}, settings)
    assert (prompt.max_tokens, prompt.options) == (9, {"stream": False})


@pytest.mark.parametrize("spelled", [str.lower, str.title, str.upper])
def test_betas_and_version_are_forwarded_and_credentials_never(spelled: Any) -> None:
    forwarded = {"anthropic-beta": "pdfs-2024-09-25,effort-2099-01-01", "anthropic-version": "2023-06-01"}
    kept = {"authorization": "Bearer s", "x-api-key": "s", "cookie": "s", "host": "h", "anthropic-organization": "o"}
    headers = {spelled(name): value for name, value in {**forwarded, **kept}.items()}
    assert {name.lower(): value for name, value in read(ASKED, headers).headers.items()} == forwarded


@pytest.mark.parametrize(
    ("changed", "name", "message"),
    [
        ({"model": None}, "bad_request", "model"),
        ({"model": ""}, "bad_request", "model"),
        ({"model": ["small"]}, "bad_request", "model"),
        ({"model": "huge"}, "forbidden", "small, large"),
        ({"max_tokens": None}, "bad_request", "max_tokens"),
        ({"max_tokens": "9"}, "bad_request", "max_tokens"),
        ({"max_tokens": True}, "bad_request", "max_tokens"),
        ({"max_tokens": 9.0}, "bad_request", "max_tokens"),
        ({"max_tokens": 0}, "bad_request", "from 1 to 64000"),
        ({"max_tokens": 64001}, "bad_request", "from 1 to 64000"),
        ({"messages": None}, "bad_request", "messages"),
        ({"messages": "hi"}, "bad_request", "messages"),
        ({"messages": [HI] * 10_001}, "bad_request", "messages: should be at most 10000."),
        ({"stream": "yes"}, "bad_request", "stream: should be true or false."),
    ],
)
def test_an_invalid_field_is_rejected_by_name(changed: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(Problem) as rejected:
        read({**ASKED, **changed})
    assert rejected.value.name == name
    assert message in rejected.value.detail


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"hi"', b"\xff", b'{"a": NaN}', b'{"a": -Infinity}'])
def test_a_body_that_is_not_a_json_object_is_rejected(body: bytes) -> None:
    with pytest.raises(Problem, match="JSON") as rejected:
        read_messages(body, {}, {}, SETTINGS)
    assert rejected.value.name == "bad_request"


# Answers


@LINE_ENDS
@given(stream=recordings, data=st.data())
@examples(30)
def test_an_answer_is_the_same_bytes_however_its_reads_are_split(
    line_end: bytes, stream: bytes, data: st.DataObject
) -> None:
    stream = stream.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")
    written = [encoder.encode(Bytes(piece)) for piece in split(data, stream)]
    assert b"".join(written) + encoder.encode(END) == stream


@LINE_ENDS
@given(stream=recordings, data=st.data())
@examples(30)
def test_each_event_is_forwarded_with_the_read_that_completes_it(
    line_end: bytes, stream: bytes, data: st.DataObject
) -> None:
    stream = stream.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    boundaries = list(accumulate(map(len, events_of(stream, line_end))))
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")
    received = written = 0
    for piece in split(data, stream):
        received += len(piece)
        written += len(encoder.encode(Bytes(piece)))
        assert written == max((end for end in boundaries if end <= received), default=0)


@LINE_ENDS
@given(stream=recordings, data=st.data())
@examples(30)
def test_an_error_event_never_follows_a_partial_event(line_end: bytes, stream: bytes, data: st.DataObject) -> None:
    stream = stream.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    received = stream[: data.draw(st.integers(0, len(stream)))]
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")
    written = b"".join(encoder.encode(Bytes(piece)) for piece in split(data, received))
    assert stream.startswith(written)
    assert written == b"" or written.endswith(line_end * 2)
    error = encoder.encode_error(Problem("upstream_truncated"))
    assert error.startswith(b"event: error\ndata: {")
    assert error.endswith(b"}\n\n")
    assert error.count(b"\n") == 3


def test_a_long_event_is_scanned_once() -> None:
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")  # scanning it from the start at every read would take minutes
    event = b"data: " + b"x" * 16_000_000 + b"\n\n"
    written = [encoder.encode(Bytes(event[at : at + 1000])) for at in range(0, len(event), 1000)]
    assert b"".join(written) == event
    assert not any(written[:-1])


def test_an_error_event_of_the_upstream_is_not_sent_twice() -> None:
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")
    problem = Problem("upstream_overloaded", is_forwarded=True)
    assert encoder.encode(Bytes(wire.stream_error())) + encoder.encode_error(problem) == wire.stream_error()


def test_an_error_event_of_the_upstream_without_its_blank_line_is_forwarded() -> None:
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")
    problem = Problem("upstream_overloaded", is_forwarded=True)
    received = encoder.encode(Bytes(wire.stream_error().removesuffix(b"\n\n")))
    assert received + encoder.encode_error(problem) == wire.stream_error()


def test_a_last_event_without_its_blank_line_is_forwarded() -> None:
    encoder = AnthropicEncoder("m", ReplyFormat(), "r")
    received = encoder.encode(Bytes(wire.stop().removesuffix(b"\n\n")))
    assert received + encoder.encode(END) == wire.stop()


@pytest.mark.parametrize("event", [Start(), Text("溪"), Heartbeat(True), Heartbeat(False), END])
def test_parsed_events_add_no_bytes(event: Event) -> None:
    assert AnthropicEncoder("m", ReplyFormat(), "r").encode(event) == b""


def test_a_non_streamed_message_is_the_upstreams_bytes() -> None:
    body = b' {"type" : "message"}\n'
    assert encode_whole([[Heartbeat(True)], [Bytes(body), END]], "m", ReplyFormat(), "r") == (body, END)


# Errors


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_problem_has_the_apis_error_shape(name: str) -> None:
    body = json.loads(encode_problem(Problem(name, 'a "word"\n溪'), "req-7"))
    error = {"type": KINDS[name].type, "message": 'a "word"\n溪'}
    assert body == {"type": "error", "error": error, "request_id": "req-7"}


def test_an_error_event_contains_the_problem_in_the_apis_shape() -> None:
    problem = Problem("idle_timeout")
    lines = AnthropicEncoder("m", ReplyFormat(), "req-7").encode_error(problem).split(b"\n")
    assert lines == [b"event: error", b"data: " + encode_problem(problem, "req-7"), b"", b""]


def test_the_dialect_responds_at_the_upstreams_first_event() -> None:
    assert not ANTHROPIC.wants_text
    ANTHROPIC.check_beginning([Start(), End("refusal", {}, "Not that.")])  # the forwarded bytes report it
    assert ANTHROPIC.media_type == "text/event-stream; charset=utf-8"
