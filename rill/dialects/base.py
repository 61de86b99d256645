"""What makes a dialect: how an answer and a problem are written for one client protocol."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from rill.events import Encoder, End, Event
from rill.problems import Problem
from rill.prompt import ReplyFormat

EVENT_STREAM = "text/event-stream; charset=utf-8"
# At most one keep-alive comment in this time, however many pings and thinking deltas the upstream sends.
COMMENT_SECONDS = 5.0


def accept_any(beginning: list[Event]) -> None:
    """Accept every beginning of an answer."""


class Dialect(NamedTuple):
    """One client protocol.

    `open_encoder` returns the encoder of one streamed answer, from the model, the format and the request's id.
    `wants_text`: an answer starts with its first text. `check_beginning` raises Problem for a beginning that a status
    reports better. `is_verbatim`: the client gets the upstream's own bytes and headers. `encode_whole` returns the body
    and the end of an answer that is not streamed; `encode_problem` a rejection, if the dialect has its own shape;
    `headers` go with each answer.
    """

    name: str
    media_type: str
    open_encoder: Callable[[str, ReplyFormat, str], Encoder]
    wants_text: bool = False
    check_beginning: Callable[[list[Event]], None] = accept_any
    is_verbatim: bool = False
    encode_whole: Callable[[Iterable[list[Event]], str, ReplyFormat, str], tuple[bytes, End]] | None = None
    encode_problem: Callable[[Problem, str], bytes] | None = None
    headers: Mapping[str, str] = MappingProxyType({})


class KeepAlive:
    """The time since the last write of an event stream.

    Its clients ignore a comment, and proxies see a connection that is in use.
    https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
    """

    def __init__(self) -> None:
        self._wrote = time.monotonic()

    def note_write(self) -> None:
        """Restart the time: something is written now."""
        self._wrote = time.monotonic()

    def comment(self) -> bytes:
        """Return a comment if nothing was written for COMMENT_SECONDS, else b""."""
        now = time.monotonic()
        if now - self._wrote < COMMENT_SECONDS:
            return b""
        self._wrote = now
        return b":\n\n"
