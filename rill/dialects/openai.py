"""Requests of OpenAI's chat completions: https://platform.openai.com/docs/api-reference/chat

A field that is not supported and would change the answer is rejected by its name, and so is an unknown one. Fields in
IGNORED, the `detail` of an image and the `name` of a message have no effect.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rill.dialects.openai_tools import Call, Tool, add_result, choice_of, thinking_options
from rill.dialects.schema import fit_schema
from rill.dialects.validation import MAX_MESSAGES, TextOrList, bad_field, read_json_object, reject_fields
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

DATA_URL = re.compile(r"data:(image/[\w.+-]+);base64,([A-Za-z0-9+/=\s]+)")
THINKING = "use reasoning_effort, or POST /v1/messages with `thinking`"
# Structured output of the Messages API needs a schema in which every object is closed.
ANY_OBJECT = "Answer with one JSON object and nothing else: neither Markdown nor text around it."
# A field -> what to do instead. A value that has no effect (null, false, 0, an empty list or object) is accepted.
UNSUPPORTED = {
    "functions": "use tools",
    **dict.fromkeys(("thinking", "reasoning"), THINKING),
    **dict.fromkeys(
        ("cache_control", "mcp_servers", "container", "context_management", "output_config", "output_format"),
        "use POST /v1/messages",
    ),
    "system": "send it as a message of the role system",
    "stop_sequences": "use stop",
    "max_output_tokens": "use max_completion_tokens",
    "audio": "ask for text",
    "frequency_penalty": "leave it out: Claude has no such setting",
    "presence_penalty": "leave it out: Claude has no such setting",
    "logit_bias": "leave it out: Claude has no such setting",
    "logprobs": "leave it out: Claude reports no probabilities",
    "top_logprobs": "leave it out: Claude reports no probabilities",
    "seed": "leave it out: Claude's answers cannot be repeated",
    "verbosity": "say it in the prompt",
    "web_search_options": "use POST /v1/messages with its web search tool",
}
# Fields without effect on the text of an answer by Claude.
IGNORED = {
    *("user", "safety_identifier", "metadata", "store", "service_tier", "prediction"),
    *("prompt_cache_key", "prompt_cache_retention", "function_call"),
}
FIELD_NAME = re.compile(r"[A-Za-z_]{1,40}")


class Part(BaseModel):
    """A part of a message: text, an image, or the refusal in an earlier answer."""

    type: Literal["text", "image_url", "refusal"]
    text: str = ""
    refusal: str = ""
    image_url: dict[str, Any] = Field(default_factory=dict)
    cache_control: dict[str, Any] | None = None

    def as_block(self, where: str) -> dict[str, Any]:
        """Return the part as a content block of the Messages API; raise Problem."""
        block = self._image(where) if self.type == "image_url" else {"type": "text", "text": self.text or self.refusal}
        return {**block, "cache_control": self.cache_control} if self.cache_control else block

    def _image(self, where: str) -> dict[str, Any]:
        url = str(self.image_url.get("url", ""))
        if data := DATA_URL.fullmatch(url):
            return {"type": "image", "source": {"type": "base64", "media_type": data[1], "data": data[2]}}
        if url.startswith(("http://", "https://")):
            return {"type": "image", "source": {"type": "url", "url": url}}
        raise Problem("bad_request", f"{where}.image_url.url: should be an http(s) URL or data:image/...;base64,...")


class Message(BaseModel):
    """A message of a role that has a counterpart in the Messages API."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: TextOrList[Part] | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    def as_content(self, where: str) -> str | list[dict[str, Any]]:
        """Return the content in the Messages API's shape; raise Problem."""
        if self.content is None:
            if self.role != "assistant":
                raise Problem("bad_request", f"{where}.content: should be a string or a list.")
            return self._with_calls(where, self.refusal or "")
        if isinstance(self.content, str):
            return self._with_calls(where, self.content)
        blocks = [part.as_block(f"{where}.content.{index}") for index, part in enumerate(self.content)]
        if self.role in ("system", "developer") and any(block["type"] != "text" for block in blocks):
            raise Problem(
                "bad_request",
                f"{where}.content: a {self.role} message should be text; only a user message may have images.",
            )
        return self._with_calls(where, blocks)

    def _with_calls(self, where: str, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        if not self.tool_calls or self.role != "assistant":
            return content
        said = [{"type": "text", "text": content}] if isinstance(content, str) else content
        calls = [call.as_block(f"{where}.tool_calls.{index}") for index, call in enumerate(self.tool_calls)]
        return [*(block for block in said if block.get("text") != ""), *calls]


class JSONSchema(BaseModel):
    """The schema of a structured answer."""

    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(BaseModel):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    def as_options(self) -> dict[str, Any]:
        """Return the option of the Messages API; raise Problem if the schema is missing."""
        if self.type != "json_schema":
            return {}
        if self.json_schema is None:
            raise Problem("bad_request", "response_format.json_schema: should be an object with a schema.")
        return {"format": {"type": "json_schema", "schema": fit_schema(self.json_schema.schema_)}}


class StreamOptions(BaseModel):
    """The content of a stream besides the text."""

    include_usage: bool | None = None


class CompletionRequest(BaseModel):
    """The fields of a request that are supported."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None  # Not a field of OpenAI's, but many of its clients can send it.
    stop: TextOrList[str] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Any = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


KNOWN = {*CompletionRequest.model_fields, *UNSUPPORTED, *IGNORED, "modalities"}


def read_completion(body: bytes, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a request; raise Problem with the name of a wrong field and what to do instead."""
    fields = read_json_object(body)
    _reject_unsupported(fields)
    try:
        asked = CompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise bad_field(error) from None
    messages, system = _messages_of(asked)
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    options = {
        "system": system or settings.system_prompt,
        "temperature": None if asked.temperature is None else min(asked.temperature, 1.0),
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "stop_sequences": stops or None,
        **_tools_and_output_of(asked, messages),
    }
    model, max_tokens = settings.check(asked.model, asked.max_completion_tokens or asked.max_tokens)
    prompt = Prompt(
        model=model,
        max_tokens=max_tokens,
        messages=messages,
        options={name: value for name, value in options.items() if value is not None},
        default_model=asked.model is None,
    )
    return prompt, ReplyFormat(bool(asked.stream), bool(asked.stream_options and asked.stream_options.include_usage))


def _tools_and_output_of(asked: CompletionRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    choice = choice_of(asked.tool_choice, asked.parallel_tool_calls)
    if asked.tools:
        options.update(tools=[tool.function.as_tool() for tool in asked.tools], tool_choice=choice)
    thinking = thinking_options(asked.reasoning_effort, "reasoning_effort", messages, options.get("tool_choice"))
    form = asked.response_format.as_options() if asked.response_format else {}
    output = {**thinking.pop("output_config", {}), **form}
    return {**options, **thinking, "output_config": output or None}


def _messages_of(asked: CompletionRequest) -> tuple[list[dict[str, Any]], str | list[dict[str, Any]]]:
    """Return the conversation and the system prompt; raise Problem if there is no conversation."""
    messages: list[dict[str, Any]] = []
    system: list[str | list[dict[str, Any]]] = []
    for index, message in enumerate(asked.messages):
        content = message.as_content(f"messages.{index}")
        if message.role == "tool":
            if not message.tool_call_id:
                raise Problem("bad_request", f"messages.{index}.tool_call_id: should be the id of a call.")
            add_result(messages, message.tool_call_id, content)
        elif message.role in ("system", "developer"):
            system.append(content)
        elif content or message.role == "user":  # The upstream rejects an empty message of the assistant.
            messages.append({"role": message.role, "content": content})
    if not messages:
        raise Problem("bad_request", "messages: should have at least one message of the role user.")
    if asked.response_format and asked.response_format.type == "json_object":
        system.append(ANY_OBJECT)
    return messages, _system_of(system)


def _system_of(contents: Sequence[str | list[dict[str, Any]]]) -> str | list[dict[str, Any]]:
    """Return the system prompt as one text, or as blocks if one of them is to be cached."""
    blocks = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in contents]
    if any("cache_control" in block for block in chain.from_iterable(blocks)):
        return list(chain.from_iterable(blocks))
    return "\n\n".join("".join(block["text"] for block in each) for each in blocks)


def _reject_unsupported(fields: dict[str, Any]) -> None:
    reject_fields(fields, UNSUPPORTED)
    if fields.get("modalities") not in (None, [], ["text"]):
        raise Problem("bad_request", "modalities: only text is supported here; leave it out.")
    _reject_old_calls(fields.get("messages"))
    unknown = [name for name in fields if name not in KNOWN and fields[name]]
    if unknown:
        name = unknown[0] if FIELD_NAME.fullmatch(unknown[0]) else "a field"
        raise Problem("bad_request", f"{name}: not known here; leave it out.")


def _reject_old_calls(messages: Any) -> None:
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        names = [name for name in ("function_call", "audio") if message.get(name)]
        if names or message.get("role") == "function":
            where = f"messages.{index}.{names[0] if names else 'role'}"
            raise Problem("bad_request", f"{where}: not supported here; use tools and text.")
