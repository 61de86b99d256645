"""Responses that no generated request causes are as described too: limits, API keys, and upstream errors."""

from collections.abc import Mapping
from typing import Any

import pytest
import upstream as wire
from server import Rill, StartRill
from upstream import Upstream

from rill.admission.auth import FAILURES

QUESTION = {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
COUNTED = {name: value for name, value in QUESTION.items() if name != "max_tokens"}
PROMPT_REQUESTS: dict[str, dict[str, Any]] = {
    "GET /stream": {"query": {"q": "hello"}},
    "POST /stream": {"body": "hello", "media_type": "text/plain"},
    "GET /chat/stream": {"query": {"message": "hello"}},
    "POST /v1/messages": {"body": QUESTION, "media_type": "application/json"},
    "POST /v1/messages/count_tokens": {"body": COUNTED, "media_type": "application/json"},
    "POST /v1/chat/completions": {"body": QUESTION, "media_type": "application/json"},
    "POST /v1/responses": {"body": {"input": "hello"}, "media_type": "application/json"},
}
FILES = ("GET /", "GET /page/{file}", "GET /openapi.json")
UPSTREAM_ERRORS = [
    (400, "invalid_request_error", 400),
    (401, "authentication_error", 502),
    (413, "request_too_large", 413),
    (429, "rate_limit_error", 429),
    (500, "api_error", 502),
    (504, "timeout_error", 504),
    (529, "overloaded_error", 503),
]


def statuses_of(rill: Rill, asked: str, headers: Mapping[str, str] | None = None, **fields: Any) -> set[int]:
    """Return the statuses that a request gets with and without a preference for JSON; raise if not as described."""
    from campaign import status_as_described

    sent = {**PROMPT_REQUESTS.get(asked, {}), **fields}
    if "{file}" in asked:
        sent["path_parameters"] = {"file": "page.js"}
    return {
        status_as_described(rill.url, asked, {"Accept": accept, **(headers or {})}, **sent)
        for accept in ("*/*", "application/json")
    }


@pytest.mark.parametrize(("code", "type", "status"), UPSTREAM_ERRORS)
def test_an_upstream_error_is_reported_as_described(
    service: Rill, upstream: Upstream, code: int, type: str, status: int
) -> None:
    upstream.always(wire.error(code, type, "No.", {"x-should-retry": "false"}))
    for asked in PROMPT_REQUESTS:
        assert statuses_of(service, asked) == {status}


def test_a_refusal_of_the_model_is_reported_as_described(service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer(stop_reason="refusal"))
    assert statuses_of(service, "GET /stream") == {422}
    assert statuses_of(service, "POST /stream") == {422}


def test_a_start_timeout_is_reported_as_described(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_START_TIMEOUT_SECONDS="0.2", RILL_IDLE_TIMEOUT_SECONDS="0.2")
    upstream.always(wire.head(), wire.silence())
    for asked in PROMPT_REQUESTS:
        assert statuses_of(rill, asked) == {504}


def test_a_request_beyond_the_rate_limit_is_rejected_as_described(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill(RILL_RATE_LIMIT="1/hour")
    upstream.script(*wire.answer("hello"))
    assert statuses_of(rill, "GET /stream") == {200, 429}
    for asked in (*PROMPT_REQUESTS, "GET /drip"):
        assert statuses_of(rill, asked) == {429}


@pytest.mark.parametrize(("setting", "status"), [("RILL_MAX_STREAMS", 503), ("RILL_MAX_STREAMS_PER_CLIENT", 429)])
def test_a_request_beyond_the_slots_is_rejected_as_described(
    share_rill: StartRill, upstream: Upstream, setting: str, status: int
) -> None:
    rill = share_rill(**{setting: "1"})
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("a")), wire.gate("held"), wire.close())
    with rill.ask("GET", "/stream?q=hello") as held:
        assert held.next_chunk() == b"a"
        for asked in (*PROMPT_REQUESTS, "GET /drip"):
            assert statuses_of(rill, asked) == {status}
        assert statuses_of(rill, "GET /readyz") == {503 if setting == "RILL_MAX_STREAMS" else 200}
    upstream.open("held")


