"""Recordings that every worker and machine finds in Redis: read there, and followed from the worker that owns them.

A worker that follows an answer renews that in short intervals; the owner sends it what is appended. Messages are a line
of words, then bytes: `follow ID WORKER POSITION`, `unfollow ID WORKER`, `received ID 1|-1`, `resumed ID BYTES` and
`stop ID` to the owner, and its `data ID POSITION STARTED ENDED`.
"""

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

import gevent
from redis.exceptions import RedisError

from rill.problems import KINDS, Problem
from rill.streaming.cancellation import Drain
from rill.streaming.recording import BLOCK_BYTES, Asked, Follower, Recording
from rill.streaming.redis_link import Link
from rill.streaming.replay import ID_BYTES, Recordings
from rill.streaming.shipping import EXPIRY_SECONDS, SharedRecording, Shipper, answer_key, identity_key, message_of

# How often a follower reports to the owner of an answer, which is lost if it does not listen twice in a row.
FOLLOW_SECONDS = 0.5
# How long an owner that listens may leave its followers without a reply.
SILENT_SECONDS = 5.0
TRIES = 2

# Return the earlier answer that a request joins; else record the new one, and return false.
CLAIM = """
local id, state = string.match(redis.call('GET', KEYS[1]) or '', '(%S+) (%S+)')
if ARGV[3] == 'replaces' or (id and redis.call('EXISTS', ARGV[5] .. id) == 0) then
    id = nil
end
if id == ARGV[6] then
    state = 'read'
end
if id and state ~= 'ambiguous' and (ARGV[3] == 'joins' or state == 'waiting') then
    return id
end
local new = (id and state ~= 'read') and 'ambiguous' or 'unread'
redis.call('XADD', KEYS[2], '0-1', 'meta', ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. new, 'EX', ARGV[2])
return new == 'ambiguous'
"""


class RemoteRecording(Recording):
    """What this worker knows of an answer that another one records; `heard` is when the owner sent a message last."""

    __slots__ = ("__weakref__", "_home", "heard", "owner")

    def __init__(self, id: str, asked: Asked, home: "SharedRecordings", owner: str) -> None:
        super().__init__(id, asked, home, None)
        self._home = home
        self.owner = owner
        self.heard = time.monotonic()  # in seconds

    @property
    def is_followed(self) -> bool:
        """Whether a reader needs what the owner appends."""
        return bool(self._readers) and not self.ended

    def attach(self, reader: Follower) -> None:
        is_first = not self._readers
        super().attach(reader)
        if is_first:
            self._home.begin_reading(self)

    def detach(self, reader: Follower) -> None:
        super().detach(reader)
        if not self._readers:
            self._home.end_reading(self)

    def note_receipt(self, change: int) -> None:
        super().note_receipt(change)
        self._home.notify(self.owner, f"received {self.id} {change}")

    def note_resumption(self, position: int) -> None:
        self._home.notify(self.owner, f"resumed {self.id} {max(0, self.length - position)}")

    def note_data(self, position: int, data: bytes, started: bool, ended: str) -> None:
        """Note a message of the owner; bytes behind a gap are dropped, because they are sent again."""
        self.heard = time.monotonic()
        if started and not self.started:
            self.begin()
        missing = self.length - position
        if 0 <= missing < len(data):
            self.append(data[missing:])
        if ended and not self.ended and self.length >= position + len(data):
            self.note_ended(ended)

    def note_ended(self, ended: str) -> None:
        """Note how the answer ended; `failed:` and a problem if it never started."""
        failed = ended.removeprefix("failed:")
        if failed != ended:
            self.fail(Problem(failed if failed in KINDS else "upstream_error"))
        elif ended == "gone":
            self.heard = -math.inf
        else:
            self.started = True
            self.end(ended)

    def note_loss(self, notice: bytes) -> None:
        """Note that the worker which recorded the answer is gone; `notice` reports it in the answer, b"" cannot."""
        if not self.started and not self.length:
            self.fail(Problem("upstream_error", "The server that asked for this answer failed."))
        elif not self.ended:
            self.started = True
            if notice:
                self.append(notice)
            self.end("reported" if notice else "aborted")


