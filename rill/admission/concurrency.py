"""The limit on concurrent answers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rill.problems import Problem


class ConcurrencyLimit:
    """A limit on the concurrent answers of this worker: in total, and for each client."""

    def __init__(self, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._open = 0
        self._open_of: Counter[str] = Counter()

    def check_capacity(self) -> None:
        """Raise Problem if this worker has no free slot."""
        if self._open >= self._total:
            raise Problem("at_capacity", retry_after=1)

    @contextmanager
    def hold_slot(self, client: str) -> Iterator[None]:
        """Hold one slot for as long as the context lasts; raise Problem if none is free."""
        self.take_slot(client)
        try:
            yield
        finally:
            self.free_slot(client)

    def take_slot(self, client: str) -> None:
        """Take one slot until `free_slot`; raise Problem if none is free."""
        self.check_capacity()
        if self._open_of[client] >= self._per_client:
            message = f"At most {self._per_client} concurrent answers for one client."
            raise Problem("rate_limited", message, retry_after=1)
        self._open += 1
        self._open_of[client] += 1

    def free_slot(self, client: str) -> None:
        """Free a slot that was taken."""
        self._open -= 1
        self._open_of[client] -= 1
        if not self._open_of[client]:
            del self._open_of[client]
