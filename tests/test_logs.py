"""The log: one line per answer, always with the same fields, little else, and never a prompt or an answer."""

import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import upstream as wire
from conversation import Conversation
from server import ROOT, START_SECONDS, Rill, StartRill, rill_env
from tcp_sockets import tcp_sockets
from upstream import Step, Upstream

from rill.telemetry.logs import VERBOSE_LIBRARIES, write_logs

MONITORING = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
SSE = {"Accept": "text/event-stream"}
STARTED = (wire.head(), wire.send(wire.opening(), wire.text("some ")))
REST = (wire.send(wire.text("text"), wire.block_stop(), wire.stop(output_tokens=7)), wire.end())


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill()


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.split("\n")[:-1] if line.startswith("{")]


def line_about(rill: Rill, name: str) -> dict[str, Any]:
    """Wait for the one line about the answer to the request of that id."""
    deadline = time.monotonic() + 10
    while not (found := [line for line in lines_of(rill.output()) if line.get("request_id") == name]):
        assert time.monotonic() < deadline, rill.output()
        time.sleep(0.02)
    (line,) = found
    return line


# The log line of an answer


def test_a_log_line_has_exactly_the_documented_fields(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*STARTED, *REST)
    with rill.ask("GET", "/stream?q=hi", {"X-Request-Id": "whole"}) as asked:
        asked.read_rest()
    line = line_about(rill, "whole")
    table = MONITORING.split("## Log line")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(line)
    duration, first_text, timestamp = (line.pop(name) for name in ("duration_ms", "ttft_ms", "timestamp"))
    assert duration >= first_text >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", timestamp)
    assert line == {
        "event": "answer",
        "request_id": "whole",
        "upstream_request_id": wire.REQUEST_ID,
        "client": "127.0.0.1",
        "dialect": "text",
        "requested_model": "claude-sonnet-5-5",
        "model": "claude-sonnet-5-5",
        "upstream": "primary",
        "attempts": 1,
        "status": 200,
        "outcome": "completed",
        "stop_reason": "end_turn",
        "cancelled": False,
        "input_tokens": 12,
        "output_tokens": 7,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "charged_tokens": None,
        "bytes": 9,
        "level": "info",
    }


def test_a_request_that_the_upstream_rejects_has_the_same_fields(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*STARTED, *REST)
    upstream.script(wire.error(400, "invalid_request_error", "canary-message"))
    for name in ("good", "bad"):
        with rill.ask("GET", "/stream?q=canary-prompt", {"X-Request-Id": name}) as asked:
            asked.read_rest()
    line = line_about(rill, "bad")
    assert list(line) == list(line_about(rill, "good"))
    assert (line["status"], line["outcome"], line["bytes"], line["cancelled"]) == (400, "bad_request", 0, False)
    unknown = ("upstream_request_id", "stop_reason", "ttft_ms", "input_tokens", "output_tokens")
    assert [line[name] for name in unknown] == [None] * 5


@pytest.mark.parametrize(
    ("rest", "outcome"),
    [
        ((wire.close(),), "upstream_truncated"),
        ((wire.send(wire.stream_error()), wire.end()), "upstream_error"),
    ],
    ids=["closed", "error"],
)
def test_an_answer_that_the_upstream_ends_early_is_not_logged_as_cancelled(
    rill: Rill, upstream: Upstream, rest: tuple[Step, ...], outcome: str
) -> None:
    upstream.script(*STARTED, *rest)
    with rill.ask("GET", "/stream?q=hi", {"X-Request-Id": outcome}) as asked:
        asked.read_rest()
    line = line_about(rill, outcome)
    assert (line["outcome"], line["cancelled"]) == (outcome, False)


def every(seconds: float, event: bytes) -> tuple[Step, ...]:
    """Return steps that repeat the event for longer than any deadline of these tests."""
    return tuple(step for _ in range(100) for step in (wire.pause(seconds), wire.send(event)))


