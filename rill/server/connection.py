"""A client's connection: fair to read from, cheap to write to; it tells when it is blocked and when its client left."""

import socket
import struct
import time
from contextlib import AbstractContextManager, suppress
from errno import ECONNRESET
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Any

import gevent
from gevent.socket import socket as GeventSocket

from rill.server.turns import Turns
from rill.streaming.cancellation import Interruption

if TYPE_CHECKING:
    from rill.server.connections import Connections

# How long a caller that reads nothing holds a write. An answer is ended before that, and says so in the log.
BLOCKED_SECONDS = 30.0
# How often a write that waits looks whether the client took something meanwhile.
PROGRESS_SECONDS = 2.0
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
    """A client's connection.

    `address` says whose it is, None where connections are not limited; `waiting` is kept by `connections`.
    `unblocked_at` is when the last write that waited for the client ended: monotonic, in seconds, 0 where none did.
    `broken`: something that was to be sent was not taken.
    """

    _sock: socket.socket
    connections: "Connections"

    def __init__(self, accepted: Any, turns: Turns, address: str | None) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        # Not inherited from the listener: the kernel accepts connections before the worker has started.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.address = address
        self.waiting = False
        self._turns = turns
        self.unblocked_at = 0.0
        self.broken = False
        self._blocked_since: float | None = None
        self._queued = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what has arrived, at most `size` bytes, in the client's turn: what is done with it takes time."""
        data = super().recv(min(size, TURN_BYTES) if size <= PARSER_BYTES else size, flags)
        self._turns.wait()
        return data

    def admit(self, answer: Interruption) -> AbstractContextManager[None]:
        """Count an answer as open on this connection, for as long as the context lasts."""
        return self.connections.admit(self, answer)

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

    @property
    def blocked_since(self) -> float | None:
        """When the client took something last, while a write waits for it: monotonic, in seconds; else None.

        What its kernel acknowledges counts as taken. (The socket becomes writable only when a third of its buffer is
        free, which takes a slow reader minutes.)
        """
        if self._blocked_since is not None and (queued := self._count_queued()) < self._queued:
            self._blocked_since, self._queued = time.monotonic(), queued
        return self._blocked_since

    def _count_queued(self) -> int:
        """Return the bytes that were sent and not acknowledged."""
        queued: int = struct.unpack("i", ioctl(self.fileno(), TIOCOUTQ, b"\0" * 4))[0]
        return queued

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all; raises OSError, also where the answer was interrupted while this waited."""
        # One plain send is all that a token needs; gevent's own sendall asks for SO_SNDBUF first, each time.
        try:
            sent = self._sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.broken = True
            raise
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], flags)

    def _send_rest(self, data: memoryview, flags: int) -> None:
        try:
            while data:
                self._blocked_since, self._queued = time.monotonic(), self._count_queued()
                data = data[self._send_some(data, flags) :]
        except OSError:
            self.broken = True
            raise
        except Exception as error:
            self.broken = True
            raise ConnectionResetError(ECONNRESET, str(error)) from error
        finally:
            self._blocked_since = None
            self.unblocked_at = time.monotonic()

    def _send_some(self, data: memoryview, flags: int) -> int:
        """Send what fits once something fits; raise ConnectionResetError where nothing is taken for too long."""
        sent = 0
        while not sent:
            since = self.blocked_since
            if since is not None and time.monotonic() - since >= BLOCKED_SECONDS:
                raise ConnectionResetError(ECONNRESET, "the client does not read")
            with suppress(TimeoutError), gevent.Timeout(PROGRESS_SECONDS, TimeoutError):
                sent = self.send(data, flags)
        return sent

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
        while time.monotonic() < deadline and self._count_queued():
            gevent.sleep(0.005)
