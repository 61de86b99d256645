"""A fake of the Messages API on a real socket, which plays the answers that a test scripts.

A script is a sequence of steps (`head`, `send`, `gate`, `reset`, ...) from script.py; the events that they send
(`start`, `text`, `stop`, ...) are built by messages_api.py. Tests import both from here: `import upstream as wire`.
`python tests/upstream.py PORT` serves one fixed answer.
"""

import contextlib
import select
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from leaks import WIRE_SECRETS, WireSecrets
from messages_api import (
    REQUEST_ID,
    block_start,
    block_stop,
    delta,
    event,
    opening,
    ping,
    start,
    stop,
    stream_error,
    text,
    thinking,
)
from script import (
    RECORDED,
    Step,
    answer,
    close,
    dribble,
    end,
    error,
    expected,
    gate,
    head,
    pause,
    raw,
    recorded,
    replay,
    reset,
    send,
    silence,
    status,
)
from wire_connection import Connection, Ended, Request, Signal

__all__ = [
    "RECORDED",
    "REQUEST_ID",
    "Answer",
    "Request",
    "Step",
    "Upstream",
    "answer",
    "block_start",
    "block_stop",
    "close",
    "delta",
    "dribble",
    "end",
    "error",
    "event",
    "expected",
    "gate",
    "head",
    "opening",
    "pause",
    "ping",
    "raw",
    "recorded",
    "replay",
    "reset",
    "send",
    "silence",
    "start",
    "status",
    "stop",
    "stream_error",
    "text",
    "thinking",
]


