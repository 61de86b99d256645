"""The relay writes what the general path writes: for any stream, however it is split into reads."""

import fcntl
import json
import re
import struct
import termios
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import gevent
import httpx2
import pytest
from gevent import socket
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from rill.dialects import ANTHROPIC, OPENAI, SSE, TEXT
from rill.dialects.base import Dialect
from rill.prompt import ReplyFormat
from rill.streaming.cancellation import Cancellation, Deadlines
from rill.streaming.delivery import Delivery
from rill.streaming.relay import Aborted, Relay, parse_deltas
from rill.upstream.answer import Answer
from rill.upstream.body import Body

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
START = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}
STOP = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}
END = {"type": "message_stop"}
# What differs between two runs: the clock.
TIMES = re.compile(rb'"(?:elapsed_seconds|created)": [0-9.]+')


class Pool:
    """A pool that keeps no connection."""

    def return_socket(self, connection: Any) -> None:
        connection.close()

    release_socket = return_socket


class Client:
    """A client's connection, of which each relayed write takes `capacity` bytes at once."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.received = b""
        self.relayed = 0
        self._capacity = capacity

    def send(self, data: bytes) -> int:
        self.relayed += 1
        self.received += data[: self._capacity]
        return min(len(data), self._capacity)

    def send_all(self, data: bytes) -> None:
        self.received += data

    def body(self) -> bytes:
        """The body in the chunks that were received."""
        body, rest = b"", self.received
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunk, end, rest = rest[: int(size, 16)], rest[int(size, 16) :][:2], rest[int(size, 16) + 2 :]
            assert end == b"\r\n"
            body += chunk
        return TIMES.sub(b"", body)


class Result(NamedTuple):
    """What became of an answer."""

    body: bytes
    outcome: str
    bytes_sent: int
    stop_reason: str | None
    has_text: bool


def deliver(reads: list[bytes], dialect: Dialect, client: Client, relayed: bool) -> Result:
    """Deliver the answer of an upstream that sends these reads and closes."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(HEAD)
        body = Body(near, Pool(), 30.0)  # type: ignore[arg-type]
        assert body.read_head()
        response = httpx2.Response(200, headers=body.headers, stream=body, extensions={"rill.body": body})
        answer = Answer(response, True, dialect.is_verbatim, [])
        cancellation = Cancellation(Deadlines(30, 30, 30))
        encoder = dialect.open_encoder("m", ReplyFormat(include_usage=True), "r")
        delivery = Delivery([], cancellation.watch(answer), encoder, cancellation, None, lambda delivery: None)
        if relayed:
            answer.relay(delivery.relay(client.send, client.send_all, chunked=True))
        feeder = gevent.spawn(feed, far, near, reads)
        with suppress(Aborted):
            for chunk in filter(None, delivery):
                client.received += b"%x\r\n%b\r\n" % (len(chunk), chunk)
        delivery.close()
        cancellation.close()
        answer.close()
        feeder.kill()
    stop_reason = delivery.end.stop_reason if delivery.end else None
    sent = delivery.bytes_sent if dialect is not SSE and dialect is not OPENAI else 0
    return Result(client.body(), delivery.outcome, sent, stop_reason, cancellation.first_text is not None)


def feed(far: Any, near: Any, reads: list[bytes]) -> None:
    """Send each read once the one before it was received."""
    with suppress(OSError, ValueError):  # The reader has closed the connection.
        for data in reads:
            far.sendall(data)
            while struct.unpack("i", fcntl.ioctl(near.fileno(), termios.FIONREAD, b"\0" * 4))[0]:
                gevent.sleep(0)
        far.close()


def delta(text: str, **changes: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text, **changes}}


