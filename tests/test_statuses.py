"""Before the first byte: each problem has its status, a helpful message and the headers of every response."""

import json
import re
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import pytest
import upstream as wire
from conversation import Conversation, request_bytes
from server import Rill
from upstream import Step, Upstream

StartRill = Callable[..., Rill]

KEY = "sk-test-key"
ASK = "/stream?q=hi"
SSE = {"Accept": "text/event-stream"}
# The upstream's advice not to retry, so that a failure causes only one upstream request.
ONCE = {"x-should-retry": "false"}


class Response(NamedTuple):
    """A response, read completely."""

    status: int | None
    headers: dict[str, str]
    text: str


@pytest.fixture
def hasty(share_rill: StartRill) -> Rill:
    """Return a server that waits half a second for the start of a response."""
    return share_rill(RILL_START_TIMEOUT_SECONDS="0.5")


@pytest.fixture
def strict(share_rill: StartRill) -> Rill:
    """Return a server with API keys, three models and a small limit of the body."""
    return share_rill(
        RILL_API_KEYS=f"alice=wonder-land,sha256:{sha256(b'hashed').hexdigest()},bob=a=b+c/d",
        RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5,claude-haiku-5",
        RILL_MAX_BODY_BYTES="1000",
    )


ALICE = {"Authorization": "Bearer wonder-land"}


def read(conversation: Conversation) -> Response:
    """Read the response completely, and check the headers of every response."""
    with conversation as asked:
        response = Response(asked.status, asked.headers, asked.read_rest().decode())
        assert asked.ended == "clean"
    assert response.headers["cache-control"] == "no-store, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch(r"[\w.:/+=-]{1,128}", response.headers["x-request-id"])
    assert "html" not in response.headers.get("content-type", "")
    assert "<html" not in response.text.lower()
    assert KEY not in response.text + str(response.headers)
    return response


def fetch(
    service: Rill, method: str = "GET", path: str = ASK, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Response:
    return read(service.ask(method, path, headers, body))


def post_json(service: Rill, fields: object) -> Response:
    return fetch(service, "POST", "/stream", {"Content-Type": "application/json"}, json.dumps(fields).encode())


# Errors of the client


FAULTS: dict[str, list[str]] = {
    "/stream": ["q", "prompt", "messages"],
    "/stream?q=": ["q", "empty"],
    "/stream?q=%20%0A": ["q", "empty"],
    "/stream?q=hi&prompt=ho": ["q", "prompt"],
    "/stream?q=hi&max_tokens=0": ["max_tokens", "1", "64000"],
    "/stream?q=hi&max_tokens=-5": ["max_tokens", "1", "64000"],
    "/stream?q=hi&max_tokens=64001": ["max_tokens", "1", "64000"],
    "/stream?q=hi&max_tokens=" + "9" * 5000: ["max_tokens"],
    "/stream?q=hi&max_tokens=many": ["max_tokens", "integer"],
    "/stream?q=hi&max_tokens=1.5": ["max_tokens", "integer"],
    "/stream?q=hi&temperature=1.1": ["temperature", "0", "1"],
    "/stream?q=hi&temperature=-0.1": ["temperature", "0", "1"],
    "/stream?q=hi&temperature=nan": ["temperature"],
    "/stream?q=hi&temperature=warm": ["temperature", "number"],
    "/stream?q=hi&model=": ["model"],
    "/stream?messages=hi": ["messages"],
    "/chat/stream": ["message"],
    "/chat/stream?message=": ["message", "empty"],
    "/chat/stream?message=hi&max_tokens=0": ["max_tokens", "1", "64000"],
}


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path[:40])
def test_an_invalid_query_is_a_400_that_names_the_field_and_its_range(
    service: Rill, upstream: Upstream, path: str
) -> None:
    response = fetch(service, "GET", path)
    assert response.status == 400
    for word in FAULTS[path]:
        assert re.search(rf"\b{re.escape(word)}\b", response.text), response.text
    assert upstream.requests == []


