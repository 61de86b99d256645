"""No secret is in any output at any log level: no prompt, answer, API key, upstream key or password."""

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
import upstream as wire
from conversation import Conversation, request_bytes
from leaks import Leak, find_leaks, forms
from server import Rill, StartRill, rill_env
from upstream import Step, Upstream

MODEL = "claude-sonnet-5-5"
API_KEY, WRONG_KEY = "tok-vellichor-2093", "tok-mistyped-8842"
UPSTREAM_KEY = "sk-ant-quixotry-6650"
REDIS_PASSWORD = "pw-susurrus-9417"
# An ASCII word, which is the same in every text encoding, and other letters, which each encoding writes differently.
PROMPT_WORD, PROMPT_LETTERS = "petrichor7313", "溪水潺潺流过青石"
SYSTEM, DEFAULT_SYSTEM = "sesquipedal4127", "own-system-perspicuity-3141"
ANSWER_WORD, ANSWER_LETTERS = "wainscoting5561", "苔痕上阶绿草色"
CANARIES = {
    PROMPT_WORD: "ASCII prompt",
    PROMPT_LETTERS: "non-ASCII prompt",
    SYSTEM: "system prompt",
    DEFAULT_SYSTEM: "default system prompt",
    ANSWER_WORD: "ASCII answer",
    ANSWER_LETTERS: "non-ASCII answer",
    API_KEY: "client's API key",
    WRONG_KEY: "wrong API key",
    UPSTREAM_KEY: "upstream key",
    REDIS_PASSWORD: "password of Redis",
}
# Settings that enable verbose output; ANTHROPIC_LOG makes the SDK print everything that it sends.
SDK = {"ANTHROPIC_LOG": "debug", "HTTPX_LOG_LEVEL": "trace", "HTTPX2_LOG_LEVEL": "trace"}
ALWAYS = {"FLASK_DEBUG": "1", "PYTHONUNBUFFERED": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "always"}
VERBOSE: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "by arguments": (("--log-level", "debug", "--access-logfile", "-", "--capture-output"), SDK),
    "by the platform": ((), {**SDK, **ALWAYS, "GUNICORN_CMD_ARGS": "--access-logfile - --log-level debug"}),
}


# A server with a secret of every kind; its Redis is unreachable.
ENV = {
    "ANTHROPIC_API_KEY": UPSTREAM_KEY,
    "RILL_API_KEYS": f"alice={API_KEY}",
    "RILL_SYSTEM_PROMPT": f"Be {DEFAULT_SYSTEM}.",
    "REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0",
    "RILL_MAX_BODY_BYTES": "3000",
    "RILL_ALLOWED_MODELS": MODEL,
    "RILL_UPSTREAM_FEATURES": PROMPT_WORD,
}


@pytest.fixture(params=VERBOSE)
def service(share_rill: StartRill, request: pytest.FixtureRequest) -> Rill:
    """Return a server with verbose output."""
    arguments, env = VERBOSE[request.param]
    return share_rill(*arguments, **ENV, **env)


class Case(NamedTuple):
    """A request, the upstream's answer to it, and whether the response may contain the upstream's message."""

    request: bytes
    steps: list[Step]
    is_forwarded: bool = False


PROMPT = f'Say "{PROMPT_WORD}" & {PROMPT_LETTERS}'
ANSWER = f'It is "{ANSWER_WORD}": {ANSWER_LETTERS}\n'
EVERYTHING = f"{PROMPT} {SYSTEM} {ANSWER} {UPSTREAM_KEY}"
ALICE = {"Authorization": f"Bearer {API_KEY}"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SSE = {"Accept": "text/event-stream"}
ONCE = {"x-should-retry": "false"}
MESSAGES, COMPLETIONS = "/v1/messages", "/v1/chat/completions"
QUERY = f"q={quote(PROMPT)}&system={SYSTEM}"


def get(path: str, headers: Mapping[str, str] | None = None) -> bytes:
    return request_bytes("GET", path, {**ALICE, **(headers or {})})


def post(path: str, body: object, headers: Mapping[str, str] | None = None, ascii_only: bool = False) -> bytes:
    """Return a POST of JSON, or of bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=ascii_only).encode()
    return request_bytes("POST", path, {**ALICE, **JSON, **(headers or {})}, data)


def chat(**more: object) -> dict[str, object]:
    """Return a body that is valid in both SDKs' dialects."""
    return {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}], **more}


