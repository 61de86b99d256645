"""The start of the service: offline, addresses, settings that stop it, and its output."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import upstream as wire
from conversation import Conversation, request_bytes
from server import Rill, StartFailed
from upstream import Upstream

StartRill = Callable[..., Rill]

OFFLINE = {"RILL_OFFLINE": "1"}
KEY = "sk-secret-key-1"
SECRET = "petrichor"  # a prompt, which no log may contain


@pytest.fixture(scope="module")
def offline() -> Iterator[Rill]:
    with Rill(OFFLINE, forked=False) as running:
        yield running


def addresses(service: Rill) -> set[str]:
    """Return the addresses at which the server listens on its port."""
    found = psutil.Process(service.pid).net_connections("tcp")
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN and each.laddr.port == service.port}


def read(service: Rill, path: str, headers: Mapping[str, str] | None = None) -> str:
    with service.ask("GET", path, headers) as asked:
        assert asked.status == 200
        return asked.read_rest().decode()


def answer_lines(service: Rill, n: int, wanted: str = "") -> list[dict[str, Any]]:
    """Wait for `n` log lines of answers with `wanted` in them: each is written a moment after its answer's end."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = [line for line in service.output().splitlines() if line.startswith("{") and wanted in line]
        if len(lines) >= n:
            break
        time.sleep(0.02)
    return [json.loads(line) for line in lines]


def fail_to_start(env: Mapping[str, str], *arguments: str, bind: bool = True) -> str:
    """Start with settings that stop the start, and return the output."""
    with ExitStack() as running, pytest.raises(StartFailed) as failed:
        running.enter_context(Rill(env, arguments, bind=bind))
    assert failed.value.exit_code not in (0, None)
    assert KEY not in failed.value.output
    return failed.value.output


def assert_no_errors(service: Rill) -> None:
    """Assert that the output contains no traceback and no logging error."""
    assert "Traceback" not in service.output()
    assert "Logging error" not in service.output()


# Offline


def test_an_offline_start_logs_one_line_that_states_how_to_set_a_key(offline: Rill) -> None:
    lines = [line for line in offline.output().splitlines() if "ANTHROPIC_API_KEY" in line or "ffline" in line]
    assert len(lines) == 1
    assert "Offline" in lines[0]
    assert "ANTHROPIC_API_KEY" in lines[0]


def test_the_offline_answer_passes_through_the_sdk_and_the_wire_format(offline: Rill) -> None:
    answer = read(offline, f"/stream?q={quote('你好 & 1+1 rate=0')}", {"X-Request-Id": "offline-1"})
    assert "你好 & 1+1" in answer
    assert "claude-sonnet-5-5" in answer
    (line,) = answer_lines(offline, 1, "offline-1")
    assert line["upstream_request_id"].startswith("req_offline_")  # a header of the response that only the SDK reads
    assert (line["status"], line["outcome"], line["stop_reason"]) == (200, "completed", "end_turn")
    assert line["output_tokens"] > 0


def test_offline_answers_respect_max_tokens_and_are_deterministic(offline: Rill) -> None:
    first, second = (read(offline, "/stream?q=hi&max_tokens=5") for _ in range(2))
    assert first == second
    assert len(first) < 60


def test_an_answer_is_one_log_line(offline: Rill) -> None:
    for dialect, path in {"text": "/stream?q=rate%3D0", "sse": "/chat/stream?message=rate%3D0"}.items():
        read(offline, path, {"X-Request-Id": f"one-line-{dialect}"})
        assert [line["dialect"] for line in answer_lines(offline, 1, f"one-line-{dialect}")] == [dialect]
    assert_no_errors(offline)


# Addresses and access


def test_without_port_the_server_listens_on_the_loopback(offline: Rill) -> None:
    assert addresses(offline) == {"127.0.0.1"}


def test_port_makes_the_server_listen_on_every_address() -> None:
    with Rill(OFFLINE, bind=False) as service:
        assert addresses(service) == {"0.0.0.0"}
        assert "offline model" in read(service, "/stream?q=rate%3D0")


