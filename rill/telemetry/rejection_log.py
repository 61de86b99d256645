"""The log lines of requests without a valid API key or to an unknown path, at most a few a second."""

import logging
import time

from rill.problems import Problem

MAX_LINES_PER_SECOND = 5
MAX_SEGMENTS = 8
# The segments of a path that are logged; any other may be a prompt or an API key.
# fmt: off
SEGMENTS = frozenset((
    "", "api", "anthropic", "apple-touch-icon.png", "chat", "completion", "completions", "count_tokens",
    "docs", "drip", "favicon.ico", "generate", "health", "healthz", "index.html", "messages", "metrics",
    "models", "openai", "openapi.json", "ready", "readyz", "responses", "robots.txt", "stream", "usage", "v1",
    "v2",
))
# fmt: on

log = logging.getLogger("rill.rejections")


class RejectionLog:
    """Writes at most MAX_LINES_PER_SECOND; the next line has the number of lines that were left out."""

    def __init__(self) -> None:
        self._second = 0
        self._written = 0
        self._left_out = 0

    def write(self, problem: Problem, path: str, **fields: str) -> None:
        """Log a rejection with the well-known segments of its path; any other segment is `*`."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= MAX_LINES_PER_SECOND:
            self._left_out += 1
            return
        self._written += 1
        shown = "/".join(segment if segment in SEGMENTS else "*" for segment in path.split("/", MAX_SEGMENTS))
        extra = {**fields, "status": problem.status, "problem": problem.name, "path": shown}
        log.warning("rejected", extra={**extra, "left_out": self._left_out})
        self._left_out = 0
