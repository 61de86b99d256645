"""An upstream that rejects, fails or sends garbage: a status before the first byte, and never a clean end after it."""

import json
import shutil
import subprocess
import time
from typing import NamedTuple

import pytest
import requests
import upstream as wire
from asking import SSE, ask
from server import Rill
from upstream import Step, Upstream
from witness import logged, name_request

BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one ")), wire.gate("read"))
BROKEN_JSON = b'event: content_block_delta\ndata: {"type": "content_block_delta", \n\n'
RETRIED = 3


class Rejection(NamedTuple):
    """An upstream error, the status and the outcome that follow, and the number of requests."""

    step: Step
    status: int
    outcome: str
    requests: int = 1
    retry_after: str | None = None


REJECTIONS = {
    "400": Rejection(wire.error(400, "invalid_request_error", "max_tokens: 9 is odd"), 400, "bad_request"),
    "401": Rejection(wire.error(401, "authentication_error", "invalid x-api-key"), 502, "upstream_rejected"),
    "403": Rejection(wire.error(403, "permission_error", "not your model"), 502, "upstream_rejected"),
    "404": Rejection(wire.error(404, "not_found_error", "model: the default"), 502, "upstream_rejected"),
    "400 of our account": Rejection(
        wire.error(400, "invalid_request_error", "Your credit balance is too low."), 502, "upstream_account_blocked"
    ),
    "413": Rejection(wire.error(413, "request_too_large", "too large"), 413, "content_too_large"),
    "429": Rejection(wire.error(429, "rate_limit_error", "slow"), 429, "upstream_rate_limited", RETRIED, "1"),
    "500": Rejection(wire.error(500, "api_error", "oh"), 502, "upstream_error", RETRIED),
    "502": Rejection(wire.status(502), 502, "upstream_error", RETRIED),
    "503": Rejection(wire.status(503), 503, "upstream_overloaded", RETRIED, "1"),
    "529": Rejection(wire.error(529, "overloaded_error", "Overloaded"), 503, "upstream_overloaded", RETRIED, "1"),
    "400 in HTML": Rejection(wire.status(400, {"Content-Type": "text/html"}, b"<h1>no"), 400, "bad_request"),
    "502 in HTML": Rejection(
        wire.status(502, {"Content-Type": "text/html"}, b"<html>Bad Gateway"), 502, "upstream_error", RETRIED
    ),
    "200 in HTML": Rejection(
        wire.status(200, {"Content-Type": "text/html"}, b"<html><p>Log in"), 502, "upstream_truncated"
    ),
    "200 in JSON": Rejection(
        wire.status(200, {"Content-Type": "application/json"}, b'{"ok": true}'), 502, "upstream_truncated"
    ),
    "429 for an hour": Rejection(
        wire.error(429, "rate_limit_error", "slow", {"Retry-After": "3600"}), 429, "upstream_rate_limited", 1, "3600"
    ),
    "529 for an hour": Rejection(
        wire.error(529, "overloaded_error", "later", {"Retry-After": "3600"}), 503, "upstream_overloaded", 1, "3600"
    ),
    "not HTTP": Rejection(wire.raw(b"220 smtp.example ESMTP\r\n\r\n"), 502, "upstream_error"),
}


@pytest.mark.parametrize("how", REJECTIONS)
def test_an_upstream_error_is_a_status_with_a_short_message(rill: Rill, upstream: Upstream, how: str) -> None:
    expected = REJECTIONS[how]
    upstream.always(expected.step)
    name = name_request()
    response = requests.get(f"{rill.url}/stream", {"q": "hello"}, headers={"X-Request-Id": name}, timeout=10)
    assert response.status_code == expected.status
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.headers.get("Retry-After") == expected.retry_after
    assert "<" not in response.text
    assert "key" not in response.text or expected.outcome == "upstream_rejected"
    assert ("max_tokens: 9 is odd" in response.text) == (how == "400")
    line = logged(rill, name)
    assert (line["status"], line["outcome"], line["bytes"]) == (expected.status, expected.outcome, 0)
    assert len(upstream.requests) == expected.requests


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(rill: Rill, upstream: Upstream, code: int) -> None:
    with Upstream() as elsewhere:
        elsewhere.always(*wire.answer("stolen"))
        upstream.script(wire.status(code, {"Location": f"{elsewhere.url}/v1/messages"}))
        name = name_request()
        with ask(rill, name=name) as asked:
            assert asked.status == 502
        assert elsewhere.accepted == 0
    assert logged(rill, name)["outcome"] == "upstream_error"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_upstream_that_closes_every_connection_is_a_502(rill: Rill, upstream: Upstream, how: str) -> None:
    upstream.always({"close": wire.close(), "reset": wire.reset()}[how])
    name = name_request()
    with ask(rill, name=name) as asked:
        assert asked.status == 502
    assert logged(rill, name)["outcome"] == "upstream_error"
    assert len(upstream.requests) == RETRIED


