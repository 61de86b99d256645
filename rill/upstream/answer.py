"""One open answer of the upstream: bytes of its body in, the events of each read out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import gevent
import httpx2

from rill.events import Bytes, End, Event, Heartbeat, Start, Text
from rill.problems import Problem
from rill.upstream.body import Relay, body_of
from rill.upstream.sse_decoder import Decoder

# A message ends at message_stop; the end of the body mostly comes with it, and frees the connection for reuse.
TERMINATOR_SECONDS = 0.05


class Answer:
    """One open answer: iterate it once for the events of each read; `close` frees its connection at any moment.

    `headers` are those of the upstream's that a client may see, `request_id` the upstream's own. `usage` is what the
    upstream has counted so far, in tokens. `nudge` wakes a read that waits.
    """

    # Thousands are open at once; each would have a dict of its own.
    __slots__ = (
        "_beginning",
        "_body",
        "_break",
        "_decoder",
        "_end_span",
        "_is_count",
        "_is_streamed",
        "_is_verbatim",
        "_reads",
        "_relay",
        "headers",
        "nudge",
        "request_id",
    )

    def __init__(
        self,
        response: httpx2.Response,
        is_streamed: bool,
        is_verbatim: bool,
        secrets: Sequence[str],
        is_count: bool = False,
    ) -> None:
        self.headers = visible_headers(response, secrets)
        self.request_id = self.headers.get("request-id")
        self._is_streamed = is_streamed
        self._is_count = is_count
        self._is_verbatim = is_verbatim
        self._beginning: list[Event] = []
        self._reads = self._read_stream() if is_streamed else self._read_whole()
        self._decoder = Decoder(secrets)
        # The SDK ends its span of the call when it has read the body, which it never does here.
        observer = getattr(response.stream, "stream_observer", None)
        self._end_span: Callable[..., None] = observer.end if observer else _end_no_span
        self._break: httpx2.TransportError | None = None
        self._body = body_of(response)
        self._relay: Relay | None = None
        self.nudge = self._body.nudge

    @property
    def usage(self) -> dict[str, Any]:
        return self._decoder.usage

    def __iter__(self) -> Iterator[list[Event]]:
        """Yield the events of each read, a Heartbeat if it was nudged, and an End last; raise Problem without one."""
        beginning, self._beginning = self._beginning, []
        return chain([beginning], self._reads) if beginning else self._reads

    def relay(self, relay: Relay) -> None:
        """Offer each further read to the relay first."""
        self._relay = relay

    def begin(self) -> None:
        """Read a streamed answer up to its first event other than a ping; raise Problem if that is an error."""
        while self._is_streamed and not any(isinstance(event, Start | Text | End) for event in self._beginning):
            events = next(self._reads)
            self._beginning += events
            if isinstance(events[-1], Heartbeat) and events[-1].working:
                break

    def close(self) -> None:
        self._body.close()
        if problem := self._break or self._decoder.problem:
            self._end_span("failed", problem)
        else:
            self._end_span("read" if self._decoder.ended else "closed")

    def _read_stream(self) -> Iterator[list[Event]]:
        decoder = self._decoder
        broken: Problem | None = None
        while not decoder.ended:
            try:
                data = self._read()
            except Problem as problem:
                data, broken = None, problem
            if data == b"":
                yield [Heartbeat(working=False)]
                continue
            events = decoder.finish() if data is None else decoder.feed(data)
            if decoder.is_error_private and data:
                data = data[: max(0, data.rfind(b"event: error"))]  # The dialect reports it with Rill's own message.
            if self._is_verbatim and data:
                events.insert(0, Bytes(data))
            if events:
                yield events
            if decoder.problem:
                raise broken if broken and not decoder.has_error else decoder.problem
        self._await_terminator()

    def _read_whole(self) -> Iterator[list[Event]]:
        chunks: list[bytes] = []
        try:
            while (data := self._read()) is not None:
                chunks.append(data)
                yield [Heartbeat(working=bool(data))]
            end = self._decoder.read_message(b"".join(chunks), self._is_count)
        except Exception:
            # Whatever ended the wait for the last bytes, a complete message was billed.
            complete = self._complete_end(b"".join(chunks))
            if complete is None:
                raise
            end = complete
        yield [Bytes(b"".join(chunks)), end]

    def _complete_end(self, body: bytes) -> End | None:
        """Return the end of the message in `body`, None if it is not complete."""
        decoder = Decoder()
        with suppress(Problem):
            end = decoder.read_message(body, self._is_count)
            self._decoder.usage.update(decoder.usage)
            self._break, self._decoder.ended = None, True
            return end
        return None

    def _read(self) -> bytes | None:
        try:
            return self._body.read(self._relay if self._decoder.is_between_events else None)
        except httpx2.TransportError as error:
            self._break = error
            raise _problem_of_break(error) from error

    def _await_terminator(self) -> None:
        # The message is complete, whatever ends this wait, a cancellation included.
        with suppress(Exception), gevent.Timeout(TERMINATOR_SECONDS, TimeoutError):
            while self._body.read() is not None:
                pass


def visible_headers(response: httpx2.Response, secrets: Sequence[str]) -> dict[str, str]:
    """Return the upstream's headers that clients of its dialect may see, without those that contain a secret."""
    return {
        name: value
        for name, value in response.headers.items()
        if (name in ("request-id", "retry-after") or name.startswith("anthropic-ratelimit-"))
        and value.isascii()
        and not any(secret in value for secret in secrets)
    }


def _end_no_span(how: str, error: Exception | None = None) -> None:
    pass


def _problem_of_break(error: httpx2.TransportError) -> Problem:
    if isinstance(error, httpx2.TimeoutException):
        return Problem("idle_timeout")
    return Problem("upstream_truncated" if isinstance(error, httpx2.RemoteProtocolError) else "upstream_error")
