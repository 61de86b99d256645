"""A prompt and its options arrive at the upstream unchanged, in whichever form they were sent."""

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, urlencode

import pytest
import upstream as wire
from server import Rill
from upstream import Upstream

StartRill = Callable[..., Rill]

PROMPT = "你好 小溪。 🌊👩‍👩‍👧 a&b=c+d 100%25 #1; \"quoted\" 'single' \\n naïve\nsecond line\r\n\tthird <line>\n"
DEFAULTS = {"model": "claude-sonnet-5-5", "max_tokens": 4096, "stream": True}
OPTIONS = {"system": "只说中文 & be brief\n+ calm", "model": "claude-opus-5", "max_tokens": 77, "temperature": 0.25}
BOUNDARY = "----a-boundary"


class Asked(NamedTuple):
    """A request as a client sends it."""

    method: str
    path: str
    media_type: str | None = None
    body: bytes = b""


def json_request(fields: object, ascii_only: bool = False) -> Asked:
    body = json.dumps(fields, ensure_ascii=ascii_only).encode()
    return Asked("POST", "/stream", "application/json", body)


def form_request(fields: Mapping[str, object]) -> Asked:
    return Asked("POST", "/stream", "application/x-www-form-urlencoded", urlencode(fields).encode())


def multipart_request(fields: Mapping[str, object]) -> Asked:
    part = '--{}\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    body = "".join(part.format(BOUNDARY, name, value) for name, value in fields.items()) + f"--{BOUNDARY}--\r\n"
    return Asked("POST", "/stream", f"multipart/form-data; boundary={BOUNDARY}", body.encode())


def text_request(options: Mapping[str, object]) -> Asked:
    return Asked("POST", f"/stream?{urlencode(options)}", "text/plain; charset=utf-8", PROMPT.encode())


def parts(text: str) -> list[dict[str, str]]:
    """Return a message of the AI SDK, with parts that are not text."""
    middle = len(text) // 2
    return [
        {"type": "step-start"},
        {"type": "text", "text": text[:middle]},
        {"type": "text", "text": text[middle:], "state": "done"},
    ]


def receive(service: Rill, upstream: Upstream, asked: Asked) -> Any:
    """Send the request, and return the JSON of its only upstream request."""
    upstream.script(*wire.answer("ok"))
    headers = {"Content-Type": asked.media_type} if asked.media_type else {}
    with service.ask(asked.method, asked.path, headers, asked.body) as response:
        assert (response.status, response.read_rest()) == (200, b"ok")
    (request,) = upstream.requests
    return request.json


