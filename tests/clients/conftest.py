"""The fixtures of the clients' tests: a server without a rate that they would meet, and what the clients run on."""

import pytest
from javascript import Node, find_node
from server import Rill, StartRill


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """A server that passes on every feature of /v1/messages."""
    return share_rill(RILL_UPSTREAM_FEATURES="*")


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the clients of tests/clients/js installed; skips where there is no Node that runs them."""
    found = find_node()
    if isinstance(found, str):
        pytest.skip(found)
    found.install_clients()
    return found
