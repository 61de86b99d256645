"""What guards every route, and what every answer carries: headers, tokens, rates, and whose key nobody sees."""

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

TOKEN = "wonder-land-0815"
HASHED = "looking-glass-4711"
KEY = "sk-live-key-2718281828"
MODEL = "claude-sonnet-5-5"
RATE = 2

_addresses = itertools.count(1)


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a service whose clients have tokens, and whose addresses a proxy tells: failures are limited for each."""
    tokens = f"alice={TOKEN},bob=sha256:{sha256(HASHED.encode()).hexdigest()}"
    return share_rill(
        ANTHROPIC_API_KEY=KEY,
        RILL_API_KEYS=tokens,
        RILL_MAX_BODY_BYTES="2000",
        RILL_ALLOWED_MODELS=MODEL,
        RILL_TRUSTED_PROXIES="1",
    )


@pytest.fixture
def open_house(share_rill: StartRill) -> Rill:
    """Return a service for anybody, RATE times an hour and one answer at a time, known by the address that a proxy tells."""
    return share_rill(RILL_RATE_LIMIT=f"{RATE}/hour", RILL_TRUSTED_PROXIES="1", RILL_MAX_STREAMS_PER_CLIENT="1")


class Told(NamedTuple):
    """An answer, read to its end."""

    status: int | None
    headers: dict[str, str]
    text: str

    def whole(self) -> str:
        """Return all that the client has got."""
        return f"{self.status} {self.headers} {self.text}"


def send(port: int, request: bytes) -> Told:
    with Conversation(port, request) as asked:
        return Told(asked.status, asked.headers, asked.read_rest().decode())


def ask(
    service: Rill, path: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: bytes = b""
) -> Told:
    return send(service.port, request_bytes(method, path, headers, body))


def new_address() -> str:
    """Return the address of a client that has never asked."""
    number = next(_addresses)
    return f"198.51.{100 + number // 250}.{number % 250 + 1}"


def from_new_address() -> dict[str, str]:
    """Return the header by which a proxy tells such an address."""
    return {"X-Forwarded-For": new_address()}


def chat(**more: Any) -> bytes:
    """Return a body that both SDKs' dialects take."""
    fields = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({**fields, **more}).encode()


ALICE = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
SSE = {"Accept": "text/event-stream"}
MESSAGES, COMPLETIONS = "/v1/messages", "/v1/chat/completions"
# Every way of asking for an answer: method, path, headers, body.
ASKING: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "GET /stream": ("GET", "/stream?q=hi", {}, b""),
    "POST /stream": ("POST", "/stream", {}, b"hi"),
    "GET /stream as events": ("GET", "/stream?q=hi", SSE, b""),
    "GET /chat/stream": ("GET", "/chat/stream?message=hi", {}, b""),
    "POST /v1/messages": ("POST", MESSAGES, JSON, chat(stream=True)),
    "POST /v1/chat/completions": ("POST", COMPLETIONS, JSON, chat(stream=True)),
}
# Every other route; none of them costs anything, however often it is asked.
FREE = ["/", "/page.js", "/page.css", "/openapi.json", "/v1/models", "/healthz", "/readyz", "/metrics"]


def there_is(path: str) -> bool:
    """Return whether the file that a route of the page shows is there."""
    file = {"/": "page/index.html", "/page.js": "page/page.js", "/page.css": "page/page.css"}.get(path)
    return file is None or (ROOT / "rill" / file).exists()


def test_every_route_is_covered_here() -> None:
    routes = {f"{','.join(sorted(rule.methods - {'HEAD', 'OPTIONS'}))} {rule.rule}" for rule in rules()}
    asking = {name.removesuffix(" as events") for name in ASKING}
    assert routes == asking | {f"GET {path}" for path in [*FREE, "/drip"]}


def rules() -> list[Any]:
    settings = Settings.model_validate({"RILL_OFFLINE": "1"})
    return list(create_app(settings).url_map.iter_rules())


# What every answer carries


