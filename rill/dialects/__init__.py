"""The dialects that callers speak: how each asks, how it is answered, and how it is told what went wrong."""

from collections.abc import Callable
from typing import NamedTuple

from rill.dialects import sse, text
from rill.events import Event


class Dialect(NamedTuple):
    """One way to be answered.

    `open_frames` makes what writes one answer. `wants_text`: there is nothing to show before the first text.
    `check_beginning` raises Problem for a beginning that a status tells better.
    """

    name: str
    media_type: str
    wants_text: bool
    open_frames: Callable[[], text.TextFrames | sse.SSEFrames]
    check_beginning: Callable[[list[Event]], None] = lambda beginning: None


TEXT = Dialect("text", "text/plain; charset=utf-8", True, text.TextFrames, text.check_beginning)
SSE = Dialect("sse", "text/event-stream; charset=utf-8", False, sse.SSEFrames)
