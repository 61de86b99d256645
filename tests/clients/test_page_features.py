"""The features of the web page: retry, edit, kept conversations, options, curl, Chinese, a form without scripts."""

import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
import upstream as wire
from gated import FIRST, QUESTION, SECOND, script_rate_limit, truncated_answer
from rill_page import COMPLETE, REJECTED, STOPPED, TRUNCATED, Page, pasted, sent_messages
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server import ROOT, Rill, StartRill
from upstream import Upstream

PAGE = ROOT / "rill" / "page"
FENCED = "Run **this**:\n\n```sh\nls -l\n```\n"


@pytest.fixture
def emulate(page: Page) -> Iterator[Callable[..., None]]:
    """Change what the browser reports, until the end of the test."""
    used: list[tuple[str, dict[str, object]]] = []

    def change(command: str, back: dict[str, object], **values: object) -> None:
        used.append((command, back))
        page.browser.execute_cdp_cmd(f"Emulation.{command}", values)

    yield change
    for command, back in used:
        page.browser.execute_cdp_cmd(f"Emulation.{command}", back)


def title_of(page: Page) -> list[str]:
    """Return the titles in the list of conversations, which this opens and closes."""
    page.click("#show-history")
    titles = page.texts("#history .load span")
    page.click("#close-history")
    return titles


def test_retry_replaces_the_last_answer_and_edit_replaces_a_prompt_and_what_follows(
    open_page: Page, upstream: Upstream
) -> None:
    script_rate_limit(upstream)
    open_page.expect_complaint("status of 429")
    open_page.ask("one")
    open_page.wait_for_outcomes(REJECTED)
    upstream.script(*truncated_answer())
    upstream.open("truncate")
    open_page.click(".retry")
    open_page.wait_for_outcomes(TRUNCATED)
    upstream.script(*wire.answer("first"))
    open_page.click(".retry")
    open_page.wait_for_outcomes(COMPLETE)
    assert sent_messages(upstream) == ["one"]
    upstream.script(*wire.answer("second"))
    open_page.find("#prompt").clear()
    open_page.find("#prompt").send_keys("two", Keys.ENTER)
    open_page.wait_for_outcomes(COMPLETE, COMPLETE)
    assert [each.is_displayed() for each in open_page.browser.find_elements(By.CSS_SELECTOR, ".retry")] == [False, True]
    open_page.click(".edit")
    assert (open_page.find("#prompt").get_property("value"), open_page.shows("#editing")) == ("one", True)
    open_page.press(Keys.ESCAPE)
    assert (open_page.find("#prompt").get_property("value"), open_page.shows("#editing")) == ("", False)
    upstream.script(*wire.answer("third"))
    open_page.click(".edit")
    open_page.press("!", Keys.ENTER)
    open_page.wait_for_answers("third")
    open_page.wait_for_outcomes(COMPLETE)
    assert open_page.texts(".prompt") == sent_messages(upstream) == ["one!"]


def test_a_reload_keeps_the_conversation_its_outcomes_and_its_options(open_page: Page, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FENCED))
    open_page.click("#options summary")
    open_page.find("#system").send_keys("Be brief.")
    open_page.find("#max-tokens").send_keys("77")
    open_page.find("#prompt").send_keys("one", Keys.ENTER)
    open_page.wait_for_outcomes(COMPLETE)
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(SECOND)), wire.silence())
    open_page.ask("two")
    open_page.wait_for(lambda: len(open_page.texts(".answer p")), 2)
    statistics = open_page.texts(".statistics")
    open_page.browser.refresh()
    interrupted = "Interrupted: the page was closed."
    open_page.wait_for_texts(".outcome", COMPLETE, interrupted)
    assert open_page.texts(".statistics") == [statistics[0], ""]
    assert open_page.texts(".answer code") == ["ls -l"]
    upstream.script(*wire.answer("three"))
    open_page.ask("three")
    open_page.wait_for_outcomes(COMPLETE, interrupted, COMPLETE)
    assert sent_messages(upstream) == ["one", FENCED, "two", SECOND, "three"]
    request = upstream.requests[-1].json
    assert (request["system"], request["max_tokens"]) == ("Be brief.", 77)


def test_conversations_are_listed_opened_and_deleted(open_page: Page, upstream: Upstream) -> None:
    upstream.always(*wire.answer(FIRST))
    for prompt in ("<b>one</b>", "two"):
        open_page.click("#new")
        open_page.find("#prompt").send_keys(prompt, Keys.ENTER)
        open_page.wait_for_outcomes(COMPLETE)
    assert title_of(open_page) == ["two", "<b>one</b>"]
    open_page.click("#show-history")
    open_page.click("#history li:last-child .load")
    open_page.wait_for_texts(".prompt", "<b>one</b>")
    assert not open_page.shows("#history")
    open_page.find("#prompt").send_keys("three", Keys.ENTER)
    open_page.wait_for_outcomes(COMPLETE, COMPLETE)
    assert sent_messages(upstream) == ["<b>one</b>", FIRST, "three"]
    open_page.click("#show-history")
    open_page.click("#history li:first-child button:last-child")  # the one that is shown
    assert open_page.texts(".prompt") == []
    assert open_page.texts("#history .load span") == ["two"]
    open_page.click("#delete-all")
    assert open_page.texts("#history .load span") == []
    assert "one" not in open_page.run("return JSON.stringify(localStorage)")
    open_page.press(Keys.ESCAPE)
    assert not open_page.shows("#history")


