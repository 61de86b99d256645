"""Nothing secret is in any output, however much is to be logged: no prompt, answer, token, key or password."""

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
TOKEN, WRONG = "tok-vellichor-2093", "tok-mistyped-8842"
KEY = "sk-ant-quixotry-6650"
REDIS = "pw-susurrus-9417"
# One word that reads the same in every encoding of text, and one that each writes in its own way.
ASKED, ASKED_TOO = "petrichor7313", "溪水潺潺流过青石"
SYSTEM, OWN_SYSTEM = "sesquipedal4127", "own-system-perspicuity-3141"
SAID, SAID_TOO = "wainscoting5561", "苔痕上阶绿草色"
CANARIES = {
    ASKED: "prompt of ASCII",
    ASKED_TOO: "prompt of other letters",
    SYSTEM: "system prompt",
    OWN_SYSTEM: "system prompt of the settings",
    SAID: "answer of ASCII",
    SAID_TOO: "answer of other letters",
    TOKEN: "client's API key",
    WRONG: "wrong token",
    KEY: "service's key",
    REDIS: "password of Redis",
}
# What may make a server talkative; ANTHROPIC_LOG makes the SDK print whatever it sends.
SDK = {"ANTHROPIC_LOG": "debug", "HTTPX_LOG_LEVEL": "trace", "HTTPX2_LOG_LEVEL": "trace"}
ALWAYS = {"FLASK_DEBUG": "1", "PYTHONUNBUFFERED": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "always"}
NOISE: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "by arguments": (("--log-level", "debug", "--access-logfile", "-", "--capture-output"), SDK),
    "by the platform": ((), {**SDK, **ALWAYS, "GUNICORN_CMD_ARGS": "--access-logfile - --log-level debug"}),
}


# A server with a secret of every kind, whose Redis is not there.
ENV = {
    "ANTHROPIC_API_KEY": KEY,
    "RILL_API_KEYS": f"alice={TOKEN}",
    "RILL_SYSTEM_PROMPT": f"Be {OWN_SYSTEM}.",
    "REDIS_URL": f"redis://:{REDIS}@127.0.0.1:1/0",
    "RILL_MAX_BODY_BYTES": "3000",
    "RILL_ALLOWED_MODELS": MODEL,
    "RILL_UPSTREAM_FEATURES": ASKED,
}


@pytest.fixture(params=NOISE)
def service(share_rill: StartRill, request: pytest.FixtureRequest) -> Rill:
    """Return a talkative server."""
    arguments, env = NOISE[request.param]
    return share_rill(*arguments, **ENV, **env)


class Case(NamedTuple):
    """A request, what the upstream does if it is asked, and whether an answer may repeat what the upstream says."""

    request: bytes
    steps: list[Step]
    repeats: bool = False


PROMPT = f'Say "{ASKED}" & {ASKED_TOO}'
ANSWER = f'It is "{SAID}": {SAID_TOO}\n'
EVERYTHING = f"{PROMPT} {SYSTEM} {ANSWER} {KEY}"
ALICE = {"Authorization": f"Bearer {TOKEN}"}
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
    """Return a body that both SDKs' dialects take."""
    return {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}], **more}


# How each dialect asks, with the prompt wherever it can be.
ASKING = {
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
    "Basic": get(f"/stream?{QUERY}", {"Authorization": "Basic " + b64encode(f"x:{TOKEN}".encode()).decode()}),
    "x-api-key": get(f"/stream?{QUERY}", {"x-api-key": TOKEN, "Authorization": ""}),
}


def begun(*after: Step) -> list[Step]:
    """Return an answer that has said all its words, and then ends in some way."""
    return [wire.head(), wire.send(wire.opening(), wire.text(ANSWER)), *after]


def refusal(code: int, type: str, message: str = EVERYTHING, **headers: str) -> list[Step]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [wire.error(code, type, message, {**ONCE, **named})]


def body_of(code: int, media_type: str, body: str) -> list[Step]:
    return [wire.status(code, {**ONCE, "content-type": media_type}, body.encode())]


