"""The metrics of /metrics, and the log line of each answer."""

import logging
import time
from collections.abc import Sequence
from functools import lru_cache, partial

import gevent
from gevent.lock import BoundedSemaphore
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from rill.credentials import JWT_CLIENT
from rill.problems import Problem
from rill.telemetry import metrics_files
from rill.telemetry.fallback_metrics import FallbackMetrics
from rill.telemetry.log_stream import count_dropped_lines
from rill.telemetry.record import Record
from rill.telemetry.series_budget import OTHER, SeriesBudget

TTFT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
# The label `type` of rill_tokens_total -> the field of the Messages API's usage.
TOKEN_TYPES = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_input_tokens",
    "cache_write": "cache_creation_input_tokens",
}
# Series that are kept at hand, because prometheus_client finds one slowly.
CACHED_SERIES = 4096
DURATION_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)

LINE = {"name": "rill.answers", "msg": "answer", "levelno": logging.INFO, "levelname": "INFO"}

log = logging.getLogger("rill.answers")


class Telemetry:
    """The metrics of one worker, or of all workers if they share files (rill/telemetry/metrics_files.py).

    Every label has few values: clients are names of API keys or `jwt`, if they are `named`, and models that are not in
    `models` are `other`. If there would still be too many series, further ones are counted under `other`.
    """

    def __init__(self, named: bool, models: Sequence[str], has_fallbacks: bool = False) -> None:
        _choose_values()
        self._budget = SeriesBudget(metrics_files.counter_file())
        self._answers_of = lru_cache(CACHED_SERIES)(self._find_answers)
        self._tokens_of = lru_cache(CACHED_SERIES)(self._find_tokens)
        self._rendering = BoundedSemaphore(1)
        self._named = named
        self._models = frozenset(models)
        counter, timer = partial(Counter, registry=None), partial(Histogram, labelnames=["dialect"], registry=None)
        self._answers = counter("rill_requests", "Answers, by outcome", ["client", "dialect", "model", "outcome"])
        self._open = Gauge("rill_streams_active", "Open answers", multiprocess_mode="livesum", registry=None)
        self._open.set(0)  # The files may hold the number of a worker that was killed.
        meaning = "From the request to the model's first text"
        self._ttft = timer("rill_time_to_first_token_seconds", meaning, buckets=TTFT_SECONDS)
        meaning = "From the request to the end of its answer"
        self._duration = timer("rill_request_duration_seconds", meaning, buckets=DURATION_SECONDS)
        meaning = "Tokens as the upstream counted them, also of truncated answers"
        self._tokens = counter("rill_tokens", meaning, ["client", "model", "type"])
        self._bytes = counter("rill_response_bytes", "Bytes of answers", ["dialect"])
        self._upstream_errors = counter("rill_upstream_errors", "Errors of the upstream, by type", ["type"])
        meaning = "Requests that were rejected before an answer, by reason"
        self._rejections = counter("rill_requests_rejected", meaning, ["reason"])
        meaning = "Log lines that were dropped, because a write would have blocked"
        self._lines_dropped = counter("rill_log_lines_dropped", meaning)
        self._lines_dropped_before = 0
        self._metrics = [each for each in vars(self).values() if isinstance(each, Counter | Gauge | Histogram)]
        self._fallbacks = FallbackMetrics(self._budget) if has_fallbacks else None
        self._metrics += self._fallbacks.metrics if self._fallbacks else []

    def begin(self) -> None:
        """Count an answer as open, until `end`."""
        self._open.inc()

    def end(self, record: Record) -> None:
        """Write the log line of an answer, and count it."""
        self._open.dec()
        # `log.info` would search the stack for the caller, at half the cost of the line.
        log.handle(logging.makeLogRecord({**LINE, **record.as_fields()}))
        self._count(record)

    def count_rejection(self, problem: Problem) -> None:
        """Count a request that was rejected."""
        self._rejections.labels(problem.name).inc()

    def count_upstream_error(self, problem: Problem) -> None:
        """Count the problem if the upstream caused or reported it, as `overloaded`, `truncated`, `bad_request` ..."""
        if problem.from_upstream:
            self._upstream_errors.labels(problem.name.removeprefix("upstream_")).inc()

    def count_attempt(self, upstream: str) -> None:
        """Count a request to an upstream, if there are fallbacks."""
        if self._fallbacks:
            self._fallbacks.count_attempt(upstream)

    def count_circuit(self, upstream: str, scope: str, is_open: bool) -> None:
        """Count a circuit that opened or closed."""
        if self._fallbacks:
            self._fallbacks.count_circuit(upstream, scope, is_open)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' format, without delaying open answers."""
        with self._rendering:
            self._count_dropped_lines()
            if metrics_files.directory:
                files = MultiProcessCollector(None, metrics_files.directory)  # type: ignore[no-untyped-call]
                rendered: bytes = gevent.get_hub().threadpool.apply(generate_latest, (files,))
                return rendered
            parts = []
            for metric in self._metrics:
                parts.append(generate_latest(metric))
                gevent.sleep(0)
            return b"".join(parts)

    def _count_dropped_lines(self) -> None:
        # Not when a line is dropped: prometheus_client may hold its lock then.
        dropped = count_dropped_lines()
        if dropped > self._lines_dropped_before:
            self._lines_dropped.inc(dropped - self._lines_dropped_before)
            self._lines_dropped_before = dropped

    def _count(self, record: Record) -> None:
        self._count_dropped_lines()
        client = record.client if self._named else ""
        if client.startswith(f"{JWT_CLIENT}:"):
            client = JWT_CLIENT
        model = record.model if record.model in self._models else OTHER
        dialect = record.dialect
        self._answers_of(client, model, dialect, record.outcome).inc()
        self._duration.labels(dialect).observe(time.monotonic() - record.begun)
        self._bytes.labels(dialect).inc(record.bytes_sent)
        if self._fallbacks and record.upstream and record.status == 200:
            requested = record.requested_model if record.requested_model in self._models else OTHER
            self._fallbacks.count_answer(requested, model, record.upstream)
        if record.ttft is not None:
            self._ttft.labels(dialect).observe(record.ttft)
        for type, name in TOKEN_TYPES.items():
            tokens = record.usage.get(name)
            if isinstance(tokens, int) and 0 < tokens < 2**53:
                self._tokens_of(client, model, type).inc(tokens)

    def _find_answers(self, client: str, model: str, dialect: str, outcome: str) -> Counter:
        client, model = self._budget.fit(client, model, dialect, outcome)
        return self._answers.labels(client, dialect, model, outcome)

    def _find_tokens(self, client: str, model: str, type: str) -> Counter:
        client, model = self._budget.fit(client, model, series=len(TOKEN_TYPES))
        return self._tokens.labels(client, model, type)


def _choose_values() -> None:
    """Make prometheus_client count in this worker's files, or in memory if it has none.

    By itself it chooses when it is imported, which is before there are workers.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    slot = metrics_files.slot
    if slot is None:
        values.ValueClass = values.MutexValue
    else:
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
