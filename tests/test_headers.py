"""The guards of every route and the headers of every response: API keys, rate limits and the upstream key."""

import itertools
import json
import time
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import pytest
import upstream as wire
from conversation import Conversation, request_bytes
from server import ROOT, Rill, StartRill
from upstream import Step, Upstream

from app import create_app
from rill.settings import Settings

API_KEY = "wonder-land-0815"
HASHED = "looking-glass-4711"
KEY = "sk-live-key-2718281828"
MODEL = "claude-sonnet-5-5"
RATE = 2

_addresses = itertools.count(1)


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a service with API keys behind a proxy: failed authentication is limited per forwarded address."""
    keys = f"alice={API_KEY},bob=sha256:{sha256(HASHED.encode()).hexdigest()}"
    return share_rill(
        ANTHROPIC_API_KEY=KEY,
        RILL_API_KEYS=keys,
        RILL_MAX_BODY_BYTES="2000",
        RILL_ALLOWED_MODELS=MODEL,
        RILL_TRUSTED_PROXIES="1",
    )


@pytest.fixture
def limited(share_rill: StartRill) -> Rill:
    """Return a service without API keys behind a proxy: RATE requests per hour and one concurrent answer per client."""
    return share_rill(RILL_RATE_LIMIT=f"{RATE}/hour", RILL_TRUSTED_PROXIES="1", RILL_MAX_STREAMS_PER_CLIENT="1")


class Response(NamedTuple):
    """A response, read completely."""

    status: int | None
    headers: dict[str, str]
    text: str

    def whole(self) -> str:
        """Return everything that the client received."""
        return f"{self.status} {self.headers} {self.text}"


def send(port: int, request: bytes) -> Response:
    with Conversation(port, request) as asked:
        return Response(asked.status, asked.headers, asked.read_rest().decode())


def fetch(
    service: Rill, path: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: bytes = b""
) -> Response:
    return send(service.port, request_bytes(method, path, headers, body))


def new_address() -> str:
    """Return the address of a new client."""
    number = next(_addresses)
    return f"198.51.{100 + number // 250}.{number % 250 + 1}"


def from_new_address() -> dict[str, str]:
    """Return the header with which a proxy forwards the address of a new client."""
    return {"X-Forwarded-For": new_address()}


def chat(**more: Any) -> bytes:
    """Return a body that is valid in both SDKs' dialects."""
    fields = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({**fields, **more}).encode()


ALICE = {"Authorization": f"Bearer {API_KEY}"}
JSON = {"Content-Type": "application/json"}
SSE = {"Accept": "text/event-stream"}
MESSAGES, COMPLETIONS = "/v1/messages", "/v1/chat/completions"
# Every way to request an answer: method, path, headers, body.
REQUESTS: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "GET /stream": ("GET", "/stream?q=hi", {}, b""),
    "POST /stream": ("POST", "/stream", {}, b"hi"),
    "GET /stream as events": ("GET", "/stream?q=hi", SSE, b""),
    "POST /api/chat": ("POST", "/api/chat", JSON, b'{"q": "hi"}'),
    "POST /api/completion": ("POST", "/api/completion", JSON, b'{"prompt": "hi"}'),
    "GET /chat/stream": ("GET", "/chat/stream?message=hi", {}, b""),
    "POST /v1/messages": ("POST", MESSAGES, JSON, chat(stream=True)),
    "POST /v1/chat/completions": ("POST", COMPLETIONS, JSON, chat(stream=True)),
    "POST /v1/responses": ("POST", "/v1/responses", JSON, b'{"input": "hi", "stream": true}'),
}
# Every other route; none of them has a rate limit.
FREE = [
    "/",
    "/page/page.js",
    "/page/page.css",
    "/openapi.json",
    "/v1/models",
    f"/v1/models/{MODEL}",
    "/healthz",
    "/readyz",
    "/metrics",
    "/usage",
]


def is_installed(path: str) -> bool:
    """Return whether the file that a route of the page serves exists."""
    return not path.startswith("/page/") or (ROOT / "rill" / path[1:]).exists()


