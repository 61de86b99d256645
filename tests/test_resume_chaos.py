"""Many answers at once, disconnected at random bytes and resumed at random workers: each is exact and billed once."""

import random
import threading
import time
from collections.abc import Iterator

import pytest
import upstream as wire
from asking import wait_until
from redis_server import RedisServer
from server import Rill, rill_env
from test_resume import from_byte
from test_resume_redis import ENV, names_in
from upstream import Answer, Upstream

CLIENTS = 6
CHARACTERS = "ab ß世界😀\n"


def text_of(name: str) -> str:
    """Return the text that the model answers to a prompt."""
    chosen = random.Random(name)
    return "".join(chosen.choices(CHARACTERS, k=chosen.randint(20, 600)))


def play(answer: Answer) -> None:
    """Send the text of the prompt in pieces of random size; cut every tenth answer."""
    name = answer.request.json["messages"][-1]["content"]
    text, chosen = text_of(name), random.Random(name)
    wire.head()(answer)
    wire.send(wire.opening())(answer)
    while text:
        size = chosen.randint(1, 60)
        wire.send(wire.text(text[:size]))(answer)
        text = text[size:]
        answer.wait(seconds=chosen.random() / 200)
    if is_cut(name):
        wire.reset()(answer)
    wire.send(wire.block_stop() + wire.stop())(answer)
    wire.end()(answer)


def is_cut(name: str) -> bool:
    return random.Random(f"cut {name}").random() < 0.1


def read_in_parts(rills: list[Rill], name: str) -> tuple[bytes, bool]:
    """Return the bytes of an answer that is read over many connections, and whether its end was clean."""
    chosen, got = random.Random(f"client {name}"), b""
    headers = {"Content-Type": "text/plain", "Connection": "close"}
    sizes = [1, 5, 50, 500, 5000]
    if chosen.random() < 0.5:
        # Only with a key may it return to another worker before its own has noticed that it received nothing.
        headers, sizes = {**headers, "Idempotency-Key": name}, [0, *sizes]
    for _ in range(100):
        sent = {**headers, **(from_byte(len(got)) if got else {})}
        with chosen.choice(rills).ask("POST", "/stream?resume=3", sent, name.encode()) as asked:
            if asked.status == 204:
                return got, True
            assert asked.status in (200, 206), (asked.status, asked.read_rest())
            left = chosen.choice(sizes)
            while left > 0 and (data := asked.next_chunk()):
                got += data[:left]
                left -= len(data)
            if asked.ended:
                return got, asked.ended == "clean"
    raise AssertionError(f"{name} did not end")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def rills(shared_upstream: Upstream, redis: RedisServer) -> Iterator[list[Rill]]:
    """Yield two services on one Redis."""
    env = {**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}
    with Rill(env) as one, Rill(env, forked=True) as two:
        yield [one, two]


@pytest.mark.parametrize("answers", [60, pytest.param(4000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_every_answer_is_exact_or_truncated_and_billed_once(
    rills: list[Rill], redis: RedisServer, upstream: Upstream, answers: int
) -> None:
    upstream.always(play)
    names = [f"chaos {answers} {number}" for number in range(answers)]
    failures: list[str] = []

    def check(mine: list[str]) -> None:
        for name in mine:
            got, is_clean = read_in_parts(rills, name)
            whole = text_of(name).encode()
            if is_clean == is_cut(name) or (got != whole if is_clean else not whole.startswith(got)):
                failures.append(f"{name}: {len(got)} of {len(whole)} bytes, clean: {is_clean}")

    threads = [threading.Thread(target=check, args=(names[number::CLIENTS],)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert failures == []
    asked = [request.json["messages"][-1]["content"] for request in upstream.requests]
    assert sorted(asked) == sorted(names)
    # RILL_RATE_LIMIT has a key of its own.
    wait_until(lambda: not any(b"answer" in name for name in names_in(redis)), lambda: str(names_in(redis)), 30)


def test_an_open_answer_costs_at_most_two_redis_commands_a_second(
    rills: list[Rill], redis: RedisServer, upstream: Upstream
) -> None:
    pieces = [step for n in range(400) for step in (wire.send(wire.text(f"{n} ")), wire.pause(0.01))]
    upstream.script(
        wire.head(), wire.send(wire.opening()), *pieces, wire.send(wire.block_stop() + wire.stop()), wire.end()
    )
    with redis.client() as client, rills[0].ask("POST", "/stream?resume=20", {}, b"rate") as asked:
        asked.next_chunk()

        def commands() -> int:
            return sum(
                value["calls"]
                for name, value in client.info("commandstats").items()  # type: ignore[union-attr]
                if name in ("cmdstat_xadd", "cmdstat_expire", "cmdstat_eval", "cmdstat_publish")
            )

        time.sleep(0.5)
        before, began = commands(), time.monotonic()
        time.sleep(3)
        assert commands() - before <= 2 * (time.monotonic() - began) + 2
        assert asked.read_rest().endswith(b"399 ")
