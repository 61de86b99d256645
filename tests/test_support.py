"""The fake upstream, the server runner and the raw client work as the other tests expect."""

import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import upstream as wire
from asking import wait_until
from conversation import Conversation, raw_request, request_bytes
from server import ROOT, Rill, StartFailed
from upstream import Upstream

MESSAGES = request_bytes("POST", "/v1/messages", {"Content-Type": "application/json"}, b'{"model":"m"}')

WSGI = """
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode() + b" " + os.environ.get("COLOUR", "none").encode()]
"""


def request_from(upstream: Upstream, request: bytes = MESSAGES) -> Conversation:
    return Conversation(upstream.port, request)


def events_of(data: bytes) -> Iterator[dict[str, Any]]:
    """Parse an event stream: lines end at CR LF, LF or CR, and an event at an empty line."""
    for block in re.split(rb"(?:\r\n\r\n|\n\n|\r\r)", data):
        fields = dict(line.split(b": ", 1) for line in re.split(rb"\r\n|\n|\r", block) if line)
        if fields:
            parsed = json.loads(fields[b"data"])
            assert parsed["type"] == fields[b"event"].decode()
            yield parsed


# The upstream


def test_a_request_is_recorded_completely(upstream: Upstream) -> None:
    upstream.script(*wire.answer("Hello"))
    body = json.dumps({"model": "m", "prompt": "溪 🌊"}).encode()
    with request_from(upstream, request_bytes("POST", "/v1/messages?beta=true", {"X-Api-Key": "k"}, body)) as asked:
        assert asked.status == 200
    (request,) = upstream.wait_for_requests(1)
    assert (request.method, request.path, request.body) == ("POST", "/v1/messages?beta=true", body)
    assert request.headers["x-api-key"] == "k"
    assert request.json["prompt"] == "溪 🌊"


def test_a_chunked_request_body_is_joined(upstream: Upstream) -> None:
    upstream.script(wire.status(200))
    data = request_bytes("POST", "/", {"Transfer-Encoding": "chunked"}) + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    with request_from(upstream, data) as asked:
        assert asked.status == 200
    assert upstream.requests[0].body == b"abcde"


def test_an_answer_has_one_chunk_per_step_and_ends_cleanly(upstream: Upstream) -> None:
    upstream.script(*wire.answer("Hello", " world"))
    with request_from(upstream) as asked:
        assert asked.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert asked.next_chunk() == wire.start() + wire.block_start() + wire.ping()
        assert asked.next_chunk() == wire.text("Hello")
        assert asked.next_chunk() == wire.text(" world")
        assert [each["type"] for each in events_of(asked.read_rest())][-1] == "message_stop"
        assert asked.ended == "clean"
    upstream.wait_until(lambda: upstream.answers[0].outcome == "sent", "the end of the script")


def test_a_gate_holds_the_second_chunk_until_it_is_opened(upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(b"one"), wire.gate("second"), wire.send(b"two"), wire.end())
    with request_from(upstream) as asked:
        assert asked.next_chunk() == b"one"
        upstream.wait_at_gate("second")
        asked.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            asked.next_chunk()
        asked.socket.settimeout(10)
        upstream.open("second")
        assert asked.next_chunk() == b"two"
        assert (asked.read_rest(), asked.ended) == (b"", "clean")


def test_one_gate_holds_many_answers_and_releases_all(upstream: Upstream) -> None:
    upstream.always(wire.gate("start"), *wire.answer("go"))
    asked = [request_from(upstream) for _ in range(30)]
    upstream.wait_at_gate("start", n=30)
    upstream.wait_until(lambda: upstream.open_connections == 30, "30 open connections")
    upstream.open("start")
    assert all(wire.text("go") in each.read_rest() for each in asked)
    for each in asked:
        each.close()


def test_a_gate_that_is_never_opened_is_a_fault_and_closes_the_connection() -> None:
    with Upstream() as own:
        own.script(wire.head(), wire.gate("never", seconds=0.05), wire.end())
        with request_from(own) as asked:
            assert (asked.read_rest(), asked.ended) == (b"", "truncated")
        own.wait_until(lambda: own.open_connections == 0, "the connection to close")
        assert "gate 'never' was not opened" in own.faults[0]


