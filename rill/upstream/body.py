"""The body of a response: bytes of the upstream's connection in, bytes of the body out, for one reader.

geventhttpclient's parser, in C, does the HTTP. A read costs one wait and one recv. It can be nudged, closed or thrown
into at any moment without a leak, because only the wait yields to other greenlets.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from ssl import SSLWantReadError, SSLWantWriteError
from typing import Any, Protocol

import gevent
import httpx2
from geventhttpclient._parser import HTTPParseError
from geventhttpclient.connectionpool import ConnectionPool

from rill.upstream.response_parser import ResponseParser

# More than a TLS record holds, so that OpenSSL keeps no decrypted bytes back where no watcher sees them.
READ_BYTES = 65536

_ARRIVED, _NUDGED, _EXPIRED, _BLOCKED = object(), object(), object(), object()


class Relay(Protocol):
    """A reader within the event loop: `flush` must be called if `unsent` is not empty after `take` has taken a read."""

    unsent: bytes
    received_bytes: int

    def take(self, data: bytes) -> bool:
        """Take a read of complete chunks and return True, or decline it."""

    def flush(self) -> None:
        """Send what is unsent; it may wait."""


def body_of(response: httpx2.Response) -> "Body":
    """Return the body of a response of GeventTransport."""
    body: Body = response.extensions["rill.body"]
    return body


class Body(httpx2.SyncByteStream):
    """One response on one connection.

    `connection` is None once it is freed. `read` waits for bytes, at most `read_seconds` each time. A reader that does
    not wait uses `receive`, `feed` and `take` instead.
    """

    # Thousands are open at once; each would have a dict of its own.
    __slots__ = (
        "_declined",
        "_ends_in_crlf",
        "_has_closed",
        "_hub",
        "_is_tls",
        "_parser",
        "_pool",
        "_read_seconds",
        "_since",
        "_timer",
        "_waiting",
        "_watcher",
        "connection",
    )

    def __init__(self, connection: Any, pool: ConnectionPool, read_seconds: float) -> None:
        self._declined: bytes | None = None  # received, but not taken by the relay
        self._ends_in_crlf = False  # whether the bytes that were fed last do
        self._has_closed = False  # whether the upstream closed the connection behind what was received
        self._hub = gevent.get_hub()
        # In a process that gevent has not patched, a TLS socket is of the standard class, not of gevent's.
        self._is_tls = hasattr(connection, "pending")
        self._parser = ResponseParser()
        self._pool = pool
        self._read_seconds = read_seconds
        self._since = 0.0  # when the current wait began: monotonic, in seconds
        self._timer: Any = None
        self._waiting: Any = None  # the greenlet that waits for bytes
        self._watcher = self._hub.loop.io(connection.fileno(), 1)
        self.connection = connection
        connection.settimeout(0.0)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes as they come; httpx2 reads the body of an error this way."""
        while (data := self.read()) is not None:
            yield data

    def __del__(self) -> None:
        self.close()

    @property
    def status(self) -> int:
        """The status of the response, once `read_head` has returned True."""
        return self._parser.get_code()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the response, once `read_head` has returned True."""
        return self._parser.headers()

    @property
    def is_between_chunks(self) -> bool:
        """Whether a complete chunk that arrives next may be handled without `feed`.

        It is also true in two positions where only CRLF or a trailer can follow: behind the last chunk, and behind the
        data of a chunk that itself ends in CRLF.
        """
        parser = self._parser
        return self._ends_in_crlf and parser.is_chunked and parser.get_remaining_content_length() == 0

    def read_head(self) -> bool:
        """Wait for the headers; return False if the connection closes before the first byte; raise TransportError."""
        while not self._parser.has_headers:
            self._wait()
            data = self.receive()
            if data == b"" and not self._parser.has_begun:
                return False
            if data is not None:
                self.feed(data)
        self._stop_timer()  # It would keep a body alive that is dropped unread.
        return True

    def read(self, relay: Relay | None = None) -> bytes | None:
        """Return the next bytes, b"" if nudged, None at the end; raise httpx2.TransportError.

        If nothing is parsed in part, `relay` gets each read first; what it takes is not returned.
        """
        while not self._parser.body:
            if self._parser.is_complete:
                return None
            # To wait first saves a recv that would fail with EAGAIN.
            reason = self._wait(relay if self.is_between_chunks else None)
            if reason is _NUDGED:
                return b""
            if reason is _BLOCKED:
                assert relay
                relay.flush()
                continue
            data, self._declined = self._declined, None
            if data is None:
                data = self.receive()
            if data is not None:
                self.feed(data)
        return self.take()

    def nudge(self) -> None:
        """Wake a read that waits; called from the hub."""
        self._wake(_NUDGED)

    def receive(self) -> bytes | None:
        """Return what has arrived on the connection, b"" at its end, None if nothing; raise httpx2.TransportError."""
        try:
            data: bytes = self.connection.recv(READ_BYTES)
            return self._receive_records(data) if self._is_tls and data else data
        except (BlockingIOError, SSLWantReadError, SSLWantWriteError):
            return None
        except ConnectionResetError as error:
            if not self._parser.has_begun:
                return b""
            raise _transport_error(error) from error
        except OSError as error:
            raise _transport_error(error) from error

    def feed(self, data: bytes) -> None:
        """Parse what was received; raise httpx2.TransportError."""
        try:
            self._parser.feed(data)
        except HTTPParseError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error
        if self._parser.is_complete:
            self.close()
        elif not data:
            raise httpx2.RemoteProtocolError("The upstream closed the connection before the end of the response.")
        self._ends_in_crlf = data.endswith(b"\r\n")

    def take(self) -> bytes:
        """Return the bytes of the body that are parsed and not returned yet."""
        data = bytes(self._parser.body)
        self._parser.body.clear()
        return data

    def close(self) -> None:
        """Free the connection: keep it for the next request if the body was received to its end, else close it."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        self._stop_timer()
        self._watcher.close()
        if self._parser.is_reusable() and not self._has_closed:
            self._pool.return_socket(connection)
        else:
            self._pool.release_socket(connection)

    def _receive_records(self, data: bytes) -> bytes:
        """Return the data with what arrived behind it: OpenSSL returns one TLS record, often one token, at a time."""
        records, size = [data], len(data)
        with suppress(OSError):  # Nothing more has arrived; any other error comes again at the next receive.
            while size < READ_BYTES:
                data = self.connection.recv(READ_BYTES)
                if not data:
                    self._has_closed = True
                    break
                records.append(data)
                size += len(data)
        return b"".join(records)

    def _wait(self, relay: Relay | None = None) -> object:
        """Wait until bytes arrive that no relay takes, or a nudge, and return which; raise httpx2.ReadTimeout."""
        self._waiting = gevent.getcurrent()
        self._since = time.monotonic()
        if self._timer is None:
            self._start_timer(self._read_seconds)
        if relay:
            self._watcher.start(self._offer, relay)
        else:
            self._watcher.start(self._waiting.switch, _ARRIVED)
        try:
            reason: object = self._hub.switch()
        finally:
            self._waiting = None
            self._watcher.stop()
        if reason is _EXPIRED:
            raise httpx2.ReadTimeout("The upstream was silent for too long.")
        return reason

    def _offer(self, relay: Relay) -> None:
        # Called by the event loop for each read: one recv, so that a fast upstream delays no other one.
        try:
            data = self.connection.recv(READ_BYTES)
        except (BlockingIOError, SSLWantReadError, SSLWantWriteError):
            return
        except OSError as error:  # The connection reports it only once.
            self._waiting.throw(_transport_error(error))
            return
        self._since = time.monotonic()
        if not data or not relay.take(data):
            self._declined = data
            self._wake(_ARRIVED)
        elif relay.unsent:
            self._wake(_BLOCKED)

    def _wake(self, reason: object) -> None:
        if self._waiting:
            self._waiting.switch(reason)

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._check_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _check_time(self) -> None:
        # Once in `read_seconds`: a new timer for every wait would cost each token. If no read waits, none is started,
        # because it would keep a body alive that was dropped unread.
        self._stop_timer()
        left = self._since + self._read_seconds - time.monotonic()
        if self._waiting and left > 0:
            self._start_timer(left)
        else:
            self._wake(_EXPIRED)


def _transport_error(error: OSError) -> httpx2.TransportError:
    kind = httpx2.ReadTimeout if isinstance(error, TimeoutError) else httpx2.ReadError
    return kind(str(error))
