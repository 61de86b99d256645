"""The web page at each of six screens: every feature, what is visible, what moves, and accessibility."""

from collections.abc import Iterator

import pytest
import upstream as wire
from gated import FIRST, QUESTION, script_rate_limit, truncated_answer
from javascript import JS, Clients
from rill_page import API_KEY, COMPLETE, REJECTED, STOPPED, TRUNCATED, Page, Screen
from selenium.webdriver.common.keys import Keys
from server import Rill, StartRill
from upstream import Upstream

ANSWER = """# A title

A paragraph with **bold**, `code` and [a link](https://x.test/).

- one
  1. two
- three

| a | {long} |
|---|--:|
| 1 | 2 |

```python
{wide}
```

> a quote {long}

- שלום {long}
"""
CODE = "x = " + "1 + " * 100
WIDE = ANSWER.format(long="w" * 300, wide=CODE)
LINES = "".join(f"- line *{number}* of the answer\n" for number in range(40))
FIRST_PAINT_SECONDS = 0.2

AXE = """
const [done] = arguments
axe.run({ resultTypes: ['violations'] }).then(({ violations }) => {
  done(violations.map(({ id, nodes }) => [id, nodes.map((node) => `${node.html} ${node.failureSummary}`)]))
}, (error) => done(String(error)))
"""
# What reaches out of the screen, apart from what is in a box that scrolls sideways, and what covers a control.
WRONG = """
const scrolls = (node) =>
  ['auto', 'hidden'].includes(getComputedStyle(node).overflowX) && node.clientWidth <= innerWidth
const inside = (node) => node.parentElement && (scrolls(node.parentElement) || inside(node.parentElement))
const wrong = []
if (document.documentElement.scrollWidth > innerWidth) wrong.push('the page scrolls sideways')
const dialog = document.querySelector('dialog[open]')
for (const node of (dialog ?? document).querySelectorAll('*')) {
  if (node.closest('.code pre, .table, .visually-hidden, template') || !node.checkVisibility()) continue
  const { left, right, top, bottom, width } = node.getClientRects()[0] ?? node.getBoundingClientRect()
  const name = node.outerHTML.slice(0, 80)
  if (width && (left < 0 || right > innerWidth)) wrong.push(['outside', name])
  if (!node.matches('button, summary, input, select, textarea, a')) continue
  const box = node.closest('section')?.getBoundingClientRect() ?? { top: 0, bottom: innerHeight }
  if (node.checkVisibility({ visibilityProperty: true }) && top >= box.top && bottom <= box.bottom) {
    const found = document.elementFromPoint((left + right) / 2, (top + bottom) / 2)
    const toEnd = document.getElementById('to-end')
    if (!node.contains(found) && found !== toEnd) wrong.push(['covered', name, found?.outerHTML.slice(0, 80)])
  }
  if (node.localName !== 'textarea' && node.scrollWidth > node.clientWidth + 1 && !inside(node.firstChild ?? node)) {
    wrong.push(['clipped', name])
  }
}
return wrong
"""
# How far each part of the last answer's end is above the form, in pixels.
ABOVE = """
const form = document.getElementById('prompt-form').getBoundingClientRect()
if (Math.abs(form.bottom - innerHeight) > 1) return `the form ends at ${form.bottom}`
const parts = ['.answer', '.outcome', '.statistics', '.retry', '.copy-markdown', '.curl'].map((selector) =>
  [...document.querySelectorAll(selector)].filter((node) => node.checkVisibility()).at(-1))
return parts.map((node) => node.getBoundingClientRect().bottom).filter((bottom) => bottom > form.top)
"""
BOTTOM = "return document.querySelector('.answer').getBoundingClientRect().bottom"
AT_END = """
const box = document.getElementById('conversation')
return [Math.round(box.scrollHeight - box.clientHeight - box.scrollTop), document.getElementById('to-end').hidden]
"""
WATCH_SHIFTS = """
window.shifts = []
new PerformanceObserver((list) => {
  for (const { value, sources } of list.getEntries()) {
    shifts.push([value, ...sources.map(({ node }) => node?.outerHTML?.slice(0, 60) ?? String(node?.data))])
  }
}).observe({ type: 'layout-shift', buffered: false })
"""


