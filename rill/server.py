"""The gunicorn worker: gevent's, with callers' connections that tell when they are blocked and when they have left."""

import os
import re
import resource
import signal
import socket
import struct
import time
from contextlib import suppress
from errno import ECONNRESET
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

import gevent
from gevent.socket import socket as GeventSocket
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidHeader,
    InvalidRequestLine,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.ggevent import GeventWorker

# What the kernel may hold for a caller that does not read; Linux doubles it.
SEND_BUFFER_BYTES = 65536 // 2
# Connections beyond the answers': those that are refused, health checks, idle keep-alive ones.
WAITING_CONNECTIONS = 1000
# Descriptors beyond the connections': kept ones to the upstream, listeners, logs, the loop's own.
RESERVED_DESCRIPTORS = 200
# How long answers have to tell their callers that they were ended.
END_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.05
# How long the last bytes may take to be taken before a reset, which would drop them.
FLUSH_SECONDS = 2.0
# How long a caller that reads nothing holds a write. An answer is ended before that, and says so in the log.
BLOCKED_SECONDS = 30.0

# All header lines together: what a thousand of them would cost to understand, everybody else would wait for.
MOST_HEADER_BYTES = 65_536
# https://www.rfc-editor.org/rfc/rfc9112#section-3.2 and, for a Host, https://www.rfc-editor.org/rfc/rfc3986#section-3.2.2
TARGET = re.compile(r"/.*|\*|https?://[^/?#].*", re.IGNORECASE)
HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[\w.~!$&'()*+;=%-]{1,255})(?::[0-9]{0,5})?", re.ASCII | re.IGNORECASE)

STATUSES = {
    LimitRequestLine: "414 URI Too Long",
    ExpectationFailed: "417 Expectation Failed",
    LimitRequestHeaders: "431 Request Header Fields Too Large",
    UnsupportedTransferCoding: "501 Not Implemented",
}
HELP = {
    "400 Bad Request": (
        "This is no HTTP request that can be read. In a URL, percent-encode whatever is not plain ASCII "
        "(curl: --get --data-urlencode 'q=...'), or send the prompt as the body of a POST.\n"
    ),
    "414 URI Too Long": "The URL is too long: it may be of about 8,000 bytes. Send the prompt as the body of a POST.\n",
    "431 Request Header Fields Too Large": (
        "At most 100 headers of at most 8,190 bytes each are read, and 65,536 bytes in all.\n"
    ),
}

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


def places_for(streams: int) -> tuple[int, int]:
    """How many answers and how many connections fit, having raised the limit of descriptors for `streams` answers.

    An answer holds two descriptors, its caller's and its upstream's; a caller that is refused or idle holds one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * streams + WAITING_CONNECTIONS + RESERVED_DESCRIPTORS
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit >= wanted:
        return streams, streams + WAITING_CONNECTIONS
    usable = max(5, limit - RESERVED_DESCRIPTORS)
    return 2 * usable // 5, 3 * usable // 5


class Worker(GeventWorker):
    """gunicorn's gevent worker, which drains before it stops: new callers are refused, and open answers may finish.

    The application's `extensions["drain"]` knows the open answers.
    """

    wsgi: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connections: set[Any] = set()
        self.idle: set[Any] = set()
        self.busy: set[Any] = set()
        self.draining = False

    def init_process(self) -> None:
        # gunicorn sets a worker's handlers only once it is loaded; until then they are its master's, and do nothing.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.handle_exit)
        super().init_process()

    def run(self) -> None:
        for listener in self.sockets:
            # Accepted connections inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().run()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if type(client) is GeventSocket:
            client = ClientSocket(client)
        self.connections.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self.connections.discard(client)
            self.idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        check_head(req)
        self.idle.discard(sock)
        if self.draining:
            req.force_close()
        self.busy.add(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self.busy.discard(sock)
        if self.draining:
            raise StopIteration  # So gunicorn is told to close a connection.
        self.idle.add(sock)
        self._read_rest(req)
        return True

    def _read_rest(self, req: Any) -> None:
        """Reads what the application left of the body; broken chunks in it close the connection, without a word.

        gunicorn would do it as it reads the next request, and answer what is broken as if it were one.
        """
        with gevent.Timeout(self.cfg.keepalive, NoMoreData()), suppress(ParseException):
            while not req.body.failed and req.body.read(65536):
                pass
        if req.body.failed:
            raise StopIteration

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers what is no request that the application could answer; the log gets no word of it, only its kind."""
        status = "400 Bad Request" if isinstance(exc, ParseException) else "500 Internal Server Error"
        for kind, its_status in STATUSES.items():
            status = its_status if isinstance(exc, kind) else status
        self.log.warning("A request could not be read: %s", type(exc).__name__)
        words = HELP.get(status, f"{status[4:]}.\n").encode()
        head = (
            f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            "Cache-Control: no-store, no-transform\r\nX-Content-Type-Options: nosniff\r\n"
        )
        with suppress(OSError):
            client.sendall(f"{head}Content-Length: {len(words)}\r\n\r\n".encode() + words)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """SIGTERM: drains, then lets gunicorn stop the worker; one that has not begun to serve just stops."""
        if not self.booted:
            self.alive = False
        elif not self.draining:
            self.draining = True
            gevent.spawn(self._drain)

    handle_quit = handle_exit  # SIGINT, and what gunicorn makes of it.

    def _drain(self) -> None:
        drain = self.wsgi.extensions["drain"]
        drain.begun = True
        hang_up(self.idle)
        deadline = time.monotonic() + self.wsgi.config["DRAIN_SECONDS"]
        while self.busy and time.monotonic() < deadline:
            gevent.sleep(DRAIN_LOOK_SECONDS)
        drain.end_all()
        deadline = time.monotonic() + END_SECONDS
        while self.busy and time.monotonic() < deadline:
            gevent.sleep(DRAIN_LOOK_SECONDS)
        hang_up(self.connections)
        self.alive = False


def check_head(req: Any) -> None:
    """Refuses what gunicorn lets pass, but another reader of HTTP on the way may have understood otherwise.

    Raises gunicorn's ParseException. https://www.rfc-editor.org/rfc/rfc9112#section-11.2
    """
    if not TARGET.fullmatch(req.uri):
        raise InvalidRequestLine(req.uri)
    req.path = req.path or "/"  # That of http://host
    fields: dict[str, list[str]] = {}
    for name, value in req.headers:
        fields.setdefault(name, []).append(value)
    hosts = fields.get("HOST", [] if req.version >= (1, 1) else ["unsaid"])
    if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
        raise InvalidHeader("HOST")
    if [coding.lower() for coding in fields.get("TRANSFER-ENCODING", ["chunked"])] != ["chunked"]:
        raise UnsupportedTransferCoding("TRANSFER-ENCODING")
    if sum(len(name) + len(value) for name, value in req.headers) > MOST_HEADER_BYTES:
        raise LimitRequestHeaders("all header lines together")
    if "close" in [option.strip(" \t").lower() for option in ",".join(fields.get("CONNECTION", [])).split(",")]:
        req.force_close()


def hang_up(connections: set[Any]) -> None:
    """Ends each connection as if its caller had left: who waits for a request finds the end, and closes."""
    for connection in tuple(connections):
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


class Logger(GunicornLogger):
    """gunicorn's log without its access lines, which a platform may force: they hold the query, and so the prompt."""

    def access(self, *arguments: Any) -> None:
        pass
