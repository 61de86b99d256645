"""A shutdown rejects new clients, lets open answers complete, and reports the others as `shutdown`."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import upstream as wire
from asking import SSE, ask, wait_until
from conversation import Conversation, request_bytes
from server import Rill
from upstream import Answer, Upstream
from witness import log_lines, probed, refuses_connections, wait_until_all_serve

GRACE = 3.0
EXIT = GRACE + 5.0
BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one ")))
FLOW = (
    *BEGUN,
    *(step for _ in range(3000) for step in (wire.pause(0.02), wire.send(wire.text("more ")))),
    wire.close(),
)
SCRIPTS = {
    "short": (*BEGUN, wire.gate("rest"), wire.send(wire.text("two"), wire.stop()), wire.end()),
    "long": FLOW,
    "silent": (*BEGUN, wire.silence()),
    "not-started": (wire.silence(),),
    "big": (wire.head(), wire.send(wire.opening()), *[wire.send(wire.text("x" * 8000))] * 4000, wire.close()),
}
# The name of a stream -> its script, its headers, its HTTP version.
STREAMS = {
    "short-text": ("short", {}, "HTTP/1.1"),
    "short-sse": ("short", SSE, "HTTP/1.1"),
    "long-text": ("long", {}, "HTTP/1.1"),
    "long-sse": ("long", SSE, "HTTP/1.1"),
    "long-1.0": ("long", {}, "HTTP/1.0"),
    "silent-text": ("silent", {}, "HTTP/1.1"),
    "silent-sse": ("silent", SSE, "HTTP/1.1"),
    "silent-1.0": ("silent", {}, "HTTP/1.0"),
    "not-started-text": ("not-started", {}, "HTTP/1.1"),
    "never-read": ("big", {}, "HTTP/1.1"),
}
ENDED = {"long-text": "truncated", "silent-text": "truncated", "long-1.0": "reset", "silent-1.0": "reset"}


def play_named_script(answer: Answer) -> None:
    for step in SCRIPTS[answer.request.json["messages"][0]["content"]]:
        step(answer)


def begin(rill: Rill, upstream: Upstream, stack: ExitStack) -> dict[str, Conversation]:
    """Open all streams, and wait until each is in the state in its name."""
    upstream.always(play_named_script)
    opened = {}
    for name, (q, headers, version) in STREAMS.items():
        opened[name] = stack.enter_context(ask(rill, headers=headers, name=name, q=q, version=version))
        if name not in ("not-started-text", "never-read"):
            assert opened[name].read_until(b"one")
    upstream.wait_for_requests(len(STREAMS))
    return opened


def check_the_ends(opened: dict[str, Conversation]) -> None:
    for name, ended in ENDED.items():
        opened[name].read_rest()
        assert (name, opened[name].ended) == (name, ended)
    for name in ("long-sse", "silent-sse"):
        rest = opened[name].read_rest()
        assert (name, opened[name].ended) == (name, "clean")
        assert json.loads(rest.split(b"event: error\ndata: ")[1])["code"] == "shutdown"
        assert b"[DONE]" not in rest
    assert opened["not-started-text"].status == 503


def check_the_log(rill: Rill) -> None:
    outcomes = {line["request_id"]: line["outcome"] for line in log_lines(rill.output())}
    assert {name: outcomes.get(name) for name in STREAMS} == {
        name: "completed" if q == "short" else "shutdown" for name, (q, _, _) in STREAMS.items()
    }
    assert "SIGKILL" not in rill.output()
    assert "Traceback" not in rill.output()


SIGNALS = {"SIGTERM": (signal.SIGTERM, False), "SIGINT": (signal.SIGINT, False)}
GROUP_SIGNALS = {"SIGTERM to all": (signal.SIGTERM, True), "SIGINT to all": (signal.SIGINT, True)}


@pytest.mark.parametrize("how", [*SIGNALS, *GROUP_SIGNALS])
def test_a_shutdown_completes_short_answers_and_reports_the_others_as_shutdown(upstream: Upstream, how: str) -> None:
    number, everyone = {**SIGNALS, **GROUP_SIGNALS}[how]
    env = {"RILL_SHUTDOWN_GRACE_SECONDS": str(GRACE), "RILL_MAX_STREAMS": "50", "WEB_CONCURRENCY": "2"}
    with probed(upstream.url, **env) as rill, ExitStack() as stack:
        wait_until_all_serve(rill, 2)
        idle = stack.enter_context(Conversation(rill.port, request_bytes("GET", "/healthz")))
        assert (idle.status, idle.read_rest()) == (200, b"alive\n")
        opened = begin(rill, upstream, stack)
        begun = time.monotonic()
        rill.signal(number, everyone)
        assert idle.socket.recv(1) == b""
        assert time.monotonic() - begun < 1
        wait_until(lambda: refuses_connections(rill), rill.output, timeout=2)
        upstream.open("rest")
        assert (opened["short-text"].read_rest(), opened["short-text"].ended) == (b"two", "clean")
        assert b"[DONE]" in opened["short-sse"].read_rest()
        check_the_ends(opened)
        assert time.monotonic() - begun >= GRACE
        assert rill.wait() == 0
        assert time.monotonic() - begun < EXIT
        check_the_log(rill)
        upstream.wait_until(
            lambda: all(each.outcome in ("disconnected", "sent") for each in upstream.answers), "the end of all answers"
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shutdown_without_open_answers_takes_less_than_a_second(
    upstream: Upstream, start: Callable[..., Rill], workers: int
) -> None:
    measured = []
    for _ in range(5):  # Other load on the machine may delay some of the measurements.
        rill = start(WEB_CONCURRENCY=str(workers))
        wait_until_all_serve(rill, workers)
        with Conversation(rill.port, request_bytes("GET", "/healthz")) as idle:
            assert idle.read_rest() == b"alive\n"
            stopped = rill.stop()
        assert stopped.exit_code == 0
        measured.append(stopped.seconds)
        if stopped.seconds < 1:
            return
    raise AssertionError(f"stopped after {measured} s")


def test_a_second_signal_changes_nothing(upstream: Upstream, start: Callable[..., Rill]) -> None:
    rill = start(RILL_SHUTDOWN_GRACE_SECONDS=str(GRACE))
    upstream.script(*SCRIPTS["short"])
    with ask(rill, name="twice") as asked:
        assert asked.read_until(b"one ")
        rill.signal(signal.SIGTERM)
        time.sleep(0.5)
        rill.signal(signal.SIGTERM, everyone=True)
        time.sleep(0.5)
        upstream.open("rest")
        assert (asked.read_rest(), asked.ended) == (b"two", "clean")
    assert rill.wait() == 0
    assert [line["outcome"] for line in log_lines(rill.output()) if line["request_id"] == "twice"] == ["completed"]


@pytest.mark.parametrize("delay", [0.3, 0.9])
def test_a_shutdown_while_a_worker_boots_is_fast(upstream: Upstream, start: Callable[..., Rill], delay: float) -> None:
    rill = start()
    (victim,) = rill.wait_for_workers(1)
    victim.kill()
    wait_until(lambda: [each.pid for each in rill.workers()] not in ([], [victim.pid]), rill.output)
    time.sleep(delay)  # while it imports the application
    begun = time.monotonic()
    rill.signal(signal.SIGTERM)
    assert rill.wait() == 0
    assert time.monotonic() - begun < 6
    # Only the victim's SIGKILL is logged.
    assert rill.output().count("SIGKILL") == 1
    assert "Traceback" not in rill.output()
