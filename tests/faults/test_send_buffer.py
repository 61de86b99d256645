"""The buffer for a client that does not read is bounded, whenever its connection was accepted."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import upstream as wire
from asking import wait_until
from conversation import request_bytes
from test_slow_readers import MOST_BUFFERED, connect_with_a_small_window, queued_for
from upstream import Upstream
from witness import probed

PIECE = wire.send(wire.text("x" * 8000))
ENDLESS = (wire.head(), wire.send(wire.opening()), *[PIECE] * 1000, wire.close())


def is_listening(port: int) -> bool:
    """Return whether the master listens, with or without a worker that accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_a_connection_accepted_while_the_first_worker_boots_buffers_no_more_than_any_other(upstream: Upstream) -> None:
    upstream.always(*ENDLESS)
    rill = probed(upstream.url)
    with ThreadPoolExecutor(1) as starter:
        started = starter.submit(rill.__enter__)
        wait_until(lambda: rill.port > 0, lambda: "no port")
        wait_until(lambda: is_listening(rill.port), lambda: "the port is closed", timeout=30)
        request = request_bytes("GET", "/stream?q=endless")
        with connect_with_a_small_window(rill, request) as held, started.result():
            upstream.wait_for_requests(1, timeout=30)
            port = held.getsockname()[1]
            readings: list[int] = []

            def is_full() -> bool:
                readings.append(max(queued_for(rill.port, port), default=0))
                return len(readings) > 10 and readings[-1] == readings[-10] > 0

            wait_until(is_full, rill.output)
            assert max(readings) <= MOST_BUFFERED
