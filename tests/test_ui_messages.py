"""The AI SDK's UI message stream: at /api/chat, and at /stream for a request with the SDK's header."""

import json
from typing import Any

import pytest
import upstream as wire
from gated import FIRST, SECOND, gated_answer
from server import Rill
from upstream import Upstream

from rill.dialects.ui_messages import HEADER, UIMessageEncoder
from rill.events import End, Heartbeat, Start, Text
from rill.problems import Problem
from rill.prompt import ReplyFormat

JSON = {"Content-Type": "application/json", "Connection": "close"}
ASKED = {
    "id": "chat-1",
    "trigger": "submit-message",
    "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "What is a rill?"}]}],
}
BODY = json.dumps(ASKED).encode()
WAYS = {"its path": ("/api/chat", JSON), "its header": ("/stream", {**JSON, HEADER: "v1"})}


def chunks_of(stream: bytes) -> list[Any]:
    *events, rest = stream.decode().split("\n\n")
    assert rest == ""
    return [
        data if data == "[DONE]" else json.loads(data) for data in (event.removeprefix("data: ") for event in events)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_the_first_text_comes_before_the_upstream_sends_the_second(service: Rill, upstream: Upstream, way: str) -> None:
    path, headers = WAYS[way]
    upstream.script(*gated_answer())
    with service.ask("POST", path, headers, BODY) as asked:
        assert (asked.status, asked.headers[HEADER]) == (200, "v1")
        assert asked.headers["content-type"].startswith("text/event-stream")
        begun = asked.read_until(FIRST.encode())
        upstream.open("second")
        chunks = chunks_of(begun + asked.read_rest())
    assert [chunk if chunk == "[DONE]" else chunk["type"] for chunk in chunks] == [
        "start",
        "start-step",
        "text-start",
        "text-delta",
        "text-delta",
        "text-end",
        "finish-step",
        "finish",
        "[DONE]",
    ]
    assert "".join(chunk["delta"] for chunk in chunks if "delta" in chunk) == FIRST + SECOND
    assert chunks[-2]["finishReason"] == "stop"
    assert upstream.requests[0].json["messages"] == [{"role": "user", "content": "What is a rill?"}]


def test_an_answer_without_text_has_no_text_part(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(stop_reason="refusal"))
    with service.ask("POST", "/api/chat", JSON, BODY) as asked:
        chunks = chunks_of(asked.read_rest())
    assert [chunk["type"] for chunk in chunks[:-1]] == ["start", "start-step", "finish-step", "finish"]
    assert chunks[-2]["finishReason"] == "content-filter"


def test_a_truncated_answer_ends_with_an_error_and_is_not_finished(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.close())
    with service.ask("POST", "/api/chat", JSON, BODY) as asked:
        *_, text, error = chunks_of(asked.read_rest())
    assert (text["delta"], error["type"]) == (FIRST, "error")
    assert "model's API" in error["errorText"]


def test_the_same_request_without_the_header_gets_plain_text(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with service.ask("POST", "/stream", JSON, BODY) as asked:
        assert asked.read_rest().decode() == FIRST + SECOND


def test_every_event_has_its_chunks() -> None:
    encoder = UIMessageEncoder("m", ReplyFormat(), "r")
    events = [Start(), Heartbeat(working=True), Text("a"), Text("b"), End("max_tokens", {})]
    chunks = chunks_of(b"".join(map(encoder.encode, events)))
    assert [chunk["type"] for chunk in chunks[2:5]] == ["text-start", "text-delta", "text-delta"]
    assert chunks[-2]["finishReason"] == "length"
    assert chunks_of(UIMessageEncoder("m", ReplyFormat(), "r").encode(End(None, {})))[1]["finishReason"] == "other"
    (error,) = chunks_of(encoder.encode_error(Problem("idle_timeout")))
    assert error["errorText"].startswith("The model was idle")
