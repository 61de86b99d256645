"""Plain text: a prompt in any of several forms; an answer as UTF-8, exactly the model's text."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, ValidationError

from rill.dialects.parts import content_of
from rill.dialects.schema import fit_schema
from rill.dialects.validation import (
    MAX_MESSAGES,
    TextOrList,
    bad_field,
    read_json_object,
    read_switch,
    reject_fields,
)
from rill.events import End, Event, Text
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings


class Message(BaseModel):
    """A message in the Messages API's shape (`content`) or in the AI SDK's (`parts`)."""

    role: Literal["user", "assistant", "system"]
    content: TextOrList[dict[str, Any]] | None = None
    parts: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    experimental_attachments: list[Any] | None = None

    def as_content(self, where: str) -> str | list[dict[str, Any]]:
        """Return the content in the Messages API's shape; raise Problem with the name of a wrong field."""
        if self.experimental_attachments:
            raise Problem("bad_request", f"{where}.experimental_attachments: send files as parts of the type file.")
        if self.parts is None:
            content: str | list[dict[str, Any]] = self.content or ""
        else:
            content = content_of(f"{where}.parts", self.role, self.parts)
            # Older AI SDKs send the text of the parts as `content` as well.
            if self.content and self.content != content and self.content != _texts_of(content):
                raise Problem("bad_request", f"{where}: should have content or parts, not two different ones.")
        if self.role == "system" and not isinstance(content, str):
            if any(block.get("type") != "text" for block in content):
                raise Problem("bad_request", f"{where}.content: a system message should be text.")
            content = _texts_of(content)
        return content


class Schema(BaseModel):
    """The form of an answer that is JSON."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(BaseModel):
    """The Messages API's structured output, for clients that read JSON as it arrives."""

    format: Schema


class StreamRequest(BaseModel):
    """The fields of a request, from its query, form or JSON; others are ignored, except those in UNSUPPORTED."""

    q: str | None = None
    message: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES)] | None = None
    system: str | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    fallback: Annotated[StrictBool | None, BeforeValidator(read_switch)] = None
    resume: int | None = None
    output_config: OutputConfig | None = None


# The fields that may hold the prompt.
PROMPT_FIELDS = ("q", "message", "prompt", "messages")
# curl sends a body as a form by default.
NO_PROMPT_IN_FORM = (
    "The form has no field q, message, prompt or messages. To send the body itself, name its type: "
    "curl -H 'Content-Type: text/plain' --data-binary ..., or curl --json ... for JSON."
)


# Fields of other APIs that would change the answer -> what to do instead.
UNSUPPORTED = {
    **dict.fromkeys(("maxTokens", "maxOutputTokens", "max_completion_tokens"), "use max_tokens"),
    **dict.fromkeys(
        (
            *("top_p", "topP", "top_k", "topK", "stop", "stop_sequences", "stopSequences", "thinking", "reasoning"),
            *("tools", "tool_choice", "toolChoice", "response_format", "output_format"),
        ),
        "use POST /v1/messages",
    ),
}


def read_fields(fields: Mapping[str, Any], settings: Settings) -> Prompt:
    """Return the prompt in the fields of a query, a form or JSON; raise Problem with the name of a wrong field."""
    reject_fields(fields, UNSUPPORTED)
    try:
        return _prompt_of(StreamRequest.model_validate(fields), settings)
    except ValidationError as error:
        raise bad_field(error) from None


def read_form(fields: Mapping[str, Any], settings: Settings) -> Prompt:
    """Return the prompt in the fields of a form; raise Problem, with advice if the body itself may be the prompt."""
    if not any(name in fields for name in PROMPT_FIELDS):
        raise Problem("bad_request", NO_PROMPT_IN_FORM)
    return read_fields(fields, settings)


def read_json(body: bytes, settings: Settings, options: Mapping[str, Any] = MappingProxyType({})) -> Prompt:
    """Return the prompt in a JSON body, which overrides the options of the query; raise Problem."""
    return read_fields({**options, **read_json_object(body)}, settings)


def read_text(body: bytes, options: Mapping[str, Any], settings: Settings) -> Prompt:
    """Return the prompt that is the whole body, with the options of the query; raise Problem."""
    try:
        return read_fields({**options, "q": body.decode()}, settings)
    except UnicodeDecodeError:
        raise Problem("bad_request", "The body should be UTF-8.") from None


class TextEncoder:
    """Writes the text of the answer, and nothing else."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        pass

    def encode(self, event: Event) -> bytes:
        return event.text.encode() if isinstance(event, Text) else b""

    def encode_deltas(self, text: str, events: bytes) -> bytes:
        return text.encode()

    def encode_error(self, problem: Problem) -> None:
        """Return None: anything written would look like text of the answer."""


def check_beginning(beginning: list[Event]) -> None:
    """Raise Problem if the model refused without any text: an empty response would not report that."""
    last = beginning[-1]
    has_text = any(isinstance(event, Text) for event in beginning)
    if isinstance(last, End) and last.stop_reason == "refusal" and not has_text:
        raise Problem("refused", last.explanation)


def _prompt_of(asked: StreamRequest, settings: Settings) -> Prompt:
    messages, system_messages = _messages_of(asked)
    model, max_tokens = settings.check(asked.model, asked.max_tokens)
    system = "\n\n".join(filter(None, (asked.system, *system_messages))) or settings.system_prompt
    options: dict[str, Any] = {"system": system, "temperature": asked.temperature}
    if asked.output_config:
        schema = fit_schema(asked.output_config.format.schema_)
        options["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return Prompt(
        model,
        max_tokens,
        messages,
        {name: value for name, value in options.items() if value is not None},
        default_model=asked.model is None,
        allows_fallback=asked.fallback is not False,
        resume_seconds=settings.check_resume(asked.resume) if asked.resume else 0,
    )


def _messages_of(asked: StreamRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the conversation, and the texts of the role `system`; raise Problem if there is no prompt."""
    given = [name for name in PROMPT_FIELDS if getattr(asked, name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "there is no prompt"
        raise Problem("bad_request", f"Send one of {', '.join(PROMPT_FIELDS)}: {found}.")
    if asked.messages is None:
        text = getattr(asked, given[0])
        if not text.strip():
            raise Problem("bad_request", f"{given[0]}: should not be empty.")
        return [{"role": "user", "content": text}], []
    conversation, system = [], []
    for index, message in enumerate(asked.messages):
        content = message.as_content(f"messages.{index}")
        if message.role == "system":
            system.append(str(content))
        elif content or message.role == "user" or message.parts is None:
            # An answer that was stopped before its first text has parts, but no content: it is left out.
            conversation.append({"role": message.role, "content": content})
    if not conversation or not all(message["content"] for message in conversation):
        raise Problem("bad_request", "messages: should have at least one of the role user, each with content or parts.")
    return conversation, system


def _texts_of(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(block.get("text", "")) for block in content if block.get("type") == "text")
