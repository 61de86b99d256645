"""Text is forwarded as it arrives, and every outcome is truthful: seen by real clients, proved by gates."""

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
import requests
import upstream as wire
from asking import ask
from conversation import Conversation, request_bytes
from server import Rill
from test_recorded import events_of, text_of
from upstream import Step, Upstream

pytestmark = pytest.mark.both_paths

ASK = "/stream?q=hi"
SSE = {"Accept": "text/event-stream"}
FORMS = pytest.mark.parametrize("headers", [{}, SSE], ids=["text", "SSE"])
METHODS = pytest.mark.parametrize(
    ("method", "path", "body"), [("GET", ASK, b""), ("POST", "/stream", b"hi")], ids=["GET", "POST"]
)


def script_gated_answer(upstream: Upstream) -> None:
    """Script an answer whose second piece is sent when the test opens the gate."""
    outcome = wire.block_stop() + wire.stop()
    upstream.script(
        *[wire.head(), wire.send(wire.opening()), wire.send(wire.text("first "))],
        *[wire.gate("second"), wire.send(wire.text("second")), wire.send(outcome), wire.end()],
    )


# Immediate forwarding


@METHODS
def test_the_first_text_is_read_before_the_second_is_sent(
    service: Rill, upstream: Upstream, method: str, path: str, body: bytes
) -> None:
    script_gated_answer(upstream)
    with service.ask(method, path, body=body) as asked:
        assert (asked.status, asked.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert asked.next_chunk() == b"first "
        upstream.open("second")
        assert (asked.read_rest(), asked.ended) == (b"second", "clean")
    assert len(upstream.requests) == 1


@METHODS
def test_the_first_event_is_read_before_the_second_is_sent(
    service: Rill, upstream: Upstream, method: str, path: str, body: bytes
) -> None:
    script_gated_answer(upstream)
    with service.ask(method, path, SSE, body) as asked:
        assert (asked.status, asked.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert b"data: first \n\n" in asked.read_until(b"first")
        upstream.open("second")
        assert b"data: second\n\n" in asked.read_rest()
        assert asked.ended == "clean"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("more", [[], ["--data", "q=hi"], ["--header", "Accept: text/event-stream"]])
def test_curl_shows_the_first_text_before_the_second_is_sent(
    service: Rill, upstream: Upstream, more: list[str]
) -> None:
    script_gated_answer(upstream)
    command = [
        "curl",
        "--silent",
        "-N",
        "--max-time",
        "20",
        *more,
        f"{service.url}/stream{'' if 'q=hi' in more else '?q=hi'}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        seen = b""
        while b"first " not in seen and (piece := os.read(curl.stdout.fileno(), 65536)):
            seen += piece
        assert b"first " in seen
        upstream.open("second")
        assert b"second" in curl.stdout.read()
    assert curl.returncode == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_yields_the_first_text_before_the_second_is_sent(
    service: Rill, upstream: Upstream, method: str
) -> None:
    script_gated_answer(upstream)
    with requests.request(method, f"{service.url}{ASK}", stream=True, timeout=20, data={"q": "hi"}) as answer:
        pieces = answer.iter_content(chunk_size=None, decode_unicode=True)
        assert next(pieces) == "first "
        upstream.open("second")
        assert list(pieces) == ["second"]


def test_server_sent_events_begin_with_the_upstreams_first_event(service: Rill, upstream: Upstream) -> None:
    upstream.script(
        *[wire.head(), wire.send(wire.start()), wire.gate("begun")],
        *[wire.send(wire.block_start(), wire.text("late"), wire.stop()), wire.end()],
    )
    with ask(service, headers=SSE) as asked:
        assert asked.status == 200
        upstream.open("begun")
        assert text_of(events_of(asked.read_rest().decode())) == "late"


def test_the_headers_of_plain_text_come_with_its_first_text(service: Rill, upstream: Upstream) -> None:
    upstream.script(
        *[wire.head(), wire.send(wire.opening()), wire.gate("begun")],
        *[wire.send(wire.text("first")), wire.gate("seen"), wire.send(wire.stop()), wire.end()],
    )
    with ask(service) as asked:
        upstream.wait_at_gate("begun")
        upstream.open("begun")
        assert (asked.status, asked.next_chunk()) == (200, b"first")
        upstream.open("seen")
        assert (asked.read_rest(), asked.ended) == (b"", "clean")


@FORMS
def test_all_text_of_one_upstream_read_is_sent_in_one_chunk(
    service: Rill, upstream: Upstream, headers: dict[str, str]
) -> None:
    pieces = [wire.text(piece) for piece in ("a", "b", "c", "d")]
    upstream.script(
        *[wire.head(), wire.send(wire.opening(), wire.text("0")), wire.gate("more"), wire.send(*pieces)],
        *[wire.gate("end"), wire.send(wire.stop()), wire.end()],
    )
    with ask(service, headers=headers) as asked:
        asked.read_until(b"data: 0\n\n" if headers else b"0")
        upstream.open("more")
        assert asked.next_chunk() == (b"id: 2\ndata: abcd\n\n" if headers else b"abcd")
        upstream.open("end")
        asked.read_rest()
        assert asked.ended == "clean"


@FORMS
def test_an_answer_in_one_upstream_read_is_sent_in_one_chunk(
    service: Rill, upstream: Upstream, headers: dict[str, str]
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("a"), wire.text("b"), wire.stop()), wire.end())
    with ask(service, headers=headers) as asked:
        first = asked.next_chunk()
        assert (asked.read_rest(), asked.ended) == (b"", "clean")
    assert (text_of(events_of(first.decode())) if headers else first.decode()) == "ab"


TEXT = "naïve 溪水 🌊 👩‍👩‍👧 end"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11])
def test_utf8_split_anywhere_arrives_intact(service: Rill, upstream: Upstream, size: int) -> None:
    whole = wire.opening() + b"".join(wire.text(letter) for letter in TEXT) + wire.block_stop() + wire.stop()
    upstream.script(wire.head(), wire.dribble(whole, size), wire.end())
    with ask(service) as asked:
        chunks = list(iter(asked.next_chunk, b""))
        assert asked.ended == "clean"
    assert b"".join(chunks).decode() == TEXT
    for chunk in chunks:
        chunk.decode()  # each chunk is valid UTF-8, for clients that decode chunks separately


