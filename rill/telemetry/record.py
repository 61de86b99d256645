"""The facts about one answer that are logged and counted."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rill.problems import CANCELLATION_REASONS


@dataclass(slots=True)
class Record:
    """The facts about one answer; `begun` and `first_text` are monotonic, in seconds.

    `resumptions` is None for an answer that was not recorded.
    """

    request_id: str
    dialect: str
    client: str
    model: str
    status: int = 500
    outcome: str = "internal_error"
    stop_reason: str | None = None
    upstream_request_id: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    first_text: float | None = None
    bytes_sent: int = 0
    resumptions: int | None = None
    replayed_bytes: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def ttft(self) -> float | None:
        """Seconds until the first text, None if there was none."""
        return None if self.first_text is None else self.first_text - self.begun

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of the log line."""
        fields = {
            "request_id": self.request_id,
            "upstream_request_id": self.upstream_request_id,
            "client": self.client,
            "dialect": self.dialect,
            "model": self.model,
            "status": self.status,
            "outcome": self.outcome,
            "stop_reason": self.stop_reason,
            "cancelled": self.outcome in CANCELLATION_REASONS,
            "ttft_ms": None if self.ttft is None else round(self.ttft * 1000),
            "duration_ms": round((time.monotonic() - self.begun) * 1000),
            "input_tokens": self.usage.get("input_tokens"),
            "output_tokens": self.usage.get("output_tokens"),
            "bytes": self.bytes_sent,
        }
        if self.resumptions is not None:
            fields |= {"resumptions": self.resumptions, "replayed_bytes": self.replayed_bytes}
        return fields
