"""A fake Messages API with the real wire format: one event loop and prepared bytes, to use little CPU.

`POST /v1/messages` (or `GET /stream?q=`, for a raw relay) with `tokens=200 rate=20 delay=0` anywhere in the prompt
answers 200 tokens, 20 per second, the first after `delay` seconds. Each answer has its own phase and each token its
own jitter, so that tokens of different answers are independent; each is sent separately, at its own time. `rate=0`
sends as fast as the reader takes them. A token has 20 bytes: `~`, 12 hexadecimal digits with the CLOCK_MONOTONIC
microsecond of its send, 6 with its lateness in microseconds, and a space.
"""

import argparse
import functools
import gc
import heapq
import itertools
import random
import re
import select
import socket
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import unquote_to_bytes

from measure import raise_descriptor_limit, take_priority
from poller import Poller

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import messages_api as wire

PACE = re.compile(rb"tokens=(\d+)[ +]rate=([\d.]+)(?:[ +]delay=([\d.]+))?")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CREDENTIALS = re.compile(rb"\r\n(?:authorization: *bearer|x-api-key:) *\S", re.IGNORECASE)

JITTER = 0.5  # of the period: the pause between two tokens of an answer is 0.5 to 1.5 periods
MAX_LATENESS = 0xFFFFFF  # microseconds
TOKENS_PER_WRITE = 128  # of an unpaced answer: 18 KB, so that this process is never the slowest


def frame(*events: bytes) -> bytes:
    """Return each event as one HTTP chunk."""
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


OPENING = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Request-Id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n"
    + frame(wire.start("bench"), wire.block_start(), wire.ping())
)
TOKEN = frame(wire.text("~------------------ ")).replace(b"%", b"%%").replace(b"-" * 18, b"%012x%06x")


