"""The body of a response that reads a recording: what is recorded already, then what is appended, to the true end."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import NamedTuple

from gevent.event import Event

from rill.problems import Problem
from rill.streaming.cancellation import Cancellation, Cancelled, Deadlines
from rill.streaming.recording import Recording
from rill.streaming.relay import Aborted

# A reader ends with its recording, which has the deadlines.
FOREVER = Deadlines(math.inf, math.inf, math.inf)
# Recorded bytes are sent in chunks of this size, so that a long answer does not occupy the event loop.
CHUNK_BYTES = 16384


class Connection(NamedTuple):
    """A client's connection, as rill/service.py's Request has it; each is None without one."""

    admit: Callable[[Cancellation], Callable[[], None]] | None = None
    reset: Callable[..., None] | None = None
    send: tuple[Callable[[bytes], int], Callable[[bytes], None]] | None = None


class Reader:
    """One reader of a recording, which the server iterates and closes; make it in the greenlet that iterates it.

    It yields the bytes from `position` to `stop`. While it waits for more, they are written to the client's connection
    by `push`, within the callback of the event loop that received them.
    """

    # Thousands are open at once; each would have a dict of its own.
    __slots__ = (
        "_await_receipt",
        "_cancellation",
        "_changed",
        "_chunks",
        "_connection",
        "_dismiss",
        "_has_read_all",
        "_recording",
        "_release",
        "_stop",
        "_unsent",
        "_waits",
        "position",
    )

    def __init__(
        self,
        recording: Recording,
        connection: Connection,
        release: Callable[[], None] = lambda: None,
        await_receipt: Callable[[Callable[[int], None]], None] | None = None,
    ) -> None:
        """`release` is called at the end; raise Problem if the memory for another worker's answer is exhausted.

        `await_receipt` reports whether the client has received what was sent; None: it has.
        """
        self.position = 0
        self._await_receipt = await_receipt
        self._stop: float = math.inf
        self._recording = recording
        self._connection = connection
        self._release = release
        self._changed = Event()
        self._unsent = b""
        self._waits = False
        self._has_read_all = False
        self._chunks = self._read()
        try:
            recording.attach(self)
        except Problem:
            release()
            raise
        self._cancellation = Cancellation(FOREVER)
        self._dismiss = connection.admit(self._cancellation) if connection.admit else None

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def seek(self, position: int, stop: float = math.inf) -> None:
        """Read the bytes from `position` to before `stop`."""
        self.position, self._stop = position, stop

    def wait_for_start(self) -> None:
        """Return once the answer has started; raise Problem if it does not."""
        self.wait_until(lambda: self._recording.started or bool(self._recording.ended))
        if self._recording.problem:
            raise self._recording.problem

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once the recording has changed so that the condition is true; raise Problem at a disconnect."""
        try:
            while not condition():
                self._changed.clear()
                self._changed.wait()
        except Cancelled:
            raise self._cancellation.problem() from None

    def push(self, data: bytes) -> None:
        end = self.position + len(data)
        if not self._waits or not self._connection.send or end != self._recording.length or end > self._stop:
            self.wake()
            return
        frame = data if self._connection.reset else b"%x\r\n%b\r\n" % (len(data), data)
        try:
            sent = self._connection.send[0](frame)
        except OSError:
            sent = 0  # The greenlet meets the same error.
        self.position = end
        if sent < len(frame):
            self.block(frame[sent:])

    def block(self, unsent: bytes) -> None:
        self._unsent = unsent
        self.wake()

    def wake(self) -> None:
        self._recording.stop_sending()
        self._waits = False
        self._changed.set()

    def close(self) -> None:
        self._chunks.close()
        self._cancellation.close()
        if self._dismiss:
            self._dismiss()
        self._recording.detach(self)
        if self._has_read_all and not self._cancellation.undelivered:
            # Nobody continues a truncated answer, whatever was received of it.
            if self._await_receipt and self._recording.ended == "complete":
                self._await_receipt(self._recording.note_receipt)
            else:
                self._recording.note_receipt(1)
        self._release()

    def _read(self) -> Generator[bytes, None, None]:
        yield b""  # Send the headers before there is a body.
        recording = self._recording
        try:
            while self.position < self._stop:
                size = int(min(CHUNK_BYTES, self._stop - self.position))
                if data := recording.read(self.position, size):
                    self.position += len(data)
                    yield data
                elif recording.ended:
                    break
                else:
                    self._wait()
        except Cancelled:
            self._abort(self._cancellation.reason or "")
        # A position behind the end is no part of this answer.
        self._has_read_all = bool(recording.ended) and self.position == recording.length
        if recording.ended == "aborted" or (not self._has_read_all and self.position < self._stop):
            self._abort("upstream_truncated")

    def _wait(self) -> None:
        """Return once there is something to do: until then `push` writes what comes."""
        self._changed.clear()
        self._waits = True
        if self._connection.send and not self._connection.reset and self._stop == math.inf:
            self._recording.send_to(self, self._connection.send[0])
        try:
            self._changed.wait()
        finally:
            self.wake()
        unsent, self._unsent = self._unsent, b""
        if unsent and self._connection.send:
            try:
                self._connection.send[1](unsent)
            except OSError as error:
                raise Aborted(self._cancellation.reason or "client_disconnected") from error

    def _abort(self, outcome: str) -> None:
        """Close the connection without the end of the body."""
        if self._connection.reset:
            with suppress(Cancelled):
                self._connection.reset()
        raise Aborted(outcome)