def test_an_answer_that_exceeds_a_deadline_is_logged_as_cancelled(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_IDLE_TIMEOUT_SECONDS="1", RILL_TOTAL_TIMEOUT_SECONDS="2")
    scripts = {"silence": (), "pings": every(0.1, wire.ping()), "talk": every(0.1, wire.text("and "))}
    with ExitStack() as stack:
        asked = []
        for name, rest in scripts.items():
            upstream.script(*STARTED, *rest, wire.silence())
            asked.append(stack.enter_context(rill.ask("GET", "/stream?q=hi", {"X-Request-Id": name})))
            assert asked[-1].next_chunk() == b"some "
        for each in asked:
            each.read_rest()
    lines = {name: line_about(rill, name) for name in scripts}
    assert {name: line["outcome"] for name, line in lines.items()} == {
        "silence": "idle_timeout",
        "pings": "idle_timeout",
        "talk": "total_timeout",
    }
    assert [line["cancelled"] for line in lines.values()] == [True] * 3


def test_an_answer_whose_client_disconnects_is_logged_as_cancelled(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*STARTED, wire.silence())
    with rill.ask("GET", "/stream?q=hi", {"X-Request-Id": "disconnected"}) as asked:
        assert asked.next_chunk() == b"some "
    line = line_about(rill, "disconnected")
    assert (line["outcome"], line["cancelled"], line["status"], line["bytes"]) == ("client_disconnected", True, 200, 5)


def test_a_disconnect_after_the_last_event_is_a_completed_answer(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*STARTED, REST[0], wire.silence())  # the end of the body, which Rill awaits briefly, never comes
    with rill.ask("GET", "/stream?q=hi", {**SSE, "X-Request-Id": "after-done"}) as asked:
        asked.read_until(b"[DONE]\n\n")
    line = line_about(rill, "after-done")
    assert (line["outcome"], line["cancelled"]) == ("completed", False)


def test_ttft_is_measured_from_the_request(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening()), wire.gate("text"), *STARTED[1:], *REST)
    with rill.ask("GET", "/stream?q=hi", {**SSE, "X-Request-Id": "held"}) as asked:
        asked.read_until(b"\n\n")
        begun = time.monotonic()
        time.sleep(0.2)
        held = time.monotonic() - begun
        upstream.open("text")
        asked.read_rest()
    line = line_about(rill, "held")
    assert line["duration_ms"] >= line["ttft_ms"] >= held * 1000 - 1


def test_an_answer_without_text_has_no_ttft(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.start(), wire.stop("tool_use")), wire.end())
    with rill.ask("GET", "/stream?q=hi", {**SSE, "X-Request-Id": "no-text"}) as asked:
        asked.read_rest()
    line = line_about(rill, "no-text")
    assert (line["ttft_ms"], line["stop_reason"], line["outcome"]) == (None, "tool_use", "completed")


# The whole output


def test_a_server_logs_its_start_its_answers_and_its_stop_and_nothing_else(
    start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill()
    for number in range(3):
        upstream.script(*STARTED, *REST)
        with rill.ask("GET", "/stream?q=canary", {"X-Request-Id": f"answer-{number}"}) as asked:
            asked.read_rest()
        line_about(rill, f"answer-{number}")
    for path in ("/stream", "/nothing?canary", "/stream?q=canary&max_tokens=0", "/readyz", "/metrics", "/"):
        with rill.ask("GET", path, {"Connection": "close"}) as asked:
            asked.read_rest()
    assert rill.stop().exit_code == 0
    written = rill.output().split("\n")[:-1]
    *answers, rejected = lines_of(rill.output())
    assert [line["request_id"] for line in answers] == ["answer-0", "answer-1", "answer-2"]
    assert (rejected["event"], rejected["path"]) == ("rejected", "/*")
    others = [line for line in written if not line.startswith("{")]
    logged = [re.sub(r"^\[.*\] \[INFO\] |\b\d[\d.:]*\b|\(.*\)", "", line).strip() for line in others]
    assert logged == [
        "Starting gunicorn",
        "Listening at: http://",
        "Using worker: rill.server.worker.Worker",
        "Booting worker with pid:",
        "Handling signal: term",
        "Worker exiting",
        "Shutting down: Master",
    ]
    assert "canary" not in rill.output()


# Terminals


def read_line(terminal: int, wanted: bytes) -> str:
    """Return the output of a terminal up to the end of the first line that contains `wanted`."""
    got, deadline = b"", time.monotonic() + 20
    while not (wanted in got and got.endswith(b"\n")):
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], got
        got += os.read(terminal, 65536)
    return got.decode()


