"""Signals that replace, add and remove workers under load: no request is rejected, and no response is lost."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
import upstream as wire
from asking import ask, wait_until
from conversation import Conversation, request_bytes
from server import Rill
from tcp_sockets import tcp_sockets
from upstream import Upstream
from witness import log_lines, refuses_connections, wait_until_all_serve

CLIENTS = 8
SIGNALS = (*[signal.SIGHUP] * 8, *[signal.SIGTTIN, signal.SIGTTOU] * 6)
SCRIPT = (
    wire.head(),
    wire.send(wire.opening()),
    *(step for _ in range(10) for step in (wire.pause(0.03), wire.send(wire.text("t")))),
    wire.send(wire.stop()),
    wire.end(),
)


class Load:
    """Clients that send one prompt after the other during the context; `results` counts what they receive."""

    def __init__(self, rill: Rill, keep_alive: bool) -> None:
        self.results: Counter[object] = Counter()
        self._rill = rill
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(keep_alive,)) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, keep_alive: bool) -> None:
        request = request_bytes("GET", "/stream?q=hello", {} if keep_alive else {"Connection": "close"})
        while not self._stopping.is_set():
            self._converse(request)

    def _converse(self, request: bytes) -> None:
        try:
            with Conversation(self._rill.port, request, timeout=60) as asked:
                self._note(asked)
                while not self._stopping.is_set() and asked.headers.get("connection") == "keep-alive":
                    asked.ask(request)
                    self._note(asked)
        except OSError as error:
            self.results[type(error).__name__] += 1

    def _note(self, asked: Conversation) -> None:
        result = (asked.status, asked.read_rest(), asked.ended)
        self.results["complete" if result == (200, b"t" * 10, "clean") else result] += 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("keep_alive", [False, True], ids=["a connection each", "kept connections"])
def test_twenty_signals_under_load_reject_no_request_and_lose_no_response(
    upstream: Upstream, start: Callable[..., Rill], keep_alive: bool
) -> None:
    upstream.always(*SCRIPT)
    rill = start(WEB_CONCURRENCY="2", RILL_MAX_STREAMS="100", RILL_SHUTDOWN_GRACE_SECONDS="10")
    wait_until_all_serve(rill, 2)
    with Load(rill, keep_alive) as load:
        for number in SIGNALS:
            served = load.results["complete"]
            rill.signal(number)
            # The load goes on under each signal before the next one.
            wait_until(lambda served=served: load.results["complete"] >= served + 2 * CLIENTS, rill.output, 60)  # type: ignore[misc]
    assert load.results["complete"] > 2 * CLIENTS * len(SIGNALS)
    assert set(load.results) == {"complete"}, load.results
    assert {line["outcome"] for line in log_lines(rill.output())} == {"completed"}


def test_a_reload_serves_an_accepted_connection_and_closes_idle_ones(
    upstream: Upstream, start: Callable[..., Rill]
) -> None:
    upstream.always(wire.head(), wire.send(wire.opening(), wire.text("one ")), wire.gate("rest"),
                    wire.send(wire.text("two"), wire.stop()), wire.end())  # fmt: skip
    rill = start()
    (old,) = rill.wait_for_workers(1)
    with (
        ask(rill) as open_answer,
        Conversation(rill.port, request_bytes("GET", "/healthz")) as idle,
        Conversation(rill.port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n") as begun,
    ):
        assert open_answer.read_until(b"one ") == b"one "
        assert idle.read_rest() == b"alive\n"
        wait_until(lambda: sum(not each.listens for each in tcp_sockets(old.pid)) >= 3, rill.output)
        rill.signal(signal.SIGHUP)
        assert idle.socket.recv(1) == b""
        begun.socket.sendall(b"\r\n")
        assert (begun.status, begun.headers["connection"], begun.read_rest()) == (200, "close", b"alive\n")
        with rill.ask("GET", "/__probe", {"Connection": "close"}) as other:
            assert json.loads(other.read_rest())["pid"] != old.pid
        upstream.open("rest")
        assert (open_answer.read_rest(), open_answer.ended) == (b"two", "clean")
    old.wait(10)


def test_a_shutdown_closes_the_listener_and_rejects_requests_on_open_connections(
    upstream: Upstream, start: Callable[..., Rill]
) -> None:
    upstream.always(wire.head(), wire.send(wire.opening(), wire.text("one ")), wire.gate("rest"),
                    wire.send(wire.stop()), wire.end())  # fmt: skip
    rill = start()
    with ask(rill) as open_answer, Conversation(rill.port, b"GET /stream?q=x HTTP/1.1\r\nHost: 127.0.0.1\r\n") as begun:
        assert open_answer.read_until(b"one ") == b"one "
        (worker,) = rill.wait_for_workers(1)
        wait_until(lambda: sum(not each.listens for each in tcp_sockets(worker.pid)) >= 3, rill.output)
        rill.signal(signal.SIGTERM)
        asked_at = time.monotonic()
        wait_until(lambda: refuses_connections(rill), lambda: "still listening", timeout=3)
        assert time.monotonic() - asked_at < 3
        begun.socket.sendall(b"\r\n")
        assert (begun.status, begun.headers["connection"]) == (503, "close")
        assert int(begun.headers["retry-after"]) >= 1
        upstream.open("rest")
        assert (open_answer.read_rest(), open_answer.ended) == (b"", "clean")
    assert rill.wait() == 0
