"""The service with a tracer that prints its spans, for tests only: `gunicorn traced:app`.

With TRACER=late the tracer is set after the service was created, which is too late.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

_numbers = itertools.count(1)


class Span(trace.Span):
    def __init__(self, name: str, attributes: Mapping[str, Any] | None) -> None:
        self._context = SpanContext(next(_numbers), next(_numbers), False, TraceFlags(TraceFlags.SAMPLED))
        self._fields: dict[str, Any] = {"name": name, "attributes": dict(attributes or {}), "status": "UNSET"}
        self._open = True
        self._print("begun")

    def end(self, end_time: int | None = None) -> None:
        self._open = False
        self._print("ended")

    def get_span_context(self) -> SpanContext:
        return self._context

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._fields["attributes"].update(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._fields["attributes"][key] = value

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._fields.setdefault("events", []).append([name, str(attributes)])

    def update_name(self, name: str) -> None:
        self._fields["name"] = name

    def is_recording(self) -> bool:
        return self._open

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._fields["status"] = (status.status_code if isinstance(status, Status) else status).name
        self._fields["description"] = description or (status.description if isinstance(status, Status) else None)

    def record_exception(self, exception: BaseException, *arguments: Any, **options: Any) -> None:
        self.add_event("exception", str(exception))

    def _print(self, what: str) -> None:
        print(json.dumps({"span": f"{self._context.span_id:016x}", "what": what, **self._fields}), flush=True)


class Tracer(trace.Tracer):
    def start_span(self, name: str, context: Any = None, kind: Any = None, attributes: Any = None, **_: Any) -> Span:
        return Span(name, attributes)

    @contextmanager
    def start_as_current_span(self, name: str, *arguments: Any, **options: Any) -> Iterator[Span]:
        with trace.use_span(Span(name, None)) as span:
            yield span


class TracerProvider(trace.TracerProvider):
    def get_tracer(self, *arguments: Any, **options: Any) -> Tracer:
        return Tracer()


late = os.environ.get("TRACER") == "late"
if not late:
    trace.set_tracer_provider(TracerProvider())

from wsgi import app  # noqa: E402 (the service looks for a tracer when it is created)

if late:
    trace.set_tracer_provider(TracerProvider())

__all__ = ["app"]
