"""The fast path: text moves from the upstream's connection to the client's within one callback of the event loop.

Once a response has started, nearly every read from the upstream holds complete HTTP chunks, each with one complete
`text_delta` event. The relay takes such a read and writes its text to the client, while the response's greenlet sleeps.
It declines any other read, which then takes the general path (decoder, encoder, server). Both write the same bytes, so
the relay is an optimization only: it may decline anything.
"""

import math
import re
from collections.abc import Callable
from errno import ECONNRESET

import jiter

from rill.events import Encoder
from rill.streaming.cancellation import Cancellation

# A JSON string: no raw control characters, and every backslash together with the character that it escapes.
_STRING = rb'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"'
# One HTTP chunk with one event, as the Messages API and its relays write it; the API pads events with spaces.
# https://www.rfc-editor.org/rfc/rfc9112#section-7.1 and https://docs.anthropic.com/en/docs/build-with-claude/streaming
_match_chunk = re.compile(
    rb"([0-9a-fA-F]{1,5})\r\n"
    rb'(event: content_block_delta\ndata: \{"type": ?"content_block_delta", ?"index": ?[0-9]{1,3}, ?'
    rb'"delta": ?\{"type": ?"text_delta", ?"text": ?' + _STRING + rb" *\} *\} *\n\n)\r\n"
).match


class Aborted(ConnectionResetError):
    """Raised to the server to close the connection without the end of the body.

    gunicorn takes an OSError with this number for a disconnect; it logs any other exception as a crash.
    """

    def __init__(self, outcome: str) -> None:
        super().__init__(ECONNRESET, f"response aborted: {outcome}")


class Relay:
    """Takes the reads of one answer that hold nothing but complete text deltas.

    `send` writes what the client's connection takes at once and returns the number of bytes; `send_all` writes all and
    may wait. `chunked`: the response has chunks. `bytes_sent` counts the bytes of the body, `received_bytes` those of
    the text; `unsent` is what `flush` has to send before anything else.
    """

    # Thousands are open at once; each would have a dict of its own.
    __slots__ = (
        "_bytes_left",
        "_cancellation",
        "_chunked",
        "_encode",
        "_keep",
        "_send",
        "_send_all",
        "bytes_sent",
        "received_bytes",
        "unsent",
    )

    def __init__(
        self,
        encoder: Encoder,
        cancellation: Cancellation,
        send: Callable[[bytes], int],
        send_all: Callable[[bytes], None],
        chunked: bool,
    ) -> None:
        self._encode = encoder.encode_deltas
        self._cancellation = cancellation
        self.direct(send, send_all, chunked)
        self.bytes_sent = 0
        self.received_bytes = 0
        self.unsent = b""

    def direct(
        self,
        send: Callable[[bytes], int],
        send_all: Callable[[bytes], None],
        chunked: bool,
        keep: Callable[[bytes], None] | None = None,
        max_bytes: float = math.inf,
    ) -> None:
        """Send with these from now on; `keep` gets the body too, and reads beyond `max_bytes` are declined."""
        self._send, self._send_all, self._chunked = send, send_all, chunked
        self._keep, self._bytes_left = keep, max_bytes

    def take(self, data: bytes) -> bool:
        """Send the text of a read; return False for a read that takes the general path. It never waits."""
        if len(data) > self._bytes_left:
            return False
        deltas = parse_deltas(data)
        if deltas is None:
            return False
        text, events = deltas
        self.received_bytes += len(text) if text.isascii() else len(text.encode())
        body = self._encode(text, events)
        self.bytes_sent += len(body)
        self._cancellation.note_text()
        if self._keep:
            self._keep(body)
            self._bytes_left -= len(body)
        frame = b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body
        try:
            sent = self._send(frame)
        except OSError:
            sent = 0  # `flush` meets the same error.
        if sent < len(frame):
            self.unsent = frame[sent:]
        return True

    def flush(self) -> None:
        """Send what the connection did not take at once; raise Aborted, because the chunk is incomplete otherwise."""
        unsent, self.unsent = self.unsent, b""
        try:
            self._send_all(unsent)
        except OSError as error:
            raise Aborted(self._cancellation.reason or "client_disconnected") from error


def parse_deltas(data: bytes) -> tuple[str, bytes] | None:
    """Return the text and the events in the chunks of a read; None if it is not complete text deltas only."""
    texts: list[str] = []
    events: list[bytes] = []
    position, end = 0, len(data)
    try:
        while position < end:
            chunk = _match_chunk(data, position)
            if chunk is None:
                return None
            size, event, text = chunk.groups()
            if int(size, 16) != len(event):
                return None
            texts.append(jiter.from_json(b'"%b"' % text) if b"\\" in text else text.decode())
            events.append(event)
            position = chunk.end()
    except ValueError:  # A lone surrogate, an invalid escape, or invalid UTF-8.
        return None
    joined = texts[0] if len(texts) == 1 else "".join(texts)
    return (joined, b"".join(events)) if joined else None
