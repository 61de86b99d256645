"""stdout and stderr as text streams that never block: a line that cannot be written is dropped and counted.

The reader of a log may stall or exit; the master would kill a worker that waited for it.
"""

import io
import logging
import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gevent.monkey import get_original

from rill.telemetry.logs import JSONFormatter

# gunicorn's format, for its own lines on stderr.
LOSS = "%(asctime)s [%(process)d] [%(levelname)s] %(lines)d log lines were dropped: they could not be written"
LOSS_TIME = "[%Y-%m-%d %H:%M:%S %z]"


class LogStream(io.TextIOWrapper):
    """A text stream on the file descriptor `fd`; each line is written or dropped as a whole.

    The first line after a loss reports the number of dropped lines, as JSON if `json_lines`.
    """

    def __init__(self, fd: int, json_lines: bool) -> None:
        self.writer = LineWriter(fd, json_lines)
        super().__init__(self.writer, "utf-8", "backslashreplace", line_buffering=True)


class LineWriter(io.FileIO):
    """The bytes of a LogStream; `dropped` counts the lines that this process has dropped."""

    def __init__(self, fd: int, json_lines: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        as_json = json_lines and not self.isatty()
        self._formatter = JSONFormatter() if as_json else logging.Formatter(LOSS, LOSS_TIME)
        self._write = _nonblocking_write(fd)
        self._forget()
        # The parent completes its own lines and reports its own losses.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self.dropped = 0
        self._unreported = 0
        self._rest = b""  # the unwritten end of a line

    def write(self, line: Any) -> int:
        """Write or drop a line."""
        if self._rest:
            self._begin(self._rest)
        if self._unreported and not self._rest and self._begin(self._describe_loss()):
            self._unreported = 0
        if self._unreported or self._rest or not self._begin(line):
            self.dropped += 1
            self._unreported += 1
        return len(line)

    def _begin(self, data: bytes) -> bool:
        """Write `data` or its beginning, and keep the rest; return False if nothing could be written."""
        with suppress(OSError):
            self._rest = data[self._write(data) :]
            return True
        return False

    def _describe_loss(self) -> bytes:
        fields = {"levelname": "WARNING", "msg": "log lines dropped", "lines": self._unreported}
        return f"{self._formatter.format(logging.makeLogRecord(fields))}\n".encode()


def keep_logs_from_blocking() -> None:
    """Replace sys.stdout and sys.stderr by a LogStream."""
    for name, fd, json_lines in (("stdout", 1, True), ("stderr", 2, False)):
        if not isinstance(getattr(sys, name), LogStream):
            with suppress(OSError):  # The descriptor may be closed.
                setattr(sys, name, LogStream(fd, json_lines))


def count_dropped_lines() -> int:
    """Return how many lines this process has dropped, on stdout and stderr."""
    return sum(each.writer.dropped for each in (sys.stdout, sys.stderr) if isinstance(each, LogStream))


def _nonblocking_write(fd: int) -> Callable[[bytes], int]:
    """Return a function that writes to `fd` without blocking, and without O_NONBLOCK for processes that share it."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return partial(os.write, fd)  # A file that is opened again would be written from its beginning.
    if stat.S_ISSOCK(mode):
        # gevent's socket would wait.
        shared: socket.socket = get_original("socket", "socket")(fileno=os.dup(fd))
        return lambda data: shared.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    try:
        return partial(os.write, os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError:  # The pipe of another user, or no /proc.
        ready = get_original("select", "poll")()
        ready.register(fd, select.POLLOUT)
        return partial(_write_if_ready, ready, fd)


def _write_if_ready(ready: select.poll, fd: int, data: bytes) -> int:
    if not ready.poll(0):
        raise BlockingIOError
    # A pipe that is ready takes at least this much.
    return os.write(fd, data[: select.PIPE_BUF])