@FORMS
def test_a_surrogate_pair_split_across_two_deltas_arrives_intact(
    service: Rill, upstream: Upstream, headers: dict[str, str]
) -> None:
    high, low = wire.text("high \ud83c"), wire.text("\udf0a low \ud83c")
    upstream.script(
        *[wire.head(), wire.send(wire.opening(), high), wire.gate("low"), wire.send(low)],
        *[wire.send(wire.stop()), wire.end()],
    )
    with ask(service, headers=headers) as asked:
        first = asked.read_until(b"high ")
        upstream.open("low")
        body = (first + asked.read_rest()).decode()
    assert (text_of(events_of(body)) if headers else body) == "high 🌊 low \ufffd"


# Truncated answers


def closed() -> list[Step]:
    return [wire.close()]


def ended_without_message_stop() -> list[Step]:
    return [wire.end()]


def was_reset() -> list[Step]:
    return [wire.reset()]


def sent_an_error() -> list[Step]:
    return [wire.send(wire.stream_error()), wire.end()]


def sent_invalid_json() -> list[Step]:
    return [wire.send(b"data: {invalid\n\n"), wire.end()]


def stopped_at_message_delta() -> list[Step]:
    return [wire.send(wire.block_stop(), wire.event("message_delta", delta={"stop_reason": "end_turn"})), wire.end()]


FAULTS = pytest.mark.parametrize(
    "fault", [closed, ended_without_message_stop, was_reset, sent_an_error, sent_invalid_json, stopped_at_message_delta]
)


def script_failure_in_mid_answer(upstream: Upstream, fault: Any) -> None:
    """Script an answer that fails after its first text, when the test opens the gate."""
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("Hello")), wire.gate("seen"), *fault())


@FAULTS
def test_an_upstream_failure_in_mid_answer_aborts_plain_text(service: Rill, upstream: Upstream, fault: Any) -> None:
    script_failure_in_mid_answer(upstream, fault)
    with ask(service) as asked:
        assert asked.next_chunk() == b"Hello"
        upstream.open("seen")
        assert (asked.read_rest(), asked.ended) == (b"", "truncated")
    assert len(upstream.requests) == 1


