"""Requests of the AI SDK's `useChat`: those of plain text, with tools that the page runs, and the id of the chat.

https://ai-sdk.dev/docs/ai-sdk-ui/chatbot-tool-usage and https://docs.anthropic.com/en/api/messages
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from rill.dialects.parts import blocks_of
from rill.dialects.text import read_fields
from rill.dialects.validation import bad_field, read_json_object
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

# Whoever knows the id may resume the chat's answer, unless clients have keys; the SDK's own ids have 16 characters.
MIN_ID, MAX_ID = 16, 128
BAD_ID = f"id: should have {MIN_ID} to {MAX_ID} characters that nobody can guess, if resume is not 0."


class Tool(BaseModel):
    """A tool that the page runs, as in the Messages API."""

    model_config = ConfigDict(extra="forbid")
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: StrictBool | None = None


class ToolChoice(BaseModel):
    """Which tool is called."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Tools(BaseModel):
    """The fields of a request that plain text does not have."""

    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None


def read_chat(body: bytes, settings: Settings, query: Mapping[str, Any]) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt in a JSON body, which overrides the fields of the query; raise Problem."""
    fields = {**query, **read_json_object(body)}
    given = {name: fields.pop(name) for name in Tools.model_fields if name in fields}
    try:
        options = Tools.model_validate(given).model_dump(exclude_none=True)
    except ValidationError as error:
        raise bad_field(error) from None
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields["messages"] = list(chain.from_iterable(map(_split_steps, range(len(messages)), messages)))
    prompt = read_fields(fields, settings)
    last = messages[-1] if isinstance(messages, list) and messages else None
    continued = last.get("id") if isinstance(last, dict) and last.get("role") == "assistant" else None
    reply = ReplyFormat(message_id=continued if isinstance(continued, str) else "")
    return replace(prompt, options={**prompt.options, **options}, chat=_chat_of(fields, prompt)), reply


def _chat_of(fields: Mapping[str, Any], prompt: Prompt) -> str:
    id = fields.get("id")
    if not prompt.resume_seconds:
        return ""
    if not isinstance(id, str) or not MIN_ID <= len(id) <= MAX_ID:
        raise Problem("bad_request", BAD_ID)
    return id


def _split_steps(index: int, message: Any) -> list[Any]:
    """Return an answer with calls of tools as messages with content: each step, and the results of its calls."""
    parts = message.get("parts") if isinstance(message, dict) and message.get("role") == "assistant" else None
    if not isinstance(parts, list) or not any(map(_is_call, parts)):
        return [message]
    messages: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, part in enumerate([*parts, {"type": "step-start"}]):
        if isinstance(part, dict) and part.get("type") == "step-start":
            steps = [{"role": "assistant", "content": said}, {"role": "user", "content": results}]
            messages += [step for step in steps if step["content"]]
            said, results = [], []
        elif _is_call(part):
            call = _call_of(f"messages.{index}.parts.{number}", part)
            said, results = said + call[:1], results + call[1:]
        else:
            said += _texts_of(f"messages.{index}.parts.{number}", part)
    return messages


def _is_call(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and (kind == "dynamic-tool" or kind.startswith("tool-")) and kind != "tool-invocation"


def _call_of(where: str, part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the blocks of a call and of its result; nothing for a call without one, which the model must not see."""
    id, name = part.get("toolCallId"), part.get("toolName") or part["type"].removeprefix("tool-")
    if not isinstance(id, str) or not isinstance(name, str):
        raise Problem("bad_request", f"{where}: toolCallId and toolName should be strings.")
    given = part.get("input")
    call = {"type": "tool_use", "id": id, "name": name, "input": given if isinstance(given, dict) else {}}
    result = {"type": "tool_result", "tool_use_id": id}
    if part.get("state") == "output-available":
        output = part.get("output")
        return [call, {**result, "content": output if isinstance(output, str) else json.dumps(output)}]
    if part.get("state") == "output-error":
        return [call, {**result, "content": str(part.get("errorText") or "error"), "is_error": True}]
    return []


def _texts_of(where: str, part: Any) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        raise Problem("bad_request", f"{where}: should be an object.")
    return [block for block in blocks_of(where, "assistant", part) if block["text"]]
