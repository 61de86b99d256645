"""A recorded answer: bytes appended by the greenlet that reads the upstream, and followed by any number of readers.

A recorded answer belongs to no connection. Without a reader it goes on for its grace period, and is then cancelled.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import gevent

from rill.problems import Problem
from rill.streaming.cancellation import Cancellation, Drain
from rill.streaming.relay import Aborted, Relay

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
    never started. `receipts` counts the readers that have received all of it, `resumptions` those after the first, and
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
        "_relay",
        "_reserved",
        "asked",
        "ended",
        "headers",
        "id",
        "is_ambiguous",
        "is_lost",
        "problem",
        "receipts",
        "replayed_bytes",
        "resumptions",
        "started",
    )

    def __init__(self, id: str, asked: Asked, keeper: Keeper, drain: Drain | None) -> None:
        self.id = id
        self.asked = asked
        self.started = self.is_ambiguous = self.is_lost = False
        self.ended = ""
        self.headers: Mapping[str, str] = {}  # of the response, besides those of every recording
        self.problem: Problem | None = None
        self.receipts = self.resumptions = self.replayed_bytes = 0
        self._base = 0  # the position of the first byte that is kept; 0 unless the recording is lost
        self._data = bytearray()
        self._keeper = keeper
        self._reserved = BLOCK_BYTES
        self._drain = drain or Drain()
        self._readers: set[Follower] = set()
        self._direct: Follower | None = None
        self._relay: Relay | None = None
        self._cancellation: Cancellation | None = None
        self._grace: Any = None

    @property
    def length(self) -> int:
        """The number of bytes so far."""
        return self._base + len(self._data)

    @property
    def was_read(self) -> bool:
        """Whether a reader has received it to its end."""
        return self.receipts > 0

    @property
    def is_waiting(self) -> bool:
        """Whether it has no reader, and none has received the whole answer, which a new one could still get."""
        return not (self._readers or self.was_read or self.ended in ("reported", "aborted"))

    def read(self, position: int, size: int) -> bytes:
        """Return at most `size` bytes from a position on; b"" if there are none yet."""
        begin = position - self._base
        return bytes(self._data[begin : begin + size])

    def find(self, wanted: bytes, position: int = 0) -> int:
        """Return the position of these bytes, from a position on; -1 if they are not recorded."""
        return self._data.find(wanted, position)

    def admit(self, cancellation: Cancellation) -> Callable[[], None]:
        """Have the answer cancelled once nobody waits for it any more; return what ends that."""
        self._cancellation = cancellation
        self._drain.add(cancellation)
        self._note_readers()
        return self._dismiss

    def relay(self, make: Callable[..., Relay]) -> Relay:
        """Return the relay of the answer, which `make` returns as Delivery.relay does."""
        self._relay = make(self.append, self._block, chunked=False)
        return self._relay

    def pump(self, start: Callable[[], Any]) -> None:
        """Record the answer whose reply `start` returns, to its end, whoever reads it."""
        try:
            reply = start()
        except Problem as problem:
            self.fail(problem)
            return
        except BaseException:
            self.fail(Problem("internal_error"))
            raise
        body, self.headers = reply.body, reply.headers
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
        for reader in self._readers:
            reader.wake()

    def append(self, data: bytes) -> int:
        """Record bytes and pass them to the readers; return their number. It never waits."""
        if self._direct:
            self._direct.wake()
        if len(self._data) + len(data) > self._reserved:
            self._grow(len(data))
        self._data += data
        for reader in self._readers:
            reader.push(data)
        return len(data)

    def end(self, how: str) -> None:
        """Note how the answer ended."""
        self.ended = how
        self._stop_grace()
        for reader in self._readers:
            reader.wake()
        self._relay = None  # They refer to each other.
        self._keeper.note_end(self)

    def fail(self, problem: Problem) -> None:
        """Report a problem before the start to those who wait for it."""
        self.problem = problem
        self.end("aborted")

    def attach(self, reader: Follower) -> None:
        """Add a reader, which is told of every change from now on."""
        self.stop_sending()
        self._readers.add(reader)
        self._stop_grace()
        self._note_readers()

    def note_receipt(self, change: int) -> None:
        """Note that a reader has received the answer to its end (1), or that it turns out to have not (-1)."""
        self.receipts += change
        self._note_readers()

    def detach(self, reader: Follower) -> None:
        """Remove a reader; without any, the grace period begins."""
        self._readers.discard(reader)
        if self.is_lost:
            self._trim()
        self._note_readers()

    def send_to(self, reader: Follower, send: Callable[[bytes], int]) -> None:
        """Have the relay send to a reader that waits and record beside that, if it is the only one and has read all."""
        if self._relay and len(self._readers) == 1 and reader.position == self.length:
            self._direct = reader
            left = self._reserved - len(self._data)
            self._relay.direct(send, self._block, chunked=True, keep=self._data.extend, max_bytes=left)

    def stop_sending(self) -> None:
        """Have the relay record only: `append` tells the readers."""
        if self._direct and self._relay:
            self._direct.position = self.length
            self._direct = None
            self._relay.direct(self.append, self._block, chunked=False)

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

    def _block(self, unsent: bytes) -> None:
        if self._direct:
            self._direct.block(unsent)

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
        if self._cancellation:
            self._drain.discard(self._cancellation)

    def _note_readers(self) -> None:
        """Begin or end the grace period."""
        if self.ended or not self._cancellation:
            return
        if self._readers:
            self._drain.keep(self._cancellation)
        elif self.is_lost:
            self.cancel("client_disconnected")
        elif self._grace is None:
            self._grace = gevent.get_hub().loop.timer(self.asked.seconds)
            self._grace.start(self.cancel, "client_disconnected")
            self._drain.end_first(self._cancellation)

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.close()
            self._grace = None
