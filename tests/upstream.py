"""A fake of the Messages API on a real socket, which answers as a test scripts it.

A script is a row of steps (`head`, `send`, `gate`, `reset`, ...), each a function of the `Answer` under way.
The builders of events (`start`, `text`, `stop`, ...) give the bytes that the real service sends: see
https://docs.claude.com/en/api/messages-streaming. `python tests/upstream.py PORT` serves one fixed answer.
"""

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from leaks import HEARD, Heard

RECORDED = Path(__file__).parent / "recorded"
REQUEST_ID = "req_011CXv7QmZr3TtYk8NdPfJ2w"
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
Headers = Mapping[str, str]


# What happens to an answer


class Ended(Exception):
    """The answer is over before its script is; `outcome` says why."""

    outcome = ""


class Left(Ended):
    """The peer closed or reset the connection."""

    outcome = "left"


class Cut(Ended):
    """The script itself closed or reset the connection."""

    outcome = "cut"


class Abandoned(Ended):
    """The test is over, so nobody waits for the rest."""

    outcome = "abandoned"


class Signal:
    """Something that happens once, and wakes every thread that polls for it."""

    def __init__(self) -> None:
        # All pollers of a pipe see its write end close, and go on seeing it: one pipe wakes any number.
        # It lives as long as anybody holds the signal, so that nobody polls a reused descriptor.
        self._read, write = os.pipe()
        self._fire = weakref.finalize(self, os.close, write)
        weakref.finalize(self, os.close, self._read)

    def fire(self) -> None:
        """Let it happen; a second time changes nothing."""
        self._fire()

    @property
    def fired(self) -> bool:
        """Whether it has happened."""
        return not self._fire.alive

    def fileno(self) -> int:
        """The descriptor that becomes readable when it happens."""
        return self._read


@dataclass(frozen=True)
class Request:
    """One request as it came: `path` with its query, `headers` by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Connection:
    """One accepted connection: reads requests, writes answers, and notices when the peer leaves."""

    def __init__(self, accepted: socket.socket, over: Signal) -> None:
        self.socket = accepted
        self.over = over  # interrupts every wait on this connection
        self.closed_at: float | None = None
        self.reset_on_close = False
        self._peer_left = False
        self._inbox = bytearray()

    def begin(self, tls: ssl.SSLContext | None) -> None:
        """Make the connection ready to be read, with its handshake where it is a TLS one."""
        self.socket.settimeout(5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            try:
                self.socket = tls.wrap_socket(self.socket, server_side=True)
            except OSError as refused:  # a peer that mistrusts the certificate leaves here
                raise Left from refused
        self.socket.setblocking(False)
        self._receive()  # the handshake may have read further than its own end

    def read_request(self) -> Request:
        """Wait for the next request and return it whole."""
        method, path, _ = self._take_line().decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while line := self._take_line().decode("latin-1"):
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Request(method, path, headers, b"".join(self._take_chunks()))
        return Request(method, path, headers, self._take(int(headers.get("content-length", 0))))

    def write(self, data: bytes) -> None:
        """Send all of `data`, in one write where the socket has room; raise `Left` if the peer is gone."""
        self._receive()
        left = memoryview(data)
        while left:
            if self._peer_left:
                raise Left
            try:
                left = left[self.socket.send(left) :]
            except WOULD_BLOCK:
                self.wait(writable=True)
            except OSError as gone:
                raise Left from gone

    def wait(self, also: Signal | None = None, seconds: float | None = None, writable: bool = False) -> None:
        """Wait once for the peer, a signal, or `seconds`; raise if the peer had left, or all is over."""
        if self._peer_left:
            raise Left
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | (select.POLLOUT if writable else 0))
        poll.register(self.over, select.POLLIN)
        if also:
            poll.register(also, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)
        if self.over.fired:
            raise Abandoned
        self._receive()

    def close(self) -> None:
        """Close: by RST if `reset_on_close`, else by FIN, with all that the peer has sent read before."""
        if self.reset_on_close:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self._receive()  # closing with unread bytes would be a RST
            if isinstance(self.socket, ssl.SSLSocket):
                with contextlib.suppress(OSError, ValueError):
                    self.socket.unwrap()
        self.socket.close()
        self.closed_at = time.monotonic()

    def _receive(self) -> None:
        """Take in what has arrived, so that the peer's end is seen behind whatever it sent before."""
        try:
            while data := self.socket.recv(65536):
                self._inbox += data
        except WOULD_BLOCK:
            return
        except OSError:
            pass
        self._peer_left = True

    def _take(self, size: int) -> bytes:
        while len(self._inbox) < size:
            self.wait()
        taken = bytes(self._inbox[:size])
        del self._inbox[:size]
        return taken

    def _take_line(self) -> bytes:
        while (end := self._inbox.find(b"\r\n")) < 0:
            self.wait()
        return self._take(end + 2)[:-2]

    def _take_chunks(self) -> Iterator[bytes]:
        while size := int(self._take_line().split(b";")[0], 16):
            yield self._take(size)
            self._take_line()
        while self._take_line():
            pass