DETAILS = {"type": "refusal", "category": "cyber", "explanation": f"{PROMPT} {ANSWER}"}
# Whatever an upstream may do, with every secret that it knows in every word that it says.
UPSTREAM: dict[str, list[Step]] = {
    "a whole answer": wire.answer(ANSWER, ANSWER),
    "a cut": begun(wire.close()),
    "a reset": begun(wire.reset()),
    "no end mark": begun(wire.end()),
    "an error in mid-stream": begun(wire.send(wire.stream_error("api_error", EVERYTHING)), wire.end()),
    "an error of an unknown type": begun(wire.send(wire.stream_error(EVERYTHING, EVERYTHING)), wire.end()),
    "garbage in mid-stream": begun(wire.send(f"data: {{nonsense {EVERYTHING}\n\n".encode()), wire.end()),
    "an odd event": begun(wire.send(wire.event("content_block_delta", index=EVERYTHING, delta=EVERYTHING)), wire.end()),
    "an error first": [wire.head(), wire.send(wire.stream_error("overloaded_error", EVERYTHING)), wire.end()],
    "a refusal": [wire.head(), wire.send(wire.start(), wire.stop("refusal", stop_details=DETAILS)), wire.end()],
    "401": refusal(401, "authentication_error"),
    "403": refusal(403, "permission_error"),
    "404": refusal(404, "not_found_error"),
    "429": refusal(429, "rate_limit_error", retry_after="30"),
    "500": refusal(500, "api_error"),
    "529": refusal(529, "overloaded_error"),
    "500 again and again": [wire.error(500, "api_error", EVERYTHING, {"retry-after": "0"})],
    "400": refusal(400, "invalid_request_error"),
    "413": refusal(413, "request_too_large"),
    "an unknown type": refusal(418, EVERYTHING),
    "headers": refusal(502, "api_error", request_id=f"{ASKED} {KEY}", server=f"{ASKED} {KEY}", x_debug=KEY),
    "HTML": body_of(502, "text/html", f"<html>{EVERYTHING}</html>"),
    "a page in place of events": body_of(200, "text/html", f"<html>{EVERYTHING}</html>"),
    "JSON that is none": body_of(400, "application/json", f'{{"error": {EVERYTHING}'),
    "odd JSON": body_of(400, "application/json", json.dumps({"error": {"type": [EVERYTHING], "message": [KEY]}})),
    "no HTTP": [wire.raw(f"SSH-2.0-{ASKED}-{KEY}\r\n\r\n".encode()), wire.close()],
    "an odd status": [wire.raw(f"HTTP/1.1 {ASKED}\r\n\r\n".encode()), wire.close()],
}
# What is tried again, with pauses: one dialect is enough.
SLOW = {"no HTTP", "an odd status"}
# An upstream's own words where they help; and a refusal's reason, which is an answer.
REPEATED = {"400", "413", "a refusal"}
BASIC = b64encode(f"x:{WRONG}".encode()).decode()
BOUNDARY = {"Content-Type": f"multipart/form-data; boundary={ASKED}"}
# What Rill itself refuses, the secret wherever it may stand.
REFUSED = {
    "space in the URL": get(f"/stream?q=a {ASKED}"),
    "other letters in the URL": f"GET /stream?q={ASKED_TOO}{ASKED} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "no HTTP": f"{ASKED} {TOKEN}\r\n\r\n".encode(),
    "odd version": f"GET /stream?q={ASKED} HTTP/{ASKED}\r\nHost: x\r\n\r\n".encode(),
    "long URL": get(f"/stream?q={ASKED * 900}"),
    "odd header": get("/stream?q=hi", {f"X {ASKED}": TOKEN}),
    "huge header": get("/stream?q=hi", {"X-Huge": f"{ASKED}{TOKEN}" * 400}),
    "odd length": request_bytes("POST", "/stream", {**ALICE, "Content-Length": ASKED}),
    "odd coding": request_bytes("POST", "/stream", {**ALICE, "Transfer-Encoding": ASKED}),
    "odd expectation": request_bytes("POST", "/stream", {**ALICE, "Expect": ASKED}, b"hi"),
    "broken chunk": request_bytes("POST", "/stream", {**ALICE, "Transfer-Encoding": "chunked"})
    + f"{ASKED}\r\n".encode(),
    "bytes after the body": request_bytes(
        "POST", "/stream", {**ALICE, "Content-Length": "1"}, f" {ASKED}\r\n\r\n".encode()
    ),
    "path": get(f"/{ASKED}/{quote(ASKED_TOO)}?q={quote(PROMPT)}"),
    "path of /v1/": get(f"/v1/{ASKED}?q={quote(PROMPT)}"),
    "method": request_bytes(ASKED.upper(), f"/stream?{QUERY}", ALICE),
    "wrong method": request_bytes("DELETE", f"/stream?{QUERY}", ALICE),
    "media type": request_bytes("POST", "/stream", {**ALICE, "Content-Type": f"image/{ASKED}"}, PROMPT.encode()),
    "too long": request_bytes("POST", "/stream", ALICE, f"{PROMPT}{'a' * 3000}".encode()),
    "bad JSON": post("/stream", f'{{"q": {PROMPT}'.encode()),
    "bad JSON of Messages": post(MESSAGES, f'{{"messages": {PROMPT}'.encode()),
    "bad JSON of OpenAI": post(COMPLETIONS, f'{{"messages": {PROMPT}'.encode()),
    "JSON string": post("/stream", json.dumps(PROMPT).encode()),
    "no UTF-8": post("/stream", PROMPT.encode() + b"\xff", {"Content-Type": "text/plain"}),
    "number of tokens": get(f"/stream?q={ASKED}&max_tokens={ASKED}"),
    "temperature": get(f"/stream?q={ASKED}&temperature={ASKED}"),
    "model": get(f"/stream?q={ASKED}&model={ASKED}"),
    "two prompts": get(f"/stream?q={ASKED}&prompt={ASKED}"),
    "list of strings": post("/stream", {"messages": [PROMPT]}),
    "odd role": post("/stream", {"messages": [{"role": ASKED, "content": PROMPT}]}),
    "odd content": post("/stream", {"messages": [{"role": "user", "content": {ASKED: PROMPT}}]}),
    "odd system": post("/stream", {"q": PROMPT, "system": {SYSTEM: SYSTEM}}),
    "model of Messages": post(MESSAGES, chat(model=ASKED)),
    "tokens of Messages": post(MESSAGES, chat(max_tokens=PROMPT)),
    "messages of Messages": post(MESSAGES, chat(messages=PROMPT)),
    "role of OpenAI": post(COMPLETIONS, chat(messages=[{"role": ASKED, "content": PROMPT}])),
    "content of OpenAI": post(COMPLETIONS, chat(messages=[{"role": "user", "content": {ASKED: PROMPT}}])),
    "image of OpenAI": post(
        COMPLETIONS,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PROMPT}}]}]),
    ),
    "tools of OpenAI": post(COMPLETIONS, chat(tools=[{"name": ASKED}])),
    "n of OpenAI": post(COMPLETIONS, chat(n=PROMPT)),
    "format of OpenAI": post(COMPLETIONS, chat(response_format={"type": ASKED})),
    "form in pieces": request_bytes("POST", "/stream", {**ALICE, **BOUNDARY}, f"--{ASKED}\r\n{PROMPT}".encode()),
    "wrong Bearer": get(f"/stream?{QUERY}", {"Authorization": f"Bearer {WRONG}"}),
    "wrong key": request_bytes("GET", f"/stream?{QUERY}", {"x-api-key": WRONG}),
    "wrong Basic": get(f"/stream?{QUERY}", {"Authorization": f"Basic {BASIC}"}),
    "odd scheme": get(f"/stream?{QUERY}", {"Authorization": f"{WRONG} {TOKEN}"}),
    "token in the URL": request_bytes("GET", f"/stream?{QUERY}&token={TOKEN}&api_key={TOKEN}"),
    "token before the host": request_bytes("GET", f"http://alice:{TOKEN}@127.0.0.1/stream?{QUERY}"),
    "host": get(f"/stream?{QUERY}", {"Host": ASKED}),
    "origin": get(f"/stream?{QUERY}", {"Origin": f"https://{ASKED}"}),
    "field of Messages": post(MESSAGES, chat(of_tomorrow=ASKED)),
    "tool of Messages": post(MESSAGES, chat(tools=[{"type": "web_search_20250305", "name": ASKED}])),
    "prefetch": get(f"/stream?{QUERY}", {"Sec-Purpose": f"prefetch;{ASKED}"}),
}
# What is let through, with secrets where nothing should look at them.
UNNOTICED = {
    "headers": get(f"/stream?{QUERY}", {"Cookie": TOKEN, "Referer": ASKED, "User-Agent": TOKEN, "X-Debug": ASKED}),
    "beta": post(MESSAGES, chat(stream=True), {"anthropic-beta": ASKED, "anthropic-version": ASKED}),
    "media types": get(f"/stream?{QUERY}", {"Accept": f"{ASKED}/x, */*"}),
    "forwarded": get(f"/stream?{QUERY}", {"X-Forwarded-For": TOKEN, "X-Forwarded-Proto": ASKED, "SCRIPT_NAME": ASKED}),
    "last event": get(f"/chat/stream?message={ASKED}", {"Last-Event-ID": ASKED}),
    "HEAD": request_bytes("HEAD", f"/stream?{QUERY}", ALICE),
    "OPTIONS": request_bytes("OPTIONS", f"/stream?{QUERY}", {**ALICE, "Access-Control-Request-Method": ASKED}),
    "odd request id": get(f"/stream?{QUERY}", {"X-Request-Id": f"<{ASKED}>"}),
    "other fields": post("/stream", {"q": PROMPT, ASKED: TOKEN, "user": TOKEN, "tools": [ASKED]}),
    "query of the page": request_bytes("GET", f"/?{QUERY}&token={TOKEN}"),
    "query of health": request_bytes("GET", f"/healthz?{QUERY}&token={TOKEN}"),
    "metrics": get(f"/metrics?{QUERY}"),
}


