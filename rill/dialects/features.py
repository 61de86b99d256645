"""The features of the Messages API that a request may use: those that cost no more than its checked tokens.

All others (server tools, further models, faster service, other machines) need RILL_UPSTREAM_FEATURES. The lists name
harmless features, so that an addition to the API is rejected until it is classified; a test compares them with the SDK.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rill.problems import Problem
from rill.settings import Settings

HARMLESS_FIELDS = frozenset(
    {
        *("model", "max_tokens", "messages", "stream", "system", "metadata", "stop_sequences"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "thinking", "cache_control"),
        *("output_config", "output_format", "context_management", "diagnostics"),
    }
)
# Tools that the client runs, and the search among the request's own tools, which is not billed.
HARMLESS_TOOLS = frozenset(
    {
        *("custom", "bash", "text_editor", "computer", "computer_toolset", "browser_toolset", "memory"),
        *("tool_search_tool_regex", "tool_search_tool_bm25"),
    }
)
HARMLESS_EDITS = frozenset({"clear_tool_uses", "clear_thinking"})
# Betas that change the form of a request or an answer; max_tokens still limits the cost.
HARMLESS_BETAS = frozenset(
    {
        *("adaptive-thinking", "advanced-tool-use", "cache-diagnosis", "claude-code", "computer-use"),
        *("context-management", "dev-full-thinking", "effort", "extended-cache-ttl", "fine-grained-tool-streaming"),
        *("interleaved-thinking", "mid-conversation-output-config", "mid-conversation-system"),
        *("mid-conversation-system-clear-at", "mid-conversation-tool-changes"),
        *("model-context-window-exceeded", "oauth", "output-128k", "output-300k"),
        *("pdfs", "prompt-caching", "prompt-caching-scope", "redact-thinking", "structured-outputs", "task-budgets"),
        *("thinking-binding-controls", "thinking-display-updates", "thinking-token-count", "token-counting"),
        *("token-efficient-tools", "tool-examples", "tool-search-tool"),
    }
)
# Betas that only raise a limit, at a higher price: without them an answer is the same, or the upstream rejects the
# request by its length. Agents send them unasked, so they are left out unless they are enabled.
OPTIONAL_BETAS = frozenset({"context-1m"})
# Fields with the client's own data or JSON schemas, in which the API does not read `model` or `max_tokens`.
OPAQUE = frozenset({"input_schema", "input_examples", "schema", "metadata", "system", "stop_sequences"})
# The date at the end of a tool's type (_20250305) or of a beta (-2025-08-07, -20250219).
_VERSION = re.compile(r"(?:_\d{8}|-\d{4}-\d{2}-\d{2}|-\d{8})\Z", re.ASCII)
# A name in a body is repeated in a message only if it can be a name of the API's; it may be a prompt.
MAX_NAME = 60
_NAME = re.compile(rf"[A-Za-z0-9_]{{1,{MAX_NAME}}}", re.ASCII)


def check_features(fields: Mapping[str, Any], betas: str, settings: Settings) -> str:
    """Return the betas to forward.

    Raise Problem for a feature that is not enabled, and for a nested model or max_tokens that is not allowed.
    """
    enabled = frozenset(settings.upstream_features)
    for name, value in fields.items():
        if value is not None:
            _check(name, name, HARMLESS_FIELDS, enabled)
    for where, definition in _tools_of(fields):
        _check(where, _type_of(where, definition), HARMLESS_TOOLS, enabled)
        _check_nested(definition, settings)
    given = fields.get("context_management")
    _, management = _object_of("context_management", {} if given is None else given)
    for where, edit in _objects_of("context_management.edits", management.get("edits")):
        _check(where, _type_of(where, edit), HARMLESS_EDITS, enabled)
    for name, value in fields.items():
        if name not in ("messages", "tools", "model", "max_tokens", *OPAQUE):
            _check_nested(value, settings)
    return _forwarded_betas(betas, enabled)


def family_of(name: str) -> str:
    """Return the name of a tool's type or of a beta without its version."""
    return _VERSION.sub("", name)


def _forwarded_betas(betas: str, enabled: frozenset[str]) -> str:
    names = list(filter(None, map(str.strip, betas.split(","))))
    optional = [each for each in names if family_of(each) in OPTIONAL_BETAS]
    unused = [each for each in optional if enabled.isdisjoint((each, family_of(each), "*"))]
    kept = [each for each in names if each not in unused]
    for beta in kept:
        _check("anthropic-beta", beta, HARMLESS_BETAS, enabled)
    return ",".join(kept) if unused else betas


def _check(where: str, name: str, harmless: frozenset[str], enabled: frozenset[str]) -> None:
    if name in harmless:
        return
    family = family_of(name)
    if family in harmless or not enabled.isdisjoint((name, family, "*")):
        return
    is_field = where == name
    if where == "anthropic-beta":
        name, family = name[:MAX_NAME], family[:MAX_NAME]
    elif not _NAME.fullmatch(name):
        name = family = "NAME"
        where = name if is_field else where
    subject = "this field" if is_field else f"`{name}`"
    message = (
        f"{where}: {subject} is not enabled here. The operator can enable it with RILL_UPSTREAM_FEATURES={family}."
    )
    raise Problem("forbidden", message)


def _tools_of(fields: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the definition of each tool: in `tools`, or in a message that adds one."""
    yield from _objects_of("tools", fields.get("tools"))
    for number, message in enumerate(fields["messages"]):
        content = message.get("content") if isinstance(message, dict) else None
        for position, block in enumerate(content if isinstance(content, list) else ()):
            if isinstance(block, dict) and block.get("type") == "tool_addition":
                tool = block.get("tool")
                if isinstance(tool, dict) and "definition" in tool:
                    yield _object_of(f"messages.{number}.content.{position}", tool["definition"])


def _objects_of(where: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(value, list | None):
        raise Problem("bad_request", f"{where}: should be a list.")
    for number, item in enumerate(value or ()):
        yield _object_of(f"{where}.{number}", item)


def _object_of(where: str, value: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise Problem("bad_request", f"{where}: should be an object.")
    return where, value


def _type_of(where: str, definition: dict[str, Any]) -> str:
    kind = definition.get("type")
    if not isinstance(kind, str | None):
        raise Problem("bad_request", f"{where}: `type` should be a string.")
    return "custom" if kind is None else kind


def _check_nested(value: Any, settings: Settings) -> None:
    """Check every `model` and `max_tokens` within a value like those of the request itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for name, inner in items:
        if name == "model" and isinstance(inner, str):
            settings.check(inner, None)
        elif name == "max_tokens" and isinstance(inner, int | float):
            settings.check(None, inner if type(inner) is int else -1)
        elif name not in OPAQUE:
            _check_nested(inner, settings)