class Answer:
    """One answer under way: what its steps use, and afterwards how it ended."""

    def __init__(self, upstream: "Upstream", request: Request, connection: Connection) -> None:
        self.upstream = upstream
        self.request = request
        self.connection = connection
        self.body_open = False
        self.outcome = ""  # then one of sent, cut, left, abandoned, broken
        self.began_at = time.monotonic()
        self.ended_at: float | None = None

    def write(self, data: bytes) -> None:
        """Put bytes on the wire as they are."""
        self.upstream.heard.note_answer(data)
        self.connection.write(data)

    def write_chunk(self, data: bytes) -> None:
        """Put one chunk on the wire, frame and payload in one write."""
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def wait(self, signal: Signal | None = None, seconds: float | None = None) -> bool:
        """Wait for the signal (or only the time) and say whether it came; the peer's leaving raises."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (signal and signal.fired):
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            self.connection.wait(signal, remaining)
        return True


Step = Callable[[Answer], None]


class Upstream:
    """The fake itself: a listening socket on 127.0.0.1, a thread for each connection, and what they saw."""

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
        self.heard = HEARD[self.port] = Heard()
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

    # What the test says

    def script(self, *steps: Step) -> None:
        """Queue the answer to one request."""
        with self._changed:
            self._queue.append(steps)

    def always(self, *steps: Step) -> None:
        """Set the answer to every request that comes when the queue is empty."""
        with self._changed:
            self._default = steps

    def open(self, name: str) -> None:
        """Open a gate for every answer that waits at it or will come to it."""
        self._gate(name).fire()

    def clear(self) -> None:
        """Forget scripts, gates and records, and end the answers under way; `accepted` goes on counting."""
        with self._changed:
            ended, self._over = self._over, Signal()
            busy = [answer for answer in self.answers if not answer.outcome]
            self.connections = [each for each in self.connections if each.closed_at is None]
            self.requests, self.answers, self.faults = [], [], []
            self._queue.clear()
            self._default, self._gates, self._held = None, {}, {}
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        ended.fire()
        self.wait_until(
            lambda: all(answer.outcome == "sent" or answer.connection.closed_at for answer in busy),
            "the end of the answers under way",
        )

    # What the test asks

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        with self._changed:
            return sum(each.closed_at is None for each in self.connections)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 10) -> None:
        """Wait until something is true of what came in, or raise AssertionError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                saw = [(answer.request.path, answer.outcome or "under way") for answer in self.answers]
                raise AssertionError(f"waited {timeout:g} s in vain for {what}; saw {saw}, faults {self.faults}")

    def wait_for_requests(self, n: int, timeout: float = 10) -> list[Request]:
        """Wait until `n` requests have come in all, and return them all."""
        self.wait_until(lambda: len(self.requests) >= n, f"{n} requests", timeout)
        return self.requests

    def wait_at_gate(self, name: str, n: int = 1, timeout: float = 10) -> None:
        """Wait until `n` answers have come to a gate: what stands before it in their scripts is sent."""
        self.wait_until(lambda: self._held.get(name, 0) >= n, f"{n} at gate {name!r}", timeout)

    def wait_until_left(self, timeout: float = 10) -> float:
        """Wait until the peer has left during the latest answer; return when that was noticed (monotonic)."""
        self.wait_until(lambda: bool(self.answers) and self.answers[-1].outcome == "left", "the peer to leave", timeout)
        return self.answers[-1].ended_at or 0.0

    # What the threads do

    def hold(self, answer: Answer, name: str, seconds: float) -> bool:
        """Hold an answer at a gate, and say whether the gate was opened within `seconds`."""
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
            accepted, _ = self._listener.accept()
            connection = Connection(accepted, self._stopped)
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
        """Play the next script, and say whether the connection stays open."""
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
            self.heard.note_prompt(request.body)
            self.requests.append(request)
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


