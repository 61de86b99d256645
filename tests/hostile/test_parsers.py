"""Any input of a parser returns a valid result or a short message about the error.

The pure parsers are called directly, those of the request's head and body over the wire.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import upstream as wire
from conversation import request_bytes
from hypothesis import given
from hypothesis import strategies as st
from raw import Received, assert_stays_healthy, exchange, play
from server import Rill
from upstream import Upstream

from examples import examples
from rill.admission.auth import Authentication
from rill.admission.rate_limit import RateLimit
from rill.credentials import ApiKey, digest_of
from rill.dialects.anthropic import read_messages
from rill.dialects.openai import read_completion
from rill.dialects.text import read_fields, read_json, read_text
from rill.dialects.validation import read_json_object
from rill.events import End, Event, Text
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import BadSettings, Settings, read_settings
from rill.upstream.sse_decoder import Decoder

many = examples(50)
some = examples(15)

OURS = Settings(ANTHROPIC_API_KEY="sk-test", RILL_ALLOWED_MODELS="small,large")  # type: ignore[arg-type]
MAX_MESSAGES = 10_000
# Every part of an input that a rejection could repeat begins with this.
CANARY = "canary-of-a-client"
MAX_DETAIL_LENGTH = 300


# Generated input

NAMES = (
    *("q", "message", "prompt", "messages", "system", "model", "max_tokens", "temperature", "role", "content", "parts"),
    *("type", "text", "image_url", "url", "top_p", "stop", "n", "stream", "stream_options", "include_usage", "tools"),
    *("max_completion_tokens", "response_format", "modalities", "tool_calls", "seed", "user", "assistant", "small"),
)
anything = st.text(alphabet=st.characters(exclude_categories=[]), max_size=20)
strings = (
    st.sampled_from([*NAMES, CANARY, CANARY * 20, "", " ", "\x00", "\ud800", "data:image/png;base64,AAAA"]) | anything
)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 1, 64000, 64001, 2**31, 2**53 + 1, 2**64, 10**400, 1e308, -0.0, 5e-324])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=12,
)
HI = [{"role": "user", "content": "hi"}]
VALID: list[dict[str, Any]] = [
    {"q": "hi", "system": "be brief", "model": "small", "max_tokens": 5, "temperature": 0.5},
    {"messages": [{"role": "system", "content": "x"}, *HI, {"role": "assistant", "parts": [{"type": "text"}]}, *HI]},
    {"model": "small", "max_tokens": 5, "messages": HI, "stream": True, "system": [{"type": "text", "text": "x"}]},
    {
        "model": "large",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}]}],
        "max_completion_tokens": 5,
        "temperature": 2,
        "stop": ["a", "b"],
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
    },
]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Draw a valid request in which up to three parts are replaced, added or removed."""
    request = json.loads(json.dumps(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(0, 3))):
        node = request
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
                break
            node = node[key]
        if not isinstance(node, dict | list) or not node:
            continue
        if draw(st.booleans()):
            node[key] = draw(values)
        elif isinstance(node, dict):
            node[draw(strings)] = node.pop(key) if draw(st.booleans()) else draw(values)
        else:
            node.append(node[key])
    return request


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a request with some bytes inserted or removed."""
    data = json.dumps(draw(mutated() | values), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 3))):
        begin, length = draw(st.integers(0, len(data))), draw(st.integers(0, 5))
        fragments = [
            b"1e999",
            b"NaN",
            b"-Infinity",
            b"9" * 4400,
            b"[" * 300,
            b'"\\ud800"',
            b"\xff",
            b"\x00",
            b'",',
            b"{}",
        ]
        data = data[:begin] + draw(st.sampled_from(fragments) | st.binary(max_size=5)) + data[begin + length :]
    return data


bodies = (
    spliced() | st.binary(max_size=200) | st.lists(values | st.just(CANARY), max_size=3).map(json.dumps).map(str.encode)
)


# Checks of the result


def check_rejection(problem: Problem) -> None:
    """Assert that the problem is a 4xx with a short message that repeats no input."""
    assert 400 <= problem.status < 500
    assert 0 < len(problem.detail) <= MAX_DETAIL_LENGTH
    assert CANARY not in problem.detail
    json.dumps(problem.as_json()).encode()


def check_prompt(prompt: Prompt) -> None:
    """Assert that the prompt can be sent, and is within its limits."""
    assert prompt.model in ("small", "large", OURS.default_model)
    assert type(prompt.max_tokens) is int
    assert 1 <= prompt.max_tokens <= OURS.max_tokens
    assert len(prompt.messages) <= MAX_MESSAGES
    assert not {"model", "messages", "max_tokens"} & set(prompt.options)
    json.dumps([*prompt.messages, prompt.options], ensure_ascii=False).encode()
    if "stream" not in prompt.options:
        assert all(message["role"] in ("user", "assistant") for message in prompt.messages)
        assert all(isinstance(message["content"], str | list) for message in prompt.messages)
        assert prompt.options.get("temperature", 0) is not None
        assert 0 <= prompt.options.get("temperature", 0) <= 1


READERS: dict[str, Callable[[bytes], Prompt]] = {
    "text": lambda body: read_json(body, OURS),
    "openai": lambda body: read_completion(body, OURS)[0],
    "anthropic": lambda body: read_messages(
        body, {"Anthropic-Beta": "x", "Authorization": CANARY}, {"beta": "y"}, OURS
    )[0],
}


def rejection_of(ask: Callable[[], object]) -> Problem | None:
    """Return the Problem that is raised, or None; any other exception fails the test."""
    try:
        ask()
    except Problem as problem:
        return problem
    return None


def read(reader: Callable[[], Prompt]) -> Prompt | None:
    """Return the prompt, or None for a valid rejection."""
    try:
        prompt = reader()
    except Problem as problem:
        check_rejection(problem)
        return None
    check_prompt(prompt)
    return prompt


@pytest.mark.parametrize("dialect", READERS)
@given(request=mutated())
@many
def test_a_nearly_valid_request_is_a_prompt_or_a_rejection(dialect: str, request: Any) -> None:
    body = json.dumps(request).encode()
    prompt = read(lambda: READERS[dialect](body))
    assert CANARY not in str(prompt and dict(prompt.headers))


@pytest.mark.parametrize("dialect", READERS)
@given(body=bodies)
@many
def test_any_bytes_are_a_prompt_or_a_rejection(dialect: str, body: bytes) -> None:
    read(lambda: READERS[dialect](body))


@given(body=bodies)
@many
def test_any_bytes_are_a_json_object_or_a_rejection(body: bytes) -> None:
    try:
        fields = read_json_object(body)
    except Problem as problem:
        check_rejection(problem)
    else:
        assert type(fields) is dict
        json.dumps(fields, ensure_ascii=False).encode()


encodable = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
fields = st.dictionaries(st.sampled_from(NAMES), encodable | numbers.map(str) | st.just(CANARY), max_size=5)


@given(fields_sent=fields)
@many
def test_any_fields_of_a_query_or_form_are_a_prompt_or_a_rejection(fields_sent: Mapping[str, str]) -> None:
    read(lambda: read_fields(fields_sent, OURS))


@given(body=st.binary(max_size=50) | encodable.map(str.encode), options=fields)
@many
def test_any_text_is_the_prompt_itself_or_a_rejection(body: bytes, options: Mapping[str, str]) -> None:
    prompt = read(lambda: read_text(body, options, OURS))
    assert prompt is None or prompt.messages == [{"role": "user", "content": body.decode()}]


# Authentication

secrets = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=",="), min_size=1)


@given(secret=secrets.map(str.strip).filter(bool), sent=st.none() | encodable | secrets)
@many
def test_only_the_exact_api_key_is_accepted(secret: str, sent: str | None) -> None:
    api_keys = Authentication({"alice": ApiKey((digest_of(secret),))})
    assert api_keys.client_of(secret, "127.0.0.1").name == "alice"
    problem = rejection_of(lambda: api_keys.client_of(sent, "127.0.0.1"))
    assert (problem is None) == (sent == secret)
    assert problem is None or problem.status == 401


@given(address=st.ip_addresses().map(str) | encodable)
@many
def test_any_address_has_a_valid_client_name(address: str) -> None:
    name = Authentication({}).client_of(None, address).name
    assert name
    assert name.isascii()
    assert len(name) <= 50
    RateLimit("1/minute").count(name)


# Settings

SETTINGS = [str(field.validation_alias) for field in Settings.model_fields.values()]
written = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ODD_VALUES = [
    *("1", "0", "true", "1_000", " 1", "+1", "1e3", "1e999", "nan", "-inf", "0x1", "9" * 5000, "\u0661", "1\n2"),
    *("60/minute", "1 per 2 hours", "5/second;1/day", "1/0 minute", "9" * 50 + "/day", "-1/year", "/", "1/1/1"),
    *("a=b", "a=b,a=c", "=", ",", "a,*", "sha256:", f"x=sha256:{'a' * 64}", f"{CANARY}={CANARY},{CANARY}", CANARY, "*"),
    *("http://x", "https://[::1]:9", "http://[x", "http://x:0", "http://u:p@x/y?z#f", "//x", "redis://", "redis:"),
]
settable = written | numbers.map(str) | st.sampled_from(ODD_VALUES)


@given(env=st.dictionaries(st.sampled_from(SETTINGS), settable, max_size=4))
@many
def test_any_environment_is_valid_settings_or_one_line_that_names_the_error(env: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in (*SETTINGS, "DYNO"):
            patch.delenv(name, raising=False)
        for name, value in {"ANTHROPIC_API_KEY": "sk-test", **env}.items():
            patch.setenv(name, value)
        try:
            found = read_settings()
        except BadSettings as bad:
            line = str(bad)
            assert any(name in line for name in (*env, "RILL_DEFAULT_MAX_TOKENS"))
            assert "\n" not in line
            assert CANARY not in line
            return
    RateLimit(found.rate_limit).count("alice")
    assert all(name and len(digest) == 32 for name, key in found.api_keys.items() for digest in key.digests)
    assert 1 <= found.default_max_tokens <= found.max_tokens
    assert found.check(None, None) == (found.default_model, found.default_max_tokens)
    assert found.start_timeout_seconds > 0
    assert found.shutdown_grace_seconds < float("inf")


# Responses of the upstream

RECORDED = sorted(wire.expected())
EVENTS = (
    b"\n",
    b"\r",
    b"\n\n",
    b"data:",
    b"data: {}\n\n",
    b"event: error\n",
    b"\xff",
    b"\x00",
    b"1e999",
    b"NaN",
    b"null",
)


@st.composite
def mutated_streams(draw: st.DrawFn) -> bytes:
    """Draw a recorded answer with some bytes inserted, removed or repeated."""
    data = wire.recorded(draw(st.sampled_from(RECORDED)))
    for _ in range(draw(st.integers(1, 4))):
        begin, length = draw(st.integers(0, len(data))), draw(st.integers(0, 50))
        piece = draw(st.sampled_from(EVENTS) | st.binary(max_size=5) | st.just(data[begin : begin + 200]))
        data = data[:begin] + piece + data[begin + length :]
    return data


def decode(data: bytes, size: int) -> tuple[str, list[Event], str | None]:
    """Return the text, the other events, and the name of the problem of an answer in reads of this size."""
    reader = Decoder()
    decoded: list[Event] = []
    for begin in range(0, len(data), size):
        decoded += reader.feed(data[begin : begin + size])
        if reader.ended or reader.problem:
            break
    else:
        decoded += reader.finish()
    assert reader.ended != (reader.problem is not None)
    json.dumps(reader.usage)
    text = "".join(event.text for event in decoded if isinstance(event, Text))
    text.encode()
    return text, [event for event in decoded if isinstance(event, End)], reader.problem and reader.problem.name


@given(data=mutated_streams(), size=st.integers(1, 3000))
@some
def test_a_corrupted_answer_ends_once_or_is_a_problem_for_reads_of_any_size(data: bytes, size: int) -> None:
    text, ends, problem = decode(data, size)
    assert (len(ends), problem is None) in ((1, True), (0, False))
    assert decode(data, len(data)) == (text, ends, problem)


@given(body=bodies | values.map(lambda usage: json.dumps({"type": "message", "usage": usage}).encode()))
@many
def test_a_non_streamed_message_is_an_end_or_a_problem(body: bytes) -> None:
    reader = Decoder()
    problem = rejection_of(lambda: json.dumps(reader.read_message(body).usage))
    assert (problem is None) == reader.ended
    assert problem is None or problem.status == 502


ADVICE = {
    "nothing": "",
    "negative": "-1",
    "a word": "soon",
    "nan": "nan",
    "inf": "inf",
    "an infinite number": "1e400",
    "a large number": "1e300",
    "5,000 digits": "9" * 5000,
    "two numbers": "5, 6",
    "hexadecimal": "0x10",
    "a past date": "Wed, 21 Oct 2015 07:28:00 GMT",
    "the first date": "Mon, 01 Jan 0001 00:00:00 -0000",
    "the last date": "Fri, 31 Dec 9999 23:59:59 -2300",
    "a year too large": "Mon, 01 Jan 99999999999 00:00:00 GMT",
    "a second too large": "Mon, 01 Jan 2020 0:0:99999999999999999999 GMT",
    "a zone too large": "Mon, 01 Jan 2020 00:00:00 +99999999999999999999",
    "an invalid date": "Thu, 99 Foo 2020 25:61:61 GMT",
    "a long word": "x" * 8000,
}


@pytest.mark.parametrize("name", ADVICE)
def test_retry_after_is_a_number_whatever_the_upstream_sends(rill: Rill, upstream: Upstream, name: str) -> None:
    headers = {"retry-after": ADVICE[name], "x-should-retry": "false"}
    upstream.script(wire.error(429, "rate_limit_error", "later", headers))
    with rill.ask("GET", "/stream?q=first") as asked:
        assert (asked.status, asked.headers["retry-after"].isdigit()) == (429, True)


COUNTS = {
    "a string": "many",
    "a list": [1],
    "an object": {"a": 1},
    "a fraction": 1.5,
    "negative": -5,
    "true": True,
    "null": None,
    "more than a float can represent": 10**400,
}
ASKED = {
    "text": ("/stream", {}),
    "sse": ("/stream", {"Accept": "text/event-stream"}),
    "openai": ("/v1/chat/completions", {"Content-Type": "application/json"}),
    "anthropic": ("/v1/messages", {"Content-Type": "application/json"}),
}
QUESTION = json.dumps(
    {"model": "small", "max_tokens": 5, "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
).encode()


@pytest.mark.parametrize("dialect", ASKED)
@pytest.mark.parametrize("name", COUNTS)
def test_an_invalid_token_count_of_the_upstream_breaks_no_answer(
    rill: Rill, upstream: Upstream, name: str, dialect: str
) -> None:
    usage = {"input_tokens": COUNTS[name], "output_tokens": COUNTS[name]}
    outcome = wire.event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) + wire.event("message_stop")
    opening = wire.event("message_start", message={"model": "m", "usage": usage})
    upstream.script(wire.head(), wire.send(opening, wire.text("ok"), outcome), wire.end())
    path, headers = ASKED[dialect]
    with rill.ask("POST", path, {"Content-Type": "application/json", **headers}, QUESTION) as asked:
        assert asked.status == 200
        assert b"ok" in asked.read_rest()
        assert asked.ended == "clean"


# The head and the body of a request, over the wire


@pytest.fixture(scope="module", autouse=True)
def healthy(service: Rill) -> Iterator[None]:
    """Assert that the server is healthy after all examples."""
    with assert_stays_healthy(service):
        yield


@pytest.fixture(autouse=True)
def answering(shared_upstream: Upstream) -> None:
    """Let the upstream answer every request of an example."""
    shared_upstream.always(play)


sent = st.binary(max_size=60).map(lambda value: value.translate(None, b"\r\n\0"))
schemes = st.sampled_from([b"Bearer ", b"bearer", b"Basic ", b"BASIC  ", b"Digest ", b"Basic Og==", b"Basic YTpi", b""])


def send_head(rill: Rill, head: bytes, body: bytes = b"") -> Received:
    """Send a request with these header lines, and a Content-Length if there is a body."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return exchange(rill.port, b"%b\r\nHost: x\r\n%b\r\n%b" % (head, length, body))


