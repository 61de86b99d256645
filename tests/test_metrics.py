"""/metrics: the same totals from every worker, a bounded number of series, and no secrets."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import upstream as wire
import yaml
from asking import ask
from conversation import Conversation
from prometheus_client.parser import text_string_to_metric_families
from server import ROOT, Rill, StartRill
from tcp_sockets import tcp_sockets
from upstream import Step, Upstream

from rill.problems import CANCELLATION_REASONS, KINDS, UPSTREAM_STATUSES, UPSTREAM_TYPES, Problem
from rill.streaming.delivery import UPSTREAM_OUTCOMES
from rill.telemetry.metrics import Telemetry

ALICE, BOB, CAROL = ({"x-api-key": f"secret-of-{name}"} for name in ("alice", "bob", "carol"))
API_KEYS = "alice=secret-of-alice,bob=secret-of-bob,carol=secret-of-carol"
MODEL = "claude-sonnet-5-5"
MONITORING = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
# Prevents a retry, so that an error is reported at once.
AT_ONCE = {"x-should-retry": "false"}

Series = tuple[str, frozenset[tuple[str, str]]]


class Metrics(dict[Series, float]):
    """The series of /metrics: name and labels -> value."""

    def of(self, name: str, **labels: str) -> float:
        """Return the sum of all series with this name and these labels."""
        return sum(
            value for (known, pairs), value in self.items() if known == name and pairs.issuperset(labels.items())
        )

    def since(self, before: "Metrics") -> "Metrics":
        """Return the series that have changed, with their differences."""
        return Metrics({series: n - before.get(series, 0) for series, n in self.items() if n != before.get(series, 0)})

    def named(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return the series with this name, by their labels."""
        return {pairs: value for (known, pairs), value in self.items() if known == name}


def parse_metrics(text: str) -> Metrics:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    metrics = Metrics({(each.name, frozenset(each.labels.items())): each.value for each in samples})
    assert len(metrics) == len(samples), "a series occurs twice"
    return metrics


def scrape(rill: Rill, headers: Mapping[str, str] = ALICE) -> Metrics:
    with rill.ask("GET", "/metrics", {**headers, "Connection": "close"}) as asked:
        assert asked.status == 200
        assert asked.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return parse_metrics(asked.read_rest().decode())


def wait_for(look: Callable[[], Metrics], condition: Callable[[Metrics], bool]) -> Metrics:
    """Scrape until the condition holds: an answer is counted a moment after its end."""
    deadline = time.monotonic() + 10
    while not condition(metrics := look()):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.02)
    return metrics


@contextmanager
def counted(rill: Rill, answers: int = 1) -> Iterator[Metrics]:
    """Yield the change of the metrics by that many answers within the context; it is filled in at the end."""
    before, added = scrape(rill), Metrics()
    yield added

    def is_over(metrics: Metrics) -> bool:
        return metrics.since(before).of("rill_requests_total") >= answers

    added.update(wait_for(lambda: scrape(rill), is_over).since(before))


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    """Return a server with API keys, two slots, and one slot per client."""
    return share_rill(
        RILL_API_KEYS=API_KEYS,
        RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5",
        RILL_MAX_STREAMS="2",
        RILL_MAX_STREAMS_PER_CLIENT="1",
        RILL_MAX_BODY_BYTES="2000",
    )


@pytest.fixture
def pair(share_rill: StartRill) -> Rill:
    """Return a server of two workers, without API keys."""
    running = share_rill(WEB_CONCURRENCY="2", RILL_TRUSTED_PROXIES="1")
    running.wait_for_workers(2)
    return running


# The dialects, and the steps of the upstream

BODY = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], "stream": True}


DIALECTS = pytest.mark.parametrize("dialect", ["text", "sse", "anthropic", "openai"])
STARTED = (wire.head(), wire.send(wire.opening(), wire.text("some ")))
HELD = (*STARTED, wire.gate("rest"))
REST: dict[str, tuple[Step, ...]] = {
    "completed": (wire.send(wire.text("text"), wire.block_stop(), wire.stop(output_tokens=7)), wire.end()),
    "upstream_truncated": (wire.close(),),
    "upstream_error": (wire.send(wire.stream_error()), wire.end()),
}


