"""The offline model, served in its own process and called through the official SDK."""

import io
import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline_model import serve_offline_model

from examples import examples
from rill.offline import TOKEN, create_offline


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve_offline_model() as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=base_url, api_key="offline", max_retries=0) as client:
        yield client


def question(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": prompt}], **fields}


def post(url: str, request: dict[str, Any], **headers: str) -> bytes:
    asked = urllib.request.Request(url + "/v1/messages", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(asked) as response:
        return bytes(response.read())


def test_streamed_text_is_the_final_message_with_true_usage(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**question("Why is the sky blue?", system="Be brief.")) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == message.content[0].text
    assert "offline model" in text
    assert "Why is the sky blue?" in text
    assert (message.role, message.model) == ("assistant", "m")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens == 7  # two words of system, five of prompt
    assert message.usage.output_tokens == len(TOKEN.findall(text))
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert stream.response.headers["request-id"].startswith("req_offline_")


def test_events_come_in_the_order_of_the_spec(base_url: str) -> None:
    raw = post(base_url, question("tokens=250", stream=True)).decode()
    kinds = re.findall(r"^event: (\w+)$", raw, re.MULTILINE)
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    between = kinds[3:-3]
    assert between.count("content_block_delta") == 250
    assert between.count("ping") == len(between) - 250 == 2
    assert [json.loads(data)["type"] for data in re.findall(r"^data: (.*)$", raw, re.MULTILINE)] == kinds


def test_a_non_streamed_answer_has_the_same_text(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**question("Say it twice"))
    with client.messages.stream(**question("Say it twice")) as stream:
        streamed = stream.get_final_message()
    assert whole.content[0].text == streamed.content[0].text
    assert (whole.stop_reason, whole.usage) == (streamed.stop_reason, streamed.usage)


@pytest.mark.parametrize("stream", [True, False])
def test_the_same_request_gets_the_same_bytes(base_url: str, stream: bool) -> None:
    request = question("Again?", stream=stream)
    assert post(base_url, request) == post(base_url, request)
    assert post(base_url, request) != post(base_url, question("Again!", stream=stream))


@pytest.mark.parametrize(
    ("prompt", "limit", "length", "stop_reason"),
    [
        ("Hello", 7, 7, "max_tokens"),
        ("tokens=0", 10, 0, "end_turn"),
        ("tokens=1", 10, 1, "end_turn"),
        ("please, tokens=777 rate=0", 5000, 777, "end_turn"),
        ("tokens=10", 10, 10, "end_turn"),
        ("tokens=11", 10, 10, "max_tokens"),
        ("max_tokens=3 is not for me", 5, 5, "max_tokens"),
    ],
)
def test_an_answer_has_as_many_tokens_as_requested_and_allowed(
    client: anthropic.Anthropic, prompt: str, limit: int, length: int, stop_reason: str
) -> None:
    with client.messages.stream(**question(prompt, max_tokens=limit)) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) == len(TOKEN.findall("".join(pieces))) == message.usage.output_tokens == length
    assert message.stop_reason == stop_reason


@pytest.mark.parametrize(
    "prompt",
    [
        "你好,世界!今天天气怎么样?",
        "👩‍🚀👨‍👩‍👧 🇩🇪 ok",
        "a & b + c = {d}%\n\n\tend  ",
        "\u2028\x85\x0c\0|",
        "x" * 5000,
    ],
)
def test_a_prompt_is_echoed_whole(client: anthropic.Anthropic, prompt: str) -> None:
    with client.messages.stream(**question(prompt)) as stream:
        assert prompt in "".join(stream.text_stream)


def test_the_last_user_text_is_answered_whatever_surrounds_it(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    messages = [
        {"role": "user", "content": "the first"},
        {"role": "assistant", "content": [{"type": "text", "text": "indeed"}]},
        {
            "role": "user",
            "content": [image, {"type": "text", "text": "the"}, {"type": "text", "text": "last"}],
        },
        {"role": "assistant", "content": "Well,"},
    ]
    answer = client.messages.create(model="m", max_tokens=500, messages=messages)
    assert "\n\nthe\nlast\n\n" in answer.content[0].text
    assert answer.usage.input_tokens == 6


BAD_REQUESTS = [
    [],
    {},
    {"model": "m"},
    {"model": "m", "max_tokens": 1},
    question("x", max_tokens="1"),
    question("x", max_tokens=0),
    question("x", max_tokens=128001),
    question("x", max_tokens=1e300),
    question("x", messages={}),
    question("x", messages=[]),
    question("x", messages=["x"]),
    question("x", messages=[{"role": "user"}]),
    question(""),
    question([]),
    question({}),
    question(7),
    question(None),
    question(["x"]),
    question([{"type": None}]),
    question([{"type": "text"}]),
    question([{"type": "text", "text": 1}]),
    question("x", system=1),
]
NOT_JSON = [b"", b"{", b"\xff", b"[" * 100_000]
LONE_SURROGATE = json.dumps(question("\ud83d")).encode()


@pytest.mark.parametrize("body", [*(json.dumps(each).encode() for each in BAD_REQUESTS), *NOT_JSON, LONE_SURROGATE])
def test_a_bad_request_gets_400_and_a_short_message(body: bytes) -> None:
    status, answer = reply_to(body)
    assert status == "400 Bad Request"
    error = json.loads(answer)
    assert error["error"] == {"type": "invalid_request_error", "message": "The request is not valid."}
    assert error["request_id"].startswith("req_offline_")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "role"]), inner),
    max_leaves=5,
)
messages = st.fixed_dictionaries({"role": st.just("user") | json_values, "content": st.text(max_size=9) | json_values})
FIELDS = {
    "model": st.just("m") | json_values,
    "max_tokens": st.integers(1, 20) | json_values,
    "messages": st.lists(messages, max_size=2) | json_values,
    "system": st.just("s") | json_values,
    "stream": st.booleans() | json_values,
}


