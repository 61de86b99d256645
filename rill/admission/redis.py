"""Counts in sliding windows in Redis, shared by all workers and machines."""

import logging
import time
from collections.abc import Sequence
from itertools import chain

from gevent.lock import BoundedSemaphore
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from rill.quota import Quota

# Counting takes a fraction of a millisecond; a Redis that takes this long would delay every client.
TIMEOUT_SECONDS = 0.25
MAX_CONNECTIONS = 8
# How long a worker counts for itself before it tries a lost Redis again.
RETRY_SECONDS = 3.0

# The rule of rill/admission/sliding_window.py for the quotas `amount, seconds, ...` of one client, at once: return the
# seconds left of each, and count one request if all of them are 0. A client is a hash of `begun current previous` by
# the window's seconds.
SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local waits, counts, exceeded, expiry = {}, {}, false, 0
for i = 1, #ARGV, 2 do
    local amount, seconds = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    local known = redis.call('HGET', KEYS[1], ARGV[i + 1]) or ''
    local begun, current, previous = string.match(known, '(%S+) (%S+) (%S+)')
    begun, current, previous = tonumber(begun), tonumber(current), tonumber(previous)
    if not begun or now >= begun + 2 * seconds or now < begun then
        begun, current, previous = now, 0, 0
    elseif now >= begun + seconds then
        begun, current, previous = begun + seconds, 0, current
    end
    local elapsed, wait = now - begun, 0
    if math.floor(previous * (1 - elapsed / seconds)) + current >= amount then
        if current < amount then
            wait = seconds * (1 - (amount - current) / previous) - elapsed
        else
            wait = seconds * (2 - amount / current) - elapsed
        end
        wait = math.max(0, wait)
    end
    exceeded = exceeded or wait > 0
    waits[#waits + 1] = tostring(wait)
    counts[ARGV[i + 1]] = string.format('%.6f %d %d', begun, current + 1, previous)
    expiry = math.max(expiry, 2 * seconds)
end
if not exceeded then
    for seconds, count in pairs(counts) do
        redis.call('HSET', KEYS[1], seconds, count)
    end
    redis.call('EXPIRE', KEYS[1], expiry)
end
return waits
"""

log = logging.getLogger(__name__)


class SharedCounts:
    """The requests of each client, counted in Redis, which is connected to at the first count."""

    def __init__(self, url: str, quotas: Sequence[Quota]) -> None:
        pool = ConnectionPool.from_url(
            url.replace("redis+unix://", "unix://"),
            max_connections=MAX_CONNECTIONS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),  # A kept connection may have been closed.
        )
        self._script = Redis(connection_pool=pool).register_script(SCRIPT)
        self._arguments = list(chain.from_iterable((quota.amount, quota.seconds) for quota in quotas))
        self._turns = BoundedSemaphore(MAX_CONNECTIONS)
        self._lost = False
        self._retry_at = 0.0  # monotonic, in seconds

    def count(self, client: str) -> list[float] | None:
        """Count one request unless a quota is used up; return each quota's seconds left, None while Redis is lost."""
        # In a burst each client waits for its turn, before the timeouts begin.
        with self._turns:
            if time.monotonic() < self._retry_at:
                return None
            was_lost = self._lost
            if was_lost:
                # This client tries whether Redis is back; no other one waits.
                self._retry_at = time.monotonic() + RETRY_SECONDS
            try:
                waits = [float(wait) for wait in self._script([f"rill:{client}"], self._arguments)]
            except RedisError as error:
                if not self._lost:
                    reason = type(error).__name__
                    log.warning("Redis is lost (%s): this worker counts RILL_RATE_LIMIT for itself", reason)
                self._lost, self._retry_at = True, time.monotonic() + RETRY_SECONDS
                return None
            if was_lost:
                log.warning("Redis is back: it counts RILL_RATE_LIMIT for all workers again")
                self._lost, self._retry_at = False, 0.0
            return waits
