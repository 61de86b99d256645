"""The fixtures of the fault suite: servers that can be looked into, and must be unharmed after each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from server import Rill
from upstream import Upstream
from witness import probed, unharmed


@pytest.fixture(scope="module")
def service(module_upstream: Upstream, request: pytest.FixtureRequest) -> Iterator[Rill]:
    """The module's server, with the module's own ENV and ARGUMENTS where it has them."""
    env = getattr(request.module, "ENV", {})
    with probed(module_upstream.url, *getattr(request.module, "ARGUMENTS", ()), **env) as running:
        yield running


@pytest.fixture
def rill(service: Rill, upstream: Upstream) -> Iterator[Rill]:
    """The module's server; slots, greenlets, descriptors and connections are back at their baseline afterwards."""
    with unharmed(service, upstream):
        yield service


@pytest.fixture
def start(upstream: Upstream) -> Iterator[Callable[..., Rill]]:
    """Start a server of the test's own: `start(*arguments, url=upstream.url, **env)`."""
    with ExitStack() as running:

        def start_server(*arguments: str, url: str = upstream.url, **env: str) -> Rill:
            return running.enter_context(probed(url, *arguments, **env))

        yield start_server
