"""The server that a campaign asks, on an offline model that answers at once, and the checks after each campaign."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from asking import wait_until
from offline_model import serve_offline_model
from server import Rill

STREAMS = 20
# RILL_MAX_TOKENS is left alone: the bounds in the description are those of the defaults.
SETTINGS = {
    "ANTHROPIC_API_KEY": "offline",
    "RILL_ALLOWED_HOSTS": "*",
    "RILL_RATE_LIMIT": "1000000/second",
    "RILL_ALLOWED_MODELS": "*",
    "RILL_UPSTREAM_FEATURES": "*",
    "RILL_DEFAULT_MAX_TOKENS": "64",
    "RILL_MAX_STREAMS": str(STREAMS),
    "RILL_MAX_STREAMS_PER_CLIENT": str(STREAMS),
}
TOKEN = "a-token-of-alice"
HEADERS = {"x-api-key": TOKEN, "Connection": "close"}
# Whole, this answer would take 200 seconds: its first words cannot have waited for the last.
SLOW = "/stream?q=rate%3D5+tokens%3D1000&max_tokens=1000"


@pytest.fixture(scope="class")
def offline_service(request: pytest.FixtureRequest) -> Iterator[Rill]:
    """The server of a test class, which says whether it needs a token."""
    tokens = {"RILL_API_KEYS": f"alice={TOKEN}"} if request.cls.needs_token else {}
    with serve_offline_model() as url, Rill({**SETTINGS, **tokens, "ANTHROPIC_BASE_URL": url}) as running:
        yield running


@pytest.fixture(scope="session")
def token() -> str:
    """The token of a server that needs one."""
    return TOKEN


@pytest.fixture
def rill(offline_service: Rill) -> Iterator[Rill]:
    """The server; afterwards it is healthy, every place is free, no descriptor is held, and nothing broke."""
    take_every_slot(offline_service)
    before = descriptors(offline_service)
    yield offline_service
    with offline_service.ask("GET", "/healthz", {"Connection": "close"}) as asked:
        assert asked.status == 200
    take_every_slot(offline_service)
    gc.collect()  # The campaign's own connection is closed by nobody else.
    wait_until(
        lambda: descriptors(offline_service) <= before,
        lambda: f"{descriptors(offline_service)} descriptors, {before} before",
    )
    output = offline_service.output()
    assert [line for line in output.splitlines() if '"level": "error"' in line or "[ERROR]" in line] == []
    assert "Traceback" not in output


def take_every_slot(rill: Rill) -> None:
    """Hold as many answers as there are places, each of which streams, and see the next one refused."""
    with ExitStack() as stack:
        asked = [stack.enter_context(rill.ask("GET", SLOW, HEADERS)) for _ in range(STREAMS)]
        assert [each.status for each in asked] == [200] * STREAMS
        assert all(each.next_chunk() and each.ended is None for each in asked)
        with rill.ask("GET", SLOW, HEADERS) as refused:
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
    wait_until(lambda: open_streams(rill) == 0, lambda: f"{open_streams(rill)} streams are open")


def open_streams(rill: Rill) -> float:
    """How many the server counts."""
    with rill.ask("GET", "/metrics", HEADERS) as asked:
        assert asked.status == 200
        lines = asked.read_rest().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("rill_streams_active "))


def descriptors(rill: Rill) -> int:
    """How many the one worker holds."""
    (worker,) = rill.workers()
    return worker.num_fds()
