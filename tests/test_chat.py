"""POST /api/chat: the tools of the AI SDK's `useChat`, as requests have them and as the UI message stream does."""

import json
from typing import Any

import pytest
from test_ui_messages import chunks_of

from rill.dialects.chat import read_chat
from rill.dialects.ui_messages import UIMessageEncoder
from rill.events import End, Event, Start, Text, ToolCall, ToolInput
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

TOOL = {"name": "weather", "description": "Report.", "input_schema": {"type": "object"}}
USER = {"role": "user", "parts": [{"type": "text", "text": "Weather?"}]}
CALL = {"type": "tool-weather", "toolCallId": "c1", "state": "output-available", "input": {"city": "Bern"}}
CALLED = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1"}
ID = "0123456789abcdef"


def read(**fields: Any) -> tuple[Prompt, ReplyFormat]:
    settings = Settings(RILL_OFFLINE="1", RILL_RESUME_SECONDS="60")
    return read_chat(json.dumps({"messages": [USER], **fields}).encode(), settings, {})


def answer(*parts: Any) -> dict[str, Any]:
    return {"id": "a1", "role": "assistant", "parts": list(parts)}


def conversation(*parts: Any) -> list[Any]:
    """Return the messages of the prompt behind the question, for an answer with these parts."""
    prompt, _ = read(messages=[USER, answer(*parts)], tools=[TOOL])
    return list(prompt.messages[1:])


def test_tools_are_those_of_the_messages_api() -> None:
    prompt, reply = read(tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}, system="Be brief.")
    choice = {"type": "tool", "name": "weather"}
    assert prompt.options == {"system": "Be brief.", "tools": [TOOL], "tool_choice": choice}
    assert reply == ReplyFormat()


@pytest.mark.parametrize(
    ("part", "content", "is_error"),
    [
        ({**CALL, "output": "sunny"}, "sunny", False),
        ({**CALL, "output": {"sky": "sunny"}}, '{"sky": "sunny"}', False),
        ({**CALL, "type": "dynamic-tool", "toolName": "weather", "output": "sunny"}, "sunny", False),
        ({**CALL, "state": "output-error", "errorText": "no city"}, "no city", True),
    ],
)
def test_a_call_and_its_result_are_two_messages(part: dict[str, Any], content: str, is_error: bool) -> None:
    call, result = conversation(part)
    assert call == {"role": "assistant", "content": [CALLED]}
    expected = {**RESULT, "content": content, **({"is_error": True} if is_error else {})}
    assert result == {"role": "user", "content": [expected]}


def test_each_step_of_an_answer_is_a_message() -> None:
    step = {"type": "step-start"}
    text = {"type": "text", "text": "I look."}
    said, result, last = conversation(step, text, {**CALL, "output": "sunny"}, step, {"type": "text", "text": "Sun."})
    assert said["content"] == [{"type": "text", "text": "I look."}, CALLED]
    assert result["content"] == [{**RESULT, "content": "sunny"}]
    assert last == {"role": "assistant", "content": [{"type": "text", "text": "Sun."}]}


def test_a_call_without_a_result_is_left_out() -> None:
    text = {"type": "text", "text": "I look."}
    waiting = {**CALL, "state": "input-available"}
    assert conversation(text, waiting, {"type": "reasoning", "text": "hm"}) == [
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}]}
    ]
    assert conversation(waiting) == []
    odd = {**CALL, "input": "{", "output": "sunny"}
    assert conversation(odd)[0]["content"][0]["input"] == {}


def test_an_answer_to_results_continues_the_message_of_the_page() -> None:
    _, reply = read(messages=[USER, answer({**CALL, "output": "sunny"})])
    start = UIMessageEncoder("m", reply, "r").encode(Start())
    assert chunks_of(start)[0] == {"type": "start", "messageId": "a1"}
    assert chunks_of(UIMessageEncoder("m", read()[1], "r").encode(Start()))[0]["messageId"] == "msg_r"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0."),
        ({"tools": {}}, "tools"),
        ({"tool_choice": {"type": "first"}}, "tool_choice.type"),
        ({"messages": [USER, answer({**CALL, "toolCallId": 7})]}, "messages.1.parts.0: toolCallId"),
        ({"messages": [USER, answer({**CALL, "output": ""}, "text")]}, "messages.1.parts.1: should be an object"),
        ({"messages": [USER, answer(CALL, {"type": "file", "url": "data:,x"})]}, "messages.1.parts.1.type"),
        ({"messages": [USER, answer({"type": "tool-invocation"})]}, "messages.1.parts.0.type: tools"),
        ({"messages": 7}, "messages"),
        ({"messages": []}, "messages"),
        ({"id": "short", "resume": 60}, "id: should have 16 to 128"),
        ({"resume": 60}, "id: should have"),
        ({"id": ID, "resume": 61}, "resume"),
    ],
)
def test_what_is_wrong_is_rejected_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Problem) as rejected:
        read(**fields)
    assert rejected.value.name == "bad_request"
    assert rejected.value.detail.startswith(named)


def test_a_chat_that_wants_to_be_resumed_has_its_id() -> None:
    assert read(id=ID, resume=60)[0].chat == ID
    assert read(id=ID)[0].chat == ""


def encode(*events: Event) -> list[Any]:
    encoder = UIMessageEncoder("m", ReplyFormat(), "r")
    return chunks_of(b"".join(map(encoder.encode, events)))[:-1]


def test_a_call_is_written_in_pieces_and_then_whole() -> None:
    call, second = ToolCall("c1", "weather"), ToolCall("c2", "clock")
    pieces = ToolInput('{"city":'), ToolInput('"Bern"}')
    chunks = encode(Text("I"), call, *pieces, second, Text("!"), End("tool_use", {}))
    assert [chunk["type"] for chunk in chunks] == [
        *("text-start", "text-delta", "text-end", "tool-input-start", "tool-input-delta", "tool-input-delta"),
        *("tool-input-available", "tool-input-start", "tool-input-available"),
        *("text-start", "text-delta", "text-end", "finish-step", "finish"),
    ]
    assert chunks[4] == {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"city":'}
    assert (chunks[6]["toolName"], chunks[6]["input"]) == ("weather", {"city": "Bern"})
    assert (chunks[8]["toolCallId"], chunks[8]["input"]) == ("c2", {})
    assert [chunk["id"] for chunk in chunks if "id" in chunk] == ["0", "0", "0", "1", "1", "1"]
    assert chunks[-1]["finishReason"] == "tool-calls"


def test_a_call_that_max_tokens_has_truncated_is_an_error_of_the_tool() -> None:
    error = encode(ToolCall("c1", "weather"), ToolInput('{"ci'), End("max_tokens", {}))[2]
    assert (error["type"], error["input"]) == ("tool-input-error", '{"ci')