# Requests of each dialect, with the prompt in every possible part.
REQUESTS = {
    "query": get(f"/stream?{QUERY}"),
    "events": get(f"/stream?{QUERY}", SSE),
    "chat": get(f"/chat/stream?message={quote(PROMPT)}&system={SYSTEM}"),
    "body": request_bytes("POST", f"/stream?system={SYSTEM}", ALICE, PROMPT.encode()),
    "form": request_bytes("POST", "/stream", {**ALICE, **FORM}, QUERY.encode()),
    "JSON": post("/stream", {"q": PROMPT, "system": SYSTEM}),
    "JSON of ASCII": post("/stream", {"q": PROMPT, "system": SYSTEM}, ascii_only=True),
    "messages": post("/stream", {"messages": [{"role": "user", "content": PROMPT}]}),
    "Messages": post(MESSAGES, chat(system=SYSTEM, stream=True)),
    "OpenAI": post(COMPLETIONS, chat(stream=True)),
    "OpenAI whole": post(COMPLETIONS, chat()),
    "Basic": get(f"/stream?{QUERY}", {"Authorization": "Basic " + b64encode(f"x:{API_KEY}".encode()).decode()}),
    "x-api-key": get(f"/stream?{QUERY}", {"x-api-key": API_KEY, "Authorization": ""}),
}


def started(*after: Step) -> list[Step]:
    """Return an answer that sends all its text, then continues with `after`."""
    return [wire.head(), wire.send(wire.opening(), wire.text(ANSWER)), *after]


def upstream_error(code: int, type: str, message: str = EVERYTHING, **headers: str) -> list[Step]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [wire.error(code, type, message, {**ONCE, **named})]


def body_of(code: int, media_type: str, body: str) -> list[Step]:
    return [wire.status(code, {**ONCE, "content-type": media_type}, body.encode())]


