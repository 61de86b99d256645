"""No field that would change the answer is dropped: it is forwarded, or the request is rejected and names it."""

import base64
import json
from typing import Any

import pytest
import upstream as wire
from server import Rill
from upstream import Upstream

HI = {"role": "user", "content": "hi"}
PNG = "iVBORw0KGgo="
PDF = base64.b64encode(b"%PDF-1.7\n%%EOF\n").decode()
JSON = {"Content-Type": "application/json"}


def send(service: Rill, path: str, fields: object) -> tuple[int | None, str]:
    """Send JSON; return the status and the body of the response."""
    with service.ask("POST", path, JSON, json.dumps(fields).encode()) as asked:
        return asked.status, asked.read_rest().decode()


def receive(service: Rill, upstream: Upstream, path: str, fields: object) -> Any:
    """Send JSON; return the JSON of the upstream request."""
    upstream.script(*wire.answer("ok"))
    status, body = send(service, path, fields)
    assert status == 200, body
    (request,) = upstream.requests
    return request.json


def reject(service: Rill, upstream: Upstream, path: str, fields: object) -> str:
    """Send JSON that is rejected; return the message."""
    status, body = send(service, path, fields)
    assert (status, upstream.requests) == (400, []), body
    return str(json.loads(body)["error"]["message"]) if path.startswith("/v1/") else body


# POST /stream


def parts(*given: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"id": "1", "role": role, "parts": list(given)}


def file(media_type: str, **fields: str) -> dict[str, Any]:
    return {"type": "file", "mediaType": media_type, **fields}


def base64_source(media_type: str, data: str) -> dict[str, str]:
    return {"type": "base64", "media_type": media_type, "data": data}


FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an image in a data: URL": (
        file("image/png", url=f"data:image/png;base64,{PNG}"),
        {"type": "image", "source": base64_source("image/png", PNG)},
    ),
    "an image whose type is only in the URL": (
        file("image/*", url=f"data:image/webp;base64,{PNG}"),
        {"type": "image", "source": base64_source("image/webp", PNG)},
    ),
    "an image in bare base64": (
        file("image/png", data=PNG),
        {"type": "image", "source": base64_source("image/png", PNG)},
    ),
    "an image by URL": (
        file("image/jpeg", url="https://example.org/a.jpg"),
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.jpg"}},
    ),
    "a PDF in a data: URL": (
        file("application/pdf", url=f"data:application/pdf;base64,{PDF}", filename="a.pdf"),
        {"type": "document", "source": base64_source("application/pdf", PDF), "title": "a.pdf"},
    ),
    "a PDF by URL": (
        file("application/pdf", url="http://example.org/a.pdf"),
        {"type": "document", "source": {"type": "url", "url": "http://example.org/a.pdf"}},
    ),
    "a text": (
        file("text/markdown", url=f"data:text/markdown;base64,{base64.b64encode('溪'.encode()).decode()}"),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "溪"}},
    ),
    "a text that is percent-encoded": (
        file("text/plain", url="data:text/plain;charset=utf-8,a%20b"),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a b"}},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_ai_sdk_reaches_the_upstream_as_a_block(service: Rill, upstream: Upstream, name: str) -> None:
    part, block = FILES[name]
    text = {"type": "text", "text": "Look: "}
    sent = receive(service, upstream, "/stream", {"messages": [parts(text, part)]})
    assert sent["messages"] == [{"role": "user", "content": [text, block]}]


REJECTED_PARTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sound": (file("audio/mp3", url="data:audio/mp3;base64,AAAA"), ["messages.0.parts.0.mediaType:", "audio/mp3"]),
    "no media type": ({"type": "file", "url": "https://example.org/a"}, ["messages.0.parts.0.mediaType:", "image/*"]),
    "no URL": ({"type": "file", "mediaType": "image/png"}, ["messages.0.parts.0.url:", "data:"]),
    "another scheme": (file("image/png", url="file:///etc/passwd"), ["messages.0.parts.0.url:", "data:"]),
    "no base64": (file("image/png", url="data:image/png;base64,a"), ["messages.0.parts.0.url:", "base64"]),
    "a text that is not UTF-8": (file("text/plain", url="data:text/plain,%FF"), ["messages.0.parts.0.url:", "UTF-8"]),
    "a text by URL": (file("text/plain", url="https://example.org/a"), ["messages.0.parts.0.url:", "data:"]),
    "a tool's call": ({"type": "tool-weather", "state": "output-available"}, ["messages.0.parts.0.type:", "tools"]),
    "the user's data": ({"type": "data-place", "data": {}}, ["messages.0.parts.0.type:", "text or file"]),
    "an unknown part": ({"type": "video"}, ["messages.0.parts.0.type:", "text or file"]),
    "a part without a type": ({"text": "hi"}, ["messages.0.parts.0.type:", "text or file"]),
    "a text that is not a string": ({"type": "text", "text": 5}, ["messages.0.parts.0.text:", "string"]),
}