def test_a_failure_that_a_retry_resolves_is_invisible_to_the_client(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.error(529, "overloaded_error", "Overloaded"))
    upstream.script(*wire.answer("here"))
    with ask(rill) as asked:
        assert (asked.status, asked.read_rest(), asked.ended) == (200, b"here", "clean")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("headers", [{}, SSE], ids=["text", "sse"])
def test_an_error_event_before_the_answer_is_a_status(rill: Rill, upstream: Upstream, headers: dict[str, str]) -> None:
    upstream.always(wire.head(), wire.send(wire.stream_error()), wire.end())
    name = name_request()
    with ask(rill, headers=headers, name=name) as asked:
        assert (asked.status, asked.headers["retry-after"]) == (503, "1")
    assert logged(rill, name)["outcome"] == "upstream_overloaded"


def test_an_error_event_before_the_first_text_is_a_status(rill: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening()), wire.send(wire.stream_error("api_error", "oh")), wire.end())
    with ask(rill) as asked:
        assert asked.status == 502


class Failure(NamedTuple):
    """A failure after the first text, the outcome in the log, and the problem in an event stream."""

    steps: tuple[Step, ...]
    outcome: str
    problem: str


FAILURES = {
    "reset": Failure((wire.reset(),), "upstream_error", "upstream_error"),
    "closed inside the body": Failure((wire.close(),), "upstream_truncated", "upstream_truncated"),
    "ended without message_stop": Failure((wire.end(),), "upstream_truncated", "upstream_truncated"),
    "ended inside an event": Failure(
        (wire.send(wire.text("lost")[:-5]), wire.end()), "upstream_truncated", "upstream_truncated"
    ),
    "error event": Failure((wire.send(wire.stream_error()), wire.end()), "upstream_error", "upstream_overloaded"),
    "unknown error event": Failure(
        (wire.send(wire.stream_error("new_error", "secret")), wire.silence()), "upstream_error", "upstream_error"
    ),
    "broken JSON": Failure((wire.send(BROKEN_JSON), wire.silence()), "upstream_error", "upstream_error"),
    "no object": Failure((wire.send(b"data: [1, 2]\n\n"), wire.silence()), "upstream_error", "upstream_error"),
    "not a chunk": Failure((wire.raw(b"zz\r\n"), wire.silence()), "upstream_truncated", "upstream_truncated"),
}


@pytest.mark.both_paths
@pytest.mark.parametrize("how", FAILURES)
def test_a_truncated_plain_text_is_aborted_after_the_received_text(rill: Rill, upstream: Upstream, how: str) -> None:
    upstream.script(*BEGUN, *FAILURES[how].steps)
    name = name_request()
    with ask(rill, name=name) as asked:
        assert asked.next_chunk() == b"one "
        upstream.open("read")
        asked.read_rest()
        assert asked.ended == "truncated"
    assert (logged(rill, name)["outcome"], len(upstream.requests)) == (FAILURES[how].outcome, 1)
    upstream.wait_until(
        lambda: upstream.answers[0].outcome in ("disconnected", "truncated", "sent"), "the connection to close"
    )


@pytest.mark.both_paths
@pytest.mark.parametrize("how", FAILURES)
def test_a_truncated_event_stream_ends_with_an_error_event_and_no_end_mark(
    rill: Rill, upstream: Upstream, how: str
) -> None:
    upstream.script(*BEGUN, *FAILURES[how].steps)
    name = name_request()
    with ask(rill, headers=SSE, name=name) as asked:
        assert b"one" in asked.read_until(b"one")
        upstream.open("read")
        rest, ended = asked.read_rest(), asked.ended
    assert ended == "clean"
    assert b"[DONE]" not in rest
    assert b"secret" not in rest
    last = rest.rstrip().split(b"\n\n")[-1]
    assert b"event: error\n" in last
    assert json.loads(last.split(b"data: ")[1])["code"] == FAILURES[how].problem
    assert logged(rill, name)["outcome"] == FAILURES[how].outcome


@pytest.mark.both_paths
@pytest.mark.parametrize("how", FAILURES)
def test_a_truncated_answer_over_http_1_0_resets_the_connection(rill: Rill, upstream: Upstream, how: str) -> None:
    upstream.script(*BEGUN, *FAILURES[how].steps)
    name = name_request()
    with ask(rill, name=name, version="HTTP/1.0") as asked:
        assert asked.next_chunk() == b"one "
        upstream.open("read")
        asked.read_rest()
        assert asked.ended == "reset"
    assert logged(rill, name)["outcome"] == FAILURES[how].outcome


@pytest.mark.parametrize("how", ["reset", "ended without message_stop", "error event"])
def test_a_library_raises_for_a_truncated_answer(rill: Rill, upstream: Upstream, how: str) -> None:
    upstream.script(*BEGUN, *FAILURES[how].steps)
    with requests.get(f"{rill.url}/stream", {"q": "hello"}, stream=True, timeout=10) as response:
        pieces = response.iter_content(None)
        assert next(pieces) == b"one "
        upstream.open("read")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            next(pieces)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize(("option", "exit_code"), [("--http1.1", 18), ("--http1.0", 56)])
