"""A disconnect at any moment and in any way cancels the upstream request, so you stop paying."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest
import requests
import upstream as wire
from asking import SSE, ask, wait_until
from conversation import Conversation, request_bytes
from server import Rill
from upstream import Upstream
from witness import logged, name_request

BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one ")))
FLOW = (*BEGUN, *(step for _ in range(2000) for step in (wire.pause(0.005), wire.send(wire.text("more ")))))
PHASES = {"text flows": FLOW, "silence": (*BEGUN, wire.silence()), "no headers": (wire.silence(),)}
WAYS: dict[str, Callable[[Conversation], None]] = {"FIN": Conversation.close, "RST": Conversation.reset}


def reach(phase: str, asked: Conversation, upstream: Upstream) -> None:
    """Wait until the answer is in the phase, and read everything that has arrived."""
    upstream.wait_for_requests(1)
    if phase != "no headers":
        assert asked.read_until(b"one ")
    if phase == "text flows":
        assert asked.read_until(b"more ")


def assert_upstream_closed_once(upstream: Upstream) -> None:
    upstream.wait_for_disconnect()
    upstream.wait_until(lambda: upstream.answers[0].connection.closed_at is not None, "the connection's end")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", ["text", "sse"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_disconnect_closes_the_upstream_connection_and_is_logged(
    rill: Rill, upstream: Upstream, phase: str, dialect: str, way: str
) -> None:
    upstream.script(*PHASES[phase])
    name = name_request()
    asked = ask(rill, headers=SSE if dialect == "sse" else {}, name=name)
    reach(phase, asked, upstream)
    WAYS[way](asked)
    assert_upstream_closed_once(upstream)
    line = logged(rill, name)
    assert (line["outcome"], line["dialect"]) == ("client_disconnected", dialect)
    assert line["status"] == (499 if phase == "no headers" else 200)


@pytest.mark.parametrize("phase", ["text flows", "silence"])
def test_closing_a_librarys_response_closes_the_upstream_connection(rill: Rill, upstream: Upstream, phase: str) -> None:
    upstream.script(*PHASES[phase])
    name = name_request()
    with requests.get(
        f"{rill.url}/stream", {"q": "hello"}, headers={"X-Request-Id": name}, stream=True, timeout=10
    ) as response:
        assert next(response.iter_content(None)).startswith(b"one ")
    assert_upstream_closed_once(upstream)
    assert logged(rill, name)["outcome"] == "client_disconnected"


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("phase", PHASES)
def test_interrupting_curl_closes_the_upstream_connection(rill: Rill, upstream: Upstream, phase: str) -> None:
    upstream.script(*PHASES[phase])
    name = name_request()
    command = ["curl", "-sN", "-H", f"X-Request-Id: {name}", f"{rill.url}/stream?q=hello"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout
        if phase == "no headers":
            upstream.wait_for_requests(1)
        else:
            assert curl.stdout.read(4) == b"one "
        curl.send_signal(signal.SIGINT)
    assert_upstream_closed_once(upstream)
    assert logged(rill, name)["outcome"] == "client_disconnected"


def test_a_half_closed_connection_counts_as_a_disconnect(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*PHASES["silence"])
    name = name_request()
    with ask(rill, name=name) as asked:
        assert asked.read_until(b"one ")
        asked.half_close()
        assert_upstream_closed_once(upstream)
        assert (asked.read_rest(), asked.ended) == (b"", "truncated")
    assert logged(rill, name)["outcome"] == "client_disconnected"


def test_a_disconnect_during_the_pause_before_a_retry_cancels_the_retry(rill: Rill, upstream: Upstream) -> None:
    upstream.always(wire.error(529, "overloaded_error", "Overloaded"))
    name = name_request()
    with ask(rill, name=name):
        upstream.wait_until(lambda: bool(upstream.answers) and upstream.answers[0].outcome == "sent", "the rejection")
    assert logged(rill, name, timeout=0.3)["outcome"] == "client_disconnected"
    time.sleep(1.5)  # longer than the pause would have been
    assert len(upstream.requests) == 1


def test_an_answer_is_completed_if_the_client_closes_after_done(rill: Rill, upstream: Upstream) -> None:
    # The upstream's last event is not its last byte: the code of an EventSource closes in between.
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("all"), wire.stop()), wire.silence())
    name = name_request()
    with ask(rill, headers=SSE, name=name) as asked:
        assert b"[DONE]" in asked.read_until(b"[DONE]")
    line = logged(rill, name)
    assert (line["outcome"], line["stop_reason"]) == ("completed", "end_turn")


def test_a_disconnect_before_the_request_is_read_closes_the_upstream_connection(rill: Rill, upstream: Upstream) -> None:
    upstream.always(wire.silence())
    names = [name_request() for _ in range(20)]
    for name in names:
        ask(rill, name=name).close()
    outcomes = {logged(rill, name)["outcome"] for name in names}
    assert outcomes <= {"client_disconnected", "at_capacity"}
    upstream.wait_until(lambda: all(each.outcome == "disconnected" for each in upstream.answers), "all to be closed")


def cpu_seconds(rill: Rill) -> float:
    (worker,) = rill.workers()
    times = psutil.Process(worker.pid).cpu_times()
    return times.user + times.system


def test_a_pipelined_request_is_not_a_disconnect_and_uses_no_cpu_while_it_waits(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*BEGUN, wire.gate("rest"), wire.send(wire.text("two"), wire.stop()), wire.end())
    upstream.script(*wire.answer("second"))
    with ask(rill) as asked:
        assert asked.read_until(b"one ")
        asked.socket.sendall(request_bytes("GET", "/stream?q=again"))
        before = cpu_seconds(rill)
        time.sleep(1.5)
        assert cpu_seconds(rill) - before < 0.2
        upstream.open("rest")
        assert (asked.read_rest(), asked.ended) == (b"two", "clean")
        asked.ask(b"")  # its bytes were sent before
        assert (asked.read_rest(), asked.ended) == (b"second", "clean")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("waited", [0, 1.2])
def test_a_disconnect_after_pipelined_bytes_is_detected_within_two_seconds(
    rill: Rill, upstream: Upstream, way: str, waited: float
) -> None:
    upstream.script(*PHASES["silence"])
    name = name_request()
    asked = ask(rill, name=name)
    assert asked.read_until(b"one ")
    asked.socket.sendall(b"GET /healthz HTTP/1.1\r\n")
    time.sleep(waited)
    disconnected_at = time.monotonic()
    WAYS[way](asked)
    assert upstream.wait_for_disconnect() - disconnected_at < 2
    assert logged(rill, name)["outcome"] == "client_disconnected"


def test_a_disconnect_does_not_affect_another_client(rill: Rill, upstream: Upstream) -> None:
    upstream.always(*BEGUN, wire.gate("rest"), wire.send(wire.text("two"), wire.stop()), wire.end())
    with ask(rill) as first:
        assert first.read_until(b"one ")
        with ask(rill) as second:
            assert second.read_until(b"one ")
        upstream.wait_until(lambda: upstream.answers[1].outcome == "disconnected", "the second client's disconnect")
        upstream.open("rest")
        assert (first.read_rest(), first.ended) == (b"two", "clean")
    wait_until(lambda: upstream.answers[0].outcome == "sent", lambda: "the first answer did not end")
