"""A disconnect closes the upstream connection within 50 ms, in every phase of an answer."""

import time

import pytest
from asking import ask
from server import Rill
from test_client_disconnects import PHASES
from upstream import Upstream

DISCONNECTS = 100
MAX_SECONDS = 0.050


def disconnect_once(rill: Rill, upstream: Upstream, phase: str, number: int) -> float:
    """Return the seconds from a client's disconnect until the upstream connection closes."""
    asked = ask(rill)
    upstream.wait_for_requests(number)
    if phase != "no headers":
        asked.read_until(b"more " if phase == "text flows" else b"one ")
    disconnected_at = time.monotonic()
    asked.close() if number % 2 else asked.reset()
    return upstream.wait_for_disconnect() - disconnected_at


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99) - 1]


@pytest.mark.timing
@pytest.mark.parametrize("phase", PHASES)
def test_a_disconnect_closes_the_upstream_connection_within_50_ms(rill: Rill, upstream: Upstream, phase: str) -> None:
    upstream.always(*PHASES[phase])
    assert p99([disconnect_once(rill, upstream, phase, number) for number in range(1, DISCONNECTS + 1)]) < MAX_SECONDS
