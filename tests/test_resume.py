"""Resuming in one worker: an answer that asked for it outlives its connection, and is continued byte by byte."""

import json
import os
import signal
import socket
from contextlib import ExitStack
from urllib.parse import urlencode

import pytest
import upstream as wire
from asking import SSE, wait_until
from conversation import Conversation, request_bytes
from server import Rill, StartFailed, StartRill
from upstream import Upstream

PIECES = ("Grüße", ", 世", "界 ", "😀!")
TEXT = "".join(PIECES).encode()
PREFIXES = ["".join(PIECES)[:n] for n in range(1, len("".join(PIECES)) + 1)]


@pytest.fixture
def rill(share_rill: StartRill, upstream: Upstream) -> Rill:
    return share_rill(RILL_RESUME_SECONDS="30", RILL_RATE_LIMIT="100000/minute", RILL_MAX_STREAMS_PER_CLIENT="900")


def gated(gate: str, *texts: str) -> list[wire.Step]:
    """Return the steps of an answer that is held at a gate behind its first text."""
    first, *others = [wire.send(wire.text(text)) for text in texts if text]
    end = wire.send(wire.block_stop() + wire.stop()), wire.end()
    return [wire.head(), wire.send(wire.opening()), first, wire.gate(gate), *others, *end]


def ask(rill: Rill, q: str = "", headers: dict[str, str] | None = None, **fields: str) -> Conversation:
    """Ask for an answer that can be resumed; no other test sends the same request by default."""
    query = urlencode({"q": q or os.environ["PYTEST_CURRENT_TEST"], "resume": "20", **fields})
    return rill.ask("GET", f"/stream?{query}", headers)


def from_byte(position: int) -> dict[str, str]:
    return {"Range": f"bytes={position}-"}


def id_of(asked: Conversation) -> str:
    return asked.headers["content-location"].removeprefix("/stream/")


def line_of(rill: Rill, request_id: str) -> dict[str, object]:
    """Return the log line of an answer, once it is written."""

    def lines() -> list[str]:
        return [line for line in rill.output().splitlines() if f'"request_id": "{request_id}"' in line]

    wait_until(lines, "the log line")
    line: dict[str, object] = json.loads(lines()[0])
    return line


def wait_until_complete(rill: Rill, id: str) -> None:
    """Wait until an answer has a length; a reader that keeps up has been sent its end in the same moment."""

    def is_complete() -> bool:
        with rill.ask("HEAD", f"/stream/{id}") as asked:
            return "content-length" in asked.headers

    wait_until(is_complete, "the end of the answer")


def test_an_answer_that_does_not_ask_for_it_cannot_be_resumed(rill: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer(*PIECES))
    for resume in ("0", None):
        query = urlencode({"q": "hi", **({"resume": resume} if resume else {})})
        with rill.ask("GET", f"/stream?{query}") as asked:
            assert asked.read_rest() == TEXT
            assert not {"content-location", "accept-ranges"} & set(asked.headers)
        with rill.ask("GET", f"/stream?{query}", from_byte(3)) as asked:
            assert asked.status == 412


def test_every_byte_of_an_answer_can_be_the_last_before_a_disconnect(rill: Rill, upstream: Upstream) -> None:
    for position in range(len(TEXT) + 1):
        gate = f"gate {position}"
        before = next(text for text in PREFIXES if len(text.encode()) >= max(position, 1))
        after = TEXT.decode().removeprefix(before)
        upstream.script(*gated(gate, before, after))
        with ask(rill, gate) as first:
            got = first.read_until(before.encode())[:position]
        upstream.open(gate)
        with ask(rill, gate, from_byte(position) if position else None) as second:
            rest = second.read_rest()
            assert second.ended == "clean"
            assert second.status in ((200,) if not position else (206,) if rest else (204, 206))
        assert got + rest == TEXT
    assert len(upstream.requests) == len(TEXT) + 1


