"""Whether a client has received a response that was sent completely."""

import time
from collections.abc import Callable
from typing import Any

import gevent

# A connection that is reset sooner after its last byte was acknowledged has lost what its client did not read.
RESET_SECONDS = 2.0
# How often unacknowledged bytes are counted: first, and at most.
FIRST_COUNT_SECONDS, COUNT_SECONDS = 0.005, 0.5
# An unacknowledged FIN counts as a byte.
FIN_BYTES = 1


class Receipt:
    """What is known of a response whose last byte was sent just now.

    `note` gets 1 once the client has acknowledged the response, and -1 if the connection is reset soon after that.
    `count_queued` returns the number of bytes that are not acknowledged; it raises an error once the connection
    is closed.
    """

    def __init__(self, count_queued: Callable[[], int], note: Callable[[int], None]) -> None:
        self._count_queued = count_queued
        self._note = note
        self._acknowledged: float | None = None  # when it was: monotonic, in seconds
        self._ended = False
        self._timer: Any = None
        self._poll(FIRST_COUNT_SECONDS)

    def end(self, is_reset: bool) -> None:
        """Note what the connection reports after the response: a reset, or data or a FIN, which acknowledge it."""
        if not is_reset:
            self._check()
        elif self._acknowledged is not None and time.monotonic() < self._acknowledged + RESET_SECONDS:
            self._note(-1)
        self._ended = True

    def _check(self) -> bool:
        if self._acknowledged is None and self._count_queued() <= FIN_BYTES:
            self._acknowledged = time.monotonic()
            self._note(1)
        return self._acknowledged is not None

    def _poll(self, seconds: float) -> None:
        # TCP does not report an acknowledgement.
        try:
            if self._ended or self._check():
                return
        except (OSError, ValueError):  # It is closed.
            return
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._poll, min(2 * seconds, COUNT_SECONDS))
