"""Thousands of requests, each spoilt in its own way, leave the service as well as it was.

Every request is made from the seed and its number alone: HOSTILE_SEED=... makes the same ones again.
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
from upstream import Upstream
from vectors import CLOSED, HELLO, READ, REFUSED

USUAL, MANY = 500, 50_000
CLIENTS = 8
SEED = os.environ.get("HOSTILE_SEED", "rill")
# Of all that begins with 5, only this is meant: a coding that nobody knows.
MEANT = {501}
REFUSED_IN_HTML = re.compile(rb"HTTP/1\.\d [345]\d\d (?:[^\r\n]+\r\n)*?Content-Type: text/html")

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
# The good ones often, so that what is spoilt is deep within as well.
CORPUS = [*GOOD * 6, *REFUSED.values(), *(data for data, _ in READ.values()), *CLOSED.values()]
TOKENS = [
    *rb': , ; = " % %00 %0d%0a / // ? & # @ [ ] { } \ \u0000 \ud800 -1 0 1e400 NaN null chunked gzip HTTP/2.0'.split(),
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b"\xff", b"\xc3", b"\xf0\x9f\x8c\x8a"),
    *(b"9" * 400, b"f" * 16, b"0\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n"),
    *(b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"GET /stream?q=hi HTTP/1.1\r\nHost: x\r\n\r\n"),
]
# Header lines that somebody reads; behind them may stand any byte that a value can hold.
FIELDS = [
    *(b"%b: " % name for name in b"Range Origin Cookie Connection Upgrade Expect User-Agent x-api-key Host".split()),
    *(b"%b: " % name for name in b"X-Request-Id X-Forwarded-For Last-Event-ID Sec-Purpose If-Modified-Since".split()),
    *(b"%b: " % name for name in b"anthropic-beta anthropic-version If-None-Match Accept-Encoding".split()),
    *(b"Authorization: %b " % scheme for scheme in (b"Bearer", b"Basic", b"Digest", b"")),
    *(b"Accept: ", b"Accept: text/plain;", b"Content-Type: ", b"Content-Type: application/"),
    *(b"Content-Type: text/plain; charset=", b"Content-Type: multipart/form-data; boundary="),
]
VISIBLE = [byte for byte in range(0x20, 0x100) if byte != 0x7F]


def make(number: int) -> bytes:
    """The request of this number, spoilt in one to four places."""
    choose = random.Random(f"{SEED} {number}")
    data = choose.choice(CORPUS)
    for _ in range(choose.randint(1, 4)):
        data = spoil(data, choose)
    return data


def spoil(data: bytes, choose: random.Random) -> bytes:
    """The data with something put in, changed, taken away, said again or followed by what belongs elsewhere."""
    begin = choose.randrange(len(data) + 1)
    end = begin + choose.choice((1, 1, 2, 5, 20, 200))
    head, piece, tail = data[:begin], data[begin:end], data[end:]
    token, other = choose.choice(TOKENS), choose.choice(CORPUS)
    field = choose.choice(FIELDS) + choose.choice((token, b"")) + bytes(choose.choices(VISIBLE, k=choose.randrange(9)))
    bit, times = 1 << choose.randrange(8), choose.choice((2, 10, 300))
    ways = [
        *[data.replace(b"\r\n", b"\r\n%b\r\n" % field, 1)] * 4,
        head + token + piece + tail,
        head + token + tail,
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


def leave(connected: socket.socket, choose: random.Random) -> bool:
    """Waits a little for an answer, or not, and leaves: by FIN, then true is returned; now and then by a reset."""
    if choose.random() < 0.7:
        select.select([connected], [], [], 0.03)
    if choose.random() < 0.05:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    with suppress(OSError):
        connected.shutdown(socket.SHUT_WR)
    return True


def try_one(rill: Rill, number: int) -> str | None:
    """Sends the request of this number, and says what was wrong with the way in which it was taken."""
    data, choose = make(number), random.Random(number)
    begun = time.monotonic()
    received = Received(b"")
    try:
        with connect(rill.port) as connected:
            middle = choose.randrange(len(data) + 1)
            for piece in (data[:middle], data[middle:]):
                send(connected, piece)
            if leave(connected, choose):
                received = Received(receive_rest(connected))
    except TimeoutError:
        return f"{number}: still open after {HANG_SECONDS} s: {data!r}"
    if time.monotonic() - begun > HANG_SECONDS:
        return f"{number}: closed late: {data!r}"
    wrong = [status for status in received.statuses if status >= 500 and status not in MEANT]
    if wrong or (received.data and not STATUS.match(received.data)) or REFUSED_IN_HTML.search(received.data):
        return f"{number}: answered {received.data[:300]!r}: {data!r}"
    return None


def descriptors(rill: Rill, upstream: Upstream) -> int:
    """The worker's descriptors, without the kept connections to the upstream."""
    (worker,) = rill.workers()
    kept = [each for each in worker.net_connections("tcp4") if each.raddr and each.raddr.port == upstream.port]
    return worker.num_fds() - len(kept)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [USUAL, pytest.param(MANY, marks=pytest.mark.soak)])
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
