"""The party at fault is the one that is reported: the client, the upstream, our own account, or Rill itself."""

import json
import re
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
import upstream as wire
import yaml
from asking import ask
from conversation import Conversation, request_bytes
from gevent.socket import socket as GeventSocket
from server import ROOT, Rill, StartRill
from upstream import Step, Upstream

from rill.server.connection import SEND_BUFFER_BYTES, ClientSocket
from rill.server.turns import Turns

ALICE = {"Authorization": "Bearer of-alice"}
MISSING = "claude-nothing-9"
BODY = {"model": "claude-nothing-9", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], "stream": True}
DIALECTS = ("text", "sse", "anthropic", "openai")
BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("some ")))
HERE = str(Path(__file__).parent)


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    """Return a server with an API key, short timeouts, and a route that fails outside Flask."""
    env = {"RILL_API_KEYS": "alice=of-alice", "RILL_START_TIMEOUT_SECONDS": "3", "RILL_IDLE_TIMEOUT_SECONDS": "3"}
    return share_rill("--pythonpath", HERE, app="failing:app", **env)


def lines(rill: Rill) -> list[dict[str, Any]]:
    """Return every JSON line of the log."""
    return [json.loads(line) for line in rill.output().split("\n")[:-1] if line.startswith("{")]


def logged(rill: Rill, name: str) -> dict[str, Any]:
    """Wait for the log line of the request `name`, and return it."""
    deadline = time.monotonic() + 10
    while not (found := [line for line in lines(rill) if line.get("request_id") == name]):
        assert time.monotonic() < deadline, rill.output()[-3000:]
        time.sleep(0.02)
    return found[0]


def counters(rill: Rill) -> dict[tuple[str, str], float]:
    """Return the value of each metric series by its name and labels."""
    with rill.ask("GET", "/metrics", ALICE) as asked:
        rows = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", asked.read_rest().decode(), re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in rows}


class Counted:
    """The increase of each counter during the context."""

    def __init__(self, rill: Rill) -> None:
        self._rill = rill
        self.increase: dict[tuple[str, str], float] = {}

    def __enter__(self) -> "Counted":
        self._before = counters(self._rill)
        return self

    def __exit__(self, *exc_info: object) -> None:
        now = counters(self._rill)
        self.increase = {key: value - self._before.get(key, 0) for key, value in now.items()}

    def errors(self) -> dict[str, float]:
        """Return the increase of the upstream errors by type."""
        rows = {
            labels: value for (name, labels), value in self.increase.items() if name == "rill_upstream_errors_total"
        }
        return {labels.split('"')[1]: value for labels, value in rows.items() if value}


# The operator's upstream account

ACCOUNT = {
    "credit": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade.",
    "limits": "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    "workspace": "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01.",
    "organization": "This organization has been disabled.",
    "spend": "This request would exceed your workspace's monthly spend limit.",
}
ACCOUNT_WORDS = re.compile(r"credit|billing|limit|organization|workspace|disabled", re.IGNORECASE)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("message", ACCOUNT)
def test_a_blocked_account_is_a_502_without_the_apis_message(
    rill: Rill, upstream: Upstream, message: str, dialect: str
) -> None:
    upstream.always(wire.error(400, "invalid_request_error", ACCOUNT[message]))
    with Counted(rill) as counted, ask(rill, dialect, ALICE, model=MISSING) as asked:
        assert asked.status == 502
        assert not ACCOUNT_WORDS.search(asked.read_rest().decode())
    assert counted.errors() == {"account_blocked": 1}
    assert len(upstream.requests) == 1


@pytest.mark.both_paths
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("begin", [(), (wire.send(wire.start()),)], ids=["first", "later"])
def test_an_error_event_about_our_account_is_not_forwarded(
    rill: Rill, upstream: Upstream, dialect: str, begin: tuple[Step, ...]
) -> None:
    event = wire.stream_error("invalid_request_error", ACCOUNT["credit"])
    upstream.always(wire.head(), *begin, wire.send(event), wire.end())
    with ask(rill, dialect, ALICE, model=MISSING) as asked:
        assert asked.status == (200 if begin and dialect != "text" else 502)
        assert not ACCOUNT_WORDS.search(asked.read_rest().decode())


@pytest.mark.parametrize(
    "message",
    [
        "prompt is too long: 200001 tokens > 200000 maximum",
        "max_tokens: 64001 > 64000, which is the maximum allowed number of output tokens",
        "messages.0.content: our organization has been disabled, our workspace is at its usage limits",
        "messages: at least one message is required",
    ],
)
def test_an_error_of_the_request_is_a_400_with_the_upstreams_message(
    rill: Rill, upstream: Upstream, message: str
) -> None:
    upstream.always(wire.error(400, "invalid_request_error", message))
    with Counted(rill) as counted, ask(rill, "text", ALICE, model=MISSING) as asked:
        assert (asked.status, asked.read_rest().decode().strip()) == (400, message)
    assert counted.errors() == {"bad_request": 1}


