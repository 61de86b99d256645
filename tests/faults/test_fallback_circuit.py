"""The circuits of fallbacks, slow upstreams, requests without fallbacks, and what is reported."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import upstream as wire
from asking import JSON, ask, wait_until
from fallbacks import (
    AT_ONCE,
    FAILING,
    MODEL,
    OVERLOADED,
    SPARE,
    answer_of,
    assert_recovered,
    fallbacks,
    heal,
    models_of,
)
from server import ROOT, Rill, StartRill
from upstream import Upstream
from witness import logged, name_request

# Failures in a row that open a circuit, and how long it is open.
FAILURES, OPEN_SECONDS = 5, 10.0


def metrics_of(rill: Rill) -> str:
    with rill.ask("GET", "/metrics", {"Connection": "close"}) as asked:
        return asked.read_rest().decode()


def metric(rill: Rill, series: str) -> float:
    """Return the value of a series, 0 if there is none."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics_of(rill), re.MULTILINE)
    return float(found[1]) if found else 0.0


def answered_by(rill: Rill, **fields: Any) -> str:
    """Ask, and return which upstream answered."""
    with ask(rill, **fields) as asked:
        assert (asked.status, asked.read_rest()) == (200, b"spare")
        return asked.headers["x-rill-upstream"]


OPEN_PRIMARY = 'rill_circuits_open{scope="upstream",upstream="primary"}'


