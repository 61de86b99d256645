"""OpenAI's dialect: supported fields are translated, others are rejected by name, and chunks contain the text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from rill.dialects import OPENAI
from rill.dialects.openai import read_completion
from rill.dialects.openai_encoder import OpenAIEncoder, encode_problem, encode_whole, finish_reason_of, usage_of
from rill.events import End, Event, Heartbeat, Start, Text
from rill.problems import KINDS, Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

HI = {"role": "user", "content": "hi"}
PNG = "data:image/png;base64,iVBORw0KGgo="
END = End("end_turn", {"input_tokens": 3, "output_tokens": 5})
texts = st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8)
line_ends = st.lists(st.text(alphabet='\r\n\u2028\x85\x00\x1f"\\', min_size=1, max_size=5), max_size=8)


def make_settings(**env: str) -> Settings:
    return Settings(**{"ANTHROPIC_API_KEY": "sk-test", "RILL_ALLOWED_MODELS": "small,large", **env})  # type: ignore[arg-type]


SETTINGS = make_settings()


def read(settings: Settings = SETTINGS, **fields: Any) -> Prompt:
    return read_completion(json.dumps({"model": "small", "messages": [HI], **fields}).encode(), settings)[0]


def image(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def rejection_of(**fields: Any) -> str:
    """Return the message with which a request is rejected."""
    with pytest.raises(Problem) as rejected:
        read(**fields)
    assert rejected.value.name == "bad_request"
    return rejected.value.detail


# Requests


def test_missing_fields_have_the_defaults_of_the_settings() -> None:
    prompt, reply = read_completion(
        json.dumps({"messages": [HI]}).encode(), make_settings(RILL_DEFAULT_MAX_TOKENS="77")
    )
    assert prompt == Prompt("small", 77, [HI], {}, default_model=True)
    assert not reply.streamed


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"temperature": 1.3}, {"temperature": 1}),
        ({"temperature": 2}, {"temperature": 1}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop": []}, {}),
        ({"stop": None, "temperature": None, "top_p": None, "n": None, "stream_options": None}, {}),
    ],
)
def test_options_are_translated_into_those_of_the_messages_api(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert read(**fields).options == options


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": None}, 4096),
    ],
)
def test_max_completion_tokens_is_the_newer_name_of_max_tokens(fields: dict[str, Any], max_tokens: int) -> None:
    assert read(**fields).max_tokens == max_tokens


@pytest.mark.parametrize(
    ("fields", "streamed", "include_usage"),
    [
        ({}, False, False),
        ({"stream": False}, False, False),
        ({"stream": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}, True, True),
    ],
)
def test_the_reply_format_is_the_requested_one(fields: dict[str, Any], streamed: bool, include_usage: bool) -> None:
    body = json.dumps({"model": "small", "messages": [HI], **fields}).encode()
    assert read_completion(body, SETTINGS)[1] == ReplyFormat(streamed, include_usage)


def test_system_and_developer_messages_become_the_system_prompt_in_their_order() -> None:
    messages = [
        {"role": "system", "content": "One."},
        HI,
        {"role": "developer", "content": [{"type": "text", "text": "Tw"}, {"type": "text", "text": "o."}]},
    ]
    prompt = read(make_settings(RILL_SYSTEM_PROMPT="not this"), messages=messages)
    assert (prompt.options["system"], prompt.messages) == ("One.\n\nTwo.", [HI])


def test_without_a_system_message_the_default_system_prompt_applies() -> None:
    assert read(make_settings(RILL_SYSTEM_PROMPT="Be brief.")).options == {"system": "Be brief."}


def test_a_system_prompt_that_is_cached_stays_in_blocks() -> None:
    cached = {"type": "text", "text": "Two.", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "system", "content": "One."}, {"role": "system", "content": [cached]}, HI]
    assert read(messages=messages).options["system"] == [{"type": "text", "text": "One."}, cached]


def test_an_assistants_message_without_content_is_its_refusal_or_omitted() -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "No."}
    messages = [HI, refusal, HI, {"role": "assistant", "content": None}, HI]
    assert read(messages=messages).messages == [HI, {"role": "assistant", "content": "No."}, HI, HI]
    assert rejection_of(messages=[{"role": "user", "content": None}]).startswith("messages.0.content: should be")


def test_a_conversation_of_system_messages_only_is_rejected() -> None:
    messages = [{"role": "system", "content": "Be brief."}]
    assert rejection_of(messages=messages) == "messages: should have at least one message of the role user."


def test_a_reasoning_effort_of_none_is_ignored() -> None:
    assert read(reasoning_effort="none").options == {}
    assert rejection_of(reasoning_effort="odd").startswith("reasoning_effort")


def test_an_unknown_field_is_rejected_by_its_name() -> None:
    assert rejection_of(of_tomorrow=1) == "of_tomorrow: not known here; leave it out."
    assert rejection_of(**{"<b>": 1}) == "a field: not known here; leave it out."
    assert read(of_tomorrow=None).messages == [HI]


def test_a_message_that_is_not_an_object_is_rejected() -> None:
    assert "messages.0" in rejection_of(messages=["hi"])


def test_consecutive_messages_of_one_role_are_not_merged() -> None:
    messages = [HI, {"role": "user", "content": "there"}, {"role": "assistant", "content": "Yes"}, HI, HI]
    assert read(messages=messages).messages == messages


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (PNG, {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}),
        ("data:image/svg+xml;base64,AAAA", {"type": "base64", "media_type": "image/svg+xml", "data": "AAAA"}),
        ("https://example.org/a.png?b=c", {"type": "url", "url": "https://example.org/a.png?b=c"}),
        ("http://example.org/a.png", {"type": "url", "url": "http://example.org/a.png"}),
    ],
)
def test_parts_become_blocks_in_their_order(url: str, source: dict[str, str]) -> None:
    parts = [{"type": "text", "text": "Look: "}, image(url), {"type": "text", "text": "!"}]
    (message,) = read(messages=[{"role": "user", "content": parts}]).messages
    assert message["content"] == [parts[0], {"type": "image", "source": source}, parts[2]]


@pytest.mark.parametrize(
    "url",
    ["", "a.png", "file:///etc/passwd", "ftp://x/a.png", "data:text/plain;base64,AAAA", "data:image/png,x", None, 7],
)
def test_an_image_url_of_another_scheme_is_rejected_with_the_accepted_ones(url: object) -> None:
    assert "data:image/" in rejection_of(messages=[{"role": "user", "content": [image(url)]}])


@pytest.mark.parametrize(
    ("fields", "instead"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "function"),
        ({"functions": [{"name": "f"}]}, "use tools"),
        ({"audio": {"voice": "x"}}, "ask for text"),
        ({"frequency_penalty": 0.1}, "leave it out"),
        ({"presence_penalty": -0.1}, "leave it out"),
        ({"logit_bias": {"5": 1}}, "leave it out"),
        ({"logprobs": True}, "leave it out"),
        ({"top_logprobs": 2}, "leave it out"),
        ({"seed": 4}, "leave it out"),
        ({"verbosity": "low"}, "prompt"),
        ({"web_search_options": {"search_context_size": "low"}}, "/v1/messages"),
        ({"response_format": {"type": "grammar"}}, "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
    ],
)
def test_an_unsupported_option_is_rejected_with_an_alternative(fields: dict[str, Any], instead: str) -> None:
    message = rejection_of(**fields)
    assert message.startswith(next(iter(fields)))
    assert instead in message


@pytest.mark.parametrize("message", [{"role": "function"}, {"role": "assistant", "function_call": {"name": "f"}}])
def test_a_call_of_the_older_api_is_rejected_with_an_alternative(message: dict[str, Any]) -> None:
    assert "use tools" in rejection_of(messages=[HI, message])


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "functions": None, "tool_choice": "none"},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "n": 1, "safety_identifier": "s"},
        {"parallel_tool_calls": True, "prompt_cache_key": "k"},
    ],
)
def test_options_that_do_not_change_the_answer_are_ignored(fields: dict[str, Any]) -> None:
    assert read(**fields) == read()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n:"),
        ({"n": 0}, "n:"),
        ({"messages": []}, "messages:"),
        ({"messages": "hi"}, "messages:"),
        ({"messages": None}, "messages:"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [HI, {"role": "narrator", "content": "x"}]}, "messages.1.role"),
        ({"max_tokens": 0}, "max_tokens:"),
        ({"max_tokens": 64001}, "from 1 to 64000"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens:"),
        ({"temperature": 2.1}, "temperature:"),
        ({"temperature": -0.1}, "temperature:"),
        ({"top_p": 1.1}, "top_p:"),
        ({"stop": 7}, "stop"),
        ({"stream": "maybe"}, "stream:"),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, Any], named: str) -> None:
    assert named in rejection_of(**fields)


@pytest.mark.parametrize("type", ["input_audio", "file", "video_url"])
def test_a_part_that_is_neither_text_nor_image_is_rejected_by_its_type(type: str) -> None:
    message = rejection_of(
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": type, type: {}}]}]
    )
    assert "image_url" in message
    assert "text" in message


def test_an_image_in_a_system_message_is_rejected_and_not_ignored() -> None:
    messages = [{"role": "system", "content": [{"type": "text", "text": "Like this:"}, image(PNG)]}, HI]
    assert "system" in rejection_of(messages=messages)


def test_a_request_for_audio_is_rejected_and_not_answered_with_text() -> None:
    assert "modalities" in rejection_of(modalities=["audio"])


def test_another_model_is_forbidden_and_the_allowed_ones_are_named() -> None:
    with pytest.raises(Problem, match="small, large") as rejected:
        read(model="gpt-5")
    assert rejected.value.name == "forbidden"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"hi"', b"\xff"])
def test_a_body_that_is_not_a_json_object_is_rejected(body: bytes) -> None:
    with pytest.raises(Problem, match="JSON"):
        read_completion(body, SETTINGS)


# Answers


def write(*events: Event, include_usage: bool = False, model: str = "m") -> bytes:
    encoder = OpenAIEncoder(model, ReplyFormat(include_usage=include_usage), "r")
    return b"".join(map(encoder.encode, events))


def parse(stream: bytes) -> list[Any]:
    """Return the data of each event: the chunks, and the end mark as bytes."""
    *events, rest = stream.split(b"\n\n")
    assert rest == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [event[6:] if event == b"data: [DONE]" else json.loads(event[6:]) for event in events]


@given(pieces=texts | line_ends)
@examples(75)
def test_each_text_event_becomes_one_chunk_with_the_same_text(pieces: list[str]) -> None:
    chunks = parse(write(*map(Text, pieces)))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": piece} for piece in pieces]


@pytest.mark.parametrize("model", ["m", '"\\u0000"', "\0", 'a"\0"b', "溪"])
def test_every_chunk_contains_the_name_of_the_model(model: str) -> None:
    (chunk,) = parse(write(Text("a"), model=model))
    assert (chunk["model"], chunk["choices"][0]["delta"]) == (model, {"content": "a"})


def test_the_role_comes_first_and_the_end_mark_last() -> None:
    role, text, stop, mark = parse(write(Start(), Heartbeat(True), Text("溪"), Heartbeat(False), END))
    assert role["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert text["choices"][0]["finish_reason"] is None
    assert (stop["choices"][0]["delta"], stop["choices"][0]["finish_reason"]) == ({}, "stop")
    assert mark == b"[DONE]"
    shared = [{name: chunk[name] for name in ("id", "created", "model", "object")} for chunk in (role, text, stop)]
    assert shared == [shared[0]] * 3
    assert (shared[0]["id"], shared[0]["object"]) == ("chatcmpl-r", "chat.completion.chunk")


def test_requested_usage_is_sent_between_the_finish_reason_and_the_end_mark() -> None:
    stop, usage, mark = parse(write(END, include_usage=True))
    assert stop["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], mark) == ([], b"[DONE]")
    assert usage["usage"] == usage_of(END)
    assert len(parse(write(END))) == 2


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
        ("of_tomorrow", "stop"),
        (None, "stop"),
    ],
)
def test_every_stop_reason_maps_to_a_finish_reason(stop_reason: str | None, finish_reason: str) -> None:
    assert finish_reason_of(End(stop_reason, {})) == finish_reason
    assert parse(write(End(stop_reason, {})))[0]["choices"][0]["finish_reason"] == finish_reason


@pytest.mark.parametrize(
    ("usage", "sent", "received"),
    [
        ({}, 0, 0),
        ({"input_tokens": 3, "output_tokens": 5}, 3, 5),
        ({"input_tokens": 3, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 100}, 113, 0),
        ({"input_tokens": None, "output_tokens": None, "service_tier": "standard"}, 0, 0),
    ],
)
def test_cached_input_counts_as_prompt_tokens(usage: dict[str, Any], sent: int, received: int) -> None:
    counted = usage_of(End("end_turn", usage))
    assert (counted["prompt_tokens"], counted["completion_tokens"]) == (sent, received)
    assert counted["total_tokens"] == sent + received
    assert counted["prompt_tokens_details"] == {"cached_tokens": usage.get("cache_read_input_tokens", 0)}


def test_tokens_of_thinking_are_reported_as_reasoning() -> None:
    counted = usage_of(End("end_turn", {"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 7}}))
    assert (counted["completion_tokens"], counted["completion_tokens_details"]) == (9, {"reasoning_tokens": 7})


def test_a_non_streamed_completion_has_the_joined_text_its_reason_and_usage() -> None:
    end = End("max_tokens", {"input_tokens": 3, "output_tokens": 5})
    reads: list[list[Event]] = [[Start(), Text("A ")], [Heartbeat(True)], [Text("溪"), end]]
    body, last = encode_whole(reads, "m", ReplyFormat(), "r")
    assert last is end
    completion = json.loads(body)
    message = {"role": "assistant", "content": "A 溪", "refusal": None}
    assert completion["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert (completion["object"], completion["id"], completion["model"]) == ("chat.completion", "chatcmpl-r", "m")
    assert completion["usage"] == usage_of(end)


def test_a_non_streamed_completion_that_is_truncated_raises() -> None:
    def truncate() -> Any:
        yield [Text("A ")]
        raise Problem("upstream_truncated")

    with pytest.raises(Problem, match="closed before"):
        encode_whole(truncate(), "m", ReplyFormat(), "r")


# Errors


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_problem_has_openais_error_shape(name: str) -> None:
    body = json.loads(encode_problem(Problem(name, 'a "word"\n溪')))
    error = {"message": 'a "word"\n溪', "type": KINDS[name].type, "param": None, "code": name}
    assert body == {"error": error}


def test_a_failure_is_an_error_event_without_an_end_mark() -> None:
    encoder = OpenAIEncoder("m", ReplyFormat(), "r")
    text, error = parse(encoder.encode(Text("A ")) + (encoder.encode_error(Problem("upstream_truncated")) or b""))
    assert text["choices"][0]["delta"] == {"content": "A "}
    assert error["error"]["code"] == "upstream_truncated"


def test_the_dialect_responds_at_the_upstreams_first_event() -> None:
    assert not OPENAI.wants_text
    OPENAI.check_beginning([Start(), End("refusal", {}, "Not that.")])  # its finish_reason reports it
    assert OPENAI.media_type == "text/event-stream; charset=utf-8"
