"""`flask --app wsgi ask`: only the answer on stdout, as it arrives, and an exit code for its outcome."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import upstream as wire
from fork_server import UTF_8, Forked, fork_server, is_read_late
from server import ROOT, rill_env, with_changes
from upstream import Step, Upstream

STARTED = (wire.head(), wire.send(wire.opening(), wire.text("first ")))
WHOLE = (wire.send(wire.text("second"), wire.block_stop(), wire.stop(output_tokens=7)), wire.end())


class Command:
    """The command in its own process, which is killed at the end of the context; a variable that is None is unset."""

    def __init__(self, upstream: Upstream, *arguments: str, **env: str | None) -> None:
        changed = with_changes({"PATH": os.environ["PATH"], **UTF_8, **rill_env(upstream)}, env)
        task = ["--app", "wsgi", "ask", *arguments]
        (stdin, self._stdin), (self.stdout, stdout), (self.stderr, stderr) = [os.pipe() for _ in range(3)]
        self.process: Forked | subprocess.Popen[bytes]
        if is_read_late(changed):
            self.process = fork_server("flask").start(task, changed, (stdin, stdout, stderr))
        else:
            # Background jobs of a shell ignore SIGINT, and their children inherit that.
            command = ["env", "--default-signal=INT", sys.executable, "-m", "flask", *task]
            self.process = subprocess.Popen(command, cwd=ROOT, env=changed, stdin=stdin, stdout=stdout, stderr=stderr)
        for end in (stdin, stdout, stderr):
            os.close(end)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for end in (self._stdin, self.stdout, self.stderr):
            with suppress(OSError):  # closed by the test
                os.close(end)

    def read(self, wanted: bytes) -> None:
        """Read stdout until it equals `wanted`."""
        got = b""
        while got != wanted:
            piece = os.read(self.stdout, 65536)
            assert piece, got
            got += piece

    def finish(self, stdin: bytes = b"") -> tuple[int, str, str]:
        """Return the exit code, the rest of the stdout and the stderr."""
        os.write(self._stdin, stdin)
        os.close(self._stdin)
        written, errors = read_rest(self.stdout), read_rest(self.stderr)
        return self.process.wait(60), written, errors


def read_rest(pipe: int) -> str:
    """Return everything that is written until the other end is closed."""
    return b"".join(iter(lambda: os.read(pipe, 65536), b"")).decode()


def run(upstream: Upstream, *arguments: str, stdin: bytes = b"", **env: str | None) -> tuple[int, str, str]:
    """Return the exit code, the stdout and the stderr of the command."""
    with Command(upstream, *arguments, **env) as command:
        return command.finish(stdin)


def statistics(text: str, tokens_in: int = 12, tokens_out: int = 7) -> str:
    """Return a pattern of the last line on stderr."""
    return (
        rf"{len(text)} characters, {tokens_in} tokens in, {tokens_out} tokens out, \d+\.\d seconds, stop reason \w+\n"
    )


def unfinished(text: str) -> str:
    """Return the pattern of that line for an answer without usage."""
    return rf"{len(text)} characters, \d+\.\d seconds\n"


def assert_errors(errors: str, *patterns: str) -> None:
    assert re.fullmatch("".join(patterns), errors), errors


# Completed answers


def test_the_text_is_printed_as_it_arrives_and_statistics_go_to_stderr(upstream: Upstream) -> None:
    upstream.script(*STARTED, wire.gate("second"), *WHOLE)
    with Command(upstream, "hi") as command:
        command.read(b"first ")
        upstream.open("second")
        code, written, errors = command.finish()
    assert (code, written) == (0, "second\n")
    assert_errors(errors, statistics("first second"))


def test_a_prompt_from_stdin_is_sent_with_the_options(upstream: Upstream) -> None:
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


def test_text_of_every_script_is_printed_in_the_c_locale(upstream: Upstream) -> None:
    upstream.script(*wire.answer("é 你好 ", "😀"))
    code, written, _ = run(upstream, "ñ 世界 🎉", LANG=None, LC_ALL="C")
    assert (code, written) == (0, "é 你好 😀\n")
    assert upstream.requests[0].json["messages"] == [{"role": "user", "content": "ñ 世界 🎉"}]


def test_a_character_that_the_terminal_cannot_encode_is_replaced(upstream: Upstream) -> None:
    upstream.script(*wire.answer("né 你 ", "on"))
    code, written, errors = run(upstream, "hi", PYTHONIOENCODING="ascii")
    assert (code, written) == (0, "n? ? on\n")
    assert_errors(errors, statistics("né 你 on", tokens_out=2))


def test_the_offline_model_answers_without_any_network(upstream: Upstream) -> None:
    nowhere = "http://127.0.0.1:1"
    env = {"RILL_OFFLINE": "1", "ANTHROPIC_API_KEY": None}
    code, written, errors = run(upstream, "tokens=14 hi", **env, HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere)
    assert code == 0
    assert written.startswith("Hello! I am the offline model")
    assert_errors(errors, statistics(written[:-1], tokens_in=2, tokens_out=14))
    assert upstream.requests == []


# Incomplete answers


def test_a_truncated_answer_exits_with_3_after_its_text(upstream: Upstream) -> None:
    upstream.script(*STARTED, wire.close())
    code, written, errors = run(upstream, "hi")
    assert (code, written) == (3, "first \n")
    assert_errors(errors, r"The answer is truncated\. .*closed before.*\n", unfinished("first "))


REFUSAL = wire.stop("refusal", 0, stop_details={"type": "refusal", "explanation": "Not this."})


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((wire.error(400, "invalid_request_error", "prompt is too long"),), "prompt is too long"),
        ((wire.head(), wire.send(wire.opening()), wire.close()), "closed before"),
        ((wire.head(), wire.send(wire.start(), REFUSAL), wire.end()), r"Not this\."),
    ],
    ids=["400", "closed before its text", "the model refuses"],
)
def test_a_failed_request_exits_with_1_and_a_message(upstream: Upstream, steps: tuple[Step, ...], message: str) -> None:
    upstream.script(*steps)
    code, written, errors = run(upstream, "hi")
    assert (code, written) == (1, "")
    assert_errors(errors, rf"[^\n]*{message}[^\n]*\n", rf"(?:{unfinished('')}|{statistics('', tokens_out=0)})")


@pytest.mark.parametrize("started", [STARTED, ()], ids=["within", "before"])
def test_ctrl_c_exits_with_130_and_closes_the_upstream(upstream: Upstream, started: tuple[Step, ...]) -> None:
    upstream.script(*started, wire.silence())
    with Command(upstream, "hi") as command:
        if started:
            command.read(b"first ")
        upstream.wait_for_requests(1, timeout=60)
        time.sleep(0.3)  # it waits again in gevent, which handles the signal itself
        command.process.send_signal(signal.SIGINT)
        code, written, errors = command.finish()
        upstream.wait_for_disconnect()
    assert (code, written) == (130, "\n" if started else "")
    assert_errors(errors, r"Interrupted\.\n", unfinished("first " if started else ""))


def test_a_closed_pipe_ends_the_answer_and_the_upstream_request(upstream: Upstream) -> None:
    more = [step for _ in range(100) for step in (wire.send(wire.text("more " * 100)), wire.pause(0.01))]
    upstream.script(*STARTED, wire.gate("more"), *more, wire.silence())
    with Command(upstream, "hi") as command:
        command.read(b"first ")
        os.close(command.stdout)  # as `head -c 6` does
        upstream.open("more")
        assert command.process.wait(60) == 1
        assert os.read(command.stderr, 65536) == b""
    upstream.wait_for_disconnect()


# No request


def test_a_wrong_option_exits_with_2(upstream: Upstream) -> None:
    code, written, errors = run(upstream, "hi", "--max-tokens", "many")
    assert (code, written) == (2, "")
    assert "--max-tokens" in errors
    assert upstream.requests == []


def test_without_a_key_one_line_states_what_to_set(upstream: Upstream) -> None:
    code, written, errors = run(upstream, "hi", ANTHROPIC_API_KEY=None)
    assert (code, written) == (1, "")
    assert_errors(errors, r"rill: set ANTHROPIC_API_KEY [^\n]*RILL_OFFLINE=1[^\n]*\n")


# The log


def test_log_messages_are_not_in_the_answer(upstream: Upstream) -> None:
    upstream.script(wire.error(500, "api_error", "no"))
    upstream.script(*STARTED, *WHOLE)
    code, written, errors = run(upstream, "hi")
    assert (code, written, len(upstream.requests)) == (0, "first second\n", 2)
    assert_errors(errors, statistics("first second"))


def test_the_log_of_a_command_goes_to_stderr() -> None:
    code = "import click, logging\nwith click.Context(click.Command('ask')): import wsgi\n"
    code += "logging.getLogger('rill').warning('petrichor')"
    env = {"PATH": os.environ["PATH"], "ANTHROPIC_API_KEY": "sk-test-key"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    assert "petrichor" in ran.stderr