@pytest.mark.parametrize("name", REJECTED_PARTS)
def test_a_part_that_cannot_be_forwarded_is_rejected_by_its_path(service: Rill, upstream: Upstream, name: str) -> None:
    part, named = REJECTED_PARTS[name]
    message = reject(service, upstream, "/stream", {"messages": [parts(part, {"type": "text", "text": "hi"})]})
    assert [word for word in named if word not in message] == []


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_file_in_a_message_that_is_not_the_users_is_rejected(service: Rill, upstream: Upstream, role: str) -> None:
    shown = parts(file("image/png", data=PNG), role=role)
    assert "messages.0.parts.0.type:" in reject(service, upstream, "/stream", {"messages": [shown, HI]})
    block = {"role": "system", "content": [{"type": "image", "source": base64_source("image/png", PNG)}]}
    assert "messages.0.content:" in reject(service, upstream, "/stream", {"messages": [block, HI]})


def test_parts_that_only_a_page_shows_do_not_prevent_a_further_turn(service: Rill, upstream: Upstream) -> None:
    shown = [
        {"type": "step-start"},
        {"type": "reasoning", "text": "hm", "state": "done"},
        {"type": "source-url", "sourceId": "1", "url": "https://example.org"},
        {"type": "source-document", "sourceId": "2", "mediaType": "text/plain", "title": "t"},
        {"type": "data-weather", "data": {"degrees": 7}},
    ]
    stopped = {"id": "3", "role": "assistant", "parts": [{"type": "step-start"}]}  # before its first text
    answer = parts(*shown, {"type": "text", "text": "Hello!", "state": "done"}, role="assistant")
    sent = receive(service, upstream, "/stream", {"messages": [HI, answer, HI, stopped, HI]})
    assert sent["messages"] == [HI, {"role": "assistant", "content": "Hello!"}, HI, HI]


def test_files_and_content_beside_the_parts_are_not_dropped(service: Rill, upstream: Upstream) -> None:
    text = {"type": "text", "text": "hi"}
    older = {"role": "user", "content": "hi", "experimental_attachments": [{"url": "https://example.org/a.png"}]}
    assert "messages.0.experimental_attachments:" in reject(service, upstream, "/stream", {"messages": [older]})
    both = {**parts(text), "content": "something else"}
    assert "messages.0:" in reject(service, upstream, "/stream", {"messages": [both]})
    sent = receive(service, upstream, "/stream", {"messages": [{**parts(text), "content": "hi"}]})
    assert sent["messages"] == [HI]


def test_a_system_message_beside_a_system_prompt_is_added_to_it(service: Rill, upstream: Upstream) -> None:
    fields = {"system": "One.", "messages": [{"role": "system", "content": "Two."}, HI]}
    assert receive(service, upstream, "/stream", fields)["system"] == "One.\n\nTwo."


def test_the_options_of_a_query_apply_and_a_json_body_overrides_them(service: Rill, upstream: Upstream) -> None:
    sent = receive(service, upstream, "/stream?max_tokens=5&system=Brief.", {"q": "hi", "system": "Long."})
    assert (sent["max_tokens"], sent["system"], sent["messages"]) == (5, "Long.", [HI])


def test_a_second_prompt_in_the_query_of_a_json_body_is_rejected(service: Rill, upstream: Upstream) -> None:
    assert "q and messages" in reject(service, upstream, "/stream?q=ho", {"messages": [HI]})


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("top_p", 0.5, "/v1/messages"),
        ("stop_sequences", ["a"], "/v1/messages"),
        ("tools", [{}], "/v1/messages"),
        ("thinking", {"type": "enabled"}, "/v1/messages"),
        ("maxTokens", 5, "max_tokens"),
        ("max_completion_tokens", 5, "max_tokens"),
    ],
)
def test_an_option_that_only_other_routes_have_is_rejected_by_name(
    service: Rill, upstream: Upstream, name: str, value: object, instead: str
) -> None:
    message = reject(service, upstream, "/stream", {"q": "hi", name: value})
    assert message.startswith(f"{name}:")
    assert instead in message


