"""The AI SDK's UI message stream, which `useChat` reads by default: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol

Requests are those of plain text. The SDK's transport for plain text sends the same ones, so a client asks for this
stream by a header or by its path.
"""

import json
from typing import Any

from rill.dialects.base import KeepAlive
from rill.events import End, Event, Start, Text
from rill.problems import Problem
from rill.prompt import ReplyFormat

# The header of the SDK's own servers; a request that has it gets such a stream.
HEADER = "x-vercel-ai-ui-message-stream"
VERSION = {HEADER: "v1"}
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content-filter",
}


class UIMessageEncoder:
    """Writes one answer as a message with one text."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        self._keep_alive = KeepAlive()
        self._message = f"msg_{request_id}"
        self._has_text = False

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self.encode_deltas(event.text)
        if isinstance(event, Start):
            return self._write("start", messageId=self._message) + self._write("start-step")
        if isinstance(event, End):
            reason = FINISH_REASONS.get(event.stop_reason or "", "other")
            end = self._write("text-end", id="0") if self._has_text else b""
            end += self._write("finish-step") + self._write("finish", finishReason=reason)
            return end + b"data: [DONE]\n\n"
        return self._keep_alive.comment()

    def encode_deltas(self, text: str, events: bytes = b"") -> bytes:
        start = b"" if self._has_text else self._write("text-start", id="0")
        self._has_text = True
        return start + self._write("text-delta", id="0", delta=text)

    def encode_error(self, problem: Problem) -> bytes:
        return self._write("error", errorText=problem.detail)

    def _write(self, kind: str, **fields: Any) -> bytes:
        self._keep_alive.note_write()
        return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"
