"""The AI SDK's UI message stream, which `useChat` reads by default: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol

The SDK's transport for plain text sends the same requests, so a client asks for this stream by a header or by its path.
"""

import json
from typing import Any

import jiter

from rill.dialects.base import KeepAlive
from rill.events import End, Event, Start, Text, ToolCall, ToolInput
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
    "tool_use": "tool-calls",
}


class UIMessageEncoder:
    """Writes one answer as a step of a message, with texts and calls of tools."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        self._keep_alive = KeepAlive()
        self._message = reply.message_id or f"msg_{request_id}"
        self._texts = 0
        self._in_text = False
        self._call: ToolCall | None = None
        self._input: list[str] = []

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self.encode_deltas(event.text)
        if isinstance(event, Start):
            return self._write("start", messageId=self._message) + self._write("start-step")
        if isinstance(event, ToolCall):
            ended = self._end_part()
            self._call, self._input = event, []
            return ended + self._write("tool-input-start", toolCallId=event.id, toolName=event.name)
        if isinstance(event, ToolInput) and self._call:
            self._input.append(event.json)
            return self._write("tool-input-delta", toolCallId=self._call.id, inputTextDelta=event.json)
        if isinstance(event, End):
            reason = FINISH_REASONS.get(event.stop_reason or "", "other")
            end = self._end_part() + self._write("finish-step") + self._write("finish", finishReason=reason)
            return end + b"data: [DONE]\n\n"
        return self._keep_alive.comment()

    def encode_deltas(self, text: str, events: bytes = b"") -> bytes:
        begun = b""
        if not self._in_text:
            begun = self._end_part()
            self._in_text = True
            begun += self._write("text-start", id=str(self._texts))
        return begun + self._write("text-delta", id=str(self._texts), delta=text)

    def encode_error(self, problem: Problem) -> bytes:
        return self._write("error", errorText=problem.detail)

    def _end_part(self) -> bytes:
        """Return what completes the open text or call."""
        if self._in_text:
            self._in_text = False
            self._texts += 1
            return self._write("text-end", id=str(self._texts - 1))
        call, self._call, given = self._call, None, "".join(self._input) or "{}"
        if call is None:
            return b""
        named = {"toolCallId": call.id, "toolName": call.name}
        try:
            return self._write("tool-input-available", **named, input=jiter.from_json(given.encode()))
        except ValueError:
            return self._write("tool-input-error", **named, input=given, errorText="The input of the tool is not JSON.")

    def _write(self, kind: str, **fields: Any) -> bytes:
        self._keep_alive.note_write()
        return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"