# Steps


def status(code: int, headers: Headers | None = None, body: bytes = b"") -> Step:
    """A whole plain response."""
    reason = HTTPStatus(code).phrase if code in set(HTTPStatus) else "Unnamed"
    fields = {"content-length": str(len(body)), "request-id": REQUEST_ID, **(headers or {})}
    return raw(_head(code, reason, fields) + body)


def error(code: int, type: str, message: str, headers: Headers | None = None) -> Step:
    """A whole response with the error body of the Messages API."""
    body = {"type": "error", "error": {"type": type, "message": message}, "request_id": REQUEST_ID}
    return status(code, {"content-type": "application/json", **(headers or {})}, json.dumps(body).encode())


def head(headers: Headers | None = None) -> Step:
    """The head of an event stream, in a write of its own."""
    fields = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "request-id": REQUEST_ID,
        "transfer-encoding": "chunked",
        **(headers or {}),
    }

    def write_head(answer: Answer) -> None:
        answer.body_open = True
        answer.write(_head(200, "OK", fields))

    return write_head


def send(*events: bytes) -> Step:
    """One chunk of one or more events (or any bytes), in one write."""
    data = b"".join(events)
    if not data:
        raise ValueError("an empty chunk would end the body: that is end()")
    return lambda answer: answer.write_chunk(data)


def dribble(data: bytes, size: int = 1) -> Step:
    """The data in chunks of `size` bytes, each in a write of its own."""

    def write_pieces(answer: Answer) -> None:
        for begin in range(0, len(data), size):
            answer.write_chunk(data[begin : begin + size])

    return write_pieces


def raw(data: bytes) -> Step:
    """Bytes straight onto the wire, unframed."""
    return lambda answer: answer.write(data)


def gate(name: str, seconds: float = 30) -> Step:
    """Hold the answer until the test opens the gate; after `seconds` the connection closes, with a fault."""

    def hold(answer: Answer) -> None:
        if not answer.upstream.hold(answer, name, seconds):
            raise RuntimeError(f"nobody opened gate {name!r} in {seconds:g} s")

    return hold


def pause(seconds: float) -> Step:
    """Send nothing for a while: for pacing, never as a proof."""

    def wait(answer: Answer) -> None:
        answer.wait(seconds=seconds)

    return wait


def silence() -> Step:
    """Say nothing until the peer leaves."""

    def wait(answer: Answer) -> None:
        answer.wait()

    return wait


def end() -> Step:
    """The terminating chunk."""

    def write_end(answer: Answer) -> None:
        answer.write(b"0\r\n\r\n")
        answer.body_open = False

    return write_end


def close() -> Step:
    """Close the connection by FIN, without the terminating chunk."""

    def cut(answer: Answer) -> None:
        raise Cut

    return cut


def reset() -> Step:
    """Reset the connection: the peer gets a RST, and loses what it has not read yet."""

    def cut(answer: Answer) -> None:
        answer.connection.reset_on_close = True
        raise Cut

    return cut