# Every response that is not 2xx


@pytest.mark.parametrize(
    ("step", "type", "count"),
    [
        (wire.error(529, "overloaded_error", "no", {"retry-after": "0"}), "overloaded", 3),
        (wire.error(500, "api_error", "no", {"retry-after": "0"}), "error", 3),
        (wire.error(404, "not_found_error", "model: claude-nothing-9"), "model_not_found", 1),
        (wire.status(404, {"content-type": "text/html"}, b"<h1>Not Found"), "rejected", 1),
        (wire.status(307, {"location": "/elsewhere"}), "error", 1),
        (wire.error(413, "request_too_large", "too large"), "content_too_large", 1),
    ],
    ids=["529", "500", "404 model", "404 address", "307", "413"],
)
def test_every_response_of_the_upstream_that_is_not_2xx_is_counted(
    rill: Rill, upstream: Upstream, step: Step, type: str, count: int
) -> None:
    upstream.always(step)
    with Counted(rill) as counted, ask(rill, "text", ALICE, model=MISSING) as asked:
        asked.read_rest()
    assert counted.errors() == {type: count}
    assert len(upstream.requests) == count


# A total outage of any kind

Form = tuple[Step, ...]
OUTAGES: dict[str, Form] = {
    "401": (wire.error(401, "authentication_error", "invalid x-api-key"),),
    "403": (wire.error(403, "permission_error", "no"),),
    "400 credit": (wire.error(400, "invalid_request_error", ACCOUNT["credit"]),),
    "404 address": (wire.status(404, {"content-type": "text/html"}, b"<h1>Not Found"),),
    "404 of the API": (wire.error(404, "not_found_error", "Not Found"),),
    "429": (wire.error(429, "rate_limit_error", "no", {"retry-after": "3600"}),),
    "500": (wire.error(500, "api_error", "no", {"retry-after": "0"}),),
    "529": (wire.error(529, "overloaded_error", "no", {"retry-after": "0"}),),
    "HTML": (wire.status(200, {"content-type": "text/html"}, b"<h1>Log in"),),
    "silence": (wire.silence(),),
    "silence in the answer": (*BEGUN, wire.silence()),
    "truncated": (*BEGUN, wire.close()),
    "an error in the answer": (*BEGUN, wire.send(wire.stream_error()), wire.end()),
}


def fires(rule: str, increase: dict[tuple[str, str], float]) -> bool:
    """Evaluate an alert of docs/alerts.yml with the increases of the counters in place of their rates."""
    (group,) = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text("utf-8"))["groups"]
    (expression,) = [each["expr"] for each in group["rules"] if each.get("alert") == rule]

    def total(found: re.Match[str]) -> str:
        metric, label, values = found.groups()
        pattern = re.compile(values)
        matching = [
            value
            for (name, labels), value in increase.items()
            if name == metric and pattern.fullmatch(re.search(rf'\b{label}="([^"]*)"', labels)[1])  # type: ignore[index]
        ]
        return repr(float(sum(matching)))

    formula = re.sub(r'sum\(rate\((\w+)\{(\w+)=~"([^"]*)"\}\[\w+\]\)\)', total, expression)
    assert re.fullmatch(r"[\d.e+\s/()>-]+", formula), formula
    left, right = (part.split("/") for part in formula.split(">"))
    over, under = map(float, left)
    return bool(under) and over / under > float(right[0])  # x / 0 is NaN, which is never greater


@pytest.mark.parametrize("form", OUTAGES)
@pytest.mark.parametrize("dialect", ["text", "anthropic"])
def test_a_total_outage_of_any_kind_fires_the_alert(rill: Rill, upstream: Upstream, form: str, dialect: str) -> None:
    upstream.always(*OUTAGES[form])
    with Counted(rill) as counted, ask(rill, dialect, ALICE, model="claude-sonnet-5-5") as asked:
        asked.read_rest()
    assert fires("RillUpstreamDown", counted.increase)
    assert counted.errors()


def test_an_unreachable_upstream_fires_the_alert(start_rill: StartRill) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rill = start_rill(ANTHROPIC_BASE_URL=f"http://127.0.0.1:{port}")
    with Counted(rill) as counted, ask(rill, "text", ALICE, model=MISSING) as asked:
        assert asked.status == 502
    assert fires("RillUpstreamDown", counted.increase)