@given(name=st.sampled_from([b"Authorization", b"x-api-key", b"X-Request-Id", b"Accept"]), scheme=schemes, value=sent)
@some
def test_any_credentials_are_parsed_without_an_error(service: Rill, name: bytes, scheme: bytes, value: bytes) -> None:
    received = send_head(service, b"GET /stream?q=first HTTP/1.1\r\n%b: %b%b" % (name, scheme, value))
    assert received.statuses in ([400], [200, 200])


media_types = st.sampled_from(
    [
        *(b"text/plain", b"text/plain; charset=\xff", b"application/json", b"application/x+json", b"image/png", b""),
        *(b"application/x-www-form-urlencoded", b"multipart/form-data", b"multipart/form-data; boundary=x", b"/", b";"),
        *(b"multipart/form-data; boundary=\xff", b'multipart/form-data; boundary="', b"multipart/form-data; boundary="),
    ]
)
PARTS = (
    *(b"--x", b"--x--", b"\r\n", b"\n", b'Content-Disposition: form-data; name="q"', b'; filename="a"', b"hi", b"q=hi"),
    *(b"Content-Transfer-Encoding: base64", b"Content-Type: text/plain; charset=utf-7", b"Content-Length: -1", b"&q=%"),
    *(b"\xff", b"\x00", b'"', b"name*=utf-8''q", b"&max_tokens=1e9", b'{"q": "hi"}', b"=", b"&", b"%ED%A0%80", b"+"),
)
typed = st.lists(st.sampled_from(PARTS) | st.binary(max_size=5), max_size=12).map(b"".join) | bodies


