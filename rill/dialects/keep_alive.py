"""Keep-alive comments of an event stream: clients ignore them, and proxies see a connection that is in use.

https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
"""

import time

# At most one comment in this time, however many pings and thinking deltas the upstream sends.
COMMENT_SECONDS = 5.0


class KeepAlive:
    """The time since one answer's last write."""

    def __init__(self) -> None:
        self._wrote = time.monotonic()

    def note_write(self) -> None:
        """Restart the time: something is written now."""
        self._wrote = time.monotonic()

    def comment(self) -> bytes:
        """Return a comment if nothing was written for COMMENT_SECONDS, else b""."""
        now = time.monotonic()
        if now - self._wrote < COMMENT_SECONDS:
            return b""
        self._wrote = now
        return b":\n\n"
