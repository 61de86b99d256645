"""The fixture of the deployment tests: a server behind one proxy."""

import pytest
from server import Rill, StartRill


@pytest.fixture(scope="module")
def service(share_rill: StartRill) -> Rill:
    """Return the real server with the settings for one proxy."""
    return share_rill(RILL_TRUSTED_PROXIES="1")
