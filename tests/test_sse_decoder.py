"""The decoder gives the same answer however the upstream's bytes are split, and raises nothing but a Problem."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import anthropic
import pytest
import upstream as wire
from hypothesis import given
from hypothesis import strategies as st
from upstream import Upstream

from examples import examples
from rill.events import End, Event, Heartbeat, Start, Text
from rill.problems import Problem
from rill.upstream.sse_decoder import MAX_EVENT_BYTES, Decoder

every_recording = pytest.mark.parametrize("name", wire.expected())

MEGABYTE = 1024 * 1024
LONE_SURROGATE = wire.text("\ud83d")
BROKEN_UTF8 = wire.text("caf?").replace(b"?", b"\xe9")
WHOLE = wire.opening() + wire.text("Hi, ") + wire.text("there") + wire.block_stop() + wire.stop()


class Outcome(NamedTuple):
    """The result of an answer, however it was split."""

    text: str
    start: Start | None
    end: End | None
    problem: str | None
    detail: str | None


def take_all(pieces: Iterable[bytes]) -> tuple[list[Event], Problem | None]:
    """Return every event of an upstream that sends the pieces and closes, and the Problem that ended them."""
    reader = Decoder()
    events: list[Event] = []
    for piece in pieces:
        events.extend(reader.feed(piece))
        if reader.ended or reader.problem:
            return events, reader.problem  # A reader stops at the end of the answer.
    events.extend(reader.finish())
    return events, reader.problem


def read(*pieces: bytes) -> Outcome:
    events, problem = take_all(pieces)
    text = "".join(event.text for event in events if isinstance(event, Text))
    starts = [event for event in events if isinstance(event, Start)]
    ends = [event for event in events if isinstance(event, End)]
    assert len(starts) <= 1
    assert len(ends) <= 1
    assert all(event.text for event in events if isinstance(event, Text))
    text.encode()  # always possible
    start, end = starts[0] if starts else None, ends[0] if ends else None
    return Outcome(text, start, end, problem and problem.name, problem and problem.detail)


def split(data: bytes, points: Iterable[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in pairwise([0, *sorted(points), len(data)])]


def deltas_of(data: bytes) -> str:
    """Return the text of a recording in LF lines, parsed with json only; a lone surrogate is U+FFFD."""
    messages = [json.loads(line[5:]) for line in data.split(b"\n") if line.startswith(b"data:")]
    deltas = [message["delta"] for message in messages if message["type"] == "content_block_delta"]
    text = "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# Splits


@every_recording
def test_a_recording_gives_its_start_its_deltas_and_its_end(name: str) -> None:
    data = wire.recorded(name)
    outcome = read(data)
    assert outcome.text == deltas_of(data)
    assert outcome.start is not None
    assert (outcome.end is None) == (outcome.problem is not None) == (name == "error_event")


@pytest.mark.parametrize("name", wire.expected())
def test_a_recording_gives_its_expected_outcome(name: str) -> None:
    outcome, expected = read(wire.recorded(name)), wire.expected()[name]
    assert outcome.text == expected["text"]
    assert (outcome.end.stop_reason if outcome.end else None) == expected["stop_reason"]
    assert outcome.problem == (None if expected["outcome"] == "completed" else "upstream_overloaded")


@every_recording
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_every_read_size_gives_the_same_answer(name: str, line_end: bytes) -> None:
    data = wire.recorded(name)
    whole = read(data)
    data = data.replace(b"\n", line_end)
    for size in range(1, 200 if line_end == b"\n" else 40):
        assert read(*split(data, range(size, len(data), size))) == whole, f"in reads of {size}"


@every_recording
def test_every_single_split_gives_the_same_answer(name: str) -> None:
    data = wire.recorded(name).replace(b"\n", b"\r\n")
    whole = read(data)
    for point in range(0, len(data), 1 if len(data) < 2600 else 7):
        assert read(data[:point], data[point:]) == whole, f"split at {point}"


@given(data=st.data())
@examples(40)
def test_random_splits_give_the_same_answer(data: st.DataObject) -> None:
    recorded = wire.recorded(data.draw(st.sampled_from(sorted(wire.expected()))))
    line_end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream = recorded.replace(b"\n", line_end)
    points = data.draw(st.lists(st.integers(0, len(stream)), max_size=40))
    assert read(*split(stream, points)) == read(recorded)


FAULTY = {
    "invalid JSON": WHOLE[:-30] + b'data: {"type":\n\n',
    "an error event": wire.opening() + wire.text("Hi") + wire.stream_error() + wire.text("never"),
    "a close": wire.opening() + wire.text("Hi") + wire.text("there"),
    "a close within an event": wire.opening() + wire.text("Hi") + wire.text("there")[:40],
    "lone surrogates": WHOLE[: -len(wire.stop())] + LONE_SURROGATE * 3 + wire.text("\ude00") + wire.stop(),
    "a surrogate before the close": wire.opening() + LONE_SURROGATE,
    "invalid UTF-8": wire.opening() + BROKEN_UTF8 + wire.stop(),
    "not an object": wire.opening() + wire.text("Hi") + b"data: [1]\n\n",
    "more after the end": WHOLE + wire.text("never"),
    "a mark after the end": WHOLE + b"data: [DONE]\n\n",
    "an error after the end": WHOLE + wire.stream_error(),
}


@pytest.mark.parametrize("stream", FAULTY.values(), ids=FAULTY)
def test_every_read_size_of_a_faulty_stream_gives_the_same_answer(stream: bytes) -> None:
    whole = read(stream)
    for size in range(1, len(stream)):
        assert read(*split(stream, range(size, len(stream), size))) == whole, f"in reads of {size}"


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=[]), min_size=1), max_size=8), data=st.data())
@examples(40)
def test_any_text_in_any_deltas_arrives_complete(texts: list[str], data: st.DataObject) -> None:
    stream = wire.opening() + b"".join(map(wire.text, texts)) + wire.block_stop() + wire.stop()
    points = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    text = "".join(texts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert read(*split(stream, points)).text == text


# Lines


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_event_may_spread_its_data_over_lines(line_end: bytes) -> None:
    lines = b'data: {"type": "content_block_delta",\ndata:"delta": {"type": "text_delta",\ndata: "text": "Hi"}}\n\n'
    assert read((wire.start() + lines + wire.stop()).replace(b"\n", line_end)).text == "Hi"


def test_comments_other_fields_and_a_colon_without_a_space_are_parsed() -> None:
    lines = b": hello\nid: 7\nretry: 10\nno colon\n\n" + wire.text("Hi").replace(b"data: ", b"data:")
    assert read(wire.start(), lines, wire.stop()).text == "Hi"


def test_an_event_with_empty_data_is_ignored() -> None:
    outcome = read(wire.start() + b"data:\n\nevent: ping\ndata: \n\n" + wire.text("Hi") + wire.stop())
    assert (outcome.text, outcome.problem) == ("Hi", None)


def test_the_last_line_may_lack_its_end() -> None:
    assert read(WHOLE.rstrip(b"\n")) == read(WHOLE)


def test_line_separators_within_the_text_do_not_split_it() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh\ri\nj"
    assert read(wire.start(), wire.text(text), wire.stop()).text == text


def test_a_line_of_ten_megabytes_in_pieces_arrives_complete() -> None:
    text = "x" * (10 * MEGABYTE)
    data = wire.start() + wire.text(text) + wire.stop()
    assert read(*split(data, range(4096, len(data), 4096))).text == text


def test_a_line_over_the_limit_is_a_problem() -> None:
    pieces = [b"data: ", *[b"x" * MEGABYTE] * (MAX_EVENT_BYTES // MEGABYTE + 1)]
    _, problem = take_all(pieces)
    assert problem is not None
    assert problem.name == "upstream_error"


def test_an_event_of_many_lines_over_the_limit_is_a_problem() -> None:
    lines = [b"data: " + b" " * MEGABYTE + b"\n"] * (MAX_EVENT_BYTES // MEGABYTE + 1)
    _, problem = take_all(lines)
    assert problem is not None
    assert problem.name == "upstream_error"


# Text that JSON can represent and UTF-8 cannot


def test_a_pair_split_over_deltas_and_reads_is_one_character() -> None:
    pieces = [wire.start(), wire.text("a\ud83d"), wire.ping(), wire.text("\ude00b"), wire.stop()]
    assert read(*pieces).text == read(b"".join(pieces)).text == "a😀b"


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        (["\ud83d"], "\ufffd"),
        (["a\ude00"], "a\ufffd"),
        (["\ude00", "\ud83d"], "\ufffd\ufffd"),
        (["\ud83d", "\ud83d", "\ude00"], "\ufffd😀"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["\ud83d", "😀"], "\ufffd😀"),
    ],
)
def test_a_surrogate_that_stays_alone_is_a_replacement_character(deltas: list[str], text: str) -> None:
    pieces = [wire.start(), *map(wire.text, deltas), wire.stop()]
    assert read(*pieces).text == read(b"".join(pieces)).text == text


def test_invalid_utf8_becomes_replacement_characters() -> None:
    outcome = read(wire.start(), BROKEN_UTF8, wire.text(" au lait"), wire.stop())
    assert (outcome.text, outcome.problem) == ("caf\ufffd au lait", None)


# Every outcome


def test_an_end_has_its_stop_reason_and_usage() -> None:
    outcome = read(wire.start(input_tokens=12) + wire.stop("max_tokens", 99))
    assert outcome.end is not None
    assert outcome.end.stop_reason == "max_tokens"
    assert outcome.end.usage["input_tokens"] == 12
    assert outcome.end.usage["output_tokens"] == 99


def test_a_refusal_keeps_its_explanation() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "Not that."}
    outcome = read(wire.start() + wire.stop("refusal", stop_details=details))
    assert outcome.end is not None
    assert outcome.end.explanation == "Not that."


@pytest.mark.parametrize("invalid", [["x"], {"a": 1}, 7, True])
def test_an_invalid_reason_or_explanation_is_none(invalid: Any) -> None:
    outcome = read(wire.start() + wire.stop(invalid, stop_details={"explanation": invalid}))
    assert outcome.end is not None
    assert (outcome.end.stop_reason, outcome.end.explanation) == (None, None)


def test_usage_is_known_before_the_end() -> None:
    reader = Decoder()
    list(reader.feed(wire.start(input_tokens=5)))
    assert reader.usage["input_tokens"] == 5
    assert not reader.ended


@pytest.mark.parametrize(
    ("type", "problem"),
    [
        ("overloaded_error", "upstream_overloaded"),
        ("rate_limit_error", "upstream_rate_limited"),
        ("api_error", "upstream_error"),
        ("invalid_request_error", "bad_request"),
        ("authentication_error", "upstream_rejected"),
        ("timeout_error", "upstream_timeout"),
        ("brand_new_error", "upstream_error"),
    ],
)
def test_an_error_event_is_its_problem_after_the_text_before_it(type: str, problem: str) -> None:
    stream = wire.opening() + wire.text("before") + wire.stream_error(type, "Oh no") + wire.text("after")
    events, raised = take_all([stream])
    assert raised is not None
    assert raised.name == problem
    assert events[-1] == Text("before")


@pytest.mark.parametrize("error", [{}, {"type": "invalid_request_error"}, None, "text", [1]])
def test_an_error_without_a_message_has_the_default_one(error: Any) -> None:
    outcome = read(wire.event("error", error=error))
    assert outcome.detail
    assert "None" not in outcome.detail


def test_a_close_anywhere_before_message_stop_is_upstream_truncated() -> None:
    problems = {kept: read(WHOLE[:kept]).problem for kept in range(len(WHOLE) - 2)}
    others = {kept: problem for kept, problem in problems.items() if problem != "upstream_truncated"}
    assert not others


def test_an_empty_stream_is_upstream_truncated() -> None:
    assert read().problem == read(b"").problem == "upstream_truncated"


def test_data_after_the_end_is_ignored() -> None:
    for late in (wire.text("late"), wire.stream_error(), b"data: [DONE]\n\n", wire.ping(), wire.stop("refusal")):
        assert read(WHOLE + late) == read(WHOLE)


@pytest.mark.parametrize("broken", [b"{", b"[DONE]", b"1", b"null", b"[]", b'"text"', b"[" * 100_000, b"\xff\xfe"])
def test_data_that_is_not_a_json_object_is_a_problem_after_the_text_before_it(broken: bytes) -> None:
    events, raised = take_all([wire.start() + wire.text("before") + b"data: " + broken + b"\n\n"])
    assert raised is not None
    assert raised.name == "upstream_error"
    assert events[-1] == Text("before")


# Heartbeat


def feed_one(data: bytes) -> list[Event]:
    return list(Decoder().feed(data))


def test_a_read_without_a_relevant_event_is_one_heartbeat() -> None:
    for data in (wire.ping(), wire.ping() * 3, b": comment\n\n", b"\n", b"data: {"):
        assert feed_one(data) == [Heartbeat(working=False)]


def test_content_other_than_text_is_the_heartbeat_of_a_working_model() -> None:
    signature = wire.delta(0, "signature_delta", signature="c3ludGg=")
    tool_input = wire.delta(1, "input_json_delta", partial_json="{")
    for data in (wire.thinking("Hm"), signature, tool_input, wire.block_start(), wire.block_stop()):
        assert feed_one(data) == [Heartbeat(working=True)]
        assert feed_one(wire.ping() + data + wire.ping()) == [Heartbeat(working=True)]


def test_working_applies_to_one_read_only() -> None:
    reader = Decoder()
    assert list(reader.feed(wire.thinking("Hm"))) == [Heartbeat(working=True)]
    assert list(reader.feed(wire.ping())) == [Heartbeat(working=False)]


def test_the_texts_of_one_read_are_one_event() -> None:
    assert feed_one(wire.text("a") + wire.ping() + wire.text("b") + wire.thinking("c") + wire.text("d")) == [
        Text("abd")
    ]


def test_unknown_events_and_deltas_are_ignored() -> None:
    news = wire.event("content_block_annotation", note={"deep": [1]}) + wire.delta(0, "brand_new_delta", text="no")
    assert read(wire.start() + news + wire.text("Hi") + wire.event("new") + wire.stop()).text == "Hi"
    assert feed_one(b'data: {"kind": "no type"}\n\n') == [Heartbeat(working=False)]


# Invalid shapes

KINDS = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "ping",
    "error",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from(["type", "text", "message", "usage", "model", "stop_reason", "stop_details", "explanation"])
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
shapes = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | json_values},
    optional=dict.fromkeys(("message", "delta", "usage", "error", "content_block", "index"), json_values),
)


@given(events=st.lists(shapes, max_size=6))
@examples(80)
def test_no_shape_of_event_raises_anything_but_a_problem(events: list[dict[str, Any]]) -> None:
    read_any = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    taken, problem = take_all([read_any])
    assert all(isinstance(event, Event) for event in taken)
    assert problem is None or problem.detail


@given(data=st.binary(max_size=300), points=st.lists(st.integers(0, 300), max_size=5))
@examples(40)
def test_no_bytes_raise_anything_but_a_problem(data: bytes, points: list[int]) -> None:
    take_all(split(data, [point for point in points if point <= len(data)]))
    take_all([b"data: " + data + b"\n\n"])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("message_start", {"message": []}),
        ("message_start", {"message": {"usage": 7}}),
        ("content_block_delta", {"delta": None}),
        ("content_block_delta", {"delta": []}),
        ("content_block_delta", {"delta": {"type": "text_delta"}}),
        ("content_block_delta", {"delta": {"type": "text_delta", "text": None}}),
        ("content_block_delta", {"delta": {"type": "text_delta", "text": {"a": 1}}}),
        ("message_delta", {"delta": None, "usage": "much"}),
        ("message_delta", {"delta": {"stop_details": "text"}}),
    ],
)
def test_an_event_of_an_invalid_shape_is_ignored(name: str, fields: dict[str, Any]) -> None:
    outcome = read(wire.event(name, **fields) + wire.text("Hi") + wire.stop())
    assert (outcome.text, outcome.problem) == ("Hi", None)


def test_a_null_count_keeps_the_known_one() -> None:
    outcome = read(wire.start(input_tokens=5) + wire.event("message_delta", usage={"input_tokens": None}) + wire.stop())
    assert outcome.end is not None
    assert outcome.end.usage["input_tokens"] == 5


# Messages that are not streamed


def test_a_non_streamed_message_has_its_end() -> None:
    message = {"type": "message", "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": None}}
    assert Decoder().read_message(json.dumps(message).encode()) == End("end_turn", {"input_tokens": 3})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"no JSON", "upstream_error"),
        (b'{"type": "completion"}', "upstream_error"),
        (b'{"type": "error", "error": {"type": "overloaded_error"}}', "upstream_overloaded"),
    ],
)
def test_a_body_that_is_not_a_message_is_a_problem(body: bytes, problem: str) -> None:
    reader = Decoder()
    with pytest.raises(Problem) as raised:
        reader.read_message(body)
    assert raised.value.name == problem
    assert reader.problem is raised.value


# The official SDK as the oracle


@pytest.fixture
def client(upstream: Upstream) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=upstream.url, api_key="sk-test", max_retries=0) as client:
        yield client


@every_recording
def test_the_official_sdk_reads_the_same_text(name: str, upstream: Upstream, client: anthropic.Anthropic) -> None:
    data = wire.recorded(name)
    upstream.script(wire.head(), wire.dribble(data, 257), wire.end())
    request: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "?"}]}
    events: list[Any] = []
    failed = False
    with client.messages.create(**request, stream=True) as stream:
        try:
            deque(map(events.append, stream))
        except anthropic.APIStatusError:
            failed = True
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    text = "".join(delta.text for delta in deltas if delta.type == "text_delta")
    outcome = read(data)
    assert outcome.text == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert (outcome.problem is not None) == failed


def test_usage_is_final_once_the_output_is_counted() -> None:
    decoder = Decoder()
    decoder.feed(wire.opening() + wire.text("some"))
    assert not decoder.has_final_usage
    decoder.feed(wire.event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}))
    assert decoder.has_final_usage
