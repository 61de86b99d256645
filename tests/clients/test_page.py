"""The web page in a real browser: what it shows, when, and how it shows each outcome."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import upstream as wire
from chromium import ELSEWHERE
from gated import FIRST, QUESTION, SECOND, gated_answer, script_rate_limit, truncated_answer
from rill_page import API_KEY, COMPLETE, REJECTED, STOPPED, TRUNCATED, TRUNCATED_BY, Page, pasted, sent_messages
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from server import ROOT, Rill, StartRill
from test_chromium import SECONDS
from upstream import Upstream

MOST_BYTES = 60_000
BUFFERED = "A proxy buffers the answers: each arrives all at once."
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>&amp;\n<b>bold</b>"

# Parse a body, given as pieces in hexadecimal, as the page parses an answer.
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
import('/page/api.js').then(async ({ readEvents }) => {
  const events = []
  for await (const { type, data } of readEvents(body)) events.push([type, data])
  done(events)
})
"""


# Streaming


def test_the_page_shows_the_first_text_before_the_second_is_sent(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    assert open_page.texts(".prompt") == [QUESTION]
    assert open_page.find("#status").get_attribute("textContent") == "Receiving the answer."
    assert open_page.shows(".answer[aria-busy=true]")
    upstream.open("second")
    open_page.wait_for_outcomes(COMPLETE)
    assert open_page.texts(".answer") == [FIRST + SECOND]
    assert not open_page.shows(".answer[aria-busy]")


def test_the_statistics_show_the_time_to_the_first_text_the_rate_and_the_tokens(
    open_page: Page, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for(lambda: open_page.find("#live").text.partition(" ")[2], "s to first text")
    open_page.run("return new Promise((wake) => setTimeout(wake, 150))")  # below 100 ms, no rate is shown
    upstream.open("second")
    open_page.wait_for_outcomes(COMPLETE)
    first, rate, tokens = open_page.find(".statistics").text.split(" · ")
    assert 0 < float(first.split(" ")[0]) < SECONDS
    assert rate.endswith(" chars/s")
    assert 0 < int(rate.split(" ")[0]) < 10 * len(SECOND)  # SECOND took at least 100 ms
    assert tokens == "12 input tokens, 7 output tokens"


@pytest.mark.parametrize(
    ("stop_reason", "reason"),
    [
        ("max_tokens", "max_tokens was reached"),
        ("model_context_window_exceeded", "the model's context is full"),
        ("something_new", "something_new"),
    ],
)
def test_the_page_shows_the_stop_reason(stop_reason: str, reason: str, open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, stop_reason=stop_reason))
    open_page.ask()
    open_page.wait_for_outcomes(f"Complete: {reason}.")


def test_a_switch_shows_the_text_of_an_answer_unchanged_and_applies_to_the_next_one(
    open_page: Page, upstream: Upstream
) -> None:
    text = "  two spaces\n\n and\tlines\u2028: data: id: 7\n\n\n**bold** 🌊 "
    upstream.always(*wire.answer(text[:9], text[9:]))
    open_page.ask()
    open_page.wait_for_outcomes(COMPLETE)
    assert (open_page.texts(".answer strong"), open_page.shows(".plain")) == (["bold"], False)
    open_page.click(".show-plain")
    assert (open_page.texts(".plain"), open_page.shows(".answer")) == ([text], False)
    assert open_page.find(".show-plain").get_attribute("aria-pressed") == "true"
    assert open_page.run("return getComputedStyle(document.querySelector('.plain')).whiteSpace") == "pre-wrap"
    open_page.find("#prompt").send_keys("again", Keys.ENTER)
    open_page.wait_for_outcomes(COMPLETE, COMPLETE)
    assert open_page.texts(".plain") == [text, text]
    assert not open_page.shows(".answer")
    open_page.click(".show-plain")
    assert open_page.find(".answer").is_displayed()


def test_markup_in_a_prompt_and_in_an_answer_is_shown_and_never_runs(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer(*SCRIPT, stop_reason="<b>done</b>"))
    open_page.find("#prompt").send_keys(SCRIPT.replace("\n", ""), Keys.ENTER)
    open_page.wait_for_outcomes("Complete: <b>done</b>.")
    assert open_page.texts(".prompt") == [SCRIPT.replace("\n", "")]
    assert open_page.texts(".answer") == [SCRIPT]
    assert open_page.texts("main :is(script, img, b)") == []
    assert open_page.run("return window.ran") is None


def test_the_page_scrolls_with_the_answer_unless_the_reader_scrolled_up(open_page: Page, upstream: Upstream) -> None:
    lines = "line\n" * 200
    held = [wire.gate("more"), wire.send(wire.text(lines)), wire.gate("rest"), wire.send(wire.text(lines))]
    outcome = [wire.send(wire.block_stop() + wire.stop()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(lines)), *held, *outcome)
    box = "const box = document.getElementById('conversation'); "
    to_the_end = box + "return Math.round(box.scrollHeight - box.clientHeight - box.scrollTop)"
    open_page.ask()
    for count, gate in enumerate(("more", "rest"), 1):
        open_page.wait_for_answers((lines * count).strip())
        open_page.wait_for(lambda: open_page.run(to_the_end), 0)
        assert not open_page.shows("#to-end")
        if gate == "rest":
            open_page.run(box + "box.scrollTop = 100")
            open_page.wait_for(lambda: open_page.shows("#to-end"), True)
        upstream.open(gate)
    open_page.wait_for_outcomes(COMPLETE)
    assert open_page.texts(".answer") == [(lines * 3).strip()]
    assert open_page.run(box + "return box.scrollTop") == 100
    open_page.click("#to-end")
    open_page.wait_for(lambda: (open_page.run(to_the_end), open_page.shows("#to-end")), (0, False))


# Other outcomes


def test_stop_closes_the_upstream_connection_and_keeps_the_text(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    open_page.click("#stop")
    upstream.wait_for_disconnect()
    open_page.wait_for_outcomes(STOPPED)
    assert open_page.texts(".answer") == [FIRST]
    assert (open_page.shows("#send"), open_page.shows("#stop")) == (True, False)


def test_a_prompt_stopped_before_its_answer_returns_to_the_form(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.silence())
    open_page.ask()
    upstream.wait_for_requests(1)
    open_page.press(Keys.ESCAPE)
    upstream.wait_for_disconnect()
    open_page.wait_for_outcomes(STOPPED)
    assert open_page.find("#prompt").get_property("value") == QUESTION


@pytest.mark.parametrize(
    ("how", "message"),
    [("close", TRUNCATED), ("end", TRUNCATED), ("reset", TRUNCATED_BY + "The model's API failed. Try again.")],
)
def test_a_truncated_answer_is_marked_and_keeps_its_text(
    how: str, message: str, open_page: Page, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    upstream.open("truncate")
    open_page.wait_for_outcomes(message)
    assert open_page.texts(".answer") == [FIRST]
    assert open_page.shows("article.truncated")


def test_an_error_during_an_answer_is_shown_with_its_reason(open_page: Page, upstream: Upstream) -> None:
    broken = [wire.gate("error"), wire.send(wire.stream_error()), wire.end()]
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), *broken)
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    upstream.open("error")
    open_page.wait_for_outcomes(TRUNCATED_BY + "The model is overloaded. Try again in 1 s.")
    assert open_page.texts(".answer") == [FIRST]


def test_a_failed_connection_is_shown_as_a_truncated_answer(
    page: Page, start_rill: StartRill, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    rill = start_rill()
    page.open(rill.url)
    page.ask()
    page.wait_for_answers(FIRST)
    page.expect_complaint("net::ERR_")
    rill.workers()[0].kill()
    page.wait_for_outcomes(TRUNCATED_BY + "The connection failed.")
    assert page.texts(".answer") == [FIRST]
    page.wait_for_buffering_check()


def test_an_unreachable_server_is_reported(page: Page, start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill()
    page.open(rill.url)
    rill.stop()
    page.expect_complaint("net::ERR_CONNECTION_REFUSED")
    page.ask()
    page.wait_for_outcomes("No answer: the server is unreachable.")


def test_a_rejection_is_shown_with_the_servers_message_and_retry_time(open_page: Page, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    open_page.expect_complaint("status of 429")
    open_page.ask()
    open_page.wait_for_outcomes(REJECTED)
    assert open_page.find("#prompt").get_property("value") == QUESTION
    assert open_page.texts("#buffering") == [""]
    upstream.script(*wire.answer(FIRST))
    open_page.press(Keys.ENTER)
    open_page.wait_for_outcomes(REJECTED, COMPLETE)
    assert sent_messages(upstream) == [QUESTION]


def test_a_refusal_of_the_model_is_shown_and_the_next_prompt_omits_it(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, stop_reason="refusal"))
    open_page.ask()
    open_page.wait_for_outcomes("Complete: the model refused. The next prompt omits this answer.")
    upstream.script(*wire.answer(SECOND))
    open_page.find("#prompt").clear()
    open_page.find("#prompt").send_keys("And a brook?", Keys.ENTER)
    open_page.wait_for_texts(".answer", FIRST, SECOND.strip())
    assert sent_messages(upstream) == ["And a brook?"]


# A conversation


def test_the_conversation_keeps_truncated_and_stopped_answers(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*truncated_answer())
    upstream.open("truncate")
    open_page.ask("one")
    open_page.wait_for_outcomes(TRUNCATED)
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(SECOND)), wire.silence())
    open_page.ask("two")
    open_page.wait_for_answers(FIRST, SECOND.strip())
    open_page.press(Keys.ESCAPE)
    open_page.wait_for_outcomes(TRUNCATED, STOPPED)
    upstream.script(*wire.answer("whole"))
    open_page.ask("three")
    open_page.wait_for_outcomes(TRUNCATED, STOPPED, COMPLETE)
    assert sent_messages(upstream) == ["one", FIRST, "two", SECOND, "three"]


def test_a_new_conversation_cancels_the_answer_and_clears_the_page(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    open_page.click("#new")
    upstream.wait_for_disconnect()
    open_page.wait_for_answers()
    open_page.wait_for(lambda: open_page.shows("#send"), True)
    assert open_page.shows("#welcome")
    upstream.script(*wire.answer(SECOND))
    open_page.ask("And a brook?")
    open_page.wait_for_outcomes(COMPLETE)
    assert sent_messages(upstream) == ["And a brook?"]


def test_one_of_several_models_can_be_selected(page: Page, share_rill: StartRill, upstream: Upstream) -> None:
    page.open(share_rill(RILL_ALLOWED_MODELS="claude-sonnet-5-5,claude-opus-5,claude-haiku-5").url)
    page.wait_for_texts("#model option", "claude-sonnet-5-5", "claude-opus-5", "claude-haiku-5")
    upstream.always(*wire.answer(FIRST))
    page.ask()
    page.wait_for_outcomes(COMPLETE)
    page.click("#options summary")
    page.find("#model").send_keys("claude-haiku-5")
    page.find("#prompt").send_keys("And a brook?", Keys.ENTER)
    page.wait_for_outcomes(COMPLETE, COMPLETE)
    assert [request.json["model"] for request in upstream.requests] == ["claude-sonnet-5-5", "claude-haiku-5"]
    assert page.texts("#model-name") == ["claude-haiku-5"]


def test_a_single_model_is_shown_and_not_offered_for_selection(open_page: Page, upstream: Upstream) -> None:
    open_page.wait_for_texts("#model-name", "claude-sonnet-5-5")
    open_page.click("#options summary")
    assert not open_page.shows("#model")


# Copying


@pytest.mark.parametrize("host", ["127.0.0.1", ELSEWHERE])
def test_an_answer_is_copied_unchanged_with_and_without_the_clipboard_api(
    host: str, page: Page, service: Rill, upstream: Upstream
) -> None:
    page.open(service.url.replace("127.0.0.1", host))
    page.browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardSanitizedWrite"]})
    assert page.run("return isSecureContext") == (host != ELSEWHERE)
    text = f"  {host} & <b>\n\n🌊"
    upstream.script(*wire.answer(text))
    page.ask()
    page.wait_for_outcomes(COMPLETE)
    page.find(".copy-markdown").click()  # without the API, copying needs a click of the user
    page.wait_for(lambda: (page.texts("#status"), page.texts(".copy-markdown")), (["Copied."], ["Copied."]))
    assert pasted(page) == text


# API keys


def test_the_page_asks_for_a_required_api_key_and_stores_it_for_this_tab_only(
    page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.expect_complaint("status of 401")
    page.open(share_rill(RILL_API_KEYS=f"alice={API_KEY}").url)
    page.wait_for_value("document.activeElement.id", "key")
    assert page.find("#key").get_property("type") == "password"
    page.press("a-wrong-one", Keys.ENTER)
    page.wait_for_texts("#status", "The server rejected this API key.")
    page.press(f" {API_KEY} ", Keys.ENTER)
    page.wait_for(lambda: (page.shows("#key-form"), page.focused()), (False, "prompt"))
    upstream.always(*wire.answer(FIRST))
    page.ask()
    page.wait_for_outcomes(COMPLETE)
    page.wait_for_buffering_check()
    assert page.run("return [document.cookie, sessionStorage.rillApiKey]") == ["", API_KEY]
    assert API_KEY not in page.run(
        "return location.href + document.documentElement.outerHTML + JSON.stringify(localStorage)"
    )
    page.browser.refresh()
    page.wait_for_value("document.activeElement.id", "prompt")
    page.ask()
    page.wait_for_outcomes(COMPLETE, COMPLETE)


def test_a_prompt_that_was_unauthorized_is_sent_again_with_the_key(
    page: Page, share_rill: StartRill, upstream: Upstream
) -> None:
    page.expect_complaint("status of 401")
    page.open(share_rill(RILL_API_KEYS=f"alice={API_KEY}").url)
    page.wait_for_value("document.activeElement.id", "key")
    page.find("#prompt").send_keys(QUESTION, Keys.ENTER)
    page.wait_for_value("document.activeElement.id", "key")
    assert page.find("#prompt").get_property("value") == QUESTION
    upstream.script(*wire.answer(FIRST))
    page.press(API_KEY, Keys.ENTER)
    page.wait_for_outcomes(COMPLETE)
    assert page.texts(".prompt") == [QUESTION]
    assert sent_messages(upstream) == [QUESTION]


# The keyboard


def test_the_keyboard_alone_can_send_stop_and_copy(open_page: Page, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    assert open_page.focused() == "prompt"
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    assert open_page.focused() == "prompt"
    open_page.press(Keys.TAB)
    assert open_page.focused() == "stop"
    open_page.press(Keys.SPACE)
    open_page.wait_for_outcomes(STOPPED)
    assert open_page.focused() == "prompt"
    open_page.press(*[Keys.TAB] * 3, held=Keys.SHIFT)
    assert open_page.focused() == "copy-markdown of-text"
    assert open_page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    open_page.press(Keys.ENTER)
    open_page.wait_for_texts("#status", "Copied.")


def test_shift_and_enter_start_a_new_line_and_an_empty_prompt_is_not_sent(open_page: Page, upstream: Upstream) -> None:
    open_page.press(Keys.ENTER, " ", Keys.ENTER)
    assert open_page.texts("article") == []
    open_page.press("a", held=Keys.CONTROL)
    upstream.script(*wire.answer(FIRST))
    open_page.press("one")
    open_page.press(Keys.ENTER, held=Keys.SHIFT)
    open_page.ask("two")
    open_page.wait_for_outcomes(COMPLETE)
    assert sent_messages(upstream) == ["one\ntwo"]


def test_enter_that_chooses_a_character_being_composed_does_not_send(open_page: Page, upstream: Upstream) -> None:
    composing = {"text": "にほん", "selectionStart": 3, "selectionEnd": 3}
    open_page.browser.execute_cdp_cmd("Input.imeSetComposition", composing)
    open_page.press(Keys.ENTER)
    assert open_page.texts("article") == []
    open_page.browser.execute_cdp_cmd("Input.insertText", {"text": "日本"})
    upstream.script(*wire.answer(FIRST))
    open_page.press(Keys.ENTER)
    open_page.wait_for_outcomes(COMPLETE)
    # An input method consumes its Enter; the driver also sends it to the text box.
    assert [question.strip() for question in sent_messages(upstream)] == ["日本"]


def test_a_double_click_on_send_does_not_stop_the_answer(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    open_page.press(QUESTION)
    ActionChains(open_page.browser).double_click(open_page.find("#send")).perform()
    open_page.wait_for_answers(FIRST)
    upstream.open("second")
    open_page.wait_for_outcomes(COMPLETE)


def test_a_prompt_written_during_an_answer_is_not_sent_before_its_end(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    open_page.ask("next")
    assert open_page.texts(".prompt") == [QUESTION]
    upstream.open("second")
    open_page.wait_for_outcomes(COMPLETE)
    assert open_page.find("#prompt").get_property("value") == "next"


# Appearance and accessibility


@pytest.mark.parametrize(("motion", "animation"), [("no-preference", "pulse"), ("reduce", "none")])
def test_reduced_motion_disables_the_animation(
    motion: str, animation: str, open_page: Page, upstream: Upstream
) -> None:
    open_page.prefer(prefers_reduced_motion=motion)
    upstream.script(*gated_answer())
    open_page.ask()
    open_page.wait_for_answers(FIRST)
    mark = "getComputedStyle(document.querySelector('#live'), '::before')"
    assert open_page.run(f"return [{mark}.content, {mark}.animationName]") == ['""', animation]
    upstream.open("second")
    open_page.wait_for_outcomes(COMPLETE)


# Requests and responses


def test_the_page_is_small_and_loads_nothing_from_other_origins(page: Page, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST))
    page.open(service.url)
    page.ask()
    page.wait_for_outcomes(COMPLETE)
    page.wait_for_buffering_check()
    assert page.texts("#buffering") == [""]
    origins, names = page.run("""
        const urls = performance.getEntriesByType('resource').map((entry) => new URL(entry.name))
        return [[...new Set(urls.map((url) => url.origin))], urls.map((url) => url.pathname)]
    """)
    assert origins == [page.run("return location.origin")]
    files = list((ROOT / "rill" / "page").iterdir())
    loaded = {f"/page/{file.name}" for file in files if file.suffix != ".html"}
    assert set(names) == {"/drip", "/stream", "/v1/models"} | loaded
    icon = page.find("link[rel=icon]").get_attribute("href")
    assert icon.startswith("data:image/svg+xml,")  # otherwise browsers request /favicon.ico
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


PARSED: list[tuple[str, list[list[str]]]] = [
    ("data: a\n\ndata: b\n\n", [["message", "a"], ["message", "b"]]),
    ("data: a\ndata: b\n\n", [["message", "a\nb"]]),
    ("event: done\ndata: {}\n\ndata: c\n\n", [["done", "{}"], ["message", "c"]]),
    ("\ufeffdata: a\n\n", [["message", "a"]]),
    (":\n\n: data: no\ndata: a\n\n", [["message", "a"]]),
    ("data\ndata:\ndata:  two \ndata:one\ndata: :x\n\n", [["message", "\n\n two \none\n:x"]]),
    ("event: done\n\ndata: a\n\n", [["message", "a"]]),
    ("id: 7\nretry: 7\nunknown: 7\nunknown\ndata: a\n\n", [["message", "a"]]),
    ("data: 日本 🌊\u2028\u0085\v\n\n", [["message", "日本 🌊\u2028\u0085\v"]]),
    ("data: a\n\ndata: never whole\n", [["message", "a"]]),
    ("data: a\n\ndata: never whole", [["message", "a"]]),
]


def test_events_are_parsed_as_specified_however_the_network_splits_them(open_page: Page) -> None:
    for body, events in PARSED:
        data = body.encode()
        for size in (1, 2, 3, len(data)):
            pieces = [data[begin : begin + size].hex() for begin in range(0, len(data), size)]
            assert (body, open_page.browser.execute_async_script(READ_EVENTS, pieces)) == (body, events)


@contextmanager
def buffering_proxy(rill: Rill, end_at: bytes | None = None, otherwise: int = 502) -> Iterator[str]:
    """Run a proxy that buffers a response completely, or up to `end_at`; if there is none, it responds with a page."""

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

        do_GET = do_HEAD = do_POST = relay

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


def test_the_page_reports_a_proxy_that_buffers(page: Page, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with buffering_proxy(service) as url:
        page.open(url)
        page.ask()
        page.wait_for_outcomes(COMPLETE)
        page.wait_for_texts("#buffering", BUFFERED)


def test_events_without_done_are_shown_as_truncated_even_after_a_clean_end(
    page: Page, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with buffering_proxy(service, end_at=b"event: done") as url:
        page.open(url)
        page.ask()
        page.wait_for_outcomes(TRUNCATED_BY + "The connection closed early.")
        assert page.texts(".answer") == [FIRST + SECOND]


@pytest.mark.parametrize("status", [200, 502])
def test_a_response_of_a_proxy_is_not_shown_as_an_answer(
    status: int, page: Page, start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill()
    with buffering_proxy(rill, otherwise=status) as url:
        page.open(url)
        rill.stop()
        page.expect_complaint("status of 502")
        page.ask()
        page.wait_for_outcomes(f"Rejected ({status}): The response does not come from Rill.")
