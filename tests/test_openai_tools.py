"""OpenAI's tools, structured output and reasoning as the Messages API's, and calls of tools as OpenAI's."""

import json
from typing import Any

import openai
import pytest
import upstream as wire
from pydantic import BaseModel
from server import Rill, StartRill
from upstream import Upstream

from rill.dialects.openai import ANY_OBJECT, read_completion
from rill.dialects.openai_encoder import OpenAIEncoder, encode_whole
from rill.dialects.schema import fit_schema
from rill.events import End, Event, Heartbeat, Start, Text, ToolCall, ToolInput
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings
from rill.upstream.sse_decoder import Decoder

HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Report the weather.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
ASKED = [HI, {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]}]
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
END = End("tool_use", {"input_tokens": 3, "output_tokens": 5})


def read(**fields: Any) -> Prompt:
    settings = Settings(ANTHROPIC_API_KEY="sk-test", RILL_ALLOWED_MODELS="small")
    return read_completion(json.dumps({"messages": [HI], **fields}).encode(), settings)[0]


def rejection_of(**fields: Any) -> str:
    with pytest.raises(Problem) as rejected:
        read(**fields)
    assert rejected.value.name == "bad_request"
    return rejected.value.detail


# Requests


def test_a_function_becomes_a_tool() -> None:
    options = read(tools=[TOOL, {"type": "function", "function": {"name": "now"}}]).options
    tool = {"name": "weather", "description": "Report the weather.", "input_schema": SCHEMA}
    assert options == {"tools": [tool, {"name": "now", "input_schema": {"type": "object", "properties": {}}}]}


def test_a_strict_function_has_closed_objects() -> None:
    (tool,) = read(tools=[{"type": "function", "function": {**FUNCTION, "strict": True}}]).options["tools"]
    assert tool["strict"] is True
    assert tool["input_schema"] == {**SCHEMA, "additionalProperties": False}


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"type": "tool", "name": "weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_the_choice_of_a_tool_is_translated(fields: dict[str, Any], choice: dict[str, Any] | None) -> None:
    assert read(tools=[TOOL], **fields).options.get("tool_choice") == choice


def test_calls_and_results_become_blocks() -> None:
    second = {**CALL, "id": "call_2", "function": {"name": "now", "arguments": ""}}
    messages = [
        HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL, second]},
        RESULT,
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
        HI,
    ]
    noon = [{"type": "text", "text": "noon"}]
    assert read(messages=messages, tools=[TOOL]).messages == [
        HI,
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bern"}},
                {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": noon},
            ],
        },
        HI,
    ]


def test_text_beside_a_call_comes_first() -> None:
    content = read(messages=[*ASKED, RESULT]).messages[1]["content"]
    assert [block["type"] for block in content] == ["text", "tool_use"]


@pytest.mark.parametrize("arguments", ["{", "[]", "7"])
def test_arguments_that_are_not_an_object_are_rejected_by_their_path(arguments: str) -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    message = rejection_of(messages=[HI, {"role": "assistant", "tool_calls": [call]}])
    assert message == "messages.1.tool_calls.0.function.arguments: should be a JSON object."


def test_what_is_wrong_with_a_tool_is_named() -> None:
    assert rejection_of(tools=[{"type": "function"}]).startswith("tools.0.function")
    assert rejection_of(tools=[TOOL], tool_choice={"type": "allowed_tools"}).startswith("tool_choice")
    assert rejection_of(tools=[TOOL], tool_choice={"type": "function"}).startswith("tool_choice")
    assert rejection_of(messages=[HI, {"role": "tool", "content": "x"}]).startswith("messages.1.tool_call_id")


def test_a_schema_becomes_structured_output() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
    closed = {**SCHEMA, "additionalProperties": False}
    assert read(response_format=form).options == {
        "output_config": {"format": {"type": "json_schema", "schema": closed}}
    }


def test_any_json_object_is_an_instruction() -> None:
    assert read(response_format={"type": "json_object"}).options == {"system": ANY_OBJECT}
    assert read(response_format={"type": "text"}).options == {}


def test_a_schema_keeps_what_is_supported_and_describes_the_rest() -> None:
    schema = {
        "$schema": "x",
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "description": "An age."}, "b": {"$ref": "#/$defs/B"}},
        "$defs": {"B": {"oneOf": [{"type": "null"}, {"type": "array", "minItems": 2, "items": {"properties": {}}}]}},
    }
    assert fit_schema(schema) == {
        "type": "object",
        "properties": {"a": {"type": "integer", "description": "An age.\n\n{minimum: 1}"}, "b": {"$ref": "#/$defs/B"}},
        "additionalProperties": False,
        "$defs": {
            "B": {
                "anyOf": [
                    {"type": "null"},
                    {
                        "type": "array",
                        "items": {"type": "object", "properties": {}, "additionalProperties": False},
                        "description": "{minItems: 2}",
                    },
                ]
            }
        },
    }


