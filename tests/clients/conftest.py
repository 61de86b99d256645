"""The fixtures of the client tests: a server, and Node for the JavaScript clients."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from javascript import Clients, find_node
from server import Rill, StartRill


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server that allows every feature of /v1/messages."""
    return share_rill(RILL_UPSTREAM_FEATURES="*")


@pytest.fixture(scope="session")
def node() -> Iterator[Clients]:
    """Yield Node with the packages of tests/clients/js; skip if no suitable Node is installed."""
    found = find_node()
    if isinstance(found, str):
        pytest.skip(found)
    found.install_clients()
    with closing(Clients(found)) as clients:
        yield clients