def series(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


# Answers


@DIALECTS
@pytest.mark.parametrize("outcome", REST)
def test_an_answer_is_counted_once_with_its_outcome_its_tokens_and_its_bytes(
    rill: Rill, upstream: Upstream, dialect: str, outcome: str
) -> None:
    upstream.script(*STARTED, *REST[outcome])
    with counted(rill) as added, ask(rill, dialect, ALICE) as asked:
        body = asked.read_rest()
    labels = {"client": "alice", "model": MODEL}
    assert added.named("rill_requests_total") == {series(**labels, dialect=dialect, outcome=outcome): 1}
    assert added.named("rill_tokens_total") == {
        series(**labels, type="input"): 12,
        series(**labels, type="output"): 7 if outcome == "completed" else 1,
    }
    assert added.named("rill_response_bytes_total") == {series(dialect=dialect): len(body)}
    for name in ("time_to_first_token", "request_duration"):
        assert added.named(f"rill_{name}_seconds_count") == {series(dialect=dialect): 1}
    assert added.of("rill_requests_rejected_total") == 0


@DIALECTS
def test_a_disconnect_is_counted_as_client_disconnected(rill: Rill, upstream: Upstream, dialect: str) -> None:
    upstream.script(*HELD)
    with counted(rill) as added:
        with ask(rill, dialect, ALICE) as asked:
            asked.read_until(b"some ")
        upstream.wait_for_disconnect()
    labels = {"client": "alice", "model": MODEL}
    assert added.named("rill_requests_total") == {series(**labels, dialect=dialect, outcome="client_disconnected"): 1}
    assert added.of("rill_tokens_total", type="input") == 12
    assert added.of("rill_upstream_errors_total") == 0


def test_a_silent_upstream_is_counted_as_idle_timeout_in_every_dialect_with_or_without_pings(
    share_rill: StartRill, upstream: Upstream
) -> None:
    rill, names = share_rill(RILL_IDLE_TIMEOUT_SECONDS="1"), ["text", "sse", "anthropic", "openai"]
    pings = [step for _ in range(100) for step in (wire.pause(0.1), wire.send(wire.ping()))]
    with counted(rill, 8) as added, ExitStack() as stack:
        asked = []
        for rest in ([], pings):
            upstream.always(*STARTED, *rest, wire.silence())
            for name in names:
                asked.append(stack.enter_context(ask(rill, name, ALICE)))
                asked[-1].read_until(b"some ")
        for each in asked:
            each.read_rest()
    reported = {series(client="", dialect=name, model=MODEL, outcome="idle_timeout"): 2.0 for name in names}
    assert added.named("rill_requests_total") == reported
    assert added.named("rill_upstream_errors_total") == {series(type="idle_timeout"): 8}


def test_a_non_streamed_answer_is_counted_like_a_streamed_one(rill: Rill, upstream: Upstream) -> None:
    message = {"type": "message", "stop_reason": "end_turn", "usage": {"input_tokens": 5, "output_tokens": 6}}
    upstream.script(wire.status(200, {"content-type": "application/json"}, json.dumps(message).encode()))
    with counted(rill) as added, ask(rill, "anthropic", ALICE, stream=False) as asked:
        body = asked.read_rest()
    assert json.loads(body) == message
    assert added.of("rill_requests_total", dialect="anthropic", outcome="completed") == 1
    assert added.of("rill_response_bytes_total", dialect="anthropic") == len(body)
    assert (added.of("rill_tokens_total", type="input"), added.of("rill_tokens_total", type="output")) == (
        5,
        6,
    )


def test_each_client_and_each_model_has_its_own_count(rill: Rill, upstream: Upstream) -> None:
    upstream.always(*STARTED, *REST["completed"])
    with counted(rill, 2) as added:
        for headers, model in ((ALICE, MODEL), (BOB, "claude-opus-5")):
            with ask(rill, "openai", headers, model=model) as asked:
                asked.read_rest()
    assert added.named("rill_requests_total") == {
        series(client="alice", dialect="openai", model=MODEL, outcome="completed"): 1,
        series(client="bob", dialect="openai", model="claude-opus-5", outcome="completed"): 1,
    }


# Times


def test_an_answer_without_text_has_no_time_to_first_token(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.start(), wire.stop("tool_use")), wire.end())
    with counted(rill) as added, ask(rill, "sse", ALICE) as asked:
        asked.read_rest()
    assert added.of("rill_request_duration_seconds_count") == 1
    assert added.of("rill_time_to_first_token_seconds_count") == 0


