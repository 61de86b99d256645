"""Requests of OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses

Rill keeps no earlier response, so the whole conversation is in `input`. A field that is not supported and would change
the answer is rejected by its name; fields in IGNORED have no effect.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from rill.dialects.openai import ANY_OBJECT, FIELD_NAME, Part
from rill.dialects.openai_tools import add_result, block_of_call, choice_of, thinking_options
from rill.dialects.responses_tools import Tool, check_types, flat_name, tools_of
from rill.dialects.schema import fit_schema
from rill.dialects.validation import MAX_MESSAGES, bad_field, read_json_object, reject_fields
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

UNSUPPORTED = {
    "previous_response_id": "nothing is stored; send the whole conversation in input",
    "conversation": "nothing is stored; send the whole conversation in input",
    "prompt": "nothing is stored; send it in input",
    "background": "leave it out: the answer ends with its connection",
    "context_management": "use POST /v1/messages",
    "max_tool_calls": "leave it out: Rill runs no tools",
    "moderation": "leave it out",
    "image": "leave it out: Claude makes no images",
    "top_logprobs": "leave it out: Claude reports no probabilities",
}
IGNORED = {
    *("store", "include", "metadata", "user", "safety_identifier", "service_tier", "truncation", "stream_options"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "client_metadata"),
}
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
Items = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class Form(BaseModel):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class Text(BaseModel):
    """The options of the text; `verbosity` has no counterpart."""

    format: Form | None = None


class ResponsesRequest(BaseModel):
    """The fields of a request that are supported; `input` is a text or a list."""

    model: str | None = None
    input: Any
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: dict[str, Any] | None = None
    stream: bool | None = None


class InputItems(BaseModel):
    """A conversation."""

    input: Items


KNOWN = {*ResponsesRequest.model_fields, *UNSUPPORTED, *IGNORED}


def read_response(body: bytes, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a request; raise Problem with the name of a wrong field and what to do instead."""
    fields = read_json_object(body)
    reject_fields(fields, UNSUPPORTED)
    for unknown in (name for name in fields if name not in KNOWN and fields[name]):
        raise Problem("bad_request", f"{unknown if FIELD_NAME.fullmatch(unknown) else 'a field'}: not known here.")
    check_types(fields.get("tools"))
    try:
        asked = ResponsesRequest.model_validate(fields)
        items = [{"role": "user", "content": asked.input}]
        if not isinstance(asked.input, str):
            items = InputItems.model_validate({"input": asked.input}).input
    except ValidationError as error:
        raise bad_field(error) from None
    messages, system = _conversation_of(items)
    tools, namespaces = tools_of(asked.tools or [])
    options = {**_options_of(asked, tools, messages), "system": _system_of(asked, system) or settings.system_prompt}
    model, max_tokens = settings.check(asked.model, asked.max_output_tokens)
    set_options = {name: value for name, value in options.items() if value is not None}
    prompt = Prompt(model, max_tokens, messages, set_options, default_model=asked.model is None)
    return prompt, ReplyFormat(bool(asked.stream), namespaces=namespaces)


def _options_of(asked: ResponsesRequest, tools: list[dict[str, Any]], messages: list[dict[str, Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "temperature": None if asked.temperature is None else min(asked.temperature, 1.0),
        "top_p": asked.top_p,
    }
    choice = choice_of(asked.tool_choice, asked.parallel_tool_calls)
    if choice and choice["type"] == "tool":
        choice["name"] = flat_name(asked.tool_choice.get("namespace"), choice["name"])
    if tools:
        options.update(tools=tools, tool_choice=choice)
    effort = (asked.reasoning or {}).get("effort")
    thinking = thinking_options(effort, "reasoning.effort", messages, options.get("tool_choice"))
    output = dict(thinking.pop("output_config", {}))
    form = asked.text.format if asked.text else None
    if form and form.type == "json_schema":
        if form.schema_ is None:
            raise Problem("bad_request", "text.format.schema: should be a JSON schema.")
        output["format"] = {"type": "json_schema", "schema": fit_schema(form.schema_)}
    return {**options, **thinking, "output_config": output or None}


def _system_of(asked: ResponsesRequest, system: list[str]) -> str:
    form = asked.text.format if asked.text else None
    last = ANY_OBJECT if form and form.type == "json_object" else None
    return "\n\n".join(filter(None, (asked.instructions, *system, last)))


def _conversation_of(items: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the messages and the texts of the system; raise Problem with the path of a wrong item."""
    messages: list[dict[str, Any]] = []
    system: list[str] = []
    for index, item in enumerate(items):
        where, kind = f"input.{index}", item.get("type", "message")
        if kind == "message":
            _add_message(messages, system, where, item)
        elif kind == "function_call":
            id, name, arguments = (_string(where, item, field) for field in ("call_id", "name", "arguments"))
            name = flat_name(item.get("namespace"), name)
            _add_blocks(messages, "assistant", [block_of_call(f"{where}.arguments", id, name, arguments)])
        elif kind == "function_call_output":
            add_result(messages, _string(where, item, "call_id"), _content_of(f"{where}.output", item.get("output")))
        elif kind != "reasoning":  # Claude's own is not sent to clients of this API.
            allowed = "message, function_call or function_call_output"
            raise Problem("bad_request", f"{where}.type: should be {allowed}; Rill runs no tools and stores nothing.")
    if not messages:
        raise Problem("bad_request", "input: should have at least one message of the role user.")
    return messages, system


def _add_message(messages: list[dict[str, Any]], system: list[str], where: str, item: dict[str, Any]) -> None:
    role, content = item.get("role"), _content_of(f"{where}.content", item.get("content"))
    if role in ("system", "developer"):
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if any(block["type"] != "text" for block in blocks):
            raise Problem("bad_request", f"{where}.content: a {role} message should be text.")
        system.append("".join(block["text"] for block in blocks))
    elif role == "assistant":
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        _add_blocks(messages, role, [block for block in blocks if block.get("text") != ""])
    elif role == "user":
        messages.append({"role": role, "content": content})
    else:
        raise Problem("bad_request", f"{where}.role: should be user, assistant, system or developer.")


def _add_blocks(messages: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> None:
    """Add to the last message of the role: the text and the calls of one answer are several items."""
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"].extend(blocks)
    elif blocks:
        messages.append({"role": role, "content": blocks})


def _content_of(where: str, content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Problem("bad_request", f"{where}: should be a string or a list of parts.")
    return [_block_of(f"{where}.{index}", part) for index, part in enumerate(content)]


def _block_of(where: str, part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in TEXT_PARTS:
        return {"type": "text", "text": _string(where, part, TEXT_PARTS[kind])}
    if kind == "input_image":
        return Part(type="image_url", image_url={"url": part.get("image_url")}).as_block(where)
    raise Problem("bad_request", f"{where}.type: should be input_text, output_text, refusal or input_image.")


def _string(where: str, item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise Problem("bad_request", f"{where}.{name}: should be a string.")
    return value
