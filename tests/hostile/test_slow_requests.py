"""A slow, silent or incomplete request delays no other client, and is closed after its timeout."""

import socket
import time
from contextlib import ExitStack, suppress

import psutil
import pytest
import upstream as wire
from asking import wait_until
from conversation import request_bytes
from raw import FOLLOWER, Received, connect, prompts, receive_rest, send
from server import Rill, StartRill
from tcp_sockets import tcp_sockets
from upstream import Upstream

HEAD_SECONDS = 3  # 95 in gunicorn.conf.py; the mechanism is the same
BODY_SECONDS = 30  # of app.py
# How much later than its timeout a connection may be closed, on a busy machine.
LATE = 4.0
# An ordinary client is served in far less, whatever the others do.
AT_ONCE_SECONDS = 2.0


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server that waits three seconds for a request head."""
    return share_rill("--keep-alive", str(HEAD_SECONDS))


def worker(rill: Rill) -> psutil.Process:
    """Return the single worker."""
    (only,) = rill.workers()
    return only


def descriptors(rill: Rill, upstream: Upstream) -> int:
    """Return the worker's number of descriptors, without the pooled connections to the upstream."""
    process = worker(rill)
    pooled = [each for each in tcp_sockets(process.pid) if each.remote_port == upstream.port]
    return process.num_fds() - len(pooled)


def is_connected(rill: Rill, connected: socket.socket) -> bool:
    """Return whether the worker still has its side of the connection open."""
    mine = connected.getsockname()[1]
    return any(each.remote_port == mine for each in tcp_sockets(worker(rill).pid))


def assert_serves_at_once(rill: Rill, q: str = "other") -> None:
    """Assert that an ordinary client is served at once."""
    begun = time.monotonic()
    with rill.ask("GET", f"/stream?q={q}", {"Connection": "close"}) as asked:
        assert (asked.status, asked.read_rest(), asked.ended) == (200, b"ok", "clean")
    assert time.monotonic() - begun < AT_ONCE_SECONDS


def test_a_chunked_body_sent_byte_by_byte_is_read_correctly(rill: Rill, upstream: Upstream) -> None:
    prompt = "one 溪 at a time"
    pieces = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in prompt.encode()) + b"00\r\nX: y\r\n\r\n"
    data = request_bytes("POST", "/stream", {"Transfer-Encoding": "chunked"}) + pieces
    with connect(rill.port) as slow:
        for number in range(len(data)):
            slow.sendall(data[number : number + 1])
            time.sleep(0.002)
            if number == len(data) // 2:
                assert_serves_at_once(rill)
        send(slow, FOLLOWER)
        received = Received(receive_rest(slow))
    assert (received.statuses, received.in_sync) == ([200, 200], True)
    assert prompts(upstream) == ["other", prompt]


def test_a_hundred_incomplete_heads_delay_no_other_client_and_are_closed_after_their_timeout(
    rill: Rill, upstream: Upstream
) -> None:
    heads = [
        b"G",
        b"GET /stream",
        b"GET /stream?q=slow HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"\r\n",
    ]
    before = descriptors(rill, upstream)
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(rill.port, timeout=HEAD_SECONDS + LATE)) for _ in range(100)]
        begun = time.monotonic()
        for number, connected in enumerate(slow):
            connected.sendall(heads[number % len(heads)])
        for _ in range(10):
            assert_serves_at_once(rill)
        assert [receive_rest(connected) for connected in slow] == [b""] * len(slow)
        assert time.monotonic() - begun < HEAD_SECONDS + LATE
    assert prompts(upstream) == ["other"] * 10
    wait_until(lambda: descriptors(rill, upstream) <= before, "descriptors leaked", 10)


def test_four_hundred_silent_connections_delay_no_other_client(rill: Rill, upstream: Upstream) -> None:
    before = descriptors(rill, upstream)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(rill.port, timeout=HEAD_SECONDS + LATE)) for _ in range(400)]
        for _ in range(10):
            assert_serves_at_once(rill)
        with rill.ask("GET", "/readyz", {"Connection": "close"}) as asked:
            assert asked.status == 200
        assert [receive_rest(connected) for connected in silent] == [b""] * len(silent)
    wait_until(lambda: descriptors(rill, upstream) <= before, "descriptors leaked", 10)


