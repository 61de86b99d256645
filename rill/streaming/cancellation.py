"""Ending an answer early: deadlines, disconnects and shutdown.

One mechanism, whatever the reason: `Interruption.interrupt` notes the first reason and throws Interrupted into the
greenlet that carries the answer. What that greenlet holds is closed on its way out.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import gevent

from rill.events import Event, Silence, Text
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

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Thrown into the greenlet of an answer that is to end now, for the cause that its Interruption holds."""


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

    def admit(self, answer: "Interruption") -> AbstractContextManager[None]:
        """Count the answer as one that is open on this connection, for as long as the context lasts."""

    def has_left(self) -> bool:
        """Whether the caller closed, half-closed or reset the connection."""

    def reset(self) -> None:
        """Resets the connection once all that was sent is taken: what a client without chunks can tell from an end."""


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


class Drain:
    """Every open answer of this worker, and the end of them all; once `begun`, no new one is taken."""

    def __init__(self) -> None:
        self.begun = False
        self._open: set[Interruption] = set()

    @contextmanager
    def watch(self, answer: Interruption) -> Iterator[None]:
        """Count an answer as open for as long as the context lasts."""
        self._open.add(answer)
        try:
            yield
        finally:
            self._open.discard(answer)

    def end_all(self) -> None:
        """End what is still open."""
        for answer in tuple(self._open):
            answer.interrupt("shutdown")
