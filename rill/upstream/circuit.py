"""A circuit breaker: after failures in a row a target is skipped, until one trial request succeeds."""

import time
from collections.abc import Callable

from rill.problems import Problem

FAILURES = 5
OPEN_SECONDS = 10.0
# A failure that takes longer is not repeated for a client while every circuit is open.
QUICK_SECONDS = 0.4


class Circuit:
    """The recent failures of one target; `on_change` gets whether the circuit opened or closed.

    `problem` is the latest failure. `is_quick`: it came so soon that a client can wait for another one.
    """

    def __init__(self, on_change: Callable[[bool], None], failures: float = FAILURES) -> None:
        """Open the circuit after so many `failures` in a row."""
        self.problem: Problem | None = None
        self._seconds = 0.0
        self._on_change = on_change
        self._failures_left = self._failures = failures
        self._open_until: float | None = None  # monotonic, in seconds
        self._has_trial = False

    @property
    def is_passable(self) -> bool:
        """Whether a request may be sent: the circuit is closed, or it is time for a trial and none is under way."""
        if self._open_until is None:
            return True
        return not self._has_trial and time.monotonic() >= self._open_until

    @property
    def is_quick(self) -> bool:
        return self._open_until is None or self._seconds < QUICK_SECONDS

    def begin(self) -> None:
        """Note that a request is sent; if the circuit is open, it is a trial."""
        self._has_trial = self._open_until is not None

    def release(self) -> None:
        """Note that a request ended without a result."""
        self._has_trial = False

    def succeed(self) -> None:
        """Note a success; that of a trial closes the circuit."""
        if self._open_until is None:
            self._failures_left = self._failures
        elif self._has_trial:  # Any other request began before the circuit opened.
            self._open_until, self._has_trial, self._failures_left = None, False, self._failures
            self._on_change(False)

    def fail(self, problem: Problem, seconds: float) -> None:
        """Note a failure after so many seconds."""
        self.problem, self._seconds = problem, seconds
        self._failures_left -= 1
        if self._open_until is None and self._failures_left <= 0:
            self._open_until = time.monotonic() + OPEN_SECONDS
            self._on_change(True)
        elif self._has_trial:
            self._open_until, self._has_trial = time.monotonic() + OPEN_SECONDS, False