def test_a_reader_follows_the_live_answer_and_hears_each_chunk_at_once(rill: Rill, upstream: Upstream) -> None:
    gates = [step for n, piece in enumerate(PIECES) for step in (wire.send(wire.text(piece)), wire.gate(str(n)))]
    upstream.script(
        wire.head(), wire.send(wire.opening()), *gates, wire.send(wire.block_stop() + wire.stop()), wire.end()
    )
    with ask(rill) as first:
        assert first.next_chunk() == PIECES[0].encode()
        with rill.ask("GET", f"/stream/{id_of(first)}") as second:
            assert second.next_chunk() == PIECES[0].encode()
            for n, piece in enumerate(PIECES[1:]):
                upstream.open(str(n))
                assert first.next_chunk() == piece.encode()
                assert second.next_chunk() == piece.encode()
            upstream.open("3")
            assert (first.read_rest(), second.read_rest()) == (b"", b"")
            assert (first.ended, second.ended) == ("clean", "clean")
    assert len(upstream.requests) == 1


@pytest.mark.both_paths
def test_what_a_single_reader_has_received_is_recorded(rill: Rill, upstream: Upstream) -> None:
    gates = [step for n, piece in enumerate(PIECES) for step in (wire.send(wire.text(piece)), wire.gate(str(n)))]
    upstream.script(
        wire.head(), wire.send(wire.opening()), *gates, wire.send(wire.block_stop() + wire.stop()), wire.end()
    )
    with ask(rill) as first:
        for n, piece in enumerate(PIECES[:-1]):
            assert first.next_chunk() == piece.encode()
            upstream.open(str(n))
        path = f"/stream/{id_of(first)}"
        with rill.ask("GET", path, from_byte(1)) as second:
            assert first.next_chunk() == PIECES[-1].encode()
            upstream.open(str(len(PIECES) - 1))
            assert (second.read_rest(), second.ended) == (TEXT[1:], "clean")
            assert (first.read_rest(), first.ended) == (b"", "clean")
    assert len(upstream.requests) == 1


def test_a_reader_slower_or_faster_than_the_model_gets_every_byte(rill: Rill, upstream: Upstream) -> None:
    long = "0123456789" * 40_000  # More than the kernel buffers for a reader that waits.
    upstream.script(*gated("long", long, "end"))
    with ask(rill) as slow:
        assert slow.status == 200
        upstream.wait_at_gate("long")
        with rill.ask("GET", f"/stream/{id_of(slow)}", from_byte(399_990)) as fast:
            assert fast.read_until(b"9") == b"0123456789"
            upstream.open("long")
            assert (fast.read_rest(), fast.ended) == (b"end", "clean")
        assert (slow.read_rest(), slow.ended) == (long.encode() + b"end", "clean")
    assert len(upstream.requests) == 1


def test_a_complete_answer_has_a_length_and_any_range(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(*PIECES))
    with ask(rill) as first:
        assert first.headers["accept-ranges"] == "bytes"
        assert first.read_rest() == TEXT
    path, total = f"/stream/{id_of(first)}", len(TEXT)
    wanted = {
        "bytes=3-": (206, f"bytes 3-{total - 1}/{total}", TEXT[3:]),
        "bytes=0-4": (206, f"bytes 0-4/{total}", TEXT[:5]),
        "bytes = 4 - 9999": (206, f"bytes 4-{total - 1}/{total}", TEXT[4:]),
        f"bytes=7-{2**53 - 1}": (206, f"bytes 7-{total - 1}/{total}", TEXT[7:]),
        "bytes=0-": (200, None, TEXT),
        "bytes=-5": (200, None, TEXT),
        "lines=1-2": (200, None, TEXT),
        f"bytes={total}-": (204, None, b""),
    }
    for sent, (status, content_range, body) in wanted.items():
        with rill.ask("GET", path, {"Range": sent, "If-Range": '"any"'}) as asked:
            got = asked.status, asked.headers.get("content-range"), asked.read_rest(), asked.ended
            assert got == (status, content_range, body, "clean"), sent
    for sent in f"bytes={total + 1}-", "bytes=5-2", "bytes=3-5,7-8", f"bytes={'9' * 5000}-":
        with rill.ask("GET", path, {"Range": sent}) as asked:
            assert asked.status == 412, sent
    with rill.ask("HEAD", path) as head:
        assert (head.status, head.headers["content-length"]) == (200, str(total))
        assert head.headers["accept-ranges"] == "bytes"
    assert len(upstream.requests) == 1