BODIES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty text": ("text/plain", b"", ["empty"]),
    "blank text": ("text/plain", b" \n", ["empty"]),
    "text that is not UTF-8": ("text/plain", b"caf\xe9", ["UTF-8"]),
    "form without q": ("application/x-www-form-urlencoded", b"x=1", ["q"]),
    "form with a bad number": ("application/x-www-form-urlencoded", b"q=hi&max_tokens=x", ["max_tokens", "integer"]),
    "multipart without a boundary": ("multipart/form-data", b"q=hi", ["q"]),
    "truncated multipart": ("multipart/form-data; boundary=x", b"--x\r\nContent-Dispo", ["q"]),
    "empty JSON": ("application/json", b"", ["JSON"]),
    "broken JSON": ("application/json", b'{"q": "hi"', ["JSON"]),
    "JSON that is not UTF-8": ("application/json", b'{"q": "\xe9"}', ["JSON"]),
    "JSON with a lone surrogate": ("application/json", b'{"q": "\\ud800"}', ["JSON"]),
    "JSON list": ("application/json", b'["hi"]', ["body"]),
    "JSON null": ("application/json", b"null", ["body"]),
    "JSON without a prompt": ("application/json", b"{}", ["q", "prompt", "messages"]),
    "JSON nulls": ("application/json", b'{"q": null, "messages": null}', ["q", "prompt", "messages"]),
    "number for q": ("application/json", b'{"q": 5}', ["q", "string"]),
    "object for q": ("application/json", b'{"q": {"text": "hi"}}', ["q", "string"]),
    "list for system": ("application/json", b'{"q": "hi", "system": [1]}', ["system", "string"]),
    "number for model": ("application/json", b'{"q": "hi", "model": 5}', ["model", "string"]),
    "string for messages": ("application/json", b'{"messages": "hi"}', ["messages"]),
    "no messages": ("application/json", b'{"messages": []}', ["messages"]),
    "strings as messages": ("application/json", b'{"messages": ["hi"]}', ["messages"]),
    "unknown role": ("application/json", b'{"messages": [{"role": "tool", "content": "hi"}]}', ["role", "user"]),
    "no role": ("application/json", b'{"messages": [{"content": "hi"}]}', ["role"]),
    "number as content": ("application/json", b'{"messages": [{"role": "user", "content": 5}]}', ["content"]),
    "number in content": ("application/json", b'{"messages": [{"role": "user", "content": [5]}]}', ["content"]),
    "number as parts": ("application/json", b'{"messages": [{"role": "user", "parts": 5}]}', ["parts"]),
    "message without content": ("application/json", b'{"messages": [{"role": "user"}]}', ["messages"]),
    "only a system message": ("application/json", b'{"messages": [{"role": "system", "content": "x"}]}', ["messages"]),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_invalid_body_is_a_400_that_names_the_field(service: Rill, upstream: Upstream, name: str) -> None:
    media_type, body, expected = BODIES[name]
    response = fetch(service, "POST", "/stream", {"Content-Type": media_type, "Content-Length": str(len(body))}, body)
    assert response.status == 400
    for word in expected:
        assert re.search(rf"\b{re.escape(word)}\b", response.text), response.text
    assert upstream.requests == []


@pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"max_tokens": 64001}, {"temperature": 2}, {"temperature": -1}])
def test_a_number_out_of_range_is_a_400_that_names_the_range(
    service: Rill, upstream: Upstream, fields: dict[str, Any]
) -> None:
    response = post_json(service, {"q": "hi", **fields})
    (name,) = fields
    bounds = {"max_tokens": r"1\b.*\b64000", "temperature": r"0\b.*\b1"}[name]
    assert response.status == 400
    assert re.search(rf"\b{name}\b.*\b{bounds}\b", response.text), response.text
    assert upstream.requests == []


def test_a_json_body_nested_too_deep_is_a_400(service: Rill, upstream: Upstream) -> None:
    body = b'{"q": "hi", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert fetch(service, "POST", "/stream", {"Content-Type": "application/json"}, body).status == 400
    assert upstream.requests == []


