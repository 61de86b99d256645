"""Ending an answer early: deadlines, disconnects and shutdown.

One mechanism for every reason: `Cancellation.cancel` stores the first reason and throws Cancelled into the greenlet
that carries the answer, which closes what it holds on its way out.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import gevent

from rill.events import Event, Heartbeat, Text
from rill.problems import Problem

# After this much silence the reader of the upstream is woken, so that an event stream gets a keep-alive comment at
# least every 15 s.
HEARTBEAT_SECONDS = 9.0


class Cancelled(Exception):
    """Thrown into the greenlet of an answer that is to end now."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: until the answer starts, between two events of the model's work, and in total."""

    start: float
    idle: float
    total: float


class Cancellation:
    """The early end of the answer that the current greenlet carries, and its deadlines until `close`.

    `reason` is why the answer was cancelled, one of problems.CANCELLATION_REASONS, None if it was not. `undelivered`:
    the client's connection failed to take what was sent. `overdue`: the start timeout has passed, so that no text is
    awaited any more. `first_text` is when the first text came: monotonic, in seconds. `nudge` wakes a waiting read.
    """

    # Thousands are open at once; each would have a dict of its own.
    __slots__ = (
        "_begun",
        "_blocked",
        "_closed",
        "_deadlines",
        "_greenlet",
        "_heard",
        "_loop",
        "_started",
        "_timer",
        "_worked",
        "first_text",
        "nudge",
        "overdue",
        "reason",
        "undelivered",
    )

    def __init__(self, deadlines: Deadlines) -> None:
        self.reason: str | None = None
        self.undelivered = False
        self.overdue = False
        self.first_text: float | None = None
        self.nudge: Callable[[], None] = lambda: None
        self._deadlines = deadlines
        self._greenlet = gevent.getcurrent()
        self._loop = gevent.get_hub().loop
        self._begun = self._heard = self._worked = time.monotonic()
        self._started = False
        self._blocked = False
        self._closed = False
        self._set_timer()

    def cancel(self, reason: str) -> None:
        """End the answer now; only the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._loop.run_callback(self._throw)

    def watch(self, reads: Iterable[list[Event]]) -> Iterator[list[Event]]:
        """Yield the reads as they come, and note each for the deadlines; pings do not count as work of the model."""
        return map(self._note, reads)

    def note_text(self) -> None:
        """Note text that came now."""
        self._heard = self._worked = time.monotonic()
        if self.first_text is None:
            self.first_text = self._heard

    def pause_idle_timeout(self) -> None:
        """Stop the idle timeout: a write waits for the client, so nothing is read from the upstream."""
        self._blocked = True

    def resume_idle_timeout(self) -> None:
        """Start the idle timeout again."""
        self._blocked = False
        self._worked = time.monotonic()

    def problem(self) -> Problem:
        """Return what the client is told."""
        return Problem(self.reason or "client_disconnected")

    def close(self) -> None:
        """Stop the deadlines; nothing is thrown any more."""
        self._closed = True
        self._timer.close()

    def _note(self, events: list[Event]) -> list[Event]:
        self._heard = time.monotonic()
        last = events[-1]
        if type(last) is not Heartbeat or last.working:
            self._worked = self._heard
            self._started = True
            if self.first_text is None and any(isinstance(event, Text) for event in events):
                self.first_text = self._heard
        return events

    def _throw(self) -> None:
        if not self._closed:
            self._greenlet.throw(Cancelled(self.reason))

    def _set_timer(self) -> None:
        now = time.monotonic()
        dues = [self._begun + self._deadlines.total, self._idle_due(now), self._heard + HEARTBEAT_SECONDS]
        if not self.overdue:
            dues.append(self._begun + self._deadlines.start)
        self._timer = self._loop.timer(max(min(dues) - now, 0.001))
        self._timer.start(self._check_deadlines)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if reason := self._reason_at(now):
            self.cancel(reason)
        if self.reason is None:
            self._nudge_if_due(now)
        self._timer.close()
        if self.reason is None and not self._closed:
            self._set_timer()

    def _reason_at(self, now: float) -> str | None:
        if now >= self._begun + self._deadlines.total:
            return "total_timeout"
        if not self._started and now >= self._begun + self._deadlines.start:
            return "start_timeout"
        return "idle_timeout" if now >= self._idle_due(now) else None

    def _idle_due(self, now: float) -> float:
        # Until the first event, the start timeout counts: it covers the pauses between attempts too.
        since = self._worked if self._started and not self._blocked else now
        return since + self._deadlines.idle

    def _nudge_if_due(self, now: float) -> None:
        late = not self.overdue and now >= self._begun + self._deadlines.start
        if late or now >= self._heard + HEARTBEAT_SECONDS:
            self.overdue = self.overdue or late
            self._heard = now
            self.nudge()


class Drain:
    """The open answers of this worker, which shutdown ends; once `begun`, no new one is accepted.

    Answers without a reader end when shutdown begins, before all others.
    """

    def __init__(self) -> None:
        self.begun = False
        self._open: set[Cancellation] = set()
        self._unread: set[Cancellation] = set()
        self._ends_unread = False

    @property
    def is_empty(self) -> bool:
        """Whether no answer is open."""
        return not self._open

    def add(self, answer: Cancellation) -> None:
        """Count an answer as open."""
        self._open.add(answer)

    def discard(self, answer: Cancellation) -> None:
        """Count an answer as open no longer."""
        self._open.discard(answer)
        self._unread.discard(answer)

    def keep(self, answer: Cancellation) -> None:
        """Note that an open answer has a reader."""
        self._unread.discard(answer)

    def end_first(self, answer: Cancellation) -> None:
        """Note that an open answer has no reader."""
        if self._ends_unread:
            answer.cancel("shutdown")
        else:
            self._unread.add(answer)

    def end_unread(self) -> None:
        """End the answers that have no reader, now and from now on."""
        self._ends_unread = True
        for answer in tuple(self._unread):
            answer.cancel("shutdown")

    def cancel_all(self) -> None:
        """End the answers that are still open."""
        for answer in tuple(self._open):
            answer.cancel("shutdown")
