"""/v1/messages on the wire: requests and responses are forwarded unchanged, except for API keys."""

import json
from typing import Any

import pytest
import upstream as wire
from conversation import Conversation
from gated import ASKED, FIRST, SECOND, gated_answer
from script import Headers
from server import Rill, StartRill
from upstream import REQUEST_ID, Upstream

ANSWERS = pytest.mark.parametrize("name", sorted(wire.expected()))
# Spaces, escapes and an order of fields that Rill's JSON encoder would not produce.
WHOLE = (
    b'{ "type":"message" ,"usage":{"output_tokens":7},\n "content":[{"text":"\\u6eaa \xf0\x9f\x8c\x8a",'
    b'"type":"text"}], "stop_reason" : "end_turn","role":"assistant","id":"msg_01Whole","x":1.50}\n'
)
JSON = {"content-type": "application/json"}
FOR_THE_CLIENT = {
    "request-id": REQUEST_ID,
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-tokens-remaining": "39000",
    "anthropic-ratelimit-tokens-reset": "2026-01-01T00:00:00Z",
}
NOT_FOR_THE_CLIENT = {"set-cookie": "__cf_bm=secret", "anthropic-organization-id": "org-of-the-owner", "server": "edge"}
# Every kind of block and option, some unknown to the SDKs, and values that a conversion would change.
RICH: dict[str, Any] = {
    "model": "claude-of-tomorrow",
    "max_tokens": 77,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "溪 \n\u2028", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                {"type": "document", "source": {"type": "file", "file_id": "f_1"}, "citations": {"enabled": True}},
                {"type": "of_tomorrow", "nothing": None, "empty": [], "number": 12345678901234567890},
            ],
        },
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "gauge", "input": {"a": 1.5}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "3 m"}]},
    ],
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "gauge", "input_schema": {"type": "object", "properties": {}}, "strict": True}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "u"},
    "temperature": 1.0,
    "top_k": 5,
    "stop_sequences": ["\n\nHuman:"],
    "option_of_tomorrow": {"a": [None, False]},
    "stream": True,
}


def ask(service: Rill, path: str = "/v1/messages", headers: Headers | None = None, **fields: Any) -> Conversation:
    body = json.dumps({**ASKED, "stream": True, **fields}).encode()
    return service.ask("POST", path, {**JSON, **(headers or {})}, body)


# The answer


@ANSWERS
def test_a_streamed_answer_equals_the_upstreams_byte_for_byte(name: str, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.replay(name))
    with ask(service) as asked:
        assert asked.read_rest() == wire.recorded(name)
        assert (asked.status, asked.ended) == (200, "clean")


@ANSWERS
def test_the_upstreams_chunk_boundaries_do_not_change_a_streamed_answer(
    name: str, service: Rill, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.dribble(wire.recorded(name), 23), wire.end())
    with ask(service) as asked:
        assert asked.read_rest() == wire.recorded(name)


def test_each_event_is_sent_before_the_upstream_sends_the_next(service: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    with ask(service) as asked:
        got = asked.read_until(wire.text(FIRST))
        assert got == wire.opening() + wire.text(FIRST)
        upstream.open("second")
        assert asked.read_rest() == wire.text(SECOND) + wire.block_stop() + wire.stop()


def test_an_answer_whose_last_event_lacks_its_blank_line_loses_no_byte(service: Rill, upstream: Upstream) -> None:
    answer = (wire.opening() + wire.text(FIRST) + wire.block_stop() + wire.stop()).removesuffix(b"\n\n")
    upstream.script(wire.head(), wire.send(answer), wire.end())
    with ask(service) as asked:
        assert asked.read_rest().rstrip(b"\n") == answer


def test_an_error_event_that_lacks_its_blank_line_still_reaches_the_client(service: Rill, upstream: Upstream) -> None:
    error = wire.stream_error().removesuffix(b"\n\n")
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST), error), wire.end())
    with ask(service) as asked:
        assert asked.read_rest() == wire.opening() + wire.text(FIRST) + wire.stream_error()


def test_an_error_event_never_follows_half_an_event(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)[:-30]), wire.close())
    with ask(service) as asked:
        opening, error = asked.read_rest().split(b"event: error\n")
    assert opening == wire.opening()
    assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "api_error"


def test_a_non_streamed_answer_equals_the_upstreams_byte_for_byte(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.status(200, {**JSON, **FOR_THE_CLIENT}, WHOLE))
    with ask(service, stream=False) as asked:
        assert asked.read_rest() == WHOLE
        assert (asked.status, asked.headers["content-type"]) == (200, "application/json")