def test_a_range_of_an_open_answer_has_the_form_of_rfc_8673(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("open", "abcdef", "ghi"))
    with ask(rill) as first:
        assert first.read_until(b"f") == b"abcdef"
        with rill.ask("GET", f"/stream/{id_of(first)}", from_byte(4)) as asked:
            assert asked.headers["content-range"] == f"bytes 4-{2**53 - 1}/*"
            assert asked.next_chunk() == b"ef"
            with rill.ask("GET", f"/stream/{id_of(first)}", {"Range": "bytes=2-7"}) as bounded:
                assert bounded.headers["content-range"] == "bytes 2-7/*"
                upstream.open("open")
                assert (bounded.read_rest(), bounded.ended) == (b"cdefgh", "clean")
            assert asked.read_rest() == b"ghi"


def test_a_position_behind_the_end_of_an_open_answer_never_ends_cleanly(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("open", "abc", "def"))
    with ask(rill) as first:
        assert first.read_until(b"c") == b"abc"
        with rill.ask("GET", f"/stream/{id_of(first)}", from_byte(7)) as asked:
            assert asked.status == 206
            upstream.open("open")
            assert (asked.read_rest(), asked.ended) == (b"", "truncated")


def test_an_answer_expires(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    upstream.script(*wire.answer("ok"))
    with ask(rill, "text", resume="1") as text, ask(rill, "sse", SSE, resume="1") as sse:
        assert text.read_rest() == b"ok"
        event = sse.read_rest().split(b"\n")[0].decode().removeprefix("id: ")

    def has_expired(answer: Conversation) -> bool:
        with rill.ask("HEAD", f"/stream/{id_of(answer)}") as asked:
            return asked.status == 412

    wait_until(lambda: has_expired(text) and has_expired(sse), "expiry")
    for path in f"/stream/{id_of(text)}", "/stream?q=text&resume=1":
        with rill.ask("GET", path, from_byte(1)) as asked:
            assert asked.status == 412
    for path in f"/stream/{id_of(sse)}", "/stream?q=sse&resume=1":
        with rill.ask("GET", path, {**SSE, "Last-Event-ID": event}) as asked:
            assert asked.status == 204
    assert len(upstream.requests) == 2


def test_only_the_same_client_may_read_or_stop_an_answer(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_RESUME_SECONDS="30", RILL_API_KEYS="alice=wonder-land,bob=builder-bob")
    alice, bob = {"x-api-key": "wonder-land"}, {"x-api-key": "builder-bob"}
    upstream.script(*gated("private", "abc", "def"))
    with ask(rill, headers=alice) as first:
        assert first.read_until(b"c") == b"abc"
        path = f"/stream/{id_of(first)}"
        for method in "GET", "HEAD", "DELETE":
            for headers, status in (bob, 404), ({}, 401):
                with rill.ask(method, path, {**headers, **from_byte(1)}) as asked:
                    assert asked.status == status
                    assert asked.headers.keys().isdisjoint({"content-location", "content-range"})
        with ask(rill, headers={**bob, **from_byte(1)}) as same_request:
            assert same_request.status == 412
        upstream.open("private")
        assert (first.read_rest(), first.ended) == (b"def", "clean")
        with rill.ask("GET", path, {**alice, **from_byte(4)}) as asked:
            assert asked.read_rest() == b"ef"
    with rill.ask("GET", "/metrics", alice) as metrics:
        assert id_of(first) not in rill.output() + metrics.read_rest().decode()


def test_an_answer_holds_its_slot_without_a_reader(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_RESUME_SECONDS="30", RILL_MAX_STREAMS="1")
    upstream.script(*gated("slot", "abc", "def"))
    upstream.always(*wire.answer("ok"))
    with ask(rill, "first") as first:
        assert first.read_until(b"c") == b"abc"
        id = id_of(first)

    def statuses() -> tuple[int | None, int | None]:
        with rill.ask("GET", "/stream?q=not+recorded") as plain, ask(rill, "second") as recorded:
            return plain.status, recorded.status

    assert statuses() == (503, 503)
    with rill.ask("DELETE", f"/stream/{id}") as stopped:
        assert stopped.status == 204
    wait_until(lambda: 200 in statuses(), "a free slot")


@pytest.mark.parametrize("dialect", ["text", "sse"])
def test_delete_stops_the_upstream_and_truncates_every_reader(rill: Rill, upstream: Upstream, dialect: str) -> None:
    headers = {**(SSE if dialect == "sse" else {}), "X-Request-Id": f"delete-{dialect}"}
    upstream.script(*gated("never", "abc", "def"))
    with ask(rill, headers=headers) as first:
        first.read_until(b"abc")
        with rill.ask("GET", f"/stream/{id_of(first)}") as second:
            second.read_until(b"abc")
            with rill.ask("DELETE", f"/stream/{id_of(first)}") as stopped:
                assert (stopped.status, stopped.read_rest()) == (204, b"")
            upstream.wait_for_disconnect()
            rest = first.read_rest()
            assert rest.strip() == second.read_rest().strip()
            assert first.ended == second.ended == ("truncated" if dialect == "text" else "clean")
            assert (b"client_stopped" in rest) == (dialect == "sse")
    line = line_of(rill, f"delete-{dialect}")
    assert (line["outcome"], line["cancelled"], line["resumptions"]) == ("client_stopped", True, 0)
    with rill.ask("DELETE", f"/stream/{'x' * 22}") as unknown:
        assert unknown.status == 404


def test_an_answer_that_nobody_returns_to_is_cancelled_after_its_grace_period(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("never", "abc", "def"))
    with ask(rill, headers={"X-Request-Id": "nobody"}, resume="1") as first:
        assert first.read_until(b"c") == b"abc"
    upstream.wait_for_disconnect()
    line = line_of(rill, "nobody")
    assert (line["outcome"], line["bytes"], line["resumptions"]) == ("client_disconnected", 3, 0)
    with rill.ask("GET", f"/stream/{id_of(first)}", from_byte(1)) as late:
        assert (late.read_rest(), late.ended) == (b"bc", "truncated")


def test_a_resumed_answer_is_completed_and_counted(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("later", "abc", "def"))
    with ask(rill, headers={"X-Request-Id": "counted"}) as first:
        assert first.read_until(b"c") == b"abc"
        path = f"/stream/{id_of(first)}"
    for _ in range(2):
        with rill.ask("GET", path, from_byte(1)) as again:
            assert again.next_chunk() == b"bc"
    with rill.ask("GET", path, from_byte(3)) as last:
        assert last.status == 206
        upstream.open("later")
        assert last.read_rest() == b"def"
    line = line_of(rill, "counted")
    assert (line["outcome"], line["resumptions"], line["replayed_bytes"]) == ("completed", 3, 4)
    assert line["bytes"] == 6


def test_a_truncated_answer_is_truncated_for_every_reader(rill: Rill, upstream: Upstream) -> None:
    cut = [wire.head(), wire.send(wire.opening()), wire.send(wire.text("abc")), wire.gate("truncated"), wire.reset()]
    upstream.script(*cut)
    with ask(rill) as first, rill.ask("GET", f"/stream/{id_of(first)}", from_byte(2)) as second:
        assert (first.next_chunk(), second.next_chunk()) == (b"abc", b"c")
        upstream.open("truncated")
        assert (first.next_chunk(), second.next_chunk()) == (b"", b"")
        assert (first.ended, second.ended) == ("truncated", "truncated")
        for position, rest in (0, b"abc"), (2, b"c"), (3, b""):
            with rill.ask("GET", f"/stream/{id_of(first)}", from_byte(position)) as late:
                assert (late.read_rest(), late.ended) == (rest, "truncated")


def test_http_1_0_readers_see_a_truncated_answer_by_a_reset(rill: Rill, upstream: Upstream) -> None:
    upstream.script(
        wire.head(), wire.send(wire.opening()), wire.send(wire.text("abc")), wire.gate("truncated"), wire.reset()
    )
    with ask(rill) as first:
        request = request_bytes("GET", f"/stream/{id_of(first)}", None, b"", "HTTP/1.0")
        with Conversation(rill.port, request) as old:
            assert old.next_chunk() == b"abc"
            upstream.open("truncated")
            assert (old.read_rest(), old.ended) == (b"", "reset")


# Server-sent events


def test_an_event_stream_continues_behind_any_event(rill: Rill, upstream: Upstream) -> None:
    texts = ("one\ntwo", "[DONE]", "data: id: 3\n\n", "four")
    upstream.script(*wire.answer(*texts))
    with ask(rill, headers=SSE) as first:
        whole = first.read_rest()
    events = [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]
    for index, event in enumerate(events):
        (line,) = [line for line in event.split(b"\n") if line.startswith(b"id: ")]
        sent = line.removeprefix(b"id: ").decode()
        assert sent == f"{id_of(first)}:{index}"
        for path in f"/stream/{id_of(first)}", "/chat/stream?message=hi&resume=5":
            with rill.ask("GET", path, {"Last-Event-ID": sent}) as again:
                is_last = index == len(events) - 1
                assert again.status == (204 if is_last else 200)
                assert again.read_rest() == b"".join(events[index + 1 :])
    with rill.ask("GET", f"/stream/{id_of(first)}", {"Last-Event-ID": f"{id_of(first)}:999"}) as unknown:
        assert unknown.status == 412
    with rill.ask("GET", "/stream?q=hi", {**SSE, "Last-Event-ID": "7"}) as foreign:
        assert foreign.status == 204
    assert len(upstream.requests) == 1


def test_an_open_event_stream_is_followed_from_an_event(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("events", "abc", "def"))
    with ask(rill, headers=SSE) as first:
        first.read_until(b"abc\n\n")
        id = id_of(first)
    with rill.ask("GET", "/stream?q=hi&resume=20", {**SSE, "Last-Event-ID": f"{id}:0"}) as second:
        assert second.next_chunk() == f"id: {id}:1\ndata: abc\n\n".encode()
        upstream.open("events")
        rest = second.read_rest()
        assert rest.startswith(f"id: {id}:2\ndata: def\n\n".encode())
        assert rest.endswith(b"data: [DONE]\n\n")


# The identity of a request


def test_two_answers_to_one_request_at_once_are_never_joined(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("one", "abc", "def"))
    upstream.script(*gated("two", "ABC", "DEF"))
    with ask(rill) as first:
        assert first.read_until(b"c") == b"abc"
        with ask(rill) as second:
            assert second.read_until(b"C") == b"ABC"
            with ask(rill, headers=from_byte(2)) as either:
                assert either.status == 412
            with rill.ask("GET", f"/stream/{id_of(first)}", from_byte(2)) as by_id:
                assert by_id.next_chunk() == b"c"


def test_a_request_after_a_complete_answer_gets_a_new_one(rill: Rill, upstream: Upstream) -> None:
    for text in "first", "second":
        upstream.script(*wire.answer(text))
        with ask(rill, "again") as asked:
            assert asked.read_rest() == text.encode()
        with ask(rill, "again", from_byte(3)) as rest:
            assert rest.read_rest() == text[3:].encode()


def test_a_complete_answer_that_its_client_lost_is_sent_again(rill: Rill, upstream: Upstream) -> None:
    for text in "first", "second":
        upstream.script(*wire.answer(text))
    for _ in range(3):
        with ask(rill) as lost:
            wait_until_complete(rill, id_of(lost))
            lost.reset()
    with ask(rill) as returned:
        assert (returned.read_rest(), returned.ended) == (b"first", "clean")
    assert len(upstream.requests) == 1
    with ask(rill) as repeated:
        assert repeated.read_rest() == b"second"


def test_a_complete_answer_that_is_not_acknowledged_is_sent_again(rill: Rill, upstream: Upstream) -> None:
    text = "x" * 20_000  # It fits into the kernel's buffers here, but not into those of the client.
    upstream.script(*wire.answer(text))
    query = urlencode({"q": "unacknowledged", "resume": "20"})
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        silent.connect(("127.0.0.1", rill.port))
        silent.sendall(request_bytes("GET", f"/stream?{query}", {"X-Request-Id": "unacknowledged"}))
        assert line_of(rill, "unacknowledged")["outcome"] == "completed"
        with ask(rill, "unacknowledged") as returned:
            assert (len(returned.read_rest()), returned.ended) == (len(text), "clean")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/stream", {"Content-Type": "application/json"}, b'{"prompt": "hi", "resume": 20}'),
        ("/stream", {"Content-Type": "application/x-www-form-urlencoded"}, b"q=hi&resume=20"),
        ("/stream?resume=20", {"Content-Type": "text/plain"}, b"hi"),
    ],
)
def test_a_repeated_post_continues_its_own_answer(
    rill: Rill, upstream: Upstream, path: str, headers: dict[str, str], body: bytes
) -> None:
    upstream.script(*gated("post", "abc", "def"))
    with rill.ask("POST", path, headers, body) as first:
        assert first.read_until(b"c") == b"abc"
    with rill.ask("POST", path, {**headers, **from_byte(2)}, body + b" ") as different:
        assert different.status == 412
    with rill.ask("POST", path, {**headers, **from_byte(2)}, body) as second:
        assert second.next_chunk() == b"c"
        upstream.open("post")
        assert (second.read_rest(), second.ended) == (b"def", "clean")
    assert len(upstream.requests) == 1


