"""A real browser: the page behind a proxy that buffers, and the documented pages of another origin."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import upstream as wire
from gated import FIRST, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from proxies import BUFFERING, NGINX, Nginx
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from server import ROOT, Rill, StartRill, rill_env
from upstream import Upstream

SECONDS = 20
NOT_BUFFERED = ""
BUFFERED = "A proxy buffers"
API_KEY = "a-secret-of-alice"
EVENT_SOURCE_CLOSED = 2


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve files, without a log."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder at an origin that is not Rill's."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Yield another origin, which serves examples/."""
    with serving(ROOT / "examples") as origin:
        yield origin


@pytest.fixture(scope="module")
def cors_rill(elsewhere: str, shared_upstream: Upstream) -> Iterator[Rill]:
    """Yield a server that requires an API key, and allows the page's origin."""
    env = {"ANTHROPIC_API_KEY": "sk-test-key", "ANTHROPIC_BASE_URL": shared_upstream.url}
    with Rill({**env, "RILL_API_KEYS": f"alice={API_KEY}", "RILL_CORS_ORIGINS": elsewhere}) as running:
        yield running


def shown(browser: webdriver.Chrome, id: str) -> str:
    """Return the text of an element."""
    return str(browser.find_element(By.ID, id).get_property("textContent"))


def wait_for(browser: webdriver.Chrome, id: str, text: str) -> None:
    """Wait until an element shows the text; the assertion shows what it showed instead."""
    waiting = WebDriverWait(browser, SECONDS, poll_frequency=0.02)
    try:
        waiting.until(lambda _: text in shown(browser, id))
    finally:
        assert text in shown(browser, id)


# Rill's own page, behind nginx


@pytest.mark.skipif(not NGINX, reason="needs nginx")
@pytest.mark.parametrize(
    ("changes", "message"), [({}, NOT_BUFFERED), (BUFFERING, BUFFERED)], ids=["as it is", "buffering"]
)
def test_the_page_reports_whether_nginx_buffers(
    changes: dict[str, str], message: str, browser: webdriver.Chrome, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with Nginx(service, changes) as nginx:
        browser.get(nginx.url)
        browser.find_element(By.ID, "prompt").send_keys("What is a rill?\n")
        wait_for(browser, "conversation", FIRST + SECOND)
        checked = "return performance.getEntriesByName(new URL('drip', location).href).length"
        WebDriverWait(browser, SECONDS, 0.02).until(lambda _: browser.execute_script(checked))
        wait_for(browser, "buffering", message)
        assert bool(shown(browser, "buffering")) == bool(message)
        browser.get("about:blank")


# examples/page.html


def ask_page(browser: webdriver.Chrome, elsewhere: str, service: Rill, key: str = API_KEY) -> None:
    """Open the example, fill its form and send it."""
    browser.get(f"{elsewhere}/page.html")
    for name, value in {"url": service.url, "key": key, "prompt": "What is a rill?"}.items():
        field = browser.find_element(By.NAME, name)
        field.clear()
        field.send_keys(value)
    browser.find_element(By.TAG_NAME, "button").click()


def test_the_page_of_another_origin_shows_the_first_text_before_the_second_is_sent(
    browser: webdriver.Chrome, elsewhere: str, cors_rill: Rill, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    ask_page(browser, elsewhere, cors_rill)
    wait_for(browser, "answer", FIRST)
    upstream.open("second")
    wait_for(browser, "outcome", "Complete.")
    assert shown(browser, "answer") == FIRST + SECOND
    assert upstream.requests[0].json["messages"][0]["content"] == "What is a rill?"


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_the_page_of_another_origin_distinguishes_a_truncated_answer_from_a_complete_one(
    how: str, browser: webdriver.Chrome, elsewhere: str, cors_rill: Rill, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    ask_page(browser, elsewhere, cors_rill)
    wait_for(browser, "answer", FIRST)
    upstream.open("truncate")
    wait_for(browser, "outcome", "Truncated: the answer is incomplete.")
    assert shown(browser, "answer") == FIRST


def test_the_page_of_another_origin_shows_the_message_of_a_rejection(
    browser: webdriver.Chrome, elsewhere: str, cors_rill: Rill, upstream: Upstream
) -> None:
    script_rate_limit(upstream)
    ask_page(browser, elsewhere, cors_rill)
    wait_for(browser, "outcome", "No answer (429): The model's rate limit is reached. Try again in 7 s.")
    ask_page(browser, elsewhere, cors_rill, key="another")
    wait_for(browser, "outcome", "No answer (401): This API key is not valid")


def test_the_page_of_an_origin_that_is_not_allowed_gets_no_answer(
    browser: webdriver.Chrome, elsewhere: str, service: Rill, start_rill: StartRill, upstream: Upstream
) -> None:
    for_another = start_rill(RILL_API_KEYS=f"alice={API_KEY}", RILL_CORS_ORIGINS="https://app.example")
    for server, key in [(service, API_KEY), (for_another, API_KEY), (for_another, "")]:
        ask_page(browser, elsewhere, server, key)
        wait_for(browser, "outcome", f"RILL_CORS_ORIGINS does not contain {elsewhere}.")
        assert shown(browser, "answer") == ""
    assert upstream.requests == []


# The EventSource example of the README


@contextmanager
def event_source(browser: webdriver.Chrome, upstream: Upstream, folder: Path) -> Iterator[None]:
    """Open the README's example in a page of another origin."""
    (block,) = re.findall(r"^```html\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    with serving(folder) as origin, Rill({**rill_env(upstream), "RILL_CORS_ORIGINS": origin}) as rill:
        (folder / "index.html").write_text(block.replace("http://127.0.0.1:8000", rill.url), "utf-8")
        browser.get(origin)
        yield
        browser.get("about:blank")


def wait_until_closed(browser: webdriver.Chrome) -> None:
    WebDriverWait(browser, SECONDS, 0.02).until(
        lambda _: browser.execute_script("return source.readyState") == EVENT_SOURCE_CLOSED
    )


def test_the_event_source_example_shows_exactly_the_text_and_does_not_reconnect(
    browser: webdriver.Chrome, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.script(*gated_answer())
    with event_source(browser, upstream, tmp_path):
        wait_for(browser, "answer", FIRST)
        upstream.open("second")
        wait_until_closed(browser)
        assert shown(browser, "answer") == FIRST + SECOND
    assert len(upstream.requests) == 1


def test_the_event_source_example_reports_a_truncated_answer(
    browser: webdriver.Chrome, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.script(*truncated_answer())
    with event_source(browser, upstream, tmp_path):
        wait_for(browser, "answer", FIRST)
        upstream.open("truncate")
        wait_until_closed(browser)
        truncated = "Truncated: The model's API closed before the answer was complete."
        assert shown(browser, "answer") == f"{FIRST}\n{truncated}"
