"""RILL_CORS_ORIGINS: pages of the listed origins may send requests and read every response, and no others may."""

import http.client
import json
from collections.abc import Mapping
from contextlib import closing
from email.message import Message

import pytest
import upstream as wire
from server import Rill, StartRill
from upstream import Upstream

APP = "https://app.example"
LOCAL = "http://localhost:3000"
IPV6 = "http://[2001:db8::7]:8080"
API_KEY = "wonder-land"
MODEL = "claude-sonnet-5-5"
EXPOSED = {"retry-after", "x-request-id", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"}
ALLOWED_ORIGIN = "access-control-allow-origin"

# Origins that resemble a listed one, but are not listed.
UNLISTED = {
    "null": "null",
    "another": "https://other.example",
    "a prefix": "https://app.exampl",
    "a suffix": "https://app.example.evil.example",
    "a suffix without a dot": "https://app.examples",
    "a sub-domain": "https://evil.app.example",
    "a parent": "https://example",
    "a prefix of the host": "https://evilapp.example",
    "another character for the dot": "https://appXexample",
    "another scheme": "http://app.example",
    "another port": "https://app.example:8443",
    "no port": "http://localhost",
    "a port with the same prefix": "http://localhost:30001",
    "a path": "https://app.example/",
    "a user": "https://app.example@evil.example",
    "two": "https://app.example https://evil.example",
    "two with a comma": "https://app.example, https://evil.example",
    "a pattern": "https://.*",
    "a star": "*",
    "a part of the IPv6 address": "http://2:8080",
    "IPv6 without its brackets": "http://2001:db8::7:8080",
}


ENV = {
    "RILL_API_KEYS": f"alice={API_KEY},bob=builder-bob",
    "RILL_ALLOWED_MODELS": MODEL,
    "RILL_MAX_BODY_BYTES": "1000",
    "RILL_RATE_LIMIT": "1000/hour",
}


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server for three origins, with low limits."""
    return share_rill(**ENV, RILL_CORS_ORIGINS=f"{APP},{LOCAL} , {IPV6}")


@pytest.fixture
def one(share_rill: StartRill) -> Rill:
    """Return a server for one origin, in a spelling that no browser sends."""
    return share_rill(**{**ENV, "RILL_RATE_LIMIT": "1/hour"}, RILL_CORS_ORIGINS="HTTPS://App.Example")


@pytest.fixture
def open_to_all(share_rill: StartRill) -> Rill:
    """Return a server for every origin."""
    return share_rill(**ENV, RILL_CORS_ORIGINS="*")


def send(
    service: Rill, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> tuple[int, Message, str]:
    """Return the status, all headers (some occur more than once) and the body."""
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)) as connection:
        connection.request(method, path, body or None, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def members(headers: Message, name: str) -> set[str]:
    """Return the members of a comma-separated header, in lower case, from all its lines."""
    return {each.strip().lower() for line in headers.get_all(name, []) for each in line.split(",") if each.strip()}


def cors_names(headers: Message) -> set[str]:
    return {name.lower() for name in headers if name.lower().startswith("access-control-")}


def assert_open_to(origin: str, headers: Message) -> None:
    """Assert that a page of this origin may read the response and its important headers."""
    assert headers.get_all(ALLOWED_ORIGIN) == [origin]
    assert members(headers, "access-control-expose-headers") >= EXPOSED
    assert "access-control-allow-credentials" not in headers
    assert ("origin" in members(headers, "vary")) == (origin != "*")


JSON = {"Content-Type": "application/json"}
ALICE = {"Authorization": f"Bearer {API_KEY}"}
CHAT = json.dumps({"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}).encode()
COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/messages"
# Requests that are rejected before the upstream request, each with its status.
REJECTED = {
    "400": ("GET", "/stream", ALICE, b"", 400),
    "400 Messages": ("POST", MESSAGES, {**ALICE, **JSON}, b"{", 400),
    "400 OpenAI": ("POST", COMPLETIONS, {**ALICE, **JSON}, b"{", 400),
    "401": ("GET", "/stream?q=hi", {}, b"", 401),
    "401 Messages": ("POST", MESSAGES, JSON, CHAT, 401),
    "401 OpenAI": ("POST", COMPLETIONS, JSON, CHAT, 401),
    "401 models": ("GET", "/v1/models", {}, b"", 401),
    "403": ("GET", "/stream?q=hi&model=other", ALICE, b"", 403),
    "403 prefetch": ("GET", "/stream?q=hi", {**ALICE, "Sec-Purpose": "prefetch"}, b"", 403),
    "403 Messages": ("POST", MESSAGES, {**ALICE, **JSON}, CHAT.replace(MODEL.encode(), b"other"), 403),
    "404": ("GET", "/nowhere", {}, b"", 404),
    "404 /v1/": ("GET", "/v1/nowhere", {}, b"", 404),
    "405": ("DELETE", "/stream", {}, b"", 405),
    "405 Messages": ("GET", MESSAGES, {}, b"", 405),
    "413": ("POST", "/stream", ALICE, b"a" * 1001, 413),
    "413 OpenAI": ("POST", COMPLETIONS, {**ALICE, **JSON}, b" " * 1001, 413),
    "415": ("POST", "/stream", {**ALICE, "Content-Type": "image/png"}, b"hi", 415),
}
ANSWERED = {
    "/stream": ("GET", "/stream?q=hi", {}, b""),
    "/stream as events": ("GET", "/stream?q=hi", {"Accept": "text/event-stream"}, b""),
    "POST /stream": ("POST", "/stream", {}, b"hi"),
    "/chat/stream": ("GET", "/chat/stream?message=hi", {}, b""),
    MESSAGES: ("POST", MESSAGES, JSON, CHAT.replace(b"{", b'{"stream": true, ', 1)),
    COMPLETIONS: ("POST", COMPLETIONS, JSON, CHAT),
    "/v1/models": ("GET", "/v1/models", {}, b""),
}


# A page of an origin that is listed


@pytest.mark.parametrize("name", ANSWERED)
def test_a_listed_origin_may_read_every_answer(service: Rill, upstream: Upstream, name: str) -> None:
    upstream.always(*wire.answer("ok"))
    method, path, headers, body = ANSWERED[name]
    status, received, _ = send(service, method, path, {**ALICE, **headers, "Origin": APP}, body)
    assert status == 200
    assert_open_to(APP, received)
    assert ("accept" in members(received, "vary")) == path.startswith("/stream")


@pytest.mark.parametrize("name", REJECTED)
def test_a_listed_origin_may_read_every_rejection(service: Rill, upstream: Upstream, name: str) -> None:
    method, path, headers, body, expected = REJECTED[name]
    status, received, text = send(service, method, path, {**headers, "Origin": LOCAL}, body)
    assert (status, bool(text)) == (expected, True)
    assert_open_to(LOCAL, received)
    assert "accept" in members(received, "vary") or path.startswith("/v1/")
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/stream?q=hi", MESSAGES, COMPLETIONS])
@pytest.mark.parametrize(
    ("code", "type", "status"), [(529, "overloaded_error", 503), (401, "authentication_error", 502)]
)
def test_a_listed_origin_may_read_upstream_errors(
    service: Rill, upstream: Upstream, path: str, code: int, type: str, status: int
) -> None:
    upstream.always(wire.error(code, type, "no", {"x-should-retry": "false", "retry-after": "30"}))
    method, body = ("POST", CHAT) if path.startswith("/v1/") else ("GET", b"")
    received_status, received, _ = send(service, method, path, {**ALICE, **(JSON if body else {}), "Origin": APP}, body)
    assert received_status == status
    assert status != 503 or received["retry-after"] == "30"
    assert_open_to(APP, received)


def test_a_listed_origin_may_read_a_rate_limit_rejection(one: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    for path in ("/stream?q=hi", "/stream?q=hi", "/chat/stream?message=hi", COMPLETIONS):
        method, body = ("POST", CHAT) if path == COMPLETIONS else ("GET", b"")
        status, received, _ = send(one, method, path, {**ALICE, "Origin": APP}, body)
        assert_open_to(APP, received)
    assert status == 429
    assert members(received, "access-control-expose-headers") >= {
        name.lower() for name in received if name.lower().startswith("ratelimit-")
    }
    assert {"retry-after", "ratelimit-limit"} <= {name.lower() for name in received}


@pytest.mark.parametrize("origin", [APP, LOCAL, IPV6], ids=["https", "a port", "IPv6"])
def test_each_listed_origin_receives_only_its_own_name(service: Rill, origin: str) -> None:
    _, received, _ = send(service, "GET", "/healthz", {"Origin": origin})
    assert_open_to(origin, received)


PREFLIGHTS = [
    ("/stream", "POST", "authorization,content-type"),
    ("/stream?q=hi", "GET", "x-api-key"),
    ("/chat/stream", "GET", "authorization"),
    (MESSAGES, "POST", "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,x-api-key"),
    (COMPLETIONS, "POST", "authorization,content-type,x-stainless-lang,x-stainless-retry-count"),
    ("/v1/models", "GET", "x-api-key,anthropic-version"),
    ("/stream", "POST", "content-type,x-request-id"),
]


@pytest.mark.parametrize(("path", "method", "wanted"), PREFLIGHTS)
def test_a_preflight_of_a_listed_origin_needs_no_key_and_allows_its_headers(
    service: Rill, upstream: Upstream, path: str, method: str, wanted: str
) -> None:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted, "Origin": APP}
    status, received, text = send(service, "OPTIONS", path, asked)
    assert (status, text) == (200, "")
    assert received.get_all(ALLOWED_ORIGIN) == [APP]
    assert members(received, "access-control-allow-headers") == set(wanted.split(","))
    assert members(received, "access-control-allow-methods") == {"get", "head", "post"}
    assert 1 <= int(received["access-control-max-age"]) <= 7200
    assert "access-control-allow-credentials" not in received
    assert "origin" in members(received, "vary")
    assert upstream.requests == []


def test_a_page_of_a_listed_origin_may_stop_a_recorded_answer(service: Rill) -> None:
    _, received, _ = send(service, "OPTIONS", "/stream/x", {"Access-Control-Request-Method": "DELETE", "Origin": APP})
    assert members(received, "access-control-allow-methods") == {"get", "head", "delete"}


@pytest.mark.parametrize("method", ["DELETE", "PUT", "TRACE"])
def test_a_preflight_does_not_allow_another_method(service: Rill, method: str) -> None:
    _, received, _ = send(service, "OPTIONS", "/stream", {"Access-Control-Request-Method": method, "Origin": APP})
    assert method.lower() not in members(received, "access-control-allow-methods")


# A page of any other origin


@pytest.mark.parametrize("name", UNLISTED)
def test_an_unlisted_origin_gets_no_cors_headers(service: Rill, name: str) -> None:
    origin = UNLISTED[name]
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key", "Origin": origin}
    for method, path in (("GET", "/healthz"), ("GET", "/stream"), ("OPTIONS", "/stream"), ("GET", "/nowhere")):
        _, received, _ = send(service, method, path, asked)
        assert cors_names(received) == set()
        assert "origin" in members(received, "vary")  # a cache must not serve this response to a listed origin


def test_a_request_without_an_origin_gets_no_cors_headers(service: Rill) -> None:
    for path in ("/healthz", "/stream"):
        _, received, _ = send(service, "GET", path, {})
        assert cors_names(received) == set()
        assert "origin" in members(received, "vary")


def test_a_response_varies_by_origin_even_if_only_one_is_listed(one: Rill) -> None:
    for origin, expected in ((APP, [APP]), ("https://other.example", None)):
        _, received, _ = send(one, "GET", "/healthz", {"Origin": origin})
        assert (received.get_all(ALLOWED_ORIGIN), "origin" in members(received, "vary")) == (expected, True)


# Every origin, and no origin


@pytest.mark.parametrize("origin", [APP, "null", "http://anything.example:81"])
def test_a_wildcard_allows_every_origin_but_never_credentials(
    open_to_all: Rill, upstream: Upstream, origin: str
) -> None:
    upstream.always(*wire.answer("ok"))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    for method, path, headers in (
        ("GET", "/stream?q=hi", ALICE),
        ("GET", "/stream", {}),
        ("OPTIONS", "/stream", asked),
    ):
        _, received, _ = send(open_to_all, method, path, {"Origin": origin, "Cookie": "a=b", **headers})
        assert_open_to("*", received)
        assert "set-cookie" not in received
        assert method == "OPTIONS" or "accept" in members(received, "vary")


def test_without_cors_origins_no_response_has_cors_headers(share_rill: StartRill, upstream: Upstream) -> None:
    closed = share_rill()
    upstream.always(*wire.answer("ok"))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key", "Origin": APP}
    for method, path in (("GET", "/stream?q=hi"), ("GET", "/stream"), ("OPTIONS", "/stream"), ("GET", "/nowhere")):
        _, received, _ = send(closed, method, path, asked)
        assert cors_names(received) == set()
        assert "origin" not in members(received, "vary")


# Requests that a page sends through its visitor's browser


FOREIGN = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
SENT_BY_A_SITE = {
    "a form's fetch": ("POST", {**FOREIGN, "Sec-Fetch-Dest": "empty", "Origin": "https://evil.example"}),
    "an image": ("GET", {**FOREIGN, "Sec-Fetch-Dest": "image"}),
    "a frame": ("GET", {**FOREIGN, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
    "a submitted form": ("POST", {**FOREIGN, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}),
    "a sister site": ("GET", {**FOREIGN, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "image"}),
}


@pytest.mark.parametrize("name", SENT_BY_A_SITE)
def test_a_page_of_another_site_causes_no_billing(service: Rill, upstream: Upstream, name: str) -> None:
    method, headers = SENT_BY_A_SITE[name]
    status, received, text = send(service, method, "/stream?q=hi", {**ALICE, **headers})
    assert (status, "RILL_CORS_ORIGINS" in text) == (403, True)
    assert cors_names(received) == set()
    assert upstream.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty", "Origin": "https://APP.example"},
        {},
    ],
    ids=["the page", "the address bar", "a link", "a listed origin", "no browser"],
)
def test_a_request_that_is_not_from_another_site_is_served(
    service: Rill, upstream: Upstream, headers: dict[str, str]
) -> None:
    upstream.always(*wire.answer("ok"))
    assert send(service, "GET", "/stream?q=hi", {**ALICE, **headers})[0] == 200


def test_with_a_wildcard_a_page_of_any_site_is_served(open_to_all: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    for name in ("an image", "a frame", "a sister site"):
        method, headers = SENT_BY_A_SITE[name]
        assert send(open_to_all, method, "/stream?q=hi", {**ALICE, **headers})[0] == 200
