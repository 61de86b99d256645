"""A real browser: a page with an EventSource, and one that reads fetch's stream."""

from typing import Any

import pytest
import upstream as wire
from cutting_proxy import CuttingProxy
from gated import FIRST, QUESTION, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait
from server import Rill
from upstream import Upstream

SECONDS = 20
CLOSED = 2  # EventSource.readyState once it does not reconnect

# A page that reads only unnamed messages, and never closes its EventSource.
LISTEN = """
window.shown = ''
window.opened = 0
window.source = new EventSource('/chat/stream?message=' + encodeURIComponent(arguments[0]))
source.onmessage = (event) => { shown += event.data }
source.onopen = () => { opened += 1 }
"""
READ = """
window.shown = ''
window.ended = null
const read = async (question) => {
  window.controller = new AbortController()
  const response = await fetch('/stream', { method: 'POST', body: question, signal: controller.signal })
  if (!response.ok) return `${response.status}: ${await response.text()}`
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) shown += value
  return 'whole'
}
read(arguments[0]).then((end) => { ended = end }, (error) => { ended = error.name })
"""


@pytest.fixture
def page(browser: webdriver.Chrome, service: Rill, upstream: Upstream) -> "Page":
    return Page(browser, service)


class Page:
    """A page of the server's origin."""

    def __init__(self, browser: webdriver.Chrome, service: Rill | CuttingProxy) -> None:
        self._browser = browser
        browser.get(service.url)

    def run(self, script: str, *arguments: str) -> None:
        self._browser.execute_script(script, *arguments)

    def value(self, expression: str) -> Any:
        return self._browser.execute_script(f"return {expression}")

    def wait_for(self, expression: str, expected: Any) -> None:
        """Wait until an expression has this value; the assertion shows what it was instead."""
        waiting = WebDriverWait(self._browser, SECONDS, poll_frequency=0.02)
        last = []
        try:
            waiting.until(lambda _: last.append(self.value(expression)) or last[-1] == expected)
        finally:
            assert last[-1:] == [expected]


def test_event_source_shows_the_answer_and_its_end_mark_and_sends_one_prompt_while_the_tab_is_open(
    page: Page, upstream: Upstream
) -> None:
    upstream.always(*gated_answer())
    page.run(LISTEN, QUESTION)
    page.wait_for("shown", FIRST)
    upstream.open("second")
    page.wait_for("shown", FIRST + SECOND + "[DONE]")
    page.wait_for("source.readyState", CLOSED)  # It reconnected, and got a 204.
    assert page.value("[shown, opened]") == [FIRST + SECOND + "[DONE]", 1]
    assert [request.json["messages"][0]["content"] for request in upstream.requests] == [QUESTION]


def test_event_source_shows_no_end_mark_after_a_truncated_answer_and_sends_one_prompt(
    page: Page, upstream: Upstream
) -> None:
    upstream.always(*truncated_answer())
    page.run(
        LISTEN + "source.addEventListener('error', (event) => { if (event.data) window.failed = event.data })", "hi"
    )
    page.wait_for("shown", FIRST)
    upstream.open("truncate")
    page.wait_for("source.readyState", CLOSED)
    assert page.value("[shown, JSON.parse(failed).status]") == [FIRST, 502]
    assert len(upstream.requests) == 1


def test_event_source_closes_after_a_rejection(page: Page, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    page.run(LISTEN, QUESTION)
    page.wait_for("source.readyState", CLOSED)
    assert page.value("[shown, opened]") == ["", 0]
    assert len(upstream.requests) == 1


def test_event_source_preserves_the_lines_of_an_answer(page: Page, upstream: Upstream) -> None:
    text = "  two spaces\n\n and\tlines\u2028: data: id: 7\n🌊 "
    upstream.script(*wire.answer(text))
    page.run(LISTEN, QUESTION)
    page.wait_for("shown", text + "[DONE]")


def test_fetch_shows_the_first_text_before_the_second_is_sent(page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    page.run(READ, QUESTION)
    page.wait_for("shown", FIRST)
    upstream.open("second")
    page.wait_for("[shown, ended].join()", f"{FIRST}{SECOND},whole")


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_fetch_rejects_its_promise_for_a_truncated_answer(how: str, page: Page, upstream: Upstream) -> None:
    upstream.script(*truncated_answer(how))
    page.run(READ, QUESTION)
    page.wait_for("shown", FIRST)
    upstream.open("truncate")
    page.wait_for("[shown, ended].join()", f"{FIRST},TypeError")


def test_fetch_shows_the_message_of_a_rejection(page: Page, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    page.run(READ, QUESTION)
    page.wait_for("ended", "429: The model's rate limit is reached. Try again in 7 s.\n")


def test_an_aborted_fetch_closes_the_upstream_connection(page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    page.run(READ, QUESTION)
    page.wait_for("shown", FIRST)
    page.run("controller.abort()")
    upstream.wait_for_disconnect()
    page.wait_for("ended", "AbortError")


def test_navigating_away_closes_the_upstream_connection(page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    page.run(READ, QUESTION)
    page.wait_for("shown", FIRST)
    page.run("location.href = 'about:blank'")
    upstream.wait_for_disconnect()
