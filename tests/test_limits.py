"""How much, how often, how many at once."""

import time
from collections import deque
from contextlib import ExitStack, suppress
from itertools import repeat

import pytest

from rill.admission.concurrency import ConcurrencyLimit
from rill.admission.rate_limit import RateLimit
from rill.problems import Problem


@pytest.mark.parametrize(("rate", "times"), [("1/minute", 1), ("3/minute", 3), ("60/minute", 60), ("5 per hour", 5)])
def test_a_client_may_ask_as_often_as_the_rate_says_and_then_not(rate: str, times: int) -> None:
    counted = RateLimit(rate)
    for _ in range(times):
        counted.count("alice")
    with pytest.raises(Problem) as refused:
        counted.count("alice")
    assert refused.value.status == 429


@pytest.mark.parametrize(("rate", "longest"), [("1/minute", 60), ("2/hour", 3600), ("1/day", 86400)])
def test_a_refusal_says_the_rate_and_when_to_come_back(rate: str, longest: int) -> None:
    counted = RateLimit(rate)
    for _ in range(int(rate[0])):
        counted.count("alice")
    with pytest.raises(Problem) as refused:
        counted.count("alice")
    assert refused.value.retry_after is not None
    assert 1 <= refused.value.retry_after <= longest
    assert rate[0] in refused.value.detail
    assert rate.partition("/")[2] in refused.value.detail


@pytest.mark.parametrize("rate", ["2/second;3/day", "3/day;2/second"])
def test_each_of_several_rates_applies_and_the_exceeded_one_is_reported(rate: str) -> None:
    counted = RateLimit(rate)
    counted.count("alice")
    counted.count("alice")
    for _ in range(50):  # What the shorter window rejects uses up nothing of the longer one.
        with suppress(Problem):
            counted.count("alice")
    with pytest.raises(Problem) as refused:
        deque(map(counted.count, repeat("alice")), maxlen=0)
    assert refused.value.headers["RateLimit-Policy"] in ("2;w=1", "3;w=86400")
    time.sleep(2.1)  # pacing: what is awaited is the very passing of this time
    with suppress(Problem):
        counted.count("alice")
    time.sleep(1.1)
    with pytest.raises(Problem) as refused:
        counted.count("alice")
    assert refused.value.headers["RateLimit-Limit"] == "3"
    assert refused.value.headers["RateLimit-Policy"] == "3;w=86400"
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 1000


def test_who_comes_back_when_told_to_is_let_in() -> None:
    counted = RateLimit("5/second")
    with suppress(Problem):
        deque(map(counted.count, repeat("alice")), maxlen=0)
    with pytest.raises(Problem) as refused:
        deque(map(counted.count, repeat("alice")), maxlen=0)
    assert refused.value.retry_after == 1
    time.sleep(refused.value.retry_after)  # pacing: what is awaited is the very passing of this time
    counted.count("alice")


def test_each_client_is_counted_apart() -> None:
    counted = RateLimit("1/minute")
    counted.count("alice")
    counted.count("bob")
    with pytest.raises(Problem):
        counted.count("alice")


def test_a_refused_request_is_not_counted_again() -> None:
    counted = RateLimit("2/second")
    for _ in range(1000):
        with suppress(Problem):
            counted.count("alice")
    time.sleep(2.1)  # pacing: as long as two windows last
    counted.count("alice")


def test_a_great_many_clients_are_each_counted() -> None:
    counted = RateLimit("1/hour")
    for number in range(3000):
        counted.count(f"client {number}")
    for number in range(0, 3000, 500):
        with pytest.raises(Problem):
            counted.count(f"client {number}")


def test_no_more_answers_at_once_than_there_are_places() -> None:
    slots = ConcurrencyLimit(total=2, per_client=2)
    with slots.hold_slot("alice"), slots.hold_slot("bob"):
        with pytest.raises(Problem) as refused, slots.hold_slot("carol"):
            pass
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        with pytest.raises(Problem):
            slots.check_capacity()
    slots.check_capacity()


def test_no_more_answers_at_once_for_one_client_than_its_share() -> None:
    slots = ConcurrencyLimit(total=10, per_client=2)
    with slots.hold_slot("alice"), slots.hold_slot("alice"):
        with pytest.raises(Problem) as refused, slots.hold_slot("alice"):
            pass
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        assert "2" in refused.value.detail
        with slots.hold_slot("bob"):
            slots.check_capacity()


def test_a_place_is_free_again_however_its_answer_ended() -> None:
    slots = ConcurrencyLimit(total=1, per_client=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), slots.hold_slot("alice"):
            raise ZeroDivisionError
    with slots.hold_slot("alice"):
        pass
    with ExitStack() as held:
        held.enter_context(slots.hold_slot("alice"))
    slots.check_capacity()


def test_a_refused_place_takes_none() -> None:
    slots = ConcurrencyLimit(total=2, per_client=1)
    with slots.hold_slot("alice"):
        for _ in range(5):
            with pytest.raises(Problem), slots.hold_slot("alice"):
                pass
        with slots.hold_slot("bob"):
            pass
