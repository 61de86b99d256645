"""Recorded answers, counts of tokens, and whose they are: what JWTs and budgets mean for them."""

import json

import pytest
import upstream as wire
from asking import JSON
from server import Rill, StartRill
from test_budget import INPUT, SECRET, token_of, usage_of, wait_for_use
from test_resume import gated, id_of
from upstream import Upstream

OUTPUT = 7  # of `gated`


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_RESUME_SECONDS="30", RILL_JWT_SECRET=SECRET, RILL_TOKEN_BUDGET="1000000/day")


def test_an_answer_that_two_requests_share_is_charged_once(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("shared", "abc", "def"))
    headers = {**token_of("shares"), "Idempotency-Key": "shared", "Content-Type": "text/plain"}
    with rill.ask("POST", "/stream?resume=20", headers, b"hi") as first:
        first.read_until(b"abc")
        with rill.ask("POST", "/stream?resume=20", headers, b"hi") as second:
            second.read_until(b"abc")
            reserved = usage_of(rill, headers)["reserved"]
            upstream.open("shared")
            assert (first.read_rest(), second.read_rest()) == (b"def", b"def")
    assert 0 < reserved < 5000  # One of them has 4,096 tokens of output.
    wait_for_use(rill, headers, lambda used: used == INPUT + OUTPUT)
    assert len(upstream.requests) == 1


def test_an_answer_that_its_client_stops_is_charged(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("stopped", "some text", "more"))
    headers = token_of("stops")
    with rill.ask("GET", "/stream?q=stops&resume=20", headers) as asked:
        asked.read_until(b"some text")
        with rill.ask("DELETE", f"/stream/{id_of(asked)}", headers) as stopped:
            assert stopped.status == 204
    wait_for_use(rill, headers, lambda used: used == INPUT + 3)  # a token for each three bytes of the text


def test_only_the_subject_of_the_jwt_may_read_its_answer(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("private"))
    with rill.ask("GET", "/stream?q=private&resume=20", token_of("owner")) as asked:
        assert asked.read_rest() == b"private"
    for subject, status in (("owner", 200), ("another", 404)):
        with rill.ask("GET", f"/stream/{id_of(asked)}", token_of(subject)) as again:
            assert again.status == status


def test_tokens_may_be_counted_without_a_budget_for_them(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.status(200, {"content-type": "application/json"}, b'{"input_tokens": 41}'))
    body = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "hi"}]}
    headers = token_of("counts", rill_budget="1/day")
    with rill.ask("POST", "/v1/messages/count_tokens", {**JSON, **headers}, json.dumps(body).encode()) as asked:
        assert asked.status == 200
    assert usage_of(rill, headers)["used"] == 0