def test_client_errors_fire_no_alert(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.error(400, "invalid_request_error", "prompt is too long"))
    upstream.script(wire.error(404, "not_found_error", "model: claude-nothing-9"))
    upstream.script(*BEGUN, wire.silence())
    with Counted(rill) as counted:
        for status in (400, 404):
            with ask(rill, "text", ALICE, model=MISSING) as asked:
                assert asked.status == status
        with ask(rill, "text", ALICE, name="disconnects", model=MISSING) as asked:
            asked.next_chunk()
        logged(rill, "disconnects")
    assert not fires("RillUpstreamDown", counted.increase)


# A model that the upstream does not know


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_unknown_model_that_the_client_chose_is_a_404_that_names_it(
    rill: Rill, upstream: Upstream, dialect: str
) -> None:
    upstream.always(wire.error(404, "not_found_error", "model: claude-nothing-9"))
    with ask(rill, dialect, ALICE, model=MISSING) as asked:
        assert asked.status == 404
        body = asked.read_rest().decode()
    assert "claude-nothing-9" in body
    if dialect in ("anthropic", "openai"):
        assert json.loads(body)["error"]["type"] == "not_found_error"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("dialect", ["text", "sse", "openai"])
def test_an_unknown_default_model_is_a_502(rill: Rill, upstream: Upstream, dialect: str) -> None:
    upstream.always(wire.error(404, "not_found_error", "model: claude-sonnet-5-5"))
    with ask(rill, dialect, ALICE, model=None) as asked:
        assert asked.status == 502


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("step", [OUTAGES["404 address"][0], OUTAGES["404 of the API"][0]], ids=["HTML", "JSON"])
def test_a_wrong_upstream_url_is_a_502(rill: Rill, upstream: Upstream, dialect: str, step: Step) -> None:
    upstream.always(step)
    with ask(rill, dialect, ALICE, model=MISSING) as asked:
        assert asked.status == 502


# A slow client


def connect_slowly(rill: Rill, name: str, path: str = "/stream?q=hi") -> socket.socket:
    """Send a request on a socket with a small receive buffer, and read nothing yet."""
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connected.settimeout(30)
    connected.connect(("127.0.0.1", rill.port))
    connected.sendall(request_bytes("GET", path, {**ALICE, "X-Request-Id": name, "Connection": "close"}))
    return connected


@pytest.mark.both_paths
def test_time_in_which_the_client_does_not_read_is_not_idle_time_of_the_upstream(
    rill: Rill, upstream: Upstream
) -> None:
    text = "~" * 400_000
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(text)), wire.send(wire.stop()), wire.end())
    with connect_slowly(rill, "reads-late") as reader:
        time.sleep(5)  # longer than the idle timeout, shorter than the timeout of a client that does not read
        got = b""
        while piece := reader.recv(65536):
            got += piece
    assert got.count(b"~") == len(text)
    assert logged(rill, "reads-late")["outcome"] == "completed"


@pytest.mark.both_paths
def test_a_silent_upstream_is_an_idle_timeout_even_if_the_client_reads_late(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("x" * 400_000)), wire.silence())
    with connect_slowly(rill, "late-and-idle") as reader:
        time.sleep(4)
        begun = time.monotonic()
        while reader.recv(65536):
            pass
        assert 2 <= time.monotonic() - begun < 7
    assert logged(rill, "late-and-idle")["outcome"] == "idle_timeout"


