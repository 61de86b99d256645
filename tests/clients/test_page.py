"""Rill's own page in a real browser: what its reader sees, when, and how every outcome is told."""

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import upstream as wire
from chromium import ELSEWHERE
from gated import FIRST, QUESTION, SECOND, cut_answer, gated_answer, script_refusal
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from server import ROOT, Rill, StartRill
from test_chromium import SECONDS
from upstream import Upstream

MOST_BYTES = 16_384
WHOLE = "Arrived whole: the model had said all."
STOPPED = "Stopped by you."
CUT = "Cut: this is not the whole answer. "
BROKE_OFF = CUT + "The model's API closed before the answer was complete."
REFUSED = "Refused (429): The model's rate limit is reached. Try again in 7 s."
FLOWS = "Text arrives piece by piece."
BUFFERS = "A proxy on the way is buffering: text will not appear piece by piece."
TOKEN = "a-secret-of-alice"
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>&amp;\n<b>bold</b>"

# Reads a body, given as pieces of hexadecimal digits, as the page reads an answer.
READ_EVENTS = """
const [pieces, done] = arguments
const body = new ReadableStream({
  start(controller) {
    for (const piece of pieces) {
      controller.enqueue(Uint8Array.from(piece.match(/../g), (digits) => parseInt(digits, 16)))
    }
    controller.close()
  },
})
import('/page.js').then(async ({ readEvents }) => {
  const events = []
  for await (const { type, data } of readEvents(body)) events.push([type, data])
  done(events)
})
"""
# All that shows text, and what contrast it has with what lies behind it, as WCAG 2 counts it.
CONTRASTS = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number)
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4)
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
const behind = (element) => {
  const color = channels(getComputedStyle(element).backgroundColor)
  return color[3] === 0 ? behind(element.parentElement) : color
}
const contrast = (color, element) => {
  const [low, high] = [light(channels(color)), light(behind(element))].sort((a, b) => a - b)
  return (high + 0.05) / (low + 0.05)
}
const shown = [...document.body.querySelectorAll('*')].filter((element) => element.checkVisibility())
const texts = shown.filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
const question = document.getElementById('question')
return [
  ...texts.map((element) => [element.textContent, contrast(getComputedStyle(element).color, element)]),
  ['placeholder', contrast(getComputedStyle(question, '::placeholder').color, question)],
]
"""


class Page:
    """Rill's page as its reader has it: what is on the screen, and a keyboard."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser
        self._excused: list[str] = []

    def open(self, url: str) -> None:
        self.browser.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def excuse(self, words: str) -> None:
        """Let the browser complain of this: it does so by itself of every status from 400 on."""
        self._excused.append(words)

    def complaints(self) -> list[str]:
        """What the browser's console says that it should not, since it was last asked."""
        entries = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]
        # A test's own server stops before its page is closed.
        excused = [*self._excused, "/drip - Failed to load resource: net::ERR_CONNECTION_REFUSED"]
        return [entry for entry in entries if not any(words in entry for words in excused)]

    def prefer(self, **features: str) -> None:
        """Let the reader prefer something: `prefers_color_scheme="dark"`."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def shows(self, selector: str) -> bool:
        return any(each.is_displayed() for each in self.browser.find_elements(By.CSS_SELECTOR, selector))

    def texts(self, selector: str) -> list[str]:
        """The text of each, to the last space."""
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector))

    def focused(self) -> str:
        return str(self.run("return document.activeElement.id || document.activeElement.className"))

    def press(self, *keys: str, held: str = "") -> None:
        """Press keys, wherever the focus is, while one is held down."""
        actions = ActionChains(self.browser, duration=0)
        if held:
            actions.key_down(held).send_keys(*keys).key_up(held).perform()
        else:
            actions.send_keys(*keys).perform()

    def ask(self, question: str = QUESTION) -> None:
        self.press(question, Keys.ENTER)

    def wait_for(self, look: Callable[[], Any], expected: Any) -> None:
        """Wait until a look sees this; the assertion tells what it saw instead."""
        waiting = WebDriverWait(self.browser, SECONDS, poll_frequency=0.02)
        last: list[Any] = []
        try:
            waiting.until(lambda _: last.append(look()) or last[-1] == expected)
        finally:
            assert last[-1:] == [expected]

    def wait_for_answers(self, *answers: str) -> None:
        self.wait_for(lambda: self.texts(".answer"), list(answers))

    def wait_for_outcomes(self, *outcomes: str) -> None:
        """Wait until all answers have ended so, as it is shown, and as a screen reader is told of the last."""
        self.wait_for(lambda: [" ".join(text.split()) for text in self.texts(".outcome")], list(outcomes))
        assert " ".join(self.find("#status").get_attribute("textContent").split()) == outcomes[-1]
        assert self.find("#status").get_attribute("role") == "status"  # which is an aria-live of "polite"


@pytest.fixture
def page(browser: webdriver.Chrome, upstream: Upstream) -> Iterator[Page]:
    """The page, not opened yet; whatever its console complains of fails the test."""
    browser.get_log("browser")  # what an earlier test left behind
    opened = Page(browser)
    opened.resize(1000, 760)
    opened.prefer(prefers_color_scheme="light")
    yield opened
    complaints = opened.complaints()
    with suppress(WebDriverException):  # of a page that never came
        opened.run("sessionStorage.clear()")
    browser.get("about:blank")
    assert complaints == []


@pytest.fixture
def open_page(page: Page, service: Rill) -> Page:
    page.open(service.url)
    return page


def said(upstream: Upstream, request: int = -1) -> list[str]:
    """What the upstream was sent, in turn the reader's and the model's."""
    messages = upstream.requests[request].json["messages"]
    assert [message["role"] for message in messages] == (["user", "assistant"] * len(messages))[: len(messages)]
    return [message["content"] for message in messages]


# An answer as it arrives


def test_the_first_words_are_on_the_page_before_the_second_are_sent(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    assert open_page.texts(".question") == [QUESTION]
    assert open_page.find("#status").get_attribute("textContent") == "Answering."
    assert open_page.shows(".answer[aria-busy=true]")
    upstream.open("second")
    open_page.wait_for_outcomes(WHOLE)
    assert open_page.texts(".answer") == [FIRST + SECOND]
    assert not open_page.shows(".answer[aria-busy]")


def test_the_figures_tell_the_time_to_the_first_text_the_pace_and_the_tokens(
    open_page: Page, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for(lambda: open_page.find(".figures").text.partition(" ")[2], "s to the first text")
    open_page.run("return new Promise((wake) => setTimeout(wake, 150))")  # over less, no pace is told
    upstream.open("second")
    open_page.wait_for_outcomes(WHOLE)
    first, pace, tokens = open_page.find(".figures").text.split(" · ")
    assert 0 < float(first.split(" ")[0]) < SECONDS
    assert pace.endswith(" characters a second")
    assert 0 < int(pace.split(" ")[0]) < 10 * len(SECOND)  # there are no more, and they took at least 100 ms
    assert tokens == "12 tokens in, 7 out"


@pytest.mark.parametrize(
    ("stop_reason", "words"),
    [
        ("max_tokens", "it reached max_tokens, and may have had more to say"),
        ("stop_sequence", "it reached a stop sequence"),
        ("model_context_window_exceeded", "its context is full"),
        ("something_new", "something_new"),
    ],
)
def test_a_stop_reason_is_told_in_plain_words(
    stop_reason: str, words: str, open_page: Page, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, stop_reason=stop_reason))
    open_page.ask()
    open_page.wait_for_outcomes(f"Arrived whole: {words}.")


def test_the_lines_and_spaces_of_an_answer_are_shown_as_they_are(open_page: Page, upstream: Upstream) -> None:
    text = "  two spaces\n\n and\tlines\u2028: data: id: 7\n🌊 "
    upstream.script(*wire.answer(text))
    open_page.ask()
    open_page.wait_for_outcomes(WHOLE)
    assert open_page.texts(".answer") == [text]
    assert open_page.run("return getComputedStyle(document.querySelector('.answer')).whiteSpace") == "pre-wrap"


def test_markup_in_a_question_and_in_an_answer_is_shown_and_never_runs(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer(*SCRIPT, stop_reason="<b>done</b>"))
    open_page.find("#question").send_keys(SCRIPT.replace("\n", ""), Keys.ENTER)
    open_page.wait_for_outcomes("Arrived whole: <b>done</b>.")
    assert open_page.texts(".question") == [SCRIPT.replace("\n", "")]
    assert open_page.texts(".answer") == [SCRIPT]
    assert open_page.texts("main :is(script, img, b)") == []
    assert open_page.run("return window.ran") is None


def test_a_reader_at_the_end_stays_there_and_one_who_scrolled_up_is_left_in_peace(
    open_page: Page, upstream: Upstream
) -> None:
    lines = "line\n" * 200
    held = [wire.gate("more"), wire.send(wire.text(lines)), wire.gate("rest"), wire.send(wire.text(lines))]
    outcome = [wire.send(wire.block_stop() + wire.stop()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(lines)), *held, *outcome)
    to_the_end = "return Math.round(document.documentElement.scrollHeight - innerHeight - scrollY)"
    open_page.ask()
    for count, gate in enumerate(("more", "rest"), 1):
        open_page.wait_for_answers(lines * count)
        open_page.wait_for(lambda: open_page.run(to_the_end), 0)
        if gate == "rest":
            open_page.run("scrollTo(0, 100)")
        upstream.open(gate)
    open_page.wait_for_outcomes(WHOLE)
    assert open_page.texts(".answer") == [lines * 3]
    assert open_page.run("return scrollY") == 100


# Every other outcome


def test_stop_closes_the_upstreams_connection_and_keeps_the_text(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    open_page.find("#stop").click()
    upstream.wait_until_left()
    open_page.wait_for_outcomes(STOPPED)
    assert open_page.texts(".answer") == [FIRST]
    assert (open_page.shows("#send"), open_page.shows("#stop")) == (True, False)


def test_a_question_that_is_stopped_before_its_answer_is_back_in_the_box(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.silence())
    open_page.ask()
    upstream.wait_for_requests(1)
    open_page.press(Keys.ESCAPE)
    upstream.wait_until_left()
    open_page.wait_for_outcomes(STOPPED)
    assert open_page.find("#question").get_property("value") == QUESTION


@pytest.mark.parametrize(
    ("how", "words"),
    [("close", BROKE_OFF), ("end", BROKE_OFF), ("reset", CUT + "The model's API failed. Try again.")],
)
def test_an_upstream_that_breaks_off_is_told_in_words_and_the_text_kept(
    how: str, words: str, open_page: Page, upstream: Upstream
) -> None:
    upstream.script(*cut_answer(how))
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    upstream.open("cut")
    open_page.wait_for_outcomes(words)
    assert open_page.texts(".answer") == [FIRST]
    assert open_page.shows("article.cut")


def test_an_error_in_mid_answer_is_told_with_its_reason(open_page: Page, upstream: Upstream) -> None:
    broken = [wire.gate("error"), wire.send(wire.stream_error()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), *broken)
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    upstream.open("error")
    open_page.wait_for_outcomes(CUT + "The model is overloaded. Try again in 1 s.")
    assert open_page.texts(".answer") == [FIRST]


def test_a_connection_that_breaks_is_a_cut(page: Page, start_rill: StartRill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    rill = start_rill()
    page.open(rill.url)
    page.ask()
    page.wait_for_answers(FIRST)
    page.excuse("net::ERR_")
    rill.workers()[0].kill()
    page.wait_for_outcomes(CUT + "The connection broke.")
    assert page.texts(".answer") == [FIRST]
    page.wait_for(lambda: page.texts("#drip"), [FLOWS])


def test_a_server_that_is_gone_is_told(page: Page, start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill()
    page.open(rill.url)
    rill.stop()
    page.excuse("net::ERR_CONNECTION_REFUSED")
    page.ask()
    page.wait_for_outcomes("No answer: the server cannot be reached.")


def test_a_refusal_is_told_in_the_servers_words_with_when_to_come_back(open_page: Page, upstream: Upstream) -> None:
    script_refusal(upstream)
    open_page.excuse("status of 429")
    open_page.ask()
    open_page.wait_for_outcomes(REFUSED)
    assert open_page.find("#question").get_property("value") == QUESTION
    assert open_page.texts("#drip") == [""]
    upstream.script(*wire.answer(FIRST))
    open_page.press(Keys.ENTER)
    open_page.wait_for_outcomes(REFUSED, WHOLE)
    assert said(upstream) == [QUESTION]


def test_a_model_that_refuses_is_told_and_the_question_is_left_out_of_the_next(
    open_page: Page, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, stop_reason="refusal"))
    open_page.ask()
    open_page.wait_for_outcomes("Arrived whole: the model refused to go on, and what is asked next leaves this out.")
    upstream.script(*wire.answer(SECOND))
    open_page.find("#question").clear()
    open_page.find("#question").send_keys("And a brook?", Keys.ENTER)
    open_page.wait_for(lambda: open_page.texts(".answer"), [FIRST, SECOND])
    assert said(upstream) == ["And a brook?"]


# A conversation


def test_the_conversation_is_kept_cut_and_stopped_answers_included(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*cut_answer())
    upstream.open("cut")
    open_page.ask("one")
    open_page.wait_for_outcomes(BROKE_OFF)
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(SECOND)), wire.silence())
    open_page.ask("two")
    open_page.wait_for_answers(FIRST, SECOND)
    open_page.press(Keys.ESCAPE)
    open_page.wait_for_outcomes(BROKE_OFF, STOPPED)
    upstream.script(*wire.answer("whole"))
    open_page.ask("three")
    open_page.wait_for_outcomes(BROKE_OFF, STOPPED, WHOLE)
    assert said(upstream) == ["one", FIRST, "two", SECOND, "three"]


def test_a_new_conversation_ends_the_answer_under_way_and_forgets_all(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    open_page.find("#renew").click()
    upstream.wait_until_left()
    open_page.wait_for_answers()
    open_page.wait_for(lambda: open_page.shows("#send"), True)
    assert open_page.shows("#welcome")
    assert not open_page.shows("#renew")
    upstream.script(*wire.answer(SECOND))
    open_page.ask("And a brook?")
    open_page.wait_for_outcomes(WHOLE)
    assert said(upstream) == ["And a brook?"]


def test_a_model_is_chosen_where_there_are_several(page: Page, share_rill: StartRill, upstream: Upstream) -> None:
    page.open(share_rill(RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5,claude-haiku-5").url)
    page.wait_for(lambda: page.texts("#model option"), ["claude-sonnet-5-5", "claude-opus-5", "claude-haiku-5"])
    upstream.always(*wire.answer(FIRST))
    page.ask()
    page.wait_for_outcomes(WHOLE)
    page.find("#model").send_keys("claude-haiku-5")
    page.find("#question").send_keys("And a brook?", Keys.ENTER)
    page.wait_for_outcomes(WHOLE, WHOLE)
    assert [request.json["model"] for request in upstream.requests] == ["claude-sonnet-5-5", "claude-haiku-5"]


def test_where_there_is_one_model_none_is_to_be_chosen(open_page: Page, upstream: Upstream) -> None:
    open_page.wait_for(lambda: open_page.texts("#model option"), ["claude-sonnet-5-5"])
    assert not open_page.shows("#model")


# Copying


def pasted(page: Page) -> str:
    """What is on the clipboard, as Ctrl+V brings it."""
    page.find("#question").clear()
    page.find("#question").click()
    page.press("v", held=Keys.CONTROL)
    return str(page.find("#question").get_property("value"))


@pytest.mark.parametrize("host", ["127.0.0.1", ELSEWHERE])
def test_an_answer_is_copied_as_it_is_with_a_clipboard_and_without(
    host: str, page: Page, service: Rill, upstream: Upstream
) -> None:
    page.open(service.url.replace("127.0.0.1", host))
    page.browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardSanitizedWrite"]})
    assert page.run("return isSecureContext") == (host != ELSEWHERE)
    text = f"  {host} & <b>\n\n🌊"
    upstream.script(*wire.answer(text))
    page.ask()
    page.wait_for_outcomes(WHOLE)
    page.find(".copy").click()
    page.wait_for(lambda: (page.texts("#status"), page.texts(".copy")), (["Copied."], ["Copied"]))
    assert pasted(page) == text


# A token


def test_a_token_is_asked_for_where_one_is_needed_and_kept_in_this_tab_alone(
    page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.excuse("status of 401")
    page.open(share_rill(RILL_API_KEYS=f"alice={TOKEN}").url)
    page.wait_for(page.focused, "token")
    assert page.find("#token").get_property("type") == "password"
    page.press("a-wrong-one", Keys.ENTER)
    page.wait_for(lambda: page.texts("#status"), ["The server did not accept this token."])
    page.press(f" {TOKEN} ", Keys.ENTER)
    page.wait_for(lambda: (page.shows("#gate"), page.focused()), (False, "question"))
    upstream.always(*wire.answer(FIRST))
    page.ask()
    page.wait_for_outcomes(WHOLE)
    page.wait_for(lambda: page.texts("#drip"), [FLOWS])
    assert page.run("return [localStorage.length, document.cookie, Object.values(sessionStorage)]") == [0, "", [TOKEN]]
    assert TOKEN not in page.run("return location.href + document.documentElement.outerHTML")
    page.browser.refresh()
    page.ask()
    page.wait_for_outcomes(WHOLE)


def test_a_question_that_met_a_locked_door_is_asked_once_the_token_is_given(
    page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.excuse("status of 401")
    page.open(share_rill(RILL_API_KEYS=f"alice={TOKEN}").url)
    page.wait_for(page.focused, "token")
    page.find("#question").send_keys(QUESTION, Keys.ENTER)
    page.wait_for(page.focused, "token")
    assert page.find("#question").get_property("value") == QUESTION
    upstream.script(*wire.answer(FIRST))
    page.press(TOKEN, Keys.ENTER)
    page.wait_for_outcomes(WHOLE)
    assert page.texts(".question") == [QUESTION]
    assert said(upstream) == [QUESTION]


# The keyboard


def test_the_keyboard_alone_asks_stops_and_copies(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    assert open_page.focused() == "question"
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    assert open_page.focused() == "question"
    open_page.press(Keys.TAB)
    assert open_page.focused() == "stop"
    open_page.press(Keys.SPACE)
    open_page.wait_for_outcomes(STOPPED)
    assert open_page.focused() == "question"
    open_page.press(Keys.TAB, held=Keys.SHIFT)
    assert open_page.focused() == "copy"
    assert open_page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    open_page.press(Keys.ENTER)
    open_page.wait_for(lambda: open_page.texts("#status"), ["Copied."])


def test_what_has_the_focus_is_not_left_under_the_box(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer("line\n" * 100))
    open_page.ask()
    open_page.wait_for_outcomes(WHOLE)
    open_page.run("scrollBy(0, -60)")
    edges = "return ['.copy', '#composer'].map((each) => document.querySelector(each).getBoundingClientRect())"
    copy, box = open_page.run(edges)
    assert copy["bottom"] > box["top"]
    open_page.press(Keys.TAB, held=Keys.SHIFT)
    assert open_page.focused() == "copy"
    copy, box = open_page.run(edges)
    assert copy["bottom"] < box["top"]


def test_shift_and_enter_start_a_new_line_and_an_empty_question_is_not_asked(
    open_page: Page, upstream: Upstream
) -> None:
    open_page.press(Keys.ENTER, " ", Keys.ENTER)
    assert open_page.texts("article") == []
    open_page.press("a", held=Keys.CONTROL)
    upstream.script(*wire.answer(FIRST))
    open_page.press("one")
    open_page.press(Keys.ENTER, held=Keys.SHIFT)
    open_page.ask("two")
    open_page.wait_for_outcomes(WHOLE)
    assert said(upstream) == ["one\ntwo"]


def test_enter_that_chooses_a_character_being_composed_does_not_send(open_page: Page, upstream: Upstream) -> None:
    composing = {"text": "にほん", "selectionStart": 3, "selectionEnd": 3}
    open_page.browser.execute_cdp_cmd("Input.imeSetComposition", composing)
    open_page.press(Keys.ENTER)
    assert open_page.texts("article") == []
    open_page.browser.execute_cdp_cmd("Input.insertText", {"text": "日本"})
    upstream.script(*wire.answer(FIRST))
    open_page.press(Keys.ENTER)
    open_page.wait_for_outcomes(WHOLE)
    # An input method keeps the Enter that it takes to itself; the driver's goes to the box as well.
    assert [question.strip() for question in said(upstream)] == ["日本"]


def test_a_double_click_on_send_does_not_stop_the_answer(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    open_page.press(QUESTION)
    ActionChains(open_page.browser).double_click(open_page.find("#send")).perform()
    open_page.wait_for_answers(FIRST)
    upstream.open("second")
    open_page.wait_for_outcomes(WHOLE)


def test_a_question_written_during_an_answer_waits_for_its_end(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    open_page.ask("next")
    assert open_page.texts(".question") == [QUESTION]
    upstream.open("second")
    open_page.wait_for_outcomes(WHOLE)
    assert open_page.find("#question").get_property("value") == "next"


# How it looks, and how it sounds


def test_everything_that_can_be_used_has_a_name_and_the_page_its_landmarks(
    page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.excuse("status of 401")
    page.open(share_rill(RILL_API_KEYS=f"alice={TOKEN}", RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5").url)
    page.wait_for(page.focused, "token")
    page.press(TOKEN, Keys.ENTER)
    page.wait_for(lambda: page.shows("#model"), True)
    upstream.script(*wire.answer(FIRST))
    page.ask()
    page.wait_for_outcomes(WHOLE)
    used = page.browser.find_elements(By.CSS_SELECTOR, "button, input, select, textarea")
    names = {each.accessible_name for each in used if each.is_displayed()}
    assert names == {"Model", "New conversation", "Copy", "Your question", "Send"}
    assert page.find("#turns").aria_role == "region"
    assert page.find("#turns").accessible_name == "Conversation"
    assert page.texts("article h2") == ["You", "Answer"]
    assert page.run("return [document.documentElement.lang, document.title]") == ["en", "Rill"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_as_the_reader_prefers_with_contrast_enough(
    scheme: str, page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.prefer(prefers_color_scheme=scheme)
    page.excuse("status of 4")
    page.open(share_rill(RILL_API_KEYS=f"alice={TOKEN}", RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5").url)
    page.wait_for(page.focused, "token")
    assert min(contrast for _, contrast in page.run(CONTRASTS)) >= 4.5
    page.press(TOKEN, Keys.ENTER)
    page.wait_for(lambda: page.shows("#model"), True)
    upstream.script(*wire.answer(FIRST))
    upstream.script(*cut_answer())
    script_refusal(upstream)
    upstream.open("cut")
    for asked in range(1, 4):
        page.ask()
        page.wait_for(lambda asked=asked: len(list(filter(None, page.texts(".outcome")))), asked)
    page.wait_for(lambda: page.texts("#drip"), [FLOWS])
    contrasts = page.run(CONTRASTS)
    assert {FIRST, WHOLE, BROKE_OFF, FLOWS, "Copy", "Send", "placeholder"} <= {text for text, _ in contrasts}
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
    paper = page.run("return getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(paper) < 128) == (scheme == "dark")


@pytest.mark.parametrize(("motion", "animation"), [("no-preference", "pulse"), ("reduce", "none")])
def test_nothing_moves_for_a_reader_who_prefers_that(
    motion: str, animation: str, open_page: Page, upstream: Upstream
) -> None:
    open_page.prefer(prefers_reduced_motion=motion)
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    mark = "getComputedStyle(document.querySelector('.answer'), '::after')"
    assert open_page.run(f"return [{mark}.content, {mark}.animationName]") == ['""', animation]
    upstream.open("second")
    open_page.wait_for_outcomes(WHOLE)


def test_a_screen_of_320_pixels_needs_no_scrolling_sideways(
    page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.resize(320, 640)
    page.excuse("status of 401")
    page.open(
        share_rill(
            RILL_API_KEYS=f"alice={TOKEN}", RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-" + "very-" * 12 + "long"
        ).url
    )
    page.wait_for(page.focused, "token")
    widest = "return document.documentElement.scrollWidth"
    assert page.run(widest) <= 320
    page.press(TOKEN, Keys.ENTER)
    page.wait_for(lambda: page.shows("#model"), True)
    upstream.script(*wire.answer("w" * 500 + " ", "two words\n" * 50))
    page.ask("q" * 300)
    page.wait_for_outcomes(WHOLE)
    assert page.run(widest) <= 320
    assert page.run("return scrollTo(1000, scrollY), scrollX") == 0


# On the wire


def test_the_page_is_small_whole_and_asks_nobody_else_for_anything(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    open_page.ask()
    open_page.wait_for(lambda: open_page.texts("#drip"), [FLOWS])
    origins, names = open_page.run("""
        const urls = performance.getEntriesByType('resource').map((entry) => new URL(entry.name))
        return [[...new Set(urls.map((url) => url.origin))], urls.map((url) => url.pathname)]
    """)
    assert origins == [open_page.run("return location.origin")]
    assert sorted(names) == ["/drip", "/page.css", "/page.js", "/stream", "/v1/models"]
    assert open_page.find("link[rel=icon]").get_attribute("href") == "data:,"  # for want of it, browsers ask for a file
    files = list((ROOT / "rill" / "page").iterdir())
    assert {file.name for file in files} == {"index.html", "page.js", "page.css"}
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


@pytest.mark.parametrize(
    ("body", "events"),
    [
        ("data: a\n\ndata: b\n\n", [["message", "a"], ["message", "b"]]),
        ("data: a\r\rdata: b\r\r", [["message", "a"], ["message", "b"]]),
        ("data: a\r\ndata: b\r\n\r\n", [["message", "a\nb"]]),
        ("event: done\r\ndata: {}\n\rdata: c\n\n", [["done", "{}"], ["message", "c"]]),
        ("\ufeffdata: a\n\n", [["message", "a"]]),
        (":\n\n: data: no\ndata: a\n\n", [["message", "a"]]),
        ("data\ndata:\ndata:  two \ndata:one\ndata: :x\n\n", [["message", "\n\n two \none\n:x"]]),
        ("event: done\n\ndata: a\n\n", [["message", "a"]]),
        ("id: 7\nretry: 7\nunknown: 7\nunknown\ndata: a\n\n", [["message", "a"]]),
        ("data: 日本 🌊\u2028\u0085\v\n\n", [["message", "日本 🌊\u2028\u0085\v"]]),
        ("data: a\n\ndata: never whole\n", [["message", "a"]]),
        ("data: a\n\ndata: never whole", [["message", "a"]]),
    ],
)
def test_events_are_read_as_the_specification_says_however_the_network_splits_them(
    body: str, events: list[list[str]], open_page: Page
) -> None:
    data = body.encode()
    for size in (1, 2, 3, len(data)):
        pieces = [data[begin : begin + size].hex() for begin in range(0, len(data), size)]
        assert open_page.browser.execute_async_script(READ_EVENTS, pieces) == events


@contextmanager
def hasty_proxy(rill: Rill, end_at: bytes | None = None, otherwise: int = 502) -> Iterator[str]:
    """A proxy that passes an answer on once it has all of it, or all up to `end_at`; where none comes, a page."""

    class Handler(BaseHTTPRequestHandler):
        def relay(self) -> None:
            asked = http.client.HTTPConnection("127.0.0.1", rill.port)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                asked.request(self.command, self.path, body, dict(self.headers))
                answer = asked.getresponse()
                status, kind, text = answer.status, answer.headers["Content-Type"], answer.read()
            except OSError:
                status, kind, text = otherwise, "text/html", b"<h1>No answer</h1>"
            finally:
                asked.close()
            if end_at:
                text = text.partition(end_at)[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = relay

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_proxy_that_buffers_is_told_in_words(page: Page, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with hasty_proxy(service) as url:
        page.open(url)
        page.ask()
        page.wait_for_outcomes(WHOLE)
        page.wait_for(lambda: page.texts("#drip"), [BUFFERS])


def test_events_that_end_without_done_are_a_cut_however_cleanly(page: Page, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with hasty_proxy(service, end_at=b"event: done") as url:
        page.open(url)
        page.ask()
        page.wait_for_outcomes(CUT + "The connection ended before the answer did.")
        assert page.texts(".answer") == [FIRST + SECOND]


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_that_is_none_of_rills_is_not_taken_for_one(
    status: int, page: Page, start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill()
    with hasty_proxy(rill, otherwise=status) as url:
        page.open(url)
        rill.stop()
        page.excuse("status of 502")
        page.ask()
        page.wait_for_outcomes(f"Refused ({status}): Something on the way answered, not Rill.")
