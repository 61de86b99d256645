"""The body of a response: the bytes of an answer as they come, and how its client learns what became of it."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from errno import ECONNRESET
from typing import Protocol

from rill.events import End, Event, Start, Text
from rill.problems import Problem
from rill.streaming.cancellation import Interrupted, Interruption

# The problems of an upstream that are outcomes of their own after the first byte; any other is `upstream_error`.
UPSTREAM_OUTCOMES = ("upstream_truncated", "idle_timeout")

log = logging.getLogger(__name__)


class Cut(ConnectionResetError):
    """Raised to the server to close the connection without the body's end.

    gunicorn takes an OSError of this number for the caller's leaving; any other exception it logs as a crash.
    """

    def __init__(self, why: str) -> None:
        super().__init__(ECONNRESET, f"answer cut: {why}")


class Frames(Protocol):
    """How one answer is written in the caller's dialect."""

    def frame(self, event: Event) -> bytes: ...

    def fail(self, problem: Problem) -> bytes | None:
        """What tells the caller, within the answer, that it is not whole; None where only a cut can."""


def await_beginning(reads: Iterator[list[Event]], interruption: Interruption, wants_text: bool) -> list[Event]:
    """The first events of an answer, once they show that there is one.

    Where `wants_text`, that is the first text or the end; but once the upstream has begun, a late text is not awaited.
    """
    enough = (Text, End) if wants_text else (Start, Text, End)
    beginning: list[Event] = []
    for events in reads:
        beginning += events
        if interruption.overdue or any(isinstance(event, enough) for event in events):
            break
    return beginning


class Delivery:
    """The body of a response: the bytes of an answer as they come, and its true ending.

    The server iterates it and closes it. `on_close` is called once, with the ending, whether or not the body was ever
    begun; `reset`, where given, before a cut that only a reset can show. `bytes_sent` counts what was yielded; `end` is
    what the upstream said at last, or `problem` what stood in the way of that.
    """

    # Thousands are open at once, and a dict for each would weigh.
    __slots__ = ("_chunks", "_interruption", "_on_close", "_reset", "bytes_sent", "end", "ending", "problem")

    def __init__(
        self,
        reads: Iterable[list[Event]],
        frames: Frames,
        interruption: Interruption,
        reset: Callable[..., None] | None,
        on_close: Callable[["Delivery"], None],
    ) -> None:
        self.bytes_sent = 0
        self.ending = ""
        self.end: End | None = None
        self.problem: Problem | None = None
        self._interruption = interruption
        self._on_close = on_close
        self._reset = reset
        self._chunks = self._deliver(reads, frames, reset)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        if not self.ending or (self.ending == "completed" and self._interruption.client_is_broken):
            # The server could not write all of it, its last chunk included, or was interrupted while it wrote.
            self.ending = self._interruption.why or "client_disconnected"
            if self._reset:
                self._reset(flush_seconds=0.0)
        self._on_close(self)

    def _deliver(
        self,
        reads: Iterable[list[Event]],
        frames: Frames,
        reset: Callable[..., None] | None,
    ) -> Generator[bytes, None, None]:
        yield b""  # The headers leave at once, before any body.
        try:
            for events in reads:
                chunk = b"".join(map(frames.frame, events))
                if chunk:
                    self.bytes_sent += len(chunk)
                    yield chunk
                if isinstance(events[-1], End):
                    self.end = events[-1]
            self.ending = "completed"
            return
        except Interrupted:
            self.ending, problem = self._interruption.why or "", self._interruption.problem()
        except Problem as error:
            self.ending, problem = error.name if error.name in UPSTREAM_OUTCOMES else "upstream_error", error
        except Exception:
            log.exception("an answer failed")
            self.ending, problem = "internal_error", Problem("internal_error")
        self.problem = problem
        last = frames.fail(problem)
        if last is None:
            if reset:
                with suppress(Interrupted):
                    reset()
            raise Cut(self.ending)
        self.bytes_sent += len(last)
        yield last
