"""An upstream that fails half of its requests under load: nearly every client gets an answer, in time."""

import random
import threading
import time
from typing import NamedTuple

import pytest
import upstream as wire
from asking import ask
from fallbacks import FAILING, fallbacks
from server import Rill, StartRill
from upstream import Answer, Upstream

# The first rate is promised; a machine with other load may serve only one of the others.
STARTS_PER_SECOND = (200, 100, 50)
SECONDS = 4
# How long a healthy upstream takes to start.
START_SECONDS = 0.15
HEALTHY = (wire.pause(START_SECONDS), *wire.answer("here"))


class Load(NamedTuple):
    """The answers to a load: the fraction that was complete, and the seconds to the first byte of each."""

    complete: float
    seconds: list[float]

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


def fail_half_of_them(answer: Answer) -> None:
    """Answer, or fail at once."""
    for step in (FAILING,) if random.random() < 0.5 else HEALTHY:
        step(answer)


def put_load_on(rill: Rill, starts_per_second: int) -> Load:
    """Start requests at a constant rate, and read their answers."""
    total = starts_per_second * SECONDS
    complete, seconds = [], []

    def ask_once() -> None:
        begun = time.monotonic()
        with ask(rill, headers={"Connection": "close"}, timeout=30) as asked:
            is_started = asked.status == 200
            seconds.append(time.monotonic() - begun)
            if is_started and asked.read_rest() == b"here":
                complete.append(1)

    begun, clients = time.monotonic(), []
    for number in range(total):
        time.sleep(max(0.0, begun + number / starts_per_second - time.monotonic()))
        clients.append(threading.Thread(target=ask_once))
        clients[-1].start()
    for client in clients:
        client.join()
    return Load(len(complete) / total, seconds)


@pytest.mark.timing
@pytest.mark.parametrize("configuration", ["upstream", "both"])
def test_an_upstream_that_fails_half_of_its_requests_costs_no_answer_and_little_time(
    start_rill: StartRill, upstream: Upstream, second: Upstream, configuration: str
) -> None:
    rill = start_rill(**fallbacks(configuration, second), RILL_MAX_STREAMS_PER_CLIENT="1000")
    for starts_per_second in STARTS_PER_SECOND:
        for each in (upstream, second):
            each.clear()
            each.always(*HEALTHY)
        healthy = put_load_on(rill, starts_per_second)
        upstream.requests.clear()
        second.requests.clear()
        upstream.always(fail_half_of_them)
        failing = put_load_on(rill, starts_per_second)
        if healthy.complete == 1 and failing.complete >= 0.999 and failing.p99 < 2 * healthy.p99:
            break
    else:
        raise AssertionError((healthy.complete, healthy.p99, failing.complete, failing.p99))
    assert max(len(upstream.requests), len(second.requests)) <= 1.2 * starts_per_second * SECONDS


@pytest.mark.timing
def test_both_upstreams_down_are_reported_in_less_than_a_second_once_their_circuits_are_open(
    start_rill: StartRill, upstream: Upstream, second: Upstream
) -> None:
    rill = start_rill(**fallbacks("both", second))
    for each in (upstream, second):
        each.always(FAILING)
    for _ in range(5):  # The circuits open.
        with ask(rill) as asked:
            assert asked.status == 502
    begun = time.monotonic()
    with ask(rill) as asked:
        assert (asked.status, asked.read_rest()) == (502, b"The model's API failed. Try again.\n")
    assert time.monotonic() - begun < 1