def test_time_to_first_token_ends_at_the_first_text_not_at_the_first_event(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening()), wire.gate("text"), *STARTED[1:], *REST["completed"])
    with counted(rill) as added, ask(rill, "sse", ALICE) as asked:
        assert asked.read_until(b"\n\n")
        begun = time.monotonic()
        time.sleep(0.2)
        held = time.monotonic() - begun
        upstream.open("text")
        asked.read_rest()
    ttft = added.of("rill_time_to_first_token_seconds_sum")
    assert ttft > held - 0.001
    assert added.of("rill_request_duration_seconds_sum") >= ttft
    assert added.of("rill_time_to_first_token_seconds_bucket", le="0.1") == 0
    assert added.of("rill_time_to_first_token_seconds_bucket", le="+Inf") == 1


# Open answers


def test_an_open_answer_is_counted_until_its_end(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*HELD, *REST["completed"])
    wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_streams_active") == 0)
    with ask(rill, "text", ALICE) as asked:
        assert asked.next_chunk() == b"some "
        assert scrape(rill).of("rill_streams_active") == 1
        upstream.open("rest")
        assert asked.read_rest() == b"text"
        wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_streams_active") == 0)


def test_an_open_answer_is_counted_until_its_client_disconnects(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*HELD)
    wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_streams_active") == 0)
    with ask(rill, "sse", ALICE) as asked:
        asked.read_until(b"some ")
        assert scrape(rill).of("rill_streams_active") == 1
    wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_streams_active") == 0)


# Several workers


@contextmanager
def only(rill: Rill, chosen: psutil.Process) -> Iterator[None]:
    """Let only one worker accept connections: suspend the others."""
    others = [each for each in rill.workers() if each != chosen]
    try:
        for each in others:
            each.suspend()
        yield
    finally:
        for each in others:
            each.resume()


def server_of(rill: Rill, asked: Conversation) -> psutil.Process:
    """Return the worker that holds the other end of a connection."""
    port = asked.socket.getsockname()[1]
    (found,) = [
        worker for worker in rill.workers() if any(each.remote_port == port for each in tcp_sockets(worker.pid))
    ]
    return found


def test_each_of_two_workers_reports_the_sum_of_both(pair: Rill, upstream: Upstream) -> None:
    upstream.always(*STARTED, *REST["completed"])
    first, second = pair.wait_for_workers(2)
    with counted(pair, 3) as added:
        for worker, answers in ((first, 1), (second, 2)):
            for _ in range(answers):
                with only(pair, worker), ask(pair, "text", ALICE) as asked:
                    assert (asked.read_rest(), server_of(pair, asked)) == (b"some text", worker)
    assert added.named("rill_requests_total") == {
        series(client="", dialect="text", model=MODEL, outcome="completed"): 3
    }
    reported = []
    for worker in (first, second):
        with only(pair, worker), pair.ask("GET", "/metrics") as asked:
            metrics = parse_metrics(asked.read_until(b'rill_requests_total{client="",dialect="text"').decode())
            assert server_of(pair, asked) == worker
            reported.append(metrics.of("rill_requests_total"))
    assert reported[0] == reported[1] >= 3


def test_a_killed_workers_totals_remain_and_its_open_answers_are_removed(pair: Rill, upstream: Upstream) -> None:
    upstream.always(*HELD, *REST["completed"])
    first, second = pair.wait_for_workers(2)
    before = wait_for(lambda: scrape(pair), lambda metrics: metrics.of("rill_streams_active") == 0)
    with ExitStack() as stack:
        for worker in (first, first, second):
            with only(pair, worker):
                asked = stack.enter_context(ask(pair, "text", ALICE))
                assert asked.next_chunk() == b"some "
        assert scrape(pair).of("rill_streams_active") == 3
        first.kill()
        metrics = wait_for(lambda: scrape(pair), lambda metrics: metrics.of("rill_streams_active") < 3)
        assert metrics.of("rill_streams_active") == 1
        assert metrics.of("rill_requests_total") == before.of("rill_requests_total")
        upstream.open("rest")
        assert asked.read_rest() == b"text"
        wait_for(lambda: scrape(pair), lambda metrics: metrics.of("rill_streams_active") == 0)


