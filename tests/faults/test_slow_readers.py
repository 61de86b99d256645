"""A client that never reads loses its slot; one that reads slowly gets a complete answer."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import upstream as wire
from conversation import Conversation, request_bytes
from server import Rill
from upstream import Upstream
from witness import assert_no_leaks, logged, name_request

ENV = {"RILL_MAX_STREAMS": "2"}
MOST_BUFFERED = 131_072
SLOT_RELEASE_SECONDS = 30
SLOW = b"0123456789" * 28
PIECE = wire.send(wire.text("x" * 8000))
ENDLESS = (wire.head(), wire.send(wire.opening()), *[PIECE] * 4000, wire.close())
SHORT = (wire.head(), wire.send(wire.opening(), wire.text(SLOW.decode()), wire.stop()), wire.end())


def connect_with_a_small_window(rill: Rill, request: bytes) -> socket.socket:
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connected.settimeout(60)
    connected.connect(("127.0.0.1", rill.port))
    connected.sendall(request)
    return connected


def queued_for(server_port: int, client_port: int) -> Iterator[int]:
    """Yield the bytes in the send queue of the server's side of one connection, as the kernel reports them."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, mine, theirs, _, queues, *_ = line.split()
        if (mine[-4:], theirs[-4:]) == (f"{server_port:04X}", f"{client_port:04X}"):
            yield int(queues.split(":")[0], 16)


def never_read(rill: Rill) -> tuple[float, int, str]:
    """Send a request and read nothing; return the seconds until its slot is free, the most bytes queued, its id."""
    name = name_request()
    begun = time.monotonic()
    most = 0
    with connect_with_a_small_window(rill, request_bytes("GET", "/stream?q=endless", {"X-Request-Id": name})) as held:
        while name not in rill.output() and time.monotonic() < begun + SLOT_RELEASE_SECONDS + 5:
            most = max(most, *queued_for(rill.port, held.getsockname()[1]), 0)
            time.sleep(0.1)
        return time.monotonic() - begun, most, name


def read_ten_bytes_a_second(rill: Rill) -> bytes:
    request = request_bytes("GET", "/stream?q=short", {"Connection": "close"})
    with connect_with_a_small_window(rill, request) as reader:
        got = b""
        while piece := reader.recv(10):
            got += piece
            time.sleep(1 if b"\r\n\r\n" in got else 0.05)
        return got


def play_named_script(answer: wire.Answer) -> None:
    for step in ENDLESS if answer.request.json["messages"][0]["content"] == "endless" else SHORT:
        step(answer)


@pytest.mark.waits
@pytest.mark.timeout(120)
def test_a_client_that_never_reads_loses_its_slot_and_one_that_reads_slowly_gets_a_complete_answer(
    service: Rill, upstream: Upstream
) -> None:
    with assert_no_leaks(service, upstream, streams=2):
        upstream.always(play_named_script)
        with ThreadPoolExecutor(2) as clients:
            stuck = clients.submit(never_read, service)
            slow = clients.submit(read_ten_bytes_a_second, service)
            with Conversation(service.port, request_bytes("GET", "/readyz", {"Connection": "close"})) as asked:
                upstream.wait_for_requests(2)
                assert asked.status in (200, 503)
            seconds, most, name = stuck.result()
            assert SLOW in slow.result()
            assert slow.result().endswith(b"0\r\n\r\n")
        assert seconds <= SLOT_RELEASE_SECONDS
        assert 0 < most <= MOST_BUFFERED
        assert logged(service, name)["outcome"] == "client_too_slow"
        upstream.wait_until(
            lambda: {each.outcome for each in upstream.answers} == {"disconnected", "sent"},
            "the end of both answers",
            20,
        )


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_client_that_reads_a_thousand_bytes_per_second_gets_a_complete_answer(
    service: Rill, upstream: Upstream
) -> None:
    size = 120_000
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("~" * size), wire.stop()), wire.end())
    request = request_bytes("GET", "/stream?q=short", {"Connection": "close"})
    with connect_with_a_small_window(service, request) as reader:
        got = b""
        while piece := reader.recv(1000):
            got += piece
            time.sleep(1)
    assert got.count(b"~") == size
    assert got.endswith(b"0\r\n\r\n")
