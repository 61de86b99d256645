"""Rill's page in Chromium, at three widths in both colour schemes.

A test of the page runs at one of the six screens, the next test at the next one; a test that is marked `every_screen`,
and with SOAK in the environment every test, runs at all of them.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

from gated import QUESTION
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from test_chromium import SECONDS
from upstream import Upstream

COMPLETE = "Complete."
STOPPED = "Stopped."
TRUNCATED_BY = "Truncated: "
TRUNCATED = TRUNCATED_BY + "The model's API closed before the answer was complete."
REJECTED = "Rejected (429): The model's rate limit is reached. Try again in 7 s."
API_KEY = "a-secret-of-alice"


class Screen(NamedTuple):
    """A width and height in pixels, and a colour scheme."""

    width: int
    height: int
    scheme: str


SIZES = {"phone": (390, 760), "tablet": (768, 1024), "desktop": (1280, 800)}
SCREENS = {f"{name}-{scheme}": Screen(*SIZES[name], scheme) for name, scheme in product(SIZES, ("light", "dark"))}

# Wait in the page until an expression has a value: one message to the browser, where polling from here sends many.
WAIT = """
const [expected, seconds, done] = arguments
const until = performance.now() + 1000 * seconds
const check = () => {
  const found = %s
  if (JSON.stringify(found) === JSON.stringify(expected) || performance.now() > until) done(found)
  else setTimeout(check, 10)
}
check()
"""
# Stop what runs, and return to the first screen; return whether this is the page.
RESET = """
if (!document.getElementById('new')) return false
document.querySelector('.show-plain[aria-pressed=true]')?.click()
document.getElementById('history').close()
document.getElementById('new').click()
document.querySelectorAll('details').forEach((each) => (each.open = false))
for (const id of ['buffering', 'status', 'prompt']) document.getElementById(id).textContent = ''
document.getElementById('prompt').value = ''
localStorage.clear()
sessionStorage.clear()
window.isClean = arguments[0]
if (!isClean) stop()
return true
"""
# Click the middle of an element, unless something covers it: a click of the driver costs ten times as much.
CLICK = """
const node = document.querySelector(arguments[0])
node.scrollIntoView({ block: 'nearest' })
const { left, right, top, bottom } = node.getBoundingClientRect()
const found = document.elementFromPoint((left + right) / 2, (top + bottom) / 2)
if (!node.contains(found)) return `not visible: ${node.outerHTML} is behind ${found?.outerHTML}`
node.focus()
node.click()
return null
"""
SHOWS = """
const visible = (node) => node.checkVisibility({ visibilityProperty: true }) && node.getClientRects().length > 0
return [...document.querySelectorAll(arguments[0])].some(visible)
"""
TAKE = "const isClean = window.isClean && location.href === arguments[0]; window.isClean = false; return isClean"


class Page:
    """Rill's page as its user has it: the screen and the keyboard."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser
        self._expected: list[str] = []
        self._shared = False

    def open(self, url: str) -> None:
        """Load the page."""
        self.browser.get(url)

    def share(self, url: str) -> None:
        """Take the page as the last test left it, or load it; then the next test can take it."""
        self._shared = True
        if not self.run(TAKE, f"{url}/"):
            self.open(url)

    def leave(self) -> None:
        """Delete what the page stored, and leave it as it was loaded."""
        is_page = False
        with suppress(WebDriverException):  # of a page that never loaded
            is_page = self.run(RESET, self._shared)
        if not is_page:
            self.browser.get("about:blank")

    def show(self, screen: Screen) -> None:
        """Set the size and the colour scheme."""
        self.resize(screen.width, screen.height)
        self.prefer(prefers_color_scheme=screen.scheme)

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def expect_complaint(self, text: str) -> None:
        """Allow console entries with this text: the browser logs every status from 400 on."""
        self._expected.append(text)

    def complaints(self) -> list[str]:
        """Return the unexpected entries of the browser's console since the last call."""
        entries = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]
        # A server of a single test stops before its page is closed.
        expected = [*self._expected, "/drip - Failed to load resource: net::ERR_CONNECTION_REFUSED"]
        return [entry for entry in entries if not any(text in entry for text in expected)]

    def prefer(self, **features: str) -> None:
        """Set a preference of the user, such as `prefers_color_scheme="dark"`."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        assert self.run(CLICK, selector) is None

    def shows(self, selector: str) -> bool:
        return bool(self.run(SHOWS, selector))

    def texts(self, selector: str) -> list[str]:
        """Return the exact text of each matching element."""
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector))

    def focused(self) -> str:
        return str(self.run("return document.activeElement.id || document.activeElement.className"))

    def press(self, *keys: str, held: str = "") -> None:
        """Press keys in the focused element, optionally while one is held down."""
        actions = ActionChains(self.browser, duration=0)
        if held:
            actions.key_down(held).send_keys(*keys).key_up(held).perform()
        else:
            actions.send_keys(*keys).perform()

    def ask(self, question: str = QUESTION) -> None:
        self.browser.execute_cdp_cmd("Input.insertText", {"text": question})
        self.press(Keys.ENTER)

    def wait_for(self, look: Callable[[], Any], expected: Any) -> None:
        """Wait until `look` returns `expected`; the assertion shows what it returned instead."""
        waiting = WebDriverWait(self.browser, SECONDS, poll_frequency=0.05)
        last: list[Any] = []
        try:
            waiting.until(lambda _: last.append(look()) or last[-1] == expected)
        finally:
            assert last[-1:] == [expected]

    def wait_for_value(self, expression: str, expected: Any) -> None:
        """Wait until an expression of JavaScript has a value; the assertion shows what it had instead."""
        assert self.browser.execute_async_script(WAIT % expression, expected, SECONDS) == expected

    def wait_for_texts(self, selector: str, *texts: str) -> None:
        """Wait until the matching elements have these texts."""
        self.wait_for_value(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)", list(texts))

    def wait_for_buffering_check(self) -> None:
        """Wait until the page has received all of /drip, which it requests after its first answer."""
        self.wait_for_value("performance.getEntriesByName(new URL('drip', location).href).length", 1)

    def wait_for_answers(self, *answers: str) -> None:
        self.wait_for_texts(".answer", *answers)

    def wait_for_outcomes(self, *outcomes: str) -> None:
        """Wait until the answers show these outcomes, and a screen reader announces the last."""
        # The role is an aria-live of "polite".
        self.wait_for_texts(".outcome, #status[role=status]", *outcomes, outcomes[-1])


def sent_messages(upstream: Upstream, request: int = -1) -> list[str]:
    """Return the messages of an upstream request, alternately the user's and the model's."""
    messages = upstream.requests[request].json["messages"]
    assert [message["role"] for message in messages] == (["user", "assistant"] * len(messages))[: len(messages)]
    return [message["content"] for message in messages]


def pasted(page: Page) -> str:
    """Return the content of the clipboard, pasted with Ctrl+V."""
    page.find("#prompt").clear()
    page.find("#prompt").click()
    page.press("v", held=Keys.CONTROL)
    return str(page.find("#prompt").get_property("value"))
