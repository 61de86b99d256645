"""The official SDKs for Python with their own retries: the number of requests to Rill and to the upstream."""

import re
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
import upstream as wire
from server import Rill, StartRill
from upstream import Upstream

ASKED: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "hi"}],
}


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    """Return a server with the API key of one client."""
    return share_rill(RILL_API_KEYS="alice=of-alice")


def ask_anthropic(rill: Rill, key: str, stream: bool) -> None:
    with anthropic.Anthropic(base_url=rill.url, api_key=key) as client:
        list(client.messages.create(**ASKED, stream=True)) if stream else client.messages.create(**ASKED)


def ask_openai(rill: Rill, key: str, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{rill.url}/v1", api_key=key) as client:
        client.chat.completions.create(**ASKED, stream=stream)


def rejected_requests(rill: Rill) -> float:
    """Return the number of requests that Rill has rejected so far."""
    with rill.ask("GET", "/metrics", {"Authorization": "Bearer of-alice"}) as asked:
        counts = re.findall(r"^rill_requests_rejected_total\{.*?\} (\S+)$", asked.read_rest().decode(), re.MULTILINE)
    return sum(map(float, counts))


SDKS = pytest.mark.parametrize("ask", [ask_anthropic, ask_openai])
STREAM = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
Ask = Callable[[Rill, str, bool], None]


@SDKS
@STREAM
def test_a_wrong_key_is_sent_once(rill: Rill, upstream: Upstream, ask: Ask, stream: bool) -> None:
    before = rejected_requests(rill)
    with pytest.raises((anthropic.AuthenticationError, openai.AuthenticationError)):
        ask(rill, "wrong", stream)
    assert rejected_requests(rill) - before == 1
    assert upstream.requests == []


@SDKS
@STREAM
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_the_upstream_rejects_is_sent_once(
    rill: Rill, upstream: Upstream, ask: Ask, stream: bool, status: int
) -> None:
    upstream.always(wire.error(status, "authentication_error", "no"))
    before = rejected_requests(rill)
    with pytest.raises((anthropic.InternalServerError, openai.InternalServerError)):
        ask(rill, "of-alice", stream)
    assert (rejected_requests(rill) - before, len(upstream.requests)) == (1, 1)


@SDKS
@STREAM
@pytest.mark.parametrize("status", [500, 529])
def test_an_upstream_that_always_fails_gets_three_requests_in_total(
    rill: Rill, upstream: Upstream, ask: Ask, stream: bool, status: int
) -> None:
    upstream.always(wire.error(status, {500: "api_error", 529: "overloaded_error"}[status], "no"))
    with pytest.raises((anthropic.APIStatusError, openai.APIStatusError)):
        ask(rill, "of-alice", stream)
    assert len(upstream.requests) == 3


@SDKS
def test_a_request_whose_connection_is_lost_late_is_sent_once(rill: Rill, upstream: Upstream, ask: Ask) -> None:
    upstream.always(wire.pause(0.7), wire.close())
    with pytest.raises((anthropic.APIStatusError, openai.APIStatusError)):
        ask(rill, "of-alice", True)
    assert len(upstream.requests) == 1
