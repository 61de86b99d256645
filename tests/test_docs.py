"""What the documents say is so: examples run, and tables name all that there is."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def offline() -> Iterator[Rill]:
    with Rill({"RILL_OFFLINE": "1", "RILL_DEFAULT_MAX_TOKENS": "12", "RILL_RATE_LIMIT": "1000/minute"}) as running:
        yield running


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(command: list[str], code: str, service: Rill) -> str:
    """Run an example against the server instead of the address that it names, and return what it printed."""
    assert ADDRESS in code
    ran = subprocess.run(
        command, input=code.replace(ADDRESS, service.url), capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def curl_lines() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", curl_lines())
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
    assert "offline model" in re.sub(r"\n(?=\S| )", "", printed)  # it prints a line for each piece


def test_there_are_examples_in_each_language() -> None:
    assert len(curl_lines()) >= 3
    assert blocks("python")
    assert blocks("js")


def setting_rows() -> list[str]:
    """The rows of the README's table, made from the fields of Settings."""
    rows = []
    for field in Settings.model_fields.values():
        unset = field.default in (None, (), {})
        default = "" if unset else str(int(field.default) if isinstance(field.default, bool) else field.default)
        rows.append(f"| {field.validation_alias} | {default} | {field.description} |")
    return rows


def test_the_table_of_settings_is_that_of_the_code() -> None:
    section = README.split("## Settings")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert "\n".join(table[2:]) == "\n".join(setting_rows())


def test_the_readmes_show_the_same_examples() -> None:
    examples = [re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE) for text in READMES.values()]
    assert examples[0] == examples[1]


def test_the_readmes_name_the_same_things_in_the_same_sections() -> None:
    """Whatever stands in backticks, every setting, every status and every number of bytes, seconds or tokens."""
    sections = [
        re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split("\n## ") for text in READMES.values()
    ]
    assert len(sections[0]) == len(sections[1])
    for english, chinese in zip(*sections, strict=True):
        assert names_in(english) == names_in(chinese)


def names_in(section: str) -> set[str]:
    found = re.findall(r"`[^`]+`|\b[A-Z]+_[A-Z_]+\b|(?<![\w.])\d[\d,.]*\d(?!\w)", section)
    return {" ".join(name.split()) for name in found}


def test_the_settings_of_the_chinese_readme_are_those_of_the_english() -> None:
    tables = [re.findall(r"^\| ([A-Z]\w+_?\w*) \| (.*?) \|", text, re.MULTILINE) for text in READMES.values()]
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(Settings.model_fields)


def test_every_route_is_in_the_readme() -> None:
    app = create_app(Settings(ANTHROPIC_API_KEY="sk-test-key"))
    told = set(re.findall(r"^\| `([A-Z]+) (\S+?)`", README, re.MULTILINE))
    served = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    assert told == {(method, path) for method, path in served if method not in ("HEAD", "OPTIONS")}


def test_every_status_is_in_the_readme() -> None:
    section = README.split("## When something goes wrong")[1].split("\n## ")[0]
    told = {int(status) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for status in row.split(",")}
    never_seen = 499  # nobody is left to see it
    assert told == {kind.status for kind in KINDS.values()} - {never_seen}


def test_every_field_of_the_log_is_in_the_readme(offline: Rill) -> None:
    with offline.ask("GET", "/stream?q=hi") as asked:
        asked.read_rest()
    deadline = time.monotonic() + 5
    while '"outcome"' not in offline.output() and time.monotonic() < deadline:
        time.sleep(0.02)  # the line is written a moment after the answer's end
    line = next(line for line in offline.output().splitlines() if line.startswith('{"event": "answer"'))
    section = README.split("with the fields")[1].split(". ")[0]
    assert re.findall(r"`(\w+)`", section) == list(json.loads(line))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^\$ )make (\w+)", README, re.MULTILINE))))
def test_make_knows_every_target_that_is_named(target: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ran = subprocess.run(["make", "-n", target], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_ci_runs_what_the_readme_tells() -> None:
    ran = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert ran
    assert all(f"make {target}" in README for target in ran)


DOCUMENTS = [*READMES, "CHANGELOG.md", "SECURITY.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    named = re.findall(r"`((?:rill|tests|docs|bench)/[\w./-]*|[\w.-]+\.(?:py|toml|txt|md)|Procfile|LICENSE)`", text)
    assert [name for name in named if not Path(ROOT, name).exists()] == []


@pytest.mark.parametrize("decision", DECISIONS.split("\n## ")[1:], ids=lambda text: text.splitlines()[0][12:52])
def test_a_decision_has_its_date_and_three_lines(decision: str) -> None:
    title, blank, *lines = decision.rstrip("\n").split("\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d: \S.*", title)
    assert blank == ""
    assert [line.split(":")[0] for line in lines] == ["- Context", "- Decision", "- Consequence"]
