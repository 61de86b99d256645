"""The official Anthropic SDK for Python, sync and async, with nothing changed but its base URL."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
import upstream as wire
from gated import ASKED, FIRST, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from server import Rill
from upstream import REQUEST_ID, Upstream

TOOLS = [{"name": "read_gauge", "description": "A water level", "input_schema": {"type": "object"}}]
CLIENT_KEY = "sk-of-the-client"
RATE_LIMITS = {"anthropic-ratelimit-requests-remaining": "41", "retry-after": "7"}
MESSAGE = {
    "id": "msg_01Whole",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": FIRST + SECOND}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 12, "output_tokens": 7},
}


@pytest.fixture
def client(service: Rill) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=service.url, api_key=CLIENT_KEY, max_retries=0) as client:
        yield client


def async_client(service: Rill) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=service.url, api_key=CLIENT_KEY, max_retries=0)


def script_message(upstream: Upstream) -> None:
    upstream.script(wire.status(200, {"content-type": "application/json"}, json.dumps(MESSAGE).encode()))


# Sync


def test_text_stream_yields_the_first_text_before_the_upstream_sends_the_second(
    client: anthropic.Anthropic, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    with client.messages.stream(**ASKED) as stream:
        pieces = iter(stream.text_stream)
        assert next(pieces) == FIRST
        upstream.open("second")
        assert "".join(pieces) == SECOND
        message = stream.get_final_message()
    assert message.content[0].text == FIRST + SECOND
    assert (message.stop_reason, message.usage.output_tokens, stream.request_id) == ("end_turn", 7, REQUEST_ID)


def test_stream_yields_every_event_of_the_upstream(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    with client.messages.stream(**ASKED) as stream:
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "text" and event.text == FIRST:
                upstream.open("second")
    begun = ["message_start", "content_block_start", *["content_block_delta", "text"] * 2]
    assert kinds == [*begun, "content_block_stop", "message_delta", "message_stop"]


def test_create_with_stream_yields_the_first_event_before_the_second_is_sent(
    client: anthropic.Anthropic, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    with client.messages.create(**ASKED, stream=True) as events:
        texts = (event.delta.text for event in events if event.type == "content_block_delta")
        assert next(texts) == FIRST
        upstream.open("second")
        assert list(texts) == [SECOND]


def test_create_without_stream_returns_the_complete_message(client: anthropic.Anthropic, upstream: Upstream) -> None:
    script_message(upstream)
    message = client.messages.create(**ASKED)
    assert message.to_dict() == MESSAGE
    assert message._request_id == REQUEST_ID
    assert upstream.requests[0].json["stream"] is False


def test_a_tool_call_has_the_input_that_the_model_streamed(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(*wire.replay("tool_use"))
    with client.messages.stream(**ASKED, tools=TOOLS, tool_choice={"type": "any"}) as stream:
        message = stream.get_final_message()
    called = message.content[1]
    assert (message.stop_reason, called.type, called.name) == ("tool_use", "tool_use", "read_gauge")
    assert called.input == tool_input()
    sent = upstream.requests[0].json
    assert (sent["tools"], sent["tool_choice"]) == (TOOLS, {"type": "any"})


def tool_input() -> dict[str, Any]:
    """Return the input that the fragments of the recorded call make up."""
    events = [json.loads(line[5:]) for line in wire.recorded("tool_use").splitlines() if line.startswith(b"data:")]
    fragments = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    parsed: dict[str, Any] = json.loads("".join(fragments))
    return parsed


def test_thinking_and_its_signature_reach_the_final_message(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(*wire.replay("thinking_then_text"))
    with client.messages.stream(**ASKED, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
        thought, text = stream.get_final_message().content[0], stream.get_final_text()
    assert (thought.type, bool(thought.thinking), bool(thought.signature)) == ("thinking", True, True)
    assert text == wire.expected()["thinking_then_text"]["text"]
    assert upstream.requests[0].json["thinking"] == {"type": "enabled", "budget_tokens": 1024}


def test_citations_reach_the_final_message(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(*wire.replay("citations"))
    with client.messages.stream(**ASKED) as stream:
        message = stream.get_final_message()
    assert any(block.citations for block in message.content if block.type == "text")


def test_a_rate_limit_is_a_rate_limit_error_with_its_headers(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(wire.error(429, "rate_limit_error", "Slow down", RATE_LIMITS))
    with pytest.raises(anthropic.RateLimitError) as raised, client.messages.stream(**ASKED):
        pass
    assert {name: raised.value.response.headers[name] for name in RATE_LIMITS} == RATE_LIMITS
    assert raised.value.request_id == REQUEST_ID
    assert raised.value.type == "rate_limit_error"


def test_the_sdk_retries_after_a_rate_limit(service: Rill, client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(wire.error(429, "rate_limit_error", "Slow down", {"retry-after": "3"}))
    script_message(upstream)
    assert client.with_options(max_retries=1).messages.create(**ASKED).to_dict() == MESSAGE
    assert len(upstream.requests) == 2


def test_the_upstreams_400_is_a_bad_request_error_with_its_message(
    client: anthropic.Anthropic, upstream: Upstream
) -> None:
    upstream.script(wire.error(400, "invalid_request_error", "messages: roles must alternate"))
    with pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(**ASKED)
    assert raised.value.status_code == 400
    assert raised.value.body["type"] == "error"
    assert raised.value.body["error"] == {"type": "invalid_request_error", "message": "messages: roles must alternate"}


def test_a_model_that_is_not_allowed_is_a_permission_denied_error_from_rill(
    start_rill: Any, upstream: Upstream
) -> None:
    with (
        start_rill(RILL_ALLOWED_MODELS=None, RILL_DEFAULT_MODEL="claude-allowed") as service,
        anthropic.Anthropic(base_url=service.url, api_key="k", max_retries=0) as client,
        pytest.raises(anthropic.PermissionDeniedError, match="claude-allowed"),
    ):
        client.messages.create(**ASKED)
    assert upstream.requests == []


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_a_truncated_stream_raises_after_the_text_before_it(
    how: str, client: anthropic.Anthropic, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    with client.messages.stream(**ASKED) as stream:
        pieces = iter(stream.text_stream)
        assert next(pieces) == FIRST
        upstream.open("truncate")
        with pytest.raises(anthropic.APIStatusError) as raised:
            next(pieces)
    assert raised.value.body["error"]["type"] == "api_error"


def test_an_error_event_raises_with_the_upstreams_body(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(*wire.replay("error_event"))
    with (
        client.messages.stream(**ASKED) as stream,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        stream.until_done()
    assert raised.value.body["error"]["type"] == "overloaded_error"
    assert raised.value.body["request_id"]


def test_closing_the_stream_closes_the_upstream_connection(client: anthropic.Anthropic, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    with client.messages.stream(**ASKED) as stream:
        assert next(iter(stream.text_stream)) == FIRST
    upstream.wait_for_disconnect()


def test_models_are_listed(client: anthropic.Anthropic, upstream: Upstream) -> None:
    assert [(model.id, model.type) for model in client.models.list()] == [("claude-sonnet-5-5", "model")]
    assert upstream.requests == []


def test_a_beta_call_reaches_the_upstream_with_its_beta_and_query(
    client: anthropic.Anthropic, upstream: Upstream
) -> None:
    script_message(upstream)
    betas = ["context-1m-2025-08-07", "files-api-2025-04-14"]
    client.beta.messages.create(**ASKED, betas=betas, extra_query={"beta": "true"})
    (request,) = upstream.requests
    assert request.path == "/v1/messages?beta=true"
    assert request.headers.get("anthropic-beta") == ",".join(betas)


# Async


def test_async_text_stream_yields_the_first_text_before_the_upstream_sends_the_second(
    service: Rill, upstream: Upstream
) -> None:
    async def ask() -> None:
        async with async_client(service) as client, client.messages.stream(**ASKED) as stream:
            pieces = aiter(stream.text_stream)
            assert await anext(pieces) == FIRST
            upstream.open("second")
            assert [piece async for piece in pieces] == [SECOND]
            assert (await stream.get_final_message()).stop_reason == "end_turn"

    upstream.script(*gated_answer())
    asyncio.run(ask())


def test_async_create_with_stream_yields_the_first_event_before_the_second_is_sent(
    service: Rill, upstream: Upstream
) -> None:
    async def ask() -> None:
        async with async_client(service) as client, await client.messages.create(**ASKED, stream=True) as events:
            texts = (event.delta.text async for event in events if event.type == "content_block_delta")
            assert await anext(texts) == FIRST
            upstream.open("second")
            assert [text async for text in texts] == [SECOND]

    upstream.script(*gated_answer())
    asyncio.run(ask())


def test_async_create_without_stream_returns_the_complete_message(service: Rill, upstream: Upstream) -> None:
    async def ask() -> dict[str, Any]:
        async with async_client(service) as client:
            return (await client.messages.create(**ASKED)).to_dict()

    script_message(upstream)
    assert asyncio.run(ask()) == MESSAGE


def test_an_async_tool_call_has_its_complete_input(service: Rill, upstream: Upstream) -> None:
    async def ask() -> Any:
        async with async_client(service) as client, client.messages.stream(**ASKED, tools=TOOLS) as stream:
            return (await stream.get_final_message()).content[1].input

    upstream.script(*wire.replay("tool_use"))
    assert asyncio.run(ask()) == tool_input()


def test_async_errors_have_the_sdks_types(service: Rill, upstream: Upstream) -> None:
    async def ask() -> None:
        async with async_client(service) as client:
            await client.messages.create(**ASKED)

    script_rate_limit(upstream)
    with pytest.raises(anthropic.RateLimitError) as limited:
        asyncio.run(ask())
    assert limited.value.response.headers["retry-after"] == "7"
    upstream.script(wire.error(401, "authentication_error", "invalid x-api-key"))
    with pytest.raises(anthropic.InternalServerError) as rejected:
        asyncio.run(ask())
    assert (rejected.value.status_code, rejected.value.body["error"]["type"]) == (502, "api_error")


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_an_async_truncated_stream_raises_after_the_text_before_it(how: str, service: Rill, upstream: Upstream) -> None:
    async def ask() -> None:
        async with async_client(service) as client, client.messages.stream(**ASKED) as stream:
            pieces = aiter(stream.text_stream)
            assert await anext(pieces) == FIRST
            upstream.open("truncate")
            with pytest.raises(anthropic.APIStatusError):
                await anext(pieces)

    upstream.script(*truncated_answer(how))
    asyncio.run(ask())
