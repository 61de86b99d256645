"""curl, as the README uses it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import upstream as wire
from gated import ASKED, FIRST, SECOND, TRUNCATIONS, gated_answer, script_rate_limit, truncated_answer
from server import Rill
from upstream import Upstream

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")

ANSWER = FIRST + SECOND
PARTIAL_FILE, RECEIVE_ERROR, HTTP_ERROR = 18, 56, 22  # curl's exit codes
ASKS = {
    "GET": ["--get", "--data-urlencode", "q=What is a rill?"],
    "-d": ["-d", "q=What is a rill?"],
    "--data-binary": ["--data-binary", "What is a rill?", "-H", "Content-Type: text/plain"],
    "HTTP/1.0": ["--http1.0", "-d", "q=What is a rill?"],
}
EVERY_ASK = pytest.mark.parametrize("arguments", ASKS.values(), ids=ASKS.keys())


@contextmanager
def curl(service: Rill, *arguments: str, path: str = "/stream") -> Iterator[subprocess.Popen[bytes]]:
    """Run curl -N; the test reads its output as it arrives."""
    command = ["curl", "-q", "-sS", "-N", "--noproxy", "*", "--max-time", "30", *arguments, service.url + path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[bytes], text: str) -> None:
    """Read as many bytes as the text has, and assert that they are the text."""
    assert process.stdout is not None
    assert process.stdout.read(len(text.encode())).decode() == text


def finish(process: subprocess.Popen[bytes]) -> tuple[str, int]:
    """Return the rest of curl's output, and its exit code."""
    output, _ = process.communicate(timeout=30)
    return output.decode(), process.returncode


@EVERY_ASK
def test_curl_prints_the_first_text_before_the_second_is_sent(
    arguments: list[str], service: Rill, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    with curl(service, *arguments) as process:
        read(process, FIRST)
        upstream.open("second")
        assert finish(process) == (SECOND, 0)
    assert upstream.requests[0].json["messages"][0]["content"] == "What is a rill?"


@pytest.mark.parametrize("how", TRUNCATIONS)
@EVERY_ASK
def test_curl_fails_for_a_truncated_answer(arguments: list[str], how: str, service: Rill, upstream: Upstream) -> None:
    upstream.script(*truncated_answer(how))
    with curl(service, *arguments) as process:
        read(process, FIRST)
        upstream.open("truncate")
        rest, code = finish(process)
    assert (rest, code) == ("", RECEIVE_ERROR if "--http1.0" in arguments else PARTIAL_FILE)


def test_fail_with_body_prints_the_message_and_fails(service: Rill, upstream: Upstream) -> None:
    script_rate_limit(upstream)
    with curl(service, "--fail-with-body", "-d", "q=hi") as process:
        assert finish(process) == ("The model's rate limit is reached. Try again in 7 s.\n", HTTP_ERROR)


def test_fail_with_body_prints_a_complete_answer_unchanged(service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with curl(service, "--fail-with-body", "-d", "q=hi") as process:
        assert finish(process) == (ANSWER, 0)


def test_a_file_is_sent_unchanged(service: Rill, upstream: Upstream, tmp_path: Path) -> None:
    prompt = "  Two lines,\r\n溪 & a=b %20 +\n\n"
    (tmp_path / "prompt.txt").write_bytes(prompt.encode())
    upstream.script(*gated_answer())
    with curl(service, "--data-binary", f"@{tmp_path / 'prompt.txt'}", "-H", "Content-Type: text/plain") as process:
        read(process, FIRST)
        upstream.open("second")
        assert finish(process) == (SECOND, 0)
    assert upstream.requests[0].json["messages"][0]["content"] == prompt


def test_a_file_longer_than_curls_first_packet_is_sent_completely(
    service: Rill, upstream: Upstream, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("溪" * 300_000)
    upstream.script(*wire.answer(FIRST))
    with curl(service, "--data-binary", f"@{tmp_path / 'long.txt'}", "-H", "Content-Type: text/plain") as process:
        assert finish(process) == (FIRST, 0)
    assert upstream.requests[0].json["messages"][0]["content"] == "溪" * 300_000


@pytest.mark.parametrize("path", ["/chat/stream?message=hi", "/stream?q=hi"])
def test_curl_prints_the_end_mark_of_server_sent_events(path: str, service: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer(FIRST, SECOND))
    with curl(service, "-H", "Accept: text/event-stream", path=path) as process:
        output, code = finish(process)
    assert ("data: [DONE]" in output.splitlines(), code) == (True, 0)


def test_stopping_curl_closes_the_upstream_connection(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(FIRST)), wire.silence())
    with curl(service, "-d", "q=hi") as process:
        read(process, FIRST)
    upstream.wait_for_disconnect()


def test_curl_lists_the_allowed_model(service: Rill) -> None:
    with curl(service, path="/v1/models") as process:
        output, code = finish(process)
    assert (ASKED["model"] in output, code) == (True, 0)