PUBLIC = {
    "PORT": ((), {}),
    "--bind": (("--bind", "0.0.0.0:0"), {}),
    "--bind of every interface": (("--bind", ":0"), {}),
    "--bind of IPv6": (("--bind", "[::]:0"), {}),
    "GUNICORN_CMD_ARGS": ((), {"GUNICORN_CMD_ARGS": "--bind=0.0.0.0:0"}),
    "an empty list of API keys": ((), {"RILL_API_KEYS": " , "}),
    "RILL_ALLOW_ANONYMOUS=0": ((), {"RILL_ALLOW_ANONYMOUS": "0"}),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_server_without_client_keys_does_not_start(name: str) -> None:
    arguments, env = PUBLIC[name]
    output = fail_to_start({"ANTHROPIC_API_KEY": KEY, **env}, *arguments, bind=bool(arguments))
    (line,) = [line for line in output.splitlines() if line.startswith("rill:")]
    assert "RILL_API_KEYS" in line
    assert "RILL_ALLOW_ANONYMOUS=1" in line
    assert "Traceback" not in output
    assert "Listening at" not in output


@pytest.mark.parametrize(
    ("variable", "access"),
    [
        ("ANTHROPIC_API_KEY", {"RILL_API_KEYS": "alice=wonder-land"}),
        ("ANTHROPIC_AUTH_TOKEN", {"RILL_ALLOW_ANONYMOUS": "1"}),
    ],
)
def test_a_public_server_starts_with_client_keys_or_with_anonymous_access(
    upstream: Upstream, variable: str, access: dict[str, str]
) -> None:
    upstream.script(*wire.answer("ok"))
    with Rill({variable: KEY, "ANTHROPIC_BASE_URL": upstream.url, **access}, bind=False) as service:
        assert addresses(service) == {"0.0.0.0"}
        assert read(service, "/stream?q=hi", {"x-api-key": "wonder-land"}) == "ok"
        assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in service.output()


def test_a_loopback_server_starts_without_client_keys(upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    with Rill({"ANTHROPIC_AUTH_TOKEN": KEY, "ANTHROPIC_BASE_URL": upstream.url}) as service:
        assert read(service, "/stream?q=hi") == "ok"
        assert "ffline" not in service.output()


# Bad settings


# test_settings.py has every bad value.
@pytest.mark.parametrize(
    ("name", "value"), [("RILL_MAX_STREAMS", "0"), ("RILL_API_KEYS", "alice=one,alice=two,alice=three")]
)
def test_a_bad_value_stops_the_start_with_one_line_that_names_it(name: str, value: str) -> None:
    output = fail_to_start({"ANTHROPIC_API_KEY": KEY, name: value})
    assert len(output.splitlines()) == 1, output
    assert output.startswith("rill: ")
    assert name in output


def test_a_start_without_an_upstream_key_states_what_to_set() -> None:
    output = fail_to_start({})
    assert len(output.splitlines()) == 1
    assert {"ANTHROPIC_API_KEY", "RILL_OFFLINE=1"} <= set(re.findall(r"[\w=]+", output))


# Platforms


def test_two_workers_answer() -> None:
    with Rill({**OFFLINE, "WEB_CONCURRENCY": "2"}, forked=False) as service:
        service.wait_for_workers(2)
        assert all("offline model" in read(service, f"/stream?q=rate%3D0+{n}") for n in range(8))
        assert_no_errors(service)


def test_behind_a_platforms_router_clients_are_distinguished(start_rill: StartRill, upstream: Upstream) -> None:
    service = start_rill(DYNO="web.1", RILL_RATE_LIMIT="1/minute")
    upstream.always(*wire.answer("ok"))
    statuses = []
    for sent in ("9.9.9.9, 203.0.113.1", "9.9.9.9, 203.0.113.2", "8.8.8.8, 203.0.113.2"):
        with service.ask("GET", "/stream?q=hi", {"X-Forwarded-For": sent}) as asked:
            statuses.append(asked.status)
    assert statuses == [200, 200, 429]


def test_without_a_router_no_client_chooses_its_address(start_rill: StartRill, upstream: Upstream) -> None:
    service = start_rill(RILL_RATE_LIMIT="1/minute")
    upstream.always(*wire.answer("ok"))
    statuses = []
    for sent in ("203.0.113.1", "203.0.113.2"):
        with service.ask("GET", "/stream?q=hi", {"X-Forwarded-For": sent}) as asked:
            statuses.append(asked.status)
    assert statuses == [200, 429]


# Secrets in the output


JSON = {"Content-Type": "application/json"}
TWO = {"Content-Length": "2"}
REQUESTS = {
    "query": request_bytes("GET", f"/stream?q={SECRET}"),
    "chat": request_bytes("GET", f"/chat/stream?message={SECRET}"),
    "text": request_bytes("POST", "/stream", {}, SECRET.encode()),
    "JSON": request_bytes("POST", "/stream", JSON, f'{{"q": "{SECRET}"}}'.encode()),
    "bad field": request_bytes("GET", f"/stream?q={SECRET}&max_tokens={SECRET}"),
    "bad JSON": request_bytes("POST", "/stream", JSON, f'{{"q": {SECRET}'.encode()),
    "bad role": request_bytes("POST", "/stream", JSON, f'{{"messages": ["{SECRET}"]}}'.encode()),
    "unknown path": request_bytes("GET", f"/{SECRET}?q={SECRET}"),
    "wrong method": request_bytes("DELETE", f"/stream?q={SECRET}"),
    "space in the URL": request_bytes("GET", f"/stream?q=a {SECRET}"),
    "UTF-8 in the URL": f"GET /stream?q=溪{SECRET} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "body beyond its length": request_bytes("POST", "/stream", TWO, f"hi {SECRET}\r\n\r\n".encode()),
    "broken chunk": request_bytes("POST", "/stream", {"Transfer-Encoding": "chunked"}) + f"{SECRET}\r\n".encode(),
    "bad header": request_bytes("GET", "/stream?q=hi", {f"X {SECRET}": "x"}),
}


@pytest.mark.parametrize("env", [{}, {"GUNICORN_CMD_ARGS": "--access-logfile -"}], ids=["alone", "access log forced"])
def test_no_prompt_is_in_any_output(share_rill: StartRill, upstream: Upstream, env: dict[str, str]) -> None:
    service = share_rill(**env)
    upstream.always(*wire.answer("ok"))
    leaks = []
    for name, request in REQUESTS.items():
        before = len(service.output())
        with Conversation(service.port, request) as asked:
            asked.read_rest()
            asked.half_close()
            while asked.socket.recv(65536):  # until the server has closed its side too
                pass
        if SECRET in service.output()[before:]:
            leaks.append(name)
    assert leaks == []
    assert_no_errors(service)


@pytest.mark.parametrize("step", [wire.error(400, "invalid_request_error", f"bad: {SECRET}"), wire.reset()])
def test_no_prompt_is_in_the_output_of_a_failure(share_rill: StartRill, upstream: Upstream, step: wire.Step) -> None:
    service = share_rill()
    upstream.always(step)
    with service.ask("GET", f"/stream?q={SECRET}") as asked:
        asked.read_rest()
    upstream.clear()
    upstream.script(
        wire.head(), wire.send(wire.opening(), wire.text(SECRET)), wire.send(b"data: petri\n\n"), wire.end()
    )
    with service.ask("GET", f"/stream?q={SECRET}") as asked:
        asked.read_rest()
        assert asked.ended == "truncated"
    assert SECRET not in service.output()
    assert_no_errors(service)


def test_a_stop_is_quiet_and_clean(start_rill: StartRill) -> None:
    service = start_rill(**OFFLINE)
    read(service, "/stream?q=rate%3D0")
    assert service.stop().exit_code == 0
    assert_no_errors(service)
