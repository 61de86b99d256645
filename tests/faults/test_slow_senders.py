"""A request that is sent too slowly is closed after its timeout, and takes no slot."""

import socket
import time

import pytest
from conversation import Conversation, raw_request, request_bytes
from server import Rill
from upstream import Upstream
from witness import assert_no_leaks, probed, take_every_slot

HEAD_SECONDS = 3
BODY_SECONDS = 30  # of app.py
# How much later than its timeout a connection may be closed, on a busy machine.
LATE = 2.0


def send_slowly(connected: socket.socket, data: bytes, seconds: float) -> float:
    """Send a byte per second until the other side closes, for at most `seconds`; return when it closed (monotonic)."""
    begun = time.monotonic()
    connected.settimeout(1)
    for each in data:
        try:
            connected.sendall(bytes([each]))
            if not connected.recv(65536):
                break
        except TimeoutError:
            pass
        except OSError:
            break
        if time.monotonic() > begun + seconds:
            raise AssertionError(f"still connected after {seconds:g} s")
    return time.monotonic()


def test_a_head_that_is_sent_too_slowly_is_closed_after_its_timeout(upstream: Upstream) -> None:
    # gunicorn.conf.py allows 95 s; the mechanism is the same.
    with probed(upstream.url, "--keep-alive", str(HEAD_SECONDS)) as rill, assert_no_leaks(rill, upstream):
        begun = time.monotonic()
        with raw_request(rill.port, b"G") as connected:
            ended = send_slowly(connected, b"ET /stream?q=hello HTTP/1.1", 30)
        assert HEAD_SECONDS - 1 < ended - begun < HEAD_SECONDS + LATE
        assert upstream.requests == []


@pytest.mark.waits
@pytest.mark.timeout(120)
def test_a_body_that_is_sent_too_slowly_is_a_408_after_its_timeout_and_takes_no_slot(
    service: Rill, upstream: Upstream
) -> None:
    with assert_no_leaks(service, upstream):
        begun = time.monotonic()
        head = request_bytes("POST", "/stream", {"Content-Type": "text/plain", "Content-Length": "1000"})
        with Conversation(service.port, head, timeout=BODY_SECONDS + 10) as asked:
            take_every_slot(service, upstream)
            upstream.clear()
            while time.monotonic() < begun + BODY_SECONDS - 2:
                asked.socket.sendall(b"x")
                time.sleep(1)
            assert asked.status == 408
            assert BODY_SECONDS <= time.monotonic() - begun < BODY_SECONDS + LATE
            asked.read_rest()
            # The server reads no more bytes after that.
            assert send_slowly(asked.socket, b"x" * 10, 5) < begun + BODY_SECONDS + 5 + LATE
        assert upstream.requests == []


def test_a_truncated_body_is_a_400_and_sends_nothing_upstream(service: Rill, upstream: Upstream) -> None:
    with assert_no_leaks(service, upstream):
        head = request_bytes("POST", "/stream", {"Content-Type": "text/plain", "Content-Length": "1000"})
        with Conversation(service.port, head + b"half a prompt") as asked:
            asked.half_close()
            assert asked.status == 400
        assert upstream.requests == []