# POST /v1/chat/completions

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("thinking", {"type": "enabled", "budget_tokens": 1024}, "/v1/messages"),
        ("reasoning", {"effort": "high"}, "/v1/messages"),
        ("reasoning_effort", "extreme", "none, minimal"),
        ("stop_sequences", ["a"], "use stop"),
        ("system", "Be brief.", "role system"),
        ("cache_control", {"type": "ephemeral"}, "/v1/messages"),
        ("mcp_servers", [{}], "/v1/messages"),
        ("max_output_tokens", 5, "max_completion_tokens"),
        ("min_p", 0.1, "leave it out"),
        ("input", "hi", "leave it out"),
    ],
)
def test_a_field_that_would_change_a_completion_is_rejected_by_name(
    service: Rill, upstream: Upstream, name: str, value: object, instead: str
) -> None:
    message = reject(service, upstream, CHAT, {"messages": [HI], name: value})
    assert message.startswith(f"{name}:")
    assert instead in message


def test_fields_with_the_same_meaning_in_both_apis_are_forwarded(service: Rill, upstream: Upstream) -> None:
    cached = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "system", "content": [cached]}, {"role": "user", "content": [cached]}]
    fields = {"messages": messages, "top_k": 5, "reasoning_effort": "none", "stream": True}
    sent = receive(service, upstream, CHAT, fields)
    assert (sent["top_k"], sent["system"]) == (5, [cached])
    assert sent["messages"] == [{"role": "user", "content": [cached]}]


def test_an_earlier_message_of_the_model_may_be_empty_or_a_refusal(service: Rill, upstream: Upstream) -> None:
    earlier = [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]},
    ]
    sent = receive(service, upstream, CHAT, {"messages": [HI, *earlier, HI], "stream": True})
    assert sent["messages"] == [
        HI,
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": [{"type": "text", "text": "Never."}]},
        HI,
    ]


def test_a_conversation_without_a_message_of_the_user_is_rejected(service: Rill, upstream: Upstream) -> None:
    message = reject(service, upstream, CHAT, {"messages": [{"role": "system", "content": "Be brief."}]})
    assert message.startswith("messages:")
    assert "role user" in message


PATHS: dict[str, tuple[object, str]] = {
    "an unknown part": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file"}]},
        "content.1.type",
    ),
    "a part that is not an object": ({"role": "user", "content": ["a"]}, "content.0"),
    "a content that is not a string": ({"role": "user", "content": 7}, "content"),
    "no content": ({"role": "user"}, "content"),
    "an image of another scheme": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]},
        "content.0.image_url.url",
    ),
    "an image in a system message": (
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]},
        "content",
    ),
    "a tool's call": ({"role": "assistant", "content": None, "tool_calls": [{}]}, "tool_calls.0.id"),
    "a function's call": ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "function_call"),
    "a result without its call": ({"role": "tool", "content": "3"}, "tool_call_id"),
}


@pytest.mark.parametrize("name", PATHS)
def test_an_invalid_field_is_named_by_its_path_in_the_clients_json(
    service: Rill, upstream: Upstream, name: str
) -> None:
    message, path = PATHS[name]
    assert reject(service, upstream, CHAT, {"messages": [HI, message]}).startswith(f"messages.1.{path}: ")


def test_an_invalid_field_of_stream_is_named_by_its_path_as_well(service: Rill, upstream: Upstream) -> None:
    for content in (7, ["a"]):
        message = reject(service, upstream, "/stream", {"messages": [{"role": "user", "content": content}]})
        assert message.startswith("messages.0.content")
        assert "[" not in message


@pytest.mark.parametrize("include_usage", [True, False])
def test_each_chunk_but_the_last_has_a_null_usage_if_usage_was_requested(
    service: Rill, upstream: Upstream, include_usage: bool
) -> None:
    upstream.script(*wire.answer("a", "b"))
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    status, body = send(service, CHAT, {"messages": [HI], **options})
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    assert status == 200
    assert len(chunks) >= 3
    if include_usage:
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["usage"]["completion_tokens"] > 0
    else:
        assert not any("usage" in chunk for chunk in chunks)


# POST /v1/messages


@pytest.mark.parametrize("value", ["true", "false", 1, 0, None, [], {}])
def test_a_stream_field_that_is_not_a_boolean_is_rejected(service: Rill, upstream: Upstream, value: object) -> None:
    fields = {"model": "m", "max_tokens": 5, "messages": [HI], "stream": value}
    assert reject(service, upstream, "/v1/messages", fields).startswith("stream: should be true or false")


# RILL_RATE_LIMIT


def test_every_limit_of_a_rate_applies(upstream: Upstream) -> None:
    env = {"RILL_OFFLINE": "1", "RILL_RATE_LIMIT": "1000/second;2/day"}
    with Rill(env) as limited:
        responses = []
        for _ in range(3):
            with limited.ask("GET", "/stream?q=tokens%3D1") as asked:
                responses.append((asked.status, asked.headers.get("ratelimit-policy")))
    assert responses == [(200, None), (200, None), (429, "2;w=86400")]
