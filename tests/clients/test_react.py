"""A React page in Chromium with the AI SDK's hooks, unmodified: useChat, useCompletion and useObject."""

import json
import subprocess
import uuid
from typing import Any

import pytest
import upstream as wire
from gated import FIRST, QUESTION, SECOND, gated_answer, script_rate_limit, truncated_answer
from javascript import JS, Clients
from selenium import webdriver
from server import Rill, StartRill
from test_chromium import Page
from upstream import Step, Upstream

TEXT, STATUS = "document.getElementById('shown').textContent", "document.getElementById('status').textContent"
ERROR = "document.getElementById('error').textContent"
HOOKS: dict[str, tuple[str, dict[str, str]]] = {
    "useChat": ("Chat", {}),
    "useCompletion": ("Completion", {}),
    "useCompletion with text": ("Completion", {"api": "/stream", "streamProtocol": "text"}),
}
OBJECT = {**HOOKS, "useObject": ("StructuredObject", {})}
CHAT = f"user: {QUESTION}assistant: "
WEATHER: dict[str, Any] = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ESBUILD = ["node_modules/esbuild/bin/esbuild", "hooks.jsx", "--bundle", "--minify", "--jsx=automatic"]


@pytest.fixture(scope="session")
def bundle(node: Clients) -> str:
    """Return the script of the page, as a bundler makes it."""
    command = [node.node.node, *ESBUILD, '--define:process.env.NODE_ENV="production"']
    return subprocess.run(command, cwd=JS, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_RESUME_SECONDS="60")


@pytest.fixture
def page(browser: webdriver.Chrome, rill: Rill, bundle: str) -> "ReactPage":
    return ReactPage(browser, rill, bundle)


class ReactPage(Page):
    """A page of the server's origin with the hooks."""

    def __init__(self, browser: webdriver.Chrome, rill: Rill, bundle: str) -> None:
        self._rill, self._bundle = rill, bundle
        self._browser = browser
        if not browser.current_url.startswith(rill.url) or not self.value("!!window.mount"):
            self.load()

    def load(self) -> None:
        """Load the page, as a reload does."""
        super().__init__(self._browser, self._rill)
        self.run(self._bundle)

    def mount(self, hook: str, **options: Any) -> None:
        self._browser.execute_script("mount(...arguments)", hook, {"question": QUESTION, **options})

    def click(self, button: str) -> None:
        self.run(f"document.getElementById('{button}').click()")

    def ask(self, hook: str, **options: Any) -> str:
        """Send the question through a hook, and return what the page shows before the answer."""
        name, defaults = OBJECT[hook]
        self.mount(name, **defaults, **options)
        self.click("send")
        return CHAT if name == "Chat" else ""


def calls(name: str, given: dict[str, Any]) -> list[Step]:
    argument = wire.delta(0, "input_json_delta", partial_json=json.dumps(given))
    call = wire.start() + wire.block_start(0, "tool_use", id="toolu_1", name=name) + argument
    return [wire.head(), wire.send(call + wire.block_stop() + wire.stop("tool_use")), wire.end()]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_shows_the_first_text_before_the_upstream_sends_the_second(
    hook: str, page: ReactPage, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    before = page.ask(hook)
    page.wait_for(TEXT, before + FIRST)
    assert page.value(STATUS) == "streaming"
    upstream.open("second")
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", [before + FIRST + SECOND, "ready", ""])
    assert len(upstream.requests) == 1


def test_use_object_shows_a_part_of_the_object_before_the_rest_is_sent(page: ReactPage, upstream: Upstream) -> None:
    begun = wire.send(wire.opening(), wire.text('{"city": "Bern", "sights": ["Aare",'))
    rest = wire.send(wire.text(' "the lake"]}') + wire.block_stop() + wire.stop("end_turn"))
    upstream.script(wire.head(), begun, wire.gate("rest"), rest, wire.end())
    page.ask("useObject")
    page.wait_for(TEXT, "Bern: Aare")
    upstream.open("rest")
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", ["Bern: Aare, the lake", "ready", ""])
    (request,) = upstream.requests
    assert request.json["output_config"]["format"]["schema"]["required"] == ["city", "sights"]


def test_use_chat_renders_a_call_and_sends_its_result(page: ReactPage, upstream: Upstream) -> None:
    upstream.script(*calls("weather", {"city": "Bern"}))
    upstream.script(*gated_answer())
    page.ask("useChat", body={"tools": [WEATHER]})
    shown = CHAT + "[weather of Bern: sunny]"
    page.wait_for(TEXT, shown + FIRST)
    upstream.open("second")
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", [shown + FIRST + SECOND, "ready", ""])
    _, continued = upstream.requests
    question, call, result = continued.json["messages"]
    called = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
    assert (question["content"], call["content"]) == (QUESTION, [called])
    assert result["content"] == [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}]


@pytest.mark.parametrize("hook", OBJECT)
def test_stop_ends_the_upstream_request_and_keeps_the_text(hook: str, page: ReactPage, upstream: Upstream) -> None:
    text, shown = ('{"city": "Bern"', "Bern: ") if hook == "useObject" else (FIRST, FIRST)
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(text)), wire.silence())
    before = page.ask(hook)
    page.wait_for(TEXT, before + shown)
    page.click("stop")
    upstream.wait_for_disconnect()
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", [before + shown, "ready", ""])


@pytest.mark.parametrize("hook", OBJECT)
def test_a_rejection_is_the_hooks_own_error(hook: str, page: ReactPage, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    page.ask(hook)
    page.wait_for(f'{ERROR}.includes("The model\'s rate limit is reached.")', True)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_a_truncated_answer_is_the_hooks_own_error_after_the_text(
    hook: str, page: ReactPage, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer())
    before = page.ask(hook)
    page.wait_for(TEXT, before + FIRST)
    upstream.open("truncate")
    expected = "network error" if hook == "useCompletion with text" else "model's API"
    page.wait_for(f'{ERROR}.includes("{expected}")', True)
    assert page.value(TEXT) == before + FIRST
    assert len(upstream.requests) == 1


def test_a_reloaded_page_resumes_its_chat_and_is_billed_once(page: ReactPage, upstream: Upstream) -> None:
    upstream.script(*gated_answer())
    chat = {"id": str(uuid.uuid4()), "body": {"resume": 60}}
    question = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": QUESTION}]}
    page.ask("useChat", **chat)
    page.wait_for(TEXT, CHAT + FIRST)
    page.load()
    page.mount("Chat", **chat, messages=[question], resume=True)
    page.wait_for(TEXT, CHAT + FIRST)
    upstream.open("second")
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", [CHAT + FIRST + SECOND, "ready", ""])
    page.mount("Chat", **chat, messages=[question], resume=True)
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", [f"user: {QUESTION}", "ready", ""])  # All of it was received: 204.
    assert len(upstream.requests) == 1


def test_stopping_and_deleting_a_chat_that_can_be_resumed_ends_the_upstream_request(
    page: ReactPage, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    chat = str(uuid.uuid4())
    page.ask("useChat", id=chat, body={"resume": 60})
    page.wait_for(TEXT, CHAT + FIRST)
    page.click("stop")
    page.run(f"fetch('/api/chat/{chat}/stream', {{ method: 'DELETE' }})")
    upstream.wait_for_disconnect()
    page.wait_for(f"[{TEXT}, {STATUS}, {ERROR}]", [CHAT + FIRST, "ready", ""])
