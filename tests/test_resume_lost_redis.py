"""A Redis that is stopped, restarted, slow or full never harms an answer: it only cannot be resumed any more."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import redis as redis_client
import upstream as wire
from asking import wait_until
from redis_server import RedisServer
from server import Rill, rill_env
from test_resume import ask, from_byte, id_of, line_of
from test_resume_redis import ENV, chunks
from upstream import Upstream

LONG = "x" * 3000


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Yield a Redis that the test may harm."""
    with RedisServer(tmp_path_factory.mktemp("redis"), "open-sesame-4711") as running:
        yield running
        running.go_on() if running._process else None


@pytest.fixture
def rill(shared_upstream: Upstream, redis: RedisServer) -> Iterator[Rill]:
    # Requests are counted by the worker alone, so that no test waits for that.
    with Rill({**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}) as running:
        yield running


def fill(redis: RedisServer) -> None:
    """Make Redis reject every write."""
    with redis.client() as client:
        client.config_set("maxmemory", "1")


def flush(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()


def restart(redis: RedisServer) -> None:
    redis.kill()
    redis.start()


HARMS: dict[str, Callable[[RedisServer], object]] = {
    "stopped": RedisServer.kill,
    "hanging": RedisServer.hang,
    "restarted": restart,
    "full": fill,
    "flushed": flush,
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_answer_goes_on_without_redis(rill: Rill, redis: RedisServer, upstream: Upstream, harm: str) -> None:
    upstream.script(*chunks("a", LONG, "c"))
    with ask(rill, headers={"X-Request-Id": harm}) as asked:
        assert asked.next_chunk() == b"a"
        HARMS[harm](redis)
        upstream.open("gate a")
        assert asked.read_until(LONG.encode()[-1:]).startswith(b"x")
        upstream.open(f"gate {LONG}")
        assert asked.read_until(b"c").endswith(b"c")
        upstream.open("gate c")
        assert (asked.read_rest(), asked.ended) == (b"", "clean")
    assert line_of(rill, harm)["outcome"] == "completed"


@pytest.mark.parametrize("harm", ["stopped", "hanging", "full"])
def test_an_answer_that_begins_without_redis_cannot_be_resumed(
    rill: Rill, redis: RedisServer, upstream: Upstream, harm: str
) -> None:
    upstream.always(*wire.answer("ok"))
    with ask(rill) as warm:
        assert "content-location" in warm.headers
        warm.read_rest()
    HARMS[harm](redis)
    with ask(rill, "again") as asked:
        assert (asked.status, asked.read_rest(), asked.ended) == (200, b"ok", "clean")
        assert "content-location" not in asked.headers
    with ask(rill, "again", from_byte(1)) as resumed:
        assert resumed.status == 412


@pytest.mark.parametrize("harm", ["restarted", "flushed"])
def test_an_answer_that_redis_has_forgotten_is_lost_with_one_log_line(
    rill: Rill, redis: RedisServer, upstream: Upstream, harm: str
) -> None:
    upstream.script(*chunks("a", "b"))
    upstream.always(*wire.answer("ok"))
    with ask(rill) as asked:
        assert asked.next_chunk() == b"a"
        wait_until(lambda: redis.kept() >= 2, "the answer in Redis")
        HARMS[harm](redis)
        upstream.open("gate a")
        assert asked.next_chunk() == b"b"
        wait_until(lambda: "it cannot be resumed" in rill.output(), rill.output)
        with rill.ask("GET", f"/stream/{id_of(asked)}", from_byte(1)) as resumed:
            assert resumed.status == 412
        upstream.open("gate b")
        assert (asked.read_rest(), asked.ended) == (b"", "clean")
    assert rill.output().count("cannot be resumed") <= 2

    def is_back() -> bool:
        with ask(rill, "again") as again:
            again.read_rest()
            return "content-location" in again.headers

    wait_until(is_back, "a recorded answer")


@pytest.mark.parametrize("harm", [*HARMS][2:] + [pytest.param(harm, marks=pytest.mark.soak) for harm in [*HARMS][:2]])
def test_a_reader_at_another_worker_gets_all_or_a_truncated_answer(
    rill: Rill, redis: RedisServer, upstream: Upstream, harm: str
) -> None:
    upstream.script(*chunks("a", "b"))
    with Rill(rill.env) as other, ask(rill) as asked:
        assert asked.next_chunk() == b"a"
        with other.ask("GET", f"/stream/{id_of(asked)}") as followed:
            assert followed.next_chunk() == b"a"
            HARMS[harm](redis)
            upstream.open("gate a")
            assert asked.next_chunk() == b"b"
            upstream.open("gate b")
            assert (asked.read_rest(), asked.ended) == (b"", "clean")
            rest = followed.read_rest()
            assert (rest, followed.ended) == (b"b", "clean") or (b"b".startswith(rest), followed.ended) == (
                True,
                "truncated",
            )
        with rill.ask("GET", f"/stream/{id_of(asked)}", from_byte(1)) as own:
            assert own.status in (206, 412)
            assert own.status == 412 or (own.read_rest(), own.ended) == (b"b", "clean")


def test_a_redis_that_hangs_for_a_moment_loses_nothing(rill: Rill, redis: RedisServer, upstream: Upstream) -> None:
    upstream.script(*chunks("a", "b"))
    with ask(rill) as asked:
        assert asked.next_chunk() == b"a"
        redis.hang()
        upstream.open("gate a")
        assert asked.next_chunk() == b"b"
        wait_until(lambda: "Redis is lost" in rill.output(), rill.output)
        redis.go_on()
        upstream.open("gate b")
        assert (asked.read_rest(), asked.ended) == (b"", "clean")
        id = id_of(asked)
    wait_until(lambda: "Redis is back" in rill.output(), rill.output)
    wait_until(lambda: in_redis(redis, id) == b"ab", lambda: str(in_redis(redis, id)))


def in_redis(redis: RedisServer, id: str) -> bytes:
    """Return the text that another worker would read."""
    got = b""
    with suppress(redis_client.RedisError), redis.client() as client:
        for position, fields in client.xrange(f"rill:answer:{id}"):  # type: ignore[union-attr]
            data = fields.get(b"d", b"")
            got += data[len(got) - (int(position.split(b"-")[0]) - len(data)) :] if data else b""
    return got