def event(fields: dict[str, Any], separators: tuple[str, str] = (",", ":"), ascii: bool = False, pad: int = 0) -> bytes:
    data = json.dumps(fields, separators=separators, ensure_ascii=ascii)
    data = f"{data[:-1]}{' ' * pad}}}" if pad else data
    return f"event: {fields['type']}\ndata: {data}\n\n".encode("utf-8", "surrogatepass")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["[DONE]", "a\r", "\nb", "\r\n", "\\", '"', "\ud83d", "\ude00", "\0", "🌊"]
)
DELTAS = st.builds(
    event,
    st.builds(delta, TEXTS),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.booleans(),
    st.integers(0, 3),
)
OTHERS = st.sampled_from(
    [
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b": comment\n\n",
        event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        event({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
        event(delta("more", citations=[])),
        event(delta("crlf")).replace(b"\n", b"\r\n"),
        event({"type": "error", "error": {"type": "overloaded_error", "message": "later"}}),
        event(END),
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"\xff"}}\n\n',
        b"event: content_block_delta\ndata: {broken\n\n",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The reads of an answer: mostly one complete chunk of one complete event in each."""
    events = draw(st.lists(DELTAS, min_size=1, max_size=12))
    for other in draw(st.lists(OTHERS, max_size=2)):
        events.insert(draw(st.integers(0, len(events))), other)
    events = [event(START), *events, *draw(st.sampled_from([[event(STOP), event(END)], []]))]
    joined = draw(st.integers(0, 9)) == 9
    chunks = [chunk(b"".join(events))] if joined else [chunk(each) for each in events]
    chunks += draw(st.sampled_from([[b"0\r\n\r\n"], []]))
    wire = b"".join(chunks)
    ends = [sum(map(len, chunks[: index + 1])) for index in range(len(chunks))]
    merged = draw(st.sets(st.sampled_from(ends), max_size=3))
    cuts = draw(st.lists(st.integers(0, len(wire)), max_size=3))
    return [wire[start:end] for start, end in pairwise(sorted({0, *cuts, *set(ends) - merged, len(wire)}))]


@pytest.mark.parametrize("dialect", [TEXT, SSE, ANTHROPIC, OPENAI], ids=lambda dialect: dialect.name)
@examples(12)
@given(reads=streams(), capacity=st.sampled_from([1_000_000, 1_000_000, 0, 1, 7]))
def test_both_paths_write_the_same_bytes_and_report_the_same_outcome(
    dialect: Dialect, reads: list[bytes], capacity: int
) -> None:
    general = deliver(reads, dialect, Client(), relayed=False)
    assert deliver(reads, dialect, Client(capacity), relayed=True) == general


@pytest.mark.parametrize("dialect", [TEXT, SSE, ANTHROPIC, OPENAI], ids=lambda dialect: dialect.name)
def test_complete_text_deltas_are_relayed(dialect: Dialect) -> None:
    texts = ["plain", "é 🌊", 'quote " and \\', "line\nend", "\u2028"]
    events = [event(delta(text), ascii=ascii, pad=pad) for text in texts for ascii in (True, False) for pad in (0, 4)]
    reads = [chunk(event(START)), *map(chunk, events), chunk(event(STOP) + event(END)), b"0\r\n\r\n"]
    client = Client()
    assert deliver(reads, dialect, client, relayed=True).outcome == "completed"
    assert client.relayed == len(events)


def test_several_deltas_in_one_read_are_one_write() -> None:
    pieces = [chunk(event(delta(text))) for text in ("a", "b\n", "c")]
    client = Client()
    reads = [chunk(event(START)), b"".join(pieces), chunk(event(STOP) + event(END)), b"0\r\n\r\n"]
    assert deliver(reads, TEXT, client, relayed=True).body == b"ab\nc"
    assert client.relayed == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        chunk(event(delta("")))[:-1],
        chunk(event(delta(""))),
        chunk(event(delta("a")))[1:],
        chunk(event(delta("a"))) + b"1",
        b"1" + chunk(event(delta("a"))),
        chunk(event(delta("a", citations=[]))),
        chunk(event(delta("a")).replace(b"a", b"\\ud83d")),
        chunk(event(delta("a")).replace(b"a", b"\\x")),
        chunk(event(delta("a")).replace(b"a", b"\xff")),
        chunk(event(delta("a")).replace(b"a", b"\x01")),
        chunk(event(delta("a")).replace(b"text_delta", b"thinking_delta")),
    ],
)
def test_anything_else_is_declined(data: bytes) -> None:
    assert parse_deltas(data) is None


def test_a_relay_keeps_what_it_sends_and_declines_what_there_is_no_room_for() -> None:
    client, kept = Client(), bytearray()
    read = chunk(event(delta("text of a delta")))
    with closing(Cancellation(Deadlines(30, 30, 30))) as cancellation:
        relay = Relay(
            TEXT.open_encoder("", ReplyFormat(), ""), cancellation, client.send, client.send_all, chunked=True
        )
        relay.direct(client.send, client.send_all, chunked=True, keep=kept.extend, max_bytes=len(read) + 20)
        assert [relay.take(read) for _ in range(3)] == [True, True, False]
    assert (bytes(kept), client.received) == (b"text of a delta" * 2, b"f\r\ntext of a delta\r\n" * 2)
