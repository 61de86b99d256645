"""What is known of one answer, as it is logged and counted."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


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