@pytest.mark.waits
def test_failures_in_a_row_open_the_circuit_and_one_trial_closes_it(
    start_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = start_rill(**fallbacks("upstream", second))
    second.always(*wire.answer("spare"))
    upstream.always(FAILING)
    assert metric(rill, OPEN_PRIMARY) == 0
    for _ in range(FAILURES):
        assert_recovered(rill, "text", ("fallback", MODEL))
    opened = time.monotonic()
    for _ in range(3):
        assert_recovered(rill, "text", ("fallback", MODEL), attempts=1)
    assert len(upstream.requests) == FAILURES
    assert metric(rill, OPEN_PRIMARY) == 1
    assert rill.output().count('"event": "a circuit opened", "upstream": "primary"') == 1
    time.sleep(max(0.0, opened + OPEN_SECONDS + 0.1 - time.monotonic()))
    upstream.always(wire.silence())
    with ask(rill):
        upstream.wait_for_requests(FAILURES + 1)
    upstream.wait_for_disconnect()  # Its client disconnected, so another trial follows.
    upstream.always(
        wire.head(), wire.gate("trial"), wire.send(wire.opening(), wire.text("spare"), wire.stop()), wire.end()
    )
    with ask(rill, "sse") as trial:
        upstream.wait_at_gate("trial")
        assert answered_by(rill) == "fallback"  # There is one trial at a time.
        upstream.open("trial")
        assert trial.headers["x-rill-upstream"] == "primary"
        assert b"spare" in trial.read_rest()
    assert answered_by(rill) == "primary"
    assert metric(rill, OPEN_PRIMARY) == 0
    assert rill.output().count('"event": "a circuit closed", "upstream": "primary"') == 1


def test_an_overloaded_model_is_skipped_and_other_models_are_not(
    start_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = start_rill(**{**fallbacks("model", second), "RILL_ALLOWED_MODELS": f"{MODEL},{SPARE}"})
    for _ in range(FAILURES):
        upstream.script(OVERLOADED)
        upstream.script(*wire.answer("spare"))
        assert_recovered(rill, "openai", ("primary", SPARE))
    upstream.clear()
    upstream.always(*wire.answer("spare"))
    assert_recovered(rill, "openai", ("primary", SPARE), attempts=1)
    assert answered_by(rill, model=SPARE) == "primary"
    assert models_of(upstream) == [SPARE, SPARE]
    upstream.always(wire.error(400, "invalid_request_error", "max_tokens: too many for this model"))
    with ask(rill) as asked:  # The client did not ask for that model.
        assert (asked.status, asked.read_rest()) == (503, b"The model is overloaded. Try again in a moment.\n")
    assert metric(rill, OPEN_PRIMARY) == 0
    assert metric(rill, 'rill_circuits_open{scope="model",upstream="primary"}') == 1


def test_an_open_stream_is_not_affected_by_a_circuit(
    start_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = start_rill(**fallbacks("upstream", second))
    second.always(*wire.answer("spare"))
    opening = wire.send(wire.opening(), wire.text("one "))
    upstream.script(wire.head(), opening, wire.gate("rest"), wire.send(wire.text("two"), wire.stop()), wire.end())
    with ask(rill) as asked:
        assert asked.next_chunk() == b"one "
        upstream.always(FAILING)
        for _ in range(FAILURES + 1):
            assert answered_by(rill) == "fallback"
        assert metric(rill, OPEN_PRIMARY) == 1
        upstream.open("rest")
        assert (asked.read_rest(), asked.ended) == (b"two", "clean")


# Both fail


def test_both_failing_at_once_are_asked_once_without_a_pause_and_the_first_error_is_reported(
    start_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = start_rill(**fallbacks("upstream", second))
    upstream.always(wire.error(401, "authentication_error", "no"))
    second.always(FAILING)
    for _ in range(FAILURES):
        with ask(rill) as asked:
            assert asked.status == 502
    upstream.requests.clear()
    second.requests.clear()
    name = name_request()
    with ask(rill, "anthropic", name=name) as asked:
        assert (asked.status, asked.headers["x-should-retry"]) == (502, "false")
        assert "does not accept this service's key" in asked.read_rest().decode()
    assert (len(upstream.requests), len(second.requests)) == (1, 1)
    line = logged(rill, name)
    assert (line["outcome"], line["attempts"]) == ("upstream_rejected", 2)
    second.always(*wire.answer("spare"))
    assert answered_by(rill) == "fallback"


@pytest.mark.parametrize("headers", [True, False], ids=["after its headers", "before its headers"])
def test_a_silent_upstream_is_not_abandoned_but_skipped_by_later_requests(
    start_rill: StartRill, upstream: Upstream, second: Upstream, headers: bool
) -> None:
    """The upstream may have processed the request, so no other one gets it as well."""
    rill = start_rill(**{**fallbacks("both", second), "RILL_START_TIMEOUT_SECONDS": "1"})
    silent = (wire.head(), wire.silence()) if headers else (wire.silence(),)
    for each, other in ((upstream, second), (second, upstream)):
        each.always(*silent)
        sent = len(other.requests)
        with ExitStack() as stack:
            asked = [stack.enter_context(ask(rill, model=MODEL)) for _ in range(FAILURES)]
            assert [conversation.status for conversation in asked] == [504] * FAILURES
        assert (len(each.requests), len(other.requests)) == (FAILURES, sent)
    name = name_request()
    with ask(rill, name=name) as rejected:
        assert rejected.status == 504
    assert len(upstream.requests) == len(second.requests) == FAILURES
    line = logged(rill, name)
    assert (line["outcome"], line["attempts"], line["upstream"]) == ("start_timeout", 0, None)


def test_the_first_error_is_reported_if_every_fallback_fails(
    share_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = share_rill(**fallbacks("both", second))
    heal(rill, upstream)
    upstream.script(wire.error(529, "overloaded_error", "Overloaded", {"retry-after": "7"}))
    upstream.script(wire.error(400, "invalid_request_error", "max_tokens: too many for this model"))
    second.always(wire.error(429, "rate_limit_error", "no", AT_ONCE))
    with ask(rill, "anthropic", model=MODEL) as asked:
        assert (asked.status, asked.headers["retry-after"]) == (503, "7")
        assert asked.headers["x-should-retry"] == "false"
    assert models_of(upstream) == [MODEL, SPARE]
    assert models_of(second) == [MODEL, SPARE, SPARE, SPARE]  # The last one is repeated.
    second.always(*wire.answer("spare"))
    heal(rill, upstream)
    upstream.always(FAILING)
    assert answered_by(rill) == "fallback"


def test_a_client_error_that_a_fallback_model_reports_is_not_the_clients(
    share_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = share_rill(**fallbacks("both", second))
    heal(rill, upstream)
    upstream.script(OVERLOADED)
    upstream.script(wire.error(400, "invalid_request_error", "thinking: not supported by this model"))
    second.always(*wire.answer("spare"))
    assert_recovered(rill, "anthropic", ("fallback", MODEL), attempts=3)


def test_no_further_upstream_is_asked_after_one_that_may_have_processed_the_request(
    share_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = share_rill(**fallbacks("both", second))
    heal(rill, upstream)
    upstream.script(OVERLOADED)
    upstream.script(wire.head(), wire.close())
    with ask(rill, "openai") as asked:
        assert (asked.status, asked.headers["x-should-retry"]) == (503, "false")
    assert second.requests == []


# An upstream that is slow to start


@pytest.fixture
def full_listener() -> Iterator[int]:
    """Yield a port whose queue of connections is full, so that a further one is neither accepted nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_upstream_that_is_slow_to_connect_is_answered_by_the_second_one(
    start_rill: StartRill, full_listener: int, second: Upstream, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # It accepts, but does no handshake.
        port = full_listener if scheme == "http" else mute.getsockname()[1]
        env = {"ANTHROPIC_BASE_URL": f"{scheme}://127.0.0.1:{port}", "RILL_START_TIMEOUT_SECONDS": "4"}
        rill = start_rill(**{**fallbacks("upstream", second), **env})
        second.always(*answer_of("text", "spare"))
        begun = time.monotonic()
        assert_recovered(rill, "text", ("fallback", MODEL))
        assert time.monotonic() - begun > 0.5


# Requests without fallbacks

REQUESTS = {
    "query": ("GET", "/stream?q=hi&fallback=false", {}, b""),
    "events": ("GET", "/chat/stream?message=hi&fallback=false", {}, b""),
    "form": ("POST", "/stream", {"Content-Type": "application/x-www-form-urlencoded"}, b"q=hi&fallback=false"),
    "JSON": ("POST", "/stream", JSON, b'{"q": "hi", "fallback": false}'),
    "text with a query": ("POST", "/stream?fallback=false", {"Content-Type": "text/plain"}, b"hi"),
    "text with a header": ("POST", "/stream", {"Content-Type": "text/plain", "X-Rill-Fallback": "false"}, b"hi"),
}


@pytest.mark.parametrize("way", [*REQUESTS, "anthropic", "openai", "anthropic whole"])
def test_a_request_without_fallbacks_gets_the_original_error(
    share_rill: StartRill, upstream: Upstream, second: Upstream, way: str
) -> None:
    rill = share_rill(**fallbacks("both", second))
    upstream.always(wire.error(529, "overloaded_error", "Overloaded", {"retry-after": "7"}))
    asked = rill.ask(*REQUESTS[way]) if way in REQUESTS else ask(rill, way, {"X-Rill-Fallback": "false"})
    with asked:
        assert (asked.status, asked.headers["retry-after"]) == (503, "7")
    assert (len(upstream.requests), second.requests) == (1, [])


def test_a_request_may_allow_fallbacks_explicitly(share_rill: StartRill, upstream: Upstream, second: Upstream) -> None:
    rill = share_rill(**fallbacks("upstream", second))
    heal(rill, upstream)
    upstream.always(FAILING)
    second.always(*wire.answer("spare"))
    assert answered_by(rill, fallback="true", headers={"X-Rill-Fallback": "true"}) == "fallback"


@pytest.mark.parametrize("way", ["text", "anthropic", "openai"])
def test_another_value_is_a_400(share_rill: StartRill, upstream: Upstream, way: str) -> None:
    rill = share_rill()
    with ask(rill, way, {"X-Rill-Fallback": "maybe"}) as asked:
        assert asked.status == 400
        assert "X-Rill-Fallback: should be true or false." in asked.read_rest().decode()
    with ask(rill, fallback="maybe") as asked:
        assert (asked.status, asked.read_rest()) == (400, b"fallback: should be true or false.\n")
    assert upstream.requests == []


def test_a_service_without_fallbacks_accepts_the_option_and_reports_no_fallbacks(
    share_rill: StartRill, upstream: Upstream
) -> None:
    rill = share_rill()
    upstream.always(*wire.answer("here"))
    with ask(rill, fallback="false", headers={"X-Rill-Fallback": "false"}) as asked:
        assert asked.read_rest() == b"here"
        assert not [name for name in asked.headers if name.startswith("x-rill")]
    wait_until(lambda: "rill_requests_total" in metrics_of(rill), "the metrics of the answer")
    assert not re.search("answered_by|circuits|upstream_attempts", metrics_of(rill))


# What is sent and reported


def test_only_the_model_of_a_forwarded_request_changes(
    share_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = share_rill(**fallbacks("model", second))
    heal(rill, upstream)
    upstream.script(OVERLOADED)
    upstream.script(*wire.answer("spare"))
    fields = {"metadata": {"user_id": "u"}, "system": [{"type": "text", "text": "Be brief."}], "temperature": 0.5}
    with ask(rill, "anthropic", {"anthropic-beta": "pdfs-2024-09-25"}, **fields) as asked:
        assert b"spare" in asked.read_rest()
    first, other = upstream.requests
    assert other.json == {**first.json, "model": SPARE}
    assert first.json.items() >= {"model": MODEL, **fields}.items()
    ignored = "content-length"
    assert {**first.headers, ignored: ""} == {**other.headers, ignored: ""}


def test_a_fallback_model_may_not_be_asked_for_unless_it_is_allowed(share_rill: StartRill, second: Upstream) -> None:
    rill = share_rill(**fallbacks("both", second))
    with ask(rill, model=SPARE) as asked:
        assert asked.status == 403
    with rill.ask("GET", "/v1/models", {"Connection": "close"}) as asked:
        assert SPARE not in asked.read_rest().decode()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_answers_tokens_and_attempts_are_counted_by_who_answered(
    start_rill: StartRill, upstream: Upstream, second: Upstream, workers: str
) -> None:
    rill = start_rill(**{**fallbacks("both", second), "WEB_CONCURRENCY": workers})
    rill.wait_for_workers(int(workers))
    second.always(*wire.answer("spare"))
    upstream.script(OVERLOADED)
    upstream.script(*wire.answer("spare"))
    assert_recovered(rill, "sse", ("primary", SPARE))
    upstream.always(FAILING)
    assert_recovered(rill, "sse", ("fallback", MODEL))
    counted = f'model="{SPARE}",requested_model="{MODEL}",upstream="primary"'
    wait_until(lambda: metric(rill, f"rill_answered_by_total{{{counted}}}") == 1, "the count of the answer")
    counted = f'model="{MODEL}",requested_model="{MODEL}",upstream="fallback"'
    wait_until(lambda: metric(rill, f"rill_answered_by_total{{{counted}}}") == 1, "the count of the answer")
    assert metric(rill, 'rill_upstream_attempts_total{upstream="primary"}') == 3
    assert metric(rill, 'rill_upstream_attempts_total{upstream="fallback"}') == 1
    assert metric(rill, f'rill_tokens_total{{client="",model="{SPARE}",type="input"}}') == 12
    assert metric(rill, 'rill_upstream_errors_total{type="overloaded"}') == 1
    assert metric(rill, 'rill_upstream_errors_total{type="error"}') == 1
    assert metric(rill, OPEN_PRIMARY) == 0


def test_a_model_of_any_name_is_written_into_the_header_safely(
    share_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = share_rill(**{**fallbacks("model", second), "RILL_ALLOWED_MODELS": f"*,{MODEL}"})
    upstream.always(*wire.answer("here"))
    with ask(rill, "openai", model="a\r\nSet-Cookie: 模型") as asked:
        assert asked.status == 200
        assert "set-cookie" not in asked.headers
        assert asked.headers["x-rill-model"] == "a%0D%0ASet-Cookie:%20%E6%A8%A1%E5%9E%8B"
        assert json.loads(asked.read_rest().split(b"\n\n")[0].removeprefix(b"data: "))["model"].startswith("a\r\n")


def test_the_fallback_metrics_are_documented(share_rill: StartRill, upstream: Upstream, second: Upstream) -> None:
    rill = share_rill(**fallbacks("both", second))
    heal(rill, upstream)
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    documented = re.findall(r"^\| `(rill_\w+)` \| (`.*?) \|", page.split("| fallback metric |")[1], re.MULTILINE)
    assert len(documented) == 3
    for name, labels in documented:
        wait_until(lambda name=name: f"{name}{{" in metrics_of(rill), name)  # type: ignore[misc]
        found = re.search(rf"^{name}{{(.*)}}", metrics_of(rill), re.MULTILINE)
        assert found
        assert set(re.findall(r"(\w+)=", found[1])) == set(re.findall(r"`(\w+)`", labels))
