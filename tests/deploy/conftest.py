"""The fixtures of what is deployed: a server behind one proxy, and a browser."""

import pytest
from server import Rill, StartRill


@pytest.fixture(scope="module")
def service(share_rill: StartRill) -> Rill:
    """The real server, as it should be set behind one proxy."""
    return share_rill(RILL_TRUSTED_PROXIES="1")