def test_curl_fails_for_a_truncated_answer(rill: Rill, upstream: Upstream, option: str, exit_code: int) -> None:
    upstream.script(*BEGUN[:-1], wire.pause(0.1), wire.end())
    command = ["curl", "-sN", option, f"{rill.url}/stream?q=hello"]
    done = subprocess.run(command, capture_output=True, timeout=10, check=False)
    assert (done.stdout, done.returncode) == (b"one ", exit_code)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_client_that_reads_late_gets_all_text_before_the_truncation(
    rill: Rill, upstream: Upstream, version: str
) -> None:
    pieces = [wire.send(wire.text("x" * 1000)) for _ in range(60)]
    upstream.script(wire.head(), wire.send(wire.opening()), *pieces, wire.close())
    name = name_request()
    with ask(rill, name=name, version=version) as asked:
        assert logged(rill, name)["outcome"] == "upstream_truncated"
        time.sleep(0.2)
        assert asked.read_rest() == b"x" * 60_000
        assert asked.ended == ("truncated" if version == "HTTP/1.1" else "reset")


def test_an_http_1_0_client_that_disconnects_before_its_reset_causes_no_error(rill: Rill, upstream: Upstream) -> None:
    # More than fits into the client's window, so that the reset waits for the unsent bytes.
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("x" * 400_000)), wire.gate("read"), wire.close())
    name = name_request()
    with ask(rill, name=name, version="HTTP/1.0") as asked:
        assert asked.status == 200
        upstream.wait_at_gate("read")
        got = 0
        while got < 250_000:
            got += len(asked.next_chunk())
        upstream.open("read")
        upstream.wait_until(lambda: upstream.answers[0].outcome == "truncated", "the truncation")
        time.sleep(0.1)
    assert logged(rill, name)["outcome"] in ("upstream_truncated", "client_disconnected")


# Unusual answers that are not failures

UNUSUAL_TEXTS = {
    "line ends": "a\rb\nc\r\nd\0e\u2028f\u2029g\u0085h\x0bi\x0cj",
    "a lone surrogate": "a\ufffdb",
    "an emoji": "a😀b",
    "broken UTF-8": "a\ufffdb",
}
UNUSUAL_EVENTS = {
    "line ends": (wire.text(UNUSUAL_TEXTS["line ends"]),),
    "a lone surrogate": (wire.text("a\ud83db"),),
    "an emoji": (wire.text("a\ud83d"), wire.text("\ude00b")),
    "broken UTF-8": (wire.text("aXb").replace(b"X", b"\xff"),),
}


@pytest.mark.both_paths
@pytest.mark.parametrize("what", UNUSUAL_TEXTS)
def test_unusual_text_is_forwarded_correctly(rill: Rill, upstream: Upstream, what: str) -> None:
    sends = [wire.send(each) for each in UNUSUAL_EVENTS[what]]
    upstream.script(wire.head(), wire.send(wire.opening()), *sends, wire.send(wire.stop()), wire.end())
    with ask(rill) as asked:
        assert (asked.read_rest().decode(), asked.ended) == (UNUSUAL_TEXTS[what], "clean")


@pytest.mark.both_paths
@pytest.mark.parametrize("what", UNUSUAL_TEXTS)
def test_unusual_text_in_events_loses_only_the_kind_of_its_line_ends(rill: Rill, upstream: Upstream, what: str) -> None:
    sends = [wire.send(each) for each in UNUSUAL_EVENTS[what]]
    upstream.script(wire.head(), wire.send(wire.opening()), *sends, wire.send(wire.stop()), wire.end())
    with ask(rill, headers=SSE) as asked:
        events = asked.read_rest().decode().split("\n\n")
    texts = [
        "\n".join(line.removeprefix("data: ") for line in event.split("\n") if line.startswith("data: "))
        for event in events
        if "event: " not in event and "[DONE]" not in event and "data: " in event
    ]
    assert "".join(texts) == UNUSUAL_TEXTS[what].replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.both_paths
def test_a_wrong_block_index_loses_no_text(rill: Rill, upstream: Upstream) -> None:
    upstream.script(
        wire.head(), wire.send(wire.opening(), wire.text("a", 7), wire.text("b", -1), wire.stop()), wire.end()
    )
    with ask(rill) as asked:
        assert (asked.read_rest(), asked.ended) == (b"ab", "clean")


@pytest.mark.both_paths
@pytest.mark.parametrize("megabytes", [10, 20])
def test_a_line_of_ten_megabytes_is_forwarded_and_one_of_twenty_is_aborted(
    rill: Rill, upstream: Upstream, megabytes: int
) -> None:
    size = megabytes * 1_000_000
    upstream.script(*BEGUN, wire.send(wire.text("x" * size)), wire.send(wire.stop()), wire.end())
    name = name_request()
    with ask(rill, name=name) as asked:
        assert asked.next_chunk() == b"one "
        upstream.open("read")
        got = len(asked.read_rest())
        assert (got, asked.ended) == ((size, "clean") if megabytes == 10 else (0, "truncated"))
    assert logged(rill, name)["outcome"] == ("completed" if megabytes == 10 else "upstream_error")
