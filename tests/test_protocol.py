"""Edge cases of HTTP on real sockets: bodies, paths, request heads and upstream responses."""

import json
from collections.abc import Callable

import pytest
import upstream as wire
from conversation import Conversation, raw_request, request_bytes
from server import Rill
from upstream import Upstream

StartRill = Callable[..., Rill]
CLOSE = {"Connection": "close"}


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server with low limits."""
    return share_rill(RILL_MAX_STREAMS_PER_CLIENT="2", RILL_MAX_BODY_BYTES="1000")


def fetch(
    service: Rill, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int | None, str]:
    with service.ask(method, path, {**CLOSE, **(headers or {})}, body) as asked:
        return asked.status, asked.read_rest().decode()


# The body


@pytest.mark.parametrize("body", [b"hello", b"hello & goodbye=1", b'{"q": "hi"}', b""])
def test_a_body_that_curl_labels_as_a_form_is_rejected_with_the_correct_command(service: Rill, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    status, message = fetch(service, "POST", "/stream", headers, body)
    assert status == 400
    assert "no field q, message, prompt or messages" in message
    assert "curl -H 'Content-Type: text/plain' --data-binary" in message
    assert "--json" in message


def test_an_octet_stream_body_is_a_prompt(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    headers = {"Content-Type": "application/octet-stream"}
    assert fetch(service, "POST", "/stream", headers, "溪".encode()) == (200, "ok")
    assert upstream.requests[0].json["messages"] == [{"role": "user", "content": "溪"}]
    assert fetch(service, "POST", "/stream", headers, b"\xff")[0] == 400


def test_another_media_type_is_rejected_with_the_correct_command(service: Rill) -> None:
    status, message = fetch(service, "POST", "/stream", {"Content-Type": "text/html"}, b"hello")
    assert status == 415
    assert "curl -H 'Content-Type: text/plain' --data-binary" in message


# 404

SUGGESTED = {
    "/messages": "/v1/messages",
    "/v1/v1/messages": "/v1/messages",
    "/v1/messages/": "/v1/messages",
    "/chat/completions": "/v1/chat/completions",
    "/v1/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/chat/completions",
    "/v1/v1/responses": "/v1/responses",
    "/models": "/v1/models",
    "/v1/nothing": "/v1/messages",
    "/v1/stream": "/stream",
}


@pytest.mark.parametrize("path", SUGGESTED)
def test_a_404_suggests_the_intended_path(service: Rill, path: str) -> None:
    status, message = fetch(service, "POST", path, {"Content-Type": "application/json"}, b"{}")
    assert status == 404
    if path.startswith("/v1/"):
        body = json.loads(message)
        assert ("type" in body) == path.rstrip("/").endswith("/messages")
        message = body["error"]["message"]
    assert SUGGESTED[path] in message


# The request head


def test_options_for_the_whole_server_is_answered(service: Rill) -> None:
    with service.ask("OPTIONS", "*", CLOSE) as asked:
        assert (asked.status, asked.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    for method in ("GET", "POST"):
        assert fetch(service, method, "*")[0] == 400


@pytest.mark.parametrize("host", ["a:99999", "a:65536", "[::1]:70000"])
def test_a_port_that_is_out_of_range_is_a_400(service: Rill, host: str) -> None:
    assert fetch(service, "GET", "/healthz", {"Host": host})[0] == 400
    assert fetch(service, "GET", f"http://{host}/healthz")[0] == 400


@pytest.mark.parametrize("host", ["a:65535", "a", "a:", "[::1]:1"])
def test_a_port_within_its_range_is_served(service: Rill, host: str) -> None:
    assert fetch(service, "GET", "/healthz", {"Host": host})[0] == 200
    assert fetch(service, "GET", f"http://{host}/healthz")[0] == 200


@pytest.mark.parametrize("user", ["user:pw@", "user@", "@"])
def test_a_user_in_an_absolute_target_is_a_400(service: Rill, user: str) -> None:
    assert fetch(service, "GET", f"http://{user}127.0.0.1/healthz")[0] == 400


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/openapi.json"])
def test_if_match_any_is_satisfied_by_an_existing_file(service: Rill, path: str) -> None:
    assert fetch(service, "GET", path, {"If-Match": "*"})[0] == 200
    assert fetch(service, "GET", path, {"If-None-Match": "*"})[0] in (200, 304)
    assert fetch(service, "GET", path, {"If-Match": '"another"'})[0] in (200, 412)


@pytest.mark.parametrize(
    "file",
    [
        "..%2fapp.py",
        "%2e%2e/app.py",
        "../app.py",
        "..\\app.py",
        "%2fetc%2fpasswd",
        ".",
        "nothing.js",
        "page.js/",
        "a/b",
    ],
)
def test_only_files_of_the_page_are_served(service: Rill, file: str) -> None:
    assert fetch(service, "GET", f"/page/{file}")[0] == 404


def test_a_body_that_is_too_long_is_rejected_without_100_continue(service: Rill) -> None:
    head = request_bytes("POST", "/stream", {"Content-Length": "1001", "Expect": "100-continue"})
    with Conversation(service.port, head) as asked:
        assert asked.status == 413
        assert asked.headers["connection"] == "close"
        asked.read_rest()
        asked.socket.settimeout(2)
        assert asked.socket.recv(1) == b""


def test_a_body_within_the_limit_gets_100_continue(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    head = request_bytes("POST", "/stream", {"Content-Length": "1000", "Expect": "100-continue", **CLOSE})
    with raw_request(service.port, head) as connected:
        assert connected.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connected.sendall(b"a" * 1000)
        assert connected.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_response_whose_connection_is_closed_has_connection_close(service: Rill) -> None:
    head = request_bytes("POST", "/stream", {"Transfer-Encoding": "chunked", "Content-Type": "text/plain"})
    with Conversation(service.port, head + b"zz\r\n") as asked:
        assert (asked.status, asked.headers["connection"]) == (400, "close")
        asked.read_rest()
        assert asked.socket.recv(1) == b""


# Server-sent events


@pytest.mark.parametrize("text", ["[DONE]", "a\n[DONE]\nb", "[DONE]\n", "[DONE]\r\n[DONE]", "[DONE] [DONE]"])
def test_text_that_looks_like_the_end_mark_is_not_mistaken_for_it(service: Rill, upstream: Upstream, text: str) -> None:
    upstream.script(*wire.answer(text))
    status, body = fetch(service, "GET", "/stream?q=hi", {"Accept": "text/event-stream"})
    assert status == 200
    assert body.splitlines().count("data: [DONE]") == 1
    assert body.endswith("data: [DONE]\n\n")
    events = [event.splitlines() for event in body.split("\n\n") if "event: " not in event]
    texts = ["\n".join(line[6:] for line in lines if line.startswith("data: ")) for lines in events]
    assert "".join(texts).removesuffix("[DONE]") == text.replace("\r\n", "\n")


# The upstream


@pytest.mark.parametrize("version", ["HTTP/1.2", "HTTP/1.9", "HTTP/1.0"])
def test_another_minor_http_version_of_the_upstream_is_not_an_internal_error(
    service: Rill, upstream: Upstream, version: str
) -> None:
    head = f"{version} 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".encode()
    body = wire.opening() + wire.text("ok") + wire.block_stop() + wire.stop()
    upstream.always(wire.raw(head + body), wire.close())
    status, _ = fetch(service, "GET", "/stream?q=hi")
    assert status in (200, 502)


@pytest.mark.parametrize("charset", ["rot13", "foo", "utf-16", "hex", "undefined", '"', "\xff"])
@pytest.mark.parametrize("path", ["/stream", "/v1/messages"])
def test_an_upstream_error_in_an_unknown_charset_keeps_its_status(
    service: Rill, upstream: Upstream, charset: str, path: str
) -> None:
    error = {"type": "error", "error": {"type": "api_error", "message": "Oh."}}
    headers = {"content-type": f"application/json; charset={charset}", "x-should-retry": "false"}
    upstream.script(wire.status(500, headers, json.dumps(error).encode()))
    fields = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    status, message = fetch(service, "POST", path, {"Content-Type": "application/json"}, json.dumps(fields).encode())
    assert status == 502, message


def test_an_upstream_header_that_cannot_be_forwarded_costs_no_slot(service: Rill, upstream: Upstream) -> None:
    message = {"type": "message", "content": [], "stop_reason": "end_turn", "usage": {}}
    fields = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"content-type": "application/json", "request-id": "a\x7fb"}
    upstream.always(wire.status(200, headers, json.dumps(message).encode()))
    for _ in range(4):  # Two concurrent answers are allowed.
        status, _ = fetch(
            service, "POST", "/v1/messages", {"Content-Type": "application/json"}, json.dumps(fields).encode()
        )
        assert status in (200, 502)


def test_a_problem_in_json_has_a_title_for_people_and_a_code_for_programs(service: Rill) -> None:
    status, message = fetch(service, "GET", "/nowhere", {"Accept": "application/json"})
    problem = json.loads(message)
    assert (status, problem["title"], problem["code"]) == (404, "Not Found", "not_found")


# The offline model


def test_the_offline_model_accepts_system_messages_and_counts_the_input_at_the_end() -> None:
    messages = [{"role": role, "content": "hi"} for role in ("user", "system", "user")]
    fields = {"model": "claude-sonnet-5-5", "max_tokens": 5, "messages": messages, "stream": True}
    with Rill({"RILL_OFFLINE": "1"}) as offline:
        headers = {"Content-Type": "application/json"}
        status, body = fetch(offline, "POST", "/v1/messages", headers, json.dumps(fields).encode())
    assert status == 200, body
    (end,) = [json.loads(line[6:]) for line in body.splitlines() if line.startswith('data: {"type":"message_delta"')]
    assert end["usage"] == {"input_tokens": 3, "output_tokens": 5}
