"""stdout and stderr as text streams that never block: a line that cannot be written is dropped and counted.

The reader of a log may stall or exit; the master would kill a worker that waited for it.
"""

import io
import json
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from gevent.monkey import get_original

Write = Callable[[bytes], int]


class LogStream(io.TextIOBase):
    """A text stream on the file descriptor `fd`; each line is written or dropped as a whole.

    `dropped` counts the dropped lines of this process. The first line after a loss reports the number, as JSON if
    `json_lines`.
    """

    encoding = "utf-8"

    def __init__(self, fd: int, json_lines: bool) -> None:
        self._fd = fd
        self._describe_loss = _loss_as_json if json_lines and not os.isatty(fd) else _loss_as_text
        self._write = _nonblocking_write(fd)
        self._forget()
        # The parent completes its own lines and reports its own losses.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self.dropped = 0
        self._unreported = 0
        self._text = ""  # the beginning of a line
        self._rest = b""  # the unwritten end of a line

    def write(self, text: str) -> int:
        """Write `text` once its line is complete."""
        line = self._text + text
        if text[-1:] == "\n":
            self._text = ""
            self._write_line(line.encode("utf-8", "backslashreplace"))
        else:
            self._text = line
        return len(text)

    def flush(self) -> None:
        """Write the beginning of a line."""
        if self._text:
            text, self._text = self._text, ""
            self._write_line(text.encode("utf-8", "backslashreplace"))

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def _write_line(self, line: bytes) -> None:
        if self._rest:
            self._begin(self._rest)
        if self._unreported and not self._rest and self._begin(self._describe_loss(self._unreported)):
            self._unreported = 0
        if self._unreported or self._rest or not self._begin(line):
            self.dropped += 1
            self._unreported += 1

    def _begin(self, data: bytes) -> bool:
        """Write `data` or its beginning, and keep the rest; return False if nothing could be written."""
        try:
            written = self._write(data)
        except OSError:
            return False
        self._rest = data[written:] if written < len(data) else b""
        return written > 0


def keep_logs_from_blocking() -> None:
    """Replace sys.stdout and sys.stderr by a LogStream."""
    for name, fd, json_lines in (("stdout", 1, True), ("stderr", 2, False)):
        if not isinstance(getattr(sys, name), LogStream):
            with suppress(OSError):  # The descriptor may be closed.
                setattr(sys, name, LogStream(fd, json_lines))


def count_dropped_lines() -> int:
    """Return how many lines this process has dropped, on stdout and stderr."""
    dropped = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LogStream):
            dropped += stream.dropped
    return dropped


def _nonblocking_write(fd: int) -> Write:
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


def _loss_as_json(lines: int) -> bytes:
    now = time.time()
    timestamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1e6):06}Z"
    loss = {"event": "log lines dropped", "lines": lines, "level": "warning", "timestamp": timestamp}
    return json.dumps(loss).encode() + b"\n"


def _loss_as_text(lines: int) -> bytes:
    """Return a line in gunicorn's format."""
    now = time.strftime("[%Y-%m-%d %H:%M:%S %z]")
    return f"{now} [{os.getpid()}] [WARNING] {lines} log lines were dropped: they could not be written\n".encode()
