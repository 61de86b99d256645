"""No page of another site can use the service through its visitor's browser: by DNS rebinding, a form or fetch."""

import socket
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import upstream as wire
from chromium import REBOUND
from conversation import Conversation, request_bytes
from selenium import webdriver
from server import Rill, StartRill
from upstream import Upstream

KEY = {"ANTHROPIC_API_KEY": "sk-test-key"}
CHAT = (
    b'{"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": true}'
)
JSON = {"Content-Type": "application/json"}
# Every route that may cause billing, or that shows answers, metrics or settings.
GUARDED = {
    "GET /stream": ("GET", "/stream?q=hi", b""),
    "POST /stream": ("POST", "/stream", b'{"q": "hi"}'),
    "POST /api/chat": ("POST", "/api/chat", b'{"q": "hi"}'),
    "GET /chat/stream": ("GET", "/chat/stream?message=hi", b""),
    "POST /v1/messages": ("POST", "/v1/messages", CHAT),
    "POST /v1/messages/count_tokens": ("POST", "/v1/messages/count_tokens", CHAT),
    "POST /v1/chat/completions": ("POST", "/v1/chat/completions", CHAT),
    "POST /v1/responses": ("POST", "/v1/responses", b'{"input": "hi"}'),
    "GET /?q=": ("GET", "/?q=hi", b""),
    "GET /v1/models": ("GET", "/v1/models", b""),
    "GET /v1/models/claude-sonnet-5-5": ("GET", "/v1/models/claude-sonnet-5-5", b""),
    "GET /drip": ("GET", "/drip", b""),
    "GET /metrics": ("GET", "/metrics", b""),
    "GET /": ("GET", "/", b""),
}
BILLED = [name for name in GUARDED if "models" not in name and name not in ("GET /metrics", "GET /")]


@pytest.fixture
def local(share_rill: StartRill) -> Rill:
    """Return the server that `make run` starts with an upstream key: on loopback, without client keys."""
    return share_rill(**KEY, RILL_ALLOWED_MODELS=None, RILL_ALLOWED_HOSTS=None)


def call(service: Rill, name: str, headers: dict[str, str], port: int | None = None) -> tuple[int | None, str]:
    """Return the status and the body of the response of a route."""
    method, path, body = GUARDED[name]
    fields = {**(JSON if body else {}), "Connection": "close", **headers}
    with Conversation(port or service.port, request_bytes(method, path, fields, body)) as asked:
        return asked.status, asked.read_rest().decode()


# DNS rebinding: https://en.wikipedia.org/wiki/DNS_rebinding


@pytest.mark.parametrize("name", GUARDED)
def test_on_loopback_without_client_keys_another_host_name_is_rejected(
    local: Rill, upstream: Upstream, name: str
) -> None:
    upstream.always(*wire.answer("ok"))
    status, text = call(local, name, {"Host": f"{REBOUND}:{local.port}"})
    assert (status, "RILL_ALLOWED_HOSTS" in text) == (403, True)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "host",
    [
        REBOUND,
        f"localhost.{REBOUND}",
        f"127.0.0.1.{REBOUND}",
        "localhostx",
        "127.0.0.1x",
        "[::1].example",
        "127.0.0.2",
        "0.0.0.0",
        "[::2]",
        "2130706433",
        "127.1",
        "localhost%2eexample",
    ],
)
def test_a_host_name_that_only_looks_local_is_rejected(local: Rill, upstream: Upstream, host: str) -> None:
    with local.ask("GET", "/stream?q=hi", {"Host": host}) as asked:
        assert asked.status in (400, 403)  # 400: not a valid Host
    assert upstream.requests == []


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", ["", ":", ":80", ":65535", "own"])
def test_loopback_names_are_served_on_any_port(local: Rill, upstream: Upstream, host: str, port: str) -> None:
    upstream.always(*wire.answer("ok"))
    own = f":{local.port}" if port == "own" else port
    assert call(local, "GET /stream", {"Host": f"{host}{own}"}) == (200, "ok")


