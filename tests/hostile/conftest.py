"""The fixture of the hostile suite: a server that must be as well after each test as it was before."""

from collections.abc import Iterator

import pytest
from raw import answers, play, untroubled
from server import Rill, rill_env
from upstream import Upstream


@pytest.fixture(scope="module")
def service(module_upstream: Upstream) -> Iterator[Rill]:
    """A server that passes on every feature of /v1/messages."""
    with Rill({**rill_env(module_upstream), "RILL_UPSTREAM_FEATURES": "*"}) as running:
        yield running


@pytest.fixture
def rill(service: Rill, upstream: Upstream) -> Iterator[Rill]:
    """The module's server on an upstream that always answers; afterwards it is well, and has logged no trouble."""
    upstream.always(play)
    with untroubled(service):
        yield service
        assert answers(service)