DETAILS = {"type": "refusal", "category": "cyber", "explanation": f"{PROMPT} {ANSWER}"}
# Everything that an upstream may do, with every secret that it knows in every message.
UPSTREAM: dict[str, list[Step]] = {
    "a completed answer": wire.answer(ANSWER, ANSWER),
    "a close": started(wire.close()),
    "a reset": started(wire.reset()),
    "no end mark": started(wire.end()),
    "an error in mid-stream": started(wire.send(wire.stream_error("api_error", EVERYTHING)), wire.end()),
    "an error of an unknown type": started(wire.send(wire.stream_error(EVERYTHING, EVERYTHING)), wire.end()),
    "garbage in mid-stream": started(wire.send(f"data: {{nonsense {EVERYTHING}\n\n".encode()), wire.end()),
    "an odd event": started(
        wire.send(wire.event("content_block_delta", index=EVERYTHING, delta=EVERYTHING)), wire.end()
    ),
    "an error first": [wire.head(), wire.send(wire.stream_error("overloaded_error", EVERYTHING)), wire.end()],
    "a refusal": [wire.head(), wire.send(wire.start(), wire.stop("refusal", stop_details=DETAILS)), wire.end()],
    "401": upstream_error(401, "authentication_error"),
    "403": upstream_error(403, "permission_error"),
    "404": upstream_error(404, "not_found_error"),
    "429": upstream_error(429, "rate_limit_error", retry_after="30"),
    "500": upstream_error(500, "api_error"),
    "529": upstream_error(529, "overloaded_error"),
    "500 again and again": [wire.error(500, "api_error", EVERYTHING, {"retry-after": "0"})],
    "400": upstream_error(400, "invalid_request_error"),
    "413": upstream_error(413, "request_too_large"),
    "an unknown type": upstream_error(418, EVERYTHING),
    "headers": upstream_error(
        502,
        "api_error",
        request_id=f"{PROMPT_WORD} {UPSTREAM_KEY}",
        server=f"{PROMPT_WORD} {UPSTREAM_KEY}",
        x_debug=UPSTREAM_KEY,
    ),
    "HTML": body_of(502, "text/html", f"<html>{EVERYTHING}</html>"),
    "a page in place of events": body_of(200, "text/html", f"<html>{EVERYTHING}</html>"),
    "invalid JSON": body_of(400, "application/json", f'{{"error": {EVERYTHING}'),
    "unexpected JSON": body_of(
        400, "application/json", json.dumps({"error": {"type": [EVERYTHING], "message": [UPSTREAM_KEY]}})
    ),
    "no HTTP": [wire.raw(f"SSH-2.0-{PROMPT_WORD}-{UPSTREAM_KEY}\r\n\r\n".encode()), wire.close()],
    "an odd status": [wire.raw(f"HTTP/1.1 {PROMPT_WORD}\r\n\r\n".encode()), wire.close()],
}
# Cases that are retried with pauses: one dialect is sufficient.
SLOW = {"no HTTP", "an odd status"}
# The upstream's message if it helps the client, and the explanation of a refusal, which is an answer.
FORWARDED = {"400", "413", "a refusal"}
BASIC = b64encode(f"x:{WRONG_KEY}".encode()).decode()
BOUNDARY = {"Content-Type": f"multipart/form-data; boundary={PROMPT_WORD}"}
# Requests that Rill itself rejects, with the secret in every possible part.
REJECTED = {
    "space in the URL": get(f"/stream?q=a {PROMPT_WORD}"),
    "other letters in the URL": f"GET /stream?q={PROMPT_LETTERS}{PROMPT_WORD} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "no HTTP": f"{PROMPT_WORD} {API_KEY}\r\n\r\n".encode(),
    "odd version": f"GET /stream?q={PROMPT_WORD} HTTP/{PROMPT_WORD}\r\nHost: x\r\n\r\n".encode(),
    "long URL": get(f"/stream?q={PROMPT_WORD * 900}"),
    "odd header": get("/stream?q=hi", {f"X {PROMPT_WORD}": API_KEY}),
    "huge header": get("/stream?q=hi", {"X-Huge": f"{PROMPT_WORD}{API_KEY}" * 400}),
    "odd length": request_bytes("POST", "/stream", {**ALICE, "Content-Length": PROMPT_WORD}),
    "odd coding": request_bytes("POST", "/stream", {**ALICE, "Transfer-Encoding": PROMPT_WORD}),
    "odd expectation": request_bytes("POST", "/stream", {**ALICE, "Expect": PROMPT_WORD}, b"hi"),
    "broken chunk": request_bytes("POST", "/stream", {**ALICE, "Transfer-Encoding": "chunked"})
    + f"{PROMPT_WORD}\r\n".encode(),
    "bytes after the body": request_bytes(
        "POST", "/stream", {**ALICE, "Content-Length": "1"}, f" {PROMPT_WORD}\r\n\r\n".encode()
    ),
    "path": get(f"/{PROMPT_WORD}/{quote(PROMPT_LETTERS)}?q={quote(PROMPT)}"),
    "path of /v1/": get(f"/v1/{PROMPT_WORD}?q={quote(PROMPT)}"),
    "method": request_bytes(PROMPT_WORD.upper(), f"/stream?{QUERY}", ALICE),
    "wrong method": request_bytes("DELETE", f"/stream?{QUERY}", ALICE),
    "media type": request_bytes("POST", "/stream", {**ALICE, "Content-Type": f"image/{PROMPT_WORD}"}, PROMPT.encode()),
    "too long": request_bytes("POST", "/stream", ALICE, f"{PROMPT}{'a' * 3000}".encode()),
    "bad JSON": post("/stream", f'{{"q": {PROMPT}'.encode()),
    "bad JSON of Messages": post(MESSAGES, f'{{"messages": {PROMPT}'.encode()),
    "bad JSON of OpenAI": post(COMPLETIONS, f'{{"messages": {PROMPT}'.encode()),
    "JSON string": post("/stream", json.dumps(PROMPT).encode()),
    "no UTF-8": post("/stream", PROMPT.encode() + b"\xff", {"Content-Type": "text/plain"}),
    "number of tokens": get(f"/stream?q={PROMPT_WORD}&max_tokens={PROMPT_WORD}"),
    "temperature": get(f"/stream?q={PROMPT_WORD}&temperature={PROMPT_WORD}"),
    "model": get(f"/stream?q={PROMPT_WORD}&model={PROMPT_WORD}"),
    "two prompts": get(f"/stream?q={PROMPT_WORD}&prompt={PROMPT_WORD}"),
    "list of strings": post("/stream", {"messages": [PROMPT]}),
    "odd role": post("/stream", {"messages": [{"role": PROMPT_WORD, "content": PROMPT}]}),
    "odd content": post("/stream", {"messages": [{"role": "user", "content": {PROMPT_WORD: PROMPT}}]}),
    "odd system": post("/stream", {"q": PROMPT, "system": {SYSTEM: SYSTEM}}),
    "model of Messages": post(MESSAGES, chat(model=PROMPT_WORD)),
    "tokens of Messages": post(MESSAGES, chat(max_tokens=PROMPT)),
    "messages of Messages": post(MESSAGES, chat(messages=PROMPT)),
    "role of OpenAI": post(COMPLETIONS, chat(messages=[{"role": PROMPT_WORD, "content": PROMPT}])),
    "content of OpenAI": post(COMPLETIONS, chat(messages=[{"role": "user", "content": {PROMPT_WORD: PROMPT}}])),
    "image of OpenAI": post(
        COMPLETIONS,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PROMPT}}]}]),
    ),
    "tools of OpenAI": post(COMPLETIONS, chat(tools=[{"name": PROMPT_WORD}])),
    "n of OpenAI": post(COMPLETIONS, chat(n=PROMPT)),
    "format of OpenAI": post(COMPLETIONS, chat(response_format={"type": PROMPT_WORD})),
    "form in pieces": request_bytes("POST", "/stream", {**ALICE, **BOUNDARY}, f"--{PROMPT_WORD}\r\n{PROMPT}".encode()),
    "wrong Bearer": get(f"/stream?{QUERY}", {"Authorization": f"Bearer {WRONG_KEY}"}),
    "wrong key": request_bytes("GET", f"/stream?{QUERY}", {"x-api-key": WRONG_KEY}),
    "wrong Basic": get(f"/stream?{QUERY}", {"Authorization": f"Basic {BASIC}"}),
    "odd scheme": get(f"/stream?{QUERY}", {"Authorization": f"{WRONG_KEY} {API_KEY}"}),
    "key in the URL": request_bytes("GET", f"/stream?{QUERY}&token={API_KEY}&api_key={API_KEY}"),
    "key before the host": request_bytes("GET", f"http://alice:{API_KEY}@127.0.0.1/stream?{QUERY}"),
    "host": get(f"/stream?{QUERY}", {"Host": PROMPT_WORD}),
    "origin": get(f"/stream?{QUERY}", {"Origin": f"https://{PROMPT_WORD}"}),
    "field of Messages": post(MESSAGES, chat(of_tomorrow=PROMPT_WORD)),
    "tool of Messages": post(MESSAGES, chat(tools=[{"type": "web_search_20250305", "name": PROMPT_WORD}])),
    "prefetch": get(f"/stream?{QUERY}", {"Sec-Purpose": f"prefetch;{PROMPT_WORD}"}),
}
# Requests that are accepted, with secrets in parts that are ignored.
IGNORED = {
    "headers": get(
        f"/stream?{QUERY}", {"Cookie": API_KEY, "Referer": PROMPT_WORD, "User-Agent": API_KEY, "X-Debug": PROMPT_WORD}
    ),
    "beta": post(MESSAGES, chat(stream=True), {"anthropic-beta": PROMPT_WORD, "anthropic-version": PROMPT_WORD}),
    "media types": get(f"/stream?{QUERY}", {"Accept": f"{PROMPT_WORD}/x, */*"}),
    "forwarded": get(
        f"/stream?{QUERY}", {"X-Forwarded-For": API_KEY, "X-Forwarded-Proto": PROMPT_WORD, "SCRIPT_NAME": PROMPT_WORD}
    ),
    "last event": get(f"/chat/stream?message={PROMPT_WORD}", {"Last-Event-ID": PROMPT_WORD}),
    "HEAD": request_bytes("HEAD", f"/stream?{QUERY}", ALICE),
    "OPTIONS": request_bytes("OPTIONS", f"/stream?{QUERY}", {**ALICE, "Access-Control-Request-Method": PROMPT_WORD}),
    "odd request id": get(f"/stream?{QUERY}", {"X-Request-Id": f"<{PROMPT_WORD}>"}),
    "other fields": post("/stream", {"q": PROMPT, PROMPT_WORD: API_KEY, "user": API_KEY, "tools": [PROMPT_WORD]}),
    "query of the page": request_bytes("GET", f"/?{QUERY}&token={API_KEY}"),
    "query of health": request_bytes("GET", f"/healthz?{QUERY}&token={API_KEY}"),
    "metrics": get(f"/metrics?{QUERY}"),
}


