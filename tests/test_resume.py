"""Resuming in one worker: an answer that asked for it outlives its connection, and is continued byte by byte."""

import json
from urllib.parse import urlencode

import pytest
import upstream as wire
from asking import wait_until
from conversation import Conversation
from server import Rill, StartRill
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


def ask(rill: Rill, q: str = "hi", headers: dict[str, str] | None = None, **fields: str) -> Conversation:
    query = urlencode({"q": q, "resume": "20", **fields})
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
