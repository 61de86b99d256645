"""The open answers of a worker, and the end of them all when it stops."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Open(Protocol):
    """An answer that can be ended early."""

    def interrupt(self, why: str) -> None: ...


class Drain:
    """Every open answer of this worker, and the end of them all; once `begun`, no new one is taken."""

    def __init__(self) -> None:
        self.begun = False
        self._open: set[Open] = set()

    @contextmanager
    def watch(self, answer: Open) -> Iterator[None]:
        """Count an answer as open for as long as the context lasts."""
        self._open.add(answer)
        try:
            yield
        finally:
            self._open.discard(answer)

    def end_all(self) -> None:
        """End what is still open."""
        for answer in tuple(self._open):
            answer.interrupt("shutdown")
