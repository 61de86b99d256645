"""An unread log: no request waits for it, no worker ends because of it, and dropped lines are counted and reported."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import upstream as wire
from asking import wait_until
from conversation import raw_request
from server import ROOT, Rill, rill_env
from upstream import Upstream

from rill.telemetry.log_stream import LogStream

ANSWER = (
    wire.head(),
    wire.send(wire.opening(), wire.text("some text"), wire.block_stop(), wire.stop()),
    wire.end(),
)
# Enough to fill every buffer below; the log line of an answer has about 400 bytes.
MANY = 60
SMALL = 4096

Ends = tuple[int, int]  # the descriptor to read from, the descriptor to write to


def pipe_ends() -> Ends:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, SMALL)
    return read, write


def socket_ends() -> Ends:
    read, write = socket.socketpair()
    write.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return read.detach(), write.detach()


@pytest.fixture
def ends() -> Iterator[Callable[[Callable[[], Ends]], Ends]]:
    """Create pairs of connected descriptors, and close them after the test."""
    with ExitStack() as stack:

        def make(kind: Callable[[], Ends]) -> Ends:
            pair = kind()
            for each in pair:
                stack.callback(close, each)
            return pair

        yield make


def close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def read_available(fd: int, seconds: float = 0) -> bytes:
    """Read everything that is available now, or that begins to arrive within `seconds`."""
    got = b""
    while select.select([fd], [], [], 0 if got else seconds)[0] and (data := os.read(fd, 65536)):
        got += data
    return got


def ask_many(rill: Rill, times: int = MANY) -> None:
    for number in range(times):
        with rill.ask("GET", "/stream?q=hi", {"X-Request-Id": f"answer-{number}"}) as asked:
            assert asked.read_rest() == b"some text"


def send_many_invalid(rill: Rill, times: int = MANY) -> None:
    """Send unparseable requests, which gunicorn logs."""
    for _ in range(times):
        with raw_request(rill.port, b"NONSENSE\r\n\r\n") as asked:
            assert asked.recv(65536).startswith(b"HTTP/1.1 400 ")


def lines_dropped(rill: Rill) -> int:
    with rill.ask("GET", "/metrics", {"Connection": "close"}) as asked:
        (found,) = re.findall(rb"^rill_log_lines_dropped_total (\d+)", asked.read_rest(), re.MULTILINE)
    return int(found)


def dropped_in(written: bytes) -> int:
    """Return the number of lines that the log reports as dropped."""
    as_json = re.findall(rb'^\{"event": "log lines dropped", "lines": (\d+)', written, re.MULTILINE)
    as_text = re.findall(rb"^\[.*\] \[\d+\] \[WARNING\] (\d+) log lines were dropped", written, re.MULTILINE)
    return sum(map(int, as_json + as_text))


@pytest.mark.parametrize("kind", [pipe_ends, socket_ends, pty.openpty], ids=["pipe", "socket", "terminal"])
def test_an_unread_log_delays_no_request(
    upstream: Upstream, ends: Callable[[Callable[[], Ends]], Ends], kind: Callable[[], Ends]
) -> None:
    upstream.always(*ANSWER)
    (stdout, to_stdout), (stderr, to_stderr) = ends(kind), ends(kind)
    with Rill(rill_env(upstream), outputs=(to_stdout, to_stderr)) as rill:
        before = rill.wait_for_workers(1)
        ask_many(rill)
        send_many_invalid(rill)
        dropped = lines_dropped(rill)
        assert dropped > 0
        log = read_available(stdout) + read_available(stderr)
        ask_many(rill, 1)
        send_many_invalid(rill, 1)
        log += read_available(stdout, 5) + read_available(stderr, 5)
        assert lines_dropped(rill) == dropped
        log = re.sub(rb"\x1b\[[\d;]*m|\r", b"", log)  # escapes of the terminal
        answers = len(re.findall(rb"\banswer-\d+\b", log))
        rejected = len(re.findall(rb"A request could not be read", log))
        assert dropped_in(log) == dropped
        assert answers + rejected + dropped == 2 * MANY + 2
        assert rill.workers() == before
        assert all(os.get_blocking(each) for each in (to_stdout, to_stderr))
        close(stdout)
        close(stderr)
        assert rill.stop().exit_code == 0


def test_two_workers_and_their_master_survive_an_unread_pipe(
    upstream: Upstream, ends: Callable[[Callable[[], Ends]], Ends]
) -> None:
    upstream.always(*ANSWER)
    read, write = ends(pipe_ends)
    with Rill({**rill_env(upstream), "WEB_CONCURRENCY": "2"}, outputs=(write, write)) as rill:
        first, second = rill.wait_for_workers(2)
        ask_many(rill)
        send_many_invalid(rill)
        assert rill.workers() == [first, second]
        first.kill()  # the master logs it
        first.wait(10)
        rill.wait_for_workers(2)
        ask_many(rill)
        dropped = lines_dropped(rill)
        assert dropped > 0
        log = read_available(read)
        for _ in range(MANY):  # either worker may serve them
            ask_many(rill, 1)
            log += read_available(read, 5)
        assert dropped_in(log) > 0
        lines = [line for line in log.split(b"\n") if line]
        assert [line for line in lines if not re.fullmatch(rb"\{.*\}|\[.*\] \[\d+\] \[[A-Z]+\] .*", line)] == []
        assert second in rill.workers()
        rill.signal(signal.SIGHUP)
        wait_until(lambda: second not in rill.workers())
        assert rill.stop().exit_code == 0


def test_a_log_whose_reader_has_exited_ends_no_worker(
    upstream: Upstream, ends: Callable[[Callable[[], Ends]], Ends]
) -> None:
    upstream.always(*ANSWER)
    read, write = ends(pipe_ends)
    with Rill(rill_env(upstream), outputs=(write, write)) as rill:
        before = rill.wait_for_workers(1)
        close(read)
        ask_many(rill)
        send_many_invalid(rill)
        wait_until(lambda: lines_dropped(rill) == 2 * MANY)
        assert rill.workers() == before
        assert rill.stop().exit_code == 0


def test_a_log_on_a_full_disk_ends_no_worker(upstream: Upstream, mounted: Callable[[int], Path]) -> None:
    upstream.always(*ANSWER)
    path = mounted(SMALL) / "log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with Rill(rill_env(upstream), outputs=(log, log)) as rill:
            before = rill.wait_for_workers(1)
            ask_many(rill)
            send_many_invalid(rill)
            assert lines_dropped(rill) > 0
            os.truncate(path, 0)
            ask_many(rill, 1)
            wait_until(lambda: dropped_in(path.read_bytes().lstrip(b"\0")) > 0)
            assert rill.workers() == before
            assert rill.stop().exit_code == 0
    finally:
        os.close(log)


# LogStream alone


def run_with_full_stderr(code: str, read: int, write: int) -> bytes:
    """Run Python with a full pipe as stderr; return what it wrote to stdout."""
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 512)
    os.set_blocking(write, True)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=write, timeout=20, check=False
    )
    assert ran.returncode == 0
    return ran.stdout


WRITE_ALL = """
import gevent, sys, traceback, warnings
from rill.telemetry.log_stream import count_dropped_lines, keep_logs_from_blocking
gevent.sleep(0)
{prepare}
keep_logs_from_blocking()
gevent.spawn(lambda: 1 / 0).join()
warnings.warn("w")
print("message", file=sys.stderr)
print(count_dropped_lines())
"""


@pytest.mark.parametrize(
    "prepare",
    [
        "",
        pytest.param(
            "import os; os.setuid(65534)",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its user"),
        ),
    ],
    ids=["reopened", "another user's"],
)
def test_tracebacks_and_warnings_do_not_wait_for_a_reader(
    ends: Callable[[Callable[[], Ends]], Ends], prepare: str
) -> None:
    assert int(run_with_full_stderr(WRITE_ALL.format(prepare=prepare), *ends(pipe_ends))) >= 3


def test_a_partially_written_line_is_completed_before_the_next(ends: Callable[[Callable[[], Ends]], Ends]) -> None:
    read, write = ends(pipe_ends)
    stream = LogStream(write, json_lines=True)
    stream.write("a" * 10_000 + "\n")
    got = b""
    for number in range(10):
        stream.write(f"line {number}\n")
        got += read_available(read)
    first, report, *rest = got.decode().splitlines()
    assert first == "a" * 10_000
    dropped = json.loads(report)["lines"]
    assert dropped == stream.writer.dropped > 0
    assert rest == [f"line {number}" for number in range(dropped, 10)]


def test_a_child_process_neither_completes_nor_reports_its_parents_lines(
    ends: Callable[[Callable[[], Ends]], Ends],
) -> None:
    read, write = ends(pipe_ends)
    stream = LogStream(write, json_lines=True)
    stream.write("a" * 10_000 + "\n")
    stream.write("lost\n")
    assert stream.writer.dropped == 1
    assert read_available(read) == b"a" * SMALL
    if (child := os.fork()) == 0:
        stream.write("of the child\n")
        os._exit(stream.writer.dropped)
    assert os.waitpid(child, 0)[1] == 0
    assert read_available(read) == b"of the child\n"


def test_a_line_is_written_when_it_is_complete(ends: Callable[[Callable[[], Ends]], Ends]) -> None:
    read, write = ends(pipe_ends)
    stream = LogStream(write, json_lines=True)
    print("one", "two", file=stream)
    print("half", end="", file=stream)
    assert read_available(read) == b"one two\n"
    stream.flush()
    assert read_available(read) == b"half"
    assert (stream.fileno(), stream.isatty(), stream.writable()) == (write, False, True)
