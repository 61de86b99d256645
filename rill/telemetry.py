"""What is told of each answer, whatever became of it: one log line, and the numbers of /metrics."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from structlog.typing import ExcInfo

from rill.problems import Problem

# Libraries that log what they send, prompts and all, where ANTHROPIC_LOG or a logging configuration asks for it.
TALKATIVE = ("anthropic", "httpx2", "httpcore2")
BEGINNING_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
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
                structlog.processors.ExceptionRenderer(_tell_where),
                human if stream.isatty() else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger("rill")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


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
    ending: str = "internal"
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
            "cancelled": self.watch.why is not None and self.ending != "done",
            "first_text_ms": None if first_text is None else round((first_text - self.begun) * 1000),
            "duration_ms": round((time.monotonic() - self.begun) * 1000),
            "input_tokens": self.usage.get("input_tokens"),
            "output_tokens": self.usage.get("output_tokens"),
            "bytes": self.bytes_sent,
        }


class Telemetry:
    """The numbers of one worker; with PROMETHEUS_MULTIPROC_DIR they are those of all workers.

    Every label has few values: callers go by the names of tokens, so `named` says whether there are any, and models
    that are not among `models` are `other`.
    """

    def __init__(self, named: bool, models: Sequence[str]) -> None:
        self._named = named
        self._models = frozenset(models)
        self._registry = registry = CollectorRegistry()
        labels = ["caller", "dialect", "model", "ending"]
        self._answers = Counter("rill_answers", "Answers, by how they ended", labels, registry=registry)
        self._open = Gauge("rill_open_streams", "Answers open now", multiprocess_mode="livesum", registry=registry)

        def timed(name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"rill_{name}_seconds", meaning, ["dialect"], buckets=buckets, registry=registry)

        self._first_event = timed("first_event", "Until the upstream's first event", BEGINNING_SECONDS)
        self._first_text = timed("first_text", "Until the model's first text", BEGINNING_SECONDS)
        self._duration = timed("duration", "From the request to the end of its answer", DURATION_SECONDS)
        meaning = "Tokens as the upstream counted them, also of answers that were cut"
        self._tokens = Counter("rill_tokens", meaning, ["caller", "model", "direction"], registry=registry)
        self._bytes = Counter("rill_sent_bytes", "Bytes of answers", ["dialect"], registry=registry)
        meaning = "Answers that the upstream failed, by how"
        self._upstream_errors = Counter("rill_upstream_errors", meaning, ["type"], registry=registry)
        self._refusals = Counter("rill_refusals", "Requests that got no answer, by cause", ["cause"], registry=registry)

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
        """Counts the problem if it is the upstream's, as `overloaded`, `timeout`, `truncated` ..."""
        if problem.name.startswith("upstream_"):
            self._upstream_errors.labels(problem.name.removeprefix("upstream_")).inc()

    def render(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _count(self, record: Record) -> None:
        caller = record.caller if self._named else ""
        model = record.model if record.model in self._models else "other"
        dialect = record.dialect
        self._answers.labels(caller, dialect, model, record.ending).inc()
        self._duration.labels(dialect).observe(time.monotonic() - record.begun)
        self._bytes.labels(dialect).inc(record.bytes_sent)
        for came, histogram in (
            (record.watch.first_event, self._first_event),
            (record.watch.first_text, self._first_text),
        ):
            if came is not None:
                histogram.labels(dialect).observe(came - record.begun)
        for direction in ("input", "output"):
            tokens = record.usage.get(f"{direction}_tokens")
            if isinstance(tokens, int) and 0 < tokens < 2**53:
                self._tokens.labels(caller, model, direction).inc(tokens)
