"""The steps of which a test composes the answers of the fake upstream, each a function of the open `Answer`."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from messages_api import REQUEST_ID, block_stop, error_body, opening, stop, text
from wire_connection import Closed

if TYPE_CHECKING:
    from upstream import Answer

RECORDED = Path(__file__).parent / "recorded"
Headers = Mapping[str, str]
Step = Callable[["Answer"], None]


def status(code: int, headers: Headers | None = None, body: bytes = b"") -> Step:
    """Send a whole plain response."""
    reason = HTTPStatus(code).phrase if code in set(HTTPStatus) else "Unnamed"
    fields = {"content-length": str(len(body)), "request-id": REQUEST_ID, **(headers or {})}
    return raw(_head(code, reason, fields) + body)


def error(code: int, type: str, message: str, headers: Headers | None = None) -> Step:
    """Send a whole response with an error of the Messages API."""
    return status(code, {"content-type": "application/json", **(headers or {})}, error_body(type, message))


def head(headers: Headers | None = None) -> Step:
    """Send the head of an event stream, in its own write."""
    fields = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "request-id": REQUEST_ID,
        "transfer-encoding": "chunked",
        **(headers or {}),
    }

    def write_head(answer: "Answer") -> None:
        answer.body_open = True
        answer.write(_head(200, "OK", fields))

    return write_head


def send(*events: bytes) -> Step:
    """Send one chunk of one or more events (or any bytes), in one write."""
    data = b"".join(events)
    if not data:
        raise ValueError("an empty chunk would end the body: use end()")
    return lambda answer: answer.write_chunk(data)


def dribble(data: bytes, size: int = 1) -> Step:
    """Send the data in chunks of `size` bytes, each in its own write."""

    def write_pieces(answer: "Answer") -> None:
        for begin in range(0, len(data), size):
            answer.write_chunk(data[begin : begin + size])

    return write_pieces


def raw(data: bytes) -> Step:
    """Send bytes as they are, without a chunk around them."""
    return lambda answer: answer.write(data)


def gate(name: str, seconds: float = 30) -> Step:
    """Hold the answer until the test opens the gate; after `seconds` the connection closes, with a fault."""

    def hold(answer: "Answer") -> None:
        if not answer.upstream.hold(answer, name, seconds):
            raise RuntimeError(f"gate {name!r} was not opened in {seconds:g} s")

    return hold


def pause(seconds: float) -> Step:
    """Send nothing for some seconds: to pace an answer, never as proof of an order."""

    def wait(answer: "Answer") -> None:
        answer.wait(seconds=seconds)

    return wait


def silence() -> Step:
    """Send nothing until the peer closes the connection."""

    def wait(answer: "Answer") -> None:
        answer.wait()

    return wait


def end() -> Step:
    """Send the terminating chunk."""

    def write_end(answer: "Answer") -> None:
        answer.write(b"0\r\n\r\n")
        answer.body_open = False

    return write_end


def close() -> Step:
    """Close the connection by FIN, without the terminating chunk."""

    def abort(answer: "Answer") -> None:
        raise Closed

    return abort


def reset() -> Step:
    """Reset the connection: the peer gets a RST, and loses the data that it has not read."""

    def abort(answer: "Answer") -> None:
        answer.connection.reset_on_close = True
        raise Closed

    return abort


def _head(code: int, reason: str, fields: Headers) -> bytes:
    lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# Whole answers


def answer(*pieces: str, stop_reason: str = "end_turn") -> list[Step]:
    """Return the steps of a whole answer, with a chunk for each piece of text."""
    outcome = block_stop() + stop(stop_reason, output_tokens=len(pieces))
    return [head(), send(opening()), *(send(text(piece)) for piece in pieces), send(outcome), end()]


def recorded(name: str) -> bytes:
    """Return the bytes of tests/recorded/<name>.sse."""
    return (RECORDED / f"{name}.sse").read_bytes()


def expected() -> dict[str, dict[str, Any]]:
    """Return the text, stop_reason and outcome of each recorded answer."""
    outcomes: dict[str, dict[str, Any]] = json.loads((RECORDED / "expected.json").read_text("utf-8"))
    return outcomes


def replay(name: str) -> list[Step]:
    """Return the steps that send a recorded answer."""
    return [head(), send(recorded(name)), end()]
