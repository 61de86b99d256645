"""docs/deploy.md names only files and settings that exist, quotes files exactly, and its commands run."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import upstream as wire
from proxies import CADDYFILE, NGINX_CONF
from server import ROOT, Rill
from upstream import Upstream

from rill.settings import Settings

PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
FIELDS = {str(field.validation_alias): field.default for field in Settings.model_fields.values()}
PLATFORM = {"DYNO"}
PROGRAMS = {"examples/ask.sh": "curl", ".venv/bin/python": sys.executable, "node": "node", "curl": "curl"}


def blocks(language: str) -> list[str]:
    """Return the lines of the fenced blocks in one language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [line for block in found for line in block.splitlines()]


def test_every_named_file_exists() -> None:
    named = re.findall(r"`((?:[\w-]+/)+[\w.-]*|[\w-]+\.(?:py|json|txt)|\.python-version|Procfile|Dockerfile)`", PAGE)
    assert {"deploy/nginx.conf", "Dockerfile", "app.json", "tests/deploy/"} <= set(named)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_file_of_deploy_and_examples_is_named() -> None:
    files = [path for folder in ("deploy", "examples") for path in (ROOT / folder).iterdir()]
    assert [path.name for path in files if f"`{path.relative_to(ROOT)}`" not in PAGE] == []


def test_every_named_setting_exists() -> None:
    named = set(re.findall(r"\b(?:RILL|ANTHROPIC)_[A-Z_]+\b|`(?:PORT|DYNO|REDIS_URL|WEB_CONCURRENCY)`", PAGE))
    assert {name.strip("`") for name in named} - set(FIELDS) <= PLATFORM


@pytest.mark.parametrize(("name", "value"), re.findall(r"`([A-Z_]+)` \((\d+)\)", PAGE))
def test_a_named_value_is_rills_default(name: str, value: str) -> None:
    assert str(FIELDS[name]) == value


@pytest.mark.parametrize(("language", "file"), [("nginx", NGINX_CONF), ("caddy", CADDYFILE)])
def test_a_snippet_contains_only_lines_of_the_file(language: str, file: str) -> None:
    lines = blocks(language)
    assert lines
    assert [line for line in lines if line not in file.splitlines()] == []


@pytest.mark.parametrize(("column", "file"), [(3, NGINX_CONF), (4, CADDYFILE)], ids=["nginx", "caddy"])
def test_a_directive_in_the_table_is_in_the_file(column: int, file: str) -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 5]
    mentioned = [code for row in rows for code in re.findall(r"`([^`]+)`", row[column])]
    not_in_files = {"flush_interval -1", "encode", "no-transform"}
    assert [code for code in mentioned if code not in file and code not in not_in_files] == []


@pytest.mark.parametrize("line", blocks("sh"))
def test_a_command_for_a_running_rill_runs(line: str, service: Rill, upstream: Upstream) -> None:
    if not shutil.which(PROGRAMS[line.split()[0]]):
        pytest.skip(f"needs {PROGRAMS[line.split()[0]]}")
    upstream.always(*wire.answer("An answer, 10 of 10\n"))
    command = line.replace("http://127.0.0.1:8000", service.url).replace(".venv/bin/python", sys.executable)
    env = {"PATH": os.environ["PATH"], "ASK_URL": service.url}
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.endswith("10 of 10\n")
