"""The body of a response, read without waiting, in a process that gevent has not patched."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest
import upstream as wire
from test_transport import certificate, tls_of
from upstream import Step, Upstream

from rill.upstream.body import Body, body_of
from rill.upstream.transport import GeventTransport, UpstreamClient

__all__ = ["certificate"]  # a fixture

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\n"

OpenBody = Callable[[Upstream], Body]


@pytest.fixture
def open_body() -> Iterator[OpenBody]:
    """Send a request and return the body of its response; it is closed at the end."""
    with ExitStack() as opened:

        def open(upstream: Upstream) -> Body:
            transport = opened.enter_context(GeventTransport(httpx2.URL(upstream.url), 1))
            client = UpstreamClient(transport, timeout=httpx2.Timeout(5))
            request = client.build_request("POST", f"{upstream.url}/v1/messages", content=b"{}")
            return opened.enter_context(closing(body_of(client.send(request, stream=True))))

        yield open


def receive(body: Body, size: int) -> bytes:
    """Return what the connection brings, once it is of that size."""
    received = b""
    deadline = time.monotonic() + 5
    while len(received) < size:
        assert time.monotonic() < deadline, received
        received += body.receive() or b""
    return received


def test_a_reader_that_does_not_wait_feeds_what_it_receives(upstream: Upstream, open_body: OpenBody) -> None:
    upstream.script(wire.raw(CHUNKED), wire.gate("one"), wire.send(b"one"), wire.gate("two"), wire.send(b"two"))
    body = open_body(upstream)
    assert body.receive() is None
    assert body.take() == b""
    upstream.open("one")
    body.feed(receive(body, 8))
    assert body.take() == b"one"
    assert body.take() == b""
    upstream.open("two")
    assert body.read() == b"two"


def test_a_chunk_between_chunks_may_be_left_out(upstream: Upstream, open_body: OpenBody) -> None:
    two = wire.gate("two"), wire.send(b"two"), wire.end()
    upstream.script(wire.raw(CHUNKED), wire.gate("one"), wire.send(b"one"), *two)
    body = open_body(upstream)
    assert body.is_between_chunks
    upstream.open("one")
    assert receive(body, 8) == b"3\r\none\r\n"
    assert body.is_between_chunks
    upstream.open("two")
    assert [body.read(), body.read()] == [b"two", None]
    assert body.connection is None


@pytest.mark.parametrize(
    ("head", "data", "expected"),
    [
        (CHUNKED, b"3\r\none\r\n", True),
        (CHUNKED, b"3\r\none\r\n3\r\ntwo\r\n", True),
        (CHUNKED, b"3\r\none\r\n3\r\ntw", False),
        (CHUNKED, b"3", False),
        (CHUNKED, b"3\r", False),
        (CHUNKED, b"3\r\n", False),
        (CHUNKED, b"3;name=value\r\n", False),
        (CHUNKED, b"3\r\no", False),
        (CHUNKED, b"4\r\na\r\n", False),
        (CHUNKED, b"3\r\none", False),
        (CHUNKED, b"3\r\none\r", False),
        (CHUNKED, b"3\r\none\r\n0", False),
        (SIZED, b"3\r\none\r\n", False),
        (UNTIL_CLOSED, b"3\r\none\r\n", False),
    ],
)
def test_a_body_knows_whether_it_is_between_chunks(
    upstream: Upstream, open_body: OpenBody, head: bytes, data: bytes, expected: bool
) -> None:
    upstream.script(wire.raw(head), wire.gate("data"), wire.raw(data), wire.silence())
    body = open_body(upstream)
    upstream.open("data")
    body.feed(receive(body, len(data)))
    assert body.is_between_chunks is expected


def test_the_end_is_received_as_no_bytes_and_is_an_error_in_mid_body(upstream: Upstream, open_body: OpenBody) -> None:
    upstream.script(wire.raw(CHUNKED), wire.send(b"one"), wire.close())
    body = open_body(upstream)
    assert body.read() == b"one"
    deadline = time.monotonic() + 5
    while (data := body.receive()) is None:
        assert time.monotonic() < deadline
    assert data == b""
    with pytest.raises(httpx2.RemoteProtocolError):
        body.feed(data)


HEAD = b"HTTP/1.1 200 OK\r\nrequest-id: req_1\r\nX-Empty:\r\ntwo: a\r\nTwo:  b \xe9\r\ncontent-length: 2\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_headers_are_the_same_however_they_are_split(upstream: Upstream, open_body: OpenBody, size: int) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    data = early + HEAD + b"ok"
    pieces: list[Step] = [wire.raw(data[start : start + size]) for start in range(0, len(data), size)]
    upstream.script(*pieces)
    body = open_body(upstream)
    assert body.status == 200
    assert [(name.lower(), value) for name, value in body.headers] == [
        (b"request-id", b"req_1"),
        (b"x-empty", b""),
        (b"two", b"a"),
        (b"two", b"b \xe9"),
        (b"content-length", b"2"),
    ]


def test_over_tls_all_records_that_wait_are_received_at_once(
    open_body: OpenBody, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Upstream(tls=tls_of(certificate)) as own:
        pieces = [wire.send(piece) for piece in (b"one", b"two")]
        own.script(wire.raw(CHUNKED), wire.gate("pieces"), *pieces, wire.gate("rest"), wire.silence())
        body = open_body(own)
        assert body.receive() is None
        own.open("pieces")
        own.wait_at_gate("rest")
        assert body.read() == b"onetwo"