def is_touch(screen: Screen) -> bool:
    return screen.width < 1000


@pytest.fixture
def device(page: Page, screen: Screen) -> Iterator[Page]:
    """Yield the page on a phone, on a tablet, or on a desktop with a keyboard."""
    touch = is_touch(screen)
    metrics = {"width": screen.width, "height": screen.height, "deviceScaleFactor": 1, "mobile": touch}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch, "maxTouchPoints": 5})
    yield page
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.fixture
def axe(node: Clients) -> str:
    return (JS / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8") + ";window.axe = axe"


def ask(page: Page, prompt: str) -> None:
    page.run("document.getElementById('prompt').value = arguments[0]", prompt)
    page.click("#send")


@pytest.mark.every_screen
def test_every_feature_works_and_fits_and_is_accessible(
    device: Page, screen: Screen, share_rill: StartRill, upstream: Upstream, axe: str
) -> None:
    def check(state: str) -> None:
        assert (state, device.run(WRONG)) == (state, [])
        found = device.browser.execute_async_script(AXE)
        assert (state, found) == (state, [])

    device.expect_complaint("status of 4")
    device.open(share_rill(RILL_API_KEYS=f"alice={API_KEY}", RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5").url)
    device.wait_for_value("document.activeElement.id", "key")
    device.run(axe)
    check("key")
    device.press(API_KEY, Keys.ENTER)
    device.wait_for_texts("#model option", "claude-sonnet-5-5", "claude-opus-5")
    assert device.shows("#shortcuts") == (not is_touch(screen))
    stream_an_example(device, upstream)
    check("answer")
    use_the_answer(device)
    retry_and_edit(device, upstream)
    device.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    check("truncated and rejected, with options and commands")
    set_options_and_stop(device, upstream)
    device.click("#show-history")
    check("history")
    device.click("#history li button:last-child")
    device.click("#close-history")
    assert device.run(WRONG) == []
    assert [device.shows(each) for each in ("#welcome", "article")] == [True, False]


def stream_an_example(page: Page, upstream: Upstream) -> None:
    """Ask an example question: the answer is shown while it arrives, and its end is above the form."""
    begin, end = WIDE.split("> a quote")
    last = [wire.send(wire.text("> a quote" + end)), wire.send(wire.block_stop() + wire.stop()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening()), wire.send(wire.text(begin)), wire.gate("more"), *last)
    page.click("#examples li:last-child button")
    page.wait_for_texts(".answer code", "code", CODE)
    assert page.texts(".prompt") == ["Reverse a linked list in Python."]
    assert [page.shows(each) for each in ("#stop", "#send", "#live", "#shortcuts", "article footer")] == [
        *(True, False, True, False, False)
    ]
    assert page.run(WRONG) == []
    upstream.open("more")
    page.wait_for_outcomes(COMPLETE)
    page.wait_for_value("document.getElementById('model-name').textContent", "claude-sonnet-5-5")
    page.wait_for(lambda: page.run(ABOVE), [])
    assert page.run("return getComputedStyle(document.querySelector('li[dir=rtl]')).direction") == "rtl"


def use_the_answer(page: Page) -> None:
    """Use the buttons of an answer, and scroll to its end."""
    for button in ".copy-text", ".copy-markdown", ".copy-code":
        page.click(button)
        page.wait_for_texts(button, "Copied.")
    page.click(".show-plain")
    assert (page.texts(".plain"), page.shows(".answer"), page.run(WRONG)) == ([WIDE], False, [])
    page.click(".show-plain")
    page.click(".curl summary")
    page.wait_for_value("document.querySelector('.command').textContent.startsWith('curl -N -H ')", True)
    page.run("document.getElementById('conversation').scrollTop = 0")
    page.wait_for_value("document.getElementById('to-end').hidden", False)
    page.click("#to-end")
    page.wait_for(lambda: page.run(AT_END), [0, True])


def retry_and_edit(page: Page, upstream: Upstream) -> None:
    """See a rejection, retry, see a truncated answer, and begin to edit the prompt."""
    script_rate_limit(upstream)
    ask(page, "q" * 200)
    page.wait_for_outcomes(COMPLETE, REJECTED)
    upstream.script(*truncated_answer())
    upstream.open("truncate")
    page.click("article:last-child .retry")
    page.wait_for_outcomes(COMPLETE, TRUNCATED)
    page.wait_for(lambda: page.run(ABOVE), [])
    script_rate_limit(upstream)
    ask(page, QUESTION)
    page.wait_for_outcomes(COMPLETE, TRUNCATED, REJECTED)
    page.click("article:nth-child(2) .edit")
    assert (page.shows("#editing"), page.find("#prompt").get_property("value")) == (True, "q" * 200)
    assert page.run(WRONG) == []
    page.click("#cancel-edit")
    assert (page.shows("#editing"), page.find("#prompt").get_property("value")) == (False, "")


def set_options_and_stop(page: Page, upstream: Upstream) -> None:
    """Ask with a system prompt and a limit of tokens, and stop the answer."""
    page.find("#system").send_keys("Be brief.")
    page.find("#max-tokens").send_keys("77")
    upstream.script(wire.head(), wire.send(wire.opening()), wire.send(wire.text(FIRST)), wire.silence())
    ask(page, QUESTION)
    page.wait_for_value("[...document.querySelectorAll('.answer')].at(-1).textContent", FIRST)
    page.click("#stop")
    page.wait_for_outcomes(COMPLETE, TRUNCATED, REJECTED, STOPPED)
    request = upstream.requests[-1].json
    assert (request["system"], request["max_tokens"]) == ("Be brief.", 77)


@pytest.mark.every_screen
def test_nothing_moves_while_an_answer_arrives(device: Page, service: Rill, upstream: Upstream) -> None:
    lines = LINES.splitlines(keepends=True)
    steps = [step for line in lines for step in (wire.send(wire.text(line[:9]), wire.text(line[9:])), wire.pause(0.01))]
    end = [wire.gate("end"), wire.send(wire.block_stop() + wire.stop()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening()), wire.gate("begin"), *steps, *end)
    device.share(service.url)
    device.wait_for_value("Boolean(document.getElementById('model-name').textContent)", True)
    ask(device, QUESTION)
    device.wait_for_texts(".prompt", QUESTION)
    # For half a second after an input, the browser does not count.
    device.run(WATCH_SHIFTS + "return new Promise((wake) => setTimeout(wake, 600))")
    upstream.open("begin")
    device.wait_for_value("document.querySelectorAll('.answer li').length", len(lines))
    device.wait_for(lambda: device.run(AT_END), [0, True])
    bottom = device.run(BOTTOM)
    upstream.open("end")
    device.wait_for_outcomes(COMPLETE)
    device.run("return new Promise((wake) => setTimeout(wake, 100))")
    assert device.run("return shifts") == []
    assert device.run(BOTTOM) == bottom  # a scroll that moves it is no shift for the browser


def test_every_control_has_a_name_and_the_page_has_landmarks(page: Page, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    page.share(service.url)
    ask(page, QUESTION)
    page.wait_for_outcomes(COMPLETE)
    used = page.browser.find_elements("css selector", "button, input, select, textarea")
    names = {each.accessible_name for each in used if each.is_displayed()}
    buttons = {"Retry", "Edit", "Copy text", "Copy Markdown", "Plain text"}
    assert names == {"Conversations", "New conversation", "Prompt", "Send"} | buttons
    assert (page.find("#conversation").aria_role, page.find("#conversation").accessible_name) == (
        "region",
        "Conversation",
    )
    assert page.texts("article h2") == ["You", "Answer"]
    assert page.run("return [document.documentElement.lang, document.title]") == ["en", "Rill"]


@pytest.mark.timing
def test_the_first_paint_is_early(page: Page, service: Rill) -> None:
    paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    times = []
    for _ in range(5):
        page.open(service.url)
        page.wait_for(lambda: page.run(paint) is not None, True)
        times.append(page.run(paint) / 1000)
    assert min(times) < FIRST_PAINT_SECONDS, times