@given(request=st.fixed_dictionaries({}, optional=FIELDS) | json_values)
@examples(90)
def test_any_json_gets_an_answer_or_400(request: Any) -> None:
    status, answer = reply_to(json.dumps(request).encode())
    assert status in ("200 OK", "400 Bad Request")
    assert answer


def reply_to(body: bytes) -> tuple[str, bytes]:
    """Return the status and the body of the application's response, without a server."""
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/messages", "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO(body)
    statuses: list[str] = []
    answer = b"".join(create_offline(0)(environ, lambda status, _: statuses.append(status)))
    return statuses[0], answer


def test_each_token_is_sent_in_its_own_chunk(base_url: str) -> None:
    port, body = int(base_url.rpartition(":")[2]), json.dumps(question("tokens=40", stream=True))
    head = f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        raw = connection.makefile("rb").read()
    chunks = [chunk for chunk in raw.split(b"\r\n") if chunk.startswith(b"event: content_block_delta")]
    assert len(chunks) == 40
    assert all(chunk.count(b"event: ") == 1 for chunk in chunks)


def test_tokens_arrive_at_the_rate_that_the_prompt_requests(client: anthropic.Anthropic) -> None:
    begun = time.monotonic()
    with client.messages.stream(**question("tokens=50 rate=100")) as stream:
        arrivals = [time.monotonic() - begun for _ in stream.text_stream]
    assert all(arrival >= count / 100 for count, arrival in enumerate(arrivals, 1))
    assert arrivals[-1] < 2.0


def test_closing_an_answer_ends_it_without_waiting() -> None:
    body = json.dumps(question("a very slow rate=0.001", stream=True)).encode()
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/messages", "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO(body + b"the next request")
    begun, statuses = time.monotonic(), []
    answer = create_offline()(environ, lambda status, _: statuses.append(status))
    assert next(answer).startswith(b"event: message_start")
    answer.close()
    assert list(answer) == []
    assert statuses == ["200 OK"]
    assert time.monotonic() - begun < 5