# Errors


@pytest.mark.parametrize(
    ("steps", "type"),
    [
        ((wire.error(529, "overloaded_error", "no", AT_ONCE),), "overloaded"),
        ((wire.error(429, "rate_limit_error", "no", {"retry-after": "60"}),), "rate_limited"),
        ((wire.error(401, "authentication_error", "no"),), "rejected"),
        ((wire.error(500, "api_error", "no", AT_ONCE),), "error"),
        ((*STARTED[:1], wire.close()), "truncated"),
        ((*STARTED, wire.close()), "truncated"),
        ((*STARTED, wire.reset()), "error"),
        ((*STARTED, wire.send(wire.stream_error()), wire.end()), "overloaded"),
        ((*STARTED, wire.send(b"data: {]\n\n"), wire.end()), "error"),
    ],
    ids=["529", "429", "401", "500", "no events", "closed", "reset", "error event", "not JSON"],
)
def test_an_upstream_error_is_counted_by_its_type(
    rill: Rill, upstream: Upstream, steps: tuple[Step, ...], type: str
) -> None:
    upstream.script(*steps)
    with counted(rill) as added, ask(rill, "text", ALICE) as asked:
        asked.read_rest()
    assert added.named("rill_upstream_errors_total") == {series(type=type): 1}
    rejected = asked.status != 200
    assert added.named("rill_requests_rejected_total") == ({series(reason=f"upstream_{type}"): 1} if rejected else {})


def test_an_upstream_error_about_the_prompt_has_its_own_type(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.error(400, "invalid_request_error", "prompt is too long"))
    with counted(rill) as added, ask(rill, "text", ALICE) as asked:
        assert asked.status == 400
    assert added.named("rill_upstream_errors_total") == {series(type="bad_request"): 1}
    assert added.named("rill_requests_rejected_total") == {series(reason="bad_request"): 1}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "reason"),
    [
        ("GET", "/stream?q=hi", {}, b"", 401, "unauthorized"),
        ("GET", "/stream", ALICE, b"", 400, "bad_request"),
        ("POST", "/stream", ALICE, b"x" * 2001, 413, "content_too_large"),
        ("GET", "/stream?q=hi&model=gpt", ALICE, b"", 403, "forbidden"),
        ("GET", "/nothing", ALICE, b"", 404, "not_found"),
        ("PUT", "/stream", ALICE, b"", 405, "method_not_allowed"),
    ],
)
def test_a_rejected_request_is_counted_by_its_reason(
    rill: Rill, method: str, path: str, headers: dict[str, str], body: bytes, status: int, reason: str
) -> None:
    before = scrape(rill)
    with rill.ask(method, path, headers, body) as asked:
        assert asked.status == status
    added = scrape(rill).since(before)
    assert added == {("rill_requests_rejected_total", series(reason=reason)): 1}


def test_a_lack_of_slots_is_counted_as_at_capacity_or_as_rate_limited(rill: Rill, upstream: Upstream) -> None:
    upstream.always(*HELD, *REST["completed"])
    wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_streams_active") == 0)
    with counted(rill, 4) as added, ask(rill, "text", ALICE) as first, ask(rill, "text", BOB) as second:
        assert first.next_chunk() == second.next_chunk() == b"some "
        with ask(rill, "text", CAROL) as rejected:
            assert rejected.status == 503
        second.close()
        wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_streams_active") == 1)
        with ask(rill, "text", ALICE) as rejected:
            assert rejected.status == 429
        upstream.open("rest")
        first.read_rest()
    assert added.named("rill_requests_rejected_total") == {
        series(reason="at_capacity"): 1,
        series(reason="rate_limited"): 1,
    }


def test_a_rate_limited_request_is_counted(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*STARTED, *REST["completed"])
    rill = start_rill(RILL_RATE_LIMIT="2/hour")
    statuses = []
    for _ in range(4):
        with ask(rill, "text", ALICE) as asked:
            statuses.append(asked.status)
            asked.read_rest()
    assert statuses == [200, 200, 429, 429]
    assert scrape(rill).named("rill_requests_rejected_total") == {series(reason="rate_limited"): 2}


