"""Plain text: every form of prompt is read exactly, and every rejection names its field."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from rill.dialects import TEXT
from rill.dialects.text import TextEncoder, check_beginning, read_fields, read_form, read_json, read_text
from rill.events import End, Event, Heartbeat, Start, Text
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

PROMPT = 'Was heißt "溪"? 🌊 a&b=c+d\r\n\tline two \u2028 \x00 end'
prompts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def make_settings(**env: str) -> Settings:
    return Settings(**{"ANTHROPIC_API_KEY": "sk-test", "RILL_ALLOWED_MODELS": "small,large", **env})  # type: ignore[arg-type]


SETTINGS = make_settings()


def one_message(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


# Requests


@given(text=prompts)
@examples(30)
def test_a_prompt_arrives_unchanged_in_every_form(text: str) -> None:
    asked = [
        read_fields({"q": text}, SETTINGS),
        read_fields({"prompt": text}, SETTINGS),
        read_text(text.encode(), {}, SETTINGS),
        read_json(json.dumps({"q": text}).encode(), SETTINGS),
        read_json(json.dumps({"prompt": text}, ensure_ascii=False).encode(), SETTINGS),
        read_json(json.dumps({"messages": [{"role": "user", "content": text}]}).encode(), SETTINGS),
        read_json(
            json.dumps({"messages": [{"role": "user", "parts": [{"type": "text", "text": text}]}]}).encode(), SETTINGS
        ),
    ]
    assert [prompt.messages for prompt in asked] == [one_message(text)] * len(asked)


def test_without_options_the_settings_apply() -> None:
    prompt = read_fields({"q": PROMPT}, make_settings(RILL_DEFAULT_MODEL="small", RILL_DEFAULT_MAX_TOKENS="77"))
    assert prompt == Prompt("small", 77, one_message(PROMPT), {}, default_model=True)
    assert read_fields({"q": PROMPT}, make_settings(RILL_SYSTEM_PROMPT="Be brief.")).options == {"system": "Be brief."}


def test_structured_output_is_that_of_the_messages_api() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    prompt = read_fields({"q": "hi", "output_config": {"format": {"type": "json_schema", "schema": schema}}}, SETTINGS)
    closed = {**schema, "additionalProperties": False}
    assert prompt.options == {"output_config": {"format": {"type": "json_schema", "schema": closed}}}
    for wrong in ({"effort": "high"}, {"format": {"type": "json_object", "schema": {}}}, "json"):
        with pytest.raises(Problem, match="output_config"):
            read_fields({"q": "hi", "output_config": wrong}, SETTINGS)


@pytest.mark.parametrize("form", ["fields", "json"])
def test_options_are_read_in_every_form(form: str) -> None:
    asked: dict[str, Any] = {"q": PROMPT, "system": "溪", "model": "large", "max_tokens": 5, "temperature": 0.5}
    if form == "fields":
        prompt = read_fields(
            {name: str(value) for name, value in asked.items()}, make_settings(RILL_SYSTEM_PROMPT="other")
        )
    else:
        prompt = read_json(json.dumps(asked).encode(), make_settings(RILL_SYSTEM_PROMPT="other"))
    assert prompt == Prompt("large", 5, one_message(PROMPT), {"system": "溪", "temperature": 0.5})


def test_a_plain_body_takes_its_options_from_the_query() -> None:
    prompt = read_text(PROMPT.encode(), {"model": "large", "q": "not this", "max_tokens": "9"}, SETTINGS)
    assert (prompt.model, prompt.max_tokens, prompt.messages) == ("large", 9, one_message(PROMPT))


@pytest.mark.parametrize(
    ("fallback", "allowed"), [(None, True), (True, True), ("true", True), (False, False), ("false", False)]
)
def test_a_request_may_disable_fallbacks(fallback: bool | str | None, allowed: bool) -> None:
    assert read_fields({"q": PROMPT, "fallback": fallback}, SETTINGS).allows_fallback is allowed


def test_unknown_fields_are_ignored() -> None:
    body = {"q": PROMPT, "stream": True, "id": "x", "trigger": "submit-message", "messageId": None}
    assert read_json(json.dumps(body).encode(), SETTINGS) == read_fields({"q": PROMPT}, SETTINGS)


@pytest.mark.parametrize("temperature", [0, 1, 0.25, "0.7"])
def test_a_temperature_within_its_range_is_forwarded(temperature: float | str) -> None:
    assert read_fields({"q": PROMPT, "temperature": temperature}, SETTINGS).options == {
        "temperature": float(temperature)
    }


# Conversations


def test_a_form_has_a_field_for_the_prompt() -> None:
    assert read_form({"q": "hi", "max_tokens": "5"}, SETTINGS).max_tokens == 5
    with pytest.raises(Problem, match="no field q, message, prompt or messages"):
        read_form({"what is a rill?": ""}, SETTINGS)


def prompt_of(*messages: dict[str, Any], **fields: Any) -> Prompt:
    return read_json(json.dumps({"messages": messages, **fields}).encode(), SETTINGS)


def test_a_conversation_in_the_messages_apis_shape_is_forwarded_unchanged() -> None:
    blocks = [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
    ]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": blocks},
    ]
    assert prompt_of(*messages).messages == messages


def test_the_ai_sdks_parts_become_their_text() -> None:
    parts = [
        {"type": "step-start"},
        {"type": "text", "text": "a"},
        {"type": "reasoning", "text": "no"},
        {"type": "text", "text": "b"},
    ]
    prompt = prompt_of(
        {"id": "1", "role": "user", "parts": parts}, {"role": "assistant", "parts": [{"type": "text", "text": "c"}]}
    )
    assert prompt.messages == [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]


def test_system_messages_are_appended_to_the_given_system_prompt() -> None:
    system, second, user = (
        {"role": role, "content": text} for role, text in [("system", "A"), ("system", "B"), ("user", "C")]
    )
    assert prompt_of(system, user, second).options == {"system": "A\n\nB"}
    assert prompt_of(system, user, second).messages == [user]
    assert prompt_of(system, user, system=PROMPT).options == {"system": f"{PROMPT}\n\nA"}


def test_a_system_message_of_blocks_is_forwarded() -> None:
    blocks = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    system = prompt_of({"role": "system", "content": blocks}, {"role": "user", "content": "Hi"}).options["system"]
    assert "Be " in json.dumps(system)
    assert "brief." in json.dumps(system)


# Rejections

REJECTIONS: list[tuple[Any, list[str]]] = [
    ({}, ["q", "prompt", "messages"]),
    ({"system": "only"}, ["q", "prompt", "messages"]),
    ({"q": ""}, ["q:"]),
    ({"q": " \n\t"}, ["q:"]),
    ({"prompt": ""}, ["prompt:"]),
    ({"q": "a", "prompt": "b"}, ["q and prompt"]),
    ({"q": "a", "messages": [{"role": "user", "content": "b"}]}, ["q and messages"]),
    ({"q": 5}, ["q:", "string"]),
    ({"q": ["a"]}, ["q:", "string"]),
    ({"messages": []}, ["messages:", "one"]),
    ({"messages": "hello"}, ["messages:", "list"]),
    ({"messages": ["hello"]}, ["messages.0:"]),
    ({"messages": [{"content": "x"}]}, ["messages.0.role:"]),
    ({"messages": [{"role": "robot", "content": "x"}]}, ["messages.0.role:", "user", "assistant"]),
    ({"messages": [{"role": "user", "content": 7}]}, ["messages.0.content"]),
    ({"messages": [{"role": "user", "parts": "x"}]}, ["messages.0.parts:"]),
    ({"messages": [{"role": "user"}]}, ["messages:", "content"]),
    ({"messages": [{"role": "user", "content": ""}]}, ["messages:", "content"]),
    ({"messages": [{"role": "system", "content": "only"}]}, ["messages:", "one"]),
    ({"q": "a", "system": 5}, ["system:", "string"]),
    ({"q": "a", "model": ""}, ["model:", "1"]),
    ({"q": "a", "model": 5}, ["model:", "string"]),
    ({"q": "a", "max_tokens": 0}, ["max_tokens:", "1"]),
    ({"q": "a", "max_tokens": -5}, ["max_tokens:", "1"]),
    ({"q": "a", "max_tokens": 64001}, ["max_tokens:", "1", "64000"]),
    ({"q": "a", "max_tokens": 1.5}, ["max_tokens:", "integer"]),
    ({"q": "a", "max_tokens": "many"}, ["max_tokens:", "integer"]),
    ({"q": "a", "max_tokens": 10**400}, ["max_tokens:"]),
    ({"q": "a", "temperature": -0.1}, ["temperature:", "0"]),
    ({"q": "a", "temperature": 1.1}, ["temperature:", "1"]),
    ({"q": "a", "fallback": "no"}, ["fallback:", "true or false"]),
    ({"q": "a", "fallback": 0}, ["fallback:", "true or false"]),
    ({"q": "a", "temperature": "hot"}, ["temperature:", "number"]),
    ({"q": "a", "temperature": "nan"}, ["temperature:"]),
    ({"q": "a", "temperature": "inf"}, ["temperature:"]),
    ([], ["body"]),
    ("text", ["body"]),
    (None, ["body"]),
]


@pytest.mark.parametrize(("body", "named"), REJECTIONS, ids=lambda value: json.dumps(value)[:40])
def test_every_rejection_names_its_field_and_its_range(body: Any, named: list[str]) -> None:
    with pytest.raises(Problem) as rejected:
        read_json(json.dumps(body).encode(), SETTINGS)
    assert rejected.value.status == 400
    assert [word for word in named if word not in rejected.value.detail] == []
    assert "\n" not in rejected.value.detail


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "q"),
        ({"q": ""}, "q:"),
        ({"q": None}, "prompt"),
        ({"q": "a", "prompt": "b"}, "q and prompt"),
        ({"q": "a", "max_tokens": "0"}, "max_tokens:"),
        ({"q": "a", "max_tokens": "64001"}, "from 1 to 64000"),
        ({"q": "a", "max_tokens": "1e3"}, "max_tokens:"),
        ({"q": "a", "max_tokens": "9" * 5000}, "max_tokens:"),
        ({"q": "a", "temperature": "1.01"}, "temperature:"),
        ({"q": "a", "temperature": ""}, "temperature:"),
        ({"q": "a", "model": ""}, "model:"),
    ],
)
def test_a_query_or_form_is_rejected_like_json(fields: dict[str, str | None], named: str) -> None:
    with pytest.raises(Problem) as rejected:
        read_fields(fields, SETTINGS)
    assert rejected.value.status == 400
    assert named in rejected.value.detail


@pytest.mark.parametrize("body", [b"", b"{", b"q=hello", b'{"q": "a",}', b"\xff\xfe", b'{"q": "\xe9"}', b"[" * 10_000])
def test_invalid_json_is_distinguished_from_an_invalid_field(body: bytes) -> None:
    with pytest.raises(Problem) as rejected:
        read_json(body, SETTINGS)
    assert rejected.value.status == 400
    assert "JSON" in rejected.value.detail


def test_a_lone_surrogate_in_a_request_is_rejected() -> None:
    with pytest.raises(Problem) as rejected:
        read_json(b'{"q": "\\ud83d"}', SETTINGS)
    assert rejected.value.status == 400


@pytest.mark.parametrize("body", [b"", b"  \n", b"\xff\xfe", "溪".encode()[:2]])
def test_a_plain_body_that_is_empty_or_not_utf8_is_rejected(body: bytes) -> None:
    with pytest.raises(Problem) as rejected:
        read_text(body, {}, SETTINGS)
    assert rejected.value.status == 400


def test_a_model_that_is_not_allowed_is_forbidden_and_the_allowed_ones_are_named() -> None:
    with pytest.raises(Problem) as rejected:
        read_fields({"q": "a", "model": "huge"}, SETTINGS)
    assert rejected.value.status == 403
    assert "model" in rejected.value.detail
    assert "small" in rejected.value.detail
    assert "large" in rejected.value.detail


def test_no_rejection_repeats_the_prompt() -> None:
    for body in ({"q": "private", "max_tokens": "private"}, {"messages": ["private"]}, {"q": ["private"]}):
        with pytest.raises(Problem) as rejected:
            read_json(json.dumps(body).encode(), SETTINGS)
        assert "private" not in rejected.value.detail


NAMES = ["q", "prompt", "messages", "role", "content", "parts", "type", "text", "system", "model", "max_tokens"]
json_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=10,
)


@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@examples(75)
def test_no_body_raises_anything_but_a_problem(body: bytes) -> None:
    with suppress(Problem):
        prompt = read_json(body, SETTINGS)
        assert 1 <= prompt.max_tokens <= SETTINGS.max_tokens
        json.dumps([prompt.messages, prompt.options], ensure_ascii=False).encode()


# Answers


@given(texts=st.lists(prompts, max_size=8))
@examples(30)
def test_the_answer_is_its_text_and_nothing_else(texts: list[str]) -> None:
    encoder = TextEncoder("m", ReplyFormat(), "r")
    events: list[Event] = [Start(), Heartbeat(False), *map(Text, texts), Heartbeat(True), End("end_turn", {})]
    assert b"".join(map(encoder.encode, events)) == "".join(texts).encode()


def test_a_failure_adds_nothing_to_the_text() -> None:
    assert TextEncoder("m", ReplyFormat(), "r").encode_error(Problem("upstream_error")) is None


@pytest.mark.parametrize("explanation", ["Not that.", None])
def test_a_refusal_without_text_is_a_problem_with_its_explanation(explanation: str | None) -> None:
    with pytest.raises(Problem) as rejected:
        check_beginning([Start(), End("refusal", {}, explanation)])
    assert rejected.value.status == 422
    assert rejected.value.detail == explanation or (explanation is None and "refused" in rejected.value.detail)


@pytest.mark.parametrize("last", [Text("a"), End("end_turn", {}), End(None, {}), Heartbeat(False), Start()])
def test_any_other_start_is_an_answer(last: Event) -> None:
    check_beginning([Start(), last])


def test_plain_text_waits_for_its_first_text_and_declares_utf8() -> None:
    assert TEXT.wants_text
    assert TEXT.media_type == "text/plain; charset=utf-8"
    assert isinstance(TEXT.open_encoder("m", ReplyFormat(), "r"), TextEncoder)
