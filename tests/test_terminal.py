"""`flask --app wsgi ask`: the answer alone on stdout, as it comes, and an exit code that tells how it ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import upstream as wire
from server import ROOT, rill_env
from upstream import Step, Upstream

BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("first ")))
WHOLE = (wire.send(wire.text("second"), wire.block_stop(), wire.stop(output_tokens=7)), wire.end())


@contextmanager
def asking(upstream: Upstream, *arguments: str, **env: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process of its own, killed if the test leaves it behind; a variable that is None is unset."""
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **rill_env(upstream), **env}
    # A shell that runs the tests in the background has them ignore SIGINT, and so their children.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "flask", "--app", "wsgi", "ask", *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(upstream: Upstream, *arguments: str, stdin: bytes = b"", **env: str | None) -> tuple[int, str, str]:
    """The exit code of the command, and what it wrote to stdout and to stderr."""
    with asking(upstream, *arguments, **env) as process:
        written, told = process.communicate(stdin, timeout=60)
    return process.returncode, written.decode(), told.decode()


def read(process: subprocess.Popen[bytes], wanted: bytes) -> None:
    """Read stdout up to what is wanted, and not further than it has come."""
    assert process.stdout
    got = b""
    while got != wanted:
        piece = os.read(process.stdout.fileno(), 65536)
        assert piece, got
        got += piece


def statistics(text: str, tokens_in: int = 12, tokens_out: int = 7) -> str:
    """What the last line on stderr is, as a pattern."""
    return (
        rf"{len(text)} characters, {tokens_in} tokens in, {tokens_out} tokens out, \d+\.\d seconds, stop reason \w+\n"
    )


def unfinished(text: str) -> str:
    """The same where the answer has no end that would tell the tokens."""
    return rf"{len(text)} characters, \d+\.\d seconds\n"


def assert_told(told: str, *patterns: str) -> None:
    assert re.fullmatch("".join(patterns), told), told


# Whole answers


def test_the_text_is_printed_as_it_comes_and_what_it_was_goes_to_stderr(upstream: Upstream) -> None:
    upstream.script(*BEGUN, wire.gate("second"), *WHOLE)
    with asking(upstream, "hi") as process:
        read(process, b"first ")
        upstream.open("second")
        written, told = process.communicate(timeout=60)
    assert (process.returncode, written) == (0, b"second\n")
    assert_told(told.decode(), statistics("first second"))


def test_a_prompt_from_stdin_goes_up_with_the_options(upstream: Upstream) -> None:
    upstream.script(*wire.answer("well"))
    options = ["--system", "Be brief: 简短", "--model", "claude-opus-5", "--max-tokens", "77"]
    code, written, _ = run(upstream, "-", *options, stdin="two\nlines, ünd 你好\n".encode())
    assert (code, written) == (0, "well\n")
    (request,) = upstream.requests
    asked = {name: request.json[name] for name in ("system", "model", "max_tokens", "messages")}
    assert asked == {
        "system": "Be brief: 简短",
        "model": "claude-opus-5",
        "max_tokens": 77,
        "messages": [{"role": "user", "content": "two\nlines, ünd 你好\n"}],
    }


def test_text_of_every_script_passes_where_the_locale_is_c(upstream: Upstream) -> None:
    upstream.script(*wire.answer("é 你好 ", "😀"))
    code, written, _ = run(upstream, "ñ 世界 🎉", LANG=None, LC_ALL="C")
    assert (code, written) == (0, "é 你好 😀\n")
    assert upstream.requests[0].json["messages"] == [{"role": "user", "content": "ñ 世界 🎉"}]


def test_what_the_terminal_has_no_character_for_ends_no_answer(upstream: Upstream) -> None:
    upstream.script(*wire.answer("né 你 ", "on"))
    code, written, told = run(upstream, "hi", PYTHONIOENCODING="ascii")
    assert (code, written) == (0, "n? ? on\n")
    assert_told(told, statistics("né 你 on", tokens_out=2))


def test_the_offline_model_answers_without_any_network(upstream: Upstream) -> None:
    nowhere = "http://127.0.0.1:1"
    env = {"RILL_OFFLINE": "1", "ANTHROPIC_API_KEY": None}
    code, written, told = run(upstream, "tokens=14 hi", **env, HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere)
    assert code == 0
    assert written.startswith("Hello! I am the offline model")
    assert_told(told, statistics(written[:-1], tokens_in=2, tokens_out=14))
    assert upstream.requests == []


