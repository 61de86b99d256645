"""Rules of the code that a test can check."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = [ROOT / "app.py", ROOT / "wsgi.py", ROOT / "gunicorn.conf.py", *sorted((ROOT / "rill").rglob("*.py"))]
LONGEST_FUNCTION = 40

# Import every module, and print the threads and sockets that exist afterwards.
IMPORT_ALL = """
import importlib, json, os, pkgutil, stat, threading, rill
def sockets():
    modes = [os.stat(f"/proc/self/fd/{fd}").st_mode for fd in range(256) if os.path.exists(f"/proc/self/fd/{fd}")]
    return sum(map(stat.S_ISSOCK, modes))
before = sockets()
modules = [module.name for module in pkgutil.walk_packages(rill.__path__, "rill.")]
for module in modules:
    importlib.import_module(module)
print(json.dumps({"modules": len(modules), "threads": threading.active_count(), "sockets": sockets() - before}))
"""


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_over_forty_lines(path: Path) -> None:
    lengths = {each.name: (each.end_lineno or 0) - each.lineno + 1 for each in functions_of(path)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_the_import_rule_holds() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_a_module_reads_no_settings_opens_no_socket_and_starts_no_thread() -> None:
    env = {
        "RILL_MAX_STREAMS": "not a number",
        "RILL_RATE_LIMIT": "not a rate",
        "PORT": "not a port",
        "ANTHROPIC_BASE_URL": "not a URL",
    }
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("modules") >= 15
    assert found == {"threads": 1, "sockets": 0}