def cases() -> dict[str, Case]:
    whole = UPSTREAM["a whole answer"]
    asked = {f"asked by {name}": Case(request, whole) for name, request in ASKING.items()}
    ended = {
        f"{outcome}, {name}": Case(ASKING[name], steps, outcome in REPEATED)
        for outcome, steps in UPSTREAM.items()
        for name in ("query", "events", "Messages", "OpenAI", "OpenAI whole")
        if name == "query" or outcome not in SLOW
    }
    refused = {f"refused: {name}": Case(request, whole) for name, request in REFUSED.items()}
    unnoticed = {f"unnoticed: {name}": Case(request, whole) for name, request in UNNOTICED.items()}
    return {**asked, **ended, **refused, **unnoticed}


CASES = cases()


def tell(service: Rill, request: bytes) -> tuple[int | None, str, str]:
    """Return the status, the headers and the body, once the server has ended with whatever it has to say."""
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
    status, headers, body = tell(service, case.request)
    assert find_leaks(service.output()[before:], CANARIES) == []
    assert find_leaks(headers, CANARIES) == []
    if status is not None and status >= 400:
        told = {secret: kind for secret, kind in CANARIES.items() if secret == KEY or not case.repeats}
        assert find_leaks(body, told) == []


def test_the_secrets_are_in_use(start_rill: StartRill, upstream: Upstream) -> None:
    service = start_rill(**ENV)
    upstream.always(*wire.answer(ANSWER))
    status, _, body = tell(service, ASKING["query"])
    assert (status, body) == (200, ANSWER)
    (request,) = upstream.requests
    assert request.json["messages"][0]["content"] == PROMPT
    assert KEY in str(request.headers)
    assert "Redis is lost" in service.output()