UNUSUAL = {
    "bad percent-encoding": request_bytes("GET", "/stream?q=%zz%e4%"),
    "NUL": request_bytes("GET", "/stream?q=a%00b"),
    "truncated percent-encoded UTF-8": request_bytes("GET", "/stream?q=%F0%9F%8C"),
    "percent-encoded surrogate": request_bytes("GET", "/stream?q=%ED%A0%80"),
    "broken UTF-8 in the path": request_bytes("GET", "/%ff%fe"),
    "Accept that is no media type": request_bytes("GET", ASK, {"Accept": ";;q=x,,/"}),
    "raw bytes as an API key": b"GET /stream?q=hi HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfc\r\n\r\n",
    "Basic that is not base64": request_bytes("GET", ASK, {"Authorization": "Basic %%%"}),
    "unknown charset": request_bytes("POST", "/stream", {"Content-Type": "text/plain; charset=x"}, b"hi"),
    "charset of JSON": request_bytes("POST", "/stream", {"Content-Type": "application/json; charset=x"}, b'{"q":"h"}'),
    "many form fields": request_bytes(
        "POST", "/stream", {"Content-Type": "application/x-www-form-urlencoded"}, b"&".join([b"q=hi", *[b"x=1"] * 9999])
    ),
    "many query fields": request_bytes("GET", "/stream?q=hi" + "&x=1" * 1500),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_request_never_gets_a_5xx(service: Rill, upstream: Upstream, name: str) -> None:
    upstream.always(*wire.answer("ok"))
    response = read(Conversation(service.port, UNUSUAL[name]))
    assert response.status is not None
    assert response.status < 500


UNREADABLE = {
    "huge header": (request_bytes("GET", ASK, {"X-Huge": "a" * 9000}), 431),
    "many headers": (request_bytes("GET", ASK, {f"X-{n}": "a" for n in range(200)}), 431),
    "long URL": (request_bytes("GET", "/stream?q=" + "a" * 9000), 414),
    "space in the URL": (request_bytes("GET", "/stream?q=hello world"), 400),
    "UTF-8 in the URL": ("GET /stream?q=你好 HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
    "bytes in the URL": (b"GET /stream?q=\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "two lengths": (request_bytes("POST", "/stream", {"Content-Length": "1, 2"}, b"hi"), 400),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unparseable_request_gets_a_plain_text_error(service: Rill, upstream: Upstream, name: str) -> None:
    request, status = UNREADABLE[name]
    with Conversation(service.port, request) as asked:
        assert asked.status is not None
        assert 400 <= asked.status < 500
        assert asked.status in (status, 400)
        body = asked.read_rest()
        assert asked.headers["content-type"].startswith("text/plain")
        assert b"<" not in body
        assert body.strip()
    assert upstream.requests == []


def test_an_invalid_chunk_in_a_body_is_a_400(service: Rill, upstream: Upstream) -> None:
    request = request_bytes("POST", "/stream", {"Transfer-Encoding": "chunked"}) + b"2\r\nhi\r\nzz\r\n"
    assert read(Conversation(service.port, request)).status == 400
    assert upstream.requests == []


def test_a_truncated_body_never_reaches_the_upstream(service: Rill, upstream: Upstream) -> None:
    with Conversation(service.port, request_bytes("POST", "/stream", {"Content-Length": "50"}, b"hello")) as asked:
        asked.half_close()
        asked.read_rest()
        assert asked.status in (None, 400)
    assert upstream.requests == []


# The media type of a problem


FORMS = {
    "*/*": "text/plain; charset=utf-8",
    "text/plain": "text/plain; charset=utf-8",
    "text/html,application/xhtml+xml,*/*;q=0.8": "text/plain; charset=utf-8",
    "text/event-stream": "text/plain; charset=utf-8",
    "image/png": "text/plain; charset=utf-8",
    "text/plain, application/json;q=0.5": "text/plain; charset=utf-8",
    "application/json": "application/problem+json",
    "application/problem+json": "application/problem+json",
}


@pytest.mark.parametrize("accept", FORMS)
@pytest.mark.parametrize("path", ["/stream", "/chat/stream", "/nowhere"])
def test_a_problem_has_the_media_type_that_the_client_accepts(service: Rill, path: str, accept: str) -> None:
    response = fetch(service, "GET", path, {"Accept": accept})
    assert response.status == (404 if path == "/nowhere" else 400)
    assert response.headers["content-type"] == FORMS[accept]
    if "json" in FORMS[accept]:
        problem = json.loads(response.text)
        assert (problem["type"], problem["status"]) == ("about:blank", response.status)
        assert problem["title"]
        assert problem["detail"]
    else:
        assert re.fullmatch(r"[A-Z\w].*\.\n", response.text)


@pytest.mark.parametrize("path", ["/stream", "/chat/stream", "/nowhere"])
def test_a_problem_varies_by_accept(service: Rill, path: str) -> None:
    assert fetch(service, path=path).headers["vary"] == "Accept"


PREFERENCES = {
    "*/*": "text/plain",
    "text/plain, text/event-stream": "text/plain",
    "text/event-stream": "text/event-stream",
    "text/event-stream, */*;q=0.1": "text/event-stream",
    "text/plain;q=0.5, text/event-stream": "text/event-stream",
    "text/html": "text/plain",
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("accept", PREFERENCES)
def test_an_answer_is_server_sent_events_if_accept_prefers_them(
    service: Rill, upstream: Upstream, method: str, accept: str
) -> None:
    upstream.script(*wire.answer("ok"))
    response = fetch(
        service, method, ASK if method == "GET" else "/stream", {"Accept": accept}, b"hi" * (method == "POST")
    )
    assert (response.status, response.headers["content-type"]) == (200, f"{PREFERENCES[accept]}; charset=utf-8")
    assert response.headers["vary"] == "Accept"


def test_a_valid_request_id_is_echoed(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    identity = "9f/8-a.b:C_d+e="
    assert fetch(service, headers={"X-Request-Id": identity}).headers["x-request-id"] == identity
    assert fetch(service, path="/stream", headers={"X-Request-Id": identity}).headers["x-request-id"] == identity


@pytest.mark.parametrize("sent", ["", "two words", "a" * 129, "<script>", "溪", 'a"b'])
def test_any_other_request_id_is_replaced_by_a_new_one(service: Rill, sent: str) -> None:
    given = [fetch(service, path="/nowhere", headers={"X-Request-Id": sent}).headers["x-request-id"] for _ in range(2)]
    assert sent not in given
    assert given[0] != given[1]


# Authentication, models and limits


API_KEYS = {
    "Bearer": {"Authorization": "Bearer wonder-land"},
    "bearer": {"authorization": "bearer wonder-land"},
    "Bearer of a hashed secret": {"Authorization": "Bearer hashed"},
    "Bearer with = inside": {"Authorization": "Bearer a=b+c/d"},
    "x-api-key": {"x-api-key": "wonder-land"},
    "Basic": {"Authorization": "Basic " + b64encode(b"anybody:wonder-land").decode()},
    "Basic without a name": {"Authorization": "Basic " + b64encode(b":hashed").decode()},
}


@pytest.mark.parametrize("way", API_KEYS)
def test_an_api_key_is_accepted_however_it_is_sent(strict: Rill, upstream: Upstream, way: str) -> None:
    upstream.script(*wire.answer("ok"))
    assert fetch(strict, headers=API_KEYS[way]).text == "ok"


WRONG_API_KEYS = {
    "nothing": {},
    "another": {"Authorization": "Bearer wonder-lan"},
    "the name": {"Authorization": "Bearer alice"},
    "the whole entry": {"Authorization": "Bearer alice=wonder-land"},
    "the hash": {"Authorization": f"Bearer sha256:{sha256(b'hashed').hexdigest()}"},
    "empty": {"Authorization": "Bearer "},
    "empty key": {"x-api-key": ""},
    "empty password": {"Authorization": "Basic " + b64encode(b"alice:").decode()},
    "the key as Basic's user": {"Authorization": "Basic " + b64encode(b"wonder-land:").decode()},
    "not ASCII": {"x-api-key": "wönder-land"},
    "the upstream's key": {"x-api-key": KEY},
}


@pytest.mark.parametrize("way", WRONG_API_KEYS)
def test_a_missing_or_wrong_api_key_is_a_401_that_states_how_to_send_one(
    strict: Rill, upstream: Upstream, way: str
) -> None:
    response = fetch(strict, headers=WRONG_API_KEYS[way])
    assert response.status == 401
    assert {"Bearer", "x-api-key", "Basic"} <= set(re.findall(r"[\w-]+", response.text))
    assert "Bearer" in response.headers["www-authenticate"]
    assert upstream.requests == []


@pytest.mark.parametrize("path", [f"{ASK}&token=wonder-land", f"{ASK}&api_key=wonder-land", "/chat/stream?message=hi"])
def test_an_api_key_in_the_url_is_not_accepted(strict: Rill, upstream: Upstream, path: str) -> None:
    assert fetch(strict, path=path).status == 401
    assert upstream.requests == []


def test_health_needs_no_api_key(strict: Rill) -> None:
    assert [fetch(strict, path=path).status for path in ("/healthz", "/readyz")] == [200, 200]


def test_another_model_is_a_403_that_names_the_allowed_ones(strict: Rill, upstream: Upstream) -> None:
    response = fetch(strict, path=f"{ASK}&model=claude-other-9", headers=ALICE)
    assert response.status == 403
    assert {"model", "claude-sonnet-5-5", "claude-opus-5", "claude-haiku-5"} <= set(
        re.findall(r"[\w-]+", response.text)
    )
    assert upstream.requests == []


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "claude-opus-5", "claude-haiku-5"])
def test_an_allowed_model_is_accepted(strict: Rill, upstream: Upstream, model: str) -> None:
    upstream.script(*wire.answer("ok"))
    assert fetch(strict, path=f"{ASK}&model={model}", headers=ALICE).status == 200
    assert upstream.requests[0].json["model"] == model


METHODS = [
    ("PUT", "/stream", {"GET", "HEAD", "OPTIONS", "POST"}),
    ("DELETE", "/stream?q=hi", {"GET", "HEAD", "OPTIONS", "POST"}),
    ("POST", "/chat/stream?message=hi", {"GET", "HEAD", "OPTIONS"}),
    ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ("BREW", "/stream", {"GET", "HEAD", "OPTIONS", "POST"}),
]


@pytest.mark.parametrize(("method", "path", "allowed"), METHODS)
def test_a_wrong_method_is_a_405_that_lists_the_allowed_ones(
    service: Rill, upstream: Upstream, method: str, path: str, allowed: set[str]
) -> None:
    response = fetch(service, method, path)
    assert response.status == 405
    assert set(response.headers["allow"].split(", ")) == allowed
    assert response.text.strip()
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/nowhere", "/stream/", "/Stream?q=hi"])
def test_an_unknown_path_is_a_404_that_names_an_existing_one(service: Rill, upstream: Upstream, path: str) -> None:
    response = fetch(service, path=path)
    assert (response.status, "/stream" in response.text) == (404, True)
    assert upstream.requests == []


@pytest.mark.parametrize("media_type", ["application/xml", "image/png", "text/html"])
def test_another_media_type_is_a_415_that_lists_the_supported_ones(
    service: Rill, upstream: Upstream, media_type: str
) -> None:
    response = fetch(service, "POST", "/stream", {"Content-Type": media_type}, b"<q>hi</q>")
    assert response.status == 415
    for right in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        assert right in response.text
    assert upstream.requests == []


def chunked(body: bytes, size: int = 400) -> bytes:
    """Return a POST whose body comes in chunks, so that its length is unknown in advance."""
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return request_bytes("POST", "/stream", {**ALICE, "Transfer-Encoding": "chunked"}) + framed


def with_length(body: bytes) -> bytes:
    return request_bytes("POST", "/stream", ALICE, body)


@pytest.mark.parametrize("send", [with_length, chunked])
@pytest.mark.parametrize("size", [1001, 1002, 5000, 300_000])
def test_a_body_that_is_too_long_is_a_413_that_names_the_limit(
    strict: Rill, upstream: Upstream, send: Any, size: int
) -> None:
    response = read(Conversation(strict.port, send(b"a" * size)))
    assert (response.status, "1000" in response.text) == (413, True)
    assert upstream.requests == []


@pytest.mark.parametrize("send", [with_length, chunked])
def test_a_body_of_the_maximum_length_is_accepted(strict: Rill, upstream: Upstream, send: Any) -> None:
    upstream.script(*wire.answer("ok"))
    assert read(Conversation(strict.port, send(b"a" * 1000))).text == "ok"
    assert upstream.requests[0].json["messages"][0]["content"] == "a" * 1000


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_sends_far_too_much_still_gets_the_413(strict: Rill, upstream: Upstream, connection: str) -> None:
    url = f"{strict.url}/stream"
    command = [
        "curl",
        "-s",
        "-w",
        "%{http_code}",
        "--max-time",
        "10",
        "-H",
        f"Connection: {connection}",
        "-H",
        "Expect:",
    ]
    sent = ["-H", "Authorization: Bearer wonder-land", "-H", "Content-Type: text/plain", "--data-binary", "@-", url]
    curl = subprocess.run([*command, *sent], input=b"a" * 5_000_000, capture_output=True)
    assert (curl.returncode, curl.stdout[-3:]) == (0, b"413")
    assert upstream.requests == []


def test_a_server_at_capacity_is_a_503_with_retry_after_until_a_slot_is_free(
    share_rill: StartRill, upstream: Upstream
) -> None:
    service = share_rill(RILL_MAX_STREAMS="1")
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("one")), wire.gate("hold"), wire.end())
    with service.ask("GET", ASK) as first:
        assert first.next_chunk() == b"one"
        for path in (ASK, "/chat/stream?message=hi", "/readyz"):
            response = fetch(service, path=path)
            assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert fetch(service, path="/healthz").status == 200
        assert len(upstream.requests) == 1
    upstream.wait_for_disconnect()
    upstream.script(*wire.answer("two"))
    assert fetch(service).text == "two"


def test_a_client_with_too_many_concurrent_answers_gets_a_429_that_names_the_limit(
    share_rill: StartRill, upstream: Upstream
) -> None:
    service = share_rill(RILL_MAX_STREAMS_PER_CLIENT="1", RILL_API_KEYS="alice=wonder-land,bob=b")
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("one")), wire.gate("hold"), wire.end())
    with service.ask("GET", ASK, ALICE) as first:
        assert first.next_chunk() == b"one"
        response = fetch(service, headers=ALICE)
        assert (response.status, response.headers["retry-after"], "1" in response.text) == (429, "1", True)
        upstream.script(*wire.answer("for bob"))
        assert fetch(service, headers={"x-api-key": "b"}).text == "for bob"