@FAULTS
def test_an_upstream_failure_in_mid_answer_resets_http_1_0(service: Rill, upstream: Upstream, fault: Any) -> None:
    script_failure_in_mid_answer(upstream, fault)
    with Conversation(service.port, request_bytes("GET", ASK, version="HTTP/1.0")) as asked:
        assert (asked.status, asked.next_chunk()) == (200, b"Hello")
        upstream.open("seen")
        assert (asked.read_rest(), asked.ended) == (b"", "reset")


@FAULTS
def test_an_upstream_failure_in_mid_answer_is_an_error_event_without_done(
    service: Rill, upstream: Upstream, fault: Any
) -> None:
    script_failure_in_mid_answer(upstream, fault)
    with ask(service, headers=SSE) as asked:
        body = asked.read_until(b"Hello")
        upstream.open("seen")
        events = events_of((body + asked.read_rest()).decode())
        assert asked.ended == "clean"
    assert [(event.name, event.data) for event in events[:-1]] == [("message", "Hello")]
    assert events[-1].name == "error"
    problem = json.loads(events[-1].data)
    assert problem["status"] >= 500
    assert problem["detail"]


def test_text_in_the_same_read_as_a_failure_is_delivered(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("Hello"), wire.stream_error()), wire.end())
    with ask(service) as asked:
        assert (asked.status, asked.read_rest(), asked.ended) == (200, b"Hello", "truncated")


