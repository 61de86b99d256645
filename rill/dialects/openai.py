"""OpenAI's chat completions, as far as Claude can answer them: https://platform.openai.com/docs/api-reference/chat

What would change the answer and cannot be carried over is refused by name; what would not, such as `user`, is ignored.
"""

import json
import re
import time
from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rill.dialects.fields import MAX_MESSAGES, bad_field, read_json_object
from rill.dialects.silences import Silences
from rill.events import End, Event, Start, Text
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings

DATA_URL = re.compile(r"data:(image/[\w.+-]+);base64,([A-Za-z0-9+/=\s]+)")
FINISH_REASONS = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "content_filter"}
# A field -> what to do instead. A value that asks for nothing (null, false, 0, an empty list or object) is let through.
REFUSED = {
    "tools": "use POST /v1/messages, which takes the Anthropic API's tools",
    "functions": "use POST /v1/messages, which takes the Anthropic API's tools",
    "audio": "ask for text",
    "frequency_penalty": "leave it out: Claude has no such setting",
    "presence_penalty": "leave it out: Claude has no such setting",
    "logit_bias": "leave it out: Claude has no such setting",
    "logprobs": "leave it out: Claude tells no probabilities",
    "top_logprobs": "leave it out: Claude tells no probabilities",
    "reasoning_effort": "use POST /v1/messages with `thinking`",
    "seed": "leave it out: Claude's answers cannot be repeated",
    "verbosity": "say it in the prompt",
    "web_search_options": "use POST /v1/messages with its web search tool",
}


class Part(BaseModel):
    """A part of a message: text or an image."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: dict[str, Any] = Field(default_factory=dict)

    def as_block(self) -> dict[str, Any]:
        """The part as a content block of the Messages API; raises Problem."""
        if self.type == "text":
            return {"type": "text", "text": self.text}
        url = str(self.image_url.get("url", ""))
        if data := DATA_URL.fullmatch(url):
            return {"type": "image", "source": {"type": "base64", "media_type": data[1], "data": data[2]}}
        if url.startswith(("http://", "https://")):
            return {"type": "image", "source": {"type": "url", "url": url}}
        raise Problem("bad_request", "image_url.url: should be an http(s) URL or data:image/...;base64,...")


class Message(BaseModel):
    """A message of a role that has a counterpart in the Messages API."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], Field(fail_fast=True)] | str

    def text(self) -> str:
        """What a system message says; raises Problem where it shows an image, which only the user can."""
        if not isinstance(self.content, str) and any(part.type != "text" for part in self.content):
            raise Problem("bad_request", f"messages: a {self.role} message can hold no image; send it as the user.")
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def as_message(self) -> dict[str, Any]:
        """The message in the Messages API's shape."""
        content = self.content if isinstance(self.content, str) else [part.as_block() for part in self.content]
        return {"role": self.role, "content": content}


class StreamOptions(BaseModel):
    """What a stream holds besides the text."""

    include_usage: bool | None = None


class Completion(BaseModel):
    """The fields of a request that are carried over."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def read_completion(body: bytes, settings: Settings) -> Prompt:
    """The prompt in a chat completion's request; raises Problem, naming the field and what to do instead."""
    fields = read_json_object(body)
    _refuse_unsupported(fields)
    try:
        asked = Completion.model_validate(fields)
    except ValidationError as error:
        raise bad_field(error) from None
    system = [message.text() for message in asked.messages if message.role in ("system", "developer")]
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    options = {
        "system": "\n\n".join(system) or settings.system,
        "temperature": None if asked.temperature is None else min(asked.temperature, 1.0),
        "top_p": asked.top_p,
        "stop_sequences": stops or None,
    }
    model, max_tokens = settings.check(asked.model, asked.max_completion_tokens or asked.max_tokens)
    return Prompt(
        model=model,
        max_tokens=max_tokens,
        messages=[message.as_message() for message in asked.messages if message.role in ("user", "assistant")],
        options={name: value for name, value in options.items() if value is not None},
        streamed=bool(asked.stream),
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _refuse_unsupported(fields: dict[str, Any]) -> None:
    for name, instead in REFUSED.items():
        if fields.get(name):
            raise Problem("bad_request", f"{name}: not supported here; {instead}.")
    kind = fields.get("response_format")
    if isinstance(kind, dict) and kind.get("type", "text") != "text":
        raise Problem("bad_request", "response_format: only text is supported here; use POST /v1/messages for JSON.")
    if fields.get("modalities") not in (None, [], ["text"]):
        raise Problem("bad_request", "modalities: only text is supported here; leave it out.")
    if fields.get("n") not in (None, 1):
        raise Problem("bad_request", "n: should be 1; ask once for each answer you want.")
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and (message.get("role") in ("tool", "function") or message.get("tool_calls")):
            raise Problem("bad_request", f"messages: tools are not supported here; {REFUSED['tools']}.")


class OpenAIFrames:
    """Writes one answer: in chunks and [DONE], or as one completion."""

    def __init__(self, prompt: Prompt, request_id: str) -> None:
        self._prompt = prompt
        self._silence = Silences()
        self._base = _base(prompt, request_id)
        # All but the text of a chunk is the same for a whole answer.
        head, _, tail = self._chunk({"content": "\0"}).rpartition(b'"\\u0000"')
        self._head, self._tail = head, tail

    def frame(self, event: Event) -> bytes:
        if isinstance(event, Text):
            self._silence.break_()
            return self._head + json.dumps(event.text).encode() + self._tail
        if isinstance(event, Start):
            return self._chunk({"role": "assistant", "content": ""})
        if isinstance(event, End):
            usage = self._data({"choices": [], "usage": usage_of(event)}) if self._prompt.include_usage else b""
            return self._chunk({}, finish_reason_of(event)) + usage + b"data: [DONE]\n\n"
        return self._silence.comment()

    def fail(self, problem: Problem) -> bytes | None:
        return b"data: " + write_problem(problem) + b"\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return self._data({"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]})

    def _data(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({**self._base, "object": "chat.completion.chunk", **fields}).encode() + b"\n\n"


def write_whole(reads: Iterable[list[Event]], prompt: Prompt, request_id: str) -> tuple[bytes, End]:
    """The answer as one completion, and its end; raises what the reads raise."""
    text, end = "", End(None, {})
    for event in chain.from_iterable(reads):
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, End):
            end = event
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason_of(end)}
    fields = {"object": "chat.completion", "choices": [choice], "usage": usage_of(end)}
    return json.dumps({**_base(prompt, request_id), **fields}).encode(), end


def finish_reason_of(end: End) -> str:
    """The stop_reason in OpenAI's words."""
    return FINISH_REASONS.get(end.stop_reason or "", "stop")


def usage_of(end: End) -> dict[str, int]:
    """The usage in OpenAI's words, in tokens; what was read from or written to a cache was sent as well."""
    counts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    sent = sum(_count(end.usage.get(name)) for name in counts)
    received = _count(end.usage.get("output_tokens"))
    return {"prompt_tokens": sent, "completion_tokens": received, "total_tokens": sent + received}


def _count(tokens: Any) -> int:
    """What was counted; whatever a relay sends in its place is no count."""
    return tokens if isinstance(tokens, int) else 0


def write_problem(problem: Problem, request_id: str = "") -> bytes:
    """The problem in OpenAI's shape: https://platform.openai.com/docs/guides/error-codes"""
    error = {"message": problem.detail, "type": problem.type, "param": None, "code": problem.name}
    return json.dumps({"error": error}).encode()


def _base(prompt: Prompt, request_id: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": prompt.model}