class SharedRecordings(Recordings):
    """The recordings of this worker, which it copies to Redis, and those of others, which it finds there."""

    def __init__(self, url: str, notices: Mapping[str, bytes]) -> None:
        """`notices` by media type: what reports in an answer that its worker is lost, b"" if nothing can."""
        super().__init__()
        self._notices = notices
        self._link = Link(url, self._receive)
        self._claim = self._link.redis.register_script(CLAIM)
        self._shipper = Shipper(self._link)
        self._remote: WeakValueDictionary[str, RemoteRecording] = WeakValueDictionary()

    def open(self, asked: Asked, drain: Drain | None) -> tuple[Recording | None, bool]:
        id = secrets.token_urlsafe(ID_BYTES)
        recording = SharedRecording(id, asked, self, drain, self._shipper)
        if not self.reserve(recording):
            return None, True
        try:
            self._link.listen()
            earlier = self._link.run(lambda: self._claim_identity(recording))
        except RedisError:
            self._budget.release(id, asked.client)
            return None, True
        if isinstance(earlier, bytes):
            self._budget.release(id, asked.client)
            return self.find(earlier.decode()), False
        recording.is_ambiguous = bool(earlier)
        self._found[id] = self._latest[asked.identity] = recording
        self._shipper.open(recording)
        return recording, True

    def find(self, id: str) -> Recording | None:
        if known := super().find(id) or self._remote.get(id):
            return known
        try:
            self._link.listen()
            entries = self._link.run(lambda: self._link.redis.xrange(answer_key(id)))
        except RedisError:
            return None
        if id not in self._remote and entries:
            meta = json.loads(entries[0][1][b"meta"])
            recording = RemoteRecording(id, Asked(**meta["asked"]), self, meta["owner"])
            _restore(recording, entries)
            self._remote[id] = recording
            return recording
        return self._remote.get(id)

    def find_identity(self, identity: str) -> Recording | None:
        try:
            latest = self._link.run(lambda: self._link.redis.get(identity_key(identity)))
        except RedisError:
            return super().find_identity(identity)
        id, _, state = (latest or b"").decode().partition(" ")
        found = self.find(id) if id and state != "ambiguous" else None
        if found and state == "read":
            found.receipts = max(1, found.receipts)  # The owner knows it already.
        return found

    def stop(self, recording: Recording) -> None:
        super().stop(recording)
        if isinstance(recording, RemoteRecording) and not recording.ended:
            self.notify(recording.owner, f"stop {recording.id}")

    def note_end(self, recording: Recording) -> None:
        if isinstance(recording, SharedRecording):
            super().note_end(recording)
            self._shipper.mark(recording)

    def forget(self, recording: Recording) -> None:
        super().forget(recording)
        if isinstance(recording, SharedRecording) and self._shipper.drop(recording):
            gevent.spawn(self._delete, recording)

    def begin_reading(self, recording: RemoteRecording) -> None:
        """Follow an answer of another worker for as long as it has readers; raise Problem if memory is exhausted."""
        for _ in range(recording.length // BLOCK_BYTES + 1):
            if not self.reserve(recording):
                raise Problem("at_capacity", retry_after=1)
        if not recording.ended:
            gevent.spawn(self._follow, recording)

    def end_reading(self, recording: RemoteRecording) -> None:
        """Follow an answer of another worker no longer."""
        self._budget.release(recording.id, recording.asked.client)
        self.notify(recording.owner, f"unfollow {recording.id} {self._link.worker}")

    def notify(self, worker: str, message: str) -> None:
        """Send a message to a worker, without waiting for that."""
        gevent.spawn(self._try_to_notify, worker, message)

    def _try_to_notify(self, worker: str, message: str) -> None:
        for _ in range(TRIES):
            with suppress(RedisError):
                if self._link.send(worker, message):
                    return
            gevent.sleep(FOLLOW_SECONDS)

    def _claim_identity(self, recording: SharedRecording) -> bytes | int | None:
        """Return the id of the earlier answer that the request joins, else whether the new one is ambiguous."""
        asked = recording.asked
        meta = json.dumps({"owner": self._link.worker, "asked": asked._asdict()})
        latest = self._latest.get(asked.identity)
        # Redis may not have that yet.
        read = latest.id if latest and latest.was_read and not latest.is_ambiguous else ""
        mode = "replaces" if asked.replaces else "joins" if asked.joins else ""
        claimed: bytes | int | None = self._claim(
            keys=[identity_key(asked.identity), answer_key(recording.id)],
            args=[recording.id, asked.seconds + EXPIRY_SECONDS, mode, meta, answer_key(""), read],
        )
        return claimed

    def _delete(self, recording: SharedRecording) -> None:
        """Delete what Redis has of an answer that nobody may find any more."""
        with suppress(RedisError):
            self._link.run(lambda: self._link.redis.delete(answer_key(recording.id)))
            for worker in recording.remote:
                self._link.send(worker, *message_of(recording, recording.length))

    def _follow(self, recording: RemoteRecording) -> None:
        missed = 0
        recording.heard = time.monotonic()
        while recording.is_followed:
            with suppress(RedisError):
                follow = f"follow {recording.id} {self._link.worker} {recording.length}"
                missed = 0 if self._link.send(recording.owner, follow) else missed + 1
            if missed == TRIES or time.monotonic() - recording.heard > SILENT_SECONDS:
                with suppress(RedisError):
                    _restore(recording, self._link.run(lambda: self._link.redis.xrange(answer_key(recording.id))))
                recording.note_loss(self._notices.get(recording.asked.media_type, b""))
            gevent.sleep(FOLLOW_SECONDS)

    def _receive(self, message: bytes) -> None:
        head, _, data = message.partition(b"\n")
        kind, id, *words = head.decode().split(" ")
        if kind == "data":
            if remote := self._remote.get(id):
                remote.note_data(int(words[0]), data, words[1] == "1", words[2].removeprefix("-"))
            return
        recording = self._found.get(id)
        if not isinstance(recording, SharedRecording):
            if kind == "follow":
                self.notify(words[0], f"data {id} 0 0 gone")
        elif kind == "follow":
            recording.follow(words[0], int(words[1]))
        elif kind == "unfollow":
            recording.unfollow(words[0])
        elif kind == "received":
            recording.note_receipt(int(words[0]))
        elif kind == "resumed":
            recording.resumptions += 1
            recording.replayed_bytes += int(words[0])
        elif kind == "stop":
            self.stop(recording)


def _restore(recording: RemoteRecording, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
    """Note what Redis has of an answer."""
    for position, fields in entries:
        if data := fields.get(b"d"):
            recording.note_data(int(position.split(b"-")[0]) - len(data), data, True, "")
        elif ended := fields.get(b"e"):
            recording.note_ended(ended.decode())
