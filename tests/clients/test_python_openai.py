"""The official OpenAI SDK for Python, sync and async, with nothing changed but its base URL."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import upstream as wire
from gated import ASKED, FIRST, MESSAGES, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from openai.types.chat import ChatCompletionChunk
from server import Rill
from upstream import Upstream

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def client(service: Rill) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-of-the-client", max_retries=0) as client:
        yield client


def async_client(service: Rill) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="sk-of-the-client", max_retries=0)


def text_of(chunk: ChatCompletionChunk) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


# Sync


def test_the_first_text_comes_before_the_upstream_sends_the_second(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    with client.chat.completions.create(**ASKED, stream=True) as chunks:
        opening, first = next(chunks), next(chunks)
        assert (opening.choices[0].delta.role, text_of(first)) == ("assistant", FIRST)
        upstream.open("second")
        second, last = list(chunks)
    assert (text_of(second), text_of(last), last.choices[0].finish_reason) == (SECOND, "", "stop")
    assert first.choices[0].finish_reason is None
    assert {chunk.id for chunk in (opening, first, second, last)} == {first.id}


def test_the_streaming_helper_assembles_the_completion(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    with client.chat.completions.stream(**ASKED) as stream:
        deltas = (event.delta for event in stream if event.type == "content.delta" and event.delta)
        assert next(deltas) == FIRST
        upstream.open("second")
        assert list(deltas) == [SECOND]
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == FIRST + SECOND
    assert completion.choices[0].finish_reason == "stop"


def test_the_usage_chunk_is_last_if_requested(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}) as chunks:
        *_, last = chunks
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (12, 2, 14)


def test_no_usage_chunk_is_sent_unless_requested(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    with client.chat.completions.create(**ASKED, stream=True) as chunks:
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_non_streamed_completion_has_its_text_finish_reason_and_usage(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, SECOND, stop_reason="max_tokens"))
    completion = client.chat.completions.create(**ASKED)
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", FIRST + SECOND)
    assert (choice.finish_reason, completion.object, completion.usage.total_tokens) == ("length", "chat.completion", 14)


@pytest.mark.parametrize("name", ["text", "thinking_then_text", "tool_use", "max_tokens", "surrogates", "odd_lines"])
def test_the_text_of_a_recorded_answer_is_exact(name: str, client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.replay(name))
    with client.chat.completions.create(**ASKED, stream=True) as chunks:
        assert "".join(map(text_of, chunks)) == wire.expected()[name]["text"]


def test_a_refusal_has_the_finish_reason_content_filter(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.replay("refusal"))
    assert client.chat.completions.create(**ASKED).choices[0].finish_reason == "content_filter"


def test_images_roles_and_parameters_are_translated(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    parts = [{"type": "text", "text": "What is this?"}, image]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    client.chat.completions.create(
        model="claude-sonnet-5-5", messages=messages, temperature=1.7, top_p=0.5, stop="END", max_completion_tokens=9
    )
    sent = upstream.requests[0].json
    assert sent["system"] == "Be brief."
    assert sent["messages"][0]["content"][1]["source"] == {"type": "base64", "media_type": "image/png", "data": PIXEL}
    assert (sent["temperature"], sent["top_p"], sent["stop_sequences"], sent["max_tokens"]) == (1, 0.5, ["END"], 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"functions": [{"name": "f"}]}, "use tools"),
        ({"n": 2}, "n: "),
        ({"seed": 4}, "seed"),
        ({"logprobs": True}, "logprobs"),
    ],
    ids=["functions", "n", "seed", "logprobs"],
)
def test_an_unsupported_parameter_is_a_bad_request_error_that_names_it(
    fields: dict[str, Any], message: str, client: openai.OpenAI, upstream: Upstream
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**ASKED, **fields)
    assert upstream.requests == []


def test_a_rate_limit_is_a_rate_limit_error_with_its_retry_after(client: openai.OpenAI, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(**ASKED, stream=True)
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.type == "rate_limit_error"
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (wire.error(400, "invalid_request_error", "too many roles"), openai.BadRequestError),
        (wire.error(401, "authentication_error", "bad key"), openai.InternalServerError),
        (wire.error(413, "request_too_large", "too large"), openai.APIStatusError),
    ],
    ids=["400", "401", "413"],
)
def test_an_upstream_error_has_the_sdks_type(
    error: wire.Step, raised: type[openai.APIStatusError], client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.script(error)
    with pytest.raises(raised) as caught:
        client.chat.completions.create(**ASKED)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_a_truncated_stream_raises_after_the_text_before_it(
    how: str, client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    with client.chat.completions.create(**ASKED, stream=True) as chunks:
        assert text_of(next(chunks)) + text_of(next(chunks)) == FIRST
        upstream.open("truncate")
        with pytest.raises(openai.APIError, match="model's API"):
            next(chunks)


def test_an_error_event_raises_with_its_type(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.replay("error_event"))
    with (
        client.chat.completions.create(**ASKED, stream=True) as chunks,
        pytest.raises(openai.APIError) as raised,
    ):
        list(chunks)
    assert raised.value.type == "overloaded_error"


def test_closing_the_stream_closes_the_upstream_connection(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    with client.chat.completions.create(**ASKED, stream=True) as chunks:
        assert text_of(next(chunks)) + text_of(next(chunks)) == FIRST
    upstream.wait_for_disconnect()


def test_models_are_listed(client: openai.OpenAI, upstream: Upstream) -> None:
    assert [(model.id, model.object) for model in client.models.list()] == [("claude-sonnet-5-5", "model")]
    assert upstream.requests == []


# Async


def test_async_the_first_text_comes_before_the_upstream_sends_the_second(service: Rill, upstream: Upstream) -> None:
    async def ask() -> None:
        async with async_client(service) as client:
            chunks = await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
            assert text_of(await anext(chunks)) + text_of(await anext(chunks)) == FIRST
            upstream.open("second")
            second, last, usage = [chunk async for chunk in chunks]
        assert (text_of(second), last.choices[0].finish_reason) == (SECOND, "stop")
        assert (usage.choices, usage.usage.completion_tokens) == ([], 7)

    upstream.script(*gated_answer())
    asyncio.run(ask())


def test_an_async_non_streamed_completion_has_its_text(service: Rill, upstream: Upstream) -> None:
    async def ask() -> str | None:
        async with async_client(service) as client:
            completion = await client.chat.completions.create(model="claude-sonnet-5-5", messages=MESSAGES)
            return completion.choices[0].message.content

    upstream.script(*wire.answer(FIRST, SECOND))
    assert asyncio.run(ask()) == FIRST + SECOND


def test_async_errors_have_the_sdks_types(service: Rill, upstream: Upstream) -> None:
    async def ask() -> None:
        async with async_client(service) as client:
            await client.chat.completions.create(**ASKED, stream=True)

    script_rate_limit(upstream)
    with pytest.raises(openai.RateLimitError) as raised:
        asyncio.run(ask())
    assert raised.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_an_async_truncated_stream_raises_after_the_text_before_it(how: str, service: Rill, upstream: Upstream) -> None:
    async def ask() -> None:
        async with async_client(service) as client:
            chunks = await client.chat.completions.create(**ASKED, stream=True)
            assert text_of(await anext(chunks)) + text_of(await anext(chunks)) == FIRST
            upstream.open("truncate")
            with pytest.raises(openai.APIError, match="model's API"):
                await anext(chunks)

    upstream.script(*truncated_answer(how))
    asyncio.run(ask())
