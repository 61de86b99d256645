"""The server for a campaign, with an offline model that answers at once, and the checks after each campaign."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from asking import wait_until
from offline_model import serve_offline_model
from server import Rill

STREAMS = 20
# RILL_MAX_TOKENS keeps its default: the limits in the description are those of the defaults.
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
API_KEY = "key-of-alice"
HEADERS = {"x-api-key": API_KEY, "Connection": "close"}
# The complete answer takes 200 seconds, so its first words cannot have waited for the last.
SLOW = "/stream?q=rate%3D5+tokens%3D1000&max_tokens=1000"


@pytest.fixture(scope="class")
def offline_service(request: pytest.FixtureRequest) -> Iterator[Rill]:
    """Yield the server of a test class, whose attribute says whether it needs an API key."""
    api_keys = {"RILL_API_KEYS": f"alice={API_KEY}"} if request.cls.needs_api_key else {}
    with (
        serve_offline_model() as url,
        Rill({**SETTINGS, **api_keys, "ANTHROPIC_BASE_URL": url}) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def api_key() -> str:
    """Return the API key of a server that needs one."""
    return API_KEY


@pytest.fixture
def rill(offline_service: Rill) -> Iterator[Rill]:
    """Yield the server; afterwards it must be healthy, with every slot free, and no leak or error."""
    take_every_slot(offline_service)
    before = descriptors(offline_service)
    yield offline_service
    with offline_service.ask("GET", "/healthz", {"Connection": "close"}) as asked:
        assert asked.status == 200
    take_every_slot(offline_service)
    gc.collect()  # Close the campaign's own connection.
    wait_until(
        lambda: descriptors(offline_service) <= before,
        lambda: f"{descriptors(offline_service)} descriptors, {before} before",
    )
    output = offline_service.output()
    assert [line for line in output.splitlines() if '"level": "error"' in line or "[ERROR]" in line] == []
    assert "Traceback" not in output


def take_every_slot(rill: Rill) -> None:
    """Take every slot with a streaming answer, and check that the next request is rejected."""
    with ExitStack() as stack:
        asked = [stack.enter_context(rill.ask("GET", SLOW, HEADERS)) for _ in range(STREAMS)]
        assert [each.status for each in asked] == [200] * STREAMS
        assert all(each.next_chunk() and each.ended is None for each in asked)
        with rill.ask("GET", SLOW, HEADERS) as rejected:
            assert rejected.status == 503
            assert rejected.headers["retry-after"] == "1"
    wait_until(lambda: open_streams(rill) == 0, lambda: f"{open_streams(rill)} streams are open")


def open_streams(rill: Rill) -> float:
    """Return the number of open streams in the metrics."""
    with rill.ask("GET", "/metrics", HEADERS) as asked:
        assert asked.status == 200
        lines = asked.read_rest().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("rill_streams_active "))


def descriptors(rill: Rill) -> int:
    """Return the number of descriptors of the single worker."""
    (worker,) = rill.workers()
    return worker.num_fds()