def test_a_request_without_a_host_is_served(local: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    with Conversation(local.port, b"GET /stream?q=hi HTTP/1.0\r\n\r\n") as asked:
        assert (asked.status, asked.read_rest()) == (200, b"ok")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_checks_are_answered_for_any_host(local: Rill, path: str) -> None:
    with local.ask("GET", path, {"Host": "10.0.0.7:8000"}) as asked:
        assert asked.status == 200


def test_a_rejected_host_is_counted(local: Rill) -> None:
    call(local, "GET /stream", {"Host": REBOUND})
    _, text = call(local, "GET /metrics", {})
    assert 'rill_requests_rejected_total{reason="host_not_allowed"}' in text


def test_only_allowed_hosts_are_served(share_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    rill = share_rill(RILL_ALLOWED_HOSTS="Rill.Example, [fd00::7]")
    statuses = {
        host: call(rill, "GET /stream", {"Host": host})[0]
        for host in ("rill.example", "RILL.example:8443", "[fd00::7]:80", "localhost", REBOUND, "x.rill.example")
    }
    assert list(statuses.values()) == [200, 200, 200, 200, 403, 403]


@pytest.mark.parametrize("env", [{"RILL_API_KEYS": "alice=one"}, {"RILL_OFFLINE": "1"}], ids=["keys", "offline"])
def test_allowed_hosts_apply_in_every_configuration(share_rill: StartRill, env: dict[str, str]) -> None:
    rill = share_rill(RILL_ALLOWED_HOSTS="rill.example", **env)
    assert call(rill, "GET /stream", {"Host": REBOUND, "x-api-key": "one"})[0] == 403
    assert call(rill, "GET /v1/models", {"Host": "rill.example", "x-api-key": "one"})[0] == 200


@pytest.mark.parametrize("env", [{}, {"RILL_API_KEYS": "alice=one"}], ids=["no keys", "keys"])
def test_a_wildcard_allows_every_host(share_rill: StartRill, env: dict[str, str]) -> None:
    rill = share_rill(RILL_ALLOWED_HOSTS="*", **env)
    assert call(rill, "GET /v1/models", {"Host": REBOUND, "x-api-key": "one"})[0] == 200


@pytest.mark.parametrize("env", [{"RILL_API_KEYS": "alice=one"}, {"RILL_OFFLINE": "1"}], ids=["keys", "offline"])
def test_with_client_keys_or_the_offline_model_any_host_is_served(share_rill: StartRill, env: dict[str, str]) -> None:
    rill = share_rill(RILL_ALLOWED_HOSTS=None, **env)
    assert call(rill, "GET /v1/models", {"Host": "rill.example", "x-api-key": "one"})[0] == 200


def test_on_a_public_address_any_host_is_served(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    rill = start_rill(bind=False, RILL_ALLOW_ANONYMOUS="1", RILL_ALLOWED_HOSTS=None)
    assert call(rill, "GET /stream", {"Host": "rill.example"}) == (200, "ok")


def test_a_public_setting_does_not_open_the_loopback_to_other_sites(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_ALLOW_ANONYMOUS="1", RILL_ALLOWED_HOSTS=None)
    assert call(rill, "GET /stream", {"Host": "rill.example"})[0] == 403
    assert upstream.requests == []


def test_of_a_public_and_a_loopback_address_only_the_loopback_is_guarded(
    start_rill: StartRill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer("ok"))
    with closing(socket.create_server(("0.0.0.0", 0))) as probe:
        public = probe.getsockname()[1]
    rill = start_rill("--bind", f"0.0.0.0:{public}", RILL_ALLOW_ANONYMOUS="1", RILL_ALLOWED_HOSTS=None)
    assert call(rill, "GET /stream", {"Host": "rill.example"})[0] == 403
    assert call(rill, "GET /stream", {"Host": "rill.example"}, public)[0] == 200


def test_behind_a_unix_socket_any_host_is_served(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rill.sock")
        start_rill("--bind", f"unix:{path}", RILL_ALLOWED_HOSTS=None)
        for host in ("rill.example", "127.0.0.2", "localhost"):
            with closing(socket.socket(socket.AF_UNIX)) as connected:
                connected.connect(path)
                connected.sendall(request_bytes("GET", "/stream?q=hi", {"Host": host, "Connection": "close"}))
                data = b"".join(iter(lambda: connected.recv(65536), b""))
            assert data.startswith(b"HTTP/1.1 200 "), host


# A real browser, whose DNS resolves the name of the other site to the loopback.

ASK_AS_THE_SAME_ORIGIN = """
const done = arguments[0]
fetch('/stream', { method: 'POST', body: 'hi' }).then((answer) => done(answer.status), (error) => done(String(error)))
"""


def test_dns_rebinding_in_a_browser_neither_reads_nor_causes_billing(
    browser: webdriver.Chrome, local: Rill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer("ok"))
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # The other site's page would have no policy.
    try:
        browser.get(f"http://{REBOUND}:{local.port}/healthz")
        assert browser.execute_async_script(ASK_AS_THE_SAME_ORIGIN) == 403
    finally:
        browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
        browser.get("about:blank")
    assert upstream.requests == []


# Requests of other sites in a browser that sends no Sec-Fetch headers: browsers send them to trustworthy origins only.
# https://www.w3.org/TR/fetch-metadata/#framework and https://www.rfc-editor.org/rfc/rfc6454#section-7

HOST = "localhost:8000"
OTHER_ORIGINS = [
    "http://evil.example",
    "https://evil.example:8000",
    "null",
    "http://localhost",
    "http://localhost:8001",
    "https://localhost",
    "http://evil.example:8000",
    "http://localhost.evil.example:8000",
    "http://localhost:8000.evil.example",
    "http://localhost:8000@evil.example",
    "http://evil.example http://localhost:8000",
    "localhost:8000",
    "file://",
    "chrome-extension://abcdefgh",
    "http://127.0.0.1:8000",
]


@pytest.mark.parametrize("name", BILLED)
def test_a_page_of_another_origin_causes_no_billing_without_sec_fetch(
    local: Rill, upstream: Upstream, name: str
) -> None:
    upstream.always(*wire.answer("ok"))
    status, text = call(local, name, {"Host": HOST, "Origin": "http://evil.example"})
    assert (status, "RILL_CORS_ORIGINS" in text) == (403, True)
    assert upstream.requests == []


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_an_origin_that_is_not_the_host_is_rejected(local: Rill, upstream: Upstream, origin: str) -> None:
    assert call(local, "POST /stream", {"Host": HOST, "Origin": origin})[0] == 403
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("LOCALHOST:8000", "HTTP://localhost:8000"),
        ("localhost:8000", "https://localhost:8000"),
        ("localhost", "http://localhost"),
        ("localhost", "https://localhost"),
        ("localhost:", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost:443", "https://localhost"),
        ("localhost", "https://localhost:443"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::1]", "http://[::1]"),
    ],
)
def test_a_page_of_the_same_origin_is_served_without_sec_fetch(
    local: Rill, upstream: Upstream, host: str, origin: str
) -> None:
    upstream.always(*wire.answer("ok"))
    assert call(local, "POST /stream", {"Host": host, "Origin": origin}) == (200, "ok")


@pytest.mark.parametrize("allowed", ["https://app.example", "*"])
def test_a_listed_origin_is_served_without_sec_fetch(share_rill: StartRill, upstream: Upstream, allowed: str) -> None:
    upstream.always(*wire.answer("ok"))
    rill = share_rill(RILL_CORS_ORIGINS=allowed)
    assert call(rill, "POST /stream", {"Origin": "https://APP.example"})[0] == 200
    assert call(rill, "POST /stream", {"Origin": "null"})[0] == (200 if allowed == "*" else 403)


def test_a_get_without_an_origin_is_served_as_the_security_page_states(local: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    assert call(local, "GET /stream", {"Host": HOST, "Referer": "http://evil.example/"}) == (200, "ok")


CROSS_SITE = {
    "an image": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "a fetch": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "empty", "Origin": "http://evil.example"},
    "a prefetch": {"Sec-Purpose": "prefetch"},
}


@pytest.mark.parametrize("name", CROSS_SITE)
def test_a_drip_request_of_another_site_takes_no_slot(local: Rill, name: str) -> None:
    assert call(local, "GET /drip", CROSS_SITE[name])[0] == 403
