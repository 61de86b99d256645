"""What makes a dialect: how an answer and a problem are written for one client protocol."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from rill.events import Encoder, End, Event
from rill.problems import NONE, Problem
from rill.prompt import ReplyFormat

EVENT_STREAM = "text/event-stream; charset=utf-8"


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
    encode_whole: Callable[[Iterable[list[Event]], str, str], tuple[bytes, End]] | None = None
    encode_problem: Callable[[Problem, str], bytes] | None = None
    headers: Mapping[str, str] = NONE