@contextmanager
def server_on_terminal(upstream: Upstream) -> Iterator[tuple[int, int]]:
    """Start a server whose stdout is a terminal; yield the terminal and the port."""
    terminal, end = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8", **rill_env(upstream)}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=end, stderr=subprocess.DEVNULL) as gunicorn:
        os.close(end)
        try:
            yield terminal, wait_for_port(gunicorn.pid)
        finally:
            gunicorn.terminate()
    os.close(terminal)


def test_log_lines_on_a_terminal_are_human_readable(upstream: Upstream) -> None:
    upstream.script(*STARTED, *REST)
    with server_on_terminal(upstream) as (terminal, port):
        curl = ["curl", "--silent", "--max-time", "20", f"http://127.0.0.1:{port}/stream?q=canary"]
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"some text"
        written = read_line(terminal, b"answer")
    plain = re.sub(r"\x1b\[[\d;]*m", "", written)
    assert plain != written, "no colours"
    (line,) = [each for each in plain.splitlines() if "answer" in each]
    assert not line.startswith("{")
    assert "outcome=completed" in line
    assert "canary" not in line


def wait_for_port(pid: int) -> int:
    """Return the port that gunicorn's master listens on, once a worker runs."""
    master, deadline = psutil.Process(pid), time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ports = [each.local_port for each in tcp_sockets(pid) if each.listens]
        if ports and master.children():
            return int(ports[0])
        time.sleep(0.02)
    raise AssertionError("gunicorn does not listen")


# Internal errors


