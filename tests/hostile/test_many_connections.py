"""An address that opens as many connections as it can does not prevent service for other clients."""

import resource
import socket
import time
from contextlib import ExitStack, suppress

import psutil
import pytest
from conversation import request_bytes
from raw import Received, connect, receive_rest, send
from server import Rill, StartRill
from tcp_sockets import tcp_sockets
from upstream import Upstream

CONNECTIONS = 5000
MOST_WAITING = 500
SERVED_SECONDS = 20.0
HEAD_SECONDS = 3
LATE = 5.0


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server that waits three seconds for a request head."""
    return share_rill("--keep-alive", str(HEAD_SECONDS))


@pytest.fixture
def descriptors() -> None:
    """Raise the limit of open files of this process; skip if it cannot be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 1000:
        pytest.skip(f"at most {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CONNECTIONS + 1000), hard))


def connections(worker: psutil.Process, port: int) -> int:
    """Return the number of client connections of the worker."""
    return sum(each.local_port == port and not each.listens for each in tcp_sockets(worker.pid))


@pytest.mark.timing
@pytest.mark.usefixtures("descriptors")
def test_five_thousand_incomplete_heads_of_one_address_delay_no_other_client(rill: Rill, upstream: Upstream) -> None:
    (worker,) = rill.workers()
    with ExitStack() as stack:
        begun = time.monotonic()
        for _ in range(CONNECTIONS):
            incomplete = stack.enter_context(socket.socket())
            incomplete.setblocking(False)
            with suppress(BlockingIOError):
                incomplete.connect(("127.0.0.1", rill.port))
            with suppress(OSError):
                incomplete.send(b"GET /str")
        with connect(rill.port, "127.0.0.2", timeout=SERVED_SECONDS) as other:
            asked_at = time.monotonic()
            send(other, request_bytes("GET", "/stream?q=other", {"Connection": "close"}))
            assert Received(receive_rest(other)).statuses == [200]
            assert time.monotonic() - asked_at < SERVED_SECONDS
        assert connections(worker, rill.port) <= MOST_WAITING + 2
        while connections(worker, rill.port) and time.monotonic() < begun + HEAD_SECONDS + LATE:
            time.sleep(0.5)
        assert connections(worker, rill.port) == 0


def test_an_address_with_too_many_connections_gets_a_429_and_loses_its_longest_idle_one_first(
    rill: Rill, upstream: Upstream
) -> None:
    with ExitStack() as stack:
        kept = stack.enter_context(rill.ask("GET", "/healthz"))
        assert kept.read_rest() == b"alive\n"
        incomplete = [stack.enter_context(connect(rill.port)) for _ in range(MOST_WAITING)]
        for each in incomplete:
            each.sendall(b"G")
        assert kept.socket.recv(1) == b""
        with connect(rill.port) as rejected:
            received = Received(receive_rest(rejected))
        assert received.statuses == [429]
        assert "too many open connections" in received.last_body
        with connect(rill.port, "127.0.0.2") as other:
            send(other, request_bytes("GET", "/healthz", {"Connection": "close"}))
            assert Received(receive_rest(other)).statuses == [200]