def cases() -> dict[str, Case]:
    whole = UPSTREAM["a completed answer"]
    asked = {f"asked by {name}": Case(request, whole) for name, request in REQUESTS.items()}
    ended = {
        f"{outcome}, {name}": Case(REQUESTS[name], steps, outcome in FORWARDED)
        for outcome, steps in UPSTREAM.items()
        for name in ("query", "events", "Messages", "OpenAI", "OpenAI whole")
        if name == "query" or outcome not in SLOW
    }
    rejected = {f"rejected: {name}": Case(request, whole) for name, request in REJECTED.items()}
    ignored = {f"ignored: {name}": Case(request, whole) for name, request in IGNORED.items()}
    return {**asked, **ended, **rejected, **ignored}


CASES = cases()


def exchange(service: Rill, request: bytes) -> tuple[int | None, str, str]:
    """Return the status, the headers and the body, once the server has written everything."""
    with Conversation(service.port, request) as asked:
        body = asked.read_rest().decode("utf-8", "replace")
        if asked.ended != "reset":
            asked.half_close()
            while asked.socket.recv(65536):
                pass
        return asked.status, json.dumps(asked.headers, ensure_ascii=False), body


@pytest.mark.parametrize("name", CASES)
def test_no_secret_is_in_any_output_header_or_error_message(service: Rill, upstream: Upstream, name: str) -> None:
    case, before = CASES[name], len(service.output())
    upstream.always(*case.steps)
    status, headers, body = exchange(service, case.request)
    assert find_leaks(service.output()[before:], CANARIES) == []
    assert find_leaks(headers, CANARIES) == []
    if status is not None and status >= 400:
        forbidden = {
            secret: kind for secret, kind in CANARIES.items() if secret == UPSTREAM_KEY or not case.is_forwarded
        }
        assert find_leaks(body, forbidden) == []


