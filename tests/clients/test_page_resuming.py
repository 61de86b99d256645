"""The web page continues an answer after a reload and over connections that break, and stops it with DELETE."""

import pytest
from asking import wait_until
from cutting_proxy import CuttingProxy
from gated import FIRST, QUESTION, SECOND, gated_answer
from rill_page import COMPLETE, STOPPED, Page, sent_messages
from selenium.webdriver.common.keys import Keys
from server import Rill, StartRill
from upstream import Upstream


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_RESUME_SECONDS="60", RILL_RATE_LIMIT="10000/minute")


def test_a_reload_continues_the_answer(page: Page, rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    page.open(rill.url)
    page.ask()
    page.wait_for_texts(".answer", FIRST)
    page.browser.refresh()
    page.wait_for_texts(".answer", FIRST)
    assert page.texts(".prompt") == [QUESTION]
    upstream.open("second")
    page.wait_for_texts(".outcome", COMPLETE)
    assert page.texts(".answer") == [FIRST + SECOND]
    page.browser.refresh()
    page.wait_for_texts(".answer", FIRST + SECOND)
    assert sent_messages(upstream) == [QUESTION]
    assert len(upstream.requests) == 1


def test_a_lost_connection_continues_the_answer(page: Page, rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    page.expect_complaint("net::ERR_")
    with CuttingProxy(rill.port, [60], lambda size: upstream.open("second")) as broken:
        page.open(broken.url)
        page.ask()
        page.wait_for_texts(".outcome", COMPLETE)
        assert page.texts(".answer") == [FIRST + SECOND]
    assert len(upstream.requests) == 1


def test_stop_stops_the_upstream(page: Page, rill: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    page.open(rill.url)
    page.ask()
    page.wait_for_texts(".answer", FIRST)
    page.press(Keys.ESCAPE)
    page.wait_for_texts(".outcome", STOPPED)
    upstream.wait_for_disconnect()
    wait_until(lambda: '"outcome": "client_stopped"' in rill.output(), rill.output)
    page.browser.refresh()
    page.wait_for_texts(".answer", FIRST)
