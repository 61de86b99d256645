"""Thousands of requests, each malformed in its own way, leave the service healthy.

Each request depends only on the seed and its number: HOSTILE_SEED=... repeats a run.
"""

import os
import random
import re
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from conversation import request_bytes
from raw import HANG_SECONDS, STATUS, Received, connect, receive_rest, send, send_and_half_close
from server import Rill
from tcp_sockets import tcp_sockets
from upstream import Upstream
from vectors import ACCEPTED, CLOSED, HELLO, REJECTED

FEW, MANY = 500, 50_000
CLIENTS = 8
SEED = os.environ.get("HOSTILE_SEED", "rill")
# The only 5xx that is correct: an unknown transfer coding.
ALLOWED_5XX = {501}
HTML_ERROR = re.compile(rb"HTTP/1\.\d [345]\d\d (?:[^\r\n]+\r\n)*?Content-Type: text/html")

JSON = {"Content-Type": "application/json"}
MESSAGES = b'{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": %b}'
PARTS = b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\nhi\r\n--x--\r\n'
GOOD = [
    *(request_bytes("GET", path) for path in ("/", "/healthz", "/metrics", "/v1/models", "/stream?q=hi", "/nowhere")),
    *(request_bytes(method, "/stream?q=hi") for method in ("HEAD", "OPTIONS", "PUT", "TRACE", "DELETE")),
    request_bytes(
        "GET", "/stream?q=%E6%BA%AA&system=x&model=m&max_tokens=5&temperature=0.5", {"Accept": "text/event-stream"}
    ),
    request_bytes("GET", "/chat/stream?message=hi", {"Last-Event-ID": "1", "X-Request-Id": "abc"}),
    request_bytes("POST", "/stream", {"Content-Type": "text/plain; charset=utf-8"}, b"hi"),
    request_bytes("POST", "/stream", {"Content-Type": "application/x-www-form-urlencoded"}, b"q=hi&max_tokens=5&x=%zz"),
    request_bytes("POST", "/stream", {"Content-Type": "multipart/form-data; boundary=x"}, PARTS),
    request_bytes("POST", "/stream", JSON, b'{"q": "hi", "max_tokens": 5, "more": [1e5, null, "\\ud83c\\udf0a"]}'),
    request_bytes("POST", "/stream", {"Transfer-Encoding": "chunked"}) + HELLO,
    request_bytes("POST", "/v1/chat/completions", JSON, MESSAGES % b"true"),
    request_bytes("POST", "/v1/chat/completions", {**JSON, "Authorization": "Bearer x"}, MESSAGES % b"false"),
    request_bytes(
        "POST", "/v1/messages?beta=true", {**JSON, "anthropic-beta": "a,b", "x-api-key": "x"}, MESSAGES % b"true"
    ),
    request_bytes("POST", "/v1/messages", {**JSON, "anthropic-version": "2023-06-01"}, MESSAGES % b"false"),
    request_bytes("GET", "/stream?q=hi", {"Authorization": "Basic YTpi", "Accept": "application/json;q=0.5, */*"}),
    request_bytes(
        "GET",
        "/stream?q=hi",
        {"X-Forwarded-For": '203.0.113.7, "[::1]:80"', "Forwarded": "for=a", "Connection": "close"},
    ),
    request_bytes("GET", "/stream?q=hi", version="HTTP/1.0"),
]
# Mostly valid requests, so that the malformed parts also reach deeper layers.
CORPUS = [*GOOD * 6, *REJECTED.values(), *(data for data, _ in ACCEPTED.values()), *CLOSED.values()]
FRAGMENTS = [
    *rb': , ; = " % %00 %0d%0a / // ? & # @ [ ] { } \ \u0000 \ud800 -1 0 1e400 NaN null chunked gzip HTTP/2.0'.split(),
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b"\xff", b"\xc3", b"\xf0\x9f\x8c\x8a"),
    *(b"9" * 400, b"f" * 16, b"0\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n"),
    *(b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"GET /stream?q=hi HTTP/1.1\r\nHost: x\r\n\r\n"),
]
# Header lines that the server reads; any byte that a value may contain can follow them.
FIELDS = [
    *(b"%b: " % name for name in b"Range Origin Cookie Connection Upgrade Expect User-Agent x-api-key Host".split()),
    *(b"%b: " % name for name in b"X-Request-Id X-Forwarded-For Last-Event-ID Sec-Purpose If-Modified-Since".split()),
    *(b"%b: " % name for name in b"anthropic-beta anthropic-version If-None-Match Accept-Encoding".split()),
    *(b"Authorization: %b " % scheme for scheme in (b"Bearer", b"Basic", b"Digest", b"")),
    *(b"Accept: ", b"Accept: text/plain;", b"Content-Type: ", b"Content-Type: application/"),
    *(b"Content-Type: text/plain; charset=", b"Content-Type: multipart/form-data; boundary="),
]
VALUE_BYTES = [byte for byte in range(0x20, 0x100) if byte != 0x7F]


