"""Resuming across workers and machines that share a Redis."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import upstream as wire
from asking import SSE, wait_until
from conversation import Conversation, request_bytes
from redis_server import RedisServer
from server import Rill, StartRill, rill_env
from tcp_sockets import tcp_sockets
from test_resume import PIECES, PREFIXES, TEXT, ask, from_byte, gated, id_of, line_of, wait_until_complete
from upstream import Upstream

ENV = {"RILL_RESUME_SECONDS": "30", "RILL_RATE_LIMIT": "100000/minute", "RILL_MAX_STREAMS_PER_CLIENT": "900"}


HEADERS: dict[str, dict[str, str]] = {"text": {}, "sse": SSE}


def chunks(*texts: str) -> list[wire.Step]:
    """Return the steps of an answer with a gate behind each text."""
    steps = [step for text in texts for step in (wire.send(wire.text(text)), wire.gate(f"gate {text}"))]
    end = wire.send(wire.block_stop() + wire.stop()), wire.end()
    return [wire.head(), wire.send(wire.opening()), *steps, *end]


def post(rill: Rill, key: str, prompt: str = "hi") -> Conversation:
    """Ask with an Idempotency-Key."""
    headers = {"Idempotency-Key": key, "Content-Type": "text/plain"}
    return rill.ask("POST", "/stream?resume=20", headers, prompt.encode())


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), "open-sesame-4711") as running:
        yield running


@pytest.fixture(scope="module")
def owner(shared_upstream: Upstream, redis: RedisServer) -> Iterator[Rill]:
    """Yield the service that records the answers."""
    with Rill({**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}) as running:
        yield running


@pytest.fixture(scope="module")
def other(shared_upstream: Upstream, redis: RedisServer) -> Iterator[Rill]:
    """Yield another service on the same Redis, which resumes them."""
    with Rill({**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}) as running:
        yield running


def test_every_byte_can_be_the_last_before_a_disconnect(owner: Rill, other: Rill, upstream: Upstream) -> None:
    for position in range(len(TEXT) + 1):
        gate = f"gate {position}"
        before = next(text for text in PREFIXES if len(text.encode()) >= max(position, 1))
        upstream.script(*gated(gate, before, TEXT.decode().removeprefix(before)))
        with ask(owner, gate) as first:
            got = first.read_until(before.encode())[:position]
        upstream.open(gate)
        if not position:
            time.sleep(0.3)
        with ask(other, gate, from_byte(position) if position else None) as second:
            rest = second.read_rest()
            assert second.ended == "clean"
            assert second.status in ((200,) if not position else (206,) if rest else (204, 206))
        assert got + rest == TEXT
    assert len(upstream.requests) == len(TEXT) + 1


def test_another_worker_follows_the_live_answer_chunk_by_chunk(owner: Rill, other: Rill, upstream: Upstream) -> None:
    upstream.script(*chunks("a", "b", "c", "d"))
    with ask(owner, headers={"X-Request-Id": "followed"}) as first:
        assert first.next_chunk() == b"a"
        with other.ask("GET", f"/stream/{id_of(first)}") as second:
            assert second.next_chunk() == b"a"
            for gate, letter in ("gate a", b"b"), ("gate b", b"c"), ("gate c", b"d"):
                upstream.open(gate)
                assert first.next_chunk() == second.next_chunk() == letter
            first.close()
            upstream.open("gate d")
            assert (second.next_chunk(), second.ended) == (b"", "clean")
    line = line_of(owner, "followed")
    assert (line["outcome"], line["resumptions"], line["replayed_bytes"]) == ("completed", 0, 0)


def test_a_reader_at_another_worker_keeps_the_answer_alive(owner: Rill, other: Rill, upstream: Upstream) -> None:
    upstream.script(*chunks("a", "b"))
    with ask(owner, resume="1", headers={"X-Request-Id": "alive"}) as first:
        assert first.next_chunk() == b"a"
        id = id_of(first)
    with other.ask("GET", f"/stream/{id}", from_byte(1)) as second:
        assert second.status == 206
        time.sleep(1.5)  # More than the grace period.
        upstream.open("gate a")
        assert second.next_chunk() == b"b"
        upstream.open("gate b")
        assert (second.read_rest(), second.ended) == (b"", "clean")
    line = line_of(owner, "alive")
    assert (line["outcome"], line["resumptions"]) == ("completed", 1)


def test_a_reader_that_leaves_another_worker_begins_the_grace_period(
    owner: Rill, other: Rill, upstream: Upstream
) -> None:
    upstream.script(*chunks("a", "b"))
    with ask(owner, resume="1", headers={"X-Request-Id": "disconnected"}) as first:
        assert first.next_chunk() == b"a"
        id = id_of(first)
    with other.ask("GET", f"/stream/{id}", from_byte(1)) as second:
        assert second.status == 206
    upstream.wait_for_disconnect()
    assert line_of(owner, "disconnected")["outcome"] == "client_disconnected"


@pytest.mark.parametrize("dialect", ["text", "sse"])
def test_delete_at_another_worker_stops_the_upstream(
    owner: Rill, other: Rill, upstream: Upstream, dialect: str
) -> None:
    upstream.script(*chunks("a", "b"))
    with ask(owner, headers={"X-Request-Id": f"stopped-{dialect}", **HEADERS[dialect]}) as first:
        first.read_until(b"a")
        began = time.monotonic()
        with other.ask("DELETE", f"/stream/{id_of(first)}") as stopped:
            assert stopped.status == 204
        assert upstream.wait_for_disconnect() - began < 1
        rest = first.read_rest()
        assert first.ended == "truncated" if dialect == "text" else b"event: error" in rest
        with other.ask("GET", f"/stream/{id_of(first)}") as again:
            assert again.read_rest().endswith(rest or b"a")
            assert again.ended == ("truncated" if dialect == "text" else "clean")
    assert line_of(owner, f"stopped-{dialect}")["outcome"] == "client_stopped"


@pytest.mark.parametrize("dialect", ["text", "sse"])
def test_what_a_killed_worker_had_written_is_readable_and_then_truncated(
    redis: RedisServer, other: Rill, upstream: Upstream, dialect: str
) -> None:
    upstream.always(*chunks("a" * 20, "b"))
    with (
        Rill({**rill_env(upstream), **ENV, "REDIS_URL": redis.url}) as killed,
        ask(killed, dialect, HEADERS[dialect]) as first,
        ask(killed, "written", HEADERS[dialect]) as written,
    ):
        first.read_until(b"a" * 20)
        written.read_until(b"a" * 20)
        id, id_of_written = id_of(first), id_of(written)
        wait_until(lambda: has_bytes(redis, id_of_written), "the batch of the second answer")
        with other.ask("GET", f"/stream/{id}") as second:
            assert b"a" * 20 in second.read_until(b"a" * 20)
            (worker,) = killed.workers()
            began = time.monotonic()
            os.kill(worker.pid, signal.SIGKILL)
            rest = second.read_rest()
            assert time.monotonic() - began < 2
            assert_truncated(dialect, second.ended, rest)
        began = time.monotonic()
        with other.ask("GET", f"/stream/{id_of_written}") as third:
            rest = third.read_rest()
            assert b"a" * 20 in rest
            assert time.monotonic() - began < 2
            assert_truncated(dialect, third.ended, rest)


def assert_truncated(dialect: str, ended: str | None, rest: bytes) -> None:
    if dialect == "text":
        assert ended == "truncated"
    else:
        assert (ended, rest.count(b"event: error")) == ("clean", 1)


def has_bytes(redis: RedisServer, id: str) -> bool:
    with redis.client() as client:
        return int(str(client.xlen(f"rill:answer:{id}"))) > 1


def test_an_idempotency_key_joins_the_answer_at_another_worker(owner: Rill, other: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.gate("start"), *chunks("a", "b")[1:])
    with post(owner, "k1") as first:
        upstream.wait_for_requests(1)
        with post(other, "k1") as second, post(other, "k1", "something else") as different:
            assert different.status == 422
            upstream.open("start")
            assert (first.next_chunk(), second.next_chunk()) == (b"a", b"a")
            upstream.open("gate a")
            upstream.open("gate b")
            assert (first.read_rest(), second.read_rest()) == (b"b", b"b")
    with post(other, "k1") as third:
        assert (third.read_rest(), third.ended) == (b"ab", "clean")
    assert len(upstream.requests) == 1


def test_a_rejected_start_is_reported_to_those_who_joined_and_not_kept(
    owner: Rill, other: Rill, upstream: Upstream
) -> None:
    upstream.script(wire.gate("start"), wire.error(400, "invalid_request_error", "prompt is too long"))
    upstream.script(*wire.answer("ok"))
    with post(owner, "k2") as first:
        upstream.wait_for_requests(1)
        with post(other, "k2") as second:
            time.sleep(0.3)
            upstream.open("start")
            assert (first.status, second.status) == (400, 400)

    def is_asked_again() -> bool:
        with post(other, "k2") as third:
            return third.read_rest() == b"ok"

    wait_until(is_asked_again, "the other worker to forget the rejection")


def test_a_complete_answer_that_its_client_lost_is_sent_again_by_another_worker(
    owner: Rill, other: Rill, redis: RedisServer, upstream: Upstream
) -> None:
    for text in "first", "second", "third":
        upstream.script(*wire.answer(text))
    with ask(owner) as lost:
        wait_until_complete(owner, id_of(lost))
        lost.reset()
        wait_until(lambda: state_in(redis, id_of(lost)) == "waiting", "the reset")
    with ask(other) as returned:
        assert (returned.read_rest(), returned.ended) == (b"first", "clean")
        assert id_of(returned) == id_of(lost)
    wait_until(lambda: state_in(redis, id_of(lost)) == "read", "the receipt")
    assert len(upstream.requests) == 1
    for rill, text in (other, b"second"), (other, b"third"):
        with ask(rill) as repeated:
            assert repeated.read_rest() == text


def test_two_workers_of_one_master_share_their_answers(
    start_rill: StartRill, redis: RedisServer, upstream: Upstream
) -> None:
    rill = start_rill("--workers", "2", **ENV, REDIS_URL=redis.url, RILL_API_KEYS="alice=wonder-land,bob=builder-bob")
    rill.wait_for_workers(2)
    upstream.script(*gated("two workers", "abc", "def"))
    alice, bob = {"x-api-key": "wonder-land"}, {"x-api-key": "builder-bob"}
    with ask(rill, headers={**alice, "X-Request-Id": "two workers"}) as first:
        assert first.read_until(b"c") == b"abc"
        path, owner = f"/stream/{id_of(first)}", worker_of(rill, first)
        with at_another_worker(rill, owner, "GET", path, {**bob, **from_byte(1)}) as foreign:
            assert foreign.status == 404
        with at_another_worker(rill, owner, "GET", path, {**alice, **from_byte(1)}) as second:
            assert second.next_chunk() == b"bc"
            upstream.open("two workers")
            assert (first.read_rest(), second.read_rest()) == (b"def", b"def")
            assert (first.ended, second.ended) == ("clean", "clean")
    with at_another_worker(rill, owner, "GET", path, {**alice, **from_byte(6)}) as nothing:
        assert nothing.status == 204
    assert len(upstream.requests) == 1


def worker_of(rill: Rill, asked: Conversation) -> int:
    """Return the process that serves a connection, once it does."""
    port: int = asked.socket.getsockname()[1]

    def owners() -> list[int]:
        workers = rill.workers()
        return [each.pid for each in workers if port in (known.remote_port for known in tcp_sockets(each.pid))]

    wait_until(owners, "a worker to accept")
    return owners()[0]


def at_another_worker(rill: Rill, owner: int, method: str, path: str, headers: dict[str, str]) -> Conversation:
    """Send a request on a connection that another worker has accepted."""
    request = request_bytes(method, path, headers)
    for _ in range(100):
        asked = Conversation(rill.port, b"")
        if worker_of(rill, asked) != owner:
            asked.ask(request)
            return asked
        asked.close()
    raise AssertionError("the owner accepts every connection")


def state_in(redis: RedisServer, id: str) -> str:
    """Return the state of an answer that another request of the same identity finds."""
    with redis.client() as client:
        known = [(client.get(name) or b"").decode() for name in client.keys("rill:request:*")]  # type: ignore[union-attr]
    return next((value.removeprefix(f"{id} ") for value in known if value.startswith(id)), "")


def test_nothing_is_left_in_redis_after_expiry(
    owner: Rill, other: Rill, redis: RedisServer, upstream: Upstream
) -> None:
    upstream.always(*wire.answer(*PIECES))
    with redis.client() as client:
        client.flushall()
    for n in range(3):
        with ask(owner, f"expires {n}", resume="1") as asked:
            assert asked.read_rest() == TEXT
    id = id_of(asked)
    assert redis.kept() >= 3
    wait_until(lambda: redis.kept() == 0 or names_in(redis) == {b"rill:127.0.0.1"}, lambda: str(names_in(redis)))
    for rill in owner, other:
        with rill.ask("GET", f"/stream/{id}", from_byte(3)) as expired:
            assert expired.status == 412


def names_in(redis: RedisServer) -> set[bytes]:
    with redis.client() as client:
        return set(client.keys())  # type: ignore[arg-type]
