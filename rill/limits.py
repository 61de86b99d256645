"""How much, how often, how many at once."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from rill.problems import Problem


class Rate:
    """How often one caller may ask: `rate` as in 60/minute."""

    def __init__(self, rate: str) -> None:
        self._limit = parse(rate)
        self._window = SlidingWindowCounterRateLimiter(Counters())

    def count(self, caller: str) -> None:
        """Counts one request; raises Problem where it is one too many."""
        if not self._window.hit(self._limit, caller):
            wait = self._window.get_window_stats(self._limit, caller).reset_time - time.time()
            raise Problem(
                "rate_limited", f"At most {self._limit} for one caller. Try again later.", max(1, math.ceil(wait))
            )


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


class Places:
    """How many answers may be open at once in this worker: in all, and for one caller."""

    def __init__(self, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._open: Counter[str] = Counter()

    def check_free(self) -> None:
        """Raises Problem where this worker has no place left."""
        if self._open.total() >= self._total:
            raise Problem("full", retry_after=1)

    @contextmanager
    def take(self, caller: str) -> Iterator[None]:
        """Holds one place for as long as the context lasts; raises Problem where none is free."""
        self.check_free()
        if self._open[caller] >= self._per_caller:
            raise Problem("rate_limited", f"At most {self._per_caller} answers at once for one caller.", retry_after=1)
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]
