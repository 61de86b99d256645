"""The fixture of the hostile suite: a server that must be as well after each test as it was before."""

from collections.abc import Iterator

import pytest
from raw import answers, assert_stays_healthy, play
from server import Rill, StartRill
from upstream import Upstream


@pytest.fixture(scope="module")
def service(share_rill: StartRill) -> Rill:
    """A server that passes on every feature of /v1/messages."""
    return share_rill(RILL_UPSTREAM_FEATURES="*")


@pytest.fixture
def rill(service: Rill, upstream: Upstream) -> Iterator[Rill]:
    """The module's server on an upstream that always answers; afterwards it is well, and has logged no trouble."""
    upstream.always(play)
    with assert_stays_healthy(service):
        yield service
        assert answers(service)
