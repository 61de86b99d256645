"""Clients over connections that break: each receives exactly the bytes of one answer, which is billed once."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import httpx2
import pytest
import requests
import upstream as wire
from asking import wait_until
from cutting_proxy import CuttingProxy
from gated import QUESTION
from redis_server import RedisServer
from selenium import webdriver
from server import ROOT, Rill, StartRill
from test_chromium import LISTEN, Page
from upstream import Upstream

RANDOM = random.Random(16)
# 1 to 4 bytes for each character.
PIECES = ["".join(RANDOM.choices("abcäß世界😀\n ", k=RANDOM.randint(1, 30))) for _ in range(150)]
TEXT = "".join(PIECES)
CURL = "until curl -q --noproxy '*' -fsS -C - -o answer.txt --max-time 20 \"$URL\"; do sleep 0.05; done"
WGET = 'until wget --no-proxy -q -c -t 1 -O answer.txt "$URL"; do sleep 0.05; done'


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_RESUME_SECONDS="60", RILL_RATE_LIMIT="10000/minute")


@pytest.fixture(autouse=True)
def answers(upstream: Upstream) -> None:
    """Send one long answer in pieces, held once so that the first connection always breaks before its end."""
    first, second = PIECES[:75], PIECES[75:]
    texts = [*(wire.send(wire.text(piece)) for piece in first), wire.gate("truncated")]
    texts += [wire.send(wire.text(piece)) for piece in second]
    upstream.script(
        wire.head(), wire.send(wire.opening()), *texts, wire.send(wire.block_stop() + wire.stop()), wire.end()
    )


def path() -> str:
    """Return a request that no other test sends."""
    return "/stream?" + urlencode({"q": os.environ["PYTEST_CURRENT_TEST"], "resume": "20"})


def proxy(rill: Rill, upstream: Upstream, *cuts: int) -> CuttingProxy:
    """Return a proxy that opens the gate with its first cut behind some text."""
    return CuttingProxy(
        rill.port, cuts or [0, 1, 700, 3, 900, 20], lambda size: size > 20 and upstream.open("truncated")
    )


@pytest.mark.parametrize(("program", "loop"), [("curl", CURL), ("wget", WGET)], ids=["curl", "wget"])
def test_a_shell_loop_saves_exactly_one_answer(
    rill: Rill, upstream: Upstream, tmp_path: Path, program: str, loop: str
) -> None:
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    with proxy(rill, upstream) as broken:
        env = {"PATH": os.environ["PATH"], "URL": broken.url + path(), "HOME": str(tmp_path)}
        subprocess.run(["sh", "-c", loop], cwd=tmp_path, env=env, timeout=60, check=True)
    assert (tmp_path / "answer.txt").read_text("utf-8") == TEXT
    assert len(upstream.requests) == 1


def test_a_shell_loop_continues_at_any_worker(start_rill: StartRill, upstream: Upstream, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    with RedisServer(tmp_path) as redis:
        rill = start_rill("--workers", "2", RILL_RESUME_SECONDS="60", REDIS_URL=redis.url)
        rill.wait_for_workers(2)
        with proxy(rill, upstream, *range(100, 2000, 300)) as broken:
            env = {"PATH": os.environ["PATH"], "URL": broken.url + path(), "HOME": str(tmp_path)}
            subprocess.run(["sh", "-c", CURL], cwd=tmp_path, env=env, timeout=60, check=True)
    assert (tmp_path / "answer.txt").read_text("utf-8") == TEXT
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("program", "loop"), [("curl", CURL), ("wget", WGET)], ids=["curl", "wget"])
def test_a_loop_gets_a_complete_answer_of_which_it_received_nothing(
    rill: Rill, upstream: Upstream, tmp_path: Path, program: str, loop: str
) -> None:
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    upstream.open("truncated")
    with CuttingProxy(rill.port, [0, 0, 700, 0], reads_all=True) as broken:
        env = {"PATH": os.environ["PATH"], "URL": broken.url + path(), "HOME": str(tmp_path)}
        subprocess.run(["sh", "-c", loop], cwd=tmp_path, env=env, timeout=60, check=True)
    assert (tmp_path / "answer.txt").read_text("utf-8") == TEXT
    assert len(upstream.requests) == 1


def read_with_requests(url: str, headers: dict[str, str], received: bytearray) -> int:
    with requests.get(url, headers=headers, stream=True, timeout=20) as response:
        response.raise_for_status()
        for data in response.iter_content(None):
            received += data
        return response.status_code


def read_with_httpx(url: str, headers: dict[str, str], received: bytearray) -> int:
    with httpx2.stream("GET", url, headers=headers, timeout=20) as response:
        response.raise_for_status()
        for data in response.iter_raw():
            received.extend(data)
        return response.status_code


@pytest.mark.parametrize("read", [read_with_requests, read_with_httpx], ids=["requests", "httpx"])
def test_python_clients_continue_with_a_range(
    rill: Rill, upstream: Upstream, read: Callable[[str, dict[str, str], bytearray], int]
) -> None:
    received = bytearray()
    with proxy(rill, upstream) as broken:
        for _ in range(20):
            # They return no part of a chunk, so they may have received nothing of an answer that was sent completely.
            headers = {"Range": f"bytes={len(received)}-"} if received else {}
            try:
                read(broken.url + path(), headers, received)
                break
            except (requests.RequestException, httpx2.TransportError):
                time.sleep(0.05)
    assert received.decode() == TEXT
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("script", "program"), [("resume.mjs", "node"), ("resume.sh", "sh")])
def test_an_example_survives_disconnects(
    rill: Rill, upstream: Upstream, tmp_path: Path, script: str, program: str
) -> None:
    if not shutil.which("curl" if program == "sh" else program):
        pytest.skip(f"needs {program}")
    with proxy(rill, upstream, 300, 0) as broken:
        env = {"PATH": os.environ["PATH"], "ASK_URL": broken.url, "LANG": "C.UTF-8"}
        command = [program, str(ROOT / "examples" / script), QUESTION]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60, check=True)
    got = done.stdout if program == "node" else (tmp_path / "answer.txt").read_bytes()
    assert got.decode() == TEXT
    assert len(upstream.requests) == 1


def test_the_fetch_example_is_under_forty_lines() -> None:
    assert len((ROOT / "examples" / "resume.mjs").read_text("utf-8").splitlines()) < 40


SHORT = "aß世😀\nb"
CLIENTS = (
    "curl",
    "wget",
    "requests",
    "httpx",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("node", "fetch")),
)
# Chromium waits three seconds before each reconnection, and opens at most six connections.
SOURCES = 6
LISTEN_OFTEN = """
window.shown = [];
window.sources = [...Array(arguments[0]).keys()].map((n) => {
  const source = new EventSource(`/chat/stream?resume=600&message=${n}`);
  shown.push("");
  source.onmessage = (event) => { shown[n] += event.data };
  return source;
});
"""
# Appends what it receives to `window.shown`, until the response ends by itself.
FETCH = """
window.shown = ""; window.done = false;
(async () => {
  const bytes = [];
  for (let tries = 0; tries < 200; tries += 1) {
    try {
      const headers = bytes.length ? { Range: `bytes=${bytes.length}-` } : {};
      const response = await fetch(arguments[0], { headers, cache: "no-store" });
      if (!response.ok) { window.shown = `status ${response.status}`; break; }
      const reader = response.body?.getReader();
      for (let part; reader && (part = await reader.read()) && !part.done;) bytes.push(...part.value);
      window.shown = new TextDecoder().decode(new Uint8Array(bytes));
      break;
    } catch {}
  }
  window.done = true;
})();
"""


@pytest.mark.parametrize("client", CLIENTS)
def test_every_byte_can_be_the_last_before_a_disconnect(
    rill: Rill, upstream: Upstream, tmp_path: Path, request: pytest.FixtureRequest, client: str
) -> None:
    if client in ("curl", "wget", "node") and not shutil.which(client):
        pytest.skip(f"needs {client}")
    upstream.clear()
    upstream.script(*wire.answer(*SHORT))
    with CuttingProxy(rill.port, [1] * len(SHORT.encode()), reads_all=True) as broken:
        got = read_with(client, broken, tmp_path, request)
    assert got == SHORT
    assert len(upstream.requests) == 1


def read_with(client: str, broken: CuttingProxy, folder: Path, request: pytest.FixtureRequest) -> str:
    """Return what a client receives that continues after each disconnect."""
    url = broken.url + path()
    env = {"PATH": os.environ["PATH"], "URL": url, "HOME": str(folder), "ASK_URL": broken.url, "LANG": "C.UTF-8"}
    if client in ("curl", "wget"):
        loop = CURL if client == "curl" else WGET
        subprocess.run(["sh", "-c", loop], cwd=folder, env=env, timeout=100, check=True)
        return (folder / "answer.txt").read_text("utf-8")
    if client == "node":
        command = ["node", str(ROOT / "examples" / "resume.mjs"), QUESTION]
        return subprocess.run(command, env=env, capture_output=True, timeout=100, check=True).stdout.decode()
    if client in ("requests", "httpx"):
        received, read = bytearray(), read_with_requests if client == "requests" else read_with_httpx
        for _ in range(200):
            with suppress(requests.RequestException, httpx2.TransportError):
                read(url, {"Range": f"bytes={len(received)}-"} if received else {}, received)
                break
        return received.decode()
    page = Page(request.getfixturevalue("browser"), broken)
    page.run(FETCH, url)
    page.wait_for("window.done", True)
    return str(page.value("window.shown"))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_every_byte_of_an_event_stream_can_be_the_last_before_a_disconnect(
    browser: webdriver.Chrome, start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill(RILL_RESUME_SECONDS="600")
    upstream.clear()
    upstream.always(*wire.answer(*SHORT))
    with rill.ask("GET", "/chat/stream?message=size") as asked:
        # Each event has the id of its answer too.
        size = len(asked.read_rest()) + 22 * len(SHORT)
    with CuttingProxy(rill.port, range(size), reads_all=True) as broken:
        page = Page(browser, broken)
        page.run(LISTEN_OFTEN, SOURCES)
        wait_until(lambda: page.value("sources.every((each) => each.readyState === 2)"), "the end", 500)
        assert page.value("shown") == [SHORT + "[DONE]"] * SOURCES
    assert len(upstream.requests) == SOURCES + 1


def test_event_source_continues_by_itself(browser: webdriver.Chrome, rill: Rill, upstream: Upstream) -> None:
    with proxy(rill, upstream, 300) as broken:
        page = Page(browser, broken)
        page.run(LISTEN.replace("/chat/stream?", "/chat/stream?resume=20&"), QUESTION)
        page.wait_for("source.readyState", 2)
        assert page.value("shown") == TEXT + "[DONE]"
    assert len(upstream.requests) == 1