def make(number: int) -> bytes:
    """Return the request of this number, mutated one to four times."""
    choose = random.Random(f"{SEED} {number}")
    data = choose.choice(CORPUS)
    for _ in range(choose.randint(1, 4)):
        data = mutate(data, choose)
    return data


def mutate(data: bytes, choose: random.Random) -> bytes:
    """Return the data after a random insertion, change, deletion, repetition or concatenation."""
    begin = choose.randrange(len(data) + 1)
    end = begin + choose.choice((1, 1, 2, 5, 20, 200))
    head, piece, tail = data[:begin], data[begin:end], data[end:]
    fragment, other = choose.choice(FRAGMENTS), choose.choice(CORPUS)
    field = (
        choose.choice(FIELDS)
        + choose.choice((fragment, b""))
        + bytes(choose.choices(VALUE_BYTES, k=choose.randrange(9)))
    )
    bit, times = 1 << choose.randrange(8), choose.choice((2, 10, 300))
    ways = [
        *[data.replace(b"\r\n", b"\r\n%b\r\n" % field, 1)] * 4,
        head + fragment + piece + tail,
        head + fragment + tail,
        head + choose.randbytes(choose.randint(1, 30)) + piece + tail,
        head + choose.randbytes(len(piece)) + tail,
        head + bytes(byte ^ bit for byte in piece) + tail,
        head + piece[::-1] + tail,
        head + piece * times + tail,
        head + tail,
        head,
        head + other[choose.randrange(len(other) + 1) :],
    ]
    return choose.choice(ways)


def disconnect(connected: socket.socket, choose: random.Random) -> bool:
    """Wait briefly for a response or not, then send FIN and return True, or rarely prepare a reset and return False."""
    if choose.random() < 0.7:
        select.select([connected], [], [], 0.03)
    if choose.random() < 0.05:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    with suppress(OSError):
        connected.shutdown(socket.SHUT_WR)
    return True


def try_one(rill: Rill, number: int) -> str | None:
    """Send the request of this number; return what was wrong with the response, or None."""
    data, choose = make(number), random.Random(number)
    begun = time.monotonic()
    received = Received(b"")
    try:
        with connect(rill.port) as connected:
            middle = choose.randrange(len(data) + 1)
            for piece in (data[:middle], data[middle:]):
                send(connected, piece)
            if disconnect(connected, choose):
                received = Received(receive_rest(connected))
    except TimeoutError:
        return f"{number}: still open after {HANG_SECONDS} s: {data!r}"
    if time.monotonic() - begun > HANG_SECONDS:
        return f"{number}: closed late: {data!r}"
    wrong = [status for status in received.statuses if status >= 500 and status not in ALLOWED_5XX]
    if wrong or (received.data and not STATUS.match(received.data)) or HTML_ERROR.search(received.data):
        return f"{number}: answered {received.data[:300]!r}: {data!r}"
    return None


def descriptors(rill: Rill, upstream: Upstream) -> int:
    """Return the worker's number of descriptors, without the pooled connections to the upstream."""
    (worker,) = rill.workers()
    pooled = [each for each in tcp_sockets(worker.pid) if each.remote_port == upstream.port]
    return worker.num_fds() - len(pooled)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
def test_malformed_requests_leave_the_service_healthy(rill: Rill, upstream: Upstream, number: int) -> None:
    print(f"HOSTILE_SEED={SEED}")
    for each in GOOD:
        send_and_half_close(rill.port, each)
    before, worker = descriptors(rill, upstream), rill.workers()
    with ThreadPoolExecutor(CLIENTS) as clients:
        wrong = [each for each in clients.map(lambda n: try_one(rill, n), range(number)) if each]
    assert wrong == [], f"{len(wrong)} of {number}, such as " + "\n".join(wrong[:5])
    assert all(request.path.startswith("/v1/messages") for request in upstream.requests)
    assert rill.workers() == worker
    deadline = time.monotonic() + 10
    while descriptors(rill, upstream) > before:
        assert time.monotonic() < deadline, f"{descriptors(rill, upstream)} is not {before}"
        time.sleep(0.05)