def test_every_route_is_covered_here() -> None:
    methods = [(",".join(sorted(rule.methods - {"HEAD", "OPTIONS"})), rule.rule) for rule in rules()]
    routes = {f"{method} {path}".replace("<path:id>", MODEL) for method, path in methods}
    asking = {name.removesuffix(" as events") for name in REQUESTS}
    # tests/test_resume.py, tests/test_resume_chat.py and tests/test_count_tokens.py
    chats = {"GET /api/chat/<id>/stream", "DELETE /api/chat/<id>/stream"}
    elsewhere = {"GET /stream/<id>", "DELETE /stream/<id>", "POST /v1/messages/count_tokens", *chats}
    paths = {"/page/<file>" if path.startswith("/page/") else path for path in [*FREE, "/drip"]}
    assert routes == asking | elsewhere | {f"GET {path}" for path in paths}


def rules() -> list[Any]:
    settings = Settings.model_validate({"RILL_OFFLINE": "1"})
    return list(create_app(settings).url_map.iter_rules())


# Headers of every response


REJECTED = {
    "400": ("GET", "/stream", ALICE, b"", 400),
    "400 JSON": ("GET", "/stream", {**ALICE, "Accept": "application/json"}, b"", 400),
    "400 Messages": ("POST", MESSAGES, {**ALICE, **JSON}, b"{", 400),
    "400 OpenAI": ("POST", COMPLETIONS, {**ALICE, **JSON}, b"{", 400),
    "401": ("GET", "/stream?q=hi", {}, b"", 401),
    "401 chat": ("GET", "/chat/stream?message=hi", {}, b"", 401),
    "401 drip": ("GET", "/drip", {}, b"", 401),
    "401 models": ("GET", "/v1/models", {}, b"", 401),
    "401 metrics": ("GET", "/metrics", {}, b"", 401),
    "401 Messages": ("POST", MESSAGES, JSON, chat(), 401),
    "401 OpenAI": ("POST", COMPLETIONS, JSON, chat(), 401),
    "403": ("GET", "/stream?q=hi&model=other", ALICE, b"", 403),
    "404": ("GET", "/nowhere", {}, b"", 404),
    "404 for a file": ("GET", "/../rill/settings.py", {}, b"", 404),
    "404 /v1/": ("GET", "/v1/nowhere", {}, b"", 404),
    "405": ("DELETE", "/stream", {}, b"", 405),
    "405 page": ("POST", "/", {}, b"", 405),
    "405 Messages": ("GET", MESSAGES, {}, b"", 405),
    "413": ("POST", "/stream", ALICE, b"a" * 2001, 413),
    "415": ("POST", "/stream", {**ALICE, "Content-Type": "image/png"}, b"hi", 415),
}
HEADERS = {
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def directives(response: Response) -> dict[str, str]:
    """Return the Content-Security-Policy, by directive."""
    policy = response.headers["content-security-policy"]
    return {name: values for name, _, values in (each.strip().partition(" ") for each in policy.split(";") if each)}


def assert_headers(response: Response) -> None:
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    assert len(response.headers["x-request-id"]) >= 8
    policy = directives(response)
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "server" not in response.headers or "python" not in response.headers["server"].lower()


@pytest.mark.parametrize("name", REQUESTS)
def test_no_answer_may_be_stored_buffered_changed_or_rendered_as_a_page(
    service: Rill, upstream: Upstream, name: str
) -> None:
    upstream.always(*wire.answer("ok"))
    method, path, headers, body = REQUESTS[name]
    response = fetch(service, path, {**ALICE, **headers}, method, body)
    assert response.status == 200
    assert_headers(response)


@pytest.mark.parametrize("path", FREE)
def test_every_other_route_sends_the_same_headers(service: Rill, path: str) -> None:
    if not is_installed(path):
        pytest.skip(f"{path} does not exist yet")
    for method in ("GET", "HEAD", "OPTIONS"):
        response = fetch(service, path, ALICE, method)
        assert response.status == 200
        assert_headers(response)


def test_the_drip_sends_the_same_headers(service: Rill) -> None:
    with service.ask("GET", "/drip", ALICE) as asked:
        assert_headers(Response(asked.status, asked.headers, ""))


@pytest.mark.parametrize("name", REJECTED)
def test_every_rejection_sends_the_same_headers(service: Rill, upstream: Upstream, name: str) -> None:
    method, path, headers, body, status = REJECTED[name]
    response = fetch(service, path, headers, method, body)
    assert (response.status, bool(response.text.strip())) == (status, True)
    assert_headers(response)
    assert upstream.requests == []


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("step", [wire.error(529, "overloaded_error", "x", {"x-should-retry": "false"}), wire.reset()])
def test_every_upstream_error_sends_the_same_headers(service: Rill, upstream: Upstream, name: str, step: Step) -> None:
    upstream.always(step)
    method, path, headers, body = REQUESTS[name]
    response = fetch(service, path, {**ALICE, **headers}, method, body)
    assert response.status in (502, 503)
    assert_headers(response)


UNREADABLE = {
    "400": b"GET /stream?q=a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "414": request_bytes("GET", "/stream?q=" + "a" * 9000),
    "431": request_bytes("GET", "/stream?q=hi", {"X-Huge": "a" * 9000}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_response_to_an_unparseable_request_may_not_be_stored_or_sniffed(service: Rill, name: str) -> None:
    response = send(service.port, UNREADABLE[name])
    assert response.status == int(name)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "no-store" in response.headers["cache-control"]


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css"])
def test_the_page_loads_nothing_from_other_origins_and_runs_no_inline_code(service: Rill, path: str) -> None:
    if not is_installed(path):
        pytest.skip(f"{path} does not exist yet")
    policy = directives(fetch(service, path, {"Accept": "text/html"}))
    for directive in ("script-src", "style-src", "connect-src"):
        assert policy[directive] == "'self'"
    assert (policy["base-uri"], policy["form-action"]) == ("'none'", "'self'")


# Requests that cost nothing


@pytest.mark.parametrize("path", [*FREE, "/stream?q=hi", "/chat/stream?message=hi", "/drip"])
def test_head_costs_nothing(limited: Rill, upstream: Upstream, path: str) -> None:
    client = {"X-Forwarded-For": new_address()}
    if not is_installed(path):
        pytest.skip(f"{path} does not exist yet")
    for _ in range(RATE + 1):
        response = fetch(limited, path, client, "HEAD")
        assert (response.status, response.text) == (200, "")
    assert upstream.requests == []
    assert_rate_limit_unused(limited, upstream, client)


@pytest.mark.parametrize("header", ["Sec-Purpose", "Purpose"])
@pytest.mark.parametrize("purpose", ["prefetch", "prefetch;prerender", "prefetch; anonymous-client-ip", "a, prefetch"])
@pytest.mark.parametrize("path", ["/stream?q=hi", "/chat/stream?message=hi"])
def test_a_prefetch_costs_nothing(limited: Rill, upstream: Upstream, path: str, header: str, purpose: str) -> None:
    client = {"X-Forwarded-For": new_address()}
    for _ in range(RATE + 1):
        assert fetch(limited, path, {**client, header: purpose}).status == 403
    assert upstream.requests == []
    assert_rate_limit_unused(limited, upstream, client)


@pytest.mark.parametrize("path", FREE)
def test_a_route_that_sends_nothing_upstream_has_no_rate_limit(limited: Rill, upstream: Upstream, path: str) -> None:
    client = {"X-Forwarded-For": new_address()}
    if not is_installed(path):
        pytest.skip(f"{path} does not exist yet")
    assert {fetch(limited, path, client).status for _ in range(RATE + 2)} == {200}
    assert upstream.requests == []
    assert_rate_limit_unused(limited, upstream, client)


def assert_rate_limit_unused(service: Rill, upstream: Upstream, client: dict[str, str]) -> None:
    """Assert that the client can use its whole rate limit."""
    upstream.always(*wire.answer("ok"))
    asked = [fetch(service, "/stream?q=hi", client).status for _ in range(RATE + 1)]
    assert asked == [*[200] * RATE, 429]


def test_the_drip_counts_as_a_request(limited: Rill, upstream: Upstream) -> None:
    client = {"X-Forwarded-For": new_address()}
    upstream.always(*wire.answer("ok"))
    assert fetch(limited, "/stream?q=hi", client).status == 200
    with limited.ask("GET", "/drip", client) as asked:
        assert (asked.status, asked.next_chunk()) == (200, b"1 of 10\n")
    assert fetch(limited, "/drip", client).status == 429


# Rate and concurrency limits


SHAPES = {
    "text": ("GET", "/stream?q=hi", {}, b""),
    "problem": ("GET", "/stream?q=hi", {"Accept": "application/problem+json"}, b""),
    "events": ("GET", "/chat/stream?message=hi", SSE, b""),
    "Messages": ("POST", MESSAGES, JSON, chat()),
    "OpenAI": ("POST", COMPLETIONS, JSON, chat()),
    "drip": ("GET", "/drip", {}, b""),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rate_limit_rejection_states_the_limit_and_when_to_retry(
    limited: Rill, upstream: Upstream, shape: str
) -> None:
    client = {"X-Forwarded-For": new_address()}
    upstream.always(*wire.answer("ok"))
    for _ in range(RATE):
        fetch(limited, "/stream?q=hi", client)
    method, path, headers, body = SHAPES[shape]
    response = fetch(limited, path, {**client, **headers}, method, body)
    assert response.status == 429
    assert f"At most {RATE} per hour for one client" in response.text
    assert 1 <= int(response.headers["retry-after"]) <= 3600
    assert response.headers["ratelimit-limit"] == str(RATE)
    assert response.headers["ratelimit-remaining"] == "0"
    assert response.headers["ratelimit-reset"] == response.headers["retry-after"]
    assert response.headers["ratelimit-policy"] == f"{RATE};w=3600"
    assert_headers(response)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_concurrency_rejection_states_the_limit_and_when_to_retry(
    limited: Rill, upstream: Upstream, shape: str
) -> None:
    client = {"X-Forwarded-For": new_address()}
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("one")), wire.silence())
    with limited.ask("GET", "/stream?q=hi", client) as first:
        assert first.next_chunk() == b"one"
        method, path, headers, body = SHAPES[shape]
        response = fetch(limited, path, {**client, **headers}, method, body)
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        assert "At most 1 concurrent answers for one client" in response.text
        assert "ratelimit-limit" not in response.headers  # waiting for a reset would not help
        assert_headers(response)
    upstream.wait_for_disconnect()


# Which API key, and how it is sent


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


RIGHT: dict[str, dict[str, str]] = {
    "Bearer": {"Authorization": f"Bearer {API_KEY}"},
    "bearer": {"Authorization": f"bearer {API_KEY}"},
    "BEARER": {"Authorization": f"BEARER {API_KEY}"},
    "bEaReR": {"authorization": f"bEaReR {API_KEY}"},
    "Bearer with a hashed key": {"Authorization": f"Bearer {HASHED}"},
    "x-api-key": {"x-api-key": API_KEY},
    "X-API-KEY": {"X-API-KEY": API_KEY},
    "x-api-key with a hashed key": {"x-api-key": HASHED},
    "x-api-key beside another scheme": {"x-api-key": API_KEY, "Authorization": "Digest username=alice"},
    "Basic": basic("alice", API_KEY),
    "Basic with a hashed key": basic("alice", HASHED),
    "Basic without a user": basic("", API_KEY),
    "Basic with another's name": basic("bob", API_KEY),
    "Basic with any user": basic("溪 any-body@example", API_KEY),
    "basic": {"Authorization": basic("x", API_KEY)["Authorization"].replace("Basic", "basic")},
    "Basic as EventSource sends it": {**basic("", API_KEY), "Accept": "text/event-stream", "Cache-Control": "no-store"},
}


@pytest.mark.parametrize("way", RIGHT)
def test_an_api_key_is_accepted_however_it_is_sent(service: Rill, upstream: Upstream, way: str) -> None:
    upstream.always(*wire.answer("ok"))
    for path in ("/stream?q=hi", "/chat/stream?message=hi", "/v1/models"):
        assert fetch(service, path, RIGHT[way]).status == 200


def ways(key: bytes) -> dict[str, bytes]:
    """Return the header lines that contain an API key of any bytes."""
    return {
        "Bearer": b"Authorization: Bearer " + key,
        "x-api-key": b"x-api-key: " + key,
        "Basic": b"Authorization: Basic " + b64encode(b"alice:" + key),
    }


WRONG = {
    "another": b"wonder-land-0816",
    "empty": b"",
    "blank": b"  ",
    "part of it": API_KEY.encode()[:-1],
    "longer than it": API_KEY.encode() + b"0",
    "another case": API_KEY.upper().encode(),
    "the name": b"alice",
    "the entry": f"alice={API_KEY}".encode(),
    "the hash": sha256(HASHED.encode()).hexdigest().encode(),
    "the hash with its mark": b"sha256:" + sha256(HASHED.encode()).hexdigest().encode(),
    "UTF-8": "wönder-länd-溪".encode(),
    "Latin-1": "wönder-länd".encode("latin-1"),
    "no encoding": b"\xff\xfe\x80wonder",
    "huge": b"w" * 5500,
    "the service's key": KEY.encode(),
    "two": f"{API_KEY} {API_KEY}".encode(),
    "two with a comma": f"{API_KEY},{HASHED}".encode(),
}


@pytest.mark.parametrize("way", ways(b""))
@pytest.mark.parametrize("name", WRONG)
def test_no_other_api_key_is_accepted(service: Rill, upstream: Upstream, name: str, way: str) -> None:
    line = ways(WRONG[name])[way] + f"\r\nX-Forwarded-For: {new_address()}".encode()
    for path in (b"/stream?q=hi", b"/v1/models"):
        response = send(service.port, b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (path, line))
        assert response.status == 401
        assert {"Bearer", "Basic"} <= {each.split()[0] for each in response.headers["www-authenticate"].split(", ")}
        assert "x-api-key" in response.text
        assert_headers(response)
    assert upstream.requests == []


def test_an_api_key_of_seven_thousand_characters_is_a_401(service: Rill) -> None:
    for header in ({"Authorization": "Bearer " + "w" * 7000}, {"x-api-key": "w" * 7000}):
        assert fetch(service, "/stream?q=hi", {**header, **from_new_address()}).status == 401


ELSEWHERE = {
    "token": f"/stream?q=hi&token={API_KEY}",
    "api_key": f"/stream?q=hi&api_key={API_KEY}",
    "access_token": f"/stream?q=hi&access_token={API_KEY}",
    "key": f"/stream?q=hi&key={API_KEY}",
    "x-api-key": f"/stream?q=hi&x-api-key={API_KEY}",
    "authorization": f"/stream?q=hi&authorization=Bearer%20{API_KEY}",
    "in chat": f"/chat/stream?message=hi&token={API_KEY}&api_key={API_KEY}",
    "in models": f"/v1/models?api_key={API_KEY}&key={API_KEY}",
    "a user of the absolute form": f"http://alice:{API_KEY}@127.0.0.1/stream?q=hi",
    "a user without a password": f"http://{API_KEY}@127.0.0.1/stream?q=hi",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_api_key_in_the_url_is_not_accepted(service: Rill, upstream: Upstream, name: str) -> None:
    # A target with a user in it is not valid: https://www.rfc-editor.org/rfc/rfc9110#section-4.2.4
    assert fetch(service, ELSEWHERE[name], from_new_address()).status == (400 if "@" in ELSEWHERE[name] else 401)
    assert upstream.requests == []


@pytest.mark.parametrize("header", ["Cookie", "Proxy-Authorization", "X-Auth-Token", "Api-Key", "Referer"])
def test_an_api_key_in_another_header_or_in_the_body_is_not_accepted(
    service: Rill, upstream: Upstream, header: str
) -> None:
    value = {"Cookie": f"token={API_KEY}; x-api-key={API_KEY}", "Proxy-Authorization": f"Bearer {API_KEY}"}.get(
        header, API_KEY
    )
    form = {"Content-Type": "application/x-www-form-urlencoded", header: value, **from_new_address()}
    body = f"q=hi&token={API_KEY}&api_key={API_KEY}&authorization=Bearer+{API_KEY}".encode()
    assert fetch(service, "/stream", form, "POST", body).status == 401
    assert upstream.requests == []


def test_the_log_names_the_client_and_never_contains_its_key(service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    for number, (key, name) in enumerate([(API_KEY, "alice"), (HASHED, "bob")]):
        identity = f"named-{number}"
        fetch(service, "/stream?q=hi", {"x-api-key": key, "X-Request-Id": identity})
        assert logged(service, identity)["client"] == name
    fetch(service, "/stream?q=hi", {"x-api-key": "wonder-land-mistyped"})
    for secret in (API_KEY, HASHED, sha256(HASHED.encode()).hexdigest(), "wonder-land-mistyped"):
        assert secret not in service.output()


def logged(service: Rill, identity: str) -> dict[str, Any]:
    """Wait for the log line of a request, and return it."""
    deadline = time.monotonic() + 10
    while True:
        for line in service.output().splitlines():
            if line.startswith("{") and json.loads(line).get("request_id") == identity:
                found: dict[str, Any] = json.loads(line)
                return found
        assert time.monotonic() < deadline, f"no log line of {identity}"
        time.sleep(0.02)


# Which key is sent to whom


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("way", ["Bearer", "x-api-key", "Basic"])
def test_a_clients_api_key_never_reaches_the_upstream(service: Rill, upstream: Upstream, name: str, way: str) -> None:
    upstream.always(*wire.answer("ok"))
    method, path, headers, body = REQUESTS[name]
    everywhere = {"Cookie": f"t={API_KEY}", "Proxy-Authorization": f"Bearer {API_KEY}", "X-Forwarded-For": API_KEY}
    more = {**headers, **everywhere, "Referer": f"http://x/?t={API_KEY}", "User-Agent": API_KEY, "X-Api-Token": API_KEY}
    url = f"{path}{'&' if '?' in path else '?'}token={API_KEY}&api_key={API_KEY}"
    assert fetch(service, url, {**more, **RIGHT[way]}, method, body).status == 200
    (request,) = upstream.requests
    seen = f"{request.path} {request.headers} {request.body.decode()}"
    for form in (API_KEY, b64encode(f"alice:{API_KEY}".encode()).decode(), b64encode(API_KEY.encode()).decode()):
        assert form not in seen
    assert KEY in request.headers.get("x-api-key", "") + request.headers.get("authorization", "")


ONCE = {"x-should-retry": "false"}


def echo(code: int, type: str = "invalid_request_error", message: str = "no", **headers: str) -> list[Step]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [wire.error(code, type, message, {**ONCE, **named})]


def echo_in_mid_stream(*events: bytes) -> list[Step]:
    return [wire.head(), wire.send(wire.opening(), wire.text("one")), *(wire.send(each) for each in events), wire.end()]


MESSAGE = f"Bad header: Authorization: Bearer {KEY} ({KEY})"
ERROR = wire.stream_error("invalid_request_error", MESSAGE)
MIDDLE = ERROR.index(KEY.encode()) + len(KEY) // 2
# A relay that repeats the key that it was sent, in every possible location.
ECHOES = {
    "a 400's message": echo(400, message=MESSAGE),
    "a 413's message": echo(413, "request_too_large", MESSAGE),
    "a 401's message": echo(401, "authentication_error", MESSAGE),
    "a 500's message": echo(500, "api_error", MESSAGE),
    "an error's type": echo(400, KEY, "no"),
    "a 500's type": echo(500, KEY, KEY),
    "a body that is not JSON": [wire.status(400, {**ONCE, "content-type": "text/plain"}, MESSAGE.encode())],
    "a header": echo(400, x_debug=KEY, server=KEY, set_cookie=KEY, www_authenticate=KEY),
    "the request's id": echo(400, request_id=KEY),
    "Retry-After": echo(429, "rate_limit_error", retry_after=KEY),
    "a header of the rate": echo(429, "rate_limit_error", anthropic_ratelimit_tokens_limit=KEY),
    "a header of an answer": [wire.head({"request-id": KEY, "anthropic-ratelimit-x": KEY}), *wire.answer("ok")[1:]],
    "an error first": [wire.head(), wire.send(ERROR), wire.end()],
    "an error before the text": [wire.head(), wire.send(wire.opening()), wire.send(ERROR), wire.end()],
    "an error in mid-stream": echo_in_mid_stream(ERROR),
    "an error's type in mid-stream": echo_in_mid_stream(wire.stream_error(KEY, "no")),
    "an error in two reads": [
        *echo_in_mid_stream(ERROR[:MIDDLE])[:-1],
        *[wire.pause(0.1), wire.send(ERROR[MIDDLE:]), wire.end()],
    ],
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("location", ECHOES)
def test_the_upstream_key_never_reaches_a_client(service: Rill, upstream: Upstream, location: str, name: str) -> None:
    upstream.always(*ECHOES[location])
    method, path, headers, body = REQUESTS[name]
    response = fetch(service, path, {**ALICE, **headers}, method, body)
    assert upstream.requests
    assert response.status is not None
    assert KEY not in response.whole()


@pytest.mark.parametrize(
    "location", [location for location in ECHOES if "stream" not in location and "first" not in location]
)
@pytest.mark.parametrize("path", [MESSAGES, COMPLETIONS])
def test_the_upstream_key_is_never_in_a_non_streamed_response(
    service: Rill, upstream: Upstream, location: str, path: str
) -> None:
    upstream.always(*ECHOES[location])
    response = fetch(service, path, {**ALICE, **JSON}, "POST", chat())
    assert upstream.requests
    assert KEY not in response.whole()


def test_the_upstream_key_is_never_logged_even_if_a_relay_repeats_it(service: Rill, upstream: Upstream) -> None:
    since = len(service.output())
    for location, steps in ECHOES.items():
        upstream.always(*steps)
        identity = f"echo-{location}".replace(" ", "-").replace("'", "")
        fetch(service, "/stream?q=hi", {**ALICE, "X-Request-Id": identity})
        logged(service, identity)
        assert KEY not in service.output()[since:], location


# Addresses of a client


TWINS = [
    ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
    ("2001:db8:1:3::1", "2001:DB8:1:3:0:0:0:1"),
    ("203.0.113.7", "::ffff:203.0.113.7"),
    ("::ffff:203.0.113.8", "::ffff:cb00:7108"),
]
OTHERS = [
    ("2001:db8:2:4::1", "2001:db8:2:5::1"),
    ("2001:db8:3::1", "2001:db9:3::1"),
    ("203.0.113.17", "203.0.113.18"),
    ("::ffff:203.0.113.27", "::ffff:203.0.113.28"),
]


@pytest.mark.parametrize(("first", "second"), TWINS, ids=lambda address: address.replace(":", "."))
def test_addresses_of_one_client_share_its_rate_limit(
    limited: Rill, upstream: Upstream, first: str, second: str
) -> None:
    upstream.always(*wire.answer("ok"))
    asked = [fetch(limited, "/stream?q=hi", {"X-Forwarded-For": each}).status for each in [first] * RATE + [second]]
    assert asked == [*[200] * RATE, 429]


@pytest.mark.parametrize(("first", "second"), OTHERS, ids=lambda address: address.replace(":", "."))
def test_addresses_of_two_clients_have_a_rate_limit_each(
    limited: Rill, upstream: Upstream, first: str, second: str
) -> None:
    upstream.always(*wire.answer("ok"))
    asked = [fetch(limited, "/stream?q=hi", {"X-Forwarded-For": each}).status for each in [first] * RATE + [second]]
    assert asked == [200] * (RATE + 1)


def test_invalid_addresses_are_one_client_and_do_not_affect_others(limited: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    sent = ["unknown", "203.0.113.9:1234x", "fe80::1%eth0/../..", "a" * 3000, "_hidden", "\x7f"]
    asked = [fetch(limited, "/stream?q=hi", {"X-Forwarded-For": each}).status for each in sent]
    assert set(asked) <= {200, 429, 400}
    assert fetch(limited, "/stream?q=hi", {"X-Forwarded-For": new_address()}).status == 200