def token_now(lateness: float = 0.0) -> bytes:
    """Return a text delta with the present microsecond, which is so many seconds late."""
    return TOKEN % (time.monotonic_ns() // 1000, min(int(lateness * 1e6), MAX_LATENESS))


@functools.cache
def closing(tokens: int) -> bytes:
    """Return the events that end an answer of so many tokens, and the terminating chunk."""
    return frame(wire.block_stop(), wire.message_delta(output_tokens=tokens), wire.message_stop()) + b"0\r\n\r\n"


def refusal(status: int, error: str) -> bytes:
    """Return a whole error response in the Messages API's shape."""
    body = wire.error_body(error, error)
    head = b"HTTP/1.1 %d Refused\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class Connection:
    """One client's connection, and the answer that flows on it."""

    __slots__ = (
        "inbox",
        "left",
        "next_due",
        "number",
        "outbox",
        "period",
        "secured",
        "sock",
        "tokens",
        "unpaced",
        "upstream",
        "watched",
    )

    def __init__(self, upstream: "Upstream", sock: socket.socket, secured: bool) -> None:
        self.upstream, self.sock, self.secured = upstream, sock, secured
        self.inbox = self.outbox = b""
        self.number = self.tokens = self.left = 0
        self.period, self.next_due, self.unpaced = 0.0, 0.0, False
        self.watched = select.EPOLLIN

    def on_event(self, mask: int) -> None:
        """Handle what epoll says of this connection."""
        try:
            if not self.secured:
                self.sock.do_handshake()
                self.secured = True
            if mask & select.EPOLLOUT:
                self.on_writable()
            if mask & ~select.EPOLLOUT:
                self.on_readable()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.close()

    def on_readable(self) -> None:
        """Read until the socket is dry (a TLS record may hold more than one read), then answer."""
        while data := self.sock.recv(65536):
            self.inbox += data
            self.answer_requests()
        self.close()

    def answer_requests(self) -> None:
        """Start an answer for each request that has arrived whole."""
        while (end := self.inbox.find(b"\r\n\r\n") + 4) >= 4:
            length = CONTENT_LENGTH.search(self.inbox, 0, end)
            whole = end + (int(length[1]) if length else 0)
            if len(self.inbox) < whole:
                return
            request, self.inbox = self.inbox[:whole], self.inbox[whole:]
            self.answer(request)

    def answer(self, request: bytes) -> None:
        """Answer one request at the pace that its prompt names."""
        posted = request.startswith(b"POST /v1/messages")
        pace = PACE.search(request if posted else unquote_to_bytes(request.split(b"\r\n", 1)[0]))
        if posted and not CREDENTIALS.search(request):
            self.write(refusal(401, "authentication_error"))
        elif not pace:
            self.write(refusal(400, "invalid_request_error"))
        else:
            self.tokens = self.left = int(pace[1])
            rate = float(pace[2])
            self.unpaced, self.period = rate == 0, 1 / rate if rate else 0.0
            self.number = next(self.upstream.numbers)
            self.next_due = time.monotonic() + float(pace[3] or 0)
            self.write(OPENING)
            self.upstream.schedule(self.next_due, self)

    def send_due(self, due: float) -> float | None:
        """Send the token that was due at `due`; return when the next one is due, None after the last."""
        if self.unpaced:
            self.watch(select.EPOLLIN | select.EPOLLOUT)
            return None
        if not self.left:
            return None
        first = self.left == self.tokens
        self.write(token_now(time.monotonic() - due))
        self.left -= 1
        if not self.left:
            self.write(closing(self.tokens))
            return None
        # The jitter does not accumulate, so the answer keeps its rate; the first pause sets its phase.
        self.next_due += self.period * (random.random() if first else 1.0)
        return self.next_due + self.period * JITTER * random.random()

    def on_writable(self) -> None:
        """Send what waited, then more of an unpaced answer."""
        if self.outbox:
            waiting, self.outbox = self.outbox, b""
            self.write(waiting)
        elif self.unpaced and self.left:
            count = min(self.left, TOKENS_PER_WRITE)
            self.left -= count
            self.write(token_now() * count + (b"" if self.left else closing(self.tokens)))
        if not self.outbox and not (self.unpaced and self.left):
            self.watch(select.EPOLLIN)

    def write(self, data: bytes) -> None:
        """Send now what the socket takes, and keep the rest for when it takes more."""
        if self.outbox:
            self.outbox += data
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self.outbox = data[sent:]
            self.watch(select.EPOLLIN | select.EPOLLOUT)

    def watch(self, mask: int) -> None:
        """Tell epoll which events matter from now on."""
        if mask != self.watched and self.sock.fileno() >= 0:
            self.watched = mask
            self.upstream.poller.modify(self.sock.fileno(), mask)

    def close(self) -> None:
        """Forget the connection; what is still due on it is skipped."""
        self.left, self.unpaced, self.outbox = 0, False, b""
        if self.sock.fileno() >= 0:
            del self.upstream.connections[self.sock.fileno()]
            self.sock.close()


class Upstream:
    """The event loop: sockets on one side, a heap of due tokens on the other."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.listener, self.tls = listener, tls
        self.poller = Poller()
        self.poller.register(listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.due: list[tuple[float, int, Connection]] = []
        self.numbers = itertools.count(1)

    def schedule(self, when: float, connection: Connection) -> None:
        """Schedule the connection's next token at a time of time.monotonic(), in seconds."""
        heapq.heappush(self.due, (when, connection.number, connection))

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            wait = self.due[0][0] - time.monotonic() if self.due else None
            for descriptor, mask in self.poller.ready(wait):
                if descriptor == self.listener.fileno():
                    self.accept()
                elif connection := self.connections.get(descriptor):
                    connection.on_event(mask)
            self.send_all_due()

    def accept(self) -> None:
        """Take every connection that waits."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self.connections[sock.fileno()] = Connection(self, sock, secured=not self.tls)
            self.poller.register(sock.fileno(), select.EPOLLIN)

    def send_all_due(self) -> None:
        """Send every token that is due now, each with a send of its own."""
        due, now = self.due, time.monotonic()
        while due and due[0][0] <= now:
            when, number, connection = due[0]
            following = connection.send_due(when) if number == connection.number else None
            if following is None:
                heapq.heappop(due)
            else:
                heapq.heapreplace(due, (following, number, connection))


def main() -> None:
    """Listen on a free port of 127.0.0.1, print the port, and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--certificate", help="PEM file of certificate and key: serve TLS")
    options = parser.parse_args()
    raise_descriptor_limit()
    take_priority()
    tls = None
    if options.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    gc.disable()  # the loop makes no cycles that matter, and a collection would be felt as latency
    Upstream(listener, tls).run()


if __name__ == "__main__":
    main()
