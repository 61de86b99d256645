"""Agents of the command line, unmodified, on default settings, with pinned versions: Claude Code, Codex, aider, gptme.

Each runs in a home of its own, which contains what README prints, and completes a loop with one tool. They belong to
the soak: Claude Code and Codex take 600 MB. Open WebUI takes 7 GB: `tests/clients/cli/open_webui.sh` runs it by hand.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import upstream as wire
from javascript import find_node
from server import StartRill
from upstream import Answer, Step, Upstream

CLI = Path(__file__).parent / "cli"
SECONDS = 300
NOTES, ANSWER = "The rill is 3 m long.", "It is 3 m long."
CODEX_CONFIG = """\
model = "claude-sonnet-5-5"
model_provider = "rill"
web_search = "disabled"
[model_providers.rill]
name = "Rill"
base_url = "URL/v1"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
"""
LISTING = "notes.txt\n```\nThe rill is 4 m long.\n```\n"
# Parts of the names of variables that an agent would read.
FOREIGN = ("ANTHROPIC", "CLAUDE", "OPENAI", "CODEX", "PROXY")
# What each agent shows if Rill does not accept its key.
WRONG_KEY = {"claude_code": "/login", "codex": "key", "aider": "key", "gptme": "key"}
Ran = subprocess.CompletedProcess[str]
Agent = Callable[..., Ran]
pytestmark = [pytest.mark.soak, pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with the notes that the agent reads, which is its home and where it works."""
    (tmp_path / "notes.txt").write_text(NOTES)
    return tmp_path


@pytest.fixture(scope="session")
def node() -> str:
    """Return Node, after the installation of the agents' packages."""
    found = find_node()
    if isinstance(found, str):
        pytest.skip(found)
    found.install_clients(CLI, SECONDS)
    return found.node