# Answers that are not whole


def test_a_cut_answer_exits_with_3_after_all_that_came(upstream: Upstream) -> None:
    upstream.script(*BEGUN, wire.close())
    code, written, told = run(upstream, "hi")
    assert (code, written) == (3, "first \n")
    assert_told(told, r"The answer is truncated\. .*closed before.*\n", unfinished("first "))


REFUSAL = wire.stop("refusal", 0, stop_details={"type": "refusal", "explanation": "Not this."})


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((wire.error(400, "invalid_request_error", "prompt is too long"),), "prompt is too long"),
        ((wire.head(), wire.send(wire.opening()), wire.close()), "closed before"),
        ((wire.head(), wire.send(wire.start(), REFUSAL), wire.end()), r"Not this\."),
    ],
    ids=["400", "cut before its text", "the model refuses"],
)
def test_no_answer_exits_with_1_and_says_why(upstream: Upstream, steps: tuple[Step, ...], words: str) -> None:
    upstream.script(*steps)
    code, written, told = run(upstream, "hi")
    assert (code, written) == (1, "")
    assert_told(told, rf"[^\n]*{words}[^\n]*\n", rf"(?:{unfinished('')}|{statistics('', tokens_out=0)})")


@pytest.mark.parametrize("begun", [BEGUN, ()], ids=["within", "before"])
def test_ctrl_c_exits_with_130_and_closes_the_upstream(upstream: Upstream, begun: tuple[Step, ...]) -> None:
    upstream.script(*begun, wire.silence())
    with asking(upstream, "hi") as process:
        if begun:
            read(process, b"first ")
        upstream.wait_for_requests(1, timeout=60)
        time.sleep(0.3)  # it goes back to waiting, where gevent has a word of its own for the signal
        process.send_signal(signal.SIGINT)
        written, told = process.communicate(timeout=60)
        upstream.wait_until_left()
    assert (process.returncode, written) == (130, b"\n" if begun else b"")
    assert_told(told.decode(), r"Interrupted\.\n", unfinished("first " if begun else ""))


def test_a_reader_that_has_enough_ends_the_answer_and_the_upstreams(upstream: Upstream) -> None:
    more = [step for _ in range(100) for step in (wire.send(wire.text("more " * 100)), wire.pause(0.01))]
    upstream.script(*BEGUN, wire.gate("more"), *more, wire.silence())
    with asking(upstream, "hi") as process:
        assert process.stdout
        assert process.stderr
        read(process, b"first ")
        process.stdout.close()  # as `head -c 6` does
        upstream.open("more")
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
    upstream.wait_until_left()


# Nothing was asked


def test_a_wrong_option_exits_with_2(upstream: Upstream) -> None:
    code, written, told = run(upstream, "hi", "--max-tokens", "many")
    assert (code, written) == (2, "")
    assert "--max-tokens" in told
    assert upstream.requests == []


def test_without_a_key_one_line_says_what_to_set(upstream: Upstream) -> None:
    code, written, told = run(upstream, "hi", ANTHROPIC_API_KEY=None)
    assert (code, written) == (1, "")
    assert_told(told, r"rill: set ANTHROPIC_API_KEY [^\n]*RILL_OFFLINE=1[^\n]*\n")


# The log


def test_what_is_logged_on_the_way_is_not_in_the_answer(upstream: Upstream) -> None:
    upstream.script(wire.error(500, "api_error", "no"))
    upstream.script(*BEGUN, *WHOLE)
    code, written, told = run(upstream, "hi")
    assert (code, written, len(upstream.requests)) == (0, "first second\n", 2)
    assert_told(told, statistics("first second"))


def test_the_log_of_a_command_goes_to_stderr() -> None:
    code = "import click, logging\nwith click.Context(click.Command('ask')): import wsgi\n"
    code += "logging.getLogger('rill').warning('petrichor')"
    env = {"PATH": os.environ["PATH"], "ANTHROPIC_API_KEY": "sk-test-key"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    assert "petrichor" in ran.stderr
