"""Agent frameworks, unmodified, with pinned versions: tools, structured output, and their own errors.

They run in one process, in an environment that uv makes for them: their dependencies are not those of the tests.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import upstream as wire
from gated import FIRST
from server import StartRill
from upstream import Answer, Upstream

CLIENTS = Path(__file__).parent
SECONDS = 300
WRONG_KEY_ERRORS = {
    "langchain_wrong_key": "OpenAIAuthenticationError",
    "pydantic_ai_wrong_key": "ModelHTTPError",
    "instructor_wrong_key": "InstructorRetryException",
    "agents_wrong_key": "AuthenticationError",
    "llm_wrong_key": "AuthenticationError",
}
TRUNCATION_ERRORS = {
    "langchain_truncated": "APIError",
    "pydantic_ai_truncated": "APIError",
    "instructor_truncated": "InstructorRetryException",
    "agents_truncated": "ModelBehaviorError",
    "llm_truncated": "APIError",
}
RATE_LIMIT_ERRORS = {
    "langchain_rate_limited": "OpenAIRateLimitError",
    "pydantic_ai_rate_limited": "ModelHTTPError",
    "instructor_rate_limited": "InstructorRetryException",
    "agents_rate_limited": "RateLimitError",
    "llm_rate_limited": "RateLimitError",
}


@pytest.mark.soak
@pytest.mark.timeout(SECONDS)
def test_each_framework_completes_its_cases(start_rill: StartRill, upstream: Upstream) -> None:
    rill = start_rill(RILL_OFFLINE="1", RILL_API_KEYS="alice=right", RILL_RATE_LIMIT="1000/minute")
    keys = ",".join(f"{case}=key-of-{case}" for case in (*TRUNCATION_ERRORS, *RATE_LIMIT_ERRORS))
    scripted = start_rill(RILL_API_KEYS=keys, RILL_RATE_LIMIT="1/day")
    upstream.always(answer_as_asked)
    reports = run(rill.url, scripted.url)
    rejected = {case: line["error"] for case, line in reports.items() if "error" in line}
    assert rejected == {**WRONG_KEY_ERRORS, **TRUNCATION_ERRORS, **RATE_LIMIT_ERRORS}, reports
    for case, line in reports.items():
        if case in TRUNCATION_ERRORS:
            # instructor raises before it yields a part of the object.
            shown = "" if case == "instructor_truncated" else FIRST
            assert (line["shown"], "The model's API" in line["message"]) == (shown, True), line
        elif case in RATE_LIMIT_ERRORS:
            assert (line["shown"], "1 per day for one client" in line["message"]) == (FIRST, True), line
        elif case.endswith(("_structured", "_functions", "_schema")):
            assert line["answer"]["name"] == "name", case
        elif case not in WRONG_KEY_ERRORS:
            assert "offline model" in line["answer"], case
            assert "sunny" in line["answer"] or case == "langchain_stream", case
    log = [json.loads(line) for line in rill.output().splitlines() if line.startswith('{"event": "answer"')]
    assert {line["outcome"] for line in log} == {"completed"}
    # A request for each truncated answer, and none for what is over the rate limit.
    assert len(upstream.requests) == len(TRUNCATION_ERRORS) + len(RATE_LIMIT_ERRORS)


def answer_as_asked(answer: Answer) -> None:
    """Answer with a text, or with a call if a tool is forced; truncated if the prompt requests that."""
    request = answer.request.json
    opened, pieces = wire.start() + wire.block_start(0, "text"), [wire.text(FIRST)]
    if "tools" in request:
        opened = wire.start() + wire.block_start(0, "tool_use", id="toolu_1", name=request["tools"][0]["name"])
        values = f'{{"name": "{FIRST}"', ', "age": 7}'
        pieces = [wire.delta(0, "input_json_delta", partial_json=value) for value in values]
    if "Truncate" in json.dumps(request["messages"]):
        steps = [wire.head(), wire.send(opened, pieces[0]), wire.close()]
    else:
        end = wire.block_stop() + wire.stop("tool_use" if "tools" in request else "end_turn")
        steps = [wire.head(), wire.send(opened, *pieces, end), wire.end()]
    for step in steps:
        step(answer)


def run(*urls: str) -> dict[str, dict[str, Any]]:
    """Return the report of each case."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    environment = ["--no-project", "--python", sys.executable, "--with-requirements", str(CLIENTS / "frameworks.txt")]
    command = [uv, "run", "--quiet", "--isolated", *environment, str(CLIENTS / "frameworks.py"), *urls]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    return {line["case"]: line for line in map(json.loads, ran.stdout.splitlines())}