def test_an_idempotency_key_joins_the_first_answer(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated("key", "abc", "def"))
    headers = {"Idempotency-Key": "key-1", "Content-Type": "text/plain"}
    with rill.ask("POST", "/stream?resume=20", headers, b"hi") as first:
        assert first.read_until(b"c") == b"abc"
        with rill.ask("POST", "/stream?resume=20", headers, b"hi") as second:
            assert second.next_chunk() == b"abc"
            with rill.ask("POST", "/stream?resume=20", headers, b"something else") as different:
                assert different.status == 422
            upstream.open("key")
            assert (first.read_rest(), second.read_rest()) == (b"def", b"def")
    with rill.ask("POST", "/stream?resume=20", headers, b"hi") as third:
        assert (third.read_rest(), third.headers["content-length"]) == (b"abcdef", "6")
    assert len(upstream.requests) == 1


# Settings and limits


def test_the_bounds_of_resume_are_named(rill: Rill, share_rill: StartRill, upstream: Upstream) -> None:
    for resume, message in (
        ("31", b"from 0 to 30"),
        ("-1", b"from 0 to 30"),
        ("soon", b"resume: "),
        ("1.5", b"resume: "),
    ):
        with ask(rill, resume=resume) as asked:
            assert asked.status == 400
            assert message in asked.read_rest()
    off = share_rill()
    with ask(off) as asked:
        assert asked.status == 400
        assert b"RILL_RESUME_SECONDS" in asked.read_rest()
    with off.ask("GET", f"/stream/{'x' * 22}") as asked:
        assert asked.status == 404
    with rill.ask("HEAD", "/stream") as head:
        assert head.headers["resume-seconds"] == "30"
    assert upstream.requests == []


