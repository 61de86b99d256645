"""Answers as OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses-streaming"""

import json
import time
from collections.abc import Iterable
from itertools import chain
from typing import Any

from rill.dialects.base import KeepAlive
from rill.dialects.openai_encoder import usage_of
from rill.events import End, Event, Start, Text, ToolCall, ToolInput
from rill.problems import Problem
from rill.prompt import ReplyFormat

INCOMPLETE = {
    "max_tokens": "max_output_tokens",
    "model_context_window_exceeded": "max_output_tokens",
    "refusal": "content_filter",
}


class ResponsesEncoder:
    """Writes one answer as events; `response` is what is known of it so far."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        self._keep_alive = KeepAlive()
        self._number = 0
        self._pieces: list[str] = []
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._id = request_id
        self._namespaces = reply.namespaces
        self.response: dict[str, Any] = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": model,
            "output": self._output,
            **dict.fromkeys(("error", "incomplete_details", "instructions", "temperature", "top_p", "usage")),
            **dict.fromkeys(("max_output_tokens", "previous_response_id")),
            "metadata": {},
            "parallel_tool_calls": True,
            "store": False,
            "tool_choice": "auto",
            "tools": [],
        }

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self.encode_deltas(event.text)
        if isinstance(event, Start):
            created = self._write("response.created", response=self.response)
            return created + self._write("response.in_progress", response=self.response)
        if isinstance(event, ToolCall):
            return self._finish_item() + self._begin_call(event)
        if isinstance(event, ToolInput):
            self._pieces.append(event.json)
            return self._write("response.function_call_arguments.delta", **self._place(), delta=event.json)
        if isinstance(event, End):
            return self._finish_item() + self._finish(event)
        return self._keep_alive.comment()

    def encode_deltas(self, text: str, events: bytes = b"") -> bytes:
        begun = b""
        if self._open is None or self._open["type"] != "message":
            begun = self._finish_item() + self._begin_message()
        self._pieces.append(text)
        place = {**self._place(), "content_index": 0}
        return begun + self._write("response.output_text.delta", **place, delta=text, logprobs=[])

    def encode_error(self, problem: Problem) -> bytes:
        """Return the end of a failed response, and the error that SDKs raise."""
        self.response.update(status="failed", error={"code": "server_error", "message": problem.detail})
        failed = self._write("response.failed", response=self.response)
        error = {"message": problem.detail, "type": problem.type, "param": None, "code": problem.name}
        return failed + self._write("error", code=problem.name, message=problem.detail, param=None, error=error)

    def _begin_message(self) -> bytes:
        item = {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
        added = self._begin({"id": f"msg_{self._id}_{len(self._output)}", **item})
        return added + self._write("response.content_part.added", **self._place(), content_index=0, part=_part(""))

    def _begin_call(self, call: ToolCall) -> bytes:
        item = {"type": "function_call", "status": "in_progress", "arguments": ""}
        namespace, name = self._namespaces.get(call.name, (None, call.name))
        named = {"name": name, "namespace": namespace} if namespace else {"name": name}
        return self._begin({"id": f"fc_{self._id}_{len(self._output)}", "call_id": call.id, **named, **item})

    def _begin(self, item: dict[str, Any]) -> bytes:
        self._open, self._pieces = item, []
        return self._write("response.output_item.added", output_index=len(self._output), item=item)

    def _finish_item(self) -> bytes:
        """Return the events that complete the open item, with all of its text."""
        item, place, whole = self._open, self._place(), "".join(self._pieces)
        if item is None:
            return b""
        if item["type"] == "message":
            content = {**place, "content_index": 0}
            done = self._write("response.output_text.done", **content, text=whole, logprobs=[])
            done += self._write("response.content_part.done", **content, part=_part(whole))
            item["content"] = [_part(whole)]
        else:
            item["arguments"] = whole or "{}"
            done = self._write(
                "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
            )
        item["status"] = "completed"
        done += self._write("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None
        return done

    def _finish(self, end: End) -> bytes:
        counted = usage_of(end)
        reason = INCOMPLETE.get(end.stop_reason or "")
        status = "incomplete" if reason else "completed"
        self.response.update(
            status=status,
            incomplete_details={"reason": reason} if reason else None,
            usage={
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": counted["prompt_tokens_details"],
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": counted["completion_tokens_details"],
                "total_tokens": counted["total_tokens"],
            },
        )
        return self._write(f"response.{status}", response=self.response)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open["id"] if self._open else "", "output_index": len(self._output)}

    def _write(self, kind: str, **fields: Any) -> bytes:
        self._keep_alive.note_write()
        event = json.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return f"event: {kind}\ndata: {event}\n\n".encode()


def encode_whole(reads: Iterable[list[Event]], model: str, reply: ReplyFormat, request_id: str) -> tuple[bytes, End]:
    """Return the answer as one response, and its end; raise what the reads raise."""
    encoder = ResponsesEncoder(model, reply, request_id)
    end = End(None, {})
    for event in chain.from_iterable(reads):
        encoder.encode(event)
        if isinstance(event, End):
            end = event
    return json.dumps(encoder.response).encode(), end


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
