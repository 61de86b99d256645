"""A client's connection: fair to read from, cheap to write to; it reports disconnects and slow clients."""

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from errno import ECONNRESET
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Any

import gevent
from gevent.socket import socket as GeventSocket

from rill.server.receipt import Receipt
from rill.server.turns import Turns
from rill.streaming.cancellation import Cancellation

if TYPE_CHECKING:
    from rill.server.connections import Connections

# A client that takes nothing for this long is not reading; its slot is free within 30 s.
SLOW_CLIENT_SECONDS = 24.0
# How often a write that waits checks whether the client has taken something meanwhile.
PROGRESS_SECONDS = 2.0
# How often a connection with pipelined bytes, which hide a disconnect from the watcher, is checked for one.
POLL_SECONDS = 1.0
# How long the last bytes may take to be acknowledged before a reset, which would drop them.
FLUSH_SECONDS = 2.0
# What the kernel may hold for a client that does not read; Linux doubles it.
SEND_BUFFER_BYTES = 65536 // 2
# gunicorn's parser reads this much if it does not know the size; at most TURN_BYTES of it are parsed in one turn.
PARSER_BYTES = 8192
TURN_BYTES = 4096
# After its last response a client has this long to read it; what it still sends meanwhile is discarded.
LINGER_SECONDS = 2.0

_ESTABLISHED = 1  # the first byte of Linux's struct tcp_info is the connection's state


class ClientSocket(GeventSocket):
    """A client's connection.

    `address` identifies the client; it is None if connections are not limited per address. `waiting` belongs to
    `connections`. A write that the client takes nothing of for `slow_seconds` fails.
    """

    slow_seconds = SLOW_CLIENT_SECONDS

    _sock: socket.socket
    connections: "Connections"

    def __init__(self, accepted: Any, turns: Turns, address: str | None) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        # Not inherited from the listener: the kernel accepts connections before the worker has started.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.address = address
        self.waiting = False
        self._turns = turns
        self._answer: Cancellation | None = None
        self._watcher: Any = None
        self._held: bytes | None = None  # b"" to hold the next write
        self._receipt: Receipt | None = None

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what has arrived, at most `size` bytes, in the client's turn: processing it takes time."""
        data = self.receive(min(size, TURN_BYTES) if size <= PARSER_BYTES else size, flags)
        self._turns.wait()
        return data

    def receive(self, size: int, flags: int = 0) -> bytes:
        """Return what has arrived, at most `size` bytes; what costs time takes a turn before."""
        try:
            data = super().recv(size, flags)
        except ConnectionError:
            self._end_receipt(is_reset=True)
            raise
        if self._receipt:
            self._end_receipt(is_reset=False)
        return data

    def await_receipt(self, note: Callable[[int], None]) -> None:
        """Report whether the client receives the response that was sent just now, as Receipt does."""
        self._receipt = Receipt(self._count_queued, note)

    @property
    def overloaded(self) -> bool:
        """Whether the worker does not keep up with its clients."""
        return self._turns.overloaded

    def take_turn(self) -> None:
        """Return in the client's turn."""
        self._turns.wait()

    def admit(self, answer: Cancellation) -> Callable[[], None]:
        """Deliver an answer here, and cancel it when the client disconnects; return what ends that."""
        self._answer = answer
        self.connections.admit(self, answer)
        self._watcher = gevent.get_hub().loop.io(self.fileno(), 1)
        self._watcher.start(self._check_disconnect, answer)
        return self._dismiss

    def _dismiss(self) -> None:
        answer, self._answer = self._answer, None
        self._watcher.close()
        if answer:
            self.connections.drain.discard(answer)

    def _check_disconnect(self, answer: Cancellation) -> None:
        self._watcher.close()
        if self.is_disconnected():
            answer.cancel("client_disconnected")
        else:
            # Readable but not disconnected means a pipelined request, for which a level-triggered watcher would fire
            # continuously: poll instead.
            self._watcher = gevent.get_hub().loop.timer(POLL_SECONDS)
            self._watcher.start(self._check_disconnect, answer)

    def is_disconnected(self) -> bool:
        """Return whether the client closed, half-closed or reset the connection, whatever it sent before."""
        try:
            if self.family == socket.AF_UNIX:
                return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
        except BlockingIOError:
            return False
        except OSError:
            return True

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all; raise OSError, also if the answer is cancelled while this waits for the client."""
        if self._held is not None:
            if not self._held:
                self._held = data
                return
            data, self._held = self._held + data, None
        try:
            # A token needs one plain send; gevent's sendall asks for SO_SNDBUF first, each time.
            try:
                sent = self._sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], flags)
        except OSError:
            if self._answer:
                self._answer.undelivered = True
            raise

    def hold_next(self) -> None:
        """Send the next write together with the one after it: the head of a response with the beginning of its body."""
        self._held = b""

    def send_now(self, data: bytes) -> int:
        """Send what the kernel takes at once, and return the number of bytes; raise OSError."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def _send_rest(self, data: memoryview, flags: int) -> None:
        answer = self._answer
        if answer:
            answer.pause_idle_timeout()
        try:
            while data:
                data = data[self._send_some(data, flags) :]
        except OSError:
            raise
        except Exception as error:
            raise ConnectionResetError(ECONNRESET, str(error)) from error
        finally:
            if answer:
                answer.resume_idle_timeout()

    def _send_some(self, data: memoryview, flags: int) -> int:
        """Return the bytes sent once some fit; raise ConnectionResetError if the client takes nothing for too long.

        What the client's kernel acknowledges counts as taken: the socket becomes writable only when a third of its
        buffer is free, which takes a slow reader minutes.
        """
        sent, since, queued = 0, time.monotonic(), self._count_queued()
        while not sent:
            with suppress(TimeoutError), gevent.Timeout(PROGRESS_SECONDS, TimeoutError):
                sent = self.send(data, flags)
            if (left := self._count_queued()) < queued:
                since, queued = time.monotonic(), left
            elif not sent and time.monotonic() - since >= self.slow_seconds:
                if self._answer:
                    self._answer.reason = self._answer.reason or "client_too_slow"
                raise ConnectionResetError(ECONNRESET, "the client does not read")
        return sent

    def _count_queued(self) -> int:
        """Return the number of bytes that were sent and not acknowledged."""
        queued: int = struct.unpack("i", ioctl(self.fileno(), TIOCOUTQ, b"\0" * 4))[0]
        return queued

    def _end_receipt(self, is_reset: bool) -> None:
        receipt, self._receipt = self._receipt, None
        if receipt:
            receipt.end(is_reset)

    def linger(self, size: int) -> None:
        """Send FIN, and discard up to `size` bytes of what still comes: a reset could make the response unreadable."""
        with suppress(OSError), gevent.Timeout(LINGER_SECONDS, OSError):
            self.shutdown(socket.SHUT_WR)
            while size > 0 and (data := self.recv(65536)):
                size -= len(data)

    def reset(self, flush_seconds: float = FLUSH_SECONDS) -> None:
        """Make the next close a reset, once all that was sent is acknowledged, or after `flush_seconds`."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + flush_seconds
        while time.monotonic() < deadline and self._count_queued():
            gevent.sleep(0.005)
