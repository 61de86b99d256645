"""The JavaScript clients in Node: official SDKs, the AI SDK, EventSource and fetch."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import upstream as wire
from gated import FIRST, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from javascript import Clients, Reports
from server import Rill, StartRill
from upstream import REQUEST_ID, Upstream

# What each client reports about a complete answer, besides its text.
STREAMS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "Anthropic's stream": (
        "anthropic_sdk.mjs",
        "stream",
        {"stop_reason": "end_turn", "output_tokens": 7, "request_id": REQUEST_ID},
    ),
    "Anthropic's create": ("anthropic_sdk.mjs", "events", None),
    "OpenAI's create": (
        "openai_sdk.mjs",
        "stream",
        {
            "finish_reason": "stop",
            "usage": {
                "prompt_tokens": 12,
                "completion_tokens": 7,
                "total_tokens": 19,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        },
    ),
    "AI SDK with Anthropic's": ("ai_sdk.mjs", "anthropic-stream", {"finishReason": "stop", "outputTokens": 7}),
    "AI SDK with OpenAI's": ("ai_sdk.mjs", "openai-stream", {"finishReason": "stop", "outputTokens": 7}),
    "useCompletion": ("text_protocol.mjs", "completion", {"text": FIRST + SECOND}),
    "useChat": ("text_protocol.mjs", "chat", {"status": "ready", "roles": ["user", "assistant"]}),
    "useChat by default": ("text_protocol.mjs", "default-chat", {"status": "ready", "roles": ["user", "assistant"]}),
    "fetch": ("fetch.mjs", "stream", None),
}

# What each client throws for a truncated answer: the class, and a part of the message.
TRUNCATION_ERRORS = {
    "Anthropic's stream": ("APIError", "The model's API"),
    "Anthropic's create": ("APIError", "The model's API"),
    "OpenAI's create": ("APIError", "The model's API"),
    "AI SDK with Anthropic's": ("StreamProviderError", "The model's API"),
    "AI SDK with OpenAI's": ("StreamProviderError", "The model's API"),
    "useCompletion": ("TypeError", "terminated"),
    "useChat": ("TypeError", "terminated"),
    "useChat by default": ("Error", "The model's API"),
    "fetch": ("TypeError", "terminated"),
}

# What each client throws for a 429.
REJECTIONS = {
    "Anthropic's stream": {"kind": "RateLimitError", "status": 429, "retryAfter": "7"},
    "Anthropic's create": {"kind": "RateLimitError", "status": 429, "retryAfter": "7"},
    "OpenAI's create": {"kind": "RateLimitError", "status": 429, "retryAfter": "7"},
    "AI SDK with Anthropic's": {"name": "AI_APICallError", "status": 429, "retryAfter": "7"},
    "AI SDK with OpenAI's": {"name": "AI_APICallError", "status": 429, "retryAfter": "7"},
    "useCompletion": {},
    "useChat": {},
    "useChat by default": {},
}


def text_of(lines: list[dict[str, Any]]) -> str:
    """Return the text that a client has shown: the last snapshot, or the joined pieces."""
    shown = [line["shown"] for line in lines if "shown" in line]
    return shown[-1] if shown else "".join(line.get("text", "") for line in lines)


def read_first(reports: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Wait until the client has shown the first text, and return its reports so far."""
    lines = [next(reports)]
    while len(text_of(lines)) < len(FIRST) and lines[-1].keys() & {"text", "shown"}:
        lines.append(next(reports))
    assert text_of(lines) == FIRST, lines
    return lines


@pytest.mark.parametrize("client", STREAMS)
def test_the_first_text_comes_before_the_upstream_sends_the_second(
    client: str, node: Clients, service: Rill, upstream: Upstream
) -> None:
    script, way, end = STREAMS[client]
    upstream.script(*gated_answer())
    with node.run(script, way, service.url) as running:
        lines = read_first(running)
        upstream.open("second")
        lines += running
    assert text_of(lines) == FIRST + SECOND
    assert lines[-1] == {"end": end}
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", TRUNCATIONS)
@pytest.mark.parametrize("client", STREAMS)
def test_a_truncated_answer_is_an_error_after_the_text_before_it(
    client: str, how: str, node: Clients, service: Rill, upstream: Upstream
) -> None:
    script, way, _ = STREAMS[client]
    kind, message = TRUNCATION_ERRORS[client]
    upstream.script(*truncated_answer(how))
    with node.run(script, way, service.url) as running:
        lines = read_first(running)
        upstream.open("truncate")
        lines += running
    error = lines[-1].get("error", {})
    assert (error.get("kind"), text_of(lines)) == (kind, FIRST), lines
    assert message in str(error)


