"""A TCP proxy for tests that cuts connections after a number of bytes of a response's body."""

import contextlib
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

HEAD_END = b"\r\n\r\n"
BODY_END = b"0\r\n\r\n"
LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)


class CuttingProxy:
    """A proxy in front of a server while the context is entered; each entry of `cuts` cuts one answer.

    Only answers that can be resumed are cut. An entry is the number of bytes of the body, with its chunk framing, that
    pass; then the connection is reset. Further answers pass whole. `on_cut` gets each
    entry after its cut. With `reads_all`, the proxy has received the whole answer before that.
    """

    def __init__(
        self,
        port: int,
        cuts: Sequence[int],
        on_cut: Callable[[int], object] = lambda size: None,
        reads_all: bool = False,
    ):
        self._target = port
        self._cuts = deque(cuts)
        self._on_cut = on_cut
        self._reads_all = reads_all
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self.responses = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "CuttingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # close() alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in tuple(self._open):
            shut_down(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        is_cut, size = False, 0
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, self._opened(client, server):
            threading.Thread(target=copy, args=(client, server), daemon=True).start()
            head = b""
            while HEAD_END not in head and (data := server.recv(65536)):
                head += data
            head, _, body = head.partition(HEAD_END)
            if not head:
                return
            client.sendall(head + HEAD_END)
            self.responses += 1
            is_cut = b"Content-Location:" in head and bool(self._cuts)
            length = LENGTH.search(head)
            while (
                is_cut and self._reads_all and not (len(body) == int(length[1]) if length else body.endswith(BODY_END))
            ):
                body += server.recv(65536)
            left = size = self._cuts.popleft() if is_cut else 1 << 62
            if is_cut and self._reads_all:
                left = min(size, len(body))
            while left > 0 and (body := body or server.recv(65536)):
                client.sendall(body[:left])
                left, body = left - len(body), b""
            if is_cut:
                for each in client, server:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if is_cut:
            self._on_cut(size)

    @contextlib.contextmanager
    def _opened(self, *sockets: socket.socket) -> Iterator[None]:
        self._open.update(sockets)
        try:
            with contextlib.suppress(OSError):
                yield
        finally:
            self._open.difference_update(sockets)
            for each in sockets:
                # Ends the recv of the other thread; a FIN here would come before the reset.
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RD)


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy a request until either side closes."""
    with contextlib.suppress(OSError):
        line, end, rest = source.recv(65536).partition(b"\r\n")
        # An answer is the first response of its connection. It needs to be chunked, without `Connection: close`: Node's
        # fetch takes the end of such a connection for the end of the response.
        is_answer = b"/stream?" in line or line.startswith(b"POST /stream")
        target.sendall(line + end + (b"" if is_answer else b"Connection: close\r\n") + rest)
        while data := source.recv(65536):
            target.sendall(data)


def shut_down(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