def test_the_secrets_are_in_use(start_rill: StartRill, upstream: Upstream) -> None:
    service = start_rill(**ENV)
    upstream.always(*wire.answer(ANSWER))
    status, _, body = exchange(service, REQUESTS["query"])
    assert (status, body) == (200, ANSWER)
    (request,) = upstream.requests
    assert request.json["messages"][0]["content"] == PROMPT
    assert UPSTREAM_KEY in str(request.headers)
    assert "Redis is lost" in service.output()


# Internal errors


FAULTY = """
from flask import request
from wsgi import app

@app.get("/fault")
def fail():
    try:
        raise KeyError(request.args["q"], dict(request.headers))
    except KeyError as error:
        raise ValueError(f"{request.url} {error}") from error
"""


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_an_internal_error_is_logged_with_its_location_and_never_with_its_message(
    faulty: Rill, upstream: Upstream, accept: str
) -> None:
    before = len(faulty.output())
    status, headers, body = exchange(faulty, get(f"/fault?{QUERY}", {"Accept": accept}))
    assert status == 500
    assert "Internal error" in body
    assert find_leaks(headers + body, CANARIES) == []
    output = faulty.output()[before:]
    assert "ValueError" in output
    assert "in fail" in output
    assert find_leaks(output, CANARIES) == []