@given(media_type=media_types | sent, body=typed)
@many
def test_any_body_of_any_type_is_answered_or_rejected(service: Rill, media_type: bytes, body: bytes) -> None:
    received = send_head(service, b"POST /stream HTTP/1.1\r\nContent-Type: " + media_type, body)
    assert received.statuses[0] in (200, 400, 413, 415)
    assert received.in_sync == (received.statuses != [400])


@given(
    query=st.binary(max_size=60).map(lambda value: bytes(33 + byte % 94 for byte in value)),
    path=st.sampled_from(["/stream", "/chat/stream", "/v1/messages"]),
)
@some
def test_any_url_is_answered_or_rejected(service: Rill, query: bytes, path: str) -> None:
    method = b"POST" if path.startswith("/v1") else b"GET"
    received = send_head(
        service, b"%b %b?%b HTTP/1.1" % (method, path.encode(), query), QUESTION if method == b"POST" else b""
    )
    assert (received.statuses[0] in (200, 400, 403, 404), received.in_sync) == (True, True)


@given(beta=sent, version=sent)
@some
def test_any_forwarded_header_reaches_the_upstream_or_is_rejected(service: Rill, beta: bytes, version: bytes) -> None:
    head = b"POST /v1/messages HTTP/1.1\r\nanthropic-beta: %b\r\nanthropic-version: %b" % (beta, version)
    received = send_head(service, head, QUESTION)
    assert received.statuses in ([200, 200], [400])


def test_the_server_still_answers_afterwards(rill: Rill) -> None:
    assert exchange(rill.port, request_bytes("GET", "/stream?q=first")).statuses == [200, 200]