def test_a_client_over_its_rate_limit_gets_a_429_that_names_the_limit(
    start_rill: StartRill, upstream: Upstream
) -> None:
    service = start_rill(RILL_RATE_LIMIT="2/minute", RILL_API_KEYS="alice=wonder-land,bob=b")
    upstream.always(*wire.answer("ok"))
    assert [fetch(service, headers=ALICE).status for _ in range(2)] == [200, 200]
    response = fetch(service, headers=ALICE)
    assert response.status == 429
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert re.search(r"\b2 per minute\b", response.text)
    assert len(upstream.requests) == 2
    assert fetch(service, headers={"x-api-key": "b"}).status == 200


# Methods that send nothing upstream


@pytest.mark.parametrize("path", [ASK, "/chat/stream?message=hi", "/healthz", "/readyz"])
def test_head_never_reaches_the_upstream(service: Rill, upstream: Upstream, path: str) -> None:
    response = fetch(service, "HEAD", path)
    assert (response.status, response.text) == (200, "")
    assert upstream.requests == []


@pytest.mark.parametrize("header", ["Sec-Purpose", "Purpose"])
@pytest.mark.parametrize("purpose", ["prefetch", "prefetch;prerender", "prefetch;anonymous-client-ip"])
def test_a_prefetch_is_a_403_and_never_reaches_the_upstream(
    service: Rill, upstream: Upstream, header: str, purpose: str
) -> None:
    response = fetch(service, headers={header: purpose})
    assert (response.status, bool(response.text.strip())) == (403, True)
    assert upstream.requests == []