def test_text_code_and_the_curl_command_are_copied(open_page: Page, upstream: Upstream) -> None:
    open_page.browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardSanitizedWrite"]})
    upstream.always(*wire.answer(FENCED))
    open_page.ask("It's $HOME `x`")
    open_page.wait_for_outcomes(COMPLETE)
    for button, text in ((".copy-text", "Run this:\n\nls -l"), (".copy-markdown", FENCED), (".copy-code", "ls -l")):
        open_page.click(button)
        open_page.wait_for_texts(button, "Copied.")
        assert pasted(open_page) == text
    open_page.click(".curl summary")
    open_page.wait_for(lambda: bool(open_page.texts(".command")[0]), True)
    (command,) = open_page.texts(".command")
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)
    assert ran.stdout == FENCED
    assert upstream.requests[-1].json == {**upstream.requests[0].json}


def test_examples_the_badge_and_the_links_of_the_offline_model(page: Page, share_rill: StartRill) -> None:
    page.open(share_rill(RILL_OFFLINE="1", ANTHROPIC_API_KEY=None, ANTHROPIC_BASE_URL=None).url)
    page.wait_for(lambda: page.shows("#offline"), True)
    assert page.run("return [...document.links].map((link) => link.getAttribute('href'))") == [
        "openapi.json",
        "https://docs.anthropic.com/en/api/messages",
    ]
    examples = page.browser.find_elements(By.CSS_SELECTOR, "#examples button")
    assert len(examples) == 3
    example = examples[1].text
    examples[1].click()
    page.wait_for_texts(".prompt", example)
    page.click("#stop")
    page.wait_for_outcomes(STOPPED)
    assert not page.shows("#welcome")


def test_a_real_model_has_no_badge(open_page: Page) -> None:
    open_page.wait_for_texts("#model-name", "claude-sonnet-5-5")
    assert not open_page.shows("#offline")


def test_the_page_is_chinese_in_a_chinese_browser(
    page: Page, service: Rill, upstream: Upstream, emulate: Callable[..., None]
) -> None:
    agent = page.run("return navigator.userAgent")
    emulate("setUserAgentOverride", {"userAgent": agent}, userAgent=agent, acceptLanguage="zh-CN")
    page.open(service.url)
    upstream.script(*wire.answer(FIRST))
    page.ask()
    page.wait_for_outcomes("完成。")
    assert page.run("return document.documentElement.lang") == "zh-CN"
    assert page.find("#prompt").get_attribute("placeholder") == "提示词"
    shown = page.run("return document.body.innerText").replace(FIRST, "").replace(QUESTION, "")
    assert set(re.findall(r"[A-Za-z]{2,}", shown)) <= {
        "Rill",
        "Markdown",
        "curl",
        "Enter",
        "Shift",
        "Esc",
        "token",
        "claude",
        "sonnet",
    }


def test_every_text_of_the_page_has_a_translation() -> None:
    scripts = "".join(file.read_text("utf-8") for file in PAGE.glob("*.js") if file.name != "strings.js")
    html = (PAGE / "index.html").read_text("utf-8")
    used = {text for text in re.findall(r'\bt\(\s*"([^"]+)"', scripts) if text}
    used |= set(re.findall(r'"((?:Complete|Interrupted|The server|The connection)[^"]*\.)"', scripts))
    used |= set(re.findall(r">([^<]*[^<\s][^<]*)</", html))
    used |= set(re.findall(r'(?:aria-label|placeholder)="([^"]+)"', html))
    known = set(re.findall(r'^  "([^"]+)": "[^"]+",$', (PAGE / "strings.js").read_text("utf-8"), re.MULTILINE))
    assert used - known == {"Rill", "↓", "curl"}
    assert known - used == set()


def test_a_touch_keyboard_starts_a_new_line_with_enter(
    page: Page, service: Rill, upstream: Upstream, emulate: Callable[..., None]
) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 760, "deviceScaleFactor": 1, "mobile": True}
    )
    emulate("setTouchEmulationEnabled", {"enabled": False}, enabled=True, maxTouchPoints=5)
    page.open(service.url)
    upstream.script(*wire.answer(FIRST))
    page.find("#prompt").send_keys("one", Keys.ENTER, "two")
    assert (page.texts("article"), page.shows("#shortcuts")) == ([], False)
    page.click("#send")
    page.wait_for_outcomes(COMPLETE)
    assert sent_messages(upstream) == ["one\ntwo"]
    assert page.focused() != "prompt"  # the keyboard would stay in front of the answer


def test_without_scripts_a_form_shows_the_text(
    page: Page, service: Rill, upstream: Upstream, emulate: Callable[..., None]
) -> None:
    emulate("setScriptExecutionDisabled", {"value": False}, value=True)
    page.open(service.url)
    for selector in (".script", "#stop", "#offline"):
        assert not page.shows(selector)
    upstream.script(*wire.answer(FIRST, SECOND))
    page.find("#prompt").send_keys(QUESTION)
    # The driver waits for the end of a navigation, so that no gate can show the text before its end.
    page.click("#send")
    page.wait_for(lambda: page.find("body").text, FIRST + SECOND)
    assert page.browser.current_url == f"{service.url}/stream?q=What+is+a+rill%3F"