def test_a_truncated_message_is_a_502_in_the_apis_format(service: Rill, upstream: Upstream) -> None:
    length = {**JSON, "content-length": str(len(WHOLE))}
    upstream.script(wire.status(200, length, WHOLE[:-9]), wire.close())
    with ask(service, stream=False) as asked:
        assert asked.status == 502
        assert json.loads(asked.read_rest())["error"]["type"] == "api_error"


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_request_id_and_rate_limit_headers_are_forwarded_and_the_owners_headers_are_not(
    streamed: bool, service: Rill, upstream: Upstream
) -> None:
    headers = {**FOR_THE_CLIENT, **NOT_FOR_THE_CLIENT}
    steps = [wire.head(headers), wire.send(wire.opening(), wire.stop()), wire.end()]
    upstream.script(*steps if streamed else [wire.status(200, {**JSON, **headers}, WHOLE)])
    with ask(service, stream=streamed) as asked:
        assert FOR_THE_CLIENT.items() <= asked.headers.items()
        assert not NOT_FOR_THE_CLIENT.items() & asked.headers.items()
        asked.read_rest()


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_rate_limit_keeps_its_status_the_apis_format_and_the_upstreams_headers(
    streamed: bool, service: Rill, upstream: Upstream
) -> None:
    upstream.script(wire.error(429, "rate_limit_error", "Slow down", {**FOR_THE_CLIENT, "retry-after": "7"}))
    with ask(service, stream=streamed) as asked:
        body = json.loads(asked.read_rest())
        assert (asked.status, body["type"], body["error"]["type"]) == (429, "error", "rate_limit_error")
        assert {**FOR_THE_CLIENT, "retry-after": "7"}.items() <= asked.headers.items()


@pytest.mark.parametrize(
    ("method", "body", "status", "type"),
    [
        ("POST", b"{", 400, "invalid_request_error"),
        ("POST", b"[]", 400, "invalid_request_error"),
        ("POST", b'{"model": "m", "max_tokens": 1e9, "messages": []}', 400, "invalid_request_error"),
        ("POST", b'{"model": "m", "max_tokens": 9, "messages": [NaN]}', 400, "invalid_request_error"),
        ("POST", b'{"model": "m", "max_tokens": 9, "messages": [1e999]}', 400, "invalid_request_error"),
        ("POST", b" " * 4_194_305, 413, "request_too_large"),
        ("GET", b"", 405, "invalid_request_error"),
    ],
    ids=["invalid JSON", "not an object", "too many tokens", "NaN", "infinite", "too long", "GET"],
)
def test_rills_own_rejections_are_in_the_apis_format(
    method: str, body: bytes, status: int, type: str, service: Rill, upstream: Upstream
) -> None:
    with service.ask(method, "/v1/messages", JSON, body) as asked:
        message = json.loads(asked.read_rest())
    assert (asked.status, message["type"], message["error"]["type"]) == (status, "error", type)
    assert upstream.requests == []


# The request


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_request_reaches_the_upstream_unchanged(streamed: bool, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST) if streamed else [wire.status(200, JSON, WHOLE)])
    asked_for = {**RICH, "stream": streamed}
    with service.ask("POST", "/v1/messages", JSON, json.dumps(asked_for).encode()) as asked:
        assert asked.status == 200
        asked.read_rest()
    assert upstream.requests[0].json == asked_for


def test_betas_version_and_query_reach_the_upstream(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    sent = {"anthropic-beta": "context-1m-2025-08-07,of-tomorrow", "anthropic-version": "2023-06-01"}
    with ask(service, "/v1/messages?beta=true&x=a%20b", sent) as asked:
        asked.read_rest()
    (request,) = upstream.requests
    assert request.path == "/v1/messages?beta=true"  # Other parameters are not the API's, and might be secret.
    assert sent.items() <= request.headers.items()


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key"])
def test_a_clients_api_key_authenticates_and_is_not_forwarded(
    name: str, share_rill: StartRill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer(FIRST))
    service = share_rill(RILL_API_KEYS="app=secret-of-the-client")
    sent = {name: "Bearer secret-of-the-client" if name == "Authorization" else "secret-of-the-client"}
    with ask(service, headers={**sent, "Cookie": "session=secret-of-the-client"}) as asked:
        assert asked.status == 200
        asked.read_rest()
    with ask(service, headers={"x-api-key": "another"}) as rejected:
        assert rejected.status == 401
        assert json.loads(rejected.read_rest())["error"]["type"] == "authentication_error"
    (request,) = upstream.requests
    assert "secret-of-the-client" not in str(request)
    assert "sk-test-key" in request.headers.get("x-api-key", request.headers.get("authorization", ""))


@pytest.mark.parametrize("path", ["/", "/v1/messages", "/v1/messages?beta=true", "/v1/models", "/stream?q=hi"])
def test_a_head_request_gets_no_body_and_sends_nothing_upstream(path: str, service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer(FIRST))
    with service.ask("HEAD", path, {"anthropic-version": "2023-06-01"}) as probe:
        assert probe.status is not None
        assert probe.status < 500
        assert probe.read_rest() == b""
    assert upstream.requests == []