@pytest.mark.parametrize(("options", "exit_code"), [([], 18), (["--http1.0"], 56)], ids=["HTTP/1.1", "HTTP/1.0"])
@FAULTS
def test_curl_exits_with_an_error_for_a_truncated_answer(
    service: Rill, upstream: Upstream, fault: Any, options: list[str], exit_code: int
) -> None:
    script_failure_in_mid_answer(upstream, fault)
    command = ["curl", "--silent", "-N", "--max-time", "20", *options, f"{service.url}{ASK}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        assert os.read(curl.stdout.fileno(), 65536) == b"Hello"
        upstream.open("seen")
        assert curl.stdout.read() == b""
    assert curl.returncode == exit_code


@FAULTS
def test_requests_raises_for_a_truncated_answer(service: Rill, upstream: Upstream, fault: Any) -> None:
    script_failure_in_mid_answer(upstream, fault)
    with requests.get(f"{service.url}{ASK}", stream=True, timeout=20) as answer:
        pieces = answer.iter_content(chunk_size=None)
        assert next(pieces) == b"Hello"
        upstream.open("seen")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            next(pieces)


FETCH = """
const response = await fetch(process.argv[1]);
const reader = response.body.getReader();
const first = await reader.read();
process.stdout.write(new TextDecoder().decode(first.value));
try { await reader.read(); console.log(" whole"); } catch (error) { console.log(" " + error.name); }
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_fetch_rejects_for_a_truncated_answer(service: Rill, upstream: Upstream) -> None:
    script_failure_in_mid_answer(upstream, closed)
    command = ["node", "--input-type=module", "--eval", FETCH, f"{service.url}{ASK}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        assert os.read(node.stdout.fileno(), 65536) == b"Hello"
        upstream.open("seen")
        assert node.stdout.read() == b" TypeError\n"


def test_a_connection_is_kept_alive_after_a_completed_answer(service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("one"))
    with ask(service) as asked:
        for _ in range(3):
            assert (asked.read_rest(), asked.ended) == (b"one", "clean")
            asked.ask(request_bytes("GET", ASK))
        asked.read_rest()


# Disconnects


def endless_text() -> list[Step]:
    """Return the steps of an answer that sends text until the client disconnects."""
    ticks = [step for _ in range(2000) for step in (wire.send(wire.text("tick ")), wire.pause(0.005))]
    return [wire.head(), wire.send(wire.opening()), *ticks, wire.silence()]


@FORMS
@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_disconnect_during_text_closes_the_upstream_connection(
    service: Rill, upstream: Upstream, how: str, headers: dict[str, str]
) -> None:
    upstream.script(*endless_text())
    with ask(service, headers=headers) as asked:
        asked.read_until(b"tick")
        getattr(asked, how)()
        upstream.wait_for_disconnect()
    upstream.wait_until(lambda: upstream.open_connections == 0, "the connection to close")
    assert len(upstream.requests) == 1


def test_an_interrupted_curl_closes_the_upstream_connection(service: Rill, upstream: Upstream) -> None:
    upstream.script(*endless_text())
    with subprocess.Popen(["curl", "--silent", "-N", f"{service.url}{ASK}"], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        os.read(curl.stdout.fileno(), 1)
        curl.terminate()
        upstream.wait_for_disconnect()


@FORMS
def test_a_disconnect_in_a_pause_closes_the_upstream_connection(
    service: Rill, upstream: Upstream, headers: dict[str, str]
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("one")), wire.silence())
    with ask(service, headers=headers) as asked:
        asked.read_until(b"one")
    upstream.wait_for_disconnect()


@FORMS
@pytest.mark.parametrize("steps", [[wire.silence()], [wire.head(), wire.silence()]], ids=["before", "after"])
def test_a_disconnect_before_the_first_byte_closes_the_upstream_connection(
    service: Rill, upstream: Upstream, steps: list[Step], headers: dict[str, str]
) -> None:
    upstream.script(*steps)
    with ask(service, headers=headers):
        upstream.wait_for_requests(1)
    upstream.wait_for_disconnect()
    assert len(upstream.requests) == 1


# Server-sent events


@pytest.mark.parametrize("path", [ASK, "/chat/stream?message=hi"])
def test_events_have_ids_and_end_with_done_and_the_end_mark(service: Rill, upstream: Upstream, path: str) -> None:
    upstream.script(*wire.answer("one", "two", stop_reason="max_tokens"))
    with service.ask("GET", path, SSE if path == ASK else None) as asked:
        assert asked.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = events_of(asked.read_rest().decode())
    *texts, done, mark = events
    assert "".join(event.data for event in texts) == "onetwo"
    assert {event.name for event in texts} == {"message"}
    assert (done.name, mark.name, mark.data) == ("done", "message", "[DONE]")
    statistics = json.loads(done.data)
    assert set(statistics) == {"stop_reason", "usage", "elapsed_seconds"}
    assert statistics["stop_reason"] == "max_tokens"
    assert (statistics["usage"]["input_tokens"], statistics["usage"]["output_tokens"]) == (12, 2)
    assert statistics["elapsed_seconds"] >= 0
    assert all(event.id for event in events)
    assert len({event.id for event in events}) == len(events)


def test_a_newline_in_the_text_becomes_a_further_data_line(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("a\n\nb", "\r", "\nc\r\n", "\u2028d\x85\n", "event: done\n\n", ": e"))
    with ask(service, headers=SSE) as asked:
        events = events_of(asked.read_rest().decode())
    assert text_of(events) == "a\n\nb\nc\n\u2028d\x85\nevent: done\n\n: e"
    assert [event.name for event in events if event.name != "message"] == ["done"]


def test_a_refusal_with_no_text_is_reported_in_done(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.start(), wire.stop("refusal", 0)), wire.end())
    with ask(service, headers=SSE) as asked:
        events = events_of(asked.read_rest().decode())
    assert json.loads(events[0].data)["stop_reason"] == "refusal"
    assert [event.name for event in events] == ["done", "message"]


@pytest.mark.parametrize("path", [ASK, "/chat/stream?message=hi"])
@pytest.mark.parametrize("identity", ["0", "7", ""])
def test_a_reconnecting_eventsource_gets_204_and_sends_nothing_upstream(
    service: Rill, upstream: Upstream, path: str, identity: str
) -> None:
    with service.ask("GET", path, {**SSE, "Last-Event-ID": identity}) as asked:
        assert (asked.status, asked.read_rest()) == (204, b"")
        assert asked.headers["cache-control"] == "no-store, no-transform"
    assert upstream.requests == []


def test_an_event_stream_begins_with_an_id_to_reconnect_with(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.start()), wire.silence())
    with ask(service, headers=SSE) as asked:
        assert asked.read_until(b"\n\n") == b"id: 0\n\n"
