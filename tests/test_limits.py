"""Rate limits and concurrency limits."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import RedisServer

from rill.admission.concurrency import ConcurrencyLimit
from rill.admission.rate_limit import RateLimit
from rill.admission.redis import SharedCounts
from rill.admission.sliding_window import Counts, SlidingWindow
from rill.problems import Problem
from rill.quota import Quota


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.mark.parametrize(("rate", "times"), [("1/minute", 1), ("3/minute", 3), ("60/minute", 60), ("5 per hour", 5)])
def test_a_client_gets_as_many_requests_as_its_rate_limit_allows(rate: str, times: int) -> None:
    counted = RateLimit(rate)
    for _ in range(times):
        counted.count("alice")
    with pytest.raises(Problem) as rejected:
        counted.count("alice")
    assert rejected.value.status == 429


@pytest.mark.parametrize(("rate", "longest"), [("1/minute", 60), ("2/hour", 3600), ("1/day", 86400)])
def test_a_rejection_states_the_limit_and_when_to_retry(rate: str, longest: int) -> None:
    counted = RateLimit(rate)
    for _ in range(int(rate[0])):
        counted.count("alice")
    with pytest.raises(Problem) as rejected:
        counted.count("alice")
    assert rejected.value.retry_after is not None
    assert 1 <= rejected.value.retry_after <= longest
    assert rate[0] in rejected.value.detail
    assert rate.partition("/")[2] in rejected.value.detail


@pytest.mark.parametrize("rate", ["2/second;3/day", "3/day;2/second"])
def test_each_of_several_limits_applies_and_the_exceeded_one_is_reported(rate: str) -> None:
    counted = RateLimit(rate)
    counted.count("alice")
    counted.count("alice")
    for _ in range(50):  # Requests that the shorter window rejects do not count in the longer one.
        with suppress(Problem):
            counted.count("alice")
    with pytest.raises(Problem) as rejected:
        deque(map(counted.count, repeat("alice")), maxlen=0)
    assert rejected.value.headers["RateLimit-Policy"] in ("2;w=1", "3;w=86400")
    time.sleep(2.1)  # pacing: the test waits for this time to pass
    with suppress(Problem):
        counted.count("alice")
    time.sleep(1.1)
    with pytest.raises(Problem) as rejected:
        counted.count("alice")
    assert rejected.value.headers["RateLimit-Limit"] == "3"
    assert rejected.value.headers["RateLimit-Policy"] == "3;w=86400"
    assert rejected.value.retry_after is not None
    assert rejected.value.retry_after > 1000


def test_a_client_that_waits_for_retry_after_is_accepted() -> None:
    counted = RateLimit("5/second")
    with suppress(Problem):
        deque(map(counted.count, repeat("alice")), maxlen=0)
    with pytest.raises(Problem) as rejected:
        deque(map(counted.count, repeat("alice")), maxlen=0)
    assert rejected.value.retry_after == 1
    time.sleep(rejected.value.retry_after)  # pacing: the test waits for this time to pass
    counted.count("alice")


def test_a_request_that_one_quota_rejects_counts_towards_none() -> None:
    counted = RateLimit("3/second;2/day")
    for _ in range(50):
        with suppress(Problem):
            counted.count("alice")
    with pytest.raises(Problem) as rejected:
        counted.count("alice")
    assert rejected.value.headers["RateLimit-Policy"] == "2;w=86400"


@given(
    amount=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 30, exclude_min=True), min_size=1, max_size=100),
    used=st.integers(1, 5),
)
def test_quota_is_available_exactly_after_the_reported_wait(amount: int, pauses: list[float], used: int) -> None:
    now = 1000.0
    window = SlidingWindow(Quota(amount, 10, "10 seconds"), lambda: now)
    for pause in pauses:
        now += pause
        wait = window.seconds_left("alice")
        if wait:
            assert 0 < wait <= 20
            began = now
            now = began + wait * 0.999 - 1e-6
            assert window.seconds_left("alice") > 0
            now = began + wait + 1e-6
            assert window.seconds_left("alice") == 0
        window.add("alice", used)


def test_expired_counts_are_forgotten() -> None:
    now = 1000.0
    window = SlidingWindow(Quota(5, 10, "10 seconds"), lambda: now)
    for number in range(100):
        window.add(f"client {number}")
        now += 1
    assert len(window) <= 21


@pytest.mark.parametrize(
    ("elapsed", "current", "previous"),
    [
        (0.0, 0, 0),
        (0.2, 4, 0),
        (0.2, 5, 0),
        (0.5, 3, 4),
        (0.5, 3, 9),
        (0.5, 9, 9),
        (1.2, 5, 9),
        (1.2, 9, 0),
        (2.1, 9, 9),
    ],
)
def test_redis_and_a_worker_count_alike(redis: RedisServer, elapsed: float, current: int, previous: int) -> None:
    quota, free = Quota(5, 1000, "1000 seconds"), Quota(7, 86400, "day")
    with redis.client() as client:
        client.flushall()
        seconds, microseconds = client.time()
        now = seconds + microseconds / 1e6
        begun = now - elapsed * quota.seconds
        client.hset("rill:alice", str(quota.seconds), f"{begun:.6f} {current} {previous}")
        waits = SharedCounts(redis.url, [quota, free]).count("alice")
        counts = Counts(begun, current, previous).at(now, quota.seconds)
        assert waits == pytest.approx([counts.seconds_left(now, quota), 0], abs=5)
        # A request that one quota rejects counts towards none.
        assert client.hexists("rill:alice", str(free.seconds)) == (waits == [0, 0])
        if waits == [0, 0]:
            kept = [float(part) for part in client.hget("rill:alice", str(quota.seconds)).split()]
            assert kept == pytest.approx([counts.begun, counts.current + 1, counts.previous], abs=5)
            assert kept[1:] == [counts.current + 1, counts.previous]
            assert 0 < client.ttl("rill:alice") <= 2 * 86400


def test_each_client_is_counted_separately() -> None:
    counted = RateLimit("1/minute")
    counted.count("alice")
    counted.count("bob")
    with pytest.raises(Problem):
        counted.count("alice")


def test_a_rejected_request_is_not_counted() -> None:
    counted = RateLimit("2/second")
    for _ in range(1000):
        with suppress(Problem):
            counted.count("alice")
    time.sleep(2.1)  # pacing: the length of two windows
    counted.count("alice")


def test_thousands_of_clients_are_each_counted() -> None:
    counted = RateLimit("1/hour")
    for number in range(3000):
        counted.count(f"client {number}")
    for number in range(0, 3000, 500):
        with pytest.raises(Problem):
            counted.count(f"client {number}")


def test_concurrent_answers_never_exceed_the_slots() -> None:
    slots = ConcurrencyLimit(total=2, per_client=2)
    with slots.hold_slot("alice"), slots.hold_slot("bob"):
        with pytest.raises(Problem) as rejected, slots.hold_slot("carol"):
            pass
        assert (rejected.value.status, rejected.value.retry_after) == (503, 1)
        with pytest.raises(Problem):
            slots.check_capacity()
    slots.check_capacity()


def test_concurrent_answers_of_one_client_never_exceed_its_slots() -> None:
    slots = ConcurrencyLimit(total=10, per_client=2)
    with slots.hold_slot("alice"), slots.hold_slot("alice"):
        with pytest.raises(Problem) as rejected, slots.hold_slot("alice"):
            pass
        assert (rejected.value.status, rejected.value.retry_after) == (429, 1)
        assert "2" in rejected.value.detail
        with slots.hold_slot("bob"):
            slots.check_capacity()


def test_a_slot_is_released_at_every_outcome() -> None:
    slots = ConcurrencyLimit(total=1, per_client=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), slots.hold_slot("alice"):
            raise ZeroDivisionError
    with slots.hold_slot("alice"):
        pass
    with ExitStack() as held:
        held.enter_context(slots.hold_slot("alice"))
    slots.check_capacity()


def test_a_rejected_request_costs_no_slot() -> None:
    slots = ConcurrencyLimit(total=2, per_client=1)
    with slots.hold_slot("alice"):
        for _ in range(5):
            with pytest.raises(Problem), slots.hold_slot("alice"):
                pass
        with slots.hold_slot("bob"):
            pass
