"""How often one client may ask."""

import logging
import math
import time

from gevent.lock import BoundedSemaphore
from limits import RateLimitItem, parse_many
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from rill.problems import Problem

# The names that clients know: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06
RATE_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")
# Counting takes a fraction of a millisecond; a Redis that takes this long would hold up every client.
REDIS_SECONDS = 0.25
REDIS_CONNECTIONS = 8
# How long a worker counts for itself before it asks a lost Redis again.
RETRY_SECONDS = 3.0

# A limit that is used up, and the seconds until it admits a further request.
Exceeded = tuple[RateLimitItem, float]

log = logging.getLogger(__name__)


class RateLimit:
    """How often one client may ask: `rate` as in 60/minute, or several of them joined by a semicolon, which all apply.

    Where `redis_url` is given it is counted there, for all workers and machines; while that Redis is lost, this worker
    counts for itself.
    """

    def __init__(self, rate: str, redis_url: str | None = None) -> None:
        # The shortest window first: what it rejects is not counted in a longer one, which would take longer to recover.
        self._limits = sorted(parse_many(rate), key=RateLimitItem.get_expiry)
        self._own = SlidingWindowCounterRateLimiter(Counters())
        self._shared = SlidingWindowCounterRateLimiter(_open_redis(redis_url)) if redis_url else None
        self._turns = BoundedSemaphore(REDIS_CONNECTIONS)
        self._lost = False
        self._ask_redis_at = 0.0  # monotonic, in seconds

    def count(self, client: str) -> None:
        """Counts one request; raises Problem where it is one too many."""
        exceeded = self._hit_redis(self._shared, client) if self._shared else self._hit(self._own, client)
        if exceeded is None:
            return
        limit, wait = exceeded
        seconds = max(1, math.ceil(wait))
        values = (limit.amount, 0, seconds, f"{limit.amount};w={limit.get_expiry()}")
        headers = dict(zip(RATE_HEADERS, map(str, values), strict=True))
        raise Problem("rate_limited", f"At most {limit} for one client.", seconds, headers)

    def _hit(self, window: SlidingWindowCounterRateLimiter, client: str) -> Exceeded | None:
        for limit in self._limits:
            if not window.hit(limit, client):
                return limit, window.get_window_stats(limit, client).reset_time - time.time()
        return None

    def _hit_redis(self, shared: SlidingWindowCounterRateLimiter, client: str) -> Exceeded | None:
        # In a burst each waits for its turn, which is no sign that Redis is lost: its timeouts begin with the turn.
        with self._turns:
            if time.monotonic() < self._ask_redis_at:
                return self._hit(self._own, client)
            was_lost = self._lost
            if was_lost:
                # One client looks whether it is back; no other waits.
                self._ask_redis_at = time.monotonic() + RETRY_SECONDS
            try:
                exceeded = self._hit(shared, client)
            except StorageError as error:
                if not self._lost:
                    why = type(error.storage_error).__name__
                    log.warning("Redis is lost (%s): this worker counts RILL_RATE_LIMIT for itself", why)
                self._lost, self._ask_redis_at = True, time.monotonic() + RETRY_SECONDS
                return self._hit(self._own, client)
            if was_lost:
                log.warning("Redis is back: it counts RILL_RATE_LIMIT for all workers again")
                self._lost, self._ask_redis_at = False, 0.0
            return exceeded


def _open_redis(url: str) -> RedisStorage:
    """The counters in Redis; it is connected to at the first count."""
    # 3 MB of a worker's memory, which one without REDIS_URL does not spend.
    from redis import ConnectionPool
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool = ConnectionPool.from_url(
        url.replace("redis+unix://", "unix://"),
        max_connections=REDIS_CONNECTIONS,
        socket_connect_timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 1),  # What was kept may have been closed meanwhile.
    )
    return RedisStorage(url, connection_pool=pool, key_prefix="rill", wrap_exceptions=True)


class Counters(MemoryStorage):
    """The counters of limits' windows in memory, without its timer: that starts a thread after a hit, each 10 ms.

    What has expired goes at the next hit of its key, or all of it whenever the counters have doubled.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sweep_at = 1000

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        if len(self.expirations) >= self._sweep_at:
            for known in tuple(self.expirations):
                self.get(known)
            self._sweep_at = max(1000, 2 * len(self.expirations))
        if not self.get(key):
            self.expirations[key] = time.time() + expiry
        self.storage[key] += amount
        return self.storage[key]
