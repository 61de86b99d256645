"""Raw bytes on real sockets: what is sent goes out as it stands, and all that comes back is kept until the end."""

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
# What no log of a healthy server holds.
ERRORS = re.compile(r"Traceback|\[(ERROR|CRITICAL)\]|(request|answer) failed|\"(level|outcome)\": \"(error|internal)")
HANG_SECONDS = 10.0
# Of the servers here that want a token; the others do not mind it.
SECRET = "wonder-land"
TOKEN = {"x-api-key": SECRET}
# Sent behind what is tried: where it is answered, both sides agree on where the requests before it ended.
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
    """All that came back on one connection, until the server closed it."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        """The statuses of the answers in their order, without interim ones."""
        return [int(status) for status in STATUS.findall(self.data) if not status.startswith(b"1")]

    @property
    def in_sync(self) -> bool:
        """Whether the follower was answered, and last."""
        _, _, last = self.data.rpartition(b"HTTP/1.")
        return f"X-Request-Id: {FOLLOWER_ID}".encode() in last

    @property
    def words(self) -> str:
        """What the last answer says."""
        return self.data.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace")


def connect(port: int, source: str = "127.0.0.1", timeout: float = HANG_SECONDS) -> socket.socket:
    """A connection on which nothing is said yet, from any address of the loopback."""
    connected = socket.create_connection(("127.0.0.1", port), timeout, (source, 0))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def exchange(port: int, data: bytes, source: str = "127.0.0.1") -> Received:
    """Sends the bytes, and the follower behind them once something comes back; a hang raises TimeoutError."""
    with connect(port, source) as connected:
        send(connected, data)
        received = receive(connected)
        if received:
            send(connected, FOLLOWER)
        return Received(received + receive_rest(connected))


def send_and_half_close(port: int, data: bytes) -> Received:
    """Sends the bytes and then FIN, so that the server waits for nothing more; a hang raises TimeoutError."""
    with connect(port) as connected:
        send(connected, data)
        with suppress(OSError):
            connected.shutdown(socket.SHUT_WR)
        return Received(receive_rest(connected))


def send(connected: socket.socket, data: bytes) -> None:
    """Sends all of it, or as much as a server takes that has answered and closed."""
    with suppress(ConnectionError):
        connected.sendall(data)


def receive(connected: socket.socket) -> bytes:
    """What comes next; empty once the server has closed, in whatever way."""
    try:
        return connected.recv(65536)
    except ConnectionError:
        return b""


def receive_rest(connected: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: receive(connected), b""))


def play(answer: wire.Answer) -> None:
    """The upstream's answer to whatever comes: `ok`, streamed or whole as it was asked."""
    for step in STREAMED if answer.request.json.get("stream") else (WHOLE,):
        step(answer)


def prompts(upstream: wire.Upstream) -> list[str]:
    """The last message of each request that reached the upstream."""
    return [request.json["messages"][-1]["content"] for request in upstream.requests]


@contextmanager
def assert_stays_healthy(rill: Rill) -> Iterator[None]:
    """Whatever happens in this context, the server is alive afterwards, and has logged no trouble."""
    said = len(rill.output())
    yield
    with rill.ask("GET", "/healthz", {"Connection": "close"}) as alive:
        assert (alive.status, alive.read_rest()) == (200, b"alive\n")
    assert ERRORS.search(rill.output(), said) is None, rill.output()[said:][-4000:]


def answers(rill: Rill) -> bool:
    """Whether a prompt is answered whole."""
    with Conversation(rill.port, request_bytes("GET", "/stream?q=well%3F", {**TOKEN, "Connection": "close"})) as asked:
        return (asked.status, asked.read_rest(), asked.ended) == (200, b"ok", "clean")
