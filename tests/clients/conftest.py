"""The fixtures of the clients' tests: a server without a rate that they would meet, and what the clients run on."""

from collections.abc import Iterator

import pytest
from javascript import Node, find_node
from server import Rill
from upstream import Upstream


@pytest.fixture(scope="module")
def service(module_upstream: Upstream) -> Iterator[Rill]:
    """The real server, without a rate that a whole module of requests would meet."""
    env = {
        "ANTHROPIC_API_KEY": "sk-test-key",
        "ANTHROPIC_BASE_URL": module_upstream.url,
        "RILL_ALLOWED_MODELS": "*",
        "RILL_RATE_LIMIT": "100000/minute",
        "RILL_UPSTREAM_FEATURES": "*",
        "RILL_ALLOWED_HOSTS": "rill.test",
    }
    with Rill(env) as running:
        yield running


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the clients of tests/clients/js installed; skips where there is no Node that runs them."""
    found = find_node()
    if isinstance(found, str):
        pytest.skip(found)
    found.install_clients()
    return found
