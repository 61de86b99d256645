"""Plain text: the prompt in whatever form is at hand, the answer as UTF-8 with nothing added and nothing lost."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None


def read_fields(fields: Mapping[str, Any], settings: Settings) -> Prompt:
    """The prompt in a query's or a form's fields, or in a JSON object; raises Problem, naming the field."""
    try:
        return _prompt_of(Question.model_validate(fields), settings)
    except ValidationError as error:
        raise _bad_field(error) from None


def read_json(body: bytes, settings: Settings) -> Prompt:
    """The prompt in a JSON body; raises Problem, naming the field."""
    try:
        return _prompt_of(Question.model_validate_json(body), settings)
    except ValidationError as error:
        raise _bad_field(error) from None


def read_text(body: bytes, options: Mapping[str, Any], settings: Settings) -> Prompt:
    """The prompt that is the whole body, with the options of the query; raises Problem."""
    try:
        return read_fields({**options, "q": body.decode()}, settings)
    except UnicodeDecodeError:
        raise Problem("bad_request", "The body should be UTF-8.") from None


class TextFrames:
    """The text of the answer, and nothing else."""

    def frame(self, event: Event) -> bytes:
        return event.text.encode() if isinstance(event, Text) else b""

    def fail(self, problem: Problem) -> bytes:
        """Nothing: whatever stood in the text would pass for text."""
        return b""


def check_beginning(beginning: list[Event]) -> None:
    """Raises Problem where the model refused and said nothing, which an empty text would not tell."""
    last = beginning[-1]
    if isinstance(last, End) and last.stop_reason == "refusal":
        raise Problem("refused", last.explanation)


def _prompt_of(question: Question, settings: Settings) -> Prompt:
    messages, system = _messages_of(question)
    model = question.model or settings.model
    if not settings.allows_model(model):
        allowed = ", ".join(dict.fromkeys((settings.model, *settings.models)))
        raise Problem("forbidden", f"model: this one may not be asked for here. Allowed: {allowed}.")
    max_tokens = question.max_tokens or settings.max_tokens
    if max_tokens > settings.max_tokens_cap:
        raise Problem("bad_request", f"max_tokens: should be from 1 to {settings.max_tokens_cap}.")
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


def _bad_field(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return Problem("bad_request", f"The body should be JSON. {first['msg']}.")
    return Problem("bad_request", f"{field or 'The body'}: {first['msg']}.")