WAYS = {
    "query": Asked("GET", f"/stream?q={quote_plus(PROMPT)}"),
    "query, spaces as %20": Asked("GET", f"/stream?q={quote(PROMPT, safe='')}"),
    "query named prompt": Asked("GET", f"/stream?{urlencode({'prompt': PROMPT})}"),
    "text/plain": text_request({}),
    "no media type": Asked("POST", "/stream", None, PROMPT.encode()),
    "urlencoded form": form_request({"q": PROMPT}),
    "multipart form": multipart_request({"q": PROMPT}),
    "JSON q": json_request({"q": PROMPT}),
    "JSON q, escaped": json_request({"q": PROMPT}, ascii_only=True),
    "JSON prompt": json_request({"prompt": PROMPT}),
    "JSON messages": json_request({"messages": [{"role": "user", "content": PROMPT}]}),
    "JSON messages of the AI SDK": json_request({"messages": [{"id": "m1", "role": "user", "parts": parts(PROMPT)}]}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_arrives_unchanged(service: Rill, upstream: Upstream, way: str) -> None:
    sent = receive(service, upstream, WAYS[way])
    assert sent == {**DEFAULTS, "messages": [{"role": "user", "content": PROMPT}]}


CURL = {
    "query": ["--get", "--data-urlencode", f"q={PROMPT}"],
    "urlencoded form": ["--data-urlencode", f"q={PROMPT}"],
    "multipart form": ["--form-string", f"q={PROMPT}"],
    "JSON": ["--json", json.dumps({"q": PROMPT})],
    "text": ["--header", "Content-Type: text/plain", "--data-binary", PROMPT],
}


@pytest.mark.parametrize("way", CURL)
def test_curl_sends_a_prompt_unchanged(service: Rill, upstream: Upstream, way: str) -> None:
    upstream.script(*wire.answer("ok"))
    command = ["curl", "--silent", "--fail", "--max-time", "10", *CURL[way], f"{service.url}/stream"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"ok"
    assert upstream.requests[0].json["messages"] == [{"role": "user", "content": PROMPT}]


def test_the_message_of_chat_stream_arrives_unchanged(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    with service.ask("GET", f"/chat/stream?{urlencode({'message': PROMPT, **OPTIONS})}") as response:
        assert response.status == 200
        response.read_rest()
    expected = {**DEFAULTS, **OPTIONS, "messages": [{"role": "user", "content": PROMPT}]}
    assert upstream.requests[0].json == expected


def test_content_blocks_of_the_messages_api_arrive_unchanged(service: Rill, upstream: Upstream) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    blocks = [image, {"type": "text", "text": PROMPT, "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": blocks}]
    assert receive(service, upstream, json_request({"messages": messages}))["messages"] == messages


def test_a_conversation_arrives_in_its_order(service: Rill, upstream: Upstream) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": PROMPT},
    ]
    assert receive(service, upstream, json_request({"messages": messages}))["messages"] == messages


def test_a_conversation_of_the_ai_sdk_arrives_in_its_order(service: Rill, upstream: Upstream) -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", PROMPT)]
    chat = {
        "id": "chat-1",
        "messages": [{"id": f"m-{text[:3]}", "role": role, "parts": parts(text)} for role, text in turns],
        "trigger": "submit-message",
        "messageId": "m-2",
    }
    sent = receive(service, upstream, json_request(chat))
    assert sent == {**DEFAULTS, "messages": [{"role": role, "content": text} for role, text in turns]}


SYSTEM_MESSAGES = {
    "string": {"role": "system", "content": PROMPT},
    "blocks": {"role": "system", "content": [{"type": "text", "text": PROMPT}]},
    "parts": {"role": "system", "parts": [{"type": "text", "text": PROMPT}]},
}


@pytest.mark.parametrize("shape", SYSTEM_MESSAGES)
def test_a_message_of_the_role_system_is_the_system_prompt(service: Rill, upstream: Upstream, shape: str) -> None:
    hello = {"role": "user", "content": "hello"}
    sent = receive(service, upstream, json_request({"messages": [SYSTEM_MESSAGES[shape], hello]}))
    assert (sent.get("system"), sent["messages"]) == (PROMPT, [hello])


WITH_OPTIONS = {
    "query": Asked("GET", f"/stream?{urlencode({'q': PROMPT, **OPTIONS})}"),
    "text/plain with a query": text_request(OPTIONS),
    "urlencoded form": form_request({"q": PROMPT, **OPTIONS}),
    "form with a query": form_request({"q": PROMPT})._replace(path=f"/stream?{urlencode(OPTIONS)}"),
    "multipart form": multipart_request({"q": PROMPT, **OPTIONS}),
    "JSON": json_request({"q": PROMPT, **OPTIONS}),
    "JSON messages": json_request({"messages": [{"role": "user", "content": PROMPT}], **OPTIONS}),
}


@pytest.mark.parametrize("way", WITH_OPTIONS)
def test_options_reach_the_upstream(service: Rill, upstream: Upstream, way: str) -> None:
    sent = receive(service, upstream, WITH_OPTIONS[way])
    assert sent == {**DEFAULTS, **OPTIONS, "messages": [{"role": "user", "content": PROMPT}]}


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("temperature", 1), ("max_tokens", 1)])
def test_an_option_at_its_limit_reaches_the_upstream(
    service: Rill, upstream: Upstream, name: str, value: float
) -> None:
    assert receive(service, upstream, json_request({"q": "hi", name: value}))[name] == value


def test_unknown_fields_are_ignored(service: Rill, upstream: Upstream) -> None:
    unknown = {"q": "hi", "stream": False, "tools": [], "user": {"id": 1}, "max_token": 3}
    expected = {**DEFAULTS, "messages": [{"role": "user", "content": "hi"}]}
    assert receive(service, upstream, json_request(unknown)) == expected


@pytest.mark.parametrize("asked", [Asked("GET", "/stream?q=hi&utm=1&stream=0"), form_request({"q": "hi", "x": "1"})])
def test_unknown_fields_of_queries_and_forms_are_ignored(service: Rill, upstream: Upstream, asked: Asked) -> None:
    expected = {**DEFAULTS, "messages": [{"role": "user", "content": "hi"}]}
    assert receive(service, upstream, asked) == expected


def test_defaults_of_the_settings_reach_the_upstream_if_a_request_has_no_options(
    start_rill: StartRill, upstream: Upstream
) -> None:
    own = {"system": "Sei kurz. 短く。", "model": "claude-haiku-5", "max_tokens": 123}
    service = start_rill(
        RILL_SYSTEM_PROMPT=own["system"], RILL_DEFAULT_MODEL=own["model"], RILL_DEFAULT_MAX_TOKENS="123"
    )
    messages = [{"role": "user", "content": "hi"}]
    assert receive(service, upstream, json_request({"q": "hi"})) == {"stream": True, **own, "messages": messages}
    upstream.clear()
    asked = json_request({"q": "hi", **OPTIONS})
    assert receive(service, upstream, asked) == {"stream": True, **OPTIONS, "messages": messages}


def test_upstream_requests_are_sent_by_the_official_sdk(service: Rill, upstream: Upstream) -> None:
    receive(service, upstream, Asked("GET", "/stream?q=hi"))
    (request,) = upstream.requests
    assert (request.method, request.path.split("?")[0]) == ("POST", "/v1/messages")
    assert request.headers["user-agent"].startswith("Anthropic/Python ")
    assert request.headers["x-stainless-stream-helper"] == "messages"  # as client.messages.stream sends it
    assert "anthropic-version" in request.headers
    assert "sk-test-key" in (request.headers.get("x-api-key", "") + request.headers.get("authorization", ""))