def test_reasoning_is_thinking_unless_claude_would_need_its_earlier_thinking() -> None:
    thinking = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    assert read(reasoning_effort="minimal").options == thinking
    assert read(reasoning_effort=None).options == {}
    assert (
        "thinking"
        in read(
            messages=[*ASKED, RESULT, {"role": "assistant", "content": "It is."}, HI], reasoning_effort="high"
        ).options
    )
    for fields in ({"messages": [*ASKED, RESULT]}, {"messages": [*ASKED, RESULT, HI]}, {"tool_choice": "required"}):
        options = read(tools=[TOOL], reasoning_effort="high", **fields).options
        assert ("thinking" in options, options["output_config"]) == (False, {"effort": "high"})


# Answers


def test_calls_are_streamed_with_their_index_and_arguments() -> None:
    events = [
        Start(),
        Text("Wait."),
        ToolCall("a", "weather"),
        ToolInput('{"city":'),
        ToolInput('"Bern"}'),
        ToolCall("b", "now"),
        END,
    ]
    encoder = OpenAIEncoder("m", ReplyFormat(), "r")
    written = b"".join(map(encoder.encode, events)).decode().split("\n\n")
    chunks = [json.loads(each.removeprefix("data: "))["choices"][0] for each in written if "{" in each]
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
    assert [(call["index"], call["function"]["arguments"]) for call in calls] == [
        (0, ""),
        (0, '{"city":'),
        (0, '"Bern"}'),
        (1, ""),
        (1, "{}"),
    ]
    assert [(call["id"], call["type"], call["function"]["name"]) for call in calls if "id" in call] == [
        ("a", "function", "weather"),
        ("b", "function", "now"),
    ]
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_calls_of_a_whole_completion_have_their_arguments() -> None:
    reads: list[list[Event]] = [
        [Start()],
        [ToolCall("a", "f"), ToolInput('{"x":')],
        [ToolInput("1}"), ToolCall("b", "g"), END],
    ]
    message = json.loads(encode_whole(reads, "m", ReplyFormat(), "r")[0])["choices"][0]["message"]
    assert message["content"] is None
    assert [(call["id"], call["function"]) for call in message["tool_calls"]] == [
        ("a", {"name": "f", "arguments": '{"x":1}'}),
        ("b", {"name": "g", "arguments": "{}"}),
    ]


# On the wire


def test_a_call_arrives_before_its_last_argument(service: Rill, upstream: Upstream) -> None:
    begun = wire.start() + wire.block_start(0, "tool_use", name="weather") + argument('{"city":')
    ended = argument('"Bern"}') + wire.block_stop() + wire.stop("tool_use")
    upstream.script(wire.head(), wire.send(begun), wire.gate("rest"), wire.send(ended), wire.end())
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        chunks = client.chat.completions.create(
            model="claude-sonnet-5-5",
            messages=[HI],
            tools=[TOOL],
            stream=True,  # type: ignore[list-item]
        )
        _, call, first = (next(chunks).choices[0].delta for _ in range(3))
        assert call.tool_calls[0].function.name == "weather"
        assert first.tool_calls[0].function.arguments == '{"city":'
        upstream.open("rest")
        second, last = list(chunks)
    assert second.choices[0].delta.tool_calls[0].function.arguments == '"Bern"}'
    assert last.choices[0].finish_reason == "tool_calls"


def argument(piece: str) -> bytes:
    return wire.delta(0, "input_json_delta", partial_json=piece)


class Place(BaseModel):
    """What the offline model is asked for."""

    name: str
    altitude: int
    aliases: list[str]
    within: "Place | None"


def test_the_offline_model_completes_a_tool_loop_and_structured_output(share_rill: StartRill) -> None:
    rill = share_rill(RILL_OFFLINE="1")
    question: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Weather? rate=0"}]}
    with openai.OpenAI(base_url=f"{rill.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(**question, tools=[TOOL]).choices[0].message
        assert json.loads(answer.tool_calls[0].function.arguments) == {"city": "city"}
        result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "sunny, rate=0"}
        question["messages"] += [answer, result]
        last = client.chat.completions.create(**question, tools=[TOOL]).choices[0]
        assert (last.finish_reason, "sunny" in last.message.content) == ("stop", True)
        question["messages"].append({"role": "user", "content": "A reminder of the agent's. rate=0"})
        assert client.chat.completions.create(**question, tools=[TOOL]).choices[0].finish_reason == "stop"
        place = client.chat.completions.parse(**question, response_format=Place).choices[0].message.parsed
        assert place.name == "name"


def test_a_schema_that_is_not_an_object_is_kept() -> None:
    assert fit_schema(True) is True
    assert fit_schema({"type": "array", "minItems": 1})["minItems"] == 1
    assert fit_schema({"format": ["date"]}) == {"description": "{format: ['date']}"}


def test_the_decoder_yields_calls_and_their_arguments() -> None:
    decoder = Decoder()
    begun = wire.block_start(0, "tool_use", id="a", name="f") + argument("") + argument("{}")
    assert decoder.feed(begun) == [ToolCall("a", "f"), ToolInput("{}")]
    searched = wire.block_start(1, "server_tool_use", id="b", name="web_search") + argument("{}")
    assert decoder.feed(searched) == [Heartbeat(working=True)]
