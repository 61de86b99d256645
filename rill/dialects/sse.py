"""Server-sent events, as EventSource reads them: https://html.spec.whatwg.org/multipage/server-sent-events.html

Requests are those of plain text. Text is sent as unnamed events; the format cannot carry CR and CR LF, which become one
newline. A line `[DONE]` of the text is split between two events, because it would look like the end. A complete answer
ends with `event: done` (statistics) and `data: [DONE]`, a truncated one with `event: error`.
"""

import json
import re
import time

from rill.dialects.base import KeepAlive
from rill.events import End, Event, Start, Text
from rill.problems import Problem
from rill.prompt import ReplyFormat

# Where to split a line that would look like the end.
WITHIN_DONE = re.compile(r"(?<=^\[DONE)(?=\]$)", re.MULTILINE)


class SSEEncoder:
    """Writes one answer; each event has an id, so that a browser that reconnects shows that it received an answer."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        self._begun = time.monotonic()
        self._keep_alive = KeepAlive()
        self._id_prefix = reply.id_prefix
        self._count = 0
        self._after_cr = False

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self.encode_deltas(event.text)
        if isinstance(event, Start):
            return f"id: {self._id_prefix}0\n\n".encode()
        if isinstance(event, End):
            elapsed = round(time.monotonic() - self._begun, 3)
            done = {"stop_reason": event.stop_reason, "usage": event.usage, "elapsed_seconds": elapsed}
            return self._write("event: done\ndata: " + json.dumps(done)) + self._write("data: [DONE]")
        return self._keep_alive.comment()

    def encode_error(self, problem: Problem) -> bytes:
        return self._write("event: error\ndata: " + json.dumps(problem.as_json()))

    def encode_deltas(self, text: str, events: bytes = b"") -> bytes:
        if self._after_cr and text[0] == "\n":
            text = text[1:]  # The second half of a CR LF that was split between two reads.
        self._after_cr = text.endswith("\r")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        texts = WITHIN_DONE.split(text) if "[DONE]" in text else [text]
        return b"".join(self._write("data: " + text.replace("\n", "\ndata: ")) for text in texts if text)

    def _write(self, event: str) -> bytes:
        self._keep_alive.note_write()
        self._count += 1
        return f"id: {self._id_prefix}{self._count}\n{event}\n\n".encode()
