"""The documentation matches the code: examples run as printed, and tables list everything that exists."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server import ROOT, Rill

from app import create_app
from rill.problems import KINDS
from rill.settings import Settings

READMES = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")}
README = READMES["README.md"]
DECISIONS = (ROOT / "docs" / "decisions.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
OTHER_ADDRESS = "127.0.0.1:9000"
START_SECONDS = 30


@pytest.fixture(scope="module")
def offline() -> Iterator[Rill]:
    with Rill({"RILL_OFFLINE": "1", "RILL_DEFAULT_MAX_TOKENS": "12", "RILL_RATE_LIMIT": "1000/minute"}) as running:
        yield running


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def lines_of(language: str) -> list[str]:
    return [line for block in blocks(language) for line in block.splitlines()]


def run(command: list[str], code: str, service: Rill) -> str:
    """Run an example against `service` instead of the printed address, and return its output."""
    assert ADDRESS in code
    ran = subprocess.run(
        command, input=code.replace(ADDRESS, service.url), capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# Examples


@pytest.mark.parametrize("line", sorted(set(lines_of("sh"))))
def test_a_curl_example_streams_an_answer(offline: Rill, line: str) -> None:
    printed = run(["bash", "-euo", "pipefail"], line.replace("curl", "curl --silent --fail", 1), offline)
    assert "Hello!" in printed
    assert ("data: [DONE]" in printed) == ("event-stream" in line)


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_example_streams_an_answer(offline: Rill, code: str) -> None:
    assert "offline model" in run([sys.executable, "-"], code, offline)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("code", blocks("js"))
def test_a_fetch_example_streams_an_answer(offline: Rill, code: str) -> None:
    printed = run(["node", "--input-type=module", "-"], code, offline)
    assert "offline model" in re.sub(r"\n(?=\S| )", "", printed)  # It prints a line for each part.


def test_the_readme_has_examples_in_each_language() -> None:
    assert len(lines_of("sh")) >= 3
    assert blocks("python")
    assert blocks("js")
    assert blocks("html")  # tests/deploy/test_browser.py runs it


# Commands


def commands(pattern: str) -> list[str]:
    """Return the printed commands that match."""
    return [line[2:] for line in lines_of("console") if line.startswith("$ ") and re.search(pattern, line)]


def without_keys() -> dict[str, str]:
    """Return this environment without API keys, Rill's settings and the variables of `make`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "RILL", "MAKE"))}


def in_this_environment(command: str) -> str:
    """Return the command with the tests' Python environment instead of .venv."""
    return command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")


