"""A client for tests that sees each chunk of a response, and how the response ended."""

import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

from leaks import WIRE_SECRETS, WireSecrets


def request_bytes(
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    version: str = "HTTP/1.1",
) -> bytes:
    """Return a request in its wire format; Content-Length is added if it has a body."""
    fields = {"Host": "127.0.0.1", **({"Content-Length": str(len(body))} if body else {}), **(headers or {})}
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def raw_request(port: int, data: bytes, timeout: float = 10) -> socket.socket:
    """Connect, send the bytes, and return the socket with nothing read.

    A server may answer and close before it has read all of them; its response can still be read.
    """
    connected = socket.create_connection(("127.0.0.1", port), timeout)
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            connected.sendall(data)
    except BaseException:
        connected.close()
        raise
    return connected


class Conversation:
    """A connection on which a request was sent; its answer is read only as far as the test reads it.

    `ended` is None while the answer is incomplete; then "clean" (its framing is complete), "truncated" (closed
    before that) or "reset". An answer without framing ends clean at a close.
    """

    def __init__(self, port: int, request: bytes, timeout: float = 10) -> None:
        self._wire_secrets = WIRE_SECRETS.get(port, WireSecrets())
        self.socket = raw_request(port, request, timeout)
        self.ended: str | None = None
        self._inbox = bytearray()
        self._status: int | None = None
        self._headers: dict[str, str] = {}
        self._chunked = False
        self._left: int | None = None
        self._begin(request)

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def ask(self, request: bytes) -> None:
        """Send a further request on the same connection."""
        self._begin(request)
        self.socket.sendall(request)

    def close(self) -> None:
        """Disconnect by FIN (TCP sends RST if received data was not read)."""
        self.socket.close()

    def half_close(self) -> None:
        """Send FIN even if data is unread, and keep reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Disconnect by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    @property
    def status(self) -> int | None:
        """The status of the answer, once it arrives; None if the connection ended before it."""
        self._read_head()
        return self._status

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer by lower-case name, once they arrive."""
        self._read_head()
        return self._headers

    def next_chunk(self) -> bytes:
        """Return the payload of the next chunk (without chunks: the next data), or b"" if the answer has ended."""
        self._read_head()
        if self.ended:
            return b""
        try:
            piece = self._read_chunk() if self._chunked else self._read_plain()
        except (EOFError, ConnectionResetError) as over:
            return self._end(over)
        if not piece:
            self.ended = "clean"
        return piece

    def read_until(self, wanted: bytes) -> bytes:
        """Read chunks until `wanted` is in them (or the answer ends), and return them joined."""
        got = b""
        while wanted not in got and (piece := self.next_chunk()):
            got += piece
        return got

    def read_rest(self) -> bytes:
        """Return the rest of the answer, however it ends."""
        return b"".join(iter(self.next_chunk, b""))

    def _begin(self, request: bytes) -> None:
        self.ended, self._status, self._headers = None, None, {}
        self._method = request.split(b" ", 1)[0]
        self._wire_secrets.note_credentials(request)

    def _read_head(self) -> None:
        if self._status is not None or self.ended:
            return
        try:
            status_line = self._take_line().decode("latin-1")
            while line := self._take_line().decode("latin-1"):
                name, value = line.split(":", 1)
                self._headers[name.lower()] = value.strip()
        except (EOFError, ConnectionResetError) as over:
            self._chunked, self._left = False, 0
            self._end(over)
            return
        self._status = int(status_line.split(" ")[1])
        bodyless = self._method == b"HEAD" or self._status in (204, 304)
        self._chunked = not bodyless and self._headers.get("transfer-encoding", "").lower() == "chunked"
        length = "0" if bodyless else self._headers.get("content-length")
        self._left = None if self._chunked or length is None else int(length)

    def _read_chunk(self) -> bytes:
        size = int(self._take_line().split(b";")[0], 16)
        piece = self._take(size)
        self._take_line()
        return piece

    def _read_plain(self) -> bytes:
        if self._left == 0:
            return b""
        if not self._inbox:
            self._receive()
        piece = self._take(min(len(self._inbox), self._left or sys.maxsize))
        if self._left is not None:
            self._left -= len(piece)
        return piece

    def _end(self, over: Exception) -> bytes:
        unframed = self._status is not None and not self._chunked and self._left is None
        self.ended = "reset" if isinstance(over, ConnectionResetError) else "clean" if unframed else "truncated"
        return b""

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self._inbox += data

    def _take(self, size: int) -> bytes:
        while len(self._inbox) < size:
            self._receive()
        taken = bytes(self._inbox[:size])
        del self._inbox[:size]
        return taken

    def _take_line(self) -> bytes:
        while (end := self._inbox.find(b"\r\n")) < 0:
            self._receive()
        return self._take(end + 2)[:-2]
