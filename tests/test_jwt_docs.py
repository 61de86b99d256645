"""The programs in docs/identity.md mint JWTs that the service accepts."""

import os
import re
import runpy
import socket
import subprocess
from pathlib import Path

import pytest
import requests
from asking import wait_until
from javascript import JS, find_node
from server import ROOT

from rill.admission.jwt import Jwts
from rill.quota import parse_quotas
from rill.settings import read_settings

PAGE = (ROOT / "docs" / "identity.md").read_text("utf-8")
SECRET = "0123456789abcdef0123456789abcdef"


def block(language: str, contains: str) -> str:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (only,) = [text for text in found if contains in text]
    return only


def assert_accepted(token: str) -> None:
    client = Jwts(SECRET, None, None, None).client_of(token)
    assert (client.name, client.max_tokens) == ("jwt:alice", 2000)


def test_the_flask_backend_mints_a_valid_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RILL_JWT_SECRET", SECRET)
    monkeypatch.setenv("SESSION_SECRET", "any")
    (tmp_path / "backend.py").write_text(block("python", "flask.Flask"))
    with runpy.run_path(str(tmp_path / "backend.py"))["app"].test_client() as browser:
        with browser.session_transaction() as session:
            session["user"] = "alice"
        assert_accepted(browser.post("/rill-token").text)


def test_the_node_backend_mints_a_valid_token(tmp_path: Path) -> None:
    node = find_node()
    if isinstance(node, str):
        pytest.skip(node)
    node.install_clients()
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    (tmp_path / "session.js").write_text("export const userOf = () => 'alice'\n")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "backend.js").write_text(block("js", "SignJWT"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "RILL_JWT_SECRET": SECRET, "PORT": str(port)}
    with subprocess.Popen([node.node, "backend.js"], cwd=tmp_path, env=env) as backend:
        try:
            tokens: list[str] = []

            def answers() -> bool:
                try:
                    tokens.append(requests.get(f"http://127.0.0.1:{port}", timeout=5).text)
                except requests.ConnectionError:
                    return False
                return True

            wait_until(answers, "the backend does not start")
            assert_accepted(tokens[0])
        finally:
            backend.kill()


def test_the_settings_on_the_page_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    exports: list[tuple[str, str]] = re.findall(r"^export (RILL_\w+)='?([^'\n]*)'?$", PAGE, re.MULTILINE)
    assert len(exports) >= 4
    for name, value in exports:
        monkeypatch.setenv(name, value.replace("$(openssl rand -hex 32)", SECRET))
    settings = read_settings()
    assert parse_quotas(settings.token_budget or "")
    assert settings.api_keys["alice"].budget == parse_quotas("1000000/day")
    monkeypatch.delenv("RILL_JWT_SECRET")
    rows = re.findall(r"^\| [\w ]+ \| `(https://[^`]+)` \| `(https://[^`]+)` \| the ", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for url, issuer in rows:
        monkeypatch.setenv("RILL_JWKS_URL", url)
        monkeypatch.setenv("RILL_JWT_ISSUER", issuer)
        monkeypatch.setenv("RILL_JWT_AUDIENCE", "any")
        assert read_settings().accepts_jwts
