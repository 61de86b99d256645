"""The facts about one answer that are logged and counted."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rill.problems import CANCELLATION_REASONS


@dataclass(slots=True)
class Record:
    """The facts about one answer; `begun` and `first_text` are monotonic, in seconds.

    `model` and `upstream` are those that answered, or were asked last; `attempts` counts the requests to upstreams.
    `resumptions` is None for an answer that was not recorded.
    """

    request_id: str
    dialect: str
    client: str
    requested_model: str
    model: str = ""
    upstream: str | None = None
    attempts: int = 0
    status: int = 500
    outcome: str = "internal_error"
    stop_reason: str | None = None
    upstream_request_id: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    charged_tokens: int | None = None
    first_text: float | None = None
    bytes_sent: int = 0
    resumptions: int | None = None
    replayed_bytes: int = 0
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.model = self.requested_model

    def note_attempt(self, upstream: str, model: str) -> None:
        """Note that the model is asked at the upstream."""
        self.upstream, self.model = upstream, model
        self.attempts += 1

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
            "requested_model": self.requested_model,
            "model": self.model,
            "upstream": self.upstream,
            "attempts": self.attempts,
            "status": self.status,
            "outcome": self.outcome,
            "stop_reason": self.stop_reason,
            "cancelled": self.outcome in CANCELLATION_REASONS,
            "ttft_ms": None if self.ttft is None else round(self.ttft * 1000),
            "duration_ms": round((time.monotonic() - self.begun) * 1000),
            "input_tokens": self.usage.get("input_tokens"),
            "output_tokens": self.usage.get("output_tokens"),
            "cache_read_tokens": self.usage.get("cache_read_input_tokens"),
            "cache_write_tokens": self.usage.get("cache_creation_input_tokens"),
            "charged_tokens": self.charged_tokens,
            "bytes": self.bytes_sent,
        }
        if self.resumptions is not None:
            fields |= {"resumptions": self.resumptions, "replayed_bytes": self.replayed_bytes}
        return fields
