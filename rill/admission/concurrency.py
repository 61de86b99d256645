"""How many answers may be open at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rill.problems import Problem


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
