"""One log line for each answer, whatever became of it."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("rill.answers")


def write_logs() -> None:
    """Sends the service's own log to stdout, one line a record; called once in each worker."""
    # A thread's name, which nobody reads, would cost the greenlet of each answer a dummy thread.
    logging.logThreads = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("rill")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


@dataclass(slots=True)
class Record:
    """What is known of one answer; times are monotonic, in seconds."""

    request_id: str
    dialect: str
    caller: str
    model: str = ""
    status: int = 500
    ending: str = "internal"
    stop_reason: str | None = None
    upstream_request_id: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    bytes_sent: int = 0
    begun: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        """Writes the line."""
        line = {
            "request_id": self.request_id,
            "upstream_request_id": self.upstream_request_id,
            "caller": self.caller,
            "dialect": self.dialect,
            "model": self.model,
            "status": self.status,
            "ending": self.ending,
            "stop_reason": self.stop_reason,
            "duration_ms": round((time.monotonic() - self.begun) * 1000),
            "input_tokens": self.usage.get("input_tokens"),
            "output_tokens": self.usage.get("output_tokens"),
            "bytes": self.bytes_sent,
        }
        log.info(json.dumps(line))