# Access and secrets


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "secret-of-mallory"}])
def test_metrics_require_an_api_key(rill: Rill, headers: dict[str, str]) -> None:
    with rill.ask("GET", "/metrics", headers) as asked:
        assert asked.status == 401
        assert b"rill_" not in asked.read_rest()


def test_a_scraper_may_send_its_api_key_as_a_bearer_token(rill: Rill) -> None:
    assert scrape(rill, {"Authorization": "Bearer secret-of-bob"}).of("rill_streams_active") >= 0


def test_a_model_that_is_not_in_the_settings_is_counted_as_other(pair: Rill, upstream: Upstream) -> None:
    upstream.always(*STARTED, *REST["completed"])
    worker = pair.wait_for_workers(2)[0]
    with only(pair, worker), counted(pair) as added, ask(pair, "anthropic", ALICE, model="claude-of-my-own") as asked:
        asked.read_rest()
    labels = {"client": "", "model": "other"}
    assert added.named("rill_requests_total") == {series(**labels, dialect="anthropic", outcome="completed"): 1}
    assert added.named("rill_tokens_total").keys() == {
        series(**labels, type="input"),
        series(**labels, type="output"),
    }


def test_many_models_and_many_addresses_create_no_new_series(pair: Rill, upstream: Upstream) -> None:
    upstream.always(*STARTED, *REST["completed"])

    def ask_from(number: int) -> None:
        address = {"X-Forwarded-For": f"10.0.{number // 250}.{number % 250}", "User-Agent": f"agent {number}"}
        with ask(pair, "anthropic", address, model=f"model-{number}") as asked:
            asked.read_rest()
        with pair.ask("GET", f"/{number}", address) as asked:
            assert asked.status == 404

    with counted(pair):
        ask_from(0)
    counted_last = {"model": "other", "type": "output"}
    before = wait_for(lambda: scrape(pair), lambda metrics: metrics.of("rill_tokens_total", **counted_last) > 0)
    for number in range(1, 101):
        ask_from(number)
    after = wait_for(
        lambda: scrape(pair), lambda metrics: metrics.since(before).of("rill_requests_total", model="other") >= 100
    )
    assert after.of("rill_requests_rejected_total", reason="not_found") >= 101
    assert after.keys() == before.keys()


def test_no_prompt_answer_or_key_is_in_the_metrics_or_their_files(
    start_rill: StartRill, upstream: Upstream, tmp_path: Path
) -> None:
    rill = start_rill(
        RILL_API_KEYS="alice=secret-of-alice",
        TMPDIR=str(tmp_path),
        RILL_SYSTEM_PROMPT="canary-system",
        WEB_CONCURRENCY="2",
    )
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("canary-answer")), *REST["completed"])
    upstream.script(wire.error(400, "invalid_request_error", "canary-message"))
    headers = {**ALICE, "X-Request-Id": "canary-id", "User-Agent": "canary-agent"}
    for model in ("canary-model", "canary-other"):
        with rill.ask("GET", f"/stream?q=canary-prompt&model={model}", headers) as asked:
            assert b"canary" in asked.read_rest()
    wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_requests_total") == 2)
    with rill.ask("GET", "/metrics", ALICE) as asked:
        reported = asked.read_until(b"rill_requests_rejected_total{")
    (directory,) = tmp_path.glob("rill-metrics-*")
    kept = b"".join(file.read_bytes() for file in directory.iterdir())
    assert b"rill_requests_total" in reported
    assert b"rill_requests_total" in kept
    for secret in (b"canary", b"secret-of", b"sk-test-key"):
        assert secret not in reported
        assert secret not in kept


def test_without_gunicorn_the_metrics_are_those_of_the_process() -> None:
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    telemetry = Telemetry(named=False, models=[MODEL])
    telemetry.count_rejection(Problem("at_capacity"))
    assert parse_metrics(telemetry.render().decode()).of("rill_requests_rejected_total", reason="at_capacity") == 1


# The documents


