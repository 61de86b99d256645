"""POST /v1/messages/count_tokens is forwarded, is not billed, and stays within the same limits; GET /v1/models/<id>."""

import json
from typing import Any

import anthropic
import openai
import pytest
import upstream as wire
from asking import JSON, wait_until
from conversation import Conversation
from server import Rill, StartRill
from upstream import Upstream

from rill.dialects.anthropic import read_count
from rill.dialects.models import describe_model, list_models
from rill.problems import Problem
from rill.settings import Settings
from rill.upstream.sse_decoder import Decoder

PATH = "/v1/messages/count_tokens"
QUESTION: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "What is a rill?"}],
    "tools": [{"name": "gauge", "input_schema": {"type": "object"}}],
}
COUNT = b'{"input_tokens": 41}'


def counted(*headers: tuple[str, str]) -> wire.Step:
    return wire.status(200, {"content-type": "application/json", **dict(headers)}, COUNT)


def ask(rill: Rill, headers: dict[str, str] | None = None, **fields: Any) -> Conversation:
    body = json.dumps({**QUESTION, **fields}).encode()
    return rill.ask("POST", PATH, {**JSON, "Connection": "close", **(headers or {})}, body)


def test_a_count_is_the_upstreams_own(service: Rill, upstream: Upstream) -> None:
    upstream.script(counted(("anthropic-ratelimit-requests-remaining", "7")))
    with anthropic.Anthropic(base_url=service.url, api_key="any", max_retries=0) as client:
        answer = client.beta.messages.with_raw_response.count_tokens(**QUESTION, betas=["token-counting-2024-11-01"])
    assert answer.parse().input_tokens == 41
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "7"
    (sent,) = upstream.requests
    assert (sent.path, sent.json) == (PATH, QUESTION)
    assert "token-counting-2024-11-01" in sent.headers["anthropic-beta"]


def test_a_count_adds_no_tokens_to_the_metrics(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill()
    upstream.script(counted())
    with ask(rill) as asked:
        assert asked.read_rest() == COUNT
    wait_until(lambda: 'outcome="completed"' in metrics(rill), "the end of the request")
    assert "rill_tokens_total{" not in metrics(rill)
    assert "rill_streams_active 0" in metrics(rill)


def metrics(rill: Rill) -> str:
    with rill.ask("GET", "/metrics", {"Connection": "close"}) as asked:
        return asked.read_rest().decode()


def test_a_count_uses_the_rate_limit(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill(RILL_RATE_LIMIT="1/hour")
    upstream.script(counted())
    statuses = []
    for _ in range(2):
        with ask(rill) as asked:
            statuses.append(asked.status)
    assert statuses == [200, 429]
    assert len(upstream.requests) == 1


def test_a_client_that_disconnects_cancels_its_count(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.silence())
    with ask(service):
        upstream.wait_for_requests(1)
    upstream.wait_for_disconnect()


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"model": None}, 400, "model"),
        ({"messages": None}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"model": "another"}, 403, "model"),
        ({"speed": "fast"}, 403, "speed"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 403, "tools.0"),
    ],
)
def test_a_count_that_is_not_allowed_is_rejected_by_name(
    share_rill: StartRill, upstream: Upstream, fields: dict[str, Any], status: int, named: str
) -> None:
    with ask(share_rill(RILL_ALLOWED_MODELS=None), **fields) as asked:
        assert asked.status == status
        error = json.loads(asked.read_rest())
    assert error["error"]["message"].startswith(named)
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (wire.error(400, "invalid_request_error", "messages: too odd"), 400),
        (wire.error(404, "not_found_error", "model: claude-none"), 404),
        (wire.status(200, {"content-type": "application/json"}, b'{"type": "message"}'), 502),
        (wire.status(200, {"content-type": "application/json"}, b"{"), 502),
    ],
    ids=["bad request", "no such model", "not a count", "not JSON"],
)
def test_a_failed_count_has_a_true_status(service: Rill, upstream: Upstream, answer: wire.Step, status: int) -> None:
    upstream.script(answer)
    with ask(service) as asked:
        assert asked.status == status
        assert json.loads(asked.read_rest())["type"] == "error"


# Models


def test_both_sdks_read_one_model(service: Rill) -> None:
    name = "claude-sonnet-5-5"
    with anthropic.Anthropic(base_url=service.url, api_key="any") as client:
        assert client.models.retrieve(name).id == name
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any") as client:
        assert client.models.retrieve(name).id == name


def test_a_model_that_is_not_allowed_does_not_exist(share_rill: StartRill) -> None:
    rill = share_rill(RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-haiku-5")
    for path, status in {"claude-haiku-5": 200, "claude-sonnet-5-5": 200, "another": 404, "*": 404}.items():
        with rill.ask("GET", f"/v1/models/{path}", {"Connection": "close"}) as asked:
            assert asked.status == status
    with anthropic.Anthropic(base_url=rill.url, api_key="any") as client, pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("another")


def test_with_any_model_allowed_every_name_is_described(share_rill: StartRill) -> None:
    with openai.OpenAI(base_url=f"{share_rill(RILL_ALLOWED_MODELS='*').url}/v1", api_key="any") as client:
        assert client.models.retrieve("vendor/a-model").id == "vendor/a-model"


# Without a server


def test_a_count_is_read_like_a_message() -> None:
    settings = Settings(ANTHROPIC_API_KEY="sk-test")
    prompt, reply = read_count(json.dumps(QUESTION).encode(), {"anthropic-version": "1"}, {"beta": "true"}, settings)
    assert (prompt.is_count, prompt.is_streamed, reply.streamed) == (True, False, False)
    assert (prompt.headers, prompt.query) == ({"anthropic-version": "1"}, {"beta": "true"})
    for fields in ({"model": ""}, {"messages": "hi"}, {"messages": [{}] * 10_001}):
        with pytest.raises(Problem, match=next(iter(fields))):
            read_count(json.dumps({**QUESTION, **fields}).encode(), {}, {}, settings)


def test_only_a_count_is_read_as_one() -> None:
    decoder = Decoder()
    assert decoder.read_message(COUNT, is_count=True).usage == {}
    for body, is_count in ((COUNT, False), (b'{"type": "message"}', True)):
        with pytest.raises(Problem):
            Decoder().read_message(body, is_count)


def test_one_model_is_described_like_those_of_the_list() -> None:
    assert list_models(["a", "*"])["data"] == [describe_model("a")]
