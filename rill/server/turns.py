"""Turns at the event loop, for clients that always have data ready."""

import time
from collections import deque

import gevent
from gevent.hub import Waiter

# The total time of the turns in one iteration of the event loop.
ITERATION_SECONDS = 0.005


class Turns:
    """Lets the event loop serve all other clients between two turns.

    gevent's recv does not yield while data is available, and sleeping for 0 s does not help: a greenlet that does so is
    resumed up to 50 times before the loop looks at other sockets again.
    """

    def __init__(self) -> None:
        self._waiting: deque[Waiter[None]] = deque()
        self._timer = gevent.get_hub().loop.timer(0)

    def wait(self) -> None:
        """Return in a later iteration of the event loop, in the order of the calls."""
        waiter: Waiter[None] = Waiter()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            self._timer.start(self._run)
        waiter.get()

    def _run(self) -> None:
        end = time.monotonic() + ITERATION_SECONDS
        due = len(self._waiting)
        self._timer.stop()
        while due and time.monotonic() < end:
            # A waiter whose greenlet was interrupted ignores it.
            self._waiting.popleft().switch(None)
            due -= 1
        if self._waiting:
            self._timer.start(self._run)