@pytest.mark.parametrize("path", [ASK, "/chat/stream?message=hi"])
def test_options_never_reaches_the_upstream(service: Rill, upstream: Upstream, path: str) -> None:
    assert fetch(service, "OPTIONS", path).status in (200, 204)
    assert upstream.requests == []


# Upstream errors


class UpstreamError(NamedTuple):
    """The error of the upstream, and the expected response to the client."""

    step: Step
    status: int
    message: str = ""
    retry_after: str | None = None


def upstream_error(code: int, type: str, message: str = "internal detail of the upstream", **headers: str) -> Step:
    return wire.error(
        code, type, message, {**ONCE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    )


HTML = b"<html><body><h1>Bad Gateway</h1> nginx sk-test-key</body></html>"


def html(code: int) -> Step:
    return wire.status(code, {"content-type": "text/html", **ONCE}, HTML)


UPSTREAM_ERRORS = {
    "400": UpstreamError(
        upstream_error(400, "invalid_request_error", "prompt is too long: 9 tokens > 8"), 400, "prompt is too long: 9"
    ),
    "401": UpstreamError(upstream_error(401, "authentication_error", "invalid x-api-key"), 502, "key"),
    "402": UpstreamError(upstream_error(402, "billing_error"), 502),
    "403": UpstreamError(upstream_error(403, "permission_error"), 502),
    "404": UpstreamError(upstream_error(404, "not_found_error", "model: claude-x"), 502),
    "409": UpstreamError(upstream_error(409, "conflict_error"), 502),
    "413": UpstreamError(
        upstream_error(413, "request_too_large", "Request exceeds the maximum size"), 413, "exceeds the maximum size"
    ),
    "418": UpstreamError(upstream_error(418, "teapot_error"), 502),
    "422": UpstreamError(upstream_error(422, "invalid_request_error", "no such thing"), 400, "no such thing"),
    "429": UpstreamError(upstream_error(429, "rate_limit_error"), 429, "", "1"),
    "429, with a time": UpstreamError(upstream_error(429, "rate_limit_error", retry_after="17"), 429, "", "17"),
    "500": UpstreamError(upstream_error(500, "api_error"), 502),
    "502": UpstreamError(upstream_error(502, "api_error"), 502),
    "503": UpstreamError(upstream_error(503, "api_error"), 503, "", "1"),
    "504": UpstreamError(upstream_error(504, "timeout_error"), 504),
    "529": UpstreamError(upstream_error(529, "overloaded_error"), 503, "", "1"),
    "529, with a time": UpstreamError(upstream_error(529, "overloaded_error", retry_after="9"), 503, "", "9"),
    "500 that is an overload": UpstreamError(upstream_error(500, "overloaded_error"), 503, "", "1"),
    "HTML 400": UpstreamError(html(400), 400),
    "HTML 401": UpstreamError(html(401), 502),
    "HTML 413": UpstreamError(html(413), 413),
    "HTML 429": UpstreamError(html(429), 429, "", "1"),
    "HTML 502": UpstreamError(html(502), 502),
    "HTML 503": UpstreamError(html(503), 503, "", "1"),
    "empty 500": UpstreamError(wire.status(500, ONCE), 502),
    "JSON list": UpstreamError(wire.status(400, {"content-type": "application/json"}, b"[1]"), 400),
    "JSON with an error that is a string": UpstreamError(
        wire.status(400, {"content-type": "application/json"}, b'{"error": "no"}'), 400
    ),
    "JSON with odd types": UpstreamError(
        wire.status(400, {"content-type": "application/json"}, b'{"error": {"type": ["x"], "message": {"a": 1}}}'), 400
    ),
    "204": UpstreamError(wire.status(204), 502),
    "200 that is no event stream": UpstreamError(wire.status(200, {"content-type": "text/html"}, HTML), 502),
    "200 that is empty": UpstreamError(wire.status(200, {"content-type": "text/event-stream"}), 502),
    "no HTTP": UpstreamError(lambda answer: (answer.write(b"SSH-2.0-OpenSSH\r\n"), wire.close()(answer)), 502),
}


@pytest.mark.parametrize("name", UPSTREAM_ERRORS)
def test_an_upstream_error_has_a_true_status(service: Rill, upstream: Upstream, name: str) -> None:
    error = UPSTREAM_ERRORS[name]
    upstream.always(error.step)
    response = fetch(service)
    assert (response.status, response.headers.get("retry-after")) == (error.status, error.retry_after)
    assert error.message in response.text
    assert "internal detail" not in response.text
    assert re.fullmatch(r"[A-Z\w].*\n", response.text)


@pytest.mark.parametrize("name", ["400", "401", "429", "529", "HTML 502"])
@pytest.mark.parametrize("path", [ASK, "/chat/stream?message=hi"])
def test_an_upstream_error_has_the_same_status_for_server_sent_events(
    service: Rill, upstream: Upstream, path: str, name: str
) -> None:
    upstream.always(UPSTREAM_ERRORS[name].step)
    response = fetch(service, path=path, headers={"Accept": "text/event-stream, application/json;q=0.5"})
    assert (response.status, response.headers["content-type"]) == (
        UPSTREAM_ERRORS[name].status,
        "application/problem+json",
    )


@pytest.mark.parametrize("code", [400, 413, 422])
def test_the_upstream_key_is_not_sent_even_if_the_upstream_repeats_it(
    service: Rill, upstream: Upstream, code: int
) -> None:
    message = f"Bad header: Authorization: Bearer {KEY}"
    upstream.always(wire.error(code, "invalid_request_error", message, {**ONCE, "x-debug": KEY}))
    assert fetch(service).status in (400, 413)  # `ask` searches for the key


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate"])
@pytest.mark.parametrize("code", [400, 500])
def test_an_error_with_a_wrong_content_encoding_is_a_502(
    service: Rill, upstream: Upstream, code: int, coding: str
) -> None:
    upstream.always(wire.status(code, {"content-encoding": coding, **ONCE}, b"plain, after all"))
    assert fetch(service).status == 502


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(service: Rill, upstream: Upstream, code: int) -> None:
    with Upstream() as elsewhere:
        elsewhere.always(*wire.answer("never"))
        upstream.always(wire.status(code, {"location": f"{elsewhere.url}/v1/messages", **ONCE}))
        assert fetch(service).status == 502
        assert elsewhere.accepted == 0
    assert len(upstream.requests) == 1


def test_an_unreachable_upstream_is_a_502(start_rill: StartRill) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    response = fetch(start_rill(ANTHROPIC_BASE_URL=f"http://127.0.0.1:{port}"))
    assert response.status == 502
    assert str(port) not in response.text


def test_an_upstream_reset_before_its_headers_is_a_502(service: Rill, upstream: Upstream) -> None:
    upstream.always(wire.reset())
    assert fetch(service).status == 502


ERRORS_FIRST = [
    ("overloaded_error", 503),
    ("rate_limit_error", 429),
    ("api_error", 502),
    ("authentication_error", 502),
    ("invalid_request_error", 400),
    ("timeout_error", 504),
    ("unheard_of_error", 502),
]


@pytest.mark.parametrize("headers", [{}, SSE], ids=["text", "SSE"])
@pytest.mark.parametrize(("type", "status"), ERRORS_FIRST)
def test_an_error_event_that_comes_first_is_a_true_status(
    service: Rill, upstream: Upstream, type: str, status: int, headers: dict[str, str]
) -> None:
    upstream.always(wire.head(), wire.send(wire.stream_error(type, "theirs")), wire.end())
    response = fetch(service, headers=headers)
    assert response.status == status
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_an_error_event_before_the_first_text_is_a_true_status(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening()), wire.send(wire.stream_error()), wire.end())
    assert fetch(service).status == 503


