"""`GET /`: the page for browsers, help for curl, an answer to `q`; compressed request bodies are rejected by name."""

import pytest
import upstream as wire
from server import Rill
from upstream import Upstream

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
BODIES = ["/stream", "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"]


def get(service: Rill, path: str, headers: dict[str, str]) -> tuple[int | None, dict[str, str], str]:
    with service.ask("GET", path, {"Connection": "close", **headers}) as asked:
        return asked.status, asked.headers, asked.read_rest().decode()


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "", "application/json"])
def test_a_client_that_does_not_prefer_html_gets_help_as_text(service: Rill, accept: str) -> None:
    host = {"Host": f"127.0.0.1:{service.port}"}
    status, headers, text = get(service, "/", {**host, "Accept": accept} if accept else host)
    assert (status, headers["content-type"], headers["vary"]) == (200, "text/plain; charset=utf-8", "Accept")
    assert f"curl -N '{service.url}/?q=hello'" in text
    assert len([line for line in text.splitlines() if line]) <= 10


@pytest.mark.parametrize("accept", [CHROMIUM, "text/html"])
def test_a_browser_gets_the_page(service: Rill, accept: str) -> None:
    status, headers, text = get(service, "/", {"Accept": accept})
    assert (status, headers["vary"]) == (200, "Accept")
    assert headers["content-type"].startswith("text/html")
    assert "<!doctype html>" in text


def test_q_is_answered_as_text_or_as_events(service: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("A rill", " is small."))
    for accept in ("*/*", CHROMIUM):
        assert get(service, "/?q=hi", {"Accept": accept})[2] == "A rill is small."
    assert "data: A rill" in get(service, "/?q=hi", {"Accept": "text/event-stream"})[2]
    assert get(service, "/?q=", {})[0] == 400


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("encoding", ["gzip", "identity, br", "Zstd"])
def test_a_compressed_body_is_rejected_by_name(service: Rill, upstream: Upstream, path: str, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding, "Connection": "close"}
    with service.ask("POST", path, headers, b'{"q": "hi"}') as asked:
        assert (asked.status, asked.headers["accept-encoding"]) == (415, "identity")
        assert "Content-Encoding" in asked.read_rest().decode()
    assert upstream.requests == []


def test_a_body_that_is_declared_as_not_encoded_is_read(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    with service.ask("POST", "/stream", {"Content-Type": "text/plain", "Content-Encoding": "Identity"}, b"hi") as asked:
        assert (asked.status, asked.read_rest()) == (200, b"ok")