@pytest.mark.parametrize("client", REJECTIONS)
def test_a_rejection_is_the_clients_own_error(client: str, node: Clients, service: Rill, upstream: Upstream) -> None:
    script, way, _ = STREAMS[client]
    script_rate_limit(upstream)
    with node.run(script, way, service.url) as running:
        (line,) = running
    assert REJECTIONS[client].items() <= line["error"].items()
    assert "rate limit is reached" in line["error"]["message"]


def test_fetch_reads_the_status_and_message_of_a_rejection(node: Clients, service: Rill, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    with node.run("fetch.mjs", "rejected", service.url) as running:
        (line,) = running
    assert (line["end"]["status"], line["end"]["retryAfter"]) == (429, "7")
    assert "rate limit is reached" in line["end"]["body"]


def test_an_aborted_fetch_closes_the_upstream_connection(node: Clients, service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    with node.run("fetch.mjs", "abort", service.url) as running:
        first, last = running
        upstream.wait_for_disconnect()
    assert (first, last["error"]["name"]) == ({"text": FIRST}, "AbortError")


@pytest.mark.parametrize(
    ("script", "way", "end"),
    [
        ("openai_sdk.mjs", "whole", {"text": FIRST + SECOND, "finish_reason": "stop"}),
        ("ai_sdk.mjs", "openai-whole", {"text": FIRST + SECOND, "finishReason": "stop"}),
    ],
    ids=["OpenAI's", "AI SDK with OpenAI's"],
)
def test_a_client_reads_a_non_streamed_completion(
    script: str, way: str, end: dict[str, str], node: Clients, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with node.run(script, way, service.url) as running:
        assert list(running) == [{"end": end}]


@pytest.mark.parametrize(
    ("script", "way"),
    [("anthropic_sdk.mjs", "whole"), ("ai_sdk.mjs", "anthropic-whole")],
    ids=["Anthropic's", "AI SDK with Anthropic's"],
)
def test_a_client_reads_a_non_streamed_message(
    script: str, way: str, node: Clients, service: Rill, upstream: Upstream
) -> None:
    fields = {"content": [{"type": "text", "text": FIRST}], "usage": {"input_tokens": 1, "output_tokens": 2}}
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", **fields}
    upstream.script(wire.status(200, {"content-type": "application/json"}, json.dumps(body).encode()))
    with node.run(script, way, service.url) as running:
        (line,) = running
    assert FIRST in str(line["end"])
    assert upstream.requests[0].json.get("stream") is not True


def test_a_tool_call_has_the_input_that_the_model_streamed(node: Clients, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.replay("tool_use"))
    with node.run("anthropic_sdk.mjs", "tool", service.url) as running:
        (line,) = running
    called = line["end"]
    assert (called["name"], called["input"]["station"]) == ("read_gauge", "Dresden")


# EventSource


def listen(node: Clients, service: Rill) -> AbstractContextManager[Reports]:
    return node.run("event_source.mjs", "listen", service.url)


def test_event_source_reads_the_first_text_before_the_second_is_sent_and_sends_one_prompt(
    node: Clients, service: Rill, upstream: Upstream
) -> None:
    upstream.always(*gated_answer())
    with listen(node, service) as running:
        assert next(running) == {"text": FIRST}
        upstream.open("second")
        second, done, mark, end = running
    assert (second, mark) == ({"text": SECOND}, {"text": "[DONE]"})
    assert done["done"]["stop_reason"] == "end_turn"
    assert end == {"end": {"code": 204}}  # It reconnected, and got a 204.
    assert len(upstream.requests) == 1


def test_event_source_receives_an_error_for_a_truncated_answer_and_sends_one_prompt(
    node: Clients, service: Rill, upstream: Upstream
) -> None:
    upstream.always(*truncated_answer())
    with listen(node, service) as running:
        assert next(running) == {"text": FIRST}
        upstream.open("truncate")
        failed, end = running
    assert (failed["failed"]["status"], end) == (502, {"end": {"code": 204}})
    assert len(upstream.requests) == 1


def test_the_ai_sdk_completes_a_tool_loop_and_an_object_with_each_api(node: Clients, share_rill: StartRill) -> None:
    with node.run("ai_sdk_tools.mjs", "all", share_rill(RILL_OFFLINE="1").url) as running:
        (line,) = running
    assert line == {"end": [{"steps": 2, "same": True, "output": {"city": "city"}}] * 3}