def test_an_upstream_that_closes_before_the_first_text_is_a_502(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening()), wire.end())
    assert fetch(service).status == 502


def test_a_refusal_with_no_text_is_a_422_with_its_explanation(service: Rill, upstream: Upstream) -> None:
    explanation = "This asks for help with breaking in."
    details = {"type": "refusal", "category": "cyber", "explanation": explanation}
    upstream.script(wire.head(), wire.send(wire.start(), wire.stop("refusal", 0, stop_details=details)), wire.end())
    response = fetch(service)
    assert (response.status, response.text) == (422, f"{explanation}\n")


def test_a_refusal_without_an_explanation_is_a_422_with_a_message(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.start(), wire.stop("refusal", 0)), wire.end())
    response = fetch(service)
    assert (response.status, "refused" in response.text) == (422, True)


def test_an_answer_with_no_text_that_is_not_a_refusal_is_an_empty_200(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.start(), wire.stop("end_turn", 0)), wire.end())
    response = fetch(service)
    assert (response.status, response.text) == (200, "")


# Timeouts and retries


@pytest.mark.parametrize("headers", [{}, SSE], ids=["text", "SSE"])
@pytest.mark.parametrize("steps", [[wire.silence()], [wire.head(), wire.silence()]], ids=["before", "after"])
def test_an_upstream_silent_before_or_after_its_headers_is_a_504(
    hasty: Rill, upstream: Upstream, steps: list[Step], headers: dict[str, str]
) -> None:
    upstream.always(*steps)
    assert fetch(hasty, headers=headers).status == 504
    upstream.wait_for_disconnect()
    assert len(upstream.requests) == 1


