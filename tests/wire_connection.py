"""The server's side of one connection to the fake upstream: reads, writes and the peer's disconnect."""

import contextlib
import json
import os
import select
import socket
import ssl
import struct
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Ended(Exception):
    """The answer ends before its script; `outcome` is the reason."""

    outcome = ""


class Disconnected(Ended):
    """The peer closed or reset the connection."""

    outcome = "disconnected"


class Closed(Ended):
    """The script itself closed or reset the connection."""

    outcome = "truncated"


class Abandoned(Ended):
    """The test has ended, so the rest is not sent."""

    outcome = "abandoned"


class Signal:
    """A one-time event that wakes every thread that polls for it."""

    def __init__(self) -> None:
        # All pollers of a pipe see its write end close, and continue to see it: one pipe wakes any number.
        # It stays open while a reference to the signal exists, so that no thread polls a reused descriptor.
        self._read, write = os.pipe()
        self._fire = weakref.finalize(self, os.close, write)
        weakref.finalize(self, os.close, self._read)

    def fire(self) -> None:
        """Fire; a second call has no effect."""
        self._fire()

    @property
    def fired(self) -> bool:
        """Whether it has fired."""
        return not self._fire.alive

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when it fires."""
        return self._read


@dataclass(frozen=True)
class Request:
    """One request as received: `path` with its query, `headers` by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Connection:
    """One accepted connection: reads requests, writes answers, and detects a disconnect."""

    def __init__(self, accepted: socket.socket, peer_port: int, over: Signal) -> None:
        self.socket = accepted
        self.peer_port = peer_port
        self.over = over  # interrupts every wait on this connection
        self.closed_at: float | None = None
        self.reset_on_close = False
        self._peer_disconnected = False
        self._inbox = bytearray()

    def begin(self, tls: ssl.SSLContext | None) -> None:
        """Prepare the connection for reading, with a TLS handshake if `tls` is given."""
        self.socket.settimeout(5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            try:
                self.socket = tls.wrap_socket(self.socket, server_side=True)
            except OSError as rejected:  # a peer that does not trust the certificate disconnects here
                raise Disconnected from rejected
        self.socket.setblocking(False)
        self._receive()  # the handshake may have read further than its own end

    def read_request(self) -> Request:
        """Wait for the next request and return it whole."""
        method, path, _ = self._take_line().decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while line := self._take_line().decode("latin-1"):
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Request(method, path, headers, b"".join(self._take_chunks()))
        return Request(method, path, headers, self._take(int(headers.get("content-length", 0))))

    def write(self, data: bytes) -> None:
        """Send all of `data`, in one write if the socket has space; raise `Disconnected` after a disconnect."""
        self._receive()
        left = memoryview(data)
        while left:
            if self._peer_disconnected:
                raise Disconnected
            try:
                left = left[self.socket.send(left) :]
            except WOULD_BLOCK:
                self.wait(writable=True)
            except OSError as error:
                raise Disconnected from error

    def wait(self, also: Signal | None = None, seconds: float | None = None, writable: bool = False) -> None:
        """Wait once for the peer, a signal, or `seconds`; raise if the peer has disconnected or the test has ended."""
        if self._peer_disconnected:
            raise Disconnected
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | (select.POLLOUT if writable else 0))
        poll.register(self.over, select.POLLIN)
        if also:
            poll.register(also, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)
        if self.over.fired:
            raise Abandoned
        self._receive()

    def close(self) -> None:
        """Close: by RST if `reset_on_close`, else by FIN, after reading everything that the peer has sent."""
        if self.reset_on_close:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self._receive()  # closing with unread bytes would be a RST
            if isinstance(self.socket, ssl.SSLSocket):
                with contextlib.suppress(OSError, ValueError):
                    self.socket.unwrap()
        self.socket.close()
        self.closed_at = time.monotonic()

    def _receive(self) -> None:
        """Read what has arrived, so that the peer's end is detected behind the data before it."""
        try:
            while data := self.socket.recv(65536):
                self._inbox += data
        except WOULD_BLOCK:
            return
        except OSError:
            pass
        self._peer_disconnected = True

    def _take(self, size: int) -> bytes:
        while len(self._inbox) < size:
            self.wait()
        taken = bytes(self._inbox[:size])
        del self._inbox[:size]
        return taken

    def _take_line(self) -> bytes:
        while (end := self._inbox.find(b"\r\n")) < 0:
            self.wait()
        return self._take(end + 2)[:-2]

    def _take_chunks(self) -> Iterator[bytes]:
        while size := int(self._take_line().split(b";")[0], 16):
            yield self._take(size)
            self._take_line()
        while self._take_line():
            pass
