"""No header of a client changes the route, the client whose rate is counted, or the authentication.

Each server trusts any proxy in front of it, as Heroku's platform sets it: FORWARDED_ALLOW_IPS=*.
"""

import itertools
from base64 import b64encode
from collections.abc import Iterator

import pytest
from conversation import request_bytes
from raw import API_KEY, SECRET, Received, assert_stays_healthy, exchange, play, prompts
from server import Rill, StartRill
from upstream import Upstream

TRUSTING = {"FORWARDED_ALLOW_IPS": "*"}
TIMES = 3
# Per year, so that no window ends during the tests.
COUNTED = {"RILL_RATE_LIMIT": f"{TIMES}/year"}

_hosts = itertools.count(1)


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server that requires an API key."""
    return share_rill(**TRUSTING, RILL_API_KEYS=f"alice={SECRET}")


@pytest.fixture(params=[0, 1, 2], ids=lambda hops: f"{hops} proxies")
def counted(request: pytest.FixtureRequest, share_rill: StartRill) -> Iterator[tuple[Rill, int]]:
    """Yield a server that allows three requests of each client, and the number of proxies that it trusts."""
    running = share_rill(**TRUSTING, **COUNTED, RILL_TRUSTED_PROXIES=str(request.param))
    with assert_stays_healthy(running):
        yield running, request.param


def fresh_source() -> str:
    """Return an unused address of the loopback network."""
    number = next(_hosts)
    return f"127.1.{number // 250}.{number % 250 + 1}"


def fresh_hop() -> str:
    """Return an unused client address."""
    number = next(_hosts)
    return f"198.51.{number // 250}.{number % 250 + 1}"


def status_of(rill: Rill, fields: str, source: str = "127.0.0.1", path: str = "/stream") -> int:
    """Send a request with these header lines, by default without a prompt (it counts as well); return the status."""
    lines = f"GET {path} HTTP/1.1\r\nHost: x\r\n{fields}".strip()
    return exchange(rill.port, f"{lines}\r\n\r\n".encode("latin-1"), source).statuses[0]


# The client that is counted

LIMITED = [400] * TIMES + [429, 429]

# Headers, with a number that differs for each request, with which a client may imitate another.
NAMES = {
    "X-Real-IP": "X-Real-IP: 203.0.113.{0}",
    "Forwarded": "Forwarded: for=203.0.113.{0};proto=https;by=10.0.0.1",
    "X-Client-IP": "X-Client-IP: 203.0.113.{0}",
    "Client-IP": "Client-IP: 203.0.113.{0}",
    "True-Client-IP": "True-Client-IP: 203.0.113.{0}",
    "CF-Connecting-IP": "CF-Connecting-IP: 203.0.113.{0}",
    "Fastly-Client-IP": "Fastly-Client-IP: 203.0.113.{0}",
    "X-Cluster-Client-IP": "X-Cluster-Client-IP: 203.0.113.{0}",
    "X-Originating-IP": "X-Originating-IP: 203.0.113.{0}",
    "X-Forwarded": "X-Forwarded: 203.0.113.{0}",
    "X-Forwarded-Host": "X-Forwarded-Host: host{0}.example",
    "Remote-Addr": "Remote-Addr: 203.0.113.{0}",
    "REMOTE_ADDR": "REMOTE_ADDR: 203.0.113.{0}",
    "X_Forwarded_For": "X_Forwarded_For: 203.0.113.{0}",
    "X-Forwarded_For": "X-Forwarded_For: 203.0.113.{0}",
    "Via": "Via: 1.1 203.0.113.{0}",
    "a bearer key that is not required": "Authorization: Bearer key{0}",
    "an API key that is not required": "x-api-key: key{0}",
    "a request id": "X-Request-Id: id{0}",
    "a cookie": "Cookie: session={0}",
    "an agent": "User-Agent: agent{0}",
}


@pytest.mark.parametrize("name", NAMES)
def test_no_header_raises_the_rate_limit(counted: tuple[Rill, int], name: str) -> None:
    rill, _ = counted
    source = fresh_source()
    assert [status_of(rill, NAMES[name].format(number), source) for number in range(5)] == LIMITED


# What a client may send as X-Forwarded-For; the proxies append theirs to it.
FORGED = {
    "an address": "203.0.113.{0}",
    "many addresses": "203.0.113.{0}, " + ", ".join(f"10.0.{number}.1" for number in range(250)),
    "an address with a port": "203.0.113.7:{0}",
    "IPv6": "2001:db8:{0}::1",
    "IPv6 with a port": "[2001:db8:{0}::1]:443",
    "the loopback": "127.0.0.{0}",
    "junk": "junk{0}",
    "unknown": "unknown, _hidden{0}",
    "an open quote": '"x{0}',
    "an open quote and a backslash": '"x{0}\\',
    "a quote around a comma": '"x{0}, y"',
    "quotes that do not match": '"x{0}", "y',
    "a backslash": "x{0}\\",
    "commas": ",,{0},,",
    "bytes": "\xff\xfe{0}",
    "tabs": "\t{0}\t",
    "8 KB of an address": "203.0.113.{0}, " * 420,
    "8 KB of junk": "x{0}" * 2000,
    "markup": "<script>{0}</script>",
    "Forwarded's syntax": "for=203.0.113.{0};proto=https",
    "SQL": "203.0.113.{0}' OR '1'='1",
    "a NUL, encoded": "203.0.113.{0}%00",
    "nothing": "",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_hop_left_of_the_trusted_ones_is_ignored(counted: tuple[Rill, int], name: str) -> None:
    rill, hops = counted
    source, client = fresh_source(), fresh_hop()
    # What the trusted proxies append: the client's address, then each the address of its peer, which may change.
    added = [[], [client], [client, "10.0.0.{0}"]][hops]
    honest = "X-Forwarded-For: " + ", ".join(added) if added else ""
    one_line = "X-Forwarded-For: " + ", ".join([FORGED[name], *added])
    lines = "\r\n".join(f"X-Forwarded-For: {each}" for each in [FORGED[name], *added])
    sent = [one_line, honest, lines, one_line, lines]
    assert [status_of(rill, each.format(number), source) for number, each in enumerate(sent)] == LIMITED


def test_each_client_behind_the_trusted_proxies_is_counted_separately(counted: tuple[Rill, int]) -> None:
    rill, hops = counted
    source = fresh_source()
    clients = [f"X-Forwarded-For: {', '.join([fresh_hop(), '10.0.0.1'][:hops] or [fresh_hop()])}" for _ in range(5)]
    assert [status_of(rill, client, source) for client in clients] == (LIMITED if hops == 0 else [400] * 5)


def test_the_peer_is_counted_if_the_proxies_wrote_too_few_hops(counted: tuple[Rill, int]) -> None:
    rill, hops = counted
    source = fresh_source()
    few = ["", "", "X-Forwarded-For: 203.0.113.{0}"][hops]
    assert [status_of(rill, few.format(number), source) for number in range(5)] == LIMITED


SAME = {
    "a port": ["{0}", "{0}:1", "{0}:65535", " {0}:80", "{0}"],
    "IPv4 in IPv6": ["{0}", "::ffff:{0}", "[::ffff:{0}]:80", "::FFFF:{0}", "{0}:80"],
    "one network of IPv6": [
        "2001:db8::1",
        "2001:DB8:0:0::2",
        "[2001:db8::3]:443",
        "[2001:db8::4]",
        "2001:db8::1:0:0:5",
    ],
}


@pytest.mark.parametrize("name", SAME)
def test_every_spelling_of_the_trusted_hop_is_the_same_client(counted: tuple[Rill, int], name: str) -> None:
    rill, hops = counted
    source, client = fresh_source(), fresh_hop()
    behind = ", 10.0.0.1" * (hops - 1)
    sent = [f"X-Forwarded-For: {spelling.format(client)}{behind}" for spelling in SAME[name]]
    assert [status_of(rill, each, source) for each in sent] == LIMITED


def test_the_log_names_the_trusted_hop_as_the_client(counted: tuple[Rill, int], upstream: Upstream) -> None:
    rill, hops = counted
    upstream.always(play)
    source, client = fresh_source(), fresh_hop()
    offset = len(rill.output())
    forwarded = ", ".join(["203.0.113.9", *[client, "10.0.0.1"][:hops]])
    assert status_of(rill, f"X-Forwarded-For: {forwarded}", source, "/stream?q=first") == 200
    assert f'"client": "{source if hops == 0 else client}"' in rill.output()[offset:]


# The route

MISLEADING = {
    "SCRIPT_NAME": "SCRIPT_NAME: /stream",
    "SCRIPT_NAME of nothing here": "SCRIPT_NAME: /elsewhere",
    "Script-Name": "Script-Name: /stream",
    "X-Script-Name": "X-Script-Name: /stream",
    "X-Forwarded-Prefix": "X-Forwarded-Prefix: /stream",
    "X-Forwarded-Path": "X-Forwarded-Path: /healthz",
    "X-Forwarded-Uri": "X-Forwarded-Uri: /healthz",
    "X-Forwarded-Proto": "X-Forwarded-Proto: https",
    "X-Forwarded-Proto, twice": "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http",
    "X-Forwarded-Protocol": "X-Forwarded-Protocol: ssl",
    "X-Forwarded-Ssl": "X-Forwarded-Ssl: on",
    "X-Forwarded-Ssl against Proto": "X-Forwarded-Ssl: off\r\nX-Forwarded-Proto: https",
    "X-Forwarded-Host": "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port": "X-Forwarded-Port: 443",
    "X-Forwarded-Server": "X-Forwarded-Server: evil.example",
    "X-Host": "X-Host: evil.example",
    "Forwarded": "Forwarded: for=127.0.0.1;host=evil.example;proto=https",
    "X-HTTP-Method-Override": "X-HTTP-Method-Override: POST",
    "X-HTTP-Method": "X-HTTP-Method: DELETE",
    "X-Method-Override": "X-Method-Override: POST",
    "X-Original-URL": "X-Original-URL: /healthz",
    "X-Rewrite-URL": "X-Rewrite-URL: /healthz",
    "X-Original-Method": "X-Original-Method: POST",
    "Request-Method": "Request-Method: POST",
    "REQUEST_METHOD": "REQUEST_METHOD: POST",
    "Request-Uri": "Request-Uri: /healthz",
    "Path-Info": "Path-Info: /healthz",
    "PATH_INFO": "PATH_INFO: /healthz",
    "Query-String": "Query-String: q=other",
    "QUERY_STRING": "QUERY_STRING: q=other",
    "Server-Protocol": "Server-Protocol: HTTP/1.0",
    "Content_Length": "Content_Length: 5",
    "Content_Type": "Content_Type: application/json",
    "Transfer_Encoding": "Transfer_Encoding: chunked",
    "Destination": "Destination: /healthz",
    "Max-Forwards": "Max-Forwards: 0",
    "Range": "Range: bytes=0-0",
    "If-None-Match": "If-None-Match: *",
    "Accept-Encoding": "Accept-Encoding: gzip, br, zstd",
    "all of them": "X-Forwarded-Host: y\r\nX-Forwarded-Prefix: /z\r\nX-Original-URL: /healthz\r\nSCRIPT_NAME: /stream",
}
LINES = ["GET /nowhere", "GET /stream?q=first", "POST /healthz", "HEAD /stream?q=first", "GET /healthz"]


def comparable(received: Received) -> tuple[list[int], set[bytes], str]:
    """Return what two equal responses have in common: the status, the names of the headers, and the body."""
    head = received.data.partition(b"\r\n\r\n")[0]
    return received.statuses, {line.partition(b":")[0] for line in head.split(b"\r\n")}, received.last_body


@pytest.mark.parametrize("name", MISLEADING)
def test_no_header_changes_the_route_or_its_response(rill: Rill, upstream: Upstream, name: str) -> None:
    for line in LINES:
        plain = f"{line} HTTP/1.1\r\nHost: x\r\nx-api-key: {SECRET}\r\nConnection: close\r\n"
        usual = exchange(rill.port, f"{plain}\r\n".encode())
        misled = exchange(rill.port, f"{plain}{MISLEADING[name]}\r\n\r\n".encode())
        assert comparable(misled) == comparable(usual)
        assert b"evil" not in misled.data
    assert prompts(upstream) == ["first", "first"]


# Authentication

BASIC = b64encode(f"{SECRET}:".encode()).decode()
CREDENTIALS = {
    "nothing": "",
    "X_API_KEY": f"X_API_KEY: {SECRET}",
    "x-api_key": f"x-api_key: {SECRET}",
    "Proxy-Authorization": f"Proxy-Authorization: Bearer {SECRET}",
    "X-Authorization": f"X-Authorization: Bearer {SECRET}",
    "X-Forwarded-Authorization": f"X-Forwarded-Authorization: Bearer {SECRET}",
    "HTTP_AUTHORIZATION": f"HTTP_AUTHORIZATION: Bearer {SECRET}",
    "a cookie": f"Cookie: token={SECRET}; x-api-key={SECRET}; Authorization=Bearer {SECRET}",
    "Remote-User": "Remote-User: alice",
    "REMOTE_USER": "REMOTE_USER: alice",
    "X-Remote-User": "X-Remote-User: alice",
    "X-Forwarded-User": "X-Forwarded-User: alice",
    "X-Forwarded-Email": "X-Forwarded-Email: alice@example.org",
    "X-WEBAUTH-USER": "X-WEBAUTH-USER: alice",
    "the loopback": "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1",
    "another URL": "X-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz",
    "another script": "SCRIPT_NAME: /stream",
    "two bearer keys": f"Authorization: Bearer wrong\r\nAuthorization: Bearer {SECRET}",
    "two keys": f"x-api-key: wrong\r\nx-api-key: {SECRET}",
    "a wrong bearer key before a right x-api-key": f"Authorization: Bearer wrong\r\nx-api-key: {SECRET}",
    "the name": "Authorization: Bearer alice",
    "the entry": f"Authorization: Bearer alice={SECRET}",
    "a prefix": f"Authorization: Bearer {SECRET[:-1]}",
    "a longer key": f"Authorization: Bearer {SECRET}x",
    "another case": f"Authorization: Bearer {SECRET.upper()}",
    "a percent code": "Authorization: Bearer wonder%2dland",
    "a no-break space before": f"Authorization: Bearer \xa0{SECRET}\xff",
    "as the name of Basic": f"Authorization: Basic {BASIC}",
    "Digest": 'Authorization: Digest username="alice", realm="Rill", nonce="", uri="/", response=""',
    "no scheme": f"Authorization: {SECRET}",
    "another scheme": f"Authorization: Token {SECRET}",
    "Bearer twice": f"Authorization: Bearer Bearer {SECRET}",
    "Bearer and a tab": f"Authorization: Bearer\t{SECRET}",
    "Bearer with a quote": f'Authorization: Bearer "{SECRET}"',
    "Basic with two colons": f"Authorization: Basic {b64encode(f'alice:x:{SECRET}'.encode()).decode()}",
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_wrong_or_misplaced_api_key_is_rejected(rill: Rill, upstream: Upstream, name: str) -> None:
    source = fresh_source()  # Failures are limited for each address.
    assert status_of(rill, CREDENTIALS[name], source, f"/stream?q=first&token={SECRET}&api_key={SECRET}") == 401
    assert upstream.requests == []


GUARDED = ["GET /stream?q=first", "POST /stream", "GET /chat/stream?message=first", "POST /v1/messages"]
GUARDED += ["POST /v1/chat/completions", "GET /v1/models"]
# No two of them contradict each other.
EVERYTHING = "\r\n".join(
    line for name, line in {**CREDENTIALS, **MISLEADING}.items() if line and not line.startswith("Auth")
)


@pytest.mark.parametrize("line", GUARDED)
def test_all_other_headers_together_do_not_replace_an_api_key(rill: Rill, upstream: Upstream, line: str) -> None:
    fields = EVERYTHING.replace("x-api-key", "x-api-kex")
    head = f"{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"
    trailer = f"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Api-Key: {SECRET}\r\n\r\n"
    received = exchange(rill.port, (head + trailer).encode("latin-1"))
    assert (received.statuses, received.in_sync) == ([401, 200], True)
    assert upstream.requests == []


@pytest.mark.parametrize("line", [f"Authorization: Bearer {SECRET}", f"x-api-key: {SECRET}"])
def test_an_api_key_in_its_header_is_accepted(rill: Rill, upstream: Upstream, line: str) -> None:
    assert status_of(rill, line, path="/stream?q=first") == 200
    assert prompts(upstream) == ["first"]


def test_a_header_with_an_underscore_is_ignored(rill: Rill, upstream: Upstream) -> None:
    head = request_bytes("POST", "/stream", {**API_KEY, "Content_Type": "application/json"}, b'{"q": "first"}')
    assert exchange(rill.port, head).statuses == [200, 200]
    assert prompts(upstream) == ['{"q": "first"}']
