"""Why an answer ended, and how its caller learns it.

One mechanism interrupts an answer, whatever the cause: `Interruption.interrupt` notes why, once, and wakes the greenlet
that carries the answer by throwing Interrupted into it. What the greenlet holds is closed on its way out, and
`Delivery` tells the caller. Only the ending `completed` is a clean one.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import ECONNRESET
from typing import Protocol

import gevent

from rill.events import End, Event, Silence, Start, Text
from rill.problems import Problem

# A caller whose connection takes nothing for this long is not reading; its place is free within 30 s.
SLOW_CLIENT_SECONDS = 24.0
# The longest time between two looks at what no event tells: a write that has begun to block; and the same while it
# blocks, or while pipelined bytes hide that the client disconnects.
LOOK_SECONDS, CLOSE_LOOK_SECONDS = 4.0, 1.0
# A silence this long is made an event of its own, so that a framed answer has a sign of life at least every 15 s.
SILENCE_SECONDS = 9.0

# The causes of an interruption: each is the name of the problem that the client is told, and the outcome in the log.
CAUSES = ("start_timeout", "idle_timeout", "total_timeout", "shutdown", "client_disconnected", "client_too_slow")

# The problems of an upstream that are outcomes of their own after the first byte; any other is `upstream_error`.
UPSTREAM_OUTCOMES = ("upstream_truncated", "idle_timeout")

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Thrown into the greenlet of an answer that is to end now, for the cause that its Interruption holds."""


class Cut(ConnectionResetError):
    """Raised to the server to close the connection without the body's end.

    gunicorn takes an OSError of this number for the caller's leaving; any other exception it logs as a crash.
    """

    def __init__(self, why: str) -> None:
        super().__init__(ECONNRESET, f"answer cut: {why}")


class Client(Protocol):
    """The client's connection, as far as an ending needs it; times are monotonic, in seconds.

    `blocked_since` is when it took something last, while a write waits for it; `unblocked_at` when the last such wait
    ended. `broken`: something that was to be sent was not taken.
    """

    @property
    def blocked_since(self) -> float | None: ...

    unblocked_at: float
    broken: bool

    def fileno(self) -> int: ...

    def has_left(self) -> bool:
        """Whether the caller closed, half-closed or reset the connection."""

    def reset(self) -> None:
        """Resets the connection once all that was sent is taken: what a client without chunks can tell from an end."""


class Frames(Protocol):
    """How one answer is written in the caller's dialect."""

    def frame(self, event: Event) -> bytes: ...

    def fail(self, problem: Problem) -> bytes | None:
        """What tells the caller, within the answer, that it is not whole; None where only a cut can."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: until the answer begins, between two signs of the model's work, and in all."""

    first_event: float
    idle: float
    total: float


