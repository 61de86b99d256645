"""A recorded answer: bytes appended by the greenlet that reads the upstream, and followed by any number of readers.

A recorded answer belongs to no connection. Without a reader it goes on for its grace period, and is then cancelled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gevent

from rill.problems import Problem
from rill.streaming.cancellation import Cancellation, Drain
from rill.streaming.relay import Aborted

# Memory is reserved for a recording in blocks of this size.
BLOCK_BYTES = 8192


class Asked(NamedTuple):
    """A request whose answer is recorded.

    `identity` is the same for requests that may continue each other's answer, `request` for equal requests; both are
    digests. `seconds` is the grace period, and how long the bytes are kept after the end. `joins`: the request gets an
    answer of the same identity whatever became of that; `replaces`: it never does, and takes the identity over.
    """

    client: str
    identity: str
    request: str
    media_type: str
    seconds: int
    joins: bool = False
    replaces: bool = False


class Follower(Protocol):
    """A reader of a recording, which is told what happens to it; no method waits."""

    position: int

    def push(self, data: bytes) -> None:
        """Take bytes that were appended just now."""

    def block(self, unsent: bytes) -> None:
        """Send the rest of a frame before anything else."""

    def wake(self) -> None:
        """Look at the recording again."""


class Keeper(Protocol):
    """Where recordings are found."""

    def reserve(self, recording: "Recording") -> bool:
        """Reserve another block of memory; return False if there is none left."""

    def note_end(self, recording: "Recording") -> None:
        """Let the recording expire."""

    def forget(self, recording: "Recording") -> None:
        """Let nobody find the recording any more."""


class Recording:
    """The bytes of one answer.

    `started`: the answer has begun, so that a reader may send a status. `ended` is "" while the upstream is read, then
    `complete`, `reported` (truncated, which the bytes report) or `aborted` (truncated); `problem` is why the answer
    never started. `was_read`: a reader has read it to its end. `resumptions` counts the readers after the first,
    `replayed_bytes` what was recorded before they came. `is_lost`: no further reader can find it. `is_ambiguous`:
    another answer of its identity was open when this one began.
    """

    # A thousand may be open at once; each would have a dict of its own.
    __slots__ = (
        "_base",
        "_cancellation",
        "_data",
        "_direct",
        "_drain",
        "_grace",
        "_keeper",
        "_readers",
        "_reserved",
        "_send",
        "asked",
        "ended",
        "id",
        "is_ambiguous",
        "is_lost",
        "problem",
        "replayed_bytes",
        "resumptions",
        "started",
        "was_read",
    )

    def __init__(self, id: str, asked: Asked, keeper: Keeper, drain: Drain | None) -> None:
        self.id = id
        self.asked = asked
        self.started = self.is_ambiguous = self.is_lost = self.was_read = False
        self.ended = ""
        self.problem: Problem | None = None
        self.resumptions = self.replayed_bytes = 0
        self._base = 0  # the position of the first byte that is kept; 0 unless the recording is lost
        self._data = bytearray()
        self._keeper = keeper
        self._reserved = BLOCK_BYTES
        self._drain = drain
        self._readers: set[Follower] = set()
        self._direct: Follower | None = None
        self._send: Callable[[bytes], int] | None = None
        self._cancellation: Cancellation | None = None
        self._grace: Any = None

    @property
    def length(self) -> int:
        """The number of bytes so far."""
        return self._base + len(self._data)

    @property
    def is_waiting(self) -> bool:
        """Whether it has lost its reader before the end, and a new one could still get the whole answer."""
        return not (self._readers or self.was_read or self.ended in ("reported", "aborted"))

    def read(self, position: int, size: int) -> bytes:
        """Return at most `size` bytes from a position on; b"" if there are none yet."""
        begin = position - self._base
        return bytes(self._data[begin : begin + size])

    def find(self, wanted: bytes, position: int = 0) -> int:
        """Return the position of these bytes, from a position on; -1 if they are not recorded."""
        return self._data.find(wanted, position)

    # Called by the greenlet that reads the upstream

    def admit(self, cancellation: Cancellation) -> Callable[[], None]:
        """Have the answer cancelled once nobody waits for it any more; return what ends that."""
        self._cancellation = cancellation
        if self._drain is not None:
            self._drain.add(cancellation)
        self._note_readers()
        return self._dismiss

    def pump(self, start: Callable[[], Any]) -> None:
        """Record the answer whose body `start` returns, to its end, whoever reads it."""
        try:
            body = start()
        except Problem as problem:
            self.fail(problem)
            return
        except BaseException:
            self.fail(Problem("internal_error"))
            raise
        self.begin()
        ended = "aborted"
        try:
            for chunk in body:
                if chunk:
                    self.append(chunk)
            ended = "complete" if body.outcome == "completed" else "reported"
        except Aborted:
            pass
        finally:
            body.close()
            self.end(ended)

    def begin(self) -> None:
        """Let the readers send their status."""
        self.started = True
        self._wake()

    def append(self, data: bytes) -> int:
        """Record bytes and pass them to the readers; return their number. It never waits."""
        if len(self._data) + len(data) > self._reserved:
            self._grow(len(data))
        self._data += data
        if self._send:
            # The same as `push`, which would touch more memory for each token.
            frame = b"%x\r\n%b\r\n" % (len(data), data)
            try:
                sent = self._send(frame)
            except OSError:
                sent = 0  # The reader meets the same error.
            if sent < len(frame) and (reader := self._direct):
                self.stop_sending()
                reader.block(frame[sent:])
            return len(data)
        for reader in self._readers:
            reader.push(data)
        return len(data)

    def end(self, how: str) -> None:
        """Note how the answer ended."""
        self.ended = how
        self._stop_grace()
        self._wake()
        self._keeper.note_end(self)

    def fail(self, problem: Problem) -> None:
        """Report a problem before the start to those who wait for it."""
        self.problem = problem
        self.end("aborted")

    # Called for readers

    def attach(self, reader: Follower) -> None:
        """Add a reader, which is told of every change from now on."""
        self.stop_sending()
        self._readers.add(reader)
        self._stop_grace()
        self._note_readers()

    def detach(self, reader: Follower, has_read_all: bool) -> None:
        """Remove a reader; without any, the grace period begins."""
        self._readers.discard(reader)
        self.was_read = self.was_read or has_read_all
        if self.is_lost:
            self._trim()
        self._note_readers()

    def send_to(self, reader: Follower, send: Callable[[bytes], int]) -> None:
        """Send what is appended to a reader that waits, without `push`, if it is the only one and has read all."""
        if len(self._readers) == 1 and reader.position == self.length:
            self._direct, self._send = reader, send

    def stop_sending(self) -> None:
        """Use `push` again."""
        if self._direct:
            self._direct.position = self.length
            self._direct = self._send = None

    def note_resumption(self, position: int) -> None:
        """Count a reader that continues the answer from a position."""
        self.resumptions += 1
        self.replayed_bytes += max(0, self.length - position)

    def cancel(self, reason: str) -> None:
        """End the answer, if it has not ended."""
        if self._cancellation and not self.ended:
            self._cancellation.cancel(reason)

    def lose(self) -> None:
        """Keep nothing that no attached reader needs; nobody finds the recording any more."""
        self.is_lost = True
        self._keeper.forget(self)
        self._trim()
        self._note_readers()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    def _grow(self, size: int) -> None:
        while self._reserved < len(self._data) + size and not self.is_lost:
            if self._keeper.reserve(self):
                self._reserved += BLOCK_BYTES
            else:
                self.lose()
        if self.is_lost:
            self._trim()

    def _trim(self) -> None:
        self.stop_sending()
        needed = min((reader.position for reader in self._readers), default=self.length)
        if needed > self._base:
            del self._data[: needed - self._base]
            self._base = needed

    def _dismiss(self) -> None:
        if self._drain is not None and self._cancellation:
            self._drain.discard(self._cancellation)

    def _note_readers(self) -> None:
        """Begin or end the grace period."""
        if self.ended or not self._cancellation:
            return
        if self._readers:
            if self._drain is not None:
                self._drain.keep(self._cancellation)
        elif self.is_lost:
            self.cancel("client_disconnected")
        elif self._grace is None:
            self._grace = gevent.get_hub().loop.timer(self.asked.seconds)
            self._grace.start(self.cancel, "client_disconnected")
            if self._drain is not None:
                self._drain.end_first(self._cancellation)

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.close()
            self._grace = None
