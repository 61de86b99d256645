"""OpenAI's Responses: text, images, functions and structured output, streamed and whole, through its own SDK."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import upstream as wire
from gated import FIRST, SECOND, TRUNCATIONS, gated_answer, truncated_answer
from pydantic import BaseModel
from server import Rill, StartRill
from upstream import Upstream

from rill.dialects.responses import read_response
from rill.dialects.responses_encoder import ResponsesEncoder, encode_whole
from rill.events import End, Event, Heartbeat, Start, Text, ToolCall, ToolInput
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

MODEL = "claude-sonnet-5-5"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "description": "Report.", "parameters": SCHEMA}
HI = {"role": "user", "content": "hi"}
NAMESPACE = {"type": "namespace", "name": "skies", "description": "The sky.", "tools": [TOOL]}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
END = End("tool_use", {"input_tokens": 3, "output_tokens": 5})
PNG = "data:image/png;base64,iVBORw0KGgo="


def read(**fields: Any) -> Prompt:
    settings = Settings(ANTHROPIC_API_KEY="sk-test")
    return read_response(json.dumps({"input": "hi", **fields}).encode(), settings)[0]


@pytest.fixture
def client(service: Rill) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


# Requests


def test_a_text_is_a_message_of_the_user() -> None:
    assert read() == Prompt(MODEL, 4096, [HI], {}, default_model=True)


def test_items_become_messages() -> None:
    parts = [{"type": "input_text", "text": "See:"}, {"type": "input_image", "image_url": PNG, "detail": "auto"}]
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]}
    items = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}, said, CALL, RESULT]
    prompt = read(input=[*items, {"type": "reasoning", "summary": []}, HI], instructions="Be kind.")
    assert prompt.options == {"system": "Be kind.\n\nBe brief."}
    first, answer, result, last = prompt.messages
    assert [block["type"] for block in first["content"]] == ["text", "image"]
    called = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}}
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, called]}
    assert result["content"] == [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]
    assert last == HI


def test_other_forms_of_items_are_read() -> None:
    system = {"role": "system", "content": [{"type": "input_text", "text": "Be brief."}]}
    prompt = read(
        input=[system, HI, {"role": "assistant", "content": "Yes."}], text={"format": {"type": "json_object"}}
    )
    assert prompt.options["system"].startswith("Be brief.\n\nAnswer with one JSON object")
    assert prompt.messages[1] == {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    assert read(input=[HI, {"role": "assistant", "content": ""}]).messages == [HI]


def test_options_are_translated() -> None:
    closed = {**SCHEMA, "additionalProperties": False}
    options = read(
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        temperature=2,
        text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}, "verbosity": "low"},
        reasoning={"effort": "high", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
    ).options
    assert options["tools"] == [{"name": "weather", "description": "Report.", "input_schema": SCHEMA}]
    assert (options["tool_choice"], options["temperature"]) == ({"type": "tool", "name": "weather"}, 1)
    assert options["output_config"] == {"effort": "high", "format": {"type": "json_schema", "schema": closed}}


def test_a_function_in_a_namespace_is_called_by_its_own_name() -> None:
    choice = {"type": "function", "namespace": "skies", "name": "weather"}
    fields = {"tools": [NAMESPACE, TOOL], "tool_choice": choice, "input": [HI, {**CALL, "namespace": "skies"}, RESULT]}
    settings = Settings(ANTHROPIC_API_KEY="sk-test")
    prompt, reply = read_response(json.dumps(fields).encode(), settings)
    flat, plain = prompt.options["tools"]
    assert flat == {"name": "skies__weather", "description": "The sky.\n\nReport.", "input_schema": SCHEMA}
    assert (plain["name"], prompt.options["tool_choice"]["name"]) == ("weather", "skies__weather")
    assert prompt.messages[1]["content"][0]["name"] == "skies__weather"
    events: list[Event] = [ToolCall("c1", "skies__weather"), ToolCall("c2", "weather"), END]
    inner, outer = json.loads(encode_whole([events], "m", reply, "r")[0])["output"]
    assert (inner["namespace"], inner["name"]) == ("skies", "weather")
    assert ("namespace" in outer, outer["name"]) == (False, "weather")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: not supported here"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"of_tomorrow": 1}, "of_tomorrow"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "narrator", "content": "x"}]}, "input.0.role"),
        ({"input": [HI, {"type": "item_reference", "id": "x"}]}, "input.1.type"),
        ({"input": [HI, {**CALL, "arguments": "{"}]}, "input.1.arguments"),
        ({"input": [HI, {**CALL, "call_id": None}]}, "input.1.call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type: should be function or namespace"),
        ({"tools": [{**NAMESPACE, "tools": [{"type": "custom"}]}]}, "tools.0.tools.0.type: should be function;"),
        ({"tools": [NAMESPACE, {**TOOL, "name": "skies__weather"}]}, "tools: two functions"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "reasoning"}]}, "input: should have"),
        ({"input": [{"role": "user", "content": 7}]}, "input.0.content"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}]}, "input.0.content"),
    ],
)
def test_what_is_not_supported_is_rejected_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Problem) as rejected:
        read(**fields)
    assert rejected.value.name == "bad_request"
    assert rejected.value.detail.startswith(named)


# Answers


def write(*events: Event) -> list[dict[str, Any]]:
    encoder = ResponsesEncoder("m", ReplyFormat(), "r")
    written = b"".join(map(encoder.encode, events)).decode().split("\n\n")[:-1]
    return [json.loads(each.partition("data: ")[2]) for each in written]


def test_a_call_without_arguments_gets_an_empty_object() -> None:
    events = write(
        Start(),
        ToolCall("c1", "now"),
        Heartbeat(True),
        Text("So"),
        Text("."),
        ToolCall("c2", "f"),
        ToolInput("{}"),
        END,
    )
    first, text, second = events[-1]["response"]["output"]
    assert [item["type"] for item in (first, text, second)] == ["function_call", "message", "function_call"]
    assert (first["arguments"], text["content"][0]["text"], second["arguments"]) == ("{}", "So.", "{}")
    assert events[-1]["response"]["usage"]["total_tokens"] == 8


def test_a_failed_response_reports_the_problem() -> None:
    failed = ResponsesEncoder("m", ReplyFormat(), "r").encode_error(Problem("upstream_truncated")).decode()
    assert failed.count("event: ") == 2
    assert '"status": "failed"' in failed
    assert '"code": "upstream_truncated"' in failed


def test_a_whole_response_is_the_last_event_of_a_stream() -> None:
    body, end = encode_whole([[Start(), Text("A")], [END]], "m", ReplyFormat(), "r")
    assert (end, json.loads(body)["status"]) == (END, "completed")
    assert json.loads(encode_whole([[Start()]], "m", ReplyFormat(), "r")[0])["status"] == "in_progress"


def test_the_first_text_comes_before_the_upstream_sends_the_second(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    with client.responses.stream(model=MODEL, input="hi") as stream:
        deltas = (event.delta for event in stream if event.type == "response.output_text.delta")
        assert next(deltas) == FIRST
        upstream.open("second")
        assert list(deltas) == [SECOND]
        response = stream.get_final_response()
    assert (response.output_text, response.status, response.usage.output_tokens) == (FIRST + SECOND, "completed", 7)


def test_the_events_are_numbered_and_end_their_items(client: openai.OpenAI, upstream: Upstream) -> None:
    begun = wire.block_start(1, "tool_use", id="toolu_1", name="weather")
    argued = wire.delta(1, "input_json_delta", partial_json='{"city":"Bern"}')
    called = wire.block_stop() + begun + argued + wire.block_stop(1) + wire.stop("tool_use")
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("Wait."), called), wire.end())
    events = list(client.responses.create(model=MODEL, input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    text, call = events[-1].response.output
    assert (text.content[0].text, call.call_id, call.arguments) == ("Wait.", "toolu_1", '{"city":"Bern"}')


def test_a_whole_response_that_reached_its_limit_is_incomplete(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND, stop_reason="max_tokens"))
    response = client.responses.create(model=MODEL, input="hi", max_output_tokens=2)
    assert (response.output_text, response.status) == (FIRST + SECOND, "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_a_truncated_stream_raises_after_the_text_before_it(
    how: str, client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    events = client.responses.create(model=MODEL, input="hi", stream=True)
    assert FIRST in [getattr(next(events), "delta", "") for _ in range(5)]
    upstream.open("truncate")
    assert next(events).type == "response.failed"
    with pytest.raises(openai.APIError, match="model's API"):
        next(events)


class Place(BaseModel):
    """What the offline model is asked for."""

    name: str
    aliases: list[str]


def test_the_offline_model_completes_a_tool_loop_and_structured_output(share_rill: StartRill) -> None:
    rill = share_rill(RILL_OFFLINE="1")
    with openai.OpenAI(base_url=f"{rill.url}/v1", api_key="any", max_retries=0) as client:
        (call,) = client.responses.create(model="m", input="hi rate=0", tools=[TOOL]).output
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "city"})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny rate=0"}
        items: Any = [{"role": "user", "content": "hi"}, call.model_dump(exclude_none=True), result]
        last = client.responses.create(model="m", input=items, tools=[TOOL])
        assert "sunny" in last.output_text
        place = client.responses.parse(model="m", input="hi rate=0", text_format=Place).output_parsed
        assert place == Place(name="name", aliases=["aliases"])
