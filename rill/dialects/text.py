"""Plain text: the prompt in whatever form is at hand, the answer as UTF-8 with nothing added and nothing lost."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rill.dialects.fields import bad_field, read_json_object
from rill.events import End, Event, Text
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings

Prose = Annotated[str, Field(min_length=1)]


class Message(BaseModel):
    """A message in the Messages API's shape (`content`) or in the AI SDK's (`parts`)."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]] | None = None
    parts: list[dict[str, Any]] | None = None

    def blocks(self) -> str | list[dict[str, Any]]:
        """What is said, as the Messages API takes it; of the AI SDK's parts that is the text."""
        if self.parts is None:
            return self.content or ""
        return "".join(str(part.get("text", "")) for part in self.parts if part.get("type") == "text")


class Question(BaseModel):
    """The fields of a request, from its query, its form or its JSON; further ones are ignored."""

    model_config = ConfigDict(hide_input_in_errors=True)

    q: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    system: str | None = None
    model: Prose | None = None
    max_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None


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
    if isinstance(last, End) and last.stop_reason == "refusal":
        raise Problem("refused", last.explanation)


def _prompt_of(question: Question, settings: Settings) -> Prompt:
    messages, system = _messages_of(question)
    model, max_tokens = settings.check(question.model, question.max_tokens)
    options = {"system": question.system or system or settings.system, "temperature": question.temperature}
    return Prompt(model, max_tokens, messages, {name: value for name, value in options.items() if value is not None})


def _messages_of(question: Question) -> tuple[list[dict[str, Any]], str | None]:
    """The messages, and what those of the role `system` say."""
    given = [name for name in ("q", "prompt", "messages") if getattr(question, name) is not None]
    if len(given) != 1:
        raise Problem(
            "bad_request",
            "Send one of q, prompt or messages: "
            + ("found " + " and ".join(given) if given else "there is no prompt")
            + ".",
        )
    if question.messages is None:
        text = question.q if question.q is not None else question.prompt
        if not text or not text.strip():
            raise Problem("bad_request", f"{given[0]}: should not be empty.")
        return [{"role": "user", "content": text}], None
    spoken = [(message.role, message.blocks()) for message in question.messages]
    system = "\n\n".join(said for role, said in spoken if role == "system" and isinstance(said, str))
    return [{"role": role, "content": said} for role, said in spoken if role != "system"], system or None
