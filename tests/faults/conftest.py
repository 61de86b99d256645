"""The fixtures of the fault suite: servers with a probe, which must have leaked nothing after each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from server import Rill, StartRill
from upstream import Upstream
from witness import PROBE, SETTINGS, assert_no_leaks, probed


@pytest.fixture
def service(share_rill: StartRill, request: pytest.FixtureRequest) -> Rill:
    """Return a server with a probe, and with the module's ENV and ARGUMENTS if it has them."""
    arguments = (*PROBE, *getattr(request.module, "ARGUMENTS", ()))
    return share_rill(*arguments, app="probe:app", **{**SETTINGS, **getattr(request.module, "ENV", {})})


@pytest.fixture
def rill(service: Rill, upstream: Upstream) -> Iterator[Rill]:
    """Yield the module's server; its slots, greenlets, descriptors and connections must return to their baseline."""
    with assert_no_leaks(service, upstream):
        yield service


@pytest.fixture
def start(upstream: Upstream) -> Iterator[Callable[..., Rill]]:
    """Start a server of the test's own: `start(*arguments, url=upstream.url, **env)`."""
    with ExitStack() as running:

        def start_server(*arguments: str, url: str = upstream.url, **env: str) -> Rill:
            return running.enter_context(probed(url, *arguments, **env))

        yield start_server


@pytest.fixture(scope="session")
def shared_second() -> Iterator[Upstream]:
    """Yield the second upstream of this process; tests use `second`."""
    with Upstream() as running:
        yield running


@pytest.fixture
def second(shared_second: Upstream) -> Iterator[Upstream]:
    """Yield the second upstream, without scripts and records."""
    shared_second.clear()
    yield shared_second
    faults = shared_second.faults
    shared_second.clear()
    assert faults == []
