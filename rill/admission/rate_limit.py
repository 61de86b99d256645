"""How often one client may ask."""

import math

from rill.admission.sliding_window import SlidingWindow
from rill.problems import Problem
from rill.quota import parse_quotas

# The names that clients know: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06
RATE_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")


class RateLimit:
    """The requests that one client may send: `rate` as in rill/quota.py; each of several quotas applies.

    With a `redis_url`, Redis counts for all workers and machines; while that Redis is lost, this worker counts for
    itself.
    """

    def __init__(self, rate: str, redis_url: str | None = None) -> None:
        self._quotas = parse_quotas(rate)
        self._windows = [SlidingWindow(quota) for quota in self._quotas]
        self._redis = None
        if redis_url:
            # 3 MB of a worker's memory, which a worker without REDIS_URL does not need.
            from rill.admission.redis import SharedCounts

            self._redis = SharedCounts(redis_url, self._quotas)

    def count(self, client: str) -> None:
        """Count one request; raise Problem, and count nothing, if a quota is used up."""
        waits = self._redis.count(client) if self._redis else None
        wait, quota = max(zip(waits or self._count_here(client), self._quotas, strict=True))
        if not wait:
            return
        seconds = max(1, math.ceil(wait))
        values = (quota.amount, 0, seconds, f"{quota.amount};w={quota.seconds}")
        headers = dict(zip(RATE_HEADERS, map(str, values), strict=True))
        raise Problem("rate_limited", f"At most {quota} for one client.", seconds, headers)

    def _count_here(self, client: str) -> list[float]:
        waits = [window.seconds_left(client) for window in self._windows]
        if not any(waits):
            for window in self._windows:
                window.add(client)
        return waits
