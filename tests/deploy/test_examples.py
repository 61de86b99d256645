"""The scripts of examples/: each prints the text as it arrives, and exits with 0 only for a complete answer."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import upstream as wire
from gated import FIRST, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from server import ROOT, Rill, StartRill
from upstream import Upstream

COMPLETE, NO_ANSWER, TRUNCATED = 0, 1, 2
API_KEY = 'a"secret\\of $alice'
SCRIPTS = {"ask.sh": "sh", "ask.py": sys.executable, "ask.mjs": "node"}
EVERY_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
TRUNCATED_MESSAGE = "Truncated: the answer is incomplete."


@contextmanager
def run(script: str, service: Rill, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script of examples/; skip if its program is not installed."""
    program = "curl" if script == "ask.sh" else SCRIPTS[script]
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    path = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "ASK_URL": service.url}
    command = [SCRIPTS[script], str(ROOT / "examples" / script), *arguments]
    with subprocess.Popen(
        command, env={**path, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str], text: str) -> None:
    """Read as many characters as `text` has."""
    assert process.stdout
    assert process.stdout.read(len(text)) == text


@EVERY_SCRIPT
def test_an_example_prints_the_first_text_before_the_second_is_sent(
    script: str, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    with run(script, service, "@溪 & a=b?") as process:
        read(process, FIRST)
        upstream.open("second")
        assert process.communicate(timeout=30) == (SECOND, "")
        assert process.returncode == COMPLETE
    assert upstream.requests[0].json["messages"][0]["content"] == "@溪 & a=b?"


@pytest.mark.parametrize("how", TRUNCATIONS)
@EVERY_SCRIPT
def test_an_example_distinguishes_a_truncated_answer_from_a_complete_one(
    script: str, how: str, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*truncated_answer(how))
    with run(script, service) as process:
        read(process, FIRST)
        upstream.open("truncate")
        printed, reported = process.communicate(timeout=30)
    assert (printed, process.returncode) == ("", TRUNCATED)
    assert TRUNCATED_MESSAGE in reported


@EVERY_SCRIPT
def test_an_example_shows_the_message_of_a_rejection(script: str, service: Rill, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    with run(script, service) as process:
        printed, reported = process.communicate(timeout=30)
    assert process.returncode == NO_ANSWER
    assert "The model's rate limit is reached. Try again in 7 s." in (printed if script == "ask.sh" else reported)
    assert "429" in reported


@EVERY_SCRIPT
def test_an_example_reports_an_unreachable_server(script: str, service: Rill) -> None:
    with run(script, service, ASK_URL="http://127.0.0.1:1") as process:
        printed, reported = process.communicate(timeout=30)
    assert (printed, process.returncode) == ("", NO_ANSWER)
    assert reported.strip()


@pytest.fixture
def server_with_key(share_rill: StartRill) -> Rill:
    """Return a server that requires an API key."""
    return share_rill(RILL_API_KEYS=f"alice={API_KEY}")


@pytest.mark.parametrize(("key", "exit_code"), [(API_KEY, COMPLETE), ("another", NO_ANSWER), ("", NO_ANSWER)])
@EVERY_SCRIPT
def test_an_example_sends_the_api_key_from_the_environment(
    script: str, key: str, exit_code: int, server_with_key: Rill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer(FIRST, SECOND))
    with run(script, server_with_key, ASK_API_KEY=key) as process:
        process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert len(upstream.requests) == (1 if exit_code == COMPLETE else 0)
