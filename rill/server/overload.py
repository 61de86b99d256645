"""What an overloaded worker sends to a new request for an answer, before it parses it."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

from rill.problems import Problem
from rill.server.paths import dialect_of
from rill.server.raw_response import raw_response

# The requests that start an answer; all others are cheap, or report the overload themselves.
_match_answer = re.compile(
    rb"(?:GET /(?:(?:chat/)?stream[ ?]|\?)|POST (/stream|/api/(?:chat|completion)|/v1/messages(?:/count_tokens)?"
    rb"|/v1/(?:chat/completions|responses))[ ?])"
).match
_find_origin = re.compile(rb"\r\norigin: *([^\r]+)\r", re.IGNORECASE).search
# When the client may try again.
RETRY_SECONDS = 5
LOG_SECONDS = 10.0

log = logging.getLogger("rill")


class Overloaded(Exception):
    """Raised for a request that gets `response` instead of an answer."""

    def __init__(self, response: bytes) -> None:
        super().__init__("overloaded")
        self.response = response


class Overload:
    """Rejects requests for answers. `origins` may read that, and `count` is called with each problem."""

    def __init__(self, origins: Sequence[str], count: Callable[[Problem], None]) -> None:
        self._origins = frozenset(map(str.lower, origins))
        self._count = count
        self._logged = 0.0

    def rejection(self, head: bytes | bytearray) -> bytes | None:
        """Return the response to a request that begins with these bytes; None if it does not ask for an answer."""
        asked = _match_answer(head)
        if asked is None:
            return None
        problem = Problem("overloaded", retry_after=RETRY_SECONDS)
        self._count(problem)
        self._log()
        request_id, path = uuid4().hex, (asked[1] or b"").decode()
        headers = {"Retry-After": str(RETRY_SECONDS), "X-Request-Id": request_id, **self._cors_of(head)}
        if path.startswith("/v1/"):
            dialect = dialect_of(path, is_anthropic=False)
            assert dialect.encode_problem
            body, headers["Content-Type"] = dialect.encode_problem(problem, request_id), "application/json"
        else:
            body = f"{problem.detail}\n".encode()
        return raw_response("503 Service Unavailable", body, headers)

    def _cors_of(self, head: bytes | bytearray) -> dict[str, str]:
        if "*" in self._origins:
            return {"Access-Control-Allow-Origin": "*"}
        found = _find_origin(head) if self._origins else None
        origin = found[1].decode("latin-1").strip() if found else ""
        allowed = {"Access-Control-Allow-Origin": origin} if origin.lower() in self._origins else {}
        return {"Vary": "Origin", **allowed} if self._origins else {}

    def _log(self) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            log.warning("the worker does not keep up with its clients: it rejects requests for answers")
