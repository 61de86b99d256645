"""A configured tracer gets a span for each call of the Messages API; without a tracer there are no spans."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import upstream as wire
from server import Rill, StartRill
from upstream import Step, Upstream

HERE = str(Path(__file__).parent)
ASK = "/stream?q=canary-prompt&system=canary-system"
STARTED = (wire.head(), wire.send(wire.opening(), wire.text("canary-answer ")))
WHOLE = (wire.send(wire.text("text"), wire.block_stop(), wire.stop()), wire.end())


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    """Return a server with the tracer of tests/traced.py."""
    return share_rill("--pythonpath", HERE, app="traced:app")


def spans(rill: Rill) -> list[dict[str, Any]]:
    """Return the tracer's output so far: a line for the start of each span, and one for its end."""
    return [json.loads(line) for line in rill.output().split("\n")[:-1] if line.startswith('{"span"')]


def span_sent(upstream: Upstream) -> str:
    """Return the span id in the latest request: https://www.w3.org/TR/trace-context/"""
    return upstream.requests[-1].headers["traceparent"].split("-")[2]


def wait_for_end(rill: Rill, span: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while not (found := [each for each in spans(rill) if each["span"] == span and each["what"] == "ended"]):
        assert time.monotonic() < deadline, f"span {span} never ended: {spans(rill)}"
        time.sleep(0.02)
    (ended,) = found
    return ended


@pytest.mark.parametrize("headers", [{}, {"Accept": "text/event-stream"}], ids=["text", "SSE"])
@pytest.mark.parametrize(
    ("rest", "status", "error"),
    [
        (WHOLE, "OK", None),
        ((wire.close(),), "ERROR", "connection_error"),
        ((wire.reset(),), "ERROR", "connection_error"),
        ((wire.end(),), "ERROR", "client_error"),
        ((wire.send(wire.stream_error()), wire.end()), "ERROR", "client_error"),
    ],
    ids=["completed", "closed", "reset", "truncated", "error event"],
)
def test_a_span_lasts_as_long_as_its_answer_and_records_whether_it_completed(
    rill: Rill, upstream: Upstream, headers: dict[str, str], rest: tuple[Step, ...], status: str, error: str | None
) -> None:
    upstream.script(*STARTED, wire.gate("rest"), *rest)
    with rill.ask("GET", ASK, headers) as asked:
        asked.read_until(b"canary-answer")
        span = span_sent(upstream)
        assert [each["what"] for each in spans(rill) if each["span"] == span] == ["begun"]
        upstream.open("rest")
        asked.read_rest()
    ended = wait_for_end(rill, span)
    assert (ended["status"], ended["attributes"].get("error.type")) == (status, error)


def test_a_disconnect_ends_the_span_and_is_not_an_error(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*STARTED, wire.silence())
    with rill.ask("GET", ASK) as asked:
        assert asked.next_chunk() == b"canary-answer "
    upstream.wait_for_disconnect()
    assert wait_for_end(rill, span_sent(upstream))["status"] == "UNSET"


@pytest.mark.parametrize(("kind", "status", "ended"), [("message", 200, "OK"), ("mistake", 502, "ERROR")])
def test_the_span_of_a_non_streamed_answer_ends_with_it_and_records_its_status(
    rill: Rill, upstream: Upstream, kind: str, status: int, ended: str
) -> None:
    message = {"type": kind, "stop_reason": "end_turn", "usage": {"input_tokens": 5, "output_tokens": 6}}
    upstream.script(wire.status(200, {"content-type": "application/json"}, json.dumps(message).encode()))
    fields = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "canary-prompt"}]}
    with rill.ask("POST", "/v1/messages", {"Content-Type": "application/json"}, json.dumps(fields).encode()) as asked:
        assert asked.status == status
        asked.read_rest()
    assert wait_for_end(rill, span_sent(upstream))["status"] == ended


def test_each_attempt_has_a_span_of_its_own(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.error(500, "api_error", "canary-message"))
    upstream.script(*STARTED, *WHOLE)
    with rill.ask("GET", ASK) as asked:
        assert asked.read_rest() == b"canary-answer text"
    first, second = (request.headers["traceparent"].split("-")[2] for request in upstream.requests)
    assert [wait_for_end(rill, span)["status"] for span in (first, second)] == ["ERROR", "OK"]


def test_a_span_names_the_model_and_the_request_id_and_contains_no_text(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*STARTED, *WHOLE)
    upstream.script(wire.error(400, "invalid_request_error", "canary-message"))
    for _ in range(2):
        with rill.ask("GET", ASK) as asked:
            assert b"canary" in asked.read_rest()
        attributes = wait_for_end(rill, span_sent(upstream))["attributes"]
        assert attributes["gen_ai.request.model"] == "claude-sonnet-5-5"
        assert attributes["anthropic.request.id"] == wire.REQUEST_ID
    assert all("canary" not in json.dumps(each) and "sk-test-key" not in json.dumps(each) for each in spans(rill))


@pytest.mark.parametrize(
    "env",
    [{"TRACER": "late"}, {"TRACER": "late", "OTEL_PYTHON_TRACER_PROVIDER": "not_installed"}],
    ids=["none", "one that is not installed"],
)
def test_without_a_tracer_no_span_begins(share_rill: StartRill, upstream: Upstream, env: dict[str, str]) -> None:
    upstream.script(*STARTED, *WHOLE)
    rill = share_rill("--pythonpath", HERE, app="traced:app", **env)
    with rill.ask("GET", ASK) as asked:
        assert asked.read_rest() == b"canary-answer text"
        # If the SDK looked for a tracer, it would use the one that is set late.
        assert spans(rill) == []
    assert "traceparent" not in upstream.requests[-1].headers
