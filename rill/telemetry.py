"""What is told of each answer, whatever became of it: one log line, and the numbers of /metrics."""

import logging
import re
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import gevent
import structlog
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
from structlog.typing import EventDict, ExcInfo

from rill import metrics_files
from rill.log_stream import count_dropped_lines
from rill.problems import Problem
from rill.series_budget import SeriesBudget

# Libraries that log what they send, prompts and all, where ANTHROPIC_LOG or a logging configuration asks for it.
TALKATIVE = ("anthropic", "httpx2", "httpcore2")
BEGINNING_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
DIRECTIONS = ("input", "output")
# Series that are found without a search.
CACHED_SERIES = 4096
DURATION_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)

log = logging.getLogger("rill.answers")


def write_logs(stream: Any = sys.stdout, level: int = logging.INFO) -> None:
    """Sends the service's own log to `stream`: JSON, a line a record, or what a human reads where it is a terminal."""
    # A thread's name, which nobody reads, would cost the greenlet of each answer a dummy thread.
    logging.logThreads = False
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    human = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.ExtraAdder(),
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper("iso"),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Before the traceback, whose lines are no client's; JSON escapes whatever is not ASCII by itself.
                *([_escape_controls] if stream.isatty() else []),
                structlog.processors.ExceptionRenderer(_tell_where),
                human if stream.isatty() else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger("rill")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


# C0 and C1 controls and DEL, which steer a terminal; bidirectional controls, which reorder what it shows; separators of
# lines, and surrogates, which no encoding can write. https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape_controls(logger: Any, method: str, fields: EventDict) -> EventDict:
    """Escape what could steer a terminal in the names and values of a record: a client chooses some of them."""

    def escape(value: Any) -> Any:
        # Of any other type structlog writes the repr, which escapes it.
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", value) if isinstance(value, str) else value

    return {escape(name): escape(value) for name, value in fields.items()}


def _tell_where(exc_info: ExcInfo) -> str:
    """The kind of an exception and where it was raised, without its words: they may hold a prompt."""
    return "".join(traceback.format_tb(exc_info[2])) + exc_info[0].__name__


class Watch(Protocol):
    """The watch over an answer: when its first event and text came (monotonic, in seconds), and what ended it early."""

    first_event: float | None
    first_text: float | None
    why: str | None


class NoWatch:
    """That over an answer which was never asked for."""

    first_event: float | None = None
    first_text: float | None = None
    why: str | None = None


NO_WATCH = NoWatch()


@dataclass(slots=True)
class Record:
    """What is known of one answer; `begun` is monotonic, in seconds."""

    request_id: str
    dialect: str
    caller: str
    model: str
    status: int = 500
    ending: str = "internal_error"
    stop_reason: str | None = None
    upstream_request_id: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch = NO_WATCH
    bytes_sent: int = 0
    begun: float = field(default_factory=time.monotonic)

    def as_fields(self) -> dict[str, Any]:
        """The fields of the log line."""
        first_text = self.watch.first_text
        return {
            "request_id": self.request_id,
            "upstream_request_id": self.upstream_request_id,
            "caller": self.caller,
            "dialect": self.dialect,
            "model": self.model,
            "status": self.status,
            "ending": self.ending,
            "stop_reason": self.stop_reason,
            # After the end only the upstream's last bytes are awaited: who leaves then has all of it.
            "cancelled": self.watch.why is not None and self.ending != "completed",
            "first_text_ms": None if first_text is None else round((first_text - self.begun) * 1000),
            "duration_ms": round((time.monotonic() - self.begun) * 1000),
            "input_tokens": self.usage.get("input_tokens"),
            "output_tokens": self.usage.get("output_tokens"),
            "bytes": self.bytes_sent,
        }


