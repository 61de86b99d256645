"""The events of an answer, and what writes them: its start, its text, signs of life, and its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rill.problems import Problem


@dataclass(frozen=True, slots=True)
class Start:
    """The upstream has started to answer."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """The bytes of one read from the upstream, ahead of the events in them; only in a verbatim answer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """All the text of one read from the upstream: never empty, always encodable as UTF-8."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model begins to call a tool of the client's."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolInput:
    """A piece of the JSON that the last called tool gets; a call without any has no arguments."""

    json: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A read without text and calls; `working` if the model sent other content, such as thinking."""

    working: bool


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete: the model reported why it stopped, and the upstream ended the message.

    `usage` is the upstream's final count in tokens; `explanation` comes with some refusals.
    """

    stop_reason: str | None
    usage: Mapping[str, Any]
    explanation: str | None = None


Event = Start | Bytes | Text | ToolCall | ToolInput | Heartbeat | End


class Encoder(Protocol):
    """A dialect's writer of one streamed answer."""

    def encode(self, event: Event) -> bytes:
        """Return what the event adds to the response; b"" if nothing."""

    def encode_deltas(self, text: str, events: bytes) -> bytes:
        """Return what a read adds that consists of complete text deltas only: `text`, in the bytes `events`."""

    def encode_error(self, problem: Problem) -> bytes | None:
        """Return what reports a truncated answer in the response; None if only an aborted connection can."""
