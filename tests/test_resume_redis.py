"""Resuming across workers and machines that share a Redis."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import upstream as wire
from asking import wait_until
from redis_server import RedisServer
from server import Rill, rill_env
from test_resume import PIECES, PREFIXES, TEXT, ask, from_byte, gated, id_of, line_of
from upstream import Upstream

ENV = {"RILL_RESUME_SECONDS": "30", "RILL_RATE_LIMIT": "100000/minute", "RILL_MAX_STREAMS_PER_CLIENT": "900"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), "open-sesame-4711") as running:
        yield running


@pytest.fixture(scope="module")
def owner(shared_upstream: Upstream, redis: RedisServer) -> Iterator[Rill]:
    """Yield the service that records the answers."""
    with Rill({**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}, forked=True) as running:
        yield running


@pytest.fixture(scope="module")
def other(shared_upstream: Upstream, redis: RedisServer) -> Iterator[Rill]:
    """Yield another service on the same Redis, which resumes them."""
    with Rill({**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}, forked=True) as running:
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
