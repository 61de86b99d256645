"""The scripts of examples/: each prints the text as it comes, and tells by its exit code how the answer ended."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import upstream as wire
from gated import CUTS, FIRST, SECOND, cut_answer, gated_answer, script_refusal
from server import ROOT, Rill, StartRill
from upstream import Upstream

WHOLE, NONE, CUT = 0, 1, 2
TOKEN = 'a"secret\\of $alice'
SCRIPTS = {"ask.sh": "sh", "ask.py": sys.executable, "ask.mjs": "node"}
EVERY_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
WORDS_OF_CUT = "Cut: this is not the whole answer."


@contextmanager
def run(script: str, service: Rill, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A script of examples/, running; skips where what it runs on is not installed."""
    program = "curl" if script == "ask.sh" else SCRIPTS[script]
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    path = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "RILL_URL": service.url}
    command = [SCRIPTS[script], str(ROOT / "examples" / script), *arguments]
    with subprocess.Popen(
        command, env={**path, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str], text: str) -> None:
    """Read as much as this text is long, and no more."""
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
        assert process.returncode == WHOLE
    assert upstream.requests[0].json["messages"][0]["content"] == "@溪 & a=b?"


@pytest.mark.parametrize("how", CUTS)
@EVERY_SCRIPT
def test_an_example_tells_a_cut_answer_from_a_whole_one(
    script: str, how: str, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*cut_answer(how))
    with run(script, service) as process:
        read(process, FIRST)
        upstream.open("cut")
        printed, said = process.communicate(timeout=30)
    assert (printed, process.returncode) == ("", CUT)
    assert WORDS_OF_CUT in said


@EVERY_SCRIPT
def test_an_example_shows_the_words_of_a_refusal(script: str, service: Rill, upstream: Upstream) -> None:
    script_refusal(upstream)
    with run(script, service) as process:
        printed, said = process.communicate(timeout=30)
    assert process.returncode == NONE
    assert "The model's rate limit is reached. Try again in 7 s." in (printed if script == "ask.sh" else said)
    assert "429" in said


@EVERY_SCRIPT
def test_an_example_says_when_nobody_is_there(script: str, service: Rill) -> None:
    with run(script, service, RILL_URL="http://127.0.0.1:1") as process:
        printed, said = process.communicate(timeout=30)
    assert (printed, process.returncode) == ("", NONE)
    assert said.strip()


@pytest.fixture
def locked(share_rill: StartRill) -> Rill:
    """A server that requires an API key."""
    return share_rill(RILL_API_KEYS=f"alice={TOKEN}")


@pytest.mark.parametrize(("token", "ends"), [(TOKEN, WHOLE), ("another", NONE), ("", NONE)])
@EVERY_SCRIPT
def test_an_example_sends_the_token_of_the_environment(
    script: str, token: str, ends: int, locked: Rill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer(FIRST, SECOND))
    with run(script, locked, RILL_TOKEN=token) as process:
        process.communicate(timeout=30)
    assert process.returncode == ends
    assert len(upstream.requests) == (1 if ends == WHOLE else 0)
