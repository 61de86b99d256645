"""POST /v1/messages: features that cost more than their tokens, or reach other systems, need RILL_UPSTREAM_FEATURES."""

import json
from typing import Any, get_args

import pytest
import upstream as wire
from anthropic.types import message_create_params
from anthropic.types.anthropic_beta_param import AnthropicBetaParam
from anthropic.types.beta import message_create_params as beta_message_create_params
from server import Rill, StartRill
from upstream import Upstream

from rill.dialects.anthropic import read_messages
from rill.dialects.features import (
    HARMLESS_BETAS,
    HARMLESS_FIELDS,
    HARMLESS_TOOLS,
    OPTIONAL_BETAS,
    family_of,
)
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings

ASKED: dict[str, Any] = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"model": {"type": "string", "default": "opus"}, "max_tokens": {"const": 99}}}
FUNCTION = {"name": "gauge", "input_schema": SCHEMA, "input_examples": [{"model": "opus", "max_tokens": 10**6}]}
FALLBACK = {"model": "small", "max_tokens": 9}
ADVISOR = {"type": "advisor_20260301", "name": "advisor", "model": "small", "max_tokens": 9}


def make_settings(features: str = "") -> Settings:
    env = {"ANTHROPIC_API_KEY": "sk-test", "RILL_DEFAULT_MODEL": "small", "RILL_MAX_TOKENS": "5000"}
    return Settings(**env, RILL_UPSTREAM_FEATURES=features)  # type: ignore[arg-type]


def read(fields: dict[str, Any], betas: str | None = None, features: str = "") -> Prompt:
    headers = {} if betas is None else {"Anthropic-Beta": betas}
    return read_messages(json.dumps({**ASKED, **fields}).encode(), headers, {}, make_settings(features))[0]


def rejection(fields: dict[str, Any], betas: str | None = None, features: str = "") -> Problem:
    with pytest.raises(Problem) as rejected:
        read(fields, betas, features)
    return rejected.value


def tool(type: str) -> dict[str, Any]:
    return {"tools": [FUNCTION, {"type": type, "name": "t"}]}


