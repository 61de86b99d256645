"""Counts in a sliding window, in this worker's memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from rill.quota import Quota

# Clients that are remembered, about 25 MB; the one whose window began first is forgotten first.
MAX_CLIENTS = 100_000


class Counts(NamedTuple):
    """The counts of one client: in the window that began at `begun` (the clock's seconds), and in the one before."""

    begun: float
    current: int = 0
    previous: int = 0

    def at(self, now: float, seconds: int) -> "Counts":
        """Return the counts of the windows of `seconds` at a later time."""
        if now >= self.begun + 2 * seconds:
            return Counts(now)
        if now >= self.begun + seconds:
            return Counts(self.begun + seconds, 0, self.current)
        return self

    def seconds_left(self, now: float, quota: Quota) -> float:
        """Return the seconds until these counts leave something of the quota, 0 if they do."""
        elapsed = now - self.begun
        if int(self.previous * (1 - elapsed / quota.seconds)) + self.current < quota.amount:
            return 0.0
        if self.current < quota.amount:
            return max(0.0, quota.seconds * (1 - (quota.amount - self.current) / self.previous) - elapsed)
        return quota.seconds * (2 - quota.amount / self.current) - elapsed


class SlidingWindow:
    """What each client has used of one quota in the last `quota.seconds`, to a good approximation.

    Windows follow one another from a client's first count. The previous one counts by the share of it that the last
    `quota.seconds` still cover: https://blog.cloudflare.com/counting-things-a-lot-of-different-things/
    """

    def __init__(
        self, quota: Quota, clock: Callable[[], float] = time.monotonic, max_clients: int = MAX_CLIENTS
    ) -> None:
        self._quota = quota
        self._clock = clock
        self._max_clients = max_clients
        self._counts: OrderedDict[str, Counts] = OrderedDict()  # the window that began first comes first

    def __len__(self) -> int:
        return len(self._counts)

    def seconds_left(self, client: str) -> float:
        """Return the seconds until the client has something left of its quota, 0 if it has."""
        now = self._clock()
        return self._counts.get(client, Counts(now)).at(now, self._quota.seconds).seconds_left(now, self._quota)

    def add(self, client: str, amount: int = 1) -> None:
        """Count what the client uses."""
        now = self._clock()
        known = self._counts.get(client, Counts(now))
        counts = known.at(now, self._quota.seconds)
        self._counts[client] = counts._replace(current=counts.current + amount)
        if counts.begun != known.begun:
            self._counts.move_to_end(client)
        # Forget the oldest clients: those whose counts have expired, and one if there are too many.
        expired = now - 2 * self._quota.seconds
        while len(self._counts) > self._max_clients or next(iter(self._counts.values())).begun <= expired:
            self._counts.popitem(last=False)
