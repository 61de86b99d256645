"""The fixtures of the client tests: a server, Node for the JavaScript clients, and the web page in Chromium."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from javascript import Clients, find_node
from rill_page import SCREENS, Page, Screen
from selenium import webdriver
from server import Rill, StartRill
from upstream import Upstream

from examples import SOAK


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the page at one screen, or at each of them."""
    if "screen" in metafunc.fixturenames:
        names = list(SCREENS)
        if not (SOAK or metafunc.definition.get_closest_marker("every_screen")):
            # The tests of a module take turns.
            names = [names[list(vars(metafunc.module)).index(metafunc.definition.originalname) % len(names)]]
        metafunc.parametrize("screen", names, indirect=True)


@pytest.fixture
def screen(request: pytest.FixtureRequest) -> Screen:
    """Return the screen of the test."""
    return SCREENS[request.param]


@pytest.fixture
def page(browser: webdriver.Chrome, upstream: Upstream, screen: Screen) -> Iterator[Page]:
    """Yield the page, not opened yet; an unexpected entry in its console fails the test."""
    opened = Page(browser)
    opened.show(screen)
    opened.complaints()  # Other tests left them.
    yield opened
    complaints = opened.complaints()
    opened.leave()
    assert complaints == []


@pytest.fixture
def open_page(page: Page, service: Rill) -> Page:
    """Return the page of the server, with an empty conversation."""
    page.share(service.url)
    return page


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
