"""Wait for sockets with a timeout of microseconds, where epoll alone rounds it up to a millisecond."""

import ctypes
import select

MILLISECOND = 1e-3
PR_SET_TIMERSLACK = 29  # <linux/prctl.h>; the default slack delays a timeout by 50 µs


class Poller:
    """An epoll set; `modify` and `register` are those of select.epoll."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.register, self.modify = self.epoll.register, self.epoll.modify
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)

    def ready(self, seconds: float | None) -> list[tuple[int, int]]:
        """Return the ready descriptors with their events, within so many seconds; None waits without limit.

        The list may be empty before the time is over.
        """
        if seconds is None or seconds > 2 * MILLISECOND:
            return self.epoll.poll(None if seconds is None else seconds - MILLISECOND)
        # An epoll set is itself readable when one of its sockets is ready, and select takes microseconds.
        if seconds > 0 and not select.select([self.epoll], [], [], seconds)[0]:
            return []
        return self.epoll.poll(0)