@pytest.fixture
def claude_code(node: str, home: Path) -> Agent:
    script = str(CLI / "node_modules" / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs")

    def ask(url: str, key: str = "right") -> Ran:
        return run(home, [node, script, "-p", "Read notes.txt."], ANTHROPIC_BASE_URL=url, ANTHROPIC_AUTH_TOKEN=key)

    return ask


@pytest.fixture
def codex(node: str, home: Path) -> Agent:
    script = str(CLI / "node_modules" / "@openai" / "codex" / "bin" / "codex.js")
    (home / ".codex").mkdir()

    def ask(url: str, key: str = "right") -> Ran:
        (home / ".codex" / "config.toml").write_text(CODEX_CONFIG.replace("URL", url))
        command = [node, script, "exec", "--skip-git-repo-check", "Read notes.txt."]
        return run(home, command, OPENAI_API_KEY=key)

    return ask


@pytest.fixture
def aider(home: Path) -> Agent:
    def ask(url: str, key: str = "right") -> Ran:
        options = ["--openai-api-base", f"{url}/v1", "--openai-api-key", key, "--model", "openai/claude-sonnet-5-5"]
        quiet = [
            "--yes-always",
            "--no-git",
            "--no-check-update",
            "--message",
            "The rill has grown by 1 m.",
            "notes.txt",
        ]
        return run(home, ["aider", *options, *quiet], uv("aider-chat==0.86.2"))

    return ask


@pytest.fixture
def gptme(home: Path) -> Agent:
    def ask(url: str, key: str = "right") -> Ran:
        options = [
            "--non-interactive",
            "--model",
            "local/claude-sonnet-5-5",
            "--tools",
            "read",
            "--tool-format",
            "tool",
        ]
        command = ["gptme", *options, "Read the notes."]
        return run(home, command, uv("gptme==0.35.1"), OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY=key)

    return ask


def uv(package: str) -> list[str]:
    """Return the command that runs a program of a package in an environment of its own."""
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        pytest.skip("needs uv")
    return [found, "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable, "--with", package]


def run(home: Path, program: list[str], installed: list[str] | None = None, **env: str) -> Ran:
    """Run a program in a home; `installed` begins the command that makes it available, with this process's home."""
    foreign = [name for name in os.environ if any(part in name.upper() for part in FOREIGN)]
    unset = [option for name in foreign for option in ("-u", name)]
    named = [f"{name}={value}" for name, value in {"HOME": str(home), "TERM": "dumb", **env}.items()]
    command = [*(installed or []), "env", *unset, *named, *program]
    return subprocess.run(
        command, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def play(plan: Callable[[dict[str, Any]], tuple[str, Any]]) -> Step:
    """Return the answer to each request that a plan makes of it: a text, or the name and the input of a call."""

    def answer(open_answer: Answer) -> None:
        name, content = plan(open_answer.request.json)
        if name:
            given = wire.delta(0, "input_json_delta", partial_json=json.dumps(content))
            begun = wire.start() + wire.block_start(0, "tool_use", id="toolu_1", name=name) + given
        else:
            begun = wire.opening() + wire.text(content)
        end = wire.block_stop() + wire.stop("tool_use" if name else "end_turn")
        for step in (wire.head(), wire.send(begun + end), wire.end()):
            step(open_answer)

    return answer


def results_of(request: dict[str, Any]) -> str:
    """Return the results of the calls in a request."""
    contents = [message["content"] for message in request["messages"] if isinstance(message["content"], list)]
    return json.dumps([block for content in contents for block in content if block["type"] == "tool_result"])


def assert_loop(ran: Ran, upstream: Upstream) -> None:
    """Assert that the model got the notes as a result, and that the agent has shown its answer."""
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ANSWER in ran.stdout
    assert any(NOTES in results_of(request.json) for request in upstream.requests)


def test_claude_code_completes_a_loop(
    claude_code: Agent, home: Path, start_rill: StartRill, upstream: Upstream
) -> None:
    def plan(request: dict[str, Any]) -> tuple[str, Any]:
        if "tools" not in request or not request["tools"]:
            return "", '{"title": "Notes"}'
        return ("", ANSWER) if "toolu_1" in results_of(request) else ("Read", {"file_path": str(home / "notes.txt")})

    upstream.always(play(plan))
    rill = start_rill(RILL_ALLOWED_MODELS="*", RILL_API_KEYS="alice=right")
    assert_loop(claude_code(rill.url), upstream)
    assert any(each["role"] == "system" for request in upstream.requests for each in request.json["messages"])
    assert not any("context-1m" in request.headers["anthropic-beta"] for request in upstream.requests)


def test_codex_completes_a_loop(codex: Agent, start_rill: StartRill, upstream: Upstream) -> None:
    call = ("exec_command", {"cmd": "cat notes.txt"})
    upstream.always(play(lambda request: ("", ANSWER) if "toolu_1" in results_of(request) else call))
    rill = start_rill(RILL_API_KEYS="alice=right")
    assert_loop(codex(rill.url), upstream)
    names = [tool["name"] for tool in upstream.requests[0].json["tools"]]
    assert "exec_command" in names
    assert any("__" in name for name in names)  # a function of a namespace


def test_aider_edits_a_file(aider: Agent, home: Path, start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(play(lambda request: ("", LISTING)))
    rill = start_rill(RILL_API_KEYS="alice=right")
    ran = aider(rill.url)
    assert (home / "notes.txt").read_text() == "The rill is 4 m long.\n", ran.stdout + ran.stderr


def test_gptme_completes_a_loop(gptme: Agent, start_rill: StartRill, upstream: Upstream) -> None:
    def plan(request: dict[str, Any]) -> tuple[str, Any]:
        if "toolu_1" not in results_of(request):
            return "read", {"path": "notes.txt"}
        return ("complete", {}) if ANSWER in json.dumps(request["messages"]) else ("", ANSWER)

    upstream.always(play(plan))
    rill = start_rill(RILL_API_KEYS="alice=right")
    assert_loop(gptme(rill.url), upstream)


@pytest.mark.parametrize("agent", ["claude_code", "codex", "aider", "gptme"])
def test_an_agent_completes_a_loop_with_the_offline_model(
    agent: str, request: pytest.FixtureRequest, start_rill: StartRill
) -> None:
    rill = start_rill(RILL_OFFLINE="1")
    ran = request.getfixturevalue(agent)(rill.url)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "I am the offline model" in ran.stdout or agent == "gptme"
    lines = [json.loads(line) for line in rill.output().splitlines() if line.startswith('{"event": "answer"')]
    # gptme disconnects once it has received a call that ends its session.
    expected = {"completed", "client_disconnected"} if agent == "gptme" else {"completed"}
    assert {line["outcome"] for line in lines} <= expected
    assert agent == "aider" or "tool_use" in {line["stop_reason"] for line in lines}


@pytest.mark.parametrize("agent", WRONG_KEY)
def test_a_wrong_key_is_the_agents_own_error(
    agent: str, request: pytest.FixtureRequest, start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill(RILL_API_KEYS="alice=right", RILL_ALLOWED_MODELS="*")
    ran = request.getfixturevalue(agent)(rill.url, "wrong")
    shown = " ".join((ran.stdout + ran.stderr).split())
    assert WRONG_KEY[agent] in shown, shown
    assert agent == "aider" or ran.returncode != 0
    assert upstream.requests == []


def test_claude_code_reports_that_it_is_over_the_rate_limit(
    claude_code: Agent, start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill(RILL_API_KEYS="alice=right", RILL_ALLOWED_MODELS="*", RILL_RATE_LIMIT="1/day")
    upstream.script(*wire.answer("One"))
    with rill.ask("GET", "/stream?q=hi", {"Authorization": "Bearer right"}) as asked:
        asked.read_rest()
    ran = claude_code(rill.url)
    assert ran.returncode == 1
    assert "(429)" in ran.stdout
    assert "At most 1 per day for one client." in ran.stdout
    assert len(upstream.requests) == 1
