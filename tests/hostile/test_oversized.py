"""Oversized input is rejected in about a second with a message that names the limit, and never reaches the upstream."""

import json
import socket
import time
from base64 import b64encode

import pytest
from conversation import request_bytes
from raw import API_KEY, SECRET, exchange, prompts
from server import Rill, StartRill
from upstream import Upstream

MAX_BODY = 4_194_304
# On an idle machine it takes at most 0.2 s; this limit is for a busy one.
MAX_SECONDS = 2.0
USER = '{"role": "user", "content": "hi"}'
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
PART = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\nhi\r\n'
TEXT, ANTHROPIC, OPENAI = "/stream", "/v1/messages", "/v1/chat/completions"


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server that requires an API key."""
    return share_rill(RILL_API_KEYS=f"alice={SECRET}", RILL_UPSTREAM_FEATURES="*")


def post(path: str, media_type: str, body: bytes) -> bytes:
    """Return a POST with a Content-Length."""
    return request_bytes("POST", path, {**API_KEY, "Content-Type": media_type, "Content-Length": str(len(body))}, body)


def chunked(body: bytes, size: int) -> bytes:
    """Return a POST of text in chunks, without a Content-Length."""
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return request_bytes("POST", TEXT, {**API_KEY, "Transfer-Encoding": "chunked"}) + framed


def messages(path: str, content: str, more: str = "") -> bytes:
    """Return a JSON request of a dialect with these raw messages and further fields."""
    body = f'{{"model": "m", "max_tokens": 5, "messages": {content}{more and ", "}{more}}}'
    return post(path, JSON, body.encode())


def many(item: str, number: int) -> str:
    """Return a JSON list with the item `number` times."""
    return f"[{', '.join([item] * number)}]"


def nested(depth: int, path: str = TEXT) -> bytes:
    """Return a request whose JSON is nested this deep."""
    return messages(path, f"[{USER}]", '"more": ' + "[" * (depth - 1) + "]" * (depth - 1))


def get(*fields: str, path: str = "/stream?q=first") -> bytes:
    """Return a GET with these header lines."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", f"x-api-key: {SECRET}", *fields, "", ""]).encode()