class Interruption:
    """Watches over the answer of the greenlet that makes it, until `close`.

    `why` is the first cause to end the answer before its time; `overdue` tells that its text is late. `first_event` and
    `first_text` are when the model's first work and words came: monotonic, in seconds, None until then.
    """

    # Thousands are open at once, and a dict for each would weigh.
    __slots__ = (
        "_begun",
        "_client",
        "_closed",
        "_deadlines",
        "_greenlet",
        "_heard",
        "_loop",
        "_pipelined",
        "_timer",
        "_watcher",
        "_worked",
        "first_event",
        "first_text",
        "nudge",
        "overdue",
        "why",
    )

    def __init__(self, deadlines: Deadlines, client: Client | None) -> None:
        self.why: str | None = None
        self.overdue = False
        self.first_event: float | None = None
        self.first_text: float | None = None
        self.nudge: Callable[[], None] = lambda: None
        self._deadlines = deadlines
        self._client = client
        self._greenlet = gevent.getcurrent()
        self._loop = gevent.get_hub().loop
        self._begun = self._heard = self._worked = time.monotonic()
        self._closed = False
        self._pipelined = False
        self._watcher = self._loop.io(client.fileno(), 1) if client else None
        if self._watcher:
            self._watcher.start(self._look_at_client)
        self._set_timer()

    def interrupt(self, why: str) -> None:
        """Ends the answer now; only the first cause counts."""
        if self.why is None:
            self.why = why
            self._wake()

    def watch(self, reads: Iterable[list[Event]]) -> Iterator[list[Event]]:
        """The reads as they come, each noted; where one brought silence, a ping is no sign of the model's work."""
        return map(self._note, reads)

    def _note(self, events: list[Event]) -> list[Event]:
        self._heard = time.monotonic()
        last = events[-1]
        if type(last) is not Silence or last.working:
            self._worked = self._heard
            if self.first_text is None:
                self._note_firsts(events)
        return events

    def problem(self) -> Problem:
        """What the caller is told of the cause."""
        return Problem(self.why or "client_disconnected")

    @property
    def client_is_broken(self) -> bool:
        """Whether the client did not take all that was sent."""
        return self._client is not None and self._client.broken

    def close(self) -> None:
        """Ends the watch: nothing is thrown any more."""
        self._closed = True
        self._timer.close()
        if self._watcher:
            self._watcher.close()

    def _note_firsts(self, events: list[Event]) -> None:
        self.first_event = self.first_event or self._heard
        if any(isinstance(event, Text) for event in events):
            self.first_text = self._heard

    def _wake(self) -> None:
        self._loop.run_callback(self._throw)

    def _throw(self) -> None:
        if not self._closed:
            self._greenlet.throw(Interrupted(self.why))

    def _look_at_client(self) -> None:
        assert self._client
        assert self._watcher
        # What is readable but no leaving is a further request, and would wake a level-triggered watcher for ever.
        self._watcher.stop()
        if self._client.has_left():
            self.interrupt("client_disconnected")
        else:
            self._pipelined = True
            self._timer.close()
            self._set_timer()

    def _set_timer(self) -> None:
        now = time.monotonic()
        dues = [self._begun + self._deadlines.total, self._idle_due(now), self._heard + SILENCE_SECONDS]
        if not self.overdue:
            dues.append(self._begun + self._deadlines.first_event)
        closely = self._pipelined or (self._client and self._client.blocked_since)
        wait = min(min(dues) - now, CLOSE_LOOK_SECONDS if closely else LOOK_SECONDS)
        # What is due has been seen to; only whether the ending itself is read remains to be looked at.
        self._timer = self._loop.timer(LOOK_SECONDS if self.why else max(wait, 0.001))
        self._timer.start(self._look_at_time)

    def _look_at_time(self) -> None:
        now = time.monotonic()
        cause = self._cause(now)
        if self.why is None and cause:
            self.interrupt(cause)
        elif cause == "client_too_slow":
            self._wake()  # It does not even read how its answer ended.
        else:
            self._nudge_if_due(now)
        self._timer.close()
        if not self._closed:
            self._set_timer()

    def _nudge_if_due(self, now: float) -> None:
        late = not self.overdue and now >= self._begun + self._deadlines.first_event
        if late or now >= self._heard + SILENCE_SECONDS:
            self.overdue = self.overdue or late
            self._heard = now
            self.nudge()

    def _cause(self, now: float) -> str | None:
        blocked_since = self._client.blocked_since if self._client else None
        if blocked_since and now - blocked_since >= SLOW_CLIENT_SECONDS:
            return "client_too_slow"
        if self._pipelined and self._client and self._client.has_left():
            return "client_disconnected"
        if now >= self._begun + self._deadlines.total:
            return "total_timeout"
        if self.first_event is None and now >= self._begun + self._deadlines.first_event:
            return "start_timeout"
        return "idle_timeout" if now >= self._idle_due(now) else None

    def _idle_due(self, now: float) -> float:
        """Return when the model has sent nothing for too long.

        The clock stands still until the first event, which the start timeout covers with Rill's own pauses between
        attempts, and while a write waits for the client.
        """
        since = self._worked
        if self.first_event is None or (self._client and self._client.blocked_since):
            since = now
        elif self._client:
            since = max(since, self._client.unblocked_at)
        return since + self._deadlines.idle


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