def test_an_upstream_that_only_pings_has_not_started_and_is_a_504(hasty: Rill, upstream: Upstream) -> None:
    pings = [step for _ in range(100) for step in (wire.send(wire.ping()), wire.pause(0.05))]
    upstream.script(wire.head(), *pings, wire.silence())
    assert fetch(hasty).status == 504
    upstream.wait_for_disconnect()


def test_a_model_that_thinks_for_long_gets_its_200_before_its_first_text(hasty: Rill, upstream: Upstream) -> None:
    thought = wire.start() + wire.block_start(type="thinking") + wire.thinking("hm")
    rest = wire.block_stop() + wire.block_start(1) + wire.text("Well", 1) + wire.block_stop(1) + wire.stop()
    upstream.script(wire.head(), wire.send(thought), wire.gate("thought"), wire.send(rest), wire.end())
    with hasty.ask("GET", ASK) as asked:
        assert asked.status == 200
        upstream.open("thought")
        assert (asked.read_rest(), asked.ended) == (b"Well", "clean")


def test_a_model_that_starts_in_the_packet_of_the_headers_gets_its_200_in_time(hasty: Rill, upstream: Upstream) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    started = wire.start() + wire.block_start(type="thinking") + wire.thinking("hm")
    rest = wire.block_stop() + wire.block_start(1) + wire.text("Well", 1) + wire.block_stop(1) + wire.stop()
    upstream.script(
        wire.raw(b"%b%x\r\n%b\r\n" % (head, len(started), started)), wire.gate("thought"), wire.send(rest), wire.end()
    )
    with hasty.ask("GET", ASK) as asked:
        asked.socket.settimeout(5)  # far more than the half second, and less than any other wake-up
        assert asked.status == 200
        upstream.open("thought")
        assert (asked.read_rest(), asked.ended) == (b"Well", "clean")