def test_a_client_without_an_api_key_is_rejected_as_described(start_rill: StartRill) -> None:
    rill = start_rill(RILL_API_KEYS="alice=secret")
    for asked in (*PROMPT_REQUESTS, "GET /drip", "GET /v1/models", "GET /metrics"):
        assert statuses_of(rill, asked) == {401}
        assert statuses_of(rill, asked, {"anthropic-version": "2023-06-01"}) == {401}


def test_a_forbidden_request_is_rejected_as_described(share_rill: StartRill) -> None:
    rill = share_rill(RILL_ALLOWED_MODELS=None)
    for asked in PROMPT_REQUESTS:
        assert statuses_of(rill, asked, {"Sec-Purpose": "prefetch"}) == {403}
        assert statuses_of(rill, asked, {"Sec-Fetch-Site": "cross-site", "Origin": "https://a.example"}) == {403}
    other = {**QUESTION, "model": "another"}
    assert statuses_of(rill, "GET /stream", query={"q": "hello", "model": "another"}) == {403}
    assert statuses_of(rill, "POST /v1/messages", body=other) == {403}
    assert statuses_of(rill, "POST /v1/chat/completions", body=other) == {403}


def test_a_host_that_is_not_allowed_is_rejected_as_described(service: Rill) -> None:
    for asked in (*PROMPT_REQUESTS, *FILES, "GET /drip", "GET /v1/models", "GET /metrics"):
        assert statuses_of(service, asked, {"Host": "another.example"}) == {403}


def test_a_feature_that_is_not_enabled_is_rejected_as_described(service: Rill) -> None:
    tools = {**QUESTION, "tools": [{"type": "web_search_20250305"}]}
    assert statuses_of(service, "POST /v1/messages", body=tools) == {403}
    assert statuses_of(service, "POST /v1/messages", {"anthropic-beta": "fast-mode-2026-02-01"}) == {403}


def test_too_many_requests_without_an_api_key_are_rejected_as_described(start_rill: StartRill) -> None:
    rill = start_rill(RILL_API_KEYS="alice=secret")
    for _ in range(FAILURES.amount):
        with rill.ask("GET", "/v1/models", {"Connection": "close"}) as asked:
            assert asked.status == 401
    for each in (*PROMPT_REQUESTS, "GET /drip", "GET /v1/models", "GET /metrics"):
        assert statuses_of(rill, each) == {429}


def test_a_body_too_long_or_of_another_type_is_rejected_as_described(share_rill: StartRill) -> None:
    rill = share_rill(RILL_MAX_BODY_BYTES="4")
    for asked in ("POST /stream", "POST /v1/messages", "POST /v1/chat/completions"):
        assert statuses_of(rill, asked) == {413}
    assert statuses_of(rill, "POST /stream", {"Content-Type": "image/png"}, body="abc") == {415}


def test_a_compressed_body_is_rejected_as_described(service: Rill) -> None:
    for asked in ("POST /stream", "POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/responses"):
        assert statuses_of(service, asked, {"Content-Encoding": "gzip"}) == {415}


def test_a_model_is_described(service: Rill) -> None:
    assert statuses_of(service, "GET /v1/models/{id}", path_parameters={"id": "claude-sonnet-5-5"}) == {200}
    assert statuses_of(service, "GET /v1/models/{id}", path_parameters={"id": "another"}) == {200}


def test_a_url_that_is_too_long_is_rejected_as_described(service: Rill) -> None:
    assert statuses_of(service, "GET /stream", query={"q": "a" * 9_000}) == {414}
    assert statuses_of(service, "GET /chat/stream", query={"message": "a" * 9_000}) == {414}


def test_a_reconnecting_event_source_gets_a_204_as_described(service: Rill) -> None:
    for asked in ("GET /stream", "POST /stream", "GET /chat/stream"):
        assert statuses_of(service, asked, {"Accept": "text/event-stream", "Last-Event-ID": "1"}) == {204}


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Range", "bytes=0-9", 206),
        ("Range", "bytes=99999999-", 400),
        ("If-None-Match", "*", 304),
        ("If-Match", '"another"', 412),
    ],
)
def test_a_range_or_conditional_request_for_a_file_is_answered_as_described(
    service: Rill, name: str, value: str, status: int
) -> None:
    for asked in FILES:
        assert statuses_of(service, asked, {name: value, **page_of(asked)}) == {status}


def page_of(asked: str) -> dict[str, str]:
    """Return the header with which the page is requested; without it, `/` is help."""
    return {"Accept": "text/html"} if asked == "GET /" else {}
