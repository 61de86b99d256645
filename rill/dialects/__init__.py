"""The dialects that callers speak: how each asks, how it is answered, and how it is told what went wrong."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from rill.dialects import anthropic, openai, sse, text
from rill.events import End, Event
from rill.problems import Problem
from rill.prompt import Prompt

Frames = text.TextFrames | sse.SSEFrames | anthropic.AnthropicFrames | openai.OpenAIFrames


class Dialect(NamedTuple):
    """One way to be answered.

    `open_frames` makes what writes one streamed answer. `wants_text`: there is nothing to show before the first text.
    `check_beginning` raises Problem for a beginning that a status tells better. `write_whole` writes an answer that is
    not streamed, and `write_problem` a problem before the answer, where the dialect has a JSON shape of its own.
    """

    name: str
    media_type: str
    open_frames: Callable[[Prompt, str], Frames]
    wants_text: bool = False
    check_beginning: Callable[[list[Event]], None] = lambda beginning: None
    write_whole: Callable[[Iterable[list[Event]], Prompt, str], tuple[bytes, End]] | None = None
    write_problem: Callable[[Problem, str], bytes] | None = None


EVENT_STREAM = "text/event-stream; charset=utf-8"
TEXT = Dialect("text", "text/plain; charset=utf-8", text.TextFrames, True, text.check_beginning)
SSE = Dialect("sse", EVENT_STREAM, sse.SSEFrames)
ANTHROPIC = Dialect(
    "anthropic",
    EVENT_STREAM,
    anthropic.AnthropicFrames,
    write_whole=anthropic.write_whole,
    write_problem=anthropic.write_problem,
)
OPENAI = Dialect(
    "openai", EVENT_STREAM, openai.OpenAIFrames, write_whole=openai.write_whole, write_problem=openai.write_problem
)