def test_a_model_that_thinks_beyond_the_start_timeout_gets_its_200_too(hasty: Rill, upstream: Upstream) -> None:
    thoughts = [step for _ in range(40) for step in (wire.send(wire.thinking("hm")), wire.pause(0.05))]
    begin = wire.start() + wire.block_start(type="thinking")
    rest = wire.block_stop() + wire.block_start(1) + wire.text("Well", 1) + wire.block_stop(1) + wire.stop()
    upstream.script(wire.head(), wire.send(begin), *thoughts, wire.gate("thought"), wire.send(rest), wire.end())
    with hasty.ask("GET", ASK) as asked:
        assert asked.status == 200
        upstream.open("thought")
        assert (asked.read_rest(), asked.ended) == (b"Well", "clean")


@pytest.mark.parametrize(("code", "type", "status"), [(429, "rate_limit_error", 429), (529, "overloaded_error", 503)])
def test_a_long_retry_after_reaches_the_client_in_under_a_second(
    service: Rill, upstream: Upstream, code: int, type: str, status: int
) -> None:
    upstream.always(wire.error(code, type, "later", {"retry-after": "3600"}))
    began = time.monotonic()
    response = fetch(service)
    assert time.monotonic() - began < 1
    assert (response.status, response.headers["retry-after"]) == (status, "3600")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("retry_after", ["0", "1"])
def test_a_short_retry_after_is_waited_for_and_the_request_is_retried(
    service: Rill, upstream: Upstream, retry_after: str
) -> None:
    upstream.script(wire.error(429, "rate_limit_error", "later", {"retry-after": retry_after}))
    upstream.script(*wire.answer("second time"))
    assert fetch(service).text == "second time"
    first, second = upstream.requests
    assert first.json == second.json


@pytest.mark.parametrize(
    "step", [wire.error(500, "api_error", "x"), wire.error(529, "overloaded_error", "x"), wire.reset()]
)
def test_a_temporary_failure_is_retried(service: Rill, upstream: Upstream, step: Step) -> None:
    upstream.script(step)
    upstream.script(*wire.answer("second time"))
    assert fetch(service).text == "second time"
    assert len(upstream.requests) == 2


def test_a_request_is_sent_three_times_at_most(service: Rill, upstream: Upstream) -> None:
    upstream.always(wire.error(529, "overloaded_error", "x", {"retry-after": "0"}))
    assert fetch(service).status == 503
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413])
def test_a_permanent_failure_is_not_retried(service: Rill, upstream: Upstream, code: int) -> None:
    upstream.always(wire.error(code, "some_error", "x"))
    assert fetch(service).status >= 400
    assert len(upstream.requests) == 1


def test_a_retry_that_would_exceed_the_start_timeout_is_not_attempted(hasty: Rill, upstream: Upstream) -> None:
    upstream.always(wire.error(529, "overloaded_error", "x", {"retry-after": "1"}))
    response = fetch(hasty)
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert len(upstream.requests) == 1


def test_a_failure_after_the_first_byte_is_never_retried(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("one")), wire.gate("seen"), wire.reset())
    upstream.always(*wire.answer("second time"))
    with service.ask("GET", ASK) as asked:
        assert asked.next_chunk() == b"one"
        upstream.open("seen")
        assert (asked.read_rest(), asked.ended) == (b"", "truncated")
    assert len(upstream.requests) == 1


def test_the_upstream_key_is_never_logged(service: Rill, upstream: Upstream) -> None:
    upstream.always(wire.error(401, "authentication_error", f"invalid key {KEY}"))
    assert fetch(service).status == 502
    assert KEY not in service.output()
