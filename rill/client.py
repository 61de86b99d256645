"""A caller's connection: cheap to write to, and it tells when it is blocked and when its caller has left."""

import socket
import struct
import time
from errno import ECONNRESET
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

import gevent
from gevent.socket import socket as GeventSocket

# How long a caller that reads nothing holds a write. An answer is ended before that, and says so in the log.
BLOCKED_SECONDS = 30.0
# How long the last bytes may take to be taken before a reset, which would drop them.
FLUSH_SECONDS = 2.0

_ESTABLISHED = 1  # the first byte of Linux's struct tcp_info is the connection's state


class ClientSocket(GeventSocket):
    """A caller's connection; `blocked_since` is monotonic, in seconds, while a write waits for the caller to read."""

    _sock: socket.socket

    def __init__(self, accepted: Any) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.blocked_since: float | None = None

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all; raises OSError, also where the answer was interrupted while this waited."""
        # One plain send is all that a token needs; gevent's own sendall asks for SO_SNDBUF first, each time.
        try:
            sent = self._sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], flags)

    def _send_rest(self, data: memoryview, flags: int) -> None:
        unread = ConnectionResetError(ECONNRESET, "the caller does not read")
        try:
            while data:
                self.blocked_since = self.blocked_since or time.monotonic()
                with gevent.Timeout(BLOCKED_SECONDS, unread):
                    sent = self.send(data, flags)
                if sent:
                    data = data[sent:]
                    self.blocked_since = None
        except OSError:
            raise
        except Exception as error:
            raise ConnectionResetError(ECONNRESET, str(error)) from error
        finally:
            self.blocked_since = None

    def has_left(self) -> bool:
        """Whether the caller closed, half-closed or reset the connection, whatever it sent before."""
        try:
            if self.family == socket.AF_UNIX:
                return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
        except BlockingIOError:
            return False
        except OSError:
            return True

    def reset(self, flush_seconds: float = FLUSH_SECONDS) -> None:
        """Makes the next close a reset, once the caller's machine has taken what was sent, or the seconds are over."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + flush_seconds
        while time.monotonic() < deadline and struct.unpack("i", ioctl(self.fileno(), TIOCOUTQ, b"\0" * 4))[0]:
            gevent.sleep(0.005)
