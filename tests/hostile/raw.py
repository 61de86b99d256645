"""Raw bytes on real sockets: requests are sent unchanged, and everything received is recorded."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import upstream as wire
from conversation import Conversation, request_bytes
from server import Rill

STATUS = re.compile(rb"HTTP/1\.\d (\d{3}) ")
# What the log of a healthy server never contains.
ERRORS = re.compile(r"Traceback|\[(ERROR|CRITICAL)\]|(request|answer) failed|\"(level|outcome)\": \"(error|internal)")
HANG_SECONDS = 10.0
# The API key of the servers that require one; the others ignore it.
SECRET = "wonder-land"
API_KEY = {"x-api-key": SECRET}
# A request sent after the one under test: its response proves that both sides agree on where the first one ended.
FOLLOWER_ID = "the-follower"
FOLLOWER = request_bytes("GET", "/healthz", {"X-Request-Id": FOLLOWER_ID, "Connection": "close"})

MESSAGE = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "ok"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
WHOLE = wire.status(200, {"content-type": "application/json"}, json.dumps(MESSAGE).encode())
STREAMED = tuple(wire.answer("ok"))


class Received(NamedTuple):
    """Everything received on one connection until the server closed it."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        """Return the statuses of the responses in order, without interim ones."""
        return [int(status) for status in STATUS.findall(self.data) if not status.startswith(b"1")]

    @property
    def in_sync(self) -> bool:
        """Return whether the last response is the follower's."""
        _, _, last = self.data.rpartition(b"HTTP/1.")
        return f"X-Request-Id: {FOLLOWER_ID}".encode() in last

    @property
    def last_body(self) -> str:
        """Return the body of the last response."""
        return self.data.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace")


def connect(port: int, source: str = "127.0.0.1", timeout: float = HANG_SECONDS) -> socket.socket:
    """Open a connection from an address of the loopback network, and send nothing yet."""
    connected = socket.create_connection(("127.0.0.1", port), timeout, (source, 0))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def exchange(port: int, data: bytes, source: str = "127.0.0.1") -> Received:
    """Send the bytes, and the follower after the first byte received; raise TimeoutError if the server hangs."""
    with connect(port, source) as connected:
        send(connected, data)
        received = receive(connected)
        if received:
            send(connected, FOLLOWER)
        return Received(received + receive_rest(connected))


def send_and_half_close(port: int, data: bytes) -> Received:
    """Send the bytes and FIN, so that the server waits for nothing more; raise TimeoutError if it hangs."""
    with connect(port) as connected:
        send(connected, data)
        with suppress(OSError):
            connected.shutdown(socket.SHUT_WR)
        return Received(receive_rest(connected))


def send(connected: socket.socket, data: bytes) -> None:
    """Send all bytes, or as many as a server reads that has responded and closed."""
    with suppress(ConnectionError):
        connected.sendall(data)


def receive(connected: socket.socket) -> bytes:
    """Return the next bytes received; b"" once the server has closed or reset the connection."""
    try:
        return connected.recv(65536)
    except ConnectionError:
        return b""


def receive_rest(connected: socket.socket) -> bytes:
    """Return everything received until the server closes."""
    return b"".join(iter(lambda: receive(connected), b""))


def play(answer: wire.Answer) -> None:
    """Answer any upstream request with `ok`, streamed if it asks for that."""
    for step in STREAMED if answer.request.json.get("stream") else (WHOLE,):
        step(answer)


def prompts(upstream: wire.Upstream) -> list[str]:
    """Return the last message of each request that reached the upstream."""
    return [request.json["messages"][-1]["content"] for request in upstream.requests]


@contextmanager
def assert_stays_healthy(rill: Rill) -> Iterator[None]:
    """Assert that the server is alive after the context, and has logged no error."""
    offset = len(rill.output())
    yield
    with rill.ask("GET", "/healthz", {"Connection": "close"}) as alive:
        assert (alive.status, alive.read_rest()) == (200, b"alive\n")
    assert ERRORS.search(rill.output(), offset) is None, rill.output()[offset:][-4000:]


def answers(rill: Rill) -> bool:
    """Return whether a prompt gets a complete answer."""
    with Conversation(
        rill.port, request_bytes("GET", "/stream?q=well%3F", {**API_KEY, "Connection": "close"})
    ) as asked:
        return (asked.status, asked.read_rest(), asked.ended) == (200, b"ok", "clean")