def labels_by_name(rill: Rill, upstream: Upstream) -> dict[str, set[str]]:
    """Return the labels of each metric after an answer and an upstream error."""
    upstream.script(*STARTED, *REST["completed"])
    upstream.script(wire.error(529, "overloaded_error", "no", AT_ONCE))
    for _ in range(2):
        with ask(rill, "text", ALICE) as asked:
            asked.read_rest()
    look = wait_for(lambda: scrape(rill), lambda metrics: metrics.of("rill_upstream_errors_total") >= 1)
    found: dict[str, set[str]] = {}
    for name, pairs in look:
        found.setdefault(name, set()).update(label for label, _ in pairs)
    return found


def metric_of(name: str) -> str:
    """Return the name of the metric to which a series belongs."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_the_metrics_table_matches_the_service(rill: Rill, upstream: Upstream) -> None:
    served: dict[str, set[str]] = {}
    for name, labels in labels_by_name(rill, upstream).items():
        served.setdefault(metric_of(name), set()).update(labels - {"le"})
    section = MONITORING.split("## Metrics")[1].split("| fallback metric |")[0]
    rows = re.findall(r"^\| `(rill_\w+)` \|([^|]*)\|", section, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == served


def test_every_upstream_error_type_is_documented() -> None:
    (row,) = re.findall(r"^\| `rill_upstream_errors_total` \| `type` \| (.*) \|$", MONITORING, re.MULTILINE)
    names = {*UPSTREAM_TYPES.values(), *UPSTREAM_STATUSES.values(), "model_not_found", "start_timeout", "idle_timeout"}
    known = {name.removeprefix("upstream_") for name in {*KINDS} if name.startswith("upstream_") or name in names}
    assert set(re.findall(r"`(\w+)`", row)) == known


# The outcomes of an answer that has started.
STARTED_OUTCOMES = {*CANCELLATION_REASONS, *UPSTREAM_OUTCOMES, "completed", "upstream_error", "internal_error"} - {
    "start_timeout"
}


def test_the_outcomes_table_matches_the_service() -> None:
    section = MONITORING.split("## Outcomes")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == STARTED_OUTCOMES


def expressions() -> dict[str, str]:
    """Return every PromQL expression of the alerts and the dashboard, by its location."""
    found = {}
    for group in yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            found[f"alert {rule['alert']}"] = rule["expr"]
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


# The keywords and functions of PromQL that are used.
KEYWORDS = {"by", "sum", "rate", "histogram_quantile", "le", "increase", "scalar"}


def test_alerts_and_dashboard_use_only_existing_metrics(rill: Rill, upstream: Upstream) -> None:
    served = labels_by_name(rill, upstream)
    known = {label for labels in served.values() for label in labels}
    asked = expressions()
    assert len(asked) >= 11
    for location, expression in asked.items():
        bare = re.sub(r'"[^"]*"', "", expression)
        names = set(re.findall(r"\brill_\w+", bare))
        assert names, location
        assert names <= served.keys(), location
        labels = set(re.findall(r"\b([a-z_]+)\s*(?:=~|!~|!=|=)", bare))
        for grouped in re.findall(r"\bby\s*\(([^)]*)\)", bare):
            labels |= set(re.findall(r"\w+", grouped))
        assert labels <= {label for name in names for label in served[name]}, location
        others = set(re.findall(r"\b[a-z_]+\b", re.sub(r"\[[^\]]*\]", "", bare))) - names - known
        assert others <= KEYWORDS, location


def test_alerts_and_dashboard_use_only_existing_outcomes_and_reasons() -> None:
    named = set()
    for location, expression in expressions().items():
        for label, known in (("outcome", STARTED_OUTCOMES | set(KINDS)), ("reason", set(KINDS))):
            for values in re.findall(rf'\b{label}(?:=~|!~|!=|=)"([^"]*)"', expression):
                for value in values.split("|"):
                    meant = {name for name in known if re.fullmatch(value, name)}
                    assert meant, location
                    named |= meant
    # Every outcome of an incomplete answer is covered, unless the client ended it.
    assert named >= STARTED_OUTCOMES - {"client_disconnected", "client_stopped"}


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["id"] is None
    (variable,) = dashboard["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]


def test_every_alert_has_a_duration_a_severity_and_a_remedy() -> None:
    (group,) = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text("utf-8"))["groups"]
    assert len(group["rules"]) >= 3
    for rule in group["rules"]:
        assert rule["for"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert f"`{rule['alert']}`" in MONITORING
