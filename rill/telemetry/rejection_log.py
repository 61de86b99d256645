"""A line in the log for a request without a valid API key or to an unknown path, a few a second at most."""

import logging
import time

from rill.problems import Problem

LINES_A_SECOND = 5
MOST_SEGMENTS = 8
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
    """Writes at most LINES_A_SECOND lines a second, and says in the next one how many it left out."""

    def __init__(self) -> None:
        self._second = 0
        self._written = 0
        self._left_out = 0

    def write(self, problem: Problem, path: str, **fields: str) -> None:
        """Log the refusal with those segments of its path that are well known, and `*` for any other."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= LINES_A_SECOND:
            self._left_out += 1
            return
        self._written += 1
        shown = "/".join(segment if segment in SEGMENTS else "*" for segment in path.split("/", MOST_SEGMENTS))
        extra = {**fields, "status": problem.status, "problem": problem.name, "path": shown}
        log.warning("refused", extra={**extra, "left_out": self._left_out})
        self._left_out = 0
