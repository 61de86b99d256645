"""The tools of OpenAI's two APIs as those of the Messages API, and the results that a client sends back.

https://platform.openai.com/docs/guides/function-calling and https://docs.anthropic.com/en/api/messages
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

from pydantic import BaseModel

from rill.dialects.schema import fit_schema
from rill.dialects.validation import read_json_object
from rill.problems import Problem

CHOICES = {"auto": "auto", "none": "none", "required": "any"}
# OpenAI's names of the effort -> the Messages API's.
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}


class Function(BaseModel):
    """A function that the client runs; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_tool(self) -> dict[str, Any]:
        """Return the function as a tool of the Messages API."""
        schema = self.parameters or {"type": "object", "properties": {}}
        tool: dict[str, Any] = {"name": self.name, "input_schema": fit_schema(schema) if self.strict else schema}
        if self.description:
            tool["description"] = self.description
        return {**tool, "strict": True} if self.strict else tool


class Tool(BaseModel):
    """A tool of a chat completion."""

    type: Literal["function"]
    function: Function


class CalledFunction(BaseModel):
    """The function of a call, and its arguments as JSON."""

    name: str
    arguments: str = ""


class Call(BaseModel):
    """A call of a tool in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_block(self, where: str) -> dict[str, Any]:
        """Return the call as a content block of the Messages API; raise Problem if the arguments are not JSON."""
        name, arguments = self.function.name, self.function.arguments
        return block_of_call(f"{where}.function.arguments", self.id, name, arguments)


def block_of_call(where: str, id: str, name: str, arguments: str) -> dict[str, Any]:
    """Return the content block of a call; raise Problem if the arguments are not a JSON object."""
    try:
        given = read_json_object(arguments.encode("utf-8", "replace")) if arguments.strip() else {}
    except Problem:
        raise Problem("bad_request", f"{where}: should be a JSON object.") from None
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def add_result(messages: list[dict[str, Any]], id: str, content: str | list[dict[str, Any]]) -> None:
    """Add the result of a call to the conversation; the results of one answer belong in one message."""
    result = {"type": "tool_result", "tool_use_id": id, "content": content}
    last = messages[-1] if messages else {}
    blocks = last.get("content")
    if isinstance(blocks, list) and _has_result(blocks):
        blocks.append(result)
    else:
        messages.append({"role": "user", "content": [result]})


def _has_result(blocks: Sequence[dict[str, Any]]) -> bool:
    return any(block["type"] == "tool_result" for block in blocks)


def choice_of(choice: Any, parallel: bool | None) -> dict[str, Any] | None:
    """Return the Messages API's choice of tools, None for its default; raise Problem."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        # The name is in `function` in chat completions, and beside `type` in responses.
        named = choice.get("function", choice)
        name = named.get("name") if isinstance(named, dict) else None
        if not isinstance(name, str):
            raise Problem("bad_request", "tool_choice: should name a function.")
        chosen: dict[str, Any] = {"type": "tool", "name": name}
    elif choice is None or (isinstance(choice, str) and choice in CHOICES):
        chosen = {"type": CHOICES[choice or "auto"]}
    else:
        raise Problem("bad_request", "tool_choice: should be none, auto, required, or a function.")
    if parallel is False and chosen["type"] != "none":
        chosen["disable_parallel_tool_use"] = True
    return chosen if choice is not None or parallel is False else None


def thinking_options(effort: Any, where: str, messages: Sequence[dict[str, Any]], choice: Any) -> dict[str, Any]:
    """Return the options with which Claude thinks as hard as requested; raise Problem.

    Claude thinks in no request that forces a tool, nor while a turn with tools lasts: it expects its earlier thinking
    back then, which clients of OpenAI's APIs do not have.
    """
    if not effort or effort == "none":
        return {}
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise Problem("bad_request", f"{where}: should be none, {', '.join(EFFORTS)}.")
    forced = choice is not None and choice["type"] in ("any", "tool")
    since_answer = takewhile(lambda message: message["role"] == "user", reversed(messages))
    in_turn = any(isinstance(each["content"], list) and _has_result(each["content"]) for each in since_answer)
    config = {"output_config": {"effort": EFFORTS[effort]}}
    return config if forced or in_turn else {**config, "thinking": {"type": "adaptive"}}