@pytest.mark.parametrize("location", ["gate", "silence", "full socket"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_disconnect_is_detected_while_an_answer_waits(upstream: Upstream, location: str, how: str) -> None:
    steps = {
        "gate": wire.gate("never"),
        "silence": wire.silence(),
        "full socket": wire.send(b"x" * 30_000_000),
    }
    upstream.script(wire.head(), wire.send(b"one"), steps[location], wire.end())
    with request_from(upstream) as asked:
        assert asked.next_chunk() == b"one"
        getattr(asked, how)()
    left_at = upstream.wait_for_disconnect()
    connection = upstream.answers[0].connection
    upstream.wait_until(lambda: bool(connection.closed_at), "the connection to close")
    assert left_at <= (connection.closed_at or 0)


def test_a_disconnect_before_the_head_is_detected(upstream: Upstream) -> None:
    upstream.script(wire.gate("head"), wire.head(), wire.end())
    with request_from(upstream):
        upstream.wait_at_gate("head")
    upstream.wait_for_disconnect()


def test_a_request_sent_just_before_a_disconnect_is_recorded(upstream: Upstream) -> None:
    upstream.script(wire.silence())
    with request_from(upstream):
        pass
    assert upstream.wait_for_requests(1)
    upstream.wait_for_disconnect()


def test_pipelined_bytes_are_not_a_disconnect_and_wait_their_turn(upstream: Upstream) -> None:
    upstream.script(wire.gate("first"), wire.status(200, body=b"one"))
    upstream.script(wire.status(200, body=b"two"))
    with request_from(upstream) as asked:
        upstream.wait_at_gate("first")
        asked.socket.sendall(MESSAGES)
        upstream.open("first")
        assert asked.read_rest() == b"one"
        upstream.wait_for_requests(2)
    assert upstream.answers[0].outcome == "sent"


def test_a_connection_is_kept_for_the_next_request(upstream: Upstream) -> None:
    upstream.always(*wire.answer("Hello"))
    before = upstream.accepted
    kept = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    for _ in range(3):
        kept.request("POST", "/v1/messages", b"{}")
        assert wire.text("Hello") in kept.getresponse().read()
    assert upstream.accepted == before + 1
    upstream.wait_until(lambda: upstream.open_connections == 1, "only the kept connection to be open")
    kept.close()


@pytest.mark.parametrize(
    ("step", "ended"), [(wire.close(), "truncated"), (wire.reset(), "reset"), (wire.end(), "clean")]
)
def test_each_way_to_end_a_response_is_distinguished(upstream: Upstream, step: wire.Step, ended: str) -> None:
    upstream.script(wire.head(), wire.send(b"one"), wire.gate("read"), step)
    with request_from(upstream) as asked:
        assert asked.next_chunk() == b"one"
        upstream.open("read")
        assert (asked.read_rest(), asked.ended) == (b"", ended)


def test_dribbled_bytes_are_chunks_of_their_size(upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.dribble("溪".encode()), wire.dribble(b"abc", size=2), wire.end())
    with request_from(upstream) as asked:
        assert [asked.next_chunk() for _ in range(5)] == [b"\xe6", b"\xba", b"\xaa", b"ab", b"c"]


def test_an_error_has_the_body_of_the_messages_api(upstream: Upstream) -> None:
    upstream.script(wire.error(529, "overloaded_error", "Overloaded", {"Retry-After": "3"}))
    with request_from(upstream) as asked:
        assert (asked.status, asked.headers["retry-after"]) == (529, "3")
        body = json.loads(asked.read_rest())
    assert body["type"] == "error"
    assert body["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    assert body["request_id"] == asked.headers["request-id"]


def test_a_request_without_a_script_is_a_fault() -> None:
    with Upstream() as own, request_from(own) as asked:
        assert asked.status == 400
        assert own.faults == ["no script for POST /v1/messages"]


def test_clear_ends_open_answers_and_forgets_them(upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.silence())
    with request_from(upstream) as asked:
        assert asked.status == 200
        upstream.clear()
        assert (upstream.requests, upstream.answers) == ([], [])
        assert (asked.read_rest(), asked.ended) == (b"", "truncated")


def test_the_upstream_answers_over_tls_and_an_untrusted_certificate_is_not_a_fault(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=str(certificate))
    with Upstream(tls=tls) as own:
        own.always(*wire.answer("Hello"))
        untrusting = http.client.HTTPSConnection(
            "127.0.0.1", own.port, timeout=10, context=ssl.create_default_context()
        )
        with pytest.raises(ssl.SSLCertVerificationError):
            untrusting.request("POST", "/v1/messages", b"{}")
        untrusting.close()
        trusting = http.client.HTTPSConnection("127.0.0.1", own.port, timeout=10, context=trust)
        for _ in range(2):
            trusting.request("POST", "/v1/messages", b"{}")
            assert wire.text("Hello") in trusting.getresponse().read()
        trusting.close()
        assert len(own.requests) == 2
    assert own.faults == []


# The events


def test_a_lone_surrogate_is_written_as_its_json_escape() -> None:
    assert b'"text":"\\ud83d"' in wire.text("\ud83d")
    assert "😀".encode() in wire.text("😀")


@pytest.mark.parametrize("name", sorted(wire.expected()))
def test_a_recorded_answer_matches_its_expectation(name: str) -> None:
    events = list(events_of(wire.recorded(name)))
    deltas = [each["delta"] for each in events if each["type"] == "content_block_delta"]
    text = "".join(each["text"] for each in deltas if each["type"] == "text_delta")
    reasons = [each["delta"]["stop_reason"] for each in events if each["type"] == "message_delta"]
    assert {
        "text": text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"),
        "stop_reason": reasons[0] if reasons else None,
        "outcome": {"message_stop": "completed", "error": "upstream_error"}[events[-1]["type"]],
    } == wire.expected()[name]


def test_every_recorded_answer_has_its_expectation() -> None:
    assert {each.stem for each in wire.RECORDED.glob("*.sse")} == set(wire.expected())


# The server and the client


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a small WSGI application, for tests that do not need the service."""
    (tmp_path / "wsgi.py").write_text(WSGI)
    # gunicorn's own workers ignore a SIGTERM that comes before they have booted; it ends them after this timeout.
    (tmp_path / "gunicorn.conf.py").write_text("control_socket_disable = True\ngraceful_timeout = 3")
    return tmp_path


@pytest.mark.parametrize("bind", [True, False])
def test_the_server_starts_answers_and_stops(root: Path, bind: bool) -> None:
    with Rill({"COLOUR": "blue"}, ("--workers", "2"), root=root, bind=bind) as rill:
        with rill.ask("GET", "/stream") as asked:
            assert (asked.status, asked.read_rest(), asked.ended) == (200, b"/stream blue", "clean")
        assert len(rill.wait_for_workers(2)) == 2
        stopped = rill.stop()
    assert stopped.exit_code == 0
    assert 0 < stopped.seconds < 30


def test_no_process_of_a_killed_server_survives(root: Path) -> None:
    with Rill({}, root=root) as rill:
        (worker,) = rill.workers()
        rill.signal(signal.SIGKILL, everyone=True)
        assert rill.wait() == -signal.SIGKILL
    assert not worker.is_running() or worker.status() == "zombie"


def test_a_server_that_does_not_start_reports_why(root: Path) -> None:
    (root / "wsgi.py").write_text("raise RuntimeError('a name is missing')")
    with pytest.raises(StartFailed, match="a name is missing") as failed, Rill({}, root=root):
        pass
    assert failed.value.exit_code == 3  # gunicorn's exit code for a worker that cannot boot


def test_another_server_on_the_port_is_not_mistaken_for_it(root: Path, upstream: Upstream) -> None:
    class Unlucky(Rill):
        def choose_port(self) -> int:
            return super().choose_port() if self.port else upstream.port

    upstream.always(wire.status(200))
    with Unlucky({}, root=root) as rill:
        assert rill.port != upstream.port
        with rill.ask("GET", "/mine") as asked:
            assert asked.read_rest().startswith(b"/mine")
    assert upstream.requests == []


def test_an_answer_without_framing_ends_at_the_close() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(4096)
                accepted.sendall(b"HTTP/1.0 200 OK\r\n\r\nall of it")

        thread = threading.Thread(target=serve)
        thread.start()
        with Conversation(listener.getsockname()[1], request_bytes("GET", "/", version="HTTP/1.0")) as asked:
            assert (asked.read_rest(), asked.ended) == (b"all of it", "clean")
        thread.join()


def test_a_connection_that_ends_before_the_head_has_no_status(upstream: Upstream) -> None:
    upstream.script(wire.close())
    with request_from(upstream) as asked:
        assert (asked.status, asked.ended) == (None, "truncated")


def test_a_raw_request_reads_nothing(upstream: Upstream) -> None:
    upstream.script(wire.raw(b"anything"), wire.close())
    with raw_request(upstream.port, MESSAGES) as connected:
        assert connected.recv(100) == b"anything"


KILLED = """
import os, signal, sys, time
sys.path[:0] = sys.argv[1:]
from server import Rill
servers = [Rill({"RILL_OFFLINE": "1"}).__enter__() for _ in range(2)]
os.kill(servers[0].pid, signal.SIGKILL)
time.sleep(1)  # The report of its end is never read.
print(servers[1].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_server_ends_when_the_tests_are_killed() -> None:
    command = [sys.executable, "-c", KILLED, str(ROOT), str(ROOT / "tests")]
    pid = int(subprocess.run(command, capture_output=True, check=False, timeout=100).stdout)
    wait_until(lambda: not psutil.pid_exists(pid), "the server still runs")
