"""How often one client may ask."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rill.admission.sliding_window import SlidingWindow
from rill.problems import Problem
from rill.quota import parse_quotas

if TYPE_CHECKING:
    from rill.admission.redis import SharedCounts

# The names that clients know: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06
RATE_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")
# How long a rejection by Redis is remembered, for so many clients.
RECENT_SECONDS = 1.0
MAX_RECENT = 10_000


class RateLimit:
    """The requests that one client may send: `rate` as in rill/quota.py; each of several quotas applies.

    With `shared`, Redis counts for all workers and machines; while that Redis is lost, this worker counts for itself.
    """

    def __init__(self, rate: str, shared: "SharedCounts | None" = None) -> None:
        self._quotas = parse_quotas(rate)
        self._windows = [SlidingWindow(quota) for quota in self._quotas]
        self._shared = shared
        # Client -> until when a rejection is remembered (monotonic, in seconds), and the seconds left of each quota.
        self._recent: dict[str, tuple[float, Sequence[float]]] = {}

    def count(self, client: str) -> None:
        """Count one request; raise Problem, and count nothing, if a quota is used up."""
        waits = self._shared.count(client) if self._shared else None
        if waits is None:
            self.count_here(client)
        else:
            self.check(client, waits)

    def count_here(self, client: str) -> None:
        """Count one request in this worker; raise Problem, and count nothing, if a quota is used up."""
        waits = [window.seconds_left(client) for window in self._windows]
        if not any(waits):
            for window in self._windows:
                window.add(client)
        self._check(waits)

    def check(self, client: str, waits: Sequence[float]) -> None:
        """Raise Problem if Redis has rejected a request; `waits` are the seconds left of each quota."""
        if any(waits):
            if len(self._recent) >= MAX_RECENT:
                self._recent.clear()
            self._recent[client] = time.monotonic() + min(RECENT_SECONDS, max(waits)), waits
        self._check(waits)

    def check_recent(self, client: str) -> None:
        """Raise Problem if Redis has rejected a request of the client just now: its next one is not even read."""
        until, waits = self._recent.get(client, (0.0, ()))
        if until:
            if time.monotonic() < until:
                self._check(waits)
            del self._recent[client]

    def _check(self, waits: Sequence[float]) -> None:
        wait, quota = max(zip(waits, self._quotas, strict=True))
        if not wait:
            return
        seconds = max(1, math.ceil(wait))
        values = (quota.amount, 0, seconds, f"{quota.amount};w={quota.seconds}")
        headers = dict(zip(RATE_HEADERS, map(str, values), strict=True))
        raise Problem("rate_limited", f"At most {quota} for one client.", seconds, headers)
