"""One open answer of the upstream: bytes of its body in, the events of each read out."""

from collections.abc import Iterator, Sequence
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
    upstream has counted so far, in tokens, `has_final_usage` once it has counted the output. `received_bytes` are those
    of the content. `nudge` wakes a read that waits.
    """

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
        self._reads: Iterator[list[Event]] = self._read_stream() if is_streamed else self._read_whole()
        self._decoder = Decoder(secrets)
        self.usage = self._decoder.usage
        # The SDK ends its span of the call when it has read the body, which it never does here.
        self._span: Any = getattr(response.stream, "stream_observer", None)
        self._break: httpx2.TransportError | None = None
        self._body = body_of(response)
        self._relay: Relay | None = None
        self.nudge = self._body.nudge

    @property
    def received_bytes(self) -> int:
        return self._decoder.received_bytes + (self._relay.received_bytes if self._relay else 0)

    @property
    def has_final_usage(self) -> bool:
        return self._decoder.has_final_usage

    def __iter__(self) -> Iterator[list[Event]]:
        """Yield the events of each read, a Heartbeat if it was nudged, and an End last; raise Problem without one."""
        return self._reads

    def relay(self, relay: Relay) -> None:
        """Offer each further read to the relay first."""
        self._relay = relay

    def begin(self) -> None:
        """Read a streamed answer up to its first event other than a ping; raise Problem if that is an error."""
        beginning: list[Event] = []
        while self._is_streamed and not any(isinstance(event, Start | Text | End) for event in beginning):
            events = next(self._reads)
            beginning += events
            if isinstance(events[-1], Heartbeat) and events[-1].working:
                break
        if beginning:
            self._reads = chain([beginning], self._reads)

    def close(self) -> None:
        self._body.close()
        if self._span and (problem := self._break or self._decoder.problem):
            self._span.end("failed", problem)
        elif self._span:
            self._span.end("read" if self._decoder.ended else "closed")

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
            del data, events  # The next read may wait for long, and the relay may take all that follow.
        self._await_terminator()

    def _read_whole(self) -> Iterator[list[Event]]:
        chunks: list[bytes] = []
        broken: Exception | None = None
        try:
            while (data := self._read()) is not None:
                chunks.append(data)
                yield [Heartbeat(working=bool(data))]
        except Exception as error:
            broken = error
        body = b"".join(chunks)
        try:
            end = self._decoder.read_message(body, self._is_count)
        except Problem:
            if broken is None:
                raise
            self._decoder.problem = None
            raise broken from broken.__cause__
        # Whatever ended the wait for the last bytes, a complete message was billed.
        self._break = None
        yield [Bytes(body), end]

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


def _problem_of_break(error: httpx2.TransportError) -> Problem:
    if isinstance(error, httpx2.TimeoutException):
        return Problem("idle_timeout")
    return Problem("upstream_truncated" if isinstance(error, httpx2.RemoteProtocolError) else "upstream_error")