# A request, its possible statuses, and the limit in the message.
OVERSIZED: dict[str, tuple[bytes, set[int], str]] = {
    "request line": (get(path="/stream?q=" + "a" * 8200), {414}, "8,000"),
    "request line of 3 MB": (get(path="/stream?q=" + "a" * 3_000_000), {414}, "8,000"),
    "endless request line": (b"GET /" + b"a" * 1_000_000, {414}, "8,000"),
    "method": (b"A" * 9000 + b" /stream?q=first HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414}, ""),
    "version": (b"GET /stream?q=first HTTP/1." + b"1" * 1000 + b"\r\nHost: x\r\n\r\n", {400}, ""),
    "header": (get("X: " + "a" * 9000), {431}, "8,190"),
    "header of 3 MB": (get("X: " + "a" * 3_000_000), {431}, "8,190"),
    "header name": (get("X" * 9000 + ": y"), {431}, "8,190"),
    "number of headers": (get(*["X: y"] * 101), {431}, "100 "),
    "a million headers": (get(*["X: y"] * 1_000_000), {431}, "100 "),
    "headers in total": (get(*["X: " + "a" * 8000] * 90), {431}, "65,536"),
    "Accept in total": (get(*["Accept: " + "a/b," * 2000] * 90), {431}, "65,536"),
    "body": (post(TEXT, "text/plain", b"a" * (MAX_BODY + 1)), {413}, str(MAX_BODY)),
    "body of 5 MB": (post(TEXT, "text/plain", b"a" * 5_000_000), {413}, str(MAX_BODY)),
    "body in chunks": (chunked(b"a" * (MAX_BODY + 1), 65536), {413}, str(MAX_BODY)),
    "body in many chunks": (chunked(b"a" * (MAX_BODY + 100), 100), {413}, str(MAX_BODY)),
    "body of JSON": (messages(TEXT, f"[{USER}]", f'"more": "{"a" * MAX_BODY}"'), {413}, str(MAX_BODY)),
    "body of a form": (post(TEXT, FORM, b"q=" + b"a" * MAX_BODY), {413}, str(MAX_BODY)),
    "form fields": (post(TEXT, FORM, b"q=hi" + b"&a=b" * 1000), {413}, "1000"),
    "form fields without a name": (post(TEXT, FORM, b"q=hi" + b"&" * 1_000_000), {413}, "1000"),
    "parts of a form": (
        post(TEXT, "multipart/form-data; boundary=x", PART.format("a").encode() * 1001 + b"--x--\r\n"),
        {413},
        "1000",
    ),
    **{
        f"{number:,} messages at {path}": (messages(path, many(item, number)), {400}, "10000")
        for path in (TEXT, ANTHROPIC, OPENAI)
        for number, item in ((10_001, USER), (300_000, "0"))
    },
    **{
        f"JSON {depth:,} deep at {path}": (nested(depth, path), {400}, "200")
        for path in (TEXT, ANTHROPIC, OPENAI)
        for depth in (202, 100_000)
    },
    "JSON of 500,000 open brackets": (post(TEXT, JSON, b"[" * 500_000), {400}, "200"),
    "JSON of 200,000 open objects": (post(TEXT, JSON, b'{"":' * 200_000), {400}, "200"),
    "system": (get(path=f"/stream?q=hi&system={'a' * 8200}"), {414}, "8,000"),
    "max_tokens": (messages(OPENAI, f"[{USER}]", '"max_completion_tokens": 64001'), {400}, "64000"),
    "max_tokens of 4,000 digits": (
        post(TEXT, JSON, b'{"q": "hi", "max_tokens": ' + b"9" * 4000 + b"}"),
        {400},
        "64000",
    ),
    "temperature": (post(TEXT, JSON, b'{"q": "hi", "temperature": 1e308}'), {400}, "0 to 1"),
    "infinite temperature": (post(TEXT, JSON, b'{"q": "hi", "temperature": 1e400}'), {400}, "0 to 1"),
    "Host": (request_bytes("GET", "/stream?q=first", {"Host": "x" * 8000}), {400}, ""),
    "prefetch": (get("Sec-Purpose: " + "prefetch;" * 800), {403}, ""),
}


@pytest.mark.parametrize("name", OVERSIZED)
def test_oversized_input_is_rejected_quickly_with_a_message_that_names_the_limit(
    rill: Rill, upstream: Upstream, name: str
) -> None:
    request, statuses, limit = OVERSIZED[name]
    begun = time.monotonic()
    received = exchange(rill.port, request)
    assert time.monotonic() - begun < MAX_SECONDS
    assert received.statuses[0] in statuses
    assert limit in received.data.decode()
    assert upstream.requests == []


def test_a_client_that_reads_only_after_it_has_sent_a_too_long_body_gets_the_413(rill: Rill) -> None:
    with socket.create_connection(("127.0.0.1", rill.port), timeout=20) as client:
        client.sendall(post(TEXT, "text/plain", b"a" * (MAX_BODY * 3 // 2)))
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")


DIGITS = "9" * 5000
# Numbers that are rejected or dropped, since they could not be forwarded as JSON.
NUMBERS = {
    f"{name} at {path}": messages(path, f'[{{"role": "user", "content": {content}}}]', more)
    for path in (TEXT, ANTHROPIC, OPENAI)
    for name, content, more in (
        ("an infinite number", '"hi"', '"more": 1e400'),
        ("a negative infinite number", '"hi"', '"more": -1e400'),
        ("a number of 5,000 digits", '"hi"', f'"more": {DIGITS}'),
        ("a negative one of 5,000 digits", '"hi"', f'"more": -{DIGITS}'),
        ("a fraction of 500,000 digits", '"hi"', f'"more": 0.{"1" * 500_000}'),
        ("NaN", '"hi"', '"more": NaN'),
        ("Infinity", '"hi"', '"more": -Infinity'),
        ("an infinite number within a block", '[{"type": "text", "text": "hi", "more": [1e400]}]', ""),
    )
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_json_cannot_represent_is_a_400_or_not_forwarded(
    rill: Rill, upstream: Upstream, name: str
) -> None:
    begun = time.monotonic()
    received = exchange(rill.port, NUMBERS[name])
    assert time.monotonic() - begun < MAX_SECONDS
    assert received.statuses in ([200, 200], [400, 200])
    assert received.in_sync
    for request in upstream.requests:
        json.loads(request.body, parse_constant=pytest.fail)
        assert b"inf" not in request.body.lower()


ZEROS = f"[{'0,' * 500_000}0]"
# A megabyte of errors in one request; each alone is an ordinary 400.
ERRORS = {
    "invalid blocks": messages(TEXT, f'[{{"role": "user", "content": {ZEROS}}}]'),
    "invalid parts": messages(TEXT, f'[{{"role": "user", "parts": {ZEROS}}}]'),
    "invalid blocks in OpenAI's dialect": messages(OPENAI, f'[{{"role": "user", "content": {ZEROS}}}]'),
    "blocks without a type": messages(OPENAI, f'[{{"role": "user", "content": {many("{}", 250_000)}}}]'),
    "invalid messages": messages(TEXT, many("0", 10_000)),
    "messages without a role": messages(OPENAI, many("{}", 10_000)),
    "messages of errors": messages(TEXT, many('{"role": 1, "content": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]}', 10_000)),
    "invalid stop sequences": messages(OPENAI, f"[{USER}]", f'"stop": {ZEROS}'),
    "a form's part of line ends": post(
        TEXT, "multipart/form-data; boundary=x", PART.format("a")[:-4].encode() + b"\r\n-" * 300_000
    ),
    "a form's part of boundaries": post(TEXT, "multipart/form-data; boundary=x", b"--x\r\n" * 200_000),
    "a form's part of headers": post(
        TEXT, "multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 170_000 + b"\r\n\r\n--x--\r\n"
    ),
    "a form's name of 900,000 bytes": post(
        TEXT, "multipart/form-data; boundary=x", PART.format("a" * 900_000).encode() + b"--x--\r\n"
    ),
    "a form's boundary of 7,000 bytes": post(TEXT, f"multipart/form-data; boundary={'x' * 7000}", b"--x" * 300_000),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_megabyte_of_errors_delays_no_other_client(rill: Rill, upstream: Upstream, name: str) -> None:
    begun = time.monotonic()
    received = exchange(rill.port, ERRORS[name])
    # The worker serves no other client meanwhile.
    assert time.monotonic() - begun < MAX_SECONDS / 2
    assert received.statuses in ([400, 200], [413, 200])
    assert len(received.data) < 3000
    assert upstream.requests == []


LONG = "x" * 8000
# Input at its limit, or without one, is answered.
WITHIN_LIMITS = {
    "request line at its limit": get(path="/stream?q=" + "a" * (8190 - len("GET /stream?q= HTTP/1.1"))),
    "header at its limit": get("X: " + "a" * (8190 - len("X: \r\n"))),
    "number of headers at its limit": get(*["X: y"] * 98),
    "body at its limit": post(TEXT, "text/plain", b"a" * MAX_BODY),
    "body in chunks at its limit": chunked(b"a" * MAX_BODY, 8192),
    "2,000 query fields": get(path="/stream?q=first" + "&a=b" * 2000),
    "the prompt a thousand times": get(path="/stream?" + "q=first&" * 1000),
    "1,000 form fields": post(TEXT, FORM, b"q=hi" + b"&a=b" * 999),
    "1,000 parts of a form": post(
        TEXT,
        "multipart/form-data; boundary=x",
        (PART.format("a") * 999 + PART.format("q") + "--x--\r\n").encode(),
    ),
    "10,000 messages": messages(TEXT, many(USER, 10_000)),
    "JSON depth at its limit": nested(200),
    "a field a hundred thousand times": post(TEXT, JSON, b"{" + b'"q":"hi",' * 100_000 + b'"q":"hi"}'),
    "a million unknown fields": post(
        TEXT, JSON, b'{"q": "hi"' + b"".join(b',"%x":0' % n for n in range(90_000)) + b"}"
    ),
    "X-Request-Id": get(f"X-Request-Id: {LONG}"),
    "Accept of 2,000 types": get("Accept: " + ",".join(["a/b"] * 2000)),
    "Accept of 800 weights": get("Accept: " + ",".join(["a/b;q=0.5"] * 800)),
    "Accept of parameters": get("Accept: text/plain" + ";a=b" * 2000),
    "Accept of continued parameters": get("Accept: text/plain" + "".join(f";a*{n}*=x" for n in range(800))),
    "Accept of quotes": get('Accept: text/plain;a="' + '\\"' * 4000),
    "Accept of commas": get("Accept: " + "," * 8000),
    "Accept with a weight of 8,000 digits": get("Accept: text/plain;q=0." + "1" * 8000),
    "Accept-Encoding": get("Accept-Encoding: " + "gzip;q=0.1," * 700),
    "Accept-Language": get("Accept-Language: " + "en;q=0.1," * 800),
    "Last-Event-ID": get(f"Last-Event-ID: {LONG}"),
    "Cookie": get("Cookie: " + "a=b;" * 2000),
    "Range": get("Range: bytes=" + "0-," * 2000),
    "User-Agent": get(f"User-Agent: {LONG}"),
    "X-Forwarded-For": get("X-Forwarded-For: " + "203.0.113.7," * 600),
    "Forwarded": get("Forwarded: " + 'for="[::1]";' * 600),
    "parameters of a media type": post(TEXT, "text/plain" + ";a=b" * 2000, b"hi"),
    "charset": post(TEXT, f"text/plain; charset={LONG}", b"hi"),
}


@pytest.mark.parametrize("name", WITHIN_LIMITS)
def test_large_input_within_its_limit_is_answered_quickly(rill: Rill, upstream: Upstream, name: str) -> None:
    begun = time.monotonic()
    received = exchange(rill.port, WITHIN_LIMITS[name])
    assert time.monotonic() - begun < MAX_SECONDS
    assert (received.statuses, received.in_sync) == ([200, 200], True)
    assert len(prompts(upstream)) == 1


def test_a_long_event_id_gets_the_same_204_as_a_short_one(rill: Rill, upstream: Upstream) -> None:
    received = exchange(rill.port, get(f"Last-Event-ID: {LONG}", path="/chat/stream?message=first"))
    assert (received.statuses, upstream.requests) == ([204, 200], [])


def test_a_long_request_id_is_never_repeated(rill: Rill, upstream: Upstream) -> None:
    assert b"xxxx" not in exchange(rill.port, get(f"X-Request-Id: {LONG}")).data
    assert "xxxx" not in rill.output()


CREDENTIALS = {
    "Bearer": f"Authorization: Bearer {LONG}",
    "Bearer of spaces": "Authorization: Bearer " + " " * 8000 + "x",
    "Bearer of bytes": "Authorization: Bearer " + "\xff" * 8000,
    "x-api-key": f"x-api-key: {LONG}",
    "Basic": "Authorization: Basic " + b64encode(b"a:" + b"x" * 5990).decode(),
    "Basic of colons": "Authorization: Basic " + b64encode(b":" * 5990).decode(),
    "Basic without a colon": "Authorization: Basic " + b64encode(b"x" * 5990).decode(),
    "Basic that is not base64": "Authorization: Basic " + "%" * 8000,
    "Basic that is too short": "Authorization: Basic " + "A" * 7997,
    "Basic of bytes": "Authorization: Basic " + b64encode(b":" + b"\xff" * 5990).decode(),
    "Digest of fields": "Authorization: Digest " + 'a="b",' * 1300,
    "Digest of quotes": "Authorization: Digest " + 'a="' * 2600,
    "a scheme": f"Authorization: {LONG}",
    "eight keys": "\r\n".join([f"x-api-key: {LONG}"] * 8),
}


@pytest.mark.parametrize("way", CREDENTIALS)
def test_a_huge_api_key_is_a_401_quickly_and_never_repeated(rill: Rill, upstream: Upstream, way: str) -> None:
    offset = len(rill.output())
    begun = time.monotonic()
    head = f"GET /stream?q=first HTTP/1.1\r\nHost: x\r\n{CREDENTIALS[way]}\r\n\r\n".encode("latin-1")
    received = exchange(rill.port, head)
    assert time.monotonic() - begun < MAX_SECONDS
    assert received.statuses == [401, 200]
    assert "xxxx" not in received.data.decode() + rill.output()[offset:]
    assert upstream.requests == []


@pytest.mark.parametrize(("size", "kept"), [(60_000, True), (1_000_000, False)])
def test_a_request_without_an_api_key_is_rejected_before_its_body_and_keeps_the_connection_if_the_body_is_small(
    rill: Rill, upstream: Upstream, size: int, kept: bool
) -> None:
    head = request_bytes("POST", TEXT, {"Content-Length": str(size)})
    with rill.ask("POST", TEXT, {"Content-Length": str(size), "Expect": "100-continue"}) as asked:
        assert asked.status in (100, 401)
    received = exchange(rill.port, head + b"a" * size)
    assert (received.statuses, received.in_sync, upstream.requests) == ([401, 200] if kept else [401], kept, [])
