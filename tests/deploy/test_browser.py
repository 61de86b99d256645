"""A real browser: the page that tells whether a proxy buffers, and examples/page.html at another origin than Rill's."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import upstream as wire
from gated import CUTS, FIRST, SECOND, cut_answer, gated_answer, script_refusal
from proxies import BUFFERING, NGINX, Nginx
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from server import ROOT, Rill, StartRill
from upstream import Upstream

SECONDS = 20
FLOWS = "Text arrives piece by piece."
BUFFERS = "A proxy on the way is buffering"
TOKEN = "a-secret-of-alice"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and writes no log."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """An origin that is not Rill's, which serves examples/."""
    handler = partial(QuietHandler, directory=str(ROOT / "examples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def open_rill(elsewhere: str, shared_upstream: Upstream) -> Iterator[Rill]:
    """A server that wants a token, and takes requests from the page's origin."""
    env = {"ANTHROPIC_API_KEY": "sk-test-key", "ANTHROPIC_BASE_URL": shared_upstream.url}
    with Rill({**env, "RILL_API_KEYS": f"alice={TOKEN}", "RILL_CORS_ORIGINS": elsewhere}) as running:
        yield running


def shown(browser: webdriver.Chrome, id: str) -> str:
    """The text of an element."""
    return str(browser.find_element(By.ID, id).get_property("textContent"))


def wait_for(browser: webdriver.Chrome, id: str, words: str) -> None:
    """Wait until an element shows these words; the assertion tells what it showed instead."""
    waiting = WebDriverWait(browser, SECONDS, poll_frequency=0.02)
    try:
        waiting.until(lambda _: words in shown(browser, id))
    finally:
        assert words in shown(browser, id)


# Rill's own page, behind nginx


@pytest.mark.skipif(not NGINX, reason="needs nginx")
@pytest.mark.parametrize(("changes", "words"), [({}, FLOWS), (BUFFERING, BUFFERS)], ids=["as it is", "buffering"])
def test_the_page_says_truly_whether_nginx_buffers(
    changes: dict[str, str], words: str, browser: webdriver.Chrome, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with Nginx(service, changes) as nginx:
        browser.get(nginx.url)
        browser.find_element(By.ID, "question").send_keys("What is a rill?\n")
        wait_for(browser, "turns", FIRST + SECOND)
        wait_for(browser, "drip", words)
        browser.get("about:blank")


# examples/page.html


def ask(browser: webdriver.Chrome, elsewhere: str, service: Rill, token: str = TOKEN) -> None:
    """Open the example, fill its form and send it."""
    browser.get(f"{elsewhere}/page.html")
    for name, value in {"url": service.url, "token": token, "question": "What is a rill?"}.items():
        field = browser.find_element(By.NAME, name)
        field.clear()
        field.send_keys(value)
    browser.find_element(By.TAG_NAME, "button").click()


def test_the_page_of_another_origin_shows_the_first_text_before_the_second_is_sent(
    browser: webdriver.Chrome, elsewhere: str, open_rill: Rill, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    ask(browser, elsewhere, open_rill)
    wait_for(browser, "answer", FIRST)
    upstream.open("second")
    wait_for(browser, "outcome", "This is the whole answer.")
    assert shown(browser, "answer") == FIRST + SECOND
    assert upstream.requests[0].json["messages"][0]["content"] == "What is a rill?"


@pytest.mark.parametrize("how", CUTS)
def test_the_page_of_another_origin_tells_a_cut_answer_from_a_whole_one(
    how: str, browser: webdriver.Chrome, elsewhere: str, open_rill: Rill, upstream: Upstream
) -> None:
    upstream.script(*cut_answer(how))
    ask(browser, elsewhere, open_rill)
    wait_for(browser, "answer", FIRST)
    upstream.open("cut")
    wait_for(browser, "outcome", "Cut: this is not the whole answer.")
    assert shown(browser, "answer") == FIRST


def test_the_page_of_another_origin_shows_the_words_of_a_refusal(
    browser: webdriver.Chrome, elsewhere: str, open_rill: Rill, upstream: Upstream
) -> None:
    script_refusal(upstream)
    ask(browser, elsewhere, open_rill)
    wait_for(browser, "outcome", "No answer (429): The model's rate limit is reached. Try again in 7 s.")
    ask(browser, elsewhere, open_rill, token="another")
    wait_for(browser, "outcome", "No answer (401): This API key is not valid")


def test_the_page_of_an_origin_that_is_not_named_gets_no_answer(
    browser: webdriver.Chrome, elsewhere: str, service: Rill, start_rill: StartRill, upstream: Upstream
) -> None:
    for_another = start_rill(RILL_API_KEYS=f"alice={TOKEN}", RILL_CORS_ORIGINS="https://app.example")
    for server, token in [(service, TOKEN), (for_another, TOKEN), (for_another, "")]:
        ask(browser, elsewhere, server, token)
        wait_for(browser, "outcome", f"RILL_CORS_ORIGINS does not name {elsewhere}.")
        assert shown(browser, "answer") == ""
    assert upstream.requests == []