@pytest.fixture(scope="module")
def faulty(share_rill: StartRill, tmp_path_factory: pytest.TempPathFactory) -> Rill:
    """Return the service with an additional route that raises an error."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY)
    arguments = ("--pythonpath", str(folder), "--log-level", "debug")
    return share_rill(*arguments, app="faulty:app", **ENV, FLASK_DEBUG="1", TMPDIR=str(folder))


# The search for secrets in all tests


LOUD = """
import os
from wsgi import app

inner = app.wsgi_app

class Printed:
    def __init__(self, pieces):
        self.pieces = pieces
    def __iter__(self):
        for piece in self.pieces:
            print(piece.decode(), flush=True)
            yield piece
    def close(self):
        getattr(self.pieces, "close", int)()

def print_all(environ, start_response):
    print(environ["QUERY_STRING"], environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY"))
    print(repr(os.environ["REDIS_URL"].encode()), os.environ["ANTHROPIC_API_KEY"].encode().hex(), flush=True)
    return Printed(inner(environ, start_response))

app.wsgi_app = print_all
"""


def test_a_server_that_writes_a_secret_fails_its_test(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    upstream.always(*wire.answer(ANSWER))
    loud = Rill({**rill_env(upstream), **ENV}, ("--pythonpath", str(tmp_path)), app="loud:app")
    asked = {"x-api-key": WRONG_KEY, "Authorization": "Basic " + b64encode(f"x:{API_KEY}".encode()).decode()}
    with loud:
        exchange(loud, get(f"/stream?q={quote(PROMPT)}", asked))
        with pytest.raises(Leak) as found:
            loud.stop()
    message = str(found.value)
    assert f"gunicorn loud:app --pythonpath {tmp_path} at {loud.url} wrote" in message
    for secret, kind in {
        PROMPT: "prompt",
        ANSWER.strip(): "answer",
        API_KEY: "client's API key",
        WRONG_KEY: "client's API key",
        UPSTREAM_KEY: "upstream key",
        REDIS_PASSWORD: "password of Redis",
    }.items():
        assert f"the {kind} {secret!r}" in message


def test_a_server_that_does_not_start_is_searched_for_secrets_too(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import os\nraise RuntimeError(os.environ['ANTHROPIC_API_KEY'])")
    loud = Rill({"ANTHROPIC_API_KEY": UPSTREAM_KEY}, ("--pythonpath", str(tmp_path)), app="loud:app")
    with pytest.raises(Leak, match="upstream key"), loud:
        pass


@pytest.mark.parametrize("secret", CANARIES)
def test_a_secret_is_found_in_every_encoding(secret: str) -> None:
    lines = [
        *[secret, json.dumps(secret), repr(secret), f"q={quote(secret)}&x", secret.encode().hex()],
        *[b64encode(f"{'x' * before}{secret} and more".encode()).decode() for before in range(6)],
    ]
    for line in lines:
        assert find_leaks(f"GET /\n[{line}]\nbye", {secret: "canary"}), line
    assert find_leaks("nothing to see", {secret: "canary"}) == []
    assert secret in forms(secret)
