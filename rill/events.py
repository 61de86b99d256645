"""What an answer is made of: its start, its text, silence, and its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Start:
    """The upstream has begun to answer."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """One read from the upstream as it came, ahead of the events in it; only where a prompt wants it verbatim."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """All the text of one read from the upstream: never empty, always encodable as UTF-8."""

    text: str


@dataclass(frozen=True, slots=True)
class Silence:
    """A moment with nothing to show; `working` where the model sent content that is not text, such as thinking."""

    working: bool


@dataclass(frozen=True, slots=True)
class End:
    """The answer is whole: the model said why it stopped, and the upstream that the message is over.

    `usage` is the upstream's final count in tokens; `explanation` is given by some refusals.
    """

    stop_reason: str | None
    usage: Mapping[str, Any]
    explanation: str | None = None


Event = Start | Bytes | Text | Silence | End
