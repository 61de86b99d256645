"""Answers and problems as OpenAI's chat completions: https://platform.openai.com/docs/api-reference/chat"""

import json
import time
from collections.abc import Iterable
from itertools import chain
from typing import Any

from rill.dialects.base import KeepAlive
from rill.events import End, Event, Start, Text, ToolCall, ToolInput
from rill.problems import Problem
from rill.prompt import ReplyFormat

FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}


class OpenAIEncoder:
    """Writes one answer as chunks and [DONE]."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        self._include_usage = reply.include_usage
        self._keep_alive = KeepAlive()
        self._calls = CallCounter()
        self._base = {**_base(model, request_id), "object": "chat.completion.chunk"}
        if reply.include_usage:
            self._base["usage"] = None  # Of each chunk but the last.
        # The chunks of an answer differ in their text only.
        head, _, tail = self._chunk({"content": "\0"}).rpartition(b'"\\u0000"')
        self._head, self._tail = head, tail

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self.encode_deltas(event.text)
        if isinstance(event, Start):
            return self._chunk({"role": "assistant", "content": ""})
        if isinstance(event, ToolCall | ToolInput):
            self._keep_alive.note_write()
            return b"".join(self._chunk({"tool_calls": [call]}) for call in self._calls.count(event))
        if isinstance(event, End):
            usage = self._data({"choices": [], "usage": usage_of(event)}) if self._include_usage else b""
            calls = b"".join(self._chunk({"tool_calls": [call]}) for call in self._calls.finish())
            return calls + self._chunk({}, finish_reason_of(event)) + usage + b"data: [DONE]\n\n"
        return self._keep_alive.comment()

    def encode_deltas(self, text: str, events: bytes = b"") -> bytes:
        self._keep_alive.note_write()
        return self._head + json.dumps(text).encode() + self._tail

    def encode_error(self, problem: Problem) -> bytes | None:
        return b"data: " + encode_problem(problem) + b"\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return self._data({"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]})

    def _data(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({**self._base, **fields}).encode() + b"\n\n"


class CallCounter:
    """Numbers the calls of one answer, and completes those without arguments, whose JSON would be empty."""

    def __init__(self) -> None:
        self._count = 0
        self._is_empty = False

    def count(self, event: ToolCall | ToolInput) -> list[dict[str, Any]]:
        """Return the `tool_calls` that an event adds."""
        if isinstance(event, ToolInput):
            self._is_empty = False
            return [{"index": self._count - 1, "function": {"arguments": event.json}}]
        finished = self.finish()
        function = {"name": event.name, "arguments": ""}
        call = {"index": self._count, "id": event.id, "type": "function", "function": function}
        self._count, self._is_empty = self._count + 1, True
        return [*finished, call]

    def finish(self) -> list[dict[str, Any]]:
        """Return what completes the last call."""
        is_empty, self._is_empty = self._is_empty, False
        return [{"index": self._count - 1, "function": {"arguments": "{}"}}] if is_empty else []


def encode_whole(reads: Iterable[list[Event]], model: str, reply: ReplyFormat, request_id: str) -> tuple[bytes, End]:
    """Return the answer as one completion, and its end; raise what the reads raise."""
    text, end = "", End(None, {})
    calls: list[dict[str, Any]] = []
    for event in chain.from_iterable(reads):
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, ToolCall):
            calls.append({"id": event.id, "type": "function", "function": {"name": event.name, "arguments": ""}})
        elif isinstance(event, ToolInput):
            calls[-1]["function"]["arguments"] += event.json
        elif isinstance(event, End):
            end = event
    for call in calls:
        call["function"]["arguments"] = call["function"]["arguments"] or "{}"
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message.update(content=text or None, tool_calls=calls)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason_of(end)}
    fields = {"object": "chat.completion", "choices": [choice], "usage": usage_of(end)}
    return json.dumps({**_base(model, request_id), **fields}).encode(), end


def finish_reason_of(end: End) -> str:
    """Return OpenAI's name of the stop_reason."""
    return FINISH_REASONS.get(end.stop_reason or "", "stop")


def usage_of(end: End) -> dict[str, Any]:
    """Return the usage in OpenAI's shape, in tokens; the prompt includes what a cache was read or written for."""
    counts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    prompt = sum(_count(end.usage.get(name)) for name in counts)
    completion = _count(end.usage.get("output_tokens"))
    details = end.usage.get("output_tokens_details")
    reasoning = _count(details.get("thinking_tokens")) if isinstance(details, dict) else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": _count(end.usage.get("cache_read_input_tokens"))},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _count(tokens: Any) -> int:
    """Return the count, 0 if a relay sent something else."""
    return tokens if isinstance(tokens, int) else 0


def encode_problem(problem: Problem, request_id: str = "") -> bytes:
    """Return the problem in OpenAI's shape: https://platform.openai.com/docs/guides/error-codes"""
    error = {"message": problem.detail, "type": problem.type, "param": None, "code": problem.name}
    return json.dumps({"error": error}).encode()


def _base(model: str, request_id: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
