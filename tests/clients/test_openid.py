"""A real OpenID provider: its tokens let a page of another origin ask."""

from collections.abc import Iterator
from typing import Any

import pytest
import upstream as wire
from asking import wait_until
from javascript import Clients
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait
from server import StartRill
from upstream import Upstream

SECONDS = 20

# A page that gets a token from its provider, and asks another origin with it.
ASK = """
const [tokens, rill] = arguments
window.shown = ''
window.ended = null
const token = async () => {
  const body = new URLSearchParams({ grant_type: 'client_credentials', resource: 'urn:rill' })
  const headers = { Authorization: 'Basic ' + btoa('page:the-secret-of-the-page') }
  const response = await fetch(tokens, { method: 'POST', headers, body })
  return (await response.json()).access_token
}
const ask = async () => {
  const headers = { Authorization: `Bearer ${await token()}` }
  const response = await fetch(rill + '/stream', { method: 'POST', headers, body: 'What is a rill?' })
  if (!response.ok) return `${response.status}: ${await response.text()}`
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) shown += value
  return 'whole'
}
ask().then((end) => { ended = end }, (error) => { ended = String(error) })
"""


@pytest.fixture(scope="module")
def provider(node: Clients) -> Iterator[dict[str, Any]]:
    # It runs as long as the tests, so not in the process of the clients.
    with Clients(node.node).run("openid_provider.mjs", "serve", "") as reports:
        yield next(reports)


def wait_for(browser: webdriver.Chrome, expression: str, expected: object) -> None:
    seen: list[object] = []

    def holds(_: object) -> bool:
        seen.append(browser.execute_script(f"return {expression}"))
        return seen[-1] == expected

    try:
        WebDriverWait(browser, SECONDS, poll_frequency=0.02).until(holds)
    finally:
        assert seen[-1:] == [expected]


def test_a_page_of_another_origin_asks_with_the_token_of_its_openid_provider(
    browser: webdriver.Chrome, provider: dict[str, Any], start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill(
        RILL_JWKS_URL=provider["jwks"],
        RILL_JWT_AUDIENCE="rill",
        RILL_JWT_ISSUER=provider["issuer"],
        RILL_CORS_ORIGINS=provider["issuer"],
    )
    upstream.script(
        wire.head(),
        wire.send(wire.opening(), wire.text("A small ")),
        wire.gate("second"),
        wire.send(wire.text("stream."), wire.block_stop(), wire.stop()),
        wire.end(),
    )
    browser.get(f"{provider['issuer']}/.well-known/openid-configuration")
    browser.execute_script(ASK, provider["tokens"], rill.url)
    wait_for(browser, "shown || ended", "A small ")
    upstream.open("second")
    wait_for(browser, "[shown, ended].join()", "A small stream.,whole")
    wait_until(lambda: '"client": "jwt:page"' in rill.output(), rill.output)


def test_a_token_for_another_audience_of_the_same_provider_is_rejected(
    browser: webdriver.Chrome, provider: dict[str, Any], start_rill: StartRill
) -> None:
    rill = start_rill(RILL_JWKS_URL=provider["jwks"], RILL_JWT_AUDIENCE="another", RILL_CORS_ORIGINS=provider["issuer"])
    browser.get(f"{provider['issuer']}/.well-known/openid-configuration")
    browser.execute_script(ASK, provider["tokens"], rill.url)
    wait_for(browser, "ended", "401: This JWT is for another audience.\n")