class Terminal(StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def logs() -> Iterator[Callable[[StringIO], logging.Logger]]:
    """Return a function that writes the log to a stream, for one test."""
    names = ("rill", *VERBOSE_LIBRARIES)
    before = [(logging.getLogger(name), vars(logging.getLogger(name)).copy()) for name in names]
    threads = logging.logThreads

    def write_to(stream: StringIO) -> logging.Logger:
        write_logs(stream)
        return logging.getLogger("rill.somewhere")

    yield write_to
    logging.logThreads = threads
    for logger, was in before:
        vars(logger).update(was)
        logger.setLevel(was["level"])  # also clears the cache of enabled levels


def raise_errors(message: str) -> None:
    """Raise an error with a cause; the messages of both contain `message`."""
    try:
        raise KeyError(message)
    except KeyError as error:
        error.add_note(message)
        raise ValueError(f"cannot take {message}") from error


@pytest.mark.parametrize("stream", [StringIO, Terminal], ids=["file", "terminal"])
def test_an_internal_error_is_logged_with_its_location_and_without_its_message(
    logs: Callable[[StringIO], logging.Logger], stream: type[StringIO]
) -> None:
    written = stream()
    try:
        raise_errors("canary" + "-prompt")
    except ValueError:
        logs(written).exception("a request failed")
    logged = written.getvalue()
    assert "canary-prompt" not in logged
    assert "a request failed" in logged
    assert "test_logs.py" in logged
    assert "in raise_errors" in logged
    assert "ValueError" in logged
    assert logged.count("\n") == 1 if stream is StringIO else logged.count("\n") > 1


def test_a_line_break_in_a_message_makes_no_second_line(logs: Callable[[StringIO], logging.Logger]) -> None:
    written = StringIO()
    logs(written).warning("a model named %s", 'x"\n{"event": "answer"}')
    assert written.getvalue().count("\n") == 1
    assert json.loads(written.getvalue())["event"] == 'a model named x"\n{"event": "answer"}'


# C0 and C1 controls, DEL, bidirectional controls, line and paragraph separators, half a surrogate pair.
UNSAFE = "\x00\x07\x08\x1b\x7f\x85\x9b\u061c\u200e\u200f\u202a\u202e\u2028\u2029\u2066\u2069\udc80"


@pytest.mark.parametrize("stream", [StringIO, Terminal], ids=["file", "terminal"])
def test_a_field_that_a_client_chooses_cannot_control_a_terminal(
    logs: Callable[[StringIO], logging.Logger], stream: type[StringIO]
) -> None:
    written = stream()
    logs(written).warning("a model named %s", UNSAFE, extra={"model": f"a{UNSAFE}b", "list": [UNSAFE], UNSAFE: "name"})
    logged = re.sub(r"\x1b\[[\d;]*m", "", written.getvalue())  # the colours
    assert [letter for letter in UNSAFE if letter in logged] == []
    assert logged.count("\n") == 1
    if stream is StringIO:
        assert logged.isascii()
        assert json.loads(logged)["model"] == f"a{UNSAFE}b"
    else:
        assert "\\u001b" in logged
        assert "\\u202e" in logged


def test_terminal_escapes_in_a_model_name_never_reach_a_terminal(upstream: Upstream) -> None:
    upstream.always(*STARTED, *REST)
    model = quote(f"]0;owned{UNSAFE[:-1]}")
    with server_on_terminal(upstream) as (terminal, port):
        curl = ["curl", "--silent", "--max-time", "20", f"http://127.0.0.1:{port}/stream?q=canary&model={model}"]
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"some text"
        written = read_line(terminal, b"answer")
    plain = re.sub(r"\x1b\[[\d;]*m", "", written)
    assert "owned" in plain
    assert [letter for letter in UNSAFE if letter in plain] == []


ESCAPES = "\x1b]0;owned\x07\x9b31m\u202e\x7f"
# Every part of a request that gunicorn reads.
INJECTIONS = {
    "method": f"G{ESCAPES} /stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "URL": f"GET /stream?q={ESCAPES} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "encoded URL": f"GET /{quote(ESCAPES)}?q={quote(ESCAPES)} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version": f"GET /stream HTTP/{ESCAPES}\r\nHost: localhost\r\n\r\n",
    "host": f"GET /stream HTTP/1.1\r\nHost: {ESCAPES}\r\n\r\n",
    "header": f"GET /stream HTTP/1.1\r\nHost: localhost\r\nX-{ESCAPES}: x\r\n\r\n",
    "value": f"GET /stream HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {ESCAPES}\r\nReferer: {ESCAPES}\r\n\r\n",
    "length": f"POST /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: {ESCAPES}\r\n\r\n",
    "chunk": f"POST /stream HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{ESCAPES}\r\n",
    "half a head": f"GET /{ESCAPES}",
}


def test_gunicorns_log_contains_no_terminal_escape(start_rill: StartRill) -> None:
    rill = start_rill("--log-level", "debug", "--access-logfile", "-", "--capture-output")
    for request in INJECTIONS.values():
        with Conversation(rill.port, request.encode()) as asked:
            asked.half_close()
            asked.read_rest()
    rill.stop()
    assert [letter for letter in set(ESCAPES) - set("]0;owned31m") if letter in rill.output()] == []


@pytest.mark.parametrize("name", VERBOSE_LIBRARIES)
def test_libraries_that_would_log_prompts_are_silenced(logs: Callable[[StringIO], logging.Logger], name: str) -> None:
    logging.getLogger(name).setLevel(logging.DEBUG)
    logs(StringIO())
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
