"""Turns at the event loop, for clients that always have data ready; how long they wait shows whether it keeps up."""

import time
from collections import deque

import gevent
from gevent.hub import Waiter

# The total time of the turns in one iteration of the event loop.
ITERATION_SECONDS = 0.005
# A turn that waits this long is late. An iteration with a token for each of 1,000 streams takes about 30 ms.
LATE_SECONDS = 0.05
# A worker is behind from so many late iterations in a row, which no pause of the host or of Python's collector causes,
# until a turn waits less than IN_TIME_SECONDS.
LATE_ITERATIONS = 60
IN_TIME_SECONDS = 0.02
# If no turn was taken for this long, the next one finds out whether the worker is still behind.
MEASURED_SECONDS = 0.1


class Turns:
    """Lets the event loop serve all other clients between two turns.

    gevent's recv does not yield while data is available, and sleeping for 0 s does not help: a greenlet that does so is
    resumed up to 50 times before the loop looks at other sockets again.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Waiter[None]]] = deque()
        self._timer = gevent.get_hub().loop.timer(0)
        self._late_iterations = 0
        self._measured = 0.0  # when the last turn began: monotonic, in seconds

    @property
    def overloaded(self) -> bool:
        """Whether the worker is behind, and a new turn would be late.

        This limits the time in the queue instead of its length, as CoDel does: https://www.rfc-editor.org/rfc/rfc8289
        """
        if self._late_iterations < LATE_ITERATIONS:
            return False
        now = time.monotonic()
        if self._waiting:
            return now - self._waiting[0][0] >= LATE_SECONDS
        return now - self._measured < MEASURED_SECONDS

    def wait(self) -> None:
        """Return in a later iteration of the event loop, in the order of the calls."""
        waiter: Waiter[None] = Waiter()
        self._waiting.append((time.monotonic(), waiter))
        if len(self._waiting) == 1:
            self._timer.start(self._run)
        waiter.get()

    def _run(self) -> None:
        begun = self._measured = time.monotonic()
        self._note(begun - self._waiting[0][0])
        due = len(self._waiting)
        self._timer.stop()
        while due and time.monotonic() < begun + ITERATION_SECONDS:
            # A waiter whose greenlet was interrupted ignores it.
            self._waiting.popleft()[1].switch(None)
            due -= 1
        if self._waiting:
            self._timer.start(self._run)

    def _note(self, waited: float) -> None:
        if waited >= LATE_SECONDS:
            self._late_iterations += 1
        elif waited < IN_TIME_SECONDS:
            self._late_iterations = 0
