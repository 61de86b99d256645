"""The tools of OpenAI's Responses: functions, alone or in namespaces, which the Messages API does not have.

A function in a namespace is offered to the model as `namespace__name`, and its calls are translated back.
https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from rill.dialects.openai_tools import Function
from rill.problems import Problem


class FunctionTool(Function):
    """A function; the tools that OpenAI runs itself are not supported."""

    type: Literal["function"]


class Namespace(BaseModel):
    """Functions that belong together."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)]


Tool = Annotated[FunctionTool | Namespace, Field(discriminator="type")]
Names = Mapping[str, tuple[str, str]]


def check_types(tools: Any, where: str = "tools") -> None:
    """Raise Problem for a tool that OpenAI would run itself."""
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "namespace" and where == "tools":
            check_types(tool.get("tools"), f"tools.{index}.tools")
        elif isinstance(tool, dict) and kind != "function":
            allowed = "function or namespace" if where == "tools" else "function"
            raise Problem("bad_request", f"{where}.{index}.type: should be {allowed}; Rill runs no tools.")


def tools_of(tools: list[FunctionTool | Namespace]) -> tuple[list[dict[str, Any]], Names]:
    """Return the tools of the Messages API, and the namespace and name of those that have one; raise Problem."""
    offered: list[dict[str, Any]] = []
    names: dict[str, tuple[str, str]] = {}
    for tool in tools:
        if isinstance(tool, FunctionTool):
            offered.append(tool.as_tool())
            continue
        for function in tool.tools:
            name = flat_name(tool.name, function.name)
            names[name] = (tool.name, function.name)
            description = "\n\n".join(filter(None, (tool.description, function.description)))
            offered.append(function.model_copy(update={"name": name, "description": description}).as_tool())
    if names and len({each["name"] for each in offered}) < len(offered):
        raise Problem("bad_request", "tools: two functions have the same name, with their namespace before it.")
    return offered, names


def flat_name(namespace: Any, name: str) -> str:
    """Return the name in the prompt of a function that may be in a namespace."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name
