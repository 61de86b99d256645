"""The HTTP clients of Python, on plain text and on server-sent events."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import httpx_sse
import pytest
import requests
import upstream as wire
from gated import FIRST, QUESTION, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from server import Rill
from upstream import Upstream

ASK = {"q": QUESTION}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def read_decoded(response: Any, length: int) -> str:
    """Read at most `length` bytes and decode them: reading more would block."""
    data: bytes = response.read(length)
    return data.decode()


# requests


def test_requests_reads_the_first_text_before_the_second_is_sent(service: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    with requests.get(f"{service.url}/stream", params=ASK, stream=True, timeout=20) as response:
        assert response.encoding == "utf-8"
        pieces = response.iter_content(None)
        assert next(pieces).decode() == FIRST
        upstream.open("second")
        assert b"".join(pieces).decode() == SECOND


def test_requests_gets_the_same_answer_for_text_a_form_and_json(service: Rill, upstream: Upstream) -> None:
    url = f"{service.url}/stream"
    upstream.always(*wire.answer(FIRST, SECOND))
    bodies: list[dict[str, Any]] = [{"data": QUESTION}, {"data": ASK}, {"json": ASK}]
    answers = [requests.post(url, **body, timeout=20).text for body in bodies]
    assert answers == [FIRST + SECOND] * 3
    assert [request.json["messages"][0]["content"] for request in upstream.requests] == [QUESTION] * 3


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_requests_raises_for_a_truncated_answer(how: str, service: Rill, upstream: Upstream) -> None:
    upstream.script(*truncated_answer(how))
    with requests.get(f"{service.url}/stream", params=ASK, stream=True, timeout=20) as response:
        pieces = response.iter_content(None)
        assert next(pieces).decode() == FIRST
        upstream.open("truncate")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(pieces)


def test_requests_raises_for_a_rejection_whose_text_is_the_message(service: Rill, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    response = requests.get(f"{service.url}/stream", params=ASK, timeout=20)
    with pytest.raises(requests.HTTPError, match="429"):
        response.raise_for_status()
    assert response.headers["Retry-After"] == "7"
    assert "rate limit" in response.text


# httpx


def test_httpx_reads_the_first_text_before_the_second_is_sent(
    service: Rill, client: httpx.Client, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    with client.stream("GET", f"{service.url}/stream", params=ASK) as response:
        pieces = response.iter_text()
        assert next(pieces) == FIRST
        upstream.open("second")
        assert "".join(pieces) == SECOND


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_httpx_raises_for_a_truncated_answer(how: str, service: Rill, client: httpx.Client, upstream: Upstream) -> None:
    upstream.script(*truncated_answer(how))
    with client.stream("POST", f"{service.url}/stream", json={"prompt": QUESTION}) as response:
        pieces = response.iter_text()
        assert next(pieces) == FIRST
        upstream.open("truncate")
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


def test_httpx_reads_a_problem_as_json_if_it_accepts_json(
    service: Rill, client: httpx.Client, upstream: Upstream
) -> None:
    script_rate_limit(upstream)
    response = client.get(f"{service.url}/stream", params=ASK, headers={"Accept": "application/json"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert response.json()["code"] == "upstream_rate_limited"


# httpx-sse


def test_httpx_sse_reads_the_first_event_before_the_second_is_sent(
    service: Rill, client: httpx.Client, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    with httpx_sse.connect_sse(client, "GET", f"{service.url}/stream", params=ASK) as source:
        events = source.iter_sse()
        first = next(event for event in events if event.data)
        assert (first.event, first.data) == ("message", FIRST)
        upstream.open("second")
        second, done, last = list(events)
    assert (second.data, done.event, last.data) == (SECOND, "done", "[DONE]")
    statistics = done.json()
    assert (statistics["stop_reason"], statistics["usage"]["output_tokens"]) == ("end_turn", 7)


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_httpx_sse_reads_an_error_event_and_no_end_mark_for_a_truncated_answer(
    how: str, service: Rill, client: httpx.Client, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    with httpx_sse.connect_sse(client, "GET", f"{service.url}/chat/stream", params={"message": QUESTION}) as source:
        events = source.iter_sse()
        assert next(event for event in events if event.data).data == FIRST
        upstream.open("truncate")
        (error,) = list(events)
    assert (error.event, error.json()["status"]) == ("error", 502)


def test_httpx_sse_raises_for_a_rejection(service: Rill, client: httpx.Client, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    with (
        httpx_sse.connect_sse(client, "GET", f"{service.url}/stream", params=ASK) as source,
        pytest.raises(httpx_sse.SSEError),
    ):
        list(source.iter_sse())
    assert source.response.status_code == 429


# urllib


def test_urllib_reads_the_first_text_before_the_second_is_sent(service: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    asked = urllib.request.Request(f"{service.url}/stream", QUESTION.encode(), {"Content-Type": "text/plain"})
    with urllib.request.urlopen(asked, timeout=20) as response:
        assert read_decoded(response, len(FIRST)) == FIRST
        upstream.open("second")
        assert response.read().decode() == SECOND


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_urllib_raises_for_a_truncated_answer(how: str, service: Rill, upstream: Upstream) -> None:
    upstream.script(*truncated_answer(how))
    with urllib.request.urlopen(f"{service.url}/stream?q=hi", timeout=20) as response:
        assert read_decoded(response, len(FIRST)) == FIRST
        upstream.open("truncate")
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_urllib_raises_for_a_rejection_in_the_format_of_the_dialect(service: Rill, upstream: Upstream) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "functions": [{}]}).encode()
    asked = urllib.request.Request(
        f"{service.url}/v1/chat/completions", body, {"Content-Type": "application/json"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as raised, urllib.request.urlopen(asked, timeout=20):
        pass
    with raised.value as response:
        assert response.status == 400
        assert "functions" in json.load(response)["error"]["message"]
    assert upstream.requests == []
