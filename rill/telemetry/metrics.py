"""The metrics of /metrics, and the log line of each answer."""

import logging
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache

import gevent
from gevent.lock import BoundedSemaphore
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from rill.credentials import JWT_CLIENT
from rill.problems import Problem
from rill.telemetry import metrics_files
from rill.telemetry.log_stream import count_dropped_lines
from rill.telemetry.record import Record
from rill.telemetry.series_budget import SeriesBudget

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

log = logging.getLogger("rill.answers")


class Telemetry:
    """The metrics of one worker, or of all workers if they share files (rill/telemetry/metrics_files.py).

    Every label has few values: clients are names of API keys or `jwt`, if they are `named`, and models that are not in
    `models` are `other`. If there would still be too many series, further ones are counted under `other`.
    """

    def __init__(self, named: bool, models: Sequence[str]) -> None:
        _choose_values()
        self._budget = SeriesBudget(metrics_files.counter_file())
        self._answers_of = lru_cache(CACHED_SERIES)(self._find_answers)
        self._tokens_of = lru_cache(CACHED_SERIES)(self._find_tokens)
        self._rendering = BoundedSemaphore(1)
        self._named = named
        self._models = frozenset(models)
        self._registry = registry = CollectorRegistry()
        labels = ["client", "dialect", "model", "outcome"]
        self._answers = Counter("rill_requests", "Answers, by outcome", labels, registry=registry)
        self._open = Gauge("rill_streams_active", "Open answers", multiprocess_mode="livesum", registry=registry)
        self._open.set(0)  # The files may hold the number of a worker that was killed.

        def timed(name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"rill_{name}_seconds", meaning, ["dialect"], buckets=buckets, registry=registry)

        self._ttft = timed("time_to_first_token", "From the request to the model's first text", TTFT_SECONDS)
        self._duration = timed("request_duration", "From the request to the end of its answer", DURATION_SECONDS)
        meaning = "Tokens as the upstream counted them, also of truncated answers"
        self._tokens = Counter("rill_tokens", meaning, ["client", "model", "type"], registry=registry)
        self._bytes = Counter("rill_response_bytes", "Bytes of answers", ["dialect"], registry=registry)
        meaning = "Errors of the upstream, by type"
        self._upstream_errors = Counter("rill_upstream_errors", meaning, ["type"], registry=registry)
        self._rejections = Counter(
            "rill_requests_rejected",
            "Requests that were rejected before an answer, by reason",
            ["reason"],
            registry=registry,
        )
        meaning = "Log lines that were dropped, because a write would have blocked"
        self._lines_dropped = Counter("rill_log_lines_dropped", meaning, registry=registry)
        self._lines_dropped_before = 0

    def begin(self) -> None:
        """Count an answer as open, until `end`."""
        self._open.inc()

    def end(self, record: Record) -> None:
        """Write the log line of an answer, and count it."""
        self._open.dec()
        log.info("answer", extra=record.as_fields())
        self._count(record)

    def count_rejection(self, problem: Problem) -> None:
        """Count a request that was rejected."""
        self._rejections.labels(problem.name).inc()

    def count_upstream_error(self, problem: Problem) -> None:
        """Count the problem if the upstream caused or reported it, as `overloaded`, `truncated`, `bad_request` ..."""
        if problem.from_upstream:
            self._upstream_errors.labels(problem.name.removeprefix("upstream_")).inc()

    def render(self) -> bytes:
        """Return all metrics in Prometheus' format, without delaying open answers."""
        with self._rendering:
            self._count_dropped_lines()
            if metrics_files.directory:
                rendered: bytes = gevent.get_hub().threadpool.apply(_render_files, (metrics_files.directory,))
                return rendered
            parts = []
            for metric in self._registry.collect():
                parts.append(generate_latest(Collected([metric])))
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
        model = record.model if record.model in self._models else "other"
        dialect = record.dialect
        self._answers_of(client, model, dialect, record.outcome).inc()
        self._duration.labels(dialect).observe(time.monotonic() - record.begun)
        self._bytes.labels(dialect).inc(record.bytes_sent)
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


class Collected(Collector):
    """A collector of metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


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


def _render_files(directory: str) -> bytes:
    collector = MultiProcessCollector(None, directory)  # type: ignore[no-untyped-call]
    return generate_latest(Collected(collector.collect()))  # type: ignore[no-untyped-call]
