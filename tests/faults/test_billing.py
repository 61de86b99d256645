"""One request is billed once: which requests Rill repeats, and what `x-should-retry` says."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
import upstream as wire
from asking import ask
from server import Rill, StartRill
from upstream import Step, Upstream

from rill.events import End, Event
from rill.prompt import Prompt
from rill.settings import Settings
from rill.upstream.client import Upstream as Client

BODY = {"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}
ALICE = {"Authorization": "Bearer of-alice"}
STREAMED = ("text", "sse", "anthropic", "openai", "openai whole")
CLOSES = {"close": wire.close(), "reset": wire.reset()}


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    """Return a server with an API key and short timeouts."""
    env = {"RILL_API_KEYS": "alice=of-alice", "RILL_IDLE_TIMEOUT_SECONDS": "2", "RILL_START_TIMEOUT_SECONDS": "8"}
    return share_rill(**env)


def keep_a_connection(rill: Rill, upstream: Upstream) -> None:
    """Open an idle connection to the upstream, which the next request uses."""
    upstream.script(*wire.answer("warm"))
    with ask(rill, "text", ALICE) as asked:
        assert asked.read_rest() == b"warm"
    upstream.wait_until(lambda: upstream.answers[-1].outcome == "sent", "the end of the first answer")
    upstream.clear()


# Repeated requests


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("way", STREAMED)
def test_a_streamed_request_whose_connection_closes_at_once_is_sent_at_most_three_times(
    rill: Rill, upstream: Upstream, way: str, how: str
) -> None:
    keep_a_connection(rill, upstream)
    upstream.always(CLOSES[how])
    with ask(rill, way, ALICE) as asked:
        assert asked.status == 502
    assert len(upstream.requests) == 3


def test_a_stale_connection_is_invisible_to_the_client(rill: Rill, upstream: Upstream) -> None:
    keep_a_connection(rill, upstream)
    upstream.script(wire.close())
    upstream.script(*wire.answer("here"))
    with ask(rill, "text", ALICE) as asked:
        assert (asked.read_rest(), asked.ended) == (b"here", "clean")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("way", STREAMED)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])
def test_a_request_that_the_upstream_may_have_processed_is_sent_once(
    rill: Rill, upstream: Upstream, way: str, how: str, kept: bool
) -> None:
    if kept:
        keep_a_connection(rill, upstream)
    upstream.always(wire.pause(0.7), CLOSES[how])
    with ask(rill, way, ALICE) as asked:
        assert asked.status == 502
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])
def test_a_non_streamed_request_is_never_repeated(rill: Rill, upstream: Upstream, how: str, kept: bool) -> None:
    if kept:
        keep_a_connection(rill, upstream)
    upstream.always(CLOSES[how])
    with ask(rill, "anthropic whole", ALICE) as asked:
        assert asked.status == 502
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\ncontent-", b"220 smtp.example ESMTP\r\n\r\n"])
def test_a_request_that_got_a_byte_of_a_response_is_sent_once(rill: Rill, upstream: Upstream, begin: bytes) -> None:
    keep_a_connection(rill, upstream)
    upstream.always(wire.raw(begin), wire.close())
    with ask(rill, "text", ALICE) as asked:
        assert asked.status == 502
    assert len(upstream.requests) == 1


# An error as the first event

FIRST_ERRORS = {
    "overloaded_error": (503, 3),
    "rate_limit_error": (429, 3),
    "api_error": (502, 1),
    "authentication_error": (502, 1),
    "invalid_request_error": (400, 1),
}
PAUSES = {"at once": (), "after a ping": (wire.send(wire.ping()),)}


@pytest.mark.parametrize("type", FIRST_ERRORS)
@pytest.mark.parametrize("way", STREAMED)
def test_an_error_as_the_first_event_is_retried_and_reported_like_its_status(
    rill: Rill, upstream: Upstream, way: str, type: str
) -> None:
    upstream.always(wire.head(), wire.send(wire.stream_error(type, "max_tokens: 9 is odd")), wire.end())
    status, requests = FIRST_ERRORS[type]
    with ask(rill, way, ALICE) as asked:
        assert asked.status == status
        body = asked.read_rest()
        assert asked.headers.get("retry-after") == ("1" if status in (429, 503) else None)
    assert (b"max_tokens: 9 is odd" in body) == (status == 400)
    assert len(upstream.requests) == requests


@pytest.mark.parametrize("before", PAUSES)
@pytest.mark.parametrize("way", STREAMED)
def test_a_transient_overload_as_the_first_event_is_invisible_to_the_client(
    rill: Rill, upstream: Upstream, way: str, before: str
) -> None:
    head = wire.head({"request-id": "req_of_the_first"})
    upstream.script(head, *PAUSES[before], wire.send(wire.stream_error()), wire.silence())
    upstream.script(*wire.answer("here"))
    with ask(rill, way, ALICE) as asked:
        assert asked.status == 200
        body = asked.read_rest()
        assert asked.ended == "clean"
        if way == "anthropic":
            assert asked.headers["request-id"] == wire.REQUEST_ID
    assert b"here" in body
    assert b"error" not in body
    upstream.wait_until(
        lambda: [each.outcome for each in upstream.answers] == ["disconnected", "sent"], "the end of both answers"
    )


def test_an_error_after_the_first_event_is_not_retried(rill: Rill, upstream: Upstream) -> None:
    upstream.always(wire.head(), wire.send(wire.start()), wire.send(wire.stream_error()), wire.end())
    with ask(rill, "sse", ALICE) as asked:
        assert asked.status == 200
        assert b"event: error" in asked.read_rest()
    assert len(upstream.requests) == 1


def test_no_overload_is_retried_beyond_the_start_timeout(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill(RILL_START_TIMEOUT_SECONDS="0.3", RILL_API_KEYS="alice=of-alice")
    upstream.always(wire.head(), wire.send(wire.stream_error()), wire.end())
    with ask(rill, "text", ALICE) as asked:
        assert asked.status == 503
    assert len(upstream.requests) == 1


# Complete answers

MESSAGE = {"type": "message", "content": [{"type": "text", "text": "paid"}], "stop_reason": "end_turn", "usage": {}}


def test_a_complete_message_is_delivered_even_if_its_last_chunk_never_arrives(rill: Rill, upstream: Upstream) -> None:
    body = json.dumps(MESSAGE).encode()
    upstream.script(wire.head({"content-type": "application/json"}), wire.send(body), wire.silence())
    with ask(rill, "anthropic whole", ALICE) as asked:
        assert (asked.status, asked.read_rest(), asked.ended) == (200, body, "clean")


@pytest.mark.parametrize("how", CLOSES)
def test_a_complete_message_is_delivered_even_if_its_connection_is_lost_afterwards(
    rill: Rill, upstream: Upstream, how: str
) -> None:
    body = json.dumps(MESSAGE).encode()
    upstream.script(wire.head({"content-type": "application/json"}), wire.send(body), wire.pause(0.2), CLOSES[how])
    with ask(rill, "anthropic whole", ALICE) as asked:
        assert (asked.status, asked.read_rest()) == (200, body)


def test_an_incomplete_message_is_a_timeout(rill: Rill, upstream: Upstream) -> None:
    half = json.dumps(MESSAGE).encode()[:-1]
    upstream.script(wire.head({"content-type": "application/json"}), wire.send(half), wire.silence())
    with ask(rill, "anthropic whole", ALICE) as asked:
        assert asked.status == 504


class Cancellation(Exception):
    """The exception that a timeout or a shutdown raises in the greenlet of an answer."""


def test_a_cancellation_after_the_last_event_is_ignored(upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("paid"), wire.stop()), wire.silence())
    client = Client(Settings(ANTHROPIC_API_KEY="sk-test-key"), upstream.url, 1)
    answer = client.ask(Prompt("claude-sonnet-5-5", 50, BODY["messages"]), 5)  # type: ignore[arg-type]
    got: list[Event] = []

    def read() -> None:
        for events in answer:
            got.extend(events)

    reader = gevent.spawn(read)
    while not any(isinstance(event, End) for event in got):
        gevent.sleep(0.001)
    gevent.sleep(0)
    reader.kill(Cancellation("shutdown"), block=False)
    reader.get()  # raises what read() raised
    answer.close()


# Range requests

RANGED = {
    "GET /stream": ("GET", "/stream?q=hi", b""),
    "GET /stream, events": ("GET", "/chat/stream?message=hi", b""),
    "POST /stream": ("POST", "/stream", b"hi"),
}


@pytest.mark.parametrize("route", RANGED)
@pytest.mark.parametrize("wanted", ["bytes=1-", "bytes=512-", "bytes=5-9", "Bytes = 12-"])
def test_a_range_for_the_rest_of_an_answer_is_a_412_and_sends_nothing_upstream(
    rill: Rill, upstream: Upstream, route: str, wanted: str
) -> None:
    method, path, body = RANGED[route]
    headers = {"Authorization": "Bearer of-alice", "Range": wanted}
    with rill.ask(method, path, headers, body) as asked:
        assert asked.status == 412
        assert "without Range" in asked.read_rest().decode()
    assert upstream.requests == []


@pytest.mark.parametrize("route", RANGED)
@pytest.mark.parametrize("wanted", ["bytes=0-", "bytes=00-", "bytes=-5", "lines=1-", "bytes=", ""])
def test_any_other_range_gets_the_complete_answer(rill: Rill, upstream: Upstream, route: str, wanted: str) -> None:
    upstream.script(*wire.answer("whole"))
    method, path, body = RANGED[route]
    with rill.ask(method, path, {"Authorization": "Bearer of-alice", "Range": wanted}, body) as asked:
        assert asked.status == 200
        assert b"whole" in asked.read_rest()


TRUNCATED = (wire.head(), wire.send(wire.opening(), wire.text("half an answer")), wire.pause(0.1), wire.close())
KEY = "--header=Authorization: Bearer of-alice"


@pytest.mark.skipif(not shutil.which("wget"), reason="needs wget")
def test_wget_never_joins_two_answers(rill: Rill, upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(*TRUNCATED)
    upstream.always(*wire.answer("another answer, which is a longer one"))
    command = ["wget", "-q", "--tries=3", "--waitretry=1", KEY, "-O", "answer", f"{rill.url}/stream?q=hi"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert done.returncode != 0
    assert (tmp_path / "answer").read_bytes() == b"half an answer"
    assert len(upstream.requests) == 1


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_never_joins_two_answers(rill: Rill, upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(*TRUNCATED)
    upstream.always(*wire.answer("another answer, which is a longer one"))
    command = ["curl", "-sfN", "-C", "-", KEY, "-o", "answer", f"{rill.url}/stream?q=hi"]
    command[4] = "-HAuthorization: Bearer of-alice"
    for code in (18, 22):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=False)
        assert done.returncode == code
        assert (tmp_path / "answer").read_bytes() == b"half an answer"
    assert len(upstream.requests) == 1


# x-should-retry

AT_ONCE = {"retry-after": "0"}


ADVICE: dict[str, tuple[Sequence[Step], int, str | None, int]] = {
    "a rejected key": ([wire.error(401, "authentication_error", "no")], 502, "false", 1),
    "not allowed": ([wire.error(403, "permission_error", "no")], 502, "false", 1),
    "no such model": ([wire.error(404, "not_found_error", "model: x")], 404, "false", 1),
    "bad request": ([wire.error(400, "invalid_request_error", "no")], 400, "false", 1),
    "failing": ([wire.error(500, "api_error", "no", AT_ONCE)], 502, "false", 3),
    "overloaded": ([wire.error(529, "overloaded_error", "no", AT_ONCE)], 503, "false", 3),
    "rate limit": ([wire.error(429, "rate_limit_error", "no", {"retry-after": "1"})], 429, "false", 3),
    "overloaded for a while": ([wire.error(529, "overloaded_error", "no", {"retry-after": "9"})], 503, None, 1),
    "rate limit for a while": ([wire.error(429, "rate_limit_error", "no", {"retry-after": "9"})], 429, None, 1),
    "rate limit for an hour": ([wire.error(429, "rate_limit_error", "no", {"retry-after": "3600"})], 429, "false", 1),
    "the upstream says no": (
        [wire.error(429, "rate_limit_error", "no", {"retry-after": "9", "x-should-retry": "false"})], 429, "false", 1
    ),
    "the upstream says yes": (
        [wire.error(400, "invalid_request_error", "no", {"retry-after": "9", "x-should-retry": "true"})],
        400, "true", 1,
    ),
    "a yes after retries": (
        [wire.error(400, "invalid_request_error", "no", {"retry-after": "0", "x-should-retry": "true"})],
        400, "false", 3,
    ),
    "gateway timeout": ([wire.error(504, "api_error", "no", AT_ONCE)], 504, "false", 1),
    "lost late": ([wire.pause(0.7), wire.close()], 502, "false", 1),
    "truncated after its head": ([wire.head(), wire.close()], 502, "false", 1),
}  # fmt: skip


@pytest.mark.parametrize("way", ["anthropic", "openai"])
@pytest.mark.parametrize("case", ADVICE)
def test_x_should_retry_is_false_after_rills_retries_and_if_a_retry_cannot_help(
    rill: Rill, upstream: Upstream, case: str, way: str
) -> None:
    steps, status, advice, requests = ADVICE[case]
    upstream.always(*steps)
    with ask(rill, way, ALICE) as asked:
        assert (asked.status, asked.headers.get("x-should-retry")) == (status, advice)
    assert len(upstream.requests) == requests


def test_x_should_retry_is_false_for_a_wrong_api_key_and_an_unknown_route(rill: Rill) -> None:
    with ask(rill, "anthropic", {"Authorization": "Bearer wrong"}) as asked:
        assert (asked.status, asked.headers["x-should-retry"]) == (401, "false")
    with rill.ask("POST", "/v1/nothing") as asked:
        assert (asked.status, asked.headers["x-should-retry"]) == (404, "false")


def test_rills_own_rate_limit_does_not_forbid_a_retry(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill(RILL_RATE_LIMIT="1/hour", RILL_API_KEYS="alice=of-alice")
    upstream.always(*wire.answer("ok"))
    with ask(rill, "anthropic", ALICE) as asked:
        asked.read_rest()
    with ask(rill, "anthropic", ALICE) as asked:
        assert (asked.status, asked.headers.get("x-should-retry")) == (429, None)
        message: dict[str, Any] = json.loads(asked.read_rest())
        assert re.search(r"Try again in \d+ s\.$", message["error"]["message"])
        assert not re.search(r"later|moment", message["error"]["message"])


def test_a_plain_text_response_has_no_x_should_retry(rill: Rill, upstream: Upstream) -> None:
    upstream.always(wire.error(401, "authentication_error", "no"))
    with ask(rill, "text", ALICE) as asked:
        assert (asked.status, asked.headers.get("x-should-retry")) == (502, None)
