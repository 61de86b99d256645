"""A client's connection: fair to read from, cheap to write to; it tells when it is blocked and when its client left."""

import socket
import struct
import time
from contextlib import suppress
from errno import ECONNRESET
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Any

import gevent
from gevent.socket import socket as GeventSocket

from rill.turns import Turns

if TYPE_CHECKING:
    from rill.connections import Connections

# How long a caller that reads nothing holds a write. An answer is ended before that, and says so in the log.
BLOCKED_SECONDS = 30.0
# How long the last bytes may take to be taken before a reset, which would drop them.
FLUSH_SECONDS = 2.0
# What the kernel may hold for a client that does not read; Linux doubles it.
SEND_BUFFER_BYTES = 65536 // 2
# The parser asks for this much where it does not know how much comes; what of it is parsed in one turn.
PARSER_BYTES = 8192
TURN_BYTES = 4096
# After its last response a client may take this long to read it; what it still sends is discarded, up to this much.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20

_ESTABLISHED = 1  # the first byte of Linux's struct tcp_info is the connection's state


class ClientSocket(GeventSocket):
    """A client's connection; `blocked_since` is monotonic, in seconds, while a write waits for the client to read.

    `address` says whose it is, None where connections are not limited; `waiting` is kept by `connections`.
    """

    _sock: socket.socket
    connections: "Connections"

    def __init__(self, accepted: Any, turns: Turns, address: str | None) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        # Not inherited from the listener: the kernel accepts connections before the worker has started.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.blocked_since: float | None = None
        self.address = address
        self.waiting = False
        self._turns = turns

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what has arrived, at most `size` bytes, in the client's turn: what is done with it takes time."""
        data = super().recv(min(size, TURN_BYTES) if size <= PARSER_BYTES else size, flags)
        self._turns.wait()
        return data

    def take_turn(self) -> None:
        """Return in the client's turn: a request that was already received has to wait for it too."""
        self._turns.wait()

    def linger(self) -> None:
        """Send FIN, and discard what still comes: to close at once would reset the connection and lose the response."""
        with suppress(OSError), gevent.Timeout(LINGER_SECONDS, OSError):
            self.shutdown(socket.SHUT_WR)
            left = LINGER_BYTES
            while left > 0 and (data := self.recv(65536)):
                left -= len(data)

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