class Answer:
    """One open answer: the state that its steps use, and finally its outcome."""

    def __init__(self, upstream: "Upstream", request: Request, connection: Connection) -> None:
        self.upstream = upstream
        self.request = request
        self.connection = connection
        self.body_open = False
        self.outcome = ""  # then one of sent, truncated, disconnected, abandoned, broken
        self.began_at = time.monotonic()
        self.ended_at: float | None = None

    def write(self, data: bytes) -> None:
        """Put bytes on the wire as they are."""
        self.upstream.wire_secrets.note_answer(data)
        self.connection.write(data)

    def write_chunk(self, data: bytes) -> None:
        """Put one chunk on the wire, frame and payload in one write."""
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def wait(self, signal: Signal | None = None, seconds: float | None = None) -> bool:
        """Wait for the signal, or only `seconds`, and return whether it fired; raise if the peer disconnects."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (signal and signal.fired):
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            self.connection.wait(signal, remaining)
        return True


class Upstream:
    """The fake itself: a listening socket on 127.0.0.1, a thread for each connection, and records of both."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.connections: list[Connection] = []
        self.faults: list[str] = []
        self.accepted = 0
        self._tls = tls
        self._queue: deque[tuple[Step, ...]] = deque()
        self._default: tuple[Step, ...] | None = None
        self._gates: dict[str, Signal] = {}
        self._held: dict[str, int] = {}
        self._changed = threading.Condition()
        self._stopped = Signal()
        self._over = Signal()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.wire_secrets = WIRE_SECRETS[self.port] = WireSecrets()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> "Upstream":
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.fire()
        self._over.fire()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    # Called by the test: scripts

    def script(self, *steps: Step) -> None:
        """Queue the answer to one request."""
        with self._changed:
            self._queue.append(steps)

    def always(self, *steps: Step) -> None:
        """Set the answer to every request that comes when the queue is empty."""
        with self._changed:
            self._default = steps

    def open(self, name: str) -> None:
        """Open a gate for every answer that waits at it or will reach it."""
        self._gate(name).fire()

    def clear(self) -> None:
        """Forget scripts, gates and records, and end the open answers; `accepted` is not reset.

        A kept connection is recorded again with its next request.
        """
        with self._changed:
            ended, self._over = self._over, Signal()
            busy = [answer for answer in self.answers if not answer.outcome]
            self.requests, self.answers, self.faults, self.connections = [], [], [], []
            self._queue.clear()
            self._default, self._gates, self._held = None, {}, {}
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        ended.fire()
        self.wait_until(
            lambda: all(answer.outcome == "sent" or answer.connection.closed_at for answer in busy),
            "the end of the open answers",
        )

    # Called by the test: records

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self.open_peer_ports)

    @property
    def open_peer_ports(self) -> set[int]:
        """The client ports of the open connections."""
        with self._changed:
            return {each.peer_port for each in self.connections if each.closed_at is None}

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 10) -> None:
        """Wait until the condition is true, or raise AssertionError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                saw = [(answer.request.path, answer.outcome or "open") for answer in self.answers]
                raise AssertionError(f"waited {timeout:g} s for {what}; saw {saw}, faults {self.faults}")

    def wait_for_requests(self, n: int, timeout: float = 10) -> list[Request]:
        """Wait until `n` requests have been received, and return all of them."""
        self.wait_until(lambda: len(self.requests) >= n, f"{n} requests", timeout)
        return self.requests

    def wait_at_gate(self, name: str, n: int = 1, timeout: float = 10) -> None:
        """Wait until `n` answers have reached a gate: the steps before it are sent."""
        self.wait_until(lambda: self._held.get(name, 0) >= n, f"{n} at gate {name!r}", timeout)

    def wait_for_disconnect(self, timeout: float = 10) -> float:
        """Wait until the peer has disconnected during the latest answer; return that time (monotonic)."""
        self.wait_until(
            lambda: bool(self.answers) and self.answers[-1].outcome == "disconnected", "disconnect of the peer", timeout
        )
        return self.answers[-1].ended_at or 0.0

    # Run by the threads

    def hold(self, answer: Answer, name: str, seconds: float) -> bool:
        """Hold an answer at a gate, and return whether the gate was opened within `seconds`."""
        with self._changed:
            gate = self._gate(name)
            self._held[name] = self._held.get(name, 0) + 1
            self._changed.notify_all()
        return answer.wait(gate, seconds)

    def _gate(self, name: str) -> Signal:
        with self._changed:
            return self._gates.setdefault(name, Signal())

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        while poll.poll() and not self._stopped.fired:
            accepted, address = self._listener.accept()
            connection = Connection(accepted, address[1], self._stopped)
            with self._changed:
                self.accepted += 1
                self.connections.append(connection)
                self._changed.notify_all()
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.begin(self._tls)
            while self._answer(connection.read_request(), connection):
                connection.over = self._stopped
        except Ended:
            pass
        except Exception:
            self._note_fault(traceback.format_exc())
        finally:
            connection.close()
            with self._changed:
                self._changed.notify_all()

    def _answer(self, request: Request, connection: Connection) -> bool:
        """Play the next script, and return whether the connection stays open."""
        answer, steps = self._begin(request, connection)
        outcome = "broken"
        try:
            for step in steps:
                step(answer)
            if answer.body_open:
                raise RuntimeError("the script stopped inside a body: it needs end, close, reset or silence")
            outcome = "sent"
        except Ended as ended:
            outcome = ended.outcome
            raise
        finally:
            with self._changed:
                answer.outcome, answer.ended_at = outcome, time.monotonic()
                self._changed.notify_all()
        return request.headers.get("connection", "").lower() != "close"

    def _begin(self, request: Request, connection: Connection) -> tuple[Answer, tuple[Step, ...]]:
        with self._changed:
            answer = Answer(self, request, connection)
            connection.over = self._over
            self.wire_secrets.note_prompt(request.body)
            self.requests.append(request)
            if connection not in self.connections:
                self.connections.append(connection)
            self.answers.append(answer)
            self._changed.notify_all()
            if request.method != "POST":
                return answer, (error(404, "not_found_error", "Not Found"),)
            steps = self._queue.popleft() if self._queue else self._default
            if steps is None:
                self._note_fault(f"no script for {request.method} {request.path}")
                steps = (error(400, "invalid_request_error", "The test has no script for this request"),)
            return answer, steps

    def _note_fault(self, fault: str) -> None:
        with self._changed:
            self.faults.append(fault)


if __name__ == "__main__":
    with Upstream(port=int(sys.argv[1])) as alone, contextlib.suppress(KeyboardInterrupt):
        alone.always(*answer("Hello", " world"))
        signal.pause()
