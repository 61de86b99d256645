"""The fixtures of the hostile suite: a server that must be healthy after each test."""

from collections.abc import Iterator

import pytest
from raw import answers, assert_stays_healthy, play
from server import Rill, StartRill
from upstream import Upstream


@pytest.fixture(scope="module")
def service(share_rill: StartRill) -> Rill:
    """Return a server that allows every feature of /v1/messages."""
    return share_rill(RILL_UPSTREAM_FEATURES="*")


@pytest.fixture
def rill(service: Rill, upstream: Upstream) -> Iterator[Rill]:
    """Yield the module's server, whose upstream always answers; it must stay healthy and log no error."""
    upstream.always(play)
    with assert_stays_healthy(service):
        yield service
        assert answers(service)