def test_many_pipelined_requests_are_answered_in_order_and_delay_no_other_client(
    rill: Rill, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("ok")), wire.gate("first"), *wire.answer()[2:])
    asked = [("/stream?q=", "/healthz?n=")[number % 2] + str(number) for number in range(300)]
    pipeline = [request_bytes("GET", path, {"X-Request-Id": f"n{number}"}) for number, path in enumerate(asked)]
    with connect(rill.port) as pipelining:
        pipelining.sendall(b"".join(pipeline))
        upstream.wait_at_gate("first")
        # One answer is open, and only the other requests on its connection wait for it.
        for _ in range(5):
            assert_serves_at_once(rill)
        assert len(upstream.requests) == 1 + 5
        upstream.open("first")
        send(pipelining, FOLLOWER)
        received = Received(receive_rest(pipelining))
    assert (received.statuses, received.in_sync) == ([200] * 301, True)
    names = [line.split(b": ")[1] for line in received.data.split(b"\r\n") if line.startswith(b"X-Request-Id")]
    assert names[:-1] == [b"n%d" % number for number in range(300)]
    assert prompts(upstream) == ["0"] + ["other"] * 5 + [str(number) for number in range(2, 300, 2)]


CHUNKED = "POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
# A request, the byte that it then sends every second, and the statuses that it gets.
SLOW_BODIES = {
    "data of a chunk": (CHUNKED + "1000\r\n", b"x", [408]),
    "the size of a chunk": (CHUNKED, b"0", [408]),
    "an extension of a chunk": (CHUNKED + "5;a", b"a", [408]),
    "a trailer": (CHUNKED + "5\r\nhello\r\n0\r\nX: ", b"y", [408]),
    "data of a chunk of 128 bits": (CHUNKED + "F" * 32 + "\r\n", b"x", [408]),
    "JSON": ("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", b" ", [408]),
    "a body after 100 Continue": (
        "POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
        b"x",
        [408],
    ),
    "an unread body": ("POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"x", [405]),
    "unread chunks": (CHUNKED.replace("stream", "nowhere") + "1000\r\n", b"x", [404]),
    "a body of any length": ("POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", b"x", [413]),
}


def connect_and_never_read(rill: Rill) -> socket.socket:
    """Open a connection that sends many requests and reads nothing, until the server cannot write to it."""
    unread = socket.socket()
    unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    unread.settimeout(1)
    unread.connect(("127.0.0.1", rill.port))
    with suppress(TimeoutError):
        while True:
            unread.sendall(request_bytes("GET", "/healthz") * 100)
    return unread


@pytest.mark.waits
@pytest.mark.timeout(120)
def test_slow_bodies_and_clients_that_never_read_are_closed_after_their_timeouts(
    rill: Rill, upstream: Upstream
) -> None:
    before = descriptors(rill, upstream)
    answered = dict.fromkeys(SLOW_BODIES, b"")
    with ExitStack() as stack:
        unread = stack.enter_context(connect_and_never_read(rill))
        slow = {name: stack.enter_context(connect(rill.port)) for name in SLOW_BODIES}
        begun = time.monotonic()
        for name, connected in slow.items():
            connected.sendall(SLOW_BODIES[name][0].encode())
            connected.setblocking(False)
        while any(is_connected(rill, connected) for connected in [unread, *slow.values()]):
            assert time.monotonic() - begun < BODY_SECONDS + LATE
            assert_serves_at_once(rill)
            for name, connected in slow.items():
                with suppress(BlockingIOError, ConnectionError):
                    answered[name] += connected.recv(65536)
                with suppress(BlockingIOError, ConnectionError):
                    connected.send(SLOW_BODIES[name][1])
            time.sleep(1)
        received = {name: Received(answered[name] + receive_rest(connected)) for name, connected in slow.items()}
    assert {name: each.statuses for name, each in received.items()} == {
        name: body[2] for name, body in SLOW_BODIES.items()
    }
    assert set(prompts(upstream)) == {"other"}
    wait_until(lambda: descriptors(rill, upstream) <= before, "descriptors leaked", 10)
