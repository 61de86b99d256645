"""Copies the recordings of this worker to Redis: in batches, and at once to workers that follow them.

A recording is a stream `rill:answer:<id>`: an entry `meta` first, entries `d` with bytes, whose ids are the positions
behind them, and an entry `e` last. `rill:request:<identity>` has the id of the latest answer and its state.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from redis.exceptions import RedisError, ResponseError

from rill.streaming.recording import Asked, Keeper, Recording
from rill.streaming.redis_link import Link, channel_of

# How long bytes wait for a batch, unless another worker follows the answer.
BATCH_SECONDS = 1.0
# How often the greenlet looks for them: what is due is copied together.
TICK_SECONDS = 0.25
# How many recordings are copied between two looks at other greenlets.
MAX_BATCH = 50
# The expiry of an open answer beyond its grace period, for a worker that is killed, and how often it is renewed.
EXPIRY_SECONDS = 10
RENEWAL_SECONDS = 5.0
# How long a worker that follows an answer may be silent.
LEASE_SECONDS = 3.0
# How long Redis may fail before an answer that it does not have completely counts as lost.
LOST_SECONDS = 5.0

# Set the state of an answer, unless a later one has the same identity.
NOTE_STATE = """
local known = redis.call('GET', KEYS[1])
if known and string.sub(known, 1, #ARGV[1]) == ARGV[1] and not string.find(known, ' ambiguous') then
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'KEEPTTL')
end
return 1
"""

log = logging.getLogger(__name__)


def answer_key(id: str) -> str:
    """Return the key of an answer."""
    return f"rill:answer:{id}"


def identity_key(identity: str) -> str:
    """Return the key of the latest answer to requests of an identity."""
    return f"rill:request:{identity}"


class RemoteReader:
    """Another worker, which follows a recording of this one from `position` until the lease ends."""

    def __init__(self, worker: str, mark: Callable[[], None]) -> None:
        self.worker = worker
        self.position = 0
        self.lease = 0.0  # monotonic, in seconds
        self.awaits_reply = False
        self.mark = mark

    def push(self, data: bytes) -> None:
        self.mark()

    def block(self, unsent: bytes) -> None:
        """Do nothing: only a reader that waits for its connection is sent to directly."""

    def wake(self) -> None:
        self.awaits_reply = True
        self.mark()


class SharedRecording(Recording):
    """A recording that is copied to Redis; `shipped` is the number of bytes there."""

    __slots__ = (
        "_shipper",
        "due",
        "failing_since",
        "has_shipped_end",
        "remote",
        "renewed",
        "shipped",
        "shipped_state",
    )

    def __init__(self, id: str, asked: Asked, keeper: Keeper, drain: Any, shipper: "Shipper") -> None:
        super().__init__(id, asked, keeper, drain)
        self._shipper = shipper
        self.shipped = 0
        self.shipped_state = "unread"
        self.has_shipped_end = False
        self.due = 0.0  # when to copy next: monotonic, in seconds
        self.failing_since = 0.0  # monotonic, in seconds; 0 if it is not
        self.renewed = time.monotonic()
        self.remote: dict[str, RemoteReader] = {}  # by worker

    @property
    def state(self) -> str:
        """What a request of the same identity needs to know."""
        return "waiting" if self.is_waiting else "read" if self.was_read else "unread"

    @property
    def is_shipped(self) -> bool:
        """Whether Redis has everything."""
        has_all = self.shipped == self.length and self.has_shipped_end == bool(self.ended)
        return has_all and (self.is_ambiguous or self.shipped_state == self.state)

    def follow(self, worker: str, position: int) -> None:
        """Send another worker what follows a position, until its lease ends."""
        reader = self.remote.get(worker)
        if reader is None:
            reader = self.remote[worker] = RemoteReader(worker, lambda: self._shipper.mark(self))
            self.attach(reader)
        reader.position, reader.lease = position, time.monotonic() + LEASE_SECONDS
        reader.wake()

    def unfollow(self, worker: str) -> None:
        """Send another worker nothing more."""
        if reader := self.remote.pop(worker, None):
            self.detach(reader)

    def _note_readers(self) -> None:
        super()._note_readers()
        if self.state != self.shipped_state:
            self._shipper.mark(self)


class Shipper:
    """One greenlet that copies all recordings of a worker, so that no answer waits for Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: dict[SharedRecording, None] = {}
        self._urgent: dict[SharedRecording, None] = {}
        self._check_at = 0.0  # monotonic, in seconds
        self._changed = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def open(self, recording: SharedRecording) -> None:
        """Copy a recording until its end is in Redis."""
        self._open[recording] = None
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)
        self._changed.set()

    def mark(self, recording: SharedRecording) -> None:
        """Copy what has changed at once."""
        if not recording.is_lost:
            self._urgent[recording] = None
            self._changed.set()

    def drop(self, recording: SharedRecording) -> bool:
        """Copy a recording no further; return False if it is copied already."""
        self._urgent.pop(recording, None)
        if recording not in self._open:
            return False
        del self._open[recording]
        return True

    def _run(self) -> None:
        while True:
            self._changed.wait(TICK_SECONDS if self._open else None)
            self._changed.clear()
            self._check_times()
            while batch := list(self._urgent)[:MAX_BATCH]:
                for recording in batch:
                    del self._urgent[recording]
                try:
                    self._ship(batch)
                except RedisError:
                    self._note_failure(batch)
                    break
                except Exception:
                    log.exception("a recorded answer could not be copied")
                    for recording in batch:
                        recording.lose()

    def _check_times(self) -> None:
        """Select the recordings of a batch, renew their expiry, and end the leases of workers that are silent."""
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + TICK_SECONDS
        for recording in tuple(self._open):
            if recording.due <= now and (not recording.is_shipped or now - recording.renewed >= RENEWAL_SECONDS):
                self._urgent[recording] = None
            for reader in tuple(recording.remote.values()):
                if reader.lease < now:
                    recording.unfollow(reader.worker)

    def _ship(self, batch: list[SharedRecording]) -> None:
        """Send one pipeline; raise RedisError if it failed as a whole."""
        pipeline = self._link.redis.pipeline(transaction=False)
        notes: list[Callable[[Any], None]] = []
        due = time.monotonic() + BATCH_SECONDS
        for recording in batch:
            recording.due = due
            notes += self._add_commands(pipeline, recording)
        results = self._link.run(lambda: pipeline.execute(raise_on_error=False))
        for note, result in zip(notes, results, strict=True):
            note(result)
        for recording in batch:
            if recording.ended and recording.is_shipped:
                self.drop(recording)

    def _add_commands(self, pipeline: Any, recording: SharedRecording) -> list[Callable[[Any], None]]:
        """Add the commands that Redis lacks; return what notes the result of each."""
        key, length, notes = answer_key(recording.id), recording.length, []

        def add(note: Callable[[], None], *command: Any) -> None:
            pipeline.execute_command(*command)
            notes.append(lambda result: self._note_result(recording, result, note))

        if length > recording.shipped:
            data = recording.read(recording.shipped, length)
            add(lambda: _note_shipped(recording, length), "XADD", key, "NOMKSTREAM", f"{length}-0", "d", data)
        if recording.ended and not recording.has_shipped_end:
            add(lambda: _note_end(recording), "XADD", key, "NOMKSTREAM", f"{length}-3", "e", recording.ended)
        now = time.monotonic()
        if recording.ended or now - recording.renewed >= RENEWAL_SECONDS:
            recording.renewed = now
            seconds = max(1, recording.asked.seconds) + (0 if recording.ended else EXPIRY_SECONDS)
            add(_ignore, "EXPIRE", key, seconds)
            add(_ignore, "EXPIRE", identity_key(recording.asked.identity), seconds)
        state = recording.state
        if not recording.is_ambiguous and state != recording.shipped_state:
            identity = identity_key(recording.asked.identity)
            add(lambda: _note_state(recording, state), "EVAL", NOTE_STATE, 1, identity, recording.id, state)
        for reader in recording.remote.values():
            if reader.awaits_reply or reader.position < length or recording.ended:
                reader.awaits_reply = False
                head, data = message_of(recording, reader.position)
                notes.append(_ignore_result)
                pipeline.publish(channel_of(reader.worker), head.encode() + b"\n" + data)
                reader.position = length
        return notes

    def _note_result(self, recording: SharedRecording, result: Any, note: Callable[[], None]) -> None:
        is_repeated = isinstance(result, ResponseError) and "equal or smaller" in str(result)
        if result is None:
            log.warning("An answer is no longer in Redis: it cannot be resumed")
            recording.lose()
        elif isinstance(result, Exception) and not is_repeated:
            self._note_failure([recording], type(result).__name__)
        else:
            recording.failing_since = 0.0
            note()

    def _note_failure(self, batch: list[SharedRecording], reason: str = "") -> None:
        """Try again, or lose a recording that Redis has lacked for too long."""
        now = time.monotonic()
        for recording in batch:
            recording.failing_since = recording.failing_since or now
            if now - recording.failing_since >= LOST_SECONDS:
                if reason:
                    log.warning("Redis rejects an answer (%s): it cannot be resumed", reason)
                recording.lose()
            else:
                self._open[recording] = None


def message_of(recording: Recording, position: int) -> tuple[str, bytes]:
    """Return the message that has the state of a recording, and its bytes from a position on."""
    ended = f"failed:{recording.problem.name}" if recording.problem else recording.ended
    head = f"data {recording.id} {position} {int(recording.started)} {ended or '-'}"
    return head, recording.read(position, recording.length)


def _note_shipped(recording: SharedRecording, length: int) -> None:
    recording.shipped = length


def _note_end(recording: SharedRecording) -> None:
    recording.has_shipped_end = True


def _note_state(recording: SharedRecording, state: str) -> None:
    recording.shipped_state = state


def _ignore() -> None:
    """Note nothing."""


def _ignore_result(result: Any) -> None:
    """Note nothing: a worker that misses a message asks again."""
