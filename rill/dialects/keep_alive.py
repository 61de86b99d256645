"""Silence in an event stream, told as a comment, which every client passes over and every proxy counts as life."""

import time

# Silence is told no more often than this, however many pings and hidden thoughts the upstream sends.
COMMENT_SECONDS = 5.0


class Silences:
    """How long one answer has written nothing."""

    def __init__(self) -> None:
        self._wrote = time.monotonic()

    def break_(self) -> None:
        """Notes that something is written."""
        self._wrote = time.monotonic()

    def comment(self) -> bytes:
        """A comment, where nothing was written for a while."""
        now = time.monotonic()
        if now - self._wrote < COMMENT_SECONDS:
            return b""
        self._wrote = now
        return b":\n\n"
