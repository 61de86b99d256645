"""Plain text: the prompt in whatever form is at hand, the answer as UTF-8 with nothing added and nothing lost."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from rill.dialects.fields import MAX_MESSAGES, bad_field, read_json_object
from rill.events import End, Event, Text
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings

# Only the first fault is told: to gather a million of them would hold up everybody.
Blocks = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class Message(BaseModel):
    """A message in the Messages API's shape (`content`) or in the AI SDK's (`parts`)."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks | None = None
    parts: Blocks | None = None

    def said(self) -> str | list[dict[str, Any]]:
        """What is said, as the Messages API takes it; of the AI SDK's parts that is the text."""
        if self.parts is None or self.role == "system":
            return self.content or ""
        return _join_texts(self.parts)

    def text(self) -> str:
        """The text of what is said."""
        blocks = self.content or self.parts or ""
        return blocks if isinstance(blocks, str) else _join_texts(blocks)


class Question(BaseModel):
    """The fields of a request, from its query, its form or its JSON; further ones are ignored."""

    q: str | None = None
    message: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES)] | None = None
    system: str | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None


# Where the prompt may be.
PROMPT_FIELDS = ("q", "message", "prompt", "messages")


def read_fields(fields: Mapping[str, Any], settings: Settings) -> Prompt:
    """The prompt in a query's or a form's fields, or in a JSON object; raises Problem, naming the field."""
    try:
        return _prompt_of(Question.model_validate(fields), settings)
    except ValidationError as error:
        raise bad_field(error) from None


def read_json(body: bytes, settings: Settings) -> Prompt:
    """The prompt in a JSON body; raises Problem, naming the field."""
    return read_fields(read_json_object(body), settings)


def read_text(body: bytes, options: Mapping[str, Any], settings: Settings) -> Prompt:
    """The prompt that is the whole body, with the options of the query; raises Problem."""
    try:
        return read_fields({**options, "q": body.decode()}, settings)
    except UnicodeDecodeError:
        raise Problem("bad_request", "The body should be UTF-8.") from None


class TextFrames:
    """The text of the answer, and nothing else."""

    def __init__(self, prompt: Prompt, request_id: str) -> None:
        pass

    def frame(self, event: Event) -> bytes:
        return event.text.encode() if isinstance(event, Text) else b""

    def fail(self, problem: Problem) -> None:
        """Nothing: whatever stood in the text would pass for text."""


def check_beginning(beginning: list[Event]) -> None:
    """Raises Problem where the model refused and said nothing, which an empty text would not tell."""
    last = beginning[-1]
    said = any(isinstance(event, Text) for event in beginning)
    if isinstance(last, End) and last.stop_reason == "refusal" and not said:
        raise Problem("refused", last.explanation)


def _prompt_of(question: Question, settings: Settings) -> Prompt:
    messages, system = _messages_of(question)
    model, max_tokens = settings.check(question.model, question.max_tokens)
    options = {"system": question.system or system or settings.system, "temperature": question.temperature}
    return Prompt(model, max_tokens, messages, {name: value for name, value in options.items() if value is not None})


def _messages_of(question: Question) -> tuple[list[dict[str, Any]], str | None]:
    """The messages, and what those of the role `system` say; raises Problem where nothing is asked."""
    given = [name for name in PROMPT_FIELDS if getattr(question, name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "there is no prompt"
        raise Problem("bad_request", f"Send one of {', '.join(PROMPT_FIELDS)}: {found}.")
    if question.messages is None:
        text = getattr(question, given[0])
        if not text.strip():
            raise Problem("bad_request", f"{given[0]}: should not be empty.")
        return [{"role": "user", "content": text}], None
    spoken = [message for message in question.messages if message.role != "system"]
    if not spoken or not all(message.said() for message in spoken):
        raise Problem("bad_request", "messages: should hold at least one of the user's, each with content or parts.")
    system = "\n\n".join(message.text() for message in question.messages if message.role == "system")
    return [{"role": message.role, "content": message.said()} for message in spoken], system or None


def _join_texts(blocks: list[dict[str, Any]]) -> str:
    return "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