def _head(code: int, reason: str, fields: Headers) -> bytes:
    lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# Events


def event(type: str, **data: object) -> bytes:
    """One event in the wire format, its data on one line of compact JSON."""
    line = json.dumps({"type": type, **data}, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate has no UTF-8; backslashreplace writes the very escape that JSON has for it.
    return f"event: {type}\ndata: {line}\n\n".encode("utf-8", "backslashreplace")


def start(model: str = "claude-sonnet-5-5", input_tokens: int = 12) -> bytes:
    """The message_start event."""
    usage = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 1,
        "service_tier": "standard",
    }
    opening = {"model": model, "id": "msg_01TestAnswer5vQ2mZkXw8Lr", "type": "message", "role": "assistant"}
    unknown: dict[str, object] = {"content": [], "stop_reason": None, "stop_sequence": None}
    return event("message_start", message={**opening, **unknown, "usage": usage})


def block_start(index: int = 0, type: str = "text", **fields: object) -> bytes:
    """A content_block_start event; what a block of a known type begins with is filled in."""
    known: dict[str, dict[str, object]] = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"id": "toolu_01TestCall7Yq", "name": "get_weather", "input": {}},
    }
    return event("content_block_start", index=index, content_block={"type": type, **known.get(type, {}), **fields})


def delta(index: int, type: str, **fields: object) -> bytes:
    """A content_block_delta event of any type."""
    return event("content_block_delta", index=index, delta={"type": type, **fields})


def text(piece: str, index: int = 0) -> bytes:
    """A content_block_delta event with a text_delta."""
    return delta(index, "text_delta", text=piece)


def thinking(piece: str, index: int = 0) -> bytes:
    """A content_block_delta event with a thinking_delta."""
    return delta(index, "thinking_delta", thinking=piece)


def ping() -> bytes:
    """A ping event."""
    return b'event: ping\ndata: {"type": "ping"}\n\n'


def block_stop(index: int = 0) -> bytes:
    """A content_block_stop event."""
    return event("content_block_stop", index=index)


def stop(stop_reason: str = "end_turn", output_tokens: int = 7, **fields: object) -> bytes:
    """The message_delta and message_stop events; `fields` join the delta, as stop_details does."""
    outcome = {"stop_reason": stop_reason, "stop_sequence": None, **fields}
    return event("message_delta", delta=outcome, usage={"output_tokens": output_tokens}) + event("message_stop")


def stream_error(type: str = "overloaded_error", message: str = "Overloaded") -> bytes:
    """An error event, as it comes in the middle of a stream."""
    return event("error", error={"details": None, "type": type, "message": message}, request_id=REQUEST_ID)


# Whole answers


def opening(model: str = "claude-sonnet-5-5") -> bytes:
    """The events that stand before the first text of an answer."""
    return start(model) + block_start() + ping()


def answer(*pieces: str, stop_reason: str = "end_turn") -> list[Step]:
    """The steps of a whole normal answer, with a chunk for each piece of text."""
    outcome = block_stop() + stop(stop_reason, output_tokens=len(pieces))
    return [head(), send(opening()), *(send(text(piece)) for piece in pieces), send(outcome), end()]


def recorded(name: str) -> bytes:
    """The bytes of tests/recorded/<name>.sse."""
    return (RECORDED / f"{name}.sse").read_bytes()


def expected() -> dict[str, dict[str, Any]]:
    """What each recorded answer comes to: its text, stop_reason and outcome."""
    outcomes: dict[str, dict[str, Any]] = json.loads((RECORDED / "expected.json").read_text("utf-8"))
    return outcomes


def replay(name: str) -> list[Step]:
    """The steps that send a recorded answer."""
    return [head(), send(recorded(name)), end()]


if __name__ == "__main__":
    with Upstream(port=int(sys.argv[1])) as alone, contextlib.suppress(KeyboardInterrupt):
        alone.always(*answer("Hello", " world"))
        signal.pause()