@pytest.mark.parametrize("command", commands("flask"))
def test_a_terminal_command_prints_an_answer(command: str) -> None:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", in_this_environment(command)],
        cwd=ROOT,
        env=without_keys(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "offline model" in ran.stdout
    assert "stop reason" in ran.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: str, output: Path, **env: str) -> Iterator[None]:
    """Run a printed command that starts a server, until the context ends."""
    with output.open("wb") as written:
        process = subprocess.Popen(
            ["sh", "-c", in_this_environment(command)],
            cwd=ROOT,
            env={**without_keys(), **env},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(START_SECONDS)


def wait_until_it_listens(output: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while "Listening at" not in (text := output.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


@pytest.mark.parametrize("command", commands(OTHER_ADDRESS))
def test_a_command_with_another_port_serves_only_there(command: str, tmp_path: Path) -> None:
    if command.startswith("make") and not (ROOT / ".venv" / ".run").exists():
        pytest.skip("needs .venv, as `make` sets it up")
    assert OTHER_ADDRESS in command
    address, output = f"127.0.0.1:{free_port()}", tmp_path / "output"
    # PORT is set by a platform, and would make the server listen on every address.
    with started(command.replace(OTHER_ADDRESS, address), output, PORT=str(free_port())):
        printed = wait_until_it_listens(output)
        listening = re.findall(r"Listening at: (\S+)", printed)
        assert listening == [f"http://{address}"]
        line = f"curl -N 'http://{address}/stream?q=hello'"
        assert (line in printed) == command.startswith("make")
        answered = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert b"offline model" in answered.stdout


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=without_keys(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^\$ )make (\w+)", README, re.MULTILINE))))
def test_every_named_make_target_exists(target: str) -> None:
    ran = make("-n", target)
    assert ran.returncode == 0, ran.stderr


def test_make_run_prints_what_the_readme_shows() -> None:
    (shown,) = [block for block in blocks("console") if block.startswith("$ make run\n") and "Starting" in block]
    recipe = make("-n", "-B", "run").stdout.replace('"', "").replace("; \\", "")
    for line in shown.splitlines()[1:-1]:
        assert f"echo {line}\n" in recipe
    assert shown.splitlines()[-1] == "..."


def test_ci_runs_targets_of_the_readme() -> None:
    ran = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert ran
    assert all(f"make {target}" in README for target in ran)


# Tables


def setting_rows() -> list[str]:
    """Return the rows of the README's table, made from the fields of Settings."""
    rows = []
    for field in Settings.model_fields.values():
        unset = field.default in (None, (), {})
        default = "" if unset else str(int(field.default) if isinstance(field.default, bool) else field.default)
        rows.append(f"| {field.validation_alias} | {default} | {field.description} |")
    return rows


def test_the_settings_table_matches_the_code() -> None:
    section = README.split("## Settings")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert "\n".join(table[2:]) == "\n".join(setting_rows())


def test_the_readmes_show_the_same_examples() -> None:
    examples = [re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE) for text in READMES.values()]
    assert examples[0] == examples[1]


def test_the_readmes_name_the_same_things_in_the_same_sections() -> None:
    """Compare the code in backticks, the settings and the figures of each section."""
    sections = [
        re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split("\n## ") for text in READMES.values()
    ]
    assert len(sections[0]) == len(sections[1])
    for english, chinese in zip(*sections, strict=True):
        assert names_in(english) == names_in(chinese)


def names_in(section: str) -> set[str]:
    found = re.findall(r"`[^`]+`|\b[A-Z]+_[A-Z_]+\b|(?<![\w.])\d[\d,.]*\d(?!\w)", section)
    return {" ".join(name.split()) for name in found}


def test_the_chinese_settings_table_matches_the_english_one() -> None:
    tables = [re.findall(r"^\| ([A-Z]\w+_?\w*) \| (.*?) \|", text, re.MULTILINE) for text in READMES.values()]
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(Settings.model_fields)


def test_every_route_is_in_the_readme() -> None:
    app = create_app(Settings(ANTHROPIC_API_KEY="sk-test-key"))
    listed = set(re.findall(r"^\| `([A-Z]+) (\S+?)`", README, re.MULTILINE))
    served = {
        (method, rule.rule.replace("<path:", "<")) for rule in app.url_map.iter_rules() for method in rule.methods or ()
    }
    assert listed == {(method, path) for method, path in served if method not in ("HEAD", "OPTIONS")}


def test_every_status_is_in_the_readme() -> None:
    section = README.split("## Errors")[1].split("\n## ")[0]
    listed = {
        int(status) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for status in row.split(",")
    }
    never_sent = 499  # The client has disconnected.
    assert listed == {kind.status for kind in KINDS.values()} - {never_sent}


def test_every_log_field_is_in_the_readme(offline: Rill) -> None:
    with offline.ask("GET", "/stream?q=tokens%3D3+rate%3D0") as asked:
        asked.read_rest()
    deadline = time.monotonic() + 5
    while '"outcome"' not in offline.output() and time.monotonic() < deadline:
        time.sleep(0.02)  # The line is written a moment after the end of the answer.
    line = next(line for line in offline.output().splitlines() if line.startswith('{"event": "answer"'))
    section = README.split("with the fields")[1].split(".\n")[0]
    assert re.findall(r"`(\w+)`", section) == list(json.loads(line))


# Files

DOCUMENTS = [*READMES, "CHANGELOG.md", "SECURITY.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
NAMED_FILE = r"`((?:rill|tests|docs|bench|deploy|examples)/[\w./-]*|[\w.-]+\.(?:py|toml|txt|md)|Procfile|LICENSE)`"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_file_exists(document: str) -> None:
    named = re.findall(NAMED_FILE, (ROOT / document).read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("decision", DECISIONS.split("\n## ")[1:], ids=lambda text: text.splitlines()[0][12:52])
def test_a_decision_has_its_date_and_three_lines(decision: str) -> None:
    title, blank, *lines = decision.rstrip("\n").split("\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d: \S.*", title)
    assert blank == ""
    assert [line.split(":")[0] for line in lines] == ["- Context", "- Decision", "- Consequence"]