REFUSED = {
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
    "404 of a file": ("GET", "/../rill/settings.py", {}, b"", 404),
    "404 /v1/": ("GET", "/v1/nowhere", {}, b"", 404),
    "405": ("DELETE", "/stream", {}, b"", 405),
    "405 page": ("POST", "/", {}, b"", 405),
    "405 Messages": ("GET", MESSAGES, {}, b"", 405),
    "413": ("POST", "/stream", ALICE, b"a" * 2001, 413),
    "415": ("POST", "/stream", {**ALICE, "Content-Type": "image/png"}, b"hi", 415),
}
PROMISED = {
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def directives(told: Told) -> dict[str, str]:
    """Return the Content-Security-Policy, by directive."""
    policy = told.headers["content-security-policy"]
    return {name: values for name, _, values in (each.strip().partition(" ") for each in policy.split(";") if each)}


def assert_promised(told: Told) -> None:
    assert {name: told.headers.get(name) for name in PROMISED} == PROMISED
    assert len(told.headers["x-request-id"]) >= 8
    policy = directives(told)
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    assert "unsafe" not in told.headers["content-security-policy"]
    assert "server" not in told.headers or "python" not in told.headers["server"].lower()


@pytest.mark.parametrize("name", ASKING)
def test_no_answer_may_be_stored_buffered_changed_or_rendered_as_a_page(
    service: Rill, upstream: Upstream, name: str
) -> None:
    upstream.always(*wire.answer("ok"))
    method, path, headers, body = ASKING[name]
    told = ask(service, path, {**ALICE, **headers}, method, body)
    assert told.status == 200
    assert_promised(told)


@pytest.mark.parametrize("path", FREE)
def test_every_other_route_sends_the_same_headers(service: Rill, path: str) -> None:
    if not there_is(path):
        pytest.skip(f"{path} is not there yet")
    for method in ("GET", "HEAD", "OPTIONS"):
        told = ask(service, path, ALICE, method)
        assert told.status == 200
        assert_promised(told)


def test_the_drip_sends_the_same_headers(service: Rill) -> None:
    with service.ask("GET", "/drip", ALICE) as asked:
        assert_promised(Told(asked.status, asked.headers, ""))


@pytest.mark.parametrize("name", REFUSED)
def test_every_rejection_sends_the_same_headers(service: Rill, upstream: Upstream, name: str) -> None:
    method, path, headers, body, status = REFUSED[name]
    told = ask(service, path, headers, method, body)
    assert (told.status, bool(told.text.strip())) == (status, True)
    assert_promised(told)
    assert upstream.requests == []


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("step", [wire.error(529, "overloaded_error", "x", {"x-should-retry": "false"}), wire.reset()])
def test_every_upstream_error_sends_the_same_headers(service: Rill, upstream: Upstream, name: str, step: Step) -> None:
    upstream.always(step)
    method, path, headers, body = ASKING[name]
    told = ask(service, path, {**ALICE, **headers}, method, body)
    assert told.status in (502, 503)
    assert_promised(told)


UNREADABLE = {
    "400": b"GET /stream?q=a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "414": request_bytes("GET", "/stream?q=" + "a" * 9000),
    "431": request_bytes("GET", "/stream?q=hi", {"X-Huge": "a" * 9000}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_response_to_an_unparseable_request_may_not_be_stored_or_sniffed(service: Rill, name: str) -> None:
    told = send(service.port, UNREADABLE[name])
    assert told.status == int(name)
    assert told.headers["x-content-type-options"] == "nosniff"
    assert "no-store" in told.headers["cache-control"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
def test_the_page_loads_nothing_from_other_origins_and_runs_no_inline_code(service: Rill, path: str) -> None:
    if not there_is(path):
        pytest.skip(f"{path} is not there yet")
    policy = directives(ask(service, path))
    for directive in ("script-src", "style-src", "connect-src"):
        assert policy[directive] == "'self'"
    assert (policy["base-uri"], policy["form-action"]) == ("'none'", "'none'")


# What costs nothing


@pytest.mark.parametrize("path", [*FREE, "/stream?q=hi", "/chat/stream?message=hi", "/drip"])
def test_head_costs_nothing(open_house: Rill, upstream: Upstream, path: str) -> None:
    client = {"X-Forwarded-For": new_address()}
    if not there_is(path):
        pytest.skip(f"{path} is not there yet")
    for _ in range(RATE + 1):
        told = ask(open_house, path, client, "HEAD")
        assert (told.status, told.text) == (200, "")
    assert upstream.requests == []
    assert_may_still_ask(open_house, upstream, client)


@pytest.mark.parametrize("header", ["Sec-Purpose", "Purpose"])
@pytest.mark.parametrize("purpose", ["prefetch", "prefetch;prerender", "prefetch; anonymous-client-ip", "a, prefetch"])
@pytest.mark.parametrize("path", ["/stream?q=hi", "/chat/stream?message=hi"])
def test_a_prefetch_costs_nothing(open_house: Rill, upstream: Upstream, path: str, header: str, purpose: str) -> None:
    client = {"X-Forwarded-For": new_address()}
    for _ in range(RATE + 1):
        assert ask(open_house, path, {**client, header: purpose}).status == 403
    assert upstream.requests == []
    assert_may_still_ask(open_house, upstream, client)


@pytest.mark.parametrize("path", FREE)
def test_a_route_that_sends_nothing_upstream_has_no_rate_limit(open_house: Rill, upstream: Upstream, path: str) -> None:
    client = {"X-Forwarded-For": new_address()}
    if not there_is(path):
        pytest.skip(f"{path} is not there yet")
    assert {ask(open_house, path, client).status for _ in range(RATE + 2)} == {200}
    assert upstream.requests == []
    assert_may_still_ask(open_house, upstream, client)


def assert_may_still_ask(service: Rill, upstream: Upstream, client: dict[str, str]) -> None:
    """The client has all of its rate left."""
    upstream.always(*wire.answer("ok"))
    asked = [ask(service, "/stream?q=hi", client).status for _ in range(RATE + 1)]
    assert asked == [*[200] * RATE, 429]


def test_the_drip_counts_as_a_request(open_house: Rill, upstream: Upstream) -> None:
    client = {"X-Forwarded-For": new_address()}
    upstream.always(*wire.answer("ok"))
    assert ask(open_house, "/stream?q=hi", client).status == 200
    with open_house.ask("GET", "/drip", client) as asked:
        assert (asked.status, asked.next_chunk()) == (200, b"1 of 10\n")
    assert ask(open_house, "/drip", client).status == 429


# Too often, too many


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
    open_house: Rill, upstream: Upstream, shape: str
) -> None:
    client = {"X-Forwarded-For": new_address()}
    upstream.always(*wire.answer("ok"))
    for _ in range(RATE):
        ask(open_house, "/stream?q=hi", client)
    method, path, headers, body = SHAPES[shape]
    told = ask(open_house, path, {**client, **headers}, method, body)
    assert told.status == 429
    assert f"At most {RATE} per hour for one client" in told.text
    assert 1 <= int(told.headers["retry-after"]) <= 3600
    assert told.headers["ratelimit-limit"] == str(RATE)
    assert told.headers["ratelimit-remaining"] == "0"
    assert told.headers["ratelimit-reset"] == told.headers["retry-after"]
    assert told.headers["ratelimit-policy"] == f"{RATE};w=3600"
    assert_promised(told)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_concurrency_rejection_states_the_limit_and_when_to_retry(
    open_house: Rill, upstream: Upstream, shape: str
) -> None:
    client = {"X-Forwarded-For": new_address()}
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("one")), wire.silence())
    with open_house.ask("GET", "/stream?q=hi", client) as first:
        assert first.next_chunk() == b"one"
        method, path, headers, body = SHAPES[shape]
        told = ask(open_house, path, {**client, **headers}, method, body)
        assert (told.status, told.headers["retry-after"]) == (429, "1")
        assert "At most 1 concurrent answers for one client" in told.text
        assert "ratelimit-limit" not in told.headers  # waiting for its reset would not help
        assert_promised(told)
    upstream.wait_until_left()


# Which token, and how it is sent


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


RIGHT: dict[str, dict[str, str]] = {
    "Bearer": {"Authorization": f"Bearer {TOKEN}"},
    "bearer": {"Authorization": f"bearer {TOKEN}"},
    "BEARER": {"Authorization": f"BEARER {TOKEN}"},
    "bEaReR": {"authorization": f"bEaReR {TOKEN}"},
    "Bearer of a hashed one": {"Authorization": f"Bearer {HASHED}"},
    "x-api-key": {"x-api-key": TOKEN},
    "X-API-KEY": {"X-API-KEY": TOKEN},
    "x-api-key of a hashed one": {"x-api-key": HASHED},
    "x-api-key beside another scheme": {"x-api-key": TOKEN, "Authorization": "Digest username=alice"},
    "Basic": basic("alice", TOKEN),
    "Basic of a hashed one": basic("alice", HASHED),
    "Basic without a user": basic("", TOKEN),
    "Basic of another's name": basic("bob", TOKEN),
    "Basic of any user": basic("溪 any-body@example", TOKEN),
    "basic": {"Authorization": basic("x", TOKEN)["Authorization"].replace("Basic", "basic")},
    "Basic as EventSource sends it": {**basic("", TOKEN), "Accept": "text/event-stream", "Cache-Control": "no-store"},
}


@pytest.mark.parametrize("way", RIGHT)
def test_an_api_key_is_accepted_however_it_is_sent(service: Rill, upstream: Upstream, way: str) -> None:
    upstream.always(*wire.answer("ok"))
    for path in ("/stream?q=hi", "/chat/stream?message=hi", "/v1/models"):
        assert ask(service, path, RIGHT[way]).status == 200


def ways(token: bytes) -> dict[str, bytes]:
    """Return the header lines that carry a token, whatever bytes it is of."""
    return {
        "Bearer": b"Authorization: Bearer " + token,
        "x-api-key": b"x-api-key: " + token,
        "Basic": b"Authorization: Basic " + b64encode(b"alice:" + token),
    }


WRONG = {
    "another": b"wonder-land-0816",
    "empty": b"",
    "blank": b"  ",
    "part of it": TOKEN.encode()[:-1],
    "more than it": TOKEN.encode() + b"0",
    "another case": TOKEN.upper().encode(),
    "the name": b"alice",
    "the entry": f"alice={TOKEN}".encode(),
    "the hash": sha256(HASHED.encode()).hexdigest().encode(),
    "the hash with its mark": b"sha256:" + sha256(HASHED.encode()).hexdigest().encode(),
    "UTF-8": "wönder-länd-溪".encode(),
    "Latin-1": "wönder-länd".encode("latin-1"),
    "no encoding": b"\xff\xfe\x80wonder",
    "huge": b"w" * 5500,
    "the service's key": KEY.encode(),
    "two": f"{TOKEN} {TOKEN}".encode(),
    "two with a comma": f"{TOKEN},{HASHED}".encode(),
}


@pytest.mark.parametrize("way", ways(b""))
@pytest.mark.parametrize("name", WRONG)
def test_no_other_api_key_is_accepted(service: Rill, upstream: Upstream, name: str, way: str) -> None:
    line = ways(WRONG[name])[way] + f"\r\nX-Forwarded-For: {new_address()}".encode()
    for path in (b"/stream?q=hi", b"/v1/models"):
        told = send(service.port, b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (path, line))
        assert told.status == 401
        assert {"Bearer", "Basic"} <= {each.split()[0] for each in told.headers["www-authenticate"].split(", ")}
        assert "x-api-key" in told.text
        assert_promised(told)
    assert upstream.requests == []


def test_an_api_key_of_seven_thousand_characters_is_a_401(service: Rill) -> None:
    for header in ({"Authorization": "Bearer " + "w" * 7000}, {"x-api-key": "w" * 7000}):
        assert ask(service, "/stream?q=hi", {**header, **from_new_address()}).status == 401


ELSEWHERE = {
    "token": f"/stream?q=hi&token={TOKEN}",
    "api_key": f"/stream?q=hi&api_key={TOKEN}",
    "access_token": f"/stream?q=hi&access_token={TOKEN}",
    "key": f"/stream?q=hi&key={TOKEN}",
    "x-api-key": f"/stream?q=hi&x-api-key={TOKEN}",
    "authorization": f"/stream?q=hi&authorization=Bearer%20{TOKEN}",
    "of chat": f"/chat/stream?message=hi&token={TOKEN}&api_key={TOKEN}",
    "of models": f"/v1/models?api_key={TOKEN}&key={TOKEN}",
    "a user of the absolute form": f"http://alice:{TOKEN}@127.0.0.1/stream?q=hi",
    "a user without a password": f"http://{TOKEN}@127.0.0.1/stream?q=hi",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_api_key_in_the_url_is_not_accepted(service: Rill, upstream: Upstream, name: str) -> None:
    # A target with a user in it is not valid: https://www.rfc-editor.org/rfc/rfc9110#section-4.2.4
    assert ask(service, ELSEWHERE[name], from_new_address()).status == (400 if "@" in ELSEWHERE[name] else 401)
    assert upstream.requests == []


@pytest.mark.parametrize("header", ["Cookie", "Proxy-Authorization", "X-Auth-Token", "Api-Key", "Referer"])
def test_an_api_key_in_another_header_or_in_the_body_is_not_accepted(
    service: Rill, upstream: Upstream, header: str
) -> None:
    value = {"Cookie": f"token={TOKEN}; x-api-key={TOKEN}", "Proxy-Authorization": f"Bearer {TOKEN}"}.get(header, TOKEN)
    form = {"Content-Type": "application/x-www-form-urlencoded", header: value, **from_new_address()}
    body = f"q=hi&token={TOKEN}&api_key={TOKEN}&authorization=Bearer+{TOKEN}".encode()
    assert ask(service, "/stream", form, "POST", body).status == 401
    assert upstream.requests == []


def test_the_log_names_the_client_and_never_contains_its_key(service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    for number, (token, name) in enumerate([(TOKEN, "alice"), (HASHED, "bob")]):
        identity = f"named-{number}"
        ask(service, "/stream?q=hi", {"x-api-key": token, "X-Request-Id": identity})
        assert logged(service, identity)["client"] == name
    ask(service, "/stream?q=hi", {"x-api-key": "wonder-land-mistyped"})
    for secret in (TOKEN, HASHED, sha256(HASHED.encode()).hexdigest(), "wonder-land-mistyped"):
        assert secret not in service.output()


def logged(service: Rill, identity: str) -> dict[str, Any]:
    """Wait for the log line of one request."""
    deadline = time.monotonic() + 10
    while True:
        for line in service.output().splitlines():
            if line.startswith("{") and json.loads(line).get("request_id") == identity:
                found: dict[str, Any] = json.loads(line)
                return found
        assert time.monotonic() < deadline, f"no line about {identity}"
        time.sleep(0.02)


# Whose token goes where


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("way", ["Bearer", "x-api-key", "Basic"])
def test_a_clients_api_key_never_reaches_the_upstream(service: Rill, upstream: Upstream, name: str, way: str) -> None:
    upstream.always(*wire.answer("ok"))
    method, path, headers, body = ASKING[name]
    everywhere = {"Cookie": f"t={TOKEN}", "Proxy-Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": TOKEN}
    more = {**headers, **everywhere, "Referer": f"http://x/?t={TOKEN}", "User-Agent": TOKEN, "X-Api-Token": TOKEN}
    url = f"{path}{'&' if '?' in path else '?'}token={TOKEN}&api_key={TOKEN}"
    assert ask(service, url, {**more, **RIGHT[way]}, method, body).status == 200
    (request,) = upstream.requests
    seen = f"{request.path} {request.headers} {request.body.decode()}"
    for form in (TOKEN, b64encode(f"alice:{TOKEN}".encode()).decode(), b64encode(TOKEN.encode()).decode()):
        assert form not in seen
    assert KEY in request.headers.get("x-api-key", "") + request.headers.get("authorization", "")


ONCE = {"x-should-retry": "false"}


def echo(code: int, type: str = "invalid_request_error", message: str = "no", **headers: str) -> list[Step]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [wire.error(code, type, message, {**ONCE, **named})]


def echo_in_mid_stream(*events: bytes) -> list[Step]:
    return [wire.head(), wire.send(wire.opening(), wire.text("one")), *(wire.send(each) for each in events), wire.end()]


WORDS = f"Bad header: Authorization: Bearer {KEY} ({KEY})"
ERROR = wire.stream_error("invalid_request_error", WORDS)
MIDDLE = ERROR.index(KEY.encode()) + len(KEY) // 2
# A relay that tells the key it was sent, wherever it can.
ECHOES = {
    "a 400's words": echo(400, message=WORDS),
    "a 413's words": echo(413, "request_too_large", WORDS),
    "a 401's words": echo(401, "authentication_error", WORDS),
    "a 500's words": echo(500, "api_error", WORDS),
    "an error's type": echo(400, KEY, "no"),
    "a 500's type": echo(500, KEY, KEY),
    "a body that is no JSON": [wire.status(400, {**ONCE, "content-type": "text/plain"}, WORDS.encode())],
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


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("place", ECHOES)
def test_the_upstream_key_never_reaches_a_client(service: Rill, upstream: Upstream, place: str, name: str) -> None:
    upstream.always(*ECHOES[place])
    method, path, headers, body = ASKING[name]
    told = ask(service, path, {**ALICE, **headers}, method, body)
    assert upstream.requests
    assert told.status is not None
    assert KEY not in told.whole()


@pytest.mark.parametrize("place", [place for place in ECHOES if "stream" not in place and "first" not in place])
@pytest.mark.parametrize("path", [MESSAGES, COMPLETIONS])
def test_the_upstream_key_is_never_in_a_non_streamed_response(
    service: Rill, upstream: Upstream, place: str, path: str
) -> None:
    upstream.always(*ECHOES[place])
    told = ask(service, path, {**ALICE, **JSON}, "POST", chat())
    assert upstream.requests
    assert KEY not in told.whole()


def test_the_upstream_key_is_never_logged_even_if_a_relay_repeats_it(service: Rill, upstream: Upstream) -> None:
    since = len(service.output())
    for place, steps in ECHOES.items():
        upstream.always(*steps)
        identity = f"echo-{place}".replace(" ", "-").replace("'", "")
        ask(service, "/stream?q=hi", {**ALICE, "X-Request-Id": identity})
        logged(service, identity)
        assert KEY not in service.output()[since:], place


# One client


TWINS = [
    ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
    ("2001:db8:1:3::1", "2001:DB8:1:3:0:0:0:1"),
    ("203.0.113.7", "::ffff:203.0.113.7"),
    ("::ffff:203.0.113.8", "::ffff:cb00:7108"),
]
STRANGERS = [
    ("2001:db8:2:4::1", "2001:db8:2:5::1"),
    ("2001:db8:3::1", "2001:db9:3::1"),
    ("203.0.113.17", "203.0.113.18"),
    ("::ffff:203.0.113.27", "::ffff:203.0.113.28"),
]


@pytest.mark.parametrize(("first", "second"), TWINS, ids=lambda address: address.replace(":", "."))
def test_addresses_of_one_client_share_its_rate_limit(
    open_house: Rill, upstream: Upstream, first: str, second: str
) -> None:
    upstream.always(*wire.answer("ok"))
    asked = [ask(open_house, "/stream?q=hi", {"X-Forwarded-For": each}).status for each in [first] * RATE + [second]]
    assert asked == [*[200] * RATE, 429]


@pytest.mark.parametrize(("first", "second"), STRANGERS, ids=lambda address: address.replace(":", "."))
def test_addresses_of_two_clients_have_a_rate_limit_each(
    open_house: Rill, upstream: Upstream, first: str, second: str
) -> None:
    upstream.always(*wire.answer("ok"))
    asked = [ask(open_house, "/stream?q=hi", {"X-Forwarded-For": each}).status for each in [first] * RATE + [second]]
    assert asked == [200] * (RATE + 1)


def test_invalid_addresses_are_one_client_and_do_not_affect_others(open_house: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    sent = ["unknown", "203.0.113.9:1234x", "fe80::1%eth0/../..", "a" * 3000, "_hidden", "\x7f"]
    asked = [ask(open_house, "/stream?q=hi", {"X-Forwarded-For": each}).status for each in sent]
    assert set(asked) <= {200, 429, 400}
    assert ask(open_house, "/stream?q=hi", {"X-Forwarded-For": new_address()}).status == 200