def test_an_answer_beyond_the_memory_goes_on_and_cannot_be_resumed(rill: Rill, upstream: Upstream) -> None:
    megabyte = "m" * (1 << 20)
    pieces = [wire.send(wire.text(megabyte)) for _ in range(17)]
    upstream.script(*gated("memory", "begin"))
    upstream.script(
        *gated("never", "x")[:2], *pieces, wire.gate("memory"), wire.send(wire.block_stop() + wire.stop()), wire.end()
    )
    with ExitStack() as open_answers:
        short = open_answers.enter_context(ask(rill, "short"))
        short.read_until(b"begin")
        long = open_answers.enter_context(ask(rill, "long"))
        got = 0
        while got < 17 << 20:
            got += len(long.next_chunk())
        with rill.ask("GET", f"/stream/{id_of(long)}", from_byte(1)) as lost:
            assert lost.status == 412
        with rill.ask("GET", f"/stream/{id_of(short)}", from_byte(1)) as kept:
            assert kept.status == 206
        upstream.open("memory")
        assert (long.read_rest(), long.ended) == (b"", "clean")


def test_several_workers_without_redis_are_refused(start_rill: StartRill) -> None:
    with pytest.raises(StartFailed) as failed:
        start_rill(RILL_RESUME_SECONDS="30", WEB_CONCURRENCY="2")
    assert "REDIS_URL" in failed.value.output
    with pytest.raises(StartFailed) as failed:
        start_rill("--workers", "2", RILL_RESUME_SECONDS="30")
    assert "REDIS_URL" in failed.value.output


def test_an_answer_without_a_reader_ends_first_at_shutdown(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill(RILL_RESUME_SECONDS="60")
    upstream.script(*gated("read", "abc", "def"))
    upstream.script(*gated("unread", "abc", "def"))
    with ask(rill, "read", resume="60") as read:
        assert read.read_until(b"c") == b"abc"
        with ask(rill, "unread", {"X-Request-Id": "unread"}, resume="60") as unread:
            assert unread.read_until(b"c") == b"abc"
        rill.signal(signal.SIGTERM)
        assert line_of(rill, "unread")["outcome"] == "shutdown"
        upstream.open("read")
        assert (read.read_rest(), read.ended) == (b"def", "clean")
    assert rill.wait() == 0