def inline(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a tool that a message adds: the beta `inline-tools`."""
    block = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": definition}}
    return {"messages": [*ASKED["messages"], {"role": "system", "content": [{"type": "text", "text": "x"}, block]}]}


# Fields of a request, the path in the message, and the feature that enables them.
FEATURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "web search": (tool("web_search_20250305"), "tools.1", "web_search"),
    "web search of tomorrow": (tool("web_search_20991231"), "tools.1", "web_search"),
    "web fetch": (tool("web_fetch_20250910"), "tools.1", "web_fetch"),
    "code execution": (tool("code_execution_20250825"), "tools.1", "code_execution"),
    "an advisor": ({"tools": [ADVISOR]}, "tools.0", "advisor"),
    "tools of an MCP server": (tool("mcp_toolset"), "tools.1", "mcp_toolset"),
    "a tool of tomorrow": (tool("of_tomorrow_20991231"), "tools.1", "of_tomorrow"),
    "a tool that a message adds": (inline({"type": "web_search_20250305"}), "messages.1.content.1", "web_search"),
    "speed": ({"speed": "fast"}, "speed", "speed"),
    "a tier": ({"service_tier": "auto"}, "service_tier", "service_tier"),
    "fallbacks": ({"fallbacks": [FALLBACK]}, "fallbacks", "fallbacks"),
    "default fallbacks": ({"fallbacks": "default"}, "fallbacks", "fallbacks"),
    "MCP servers": ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers", "mcp_servers"),
    "a container": ({"container": "c"}, "container", "container"),
    "a region": ({"inference_geo": "us"}, "inference_geo", "inference_geo"),
    "a thread": ({"thread": {"type": "create"}}, "thread", "thread"),
    "another's bill": ({"billing_policy": {"type": "billing_policy"}}, "billing_policy", "billing_policy"),
    "a compaction": ({"compaction": {"type": "summarize"}}, "compaction", "compaction"),
    "a compaction as an edit": (
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        "context_management.edits.0",
        "compact",
    ),
    "a field of tomorrow": ({"of_tomorrow": {"a": 1}}, "of_tomorrow", "of_tomorrow"),
}
HARMLESS: dict[str, dict[str, Any]] = {
    "a function": {"tools": [FUNCTION], "tool_choice": {"type": "auto"}},
    "a custom tool": {"tools": [{**FUNCTION, "type": "custom"}, {**FUNCTION, "type": None}]},
    "no tools": {"tools": []},
    **{
        f"the client's {type}": tool(type)
        for type in (
            "bash_20250124",
            "text_editor_20250728",
            "computer_20251124",
            "computer_toolset_20260801",
            "browser_toolset_20260801",
            "memory_20250818",
            "tool_search_tool_regex_20251119",
            "tool_search_tool_bm25",
        )
    },
    "a function that a message adds": inline(FUNCTION),
    "a tool that a message refers to": {
        "messages": [{"role": "system", "content": [{"type": "tool_addition", "tool": {"type": "tool_reference"}}]}]
    },
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    "caching": {
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
    },
    "structured output": {
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
        "output_format": {"type": "json_schema", "schema": SCHEMA},
    },
    "context edits": {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
    "no context edits": {"context_management": None},
    "sampling": {"temperature": 1, "top_p": 0.5, "top_k": 3, "stop_sequences": ["x"], "metadata": {"user_id": "u"}},
    "null fields": {"speed": None, "container": None, "fallbacks": None, "of_tomorrow": None},
    "a tool result about models": {
        "messages": [
            {"role": "user", "content": [{"type": "tool_result", "content": "x", "model": "opus", "max_tokens": 10**6}]}
        ]
    },
}
# A model or a max_tokens within another field.
NESTED: dict[str, dict[str, Any]] = {
    "an advisor's model": {"tools": [{**ADVISOR, "model": "large"}]},
    "a fallback's model": {"fallbacks": [FALLBACK, {"model": "large"}]},
    "a model of tomorrow": {"of_tomorrow": {"deep": [{"model": "large"}]}},
    "an inline advisor's model": inline({**ADVISOR, "model": "large"}),
    "a model in the output's configuration": {"output_config": {"model": "large"}},
    "a model in an edit": {"context_management": {"edits": [{"type": "compact_20260112", "model": "large"}]}},
    "an advisor's tokens": {"tools": [{**ADVISOR, "max_tokens": 5001}]},
    "a fallback's tokens": {"fallbacks": [{**FALLBACK, "max_tokens": 10**6}]},
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_that_is_not_enabled_is_a_403_that_names_it_and_the_setting(name: str) -> None:
    fields, path, feature = FEATURES[name]
    problem = rejection(fields)
    assert problem.status == 403
    assert problem.detail.startswith(f"{path}: ")
    assert "RILL_UPSTREAM_FEATURES" in problem.detail
    assert feature in problem.detail


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_that_is_enabled_by_name_or_wildcard_is_forwarded(name: str) -> None:
    fields, _, feature = FEATURES[name]
    for features in (f"other,{feature}", "*"):
        prompt = read(fields, features=features)
        assert fields.items() <= {**prompt.options, "messages": prompt.messages}.items()


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_enables_no_other(name: str) -> None:
    fields, _, feature = FEATURES[name]
    assert rejection(fields, features=f"{feature}s,x{feature}").status == 403


@pytest.mark.parametrize("name", HARMLESS)
def test_a_feature_that_costs_only_its_tokens_needs_no_permission(name: str) -> None:
    fields = HARMLESS[name]
    prompt = read(fields)
    assert fields.items() <= {**prompt.options, "messages": prompt.messages}.items()


@pytest.mark.parametrize("name", NESTED)
def test_a_nested_model_or_max_tokens_is_checked_even_if_every_feature_is_enabled(name: str) -> None:
    problem = rejection(NESTED[name], features="*")
    assert problem.status in (400, 403)
    assert problem.detail.startswith(("model:", "max_tokens:"))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"tools": {"type": "web_search_20250305"}}, "tools"),
        ({"tools": "web_search"}, "tools"),
        ({"tools": ["web_search_20250305"]}, "tools.0"),
        ({"tools": [{"type": ["web_search_20250305"]}]}, "tools.0"),
        ({"context_management": {"edits": {"type": "compact_20260112"}}}, "context_management.edits"),
        ({"context_management": {"edits": ["compact"]}}, "context_management.edits.0"),
        ({"context_management": []}, "context_management"),
        (inline(["web_search"]), "messages.1.content.1"),  # type: ignore[arg-type]
    ],
)
def test_a_feature_without_a_valid_type_is_a_400(fields: dict[str, Any], path: str) -> None:
    problem = rejection(fields, features="*")
    assert problem.status == 400
    assert problem.detail.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "betas",
    [
        "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
        "context-management-2025-06-27, prompt-caching-scope-2026-01-05",
        "token-efficient-tools-2025-02-19",
        "output-128k-2025-02-19",
        "prompt-caching-2024-07-31,extended-cache-ttl-2025-04-11",
        "structured-outputs-2025-11-13,structured-outputs-2099-12-31",
        "mid-conversation-system-2026-04-07",
        "",
        " , ",
    ],
)
def test_a_harmless_beta_is_forwarded(betas: str) -> None:
    assert read({}, betas).headers == ({"anthropic-beta": betas} if betas else {})


@pytest.mark.parametrize(
    ("betas", "feature"),
    [
        ("fast-mode-2026-02-01", "fast-mode"),
        ("prompt-caching-2024-07-31,fast-mode-2026-02-01", "fast-mode"),
        ("server-side-fallback-2026-07-01", "server-side-fallback"),
        ("mcp-client-2025-11-20", "mcp-client"),
        ("code-execution-2025-05-22", "code-execution"),
        ("skills-2025-10-02", "skills"),
        ("advisor-tool-2026-03-01", "advisor-tool"),
        ("inline-tools-2026-09-15", "inline-tools"),
        ("message-threads-2026-08-12", "message-threads"),
        ("compact-2026-01-12", "compact"),
        ("files-api-2025-04-14", "files-api"),
        ("of-tomorrow", "of-tomorrow"),
        ("PROMPT-CACHING-2024-07-31", "PROMPT-CACHING"),
        ("prompt-caching-2024-07-31;fast-mode-2026-02-01", "prompt-caching"),
    ],
)
def test_any_other_beta_is_a_403_until_it_is_enabled(betas: str, feature: str) -> None:
    problem = rejection({}, betas)
    assert problem.status == 403
    assert problem.detail.startswith("anthropic-beta: ")
    assert "RILL_UPSTREAM_FEATURES" in problem.detail
    assert feature in problem.detail
    for features in (family_of(betas.split(",")[-1]), betas.split(",")[-1], "*"):
        assert read({}, betas, features).headers == {"anthropic-beta": betas}


@pytest.mark.parametrize(
    ("betas", "forwarded"),
    [
        ("context-1m-2025-08-07", {}),
        (
            "claude-code-20250219, context-1m-2025-08-07,effort-2025-11-24",
            {"anthropic-beta": "claude-code-20250219,effort-2025-11-24"},
        ),
    ],
)
def test_a_beta_that_only_raises_a_limit_is_left_out_until_it_is_enabled(betas: str, forwarded: dict[str, str]) -> None:
    assert read({}, betas).headers == forwarded
    for features in ("context-1m", "context-1m-2025-08-07", "*"):
        assert read({}, betas, features).headers == {"anthropic-beta": betas}


def test_a_long_feature_name_is_shortened_in_the_message() -> None:
    assert len(rejection({"x" * 100_000: 1}).detail) < 400
    assert len(rejection(tool("x" * 100_000)).detail) < 400


# The lists stay complete: everything that the SDK knows is classified as harmless or as not harmless.

PERMITTED_FIELDS = {
    *("billing_policy", "compaction", "container", "fallback_credit_token", "fallbacks", "inference_geo"),
    *("mcp_servers", "service_tier", "speed", "thread"),
}
# Parameters of the SDK's methods that are sent as headers.
HEADER_FIELDS = {"betas", "user_profile_id", "workspace_id"}
PERMITTED_BETAS = {
    *("advisor-tool", "agent-memory", "analytics-usage-cost", "ce-claude-code-managed-settings", "ce-plugins"),
    *("ce-user-management", "admin-user-sign-out", "code-execution", "compact", "context-1m", "dreaming"),
    *("experimental-claude-tag", "fallback-credit", "fast-mode", "files-api", "inline-tools", "managed-agents"),
    *("mcp-client", "mcp-tunnels", "message-batches", "message-threads", "server-side-fallback", "skills"),
    *("spend-limit-reads", "telemetry-destinations", "user-profiles", "user-profiles-billing", "webhooks"),
}


@pytest.mark.parametrize("params", [message_create_params, beta_message_create_params])
def test_every_field_that_the_sdk_knows_is_classified(params: Any) -> None:
    known = set(params.MessageCreateParamsStreaming.__annotations__) - HEADER_FIELDS
    assert len(known) > 15
    assert known - HARMLESS_FIELDS - PERMITTED_FIELDS == set()
    assert HARMLESS_FIELDS.isdisjoint(PERMITTED_FIELDS)


def test_every_beta_that_the_sdk_knows_is_classified() -> None:
    known = {family_of(name) for name in get_args(get_args(AnthropicBetaParam)[1])}
    assert len(known) > 30
    assert known - HARMLESS_BETAS - PERMITTED_BETAS == set()
    assert HARMLESS_BETAS.isdisjoint(PERMITTED_BETAS)
    assert OPTIONAL_BETAS < PERMITTED_BETAS


def test_no_harmless_tool_is_billed_by_the_upstream() -> None:
    assert not HARMLESS_TOOLS & {"web_search", "web_fetch", "code_execution", "advisor", "mcp_toolset"}


# On the wire


def test_a_feature_that_is_not_enabled_never_reaches_the_upstream(service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    for name, (fields, path, _) in FEATURES.items():
        body = json.dumps({**ASKED, "stream": True, **fields}).encode()
        with service.ask("POST", "/v1/messages", {"anthropic-version": "2023-06-01"}, body) as asked:
            error = json.loads(asked.read_rest())["error"]
            assert (asked.status, error["type"], name) == (403, "permission_error", name)
            assert error["message"].startswith(path)
    sent = {"anthropic-beta": "fast-mode-2026-02-01"}
    with service.ask("POST", "/v1/messages", sent, json.dumps({**ASKED, "stream": True}).encode()) as asked:
        assert asked.status == 403
    assert upstream.requests == []


def test_an_enabled_feature_reaches_the_upstream(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    rill = start_rill(RILL_UPSTREAM_FEATURES="web_search,context-1m")
    fields = {**ASKED, "stream": True, **tool("web_search_20250305")}
    sent = {"anthropic-beta": "context-1m-2025-08-07"}
    with rill.ask("POST", "/v1/messages", sent, json.dumps(fields).encode()) as asked:
        assert asked.status == 200
        asked.read_rest()
    (request,) = upstream.requests
    assert request.json == fields
    assert request.headers["anthropic-beta"] == "context-1m-2025-08-07"
