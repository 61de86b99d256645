"""The body of a response: the bytes of an answer as they come, and its outcome."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress

from rill.events import Bytes, Encoder, End, Event, Start, Text
from rill.problems import Problem
from rill.streaming.cancellation import Cancellation, Cancelled
from rill.streaming.relay import Aborted, Relay

# The upstream's problems that are outcomes of their own after the first byte; any other is `upstream_error`.
UPSTREAM_OUTCOMES = ("upstream_truncated", "idle_timeout")

log = logging.getLogger(__name__)


class PassThrough:
    """The encoder of a body that comes whole: its client notices a truncated one by the Content-Length."""

    def encode(self, event: Event) -> bytes:
        return event.data if isinstance(event, Bytes) else b""

    def encode_deltas(self, text: str, events: bytes) -> bytes:
        return b""  # Nothing is read once the body is there.

    def encode_error(self, problem: Problem) -> None:
        return None


def await_beginning(reads: Iterator[list[Event]], cancellation: Cancellation, wants_text: bool) -> list[Event]:
    """Return the first events of an answer, once they show that there is one.

    With `wants_text`, that is the first text or the end; without text at the start timeout, what there is.
    """
    enough = (Text, End) if wants_text else (Start, Text, End)
    beginning: list[Event] = []
    for events in reads:
        beginning += events
        if cancellation.overdue or any(isinstance(event, enough) for event in events):
            break
    return beginning


class Delivery:
    """The body of a response, which the server iterates and closes.

    `on_close` is called once, whether or not the body was ever iterated; `outcome` is known then. `reset`, if given,
    resets the connection of a truncated answer, because the client could not tell a close from the end. `beginning` is
    the first chunk, which is sent with the headers; if it is empty, they are sent alone. `bytes_sent` counts the bytes
    of the body; `end` is the upstream's last event, or `problem` what prevented it.
    """

    # Thousands are open at once; each would have a dict of its own.
    __slots__ = (
        "_cancellation",
        "_chunks",
        "_encoder",
        "_on_close",
        "_relay",
        "_reset",
        "_yielded",
        "beginning",
        "end",
        "outcome",
        "problem",
    )

    def __init__(
        self,
        beginning: list[Event],
        reads: Iterable[list[Event]],
        encoder: Encoder,
        cancellation: Cancellation,
        reset: Callable[..., None] | None,
        on_close: Callable[["Delivery"], None],
    ) -> None:
        self._yielded = 0
        self._encoder = encoder
        self._relay: Relay | None = None
        self.outcome = ""
        self.end: End | None = None
        self.problem: Problem | None = None
        self._cancellation = cancellation
        self._on_close = on_close
        self._reset = reset
        self.beginning = self._encode(beginning)
        self._chunks = self._deliver(reads)

    @property
    def bytes_sent(self) -> int:
        return self._yielded + (self._relay.bytes_sent if self._relay else 0)

    def relay(self, send: Callable[[bytes], int], send_all: Callable[[bytes], None], chunked: bool) -> Relay:
        """Return a relay that writes to the client beside the iteration, while that waits for the upstream."""
        self._relay = Relay(self._encoder, self._cancellation, send, send_all, chunked)
        return self._relay

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        if not self.outcome or (self.outcome == "completed" and self._cancellation.undelivered):
            # The server failed to write a chunk, maybe the last one, or was cancelled while it wrote.
            self.outcome = self._cancellation.reason or "client_disconnected"
            if self._reset:
                self._reset(flush_seconds=0.0)
        self._on_close(self)

    def _encode(self, events: list[Event]) -> bytes:
        chunk = b"".join(map(self._encoder.encode, events))
        if events and isinstance(events[-1], End):
            self.end = events[-1]
        return chunk

    def _deliver(self, reads: Iterable[list[Event]]) -> Generator[bytes, None, None]:
        beginning, self.beginning = self.beginning, b""
        self._yielded += len(beginning)
        yield beginning
        try:
            for events in reads:
                if chunk := self._encode(events):
                    self._yielded += len(chunk)
                    yield chunk
            self.outcome = "completed"
            return
        except Aborted:
            raise
        except Cancelled:
            self.outcome, problem = self._cancellation.reason or "", self._cancellation.problem()
        except Problem as error:
            self.outcome, problem = error.name if error.name in UPSTREAM_OUTCOMES else "upstream_error", error
        except Exception:
            log.exception("an answer failed")
            self.outcome, problem = "internal_error", Problem("internal_error")
        self.problem = problem
        last = self._encoder.encode_error(problem)
        if last is None:
            if self._reset:
                with suppress(Cancelled):
                    self._reset()
            raise Aborted(self.outcome)
        self._yielded += len(last)
        yield last
