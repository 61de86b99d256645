"""Counts and token budgets in Redis, shared by all workers and machines."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from gevent.lock import BoundedSemaphore
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from rill.admission import redis_scripts
from rill.admission.budget import Decision
from rill.quota import Quota

# Counting takes a fraction of a millisecond; a Redis that takes this long would delay every client.
TIMEOUT_SECONDS = 0.25
MAX_CONNECTIONS = 8
# How long a worker counts for itself before it tries a lost Redis again.
RETRY_SECONDS = 3.0

log = logging.getLogger(__name__)


class SharedCounts:
    """The requests and tokens of each client, counted in Redis, which is connected to at the first count.

    `on_return` is called once a lost Redis is back. While it is lost, every method returns None at once.
    """

    def __init__(self, url: str, quotas: Sequence[Quota], on_return: Callable[[], object] | None = None) -> None:
        pool = ConnectionPool.from_url(
            url.replace("redis+unix://", "unix://"),
            max_connections=MAX_CONNECTIONS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),  # A kept connection may have been closed.
        )
        redis = Redis(connection_pool=pool)
        self._count = redis.register_script(redis_scripts.COUNT)
        self._reserve = redis.register_script(redis_scripts.RESERVE)
        self._settle = redis.register_script(redis_scripts.SETTLE)
        self._usage = redis.register_script(redis_scripts.USAGE)
        self._rates = [len(quotas), *_flatten(quotas)]
        self._turns = BoundedSemaphore(MAX_CONNECTIONS)
        self._lost = False
        self._retry_at = 0.0  # monotonic, in seconds
        self.on_return = on_return

    def count(self, client: str) -> list[float] | None:
        """Count one request unless a quota is used up; return each quota's seconds left."""
        waits = self._call(self._count, [f"rill:{client}"], self._rates)
        return None if waits is None else [float(wait) for wait in waits]

    def reserve(
        self, client: str, id: str, seconds: int, least: int, most: int, budgets: Sequence[Quota]
    ) -> Decision | None:
        """Count one request, and reserve tokens for so many seconds unless a quota is used up."""
        arguments = [*self._rates, id, seconds, least, most, *_flatten(budgets)]
        found = self._call(self._reserve, [f"rill:{client}", _budget_key(client)], arguments)
        return found and Decision([float(wait) for wait in found[0]], *found[1:])

    def settle(self, client: str, id: str, tokens: int, budgets: Sequence[Quota]) -> list[int] | None:
        """Charge the tokens, and release the reservation; return the tokens used of each budget."""
        arguments = [id, tokens, *(quota.seconds for quota in budgets)]
        used: list[int] | None = self._call(self._settle, [_budget_key(client)], arguments)
        return used

    def usage(self, client: str, budgets: Sequence[Quota]) -> tuple[int, Sequence[int]] | None:
        """Return the tokens that are reserved, and those used of each budget."""
        found = self._call(self._usage, [_budget_key(client)], [quota.seconds for quota in budgets])
        return found and (found[0], found[1])

    def _call(self, script: Any, keys: list[str], arguments: Sequence[Any]) -> Any:
        # In a burst each client waits for its turn, before the timeouts begin.
        with self._turns:
            if time.monotonic() < self._retry_at:
                return None
            was_lost = self._lost
            if was_lost:
                # This client tries whether Redis is back; no other one waits.
                self._retry_at = time.monotonic() + RETRY_SECONDS
            try:
                found = script(keys, arguments)
            except RedisError as error:
                if not self._lost:
                    reason = type(error).__name__
                    log.warning("Redis is lost (%s): this worker counts requests and tokens for itself", reason)
                self._lost, self._retry_at = True, time.monotonic() + RETRY_SECONDS
                return None
            if was_lost:
                log.warning("Redis is back: it counts requests and tokens for all workers again")
                self._lost, self._retry_at = False, 0.0
        if was_lost and self.on_return:
            self.on_return()
        return found


def _flatten(quotas: Sequence[Quota]) -> list[int]:
    return list(chain.from_iterable((quota.amount, quota.seconds) for quota in quotas))


def _budget_key(client: str) -> str:
    return f"rill-budget:{client}"