class Telemetry:
    """The metrics of one worker, or of all workers where they share files (rill/metrics_files.py).

    Every label has few values: callers go by the names of tokens, so `named` says whether there are any, and models
    that are not among `models` are `other`. What would be too many series all the same is counted under `other`.
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
        labels = ["caller", "dialect", "model", "ending"]
        self._answers = Counter("rill_answers", "Answers, by how they ended", labels, registry=registry)
        self._open = Gauge("rill_open_streams", "Answers open now", multiprocess_mode="livesum", registry=registry)
        self._open.set(0)  # A worker that was killed may have left its own.

        def timed(name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"rill_{name}_seconds", meaning, ["dialect"], buckets=buckets, registry=registry)

        self._first_event = timed("first_event", "Until the upstream's first event", BEGINNING_SECONDS)
        self._first_text = timed("first_text", "Until the model's first text", BEGINNING_SECONDS)
        self._duration = timed("duration", "From the request to the end of its answer", DURATION_SECONDS)
        meaning = "Tokens as the upstream counted them, also of answers that were cut"
        self._tokens = Counter("rill_tokens", meaning, ["caller", "model", "direction"], registry=registry)
        self._bytes = Counter("rill_sent_bytes", "Bytes of answers", ["dialect"], registry=registry)
        meaning = "Errors of the upstream, by type"
        self._upstream_errors = Counter("rill_upstream_errors", meaning, ["type"], registry=registry)
        self._refusals = Counter("rill_refusals", "Requests that got no answer, by cause", ["cause"], registry=registry)
        meaning = "Log lines that workers could not write without waiting"
        self._lines_dropped = Counter("rill_log_lines_dropped", meaning, registry=registry)
        self._lines_dropped_before = 0

    def begin(self) -> None:
        """Counts an answer as open, until `end`."""
        self._open.inc()

    def end(self, record: Record) -> None:
        """Writes the answer's line, and counts what it was."""
        self._open.dec()
        log.info("answer", extra=record.as_fields())
        self._count(record)

    def count_refusal(self, problem: Problem) -> None:
        """Counts a request that got no answer."""
        self._refusals.labels(problem.name).inc()

    def count_upstream_error(self, problem: Problem) -> None:
        """Count the problem if the upstream caused or reported it, as `overloaded`, `truncated`, `bad_request` ..."""
        if problem.from_upstream:
            self._upstream_errors.labels(problem.name.removeprefix("upstream_")).inc()

    def render(self) -> bytes:
        """Return all metrics, as Prometheus reads them; meanwhile other answers go on."""
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
        # Not at the drop itself, which may happen anywhere: also while prometheus_client holds its lock.
        dropped = count_dropped_lines()
        if dropped > self._lines_dropped_before:
            self._lines_dropped.inc(dropped - self._lines_dropped_before)
            self._lines_dropped_before = dropped

    def _count(self, record: Record) -> None:
        self._count_dropped_lines()
        caller = record.caller if self._named else ""
        model = record.model if record.model in self._models else "other"
        dialect = record.dialect
        self._answers_of(caller, model, dialect, record.ending).inc()
        self._duration.labels(dialect).observe(time.monotonic() - record.begun)
        self._bytes.labels(dialect).inc(record.bytes_sent)
        for came, histogram in (
            (record.watch.first_event, self._first_event),
            (record.watch.first_text, self._first_text),
        ):
            if came is not None:
                histogram.labels(dialect).observe(came - record.begun)
        for direction in DIRECTIONS:
            tokens = record.usage.get(f"{direction}_tokens")
            if isinstance(tokens, int) and 0 < tokens < 2**53:
                self._tokens_of(caller, model, direction).inc(tokens)

    def _find_answers(self, caller: str, model: str, dialect: str, ending: str) -> Counter:
        caller, model = self._budget.fit(caller, model, dialect, ending)
        return self._answers.labels(caller, dialect, model, ending)

    def _find_tokens(self, caller: str, model: str, direction: str) -> Counter:
        caller, model = self._budget.fit(caller, model, series=len(DIRECTIONS))
        return self._tokens.labels(caller, model, direction)


class Collected(Collector):
    """Metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _choose_values() -> None:
    """Have prometheus_client count in this worker's files, or in memory if it has none.

    It chooses by itself, but when it is imported, which may be before there are workers.
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
