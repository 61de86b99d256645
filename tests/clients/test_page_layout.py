"""The layout of the web page at three widths in both colour schemes: what is visible, what moves, and accessibility."""

from itertools import product
from typing import Any

import pytest
import upstream as wire
from gated import FIRST, QUESTION, script_rate_limit
from javascript import JS, Node
from rill_page import API_KEY, COMPLETE, REJECTED, Page
from server import Rill, StartRill
from upstream import Upstream

# Width, height, and whether it is a phone or tablet.
SCREENS = [(390, 760, True), (768, 1024, True), (1280, 800, False)]
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
WIDE = ANSWER.format(long="w" * 300, wide="x = " + "1 + " * 100)
LINES = "".join(f"- line *{number}* of the answer\n" for number in range(60))
FIRST_PAINT_SECONDS = 0.2

AXE = """
const done = arguments[arguments.length - 1]
axe.run({ resultTypes: ['violations'] }).then(({ violations }) => {
  done(violations.map(({ id, nodes }) => [id, nodes.map((node) => `${node.html} ${node.failureSummary}`)]))
}, (error) => done(String(error)))
"""
# The elements that reach out of the screen, apart from those inside of a box that scrolls sideways.
OUTSIDE = """
const scrolls = (node) =>
  ['auto', 'hidden'].includes(getComputedStyle(node).overflowX) && node.clientWidth <= innerWidth
const inside = (node) => node.parentElement && (scrolls(node.parentElement) || inside(node.parentElement))
const box = document.getElementById('conversation')
return [
  document.documentElement.scrollWidth - innerWidth,
  box.scrollWidth - box.clientWidth,
  [...document.querySelectorAll('article *')].filter((node) => {
    if (node.closest('.code pre, .table, .visually-hidden')) return false
    const { left, right } = node.getBoundingClientRect()
    return left < 0 || right > innerWidth
  }).map((node) => node.outerHTML.slice(0, 80)),
]
"""
BOTTOMS = """
const bottom = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility()).at(-1)
  .getBoundingClientRect().bottom
return ['.answer', '.outcome', '.statistics', '.retry', '.copy-markdown', '.curl'].map(bottom)
"""
WATCH_SHIFTS = """
window.shifts = []
new PerformanceObserver((list) => {
  for (const { value, sources } of list.getEntries()) {
    shifts.push([value, ...sources.map(({ node }) => node?.outerHTML?.slice(0, 60) ?? String(node?.data))])
  }
}).observe({ type: 'layout-shift', buffered: false })
"""


def show(page: Page, width: int, height: int, touch: bool, scheme: str) -> None:
    page.prefer(prefers_color_scheme=scheme)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch, "maxTouchPoints": 5})


def ask(page: Page, prompt: str) -> None:
    page.find("#prompt").send_keys(prompt)
    page.find("#send").click()


@pytest.fixture
def axe(node: Node) -> str:
    return (JS / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


def test_everything_stays_inside_and_the_end_is_above_the_form_at_every_width(
    page: Page, service: Rill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer(WIDE))
    page.open(service.url)
    ask(page, "q" * 300)
    page.wait_for_outcomes(COMPLETE)
    for (width, height, touch), plain in product([*SCREENS, (320, 640, True)], (False, True)):
        show(page, width, height, touch, "light")
        if plain:
            page.run("document.querySelector('.show-plain').click()")
        page.run("const box = document.getElementById('conversation'); box.scrollTop = box.scrollHeight")
        assert (width, page.run(OUTSIDE)) == (width, [0, 0, []])
        if not plain:
            form = page.run("return document.getElementById('prompt-form').getBoundingClientRect()")
            assert (width, form["bottom"]) == (width, height)
            assert max(page.run(BOTTOMS)) <= form["top"]
            assert page.shows("#shortcuts") == (not touch)
            left = "return getComputedStyle(document.querySelector('li[dir=rtl]')).direction"
            assert page.run(left) == "rtl"
        else:
            page.run("document.querySelector('.show-plain').click()")
    show(page, 1000, 760, False, "light")


@pytest.mark.parametrize(("width", "height", "touch"), SCREENS)
def test_nothing_moves_while_an_answer_arrives(
    width: int, height: int, touch: bool, page: Page, service: Rill, upstream: Upstream
) -> None:
    show(page, width, height, touch, "dark")
    lines = LINES.splitlines(keepends=True)
    steps = [step for line in lines for step in (wire.send(wire.text(line[:9]), wire.text(line[9:])), wire.pause(0.01))]
    end = [wire.gate("end"), wire.send(wire.block_stop() + wire.stop()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening()), wire.gate("begin"), *steps, *end)
    page.open(service.url)
    ask(page, QUESTION)
    page.wait_for(lambda: page.shows("article"), True)
    # For half a second after an input, the browser does not count.
    page.run(WATCH_SHIFTS + "return new Promise((wake) => setTimeout(wake, 600))")
    upstream.open("begin")
    page.wait_for(lambda: len(page.texts(".answer li")), len(lines))
    upstream.open("end")
    page.wait_for_outcomes(COMPLETE)
    page.run("return new Promise((wake) => setTimeout(wake, 100))")
    assert page.run("return shifts") == []
    show(page, 1000, 760, False, "light")


def test_axe_reports_nothing_at_any_width_in_either_scheme(
    page: Page, share_rill: StartRill, upstream: Upstream, axe: str
) -> None:
    found: list[Any] = []

    def check(state: str) -> None:
        found.extend((state, width, scheme, each) for each in page.browser.execute_async_script(AXE))

    page.expect_complaint("status of 4")
    page.open(share_rill(RILL_API_KEYS=f"alice={API_KEY}", RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5").url)
    page.wait_for_value("document.activeElement.id", "key")
    page.run(axe + ";window.axe = axe")
    for (width, height, touch), scheme in product(SCREENS, ("light", "dark")):
        show(page, width, height, touch, scheme)
        check("key")
    page.press(API_KEY, "\ue007")
    page.wait_for_texts("#model option", "claude-sonnet-5-5", "claude-opus-5")
    upstream.script(*wire.answer(WIDE))
    script_rate_limit(upstream)
    ask(page, QUESTION)
    page.wait_for_outcomes(COMPLETE)
    ask(page, QUESTION)
    page.wait_for_outcomes(COMPLETE, REJECTED)
    page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    for (width, height, touch), scheme in product(SCREENS, ("light", "dark")):
        show(page, width, height, touch, scheme)
        check("answer")
    page.run("document.getElementById('show-history').click()")
    for scheme in ("light", "dark"):
        show(page, width, height, touch, scheme)
        check("history")
    show(page, 1000, 760, False, "light")
    assert found == []


def test_every_control_has_a_name_and_the_page_has_landmarks(page: Page, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    page.open(service.url)
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