# Faults of the service's own


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
    status, headers, body = tell(faulty, get(f"/fault?{QUERY}", {"Accept": accept}))
    assert status == 500
    assert "Internal error" in body
    assert find_leaks(headers + body, CANARIES) == []
    output = faulty.output()[before:]
    assert "ValueError" in output
    assert "in fail" in output
    assert find_leaks(output, CANARIES) == []


@pytest.fixture(scope="module")
def faulty(share_rill: StartRill, tmp_path_factory: pytest.TempPathFactory) -> Rill:
    """Return the service with one more route, whose code fails."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY)
    arguments = ("--pythonpath", str(folder), "--log-level", "debug")
    return share_rill(*arguments, app="faulty:app", **ENV, FLASK_DEBUG="1", TMPDIR=str(folder))


# The net under all tests


LOUD = """
import os
from wsgi import app

inner = app.wsgi_app

class Told:
    def __init__(self, pieces):
        self.pieces = pieces
    def __iter__(self):
        for piece in self.pieces:
            print(piece.decode(), flush=True)
            yield piece
    def close(self):
        getattr(self.pieces, "close", int)()

def tell_all(environ, start_response):
    print(environ["QUERY_STRING"], environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY"))
    print(repr(os.environ["REDIS_URL"].encode()), os.environ["ANTHROPIC_API_KEY"].encode().hex(), flush=True)
    return Told(inner(environ, start_response))

app.wsgi_app = tell_all
"""


def test_a_server_that_writes_a_secret_fails_its_test(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    upstream.always(*wire.answer(ANSWER))
    loud = Rill({**rill_env(upstream), **ENV}, ("--pythonpath", str(tmp_path)), app="loud:app")
    asked = {"x-api-key": WRONG, "Authorization": "Basic " + b64encode(f"x:{TOKEN}".encode()).decode()}
    with loud:
        tell(loud, get(f"/stream?q={quote(PROMPT)}", asked))
        with pytest.raises(Leak) as found:
            loud.stop()
    told = str(found.value)
    assert f"gunicorn loud:app --pythonpath {tmp_path} at {loud.url} wrote" in told
    for secret, kind in {
        PROMPT: "prompt",
        ANSWER.strip(): "answer",
        TOKEN: "client's API key",
        WRONG: "client's API key",
        KEY: "service's key",
        REDIS: "password of Redis",
    }.items():
        assert f"the {kind} {secret!r}" in told


def test_a_server_that_does_not_start_is_searched_for_secrets_too(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import os\nraise RuntimeError(os.environ['ANTHROPIC_API_KEY'])")
    loud = Rill({"ANTHROPIC_API_KEY": KEY}, ("--pythonpath", str(tmp_path)), app="loud:app")
    with pytest.raises(Leak, match="service's key"), loud:
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
