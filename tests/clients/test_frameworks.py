"""Agent frameworks, unmodified, with pinned versions: tools, structured output, and the error of a wrong key.

They run in one process, in an environment that uv makes for them: their dependencies are not those of the tests.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server import StartRill

CLIENTS = Path(__file__).parent
SECONDS = 300
WRONG_KEY_ERRORS = {
    "langchain_wrong_key": "OpenAIAuthenticationError",
    "pydantic_ai_wrong_key": "ModelHTTPError",
    "instructor_wrong_key": "InstructorRetryException",
    "agents_wrong_key": "AuthenticationError",
    "llm_wrong_key": "AuthenticationError",
}


@pytest.mark.soak
@pytest.mark.timeout(SECONDS)
def test_each_framework_completes_its_cases(start_rill: StartRill) -> None:
    rill = start_rill(RILL_OFFLINE="1", RILL_API_KEYS="alice=right", RILL_RATE_LIMIT="1000/minute")
    reports = run(rill.url)
    rejected = {case: line["error"] for case, line in reports.items() if "error" in line}
    assert rejected == WRONG_KEY_ERRORS, reports
    for case, line in reports.items():
        if case.endswith(("_structured", "_functions", "_schema")):
            assert line["answer"]["name"] == "name", case
        elif case not in WRONG_KEY_ERRORS:
            assert "offline model" in line["answer"], case
            assert "sunny" in line["answer"] or case == "langchain_stream", case
    log = [json.loads(line) for line in rill.output().splitlines() if line.startswith('{"event": "answer"')]
    assert {line["outcome"] for line in log} == {"completed"}


def run(url: str) -> dict[str, dict[str, Any]]:
    """Return the report of each case."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    environment = ["--no-project", "--python", sys.executable, "--with-requirements", str(CLIENTS / "frameworks.txt")]
    command = [uv, "run", "--quiet", "--isolated", *environment, str(CLIENTS / "frameworks.py"), url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    return {line["case"]: line for line in map(json.loads, ran.stdout.splitlines())}