def accept_slowly() -> tuple[ClientSocket, GeventSocket]:
    """Connect a server socket to a client socket with a small receive buffer, and return both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        reader = GeventSocket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(listener.getsockname())
        accepted, _ = listener.accept()
    return ClientSocket(accepted, Turns(), None), reader


@pytest.mark.parametrize("piece", [1000, 0])
def test_bytes_that_the_clients_kernel_acknowledges_count_as_progress(piece: int) -> None:
    writer, reader = accept_slowly()
    writer.slow_seconds = 3.0
    with writer, reader:
        sending = gevent.spawn(writer.sendall, b"x" * 400_000)
        for _ in range(14):
            gevent.sleep(0.5)
            if piece:
                reader.recv(piece)
        assert isinstance(sending.exception, ConnectionResetError) if not piece else not sending.ready()
        sending.kill()


@pytest.mark.both_paths
def test_a_disconnect_before_the_last_bytes_is_not_completed(rill: Rill, upstream: Upstream) -> None:
    # The client has received all text; it resets while Rill waits only for the upstream's last bytes.
    upstream.script(*BEGUN, wire.gate("end"), wire.send(wire.stop()), wire.silence())
    with ask(rill, "text", ALICE, name="resets", model=MISSING) as asked:
        assert asked.next_chunk() == b"some "
        asked.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        upstream.open("end")
        upstream.wait_until(lambda: upstream._held.get("end", 0) > 0, "the gate")
        time.sleep(0.02)
    assert logged(rill, "resets")["outcome"] == "client_disconnected"


# The upstream's last event


@pytest.mark.both_paths
@pytest.mark.parametrize("ending", [wire.end(), wire.close()], ids=["end", "close"])
@pytest.mark.parametrize("type", ["overloaded_error", "api_error"])
def test_an_error_event_without_its_blank_line_is_reported_as_that_error(
    rill: Rill, upstream: Upstream, type: str, ending: Step
) -> None:
    upstream.script(*BEGUN, wire.send(wire.stream_error(type).rstrip(b"\n")), ending)
    name = f"unterminated-{time.monotonic_ns()}"
    with ask(rill, "sse", ALICE, name=name, model=MISSING) as asked:
        body = asked.read_rest()
    title = {"overloaded_error": "upstream_overloaded", "api_error": "upstream_error"}[type]
    assert json.loads(body.split(b"event: error\ndata: ")[1])["code"] == title
    assert logged(rill, name)["outcome"] == "upstream_error"


# Rill's own failures


def test_an_exception_outside_the_application_is_an_internal_error(rill: Rill) -> None:
    with rill.ask("GET", "/__fail?q=canary-prompt-of-a-client") as asked:
        assert asked.status == 500
    found = [line for line in lines(rill) if "RuntimeError" in line.get("exception", "")]
    assert len(found) == 1
    assert found[0]["level"] == "error"
    assert "failing.py" in found[0]["exception"]
    assert "A request could not be read: RuntimeError" not in rill.output()
    assert "canary" not in rill.output()


def test_an_unparseable_request_is_not_an_internal_error(rill: Rill) -> None:
    with Conversation(rill.port, b"hello\r\n\r\n") as asked:
        assert asked.status == 400
    assert "A request could not be read" in rill.output()


# API keys and paths


def test_a_missing_and_a_wrong_api_key_get_different_messages(rill: Rill) -> None:
    messages = []
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with rill.ask("GET", "/stream?q=hi", headers) as asked:
            assert asked.status == 401
            messages.append(asked.read_rest().decode())
    assert "needed" in messages[0]
    assert "not valid" in messages[1]


def rejections_in_log(rill: Rill, condition: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    time.sleep(0.1)
    return [line for line in lines(rill) if line["event"] == "rejected" and condition(line)]


def test_a_401_and_a_404_are_logged_with_their_path_and_no_secret(rill: Rill) -> None:
    time.sleep(1)  # earlier tests count towards the limit of lines per second
    wrong = {"Authorization": "Bearer wrong-key-of-somebody", "X-Request-Id": "rejected-401"}
    with rill.ask("GET", "/stream?q=canary-prompt", wrong) as asked:
        assert asked.status == 401
    secret = "/x%0a%1b%5b31mFORGED/wrong-key-of-somebody/sk-ant-api03-abcdefgh/sk-test-key?q=canary"
    with rill.ask("GET", secret, {**wrong, "X-Request-Id": "rejected-404"}) as asked:
        assert asked.status == 404
    unauthorized, not_found = rejections_in_log(
        rill, lambda line: line["request_id"] in ("rejected-401", "rejected-404")
    )
    assert (unauthorized["status"], unauthorized["problem"], unauthorized["path"]) == (401, "unauthorized", "/stream")
    assert unauthorized["address"] == "127.0.0.1"
    assert (not_found["status"], not_found["problem"]) == (404, "not_found")
    assert not_found["path"] == "/*/*/*/*"
    for word in ("wrong-key", "sk-ant", "sk-test", "canary", "q="):
        assert word not in json.dumps([unauthorized, not_found])


def test_a_flood_of_rejections_logs_a_few_lines_per_second(rill: Rill) -> None:
    time.sleep(1)
    begun = time.monotonic()
    for _ in range(60):
        with rill.ask("GET", "/flood/stream") as asked:
            assert asked.status == 404
    seconds = time.monotonic() - begun
    time.sleep(1)
    with rill.ask("GET", "/flood/stream/messages") as asked:
        assert asked.status == 404
    written = rejections_in_log(rill, lambda line: line["path"].startswith("/*/stream"))
    assert len(written) <= 5 * (seconds + 2) + 1
    assert sum(line["left_out"] + 1 for line in written) == 61
