"""Starts gunicorn, or `flask`, by a fork of a process that has imported the application: a tenth of the CPU of a start.

What a program reads from its environment when its modules are imported would come too late: see `is_read_late`.
`python fork_server.py PROGRAM DESCRIPTOR` is that process; it ends, with all that it has started, when the tests do.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Read when gunicorn or the application starts; gunicorn.conf.py overrides those that gunicorn reads at its import.
READ_LATE = re.compile(
    "RILL_.*|ANTHROPIC_(API_KEY|AUTH_TOKEN|BASE_URL)|REDIS_URL|DYNO|WEB_CONCURRENCY|PORT|GUNICORN_CMD_ARGS"
    "|(HTTPS?|ALL|NO)_PROXY|PATH|HOME|TMPDIR"
)
UTF_8 = {"LANG": "C.UTF-8"}


def is_read_late(env: Mapping[str, str]) -> bool:
    """Whether all of the environment is read when a program starts, and nothing when a module is imported."""
    return all(item in UTF_8.items() or READ_LATE.fullmatch(item[0]) for item in env.items())


class Forked:
    """A process that was forked, with those methods of subprocess.Popen that tests use."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self._server = server
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._server.exit_code(self.pid)

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Wait for the process to end, and return its exit code; raise subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless the process has ended."""
        self.send_signal(signal.SIGTERM)


class ForkServer:
    """The process that forks, and what it reported."""

    def __init__(self, program: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._codes: dict[int, int] = {}
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [sys.executable, __file__, program, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**env, **UTF_8},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(self, arguments: Sequence[str], env: Mapping[str, str], descriptors: tuple[int, int, int]) -> Forked:
        """Fork `PROGRAM ARGUMENTS` with these descriptors of its stdin, stdout and stderr."""
        task = json.dumps({"arguments": list(arguments), "env": dict(env)}).encode()
        with self._lock:
            socket.send_fds(self._socket, [task], descriptors)
            while "started" not in (report := self._hear()):
                pass
            self._codes.pop(report["started"], None)  # of a process that had the same id
        return Forked(self, report["started"])

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a process; None while it runs."""
        with self._lock:
            while select.select([self._socket], [], [], 0)[0]:
                self._hear()
            return self._codes.get(pid)

    def close(self) -> None:
        """End the process that forks, and those that it has started."""
        self._socket.close()
        self._process.wait()

    def _hear(self) -> dict[str, int]:
        report: dict[str, int] = json.loads(self._socket.recv(1024))
        if "ended" in report:
            self._codes[report["ended"]] = report["code"]
        return report


_servers: dict[str, ForkServer] = {}


def fork_server(program: str = "gunicorn") -> ForkServer:
    """Return the fork server of this process for a program: "gunicorn" or "flask"."""
    if program not in _servers:
        _servers[program] = ForkServer(program)
    return _servers[program]


def run_forked(program: str, arguments: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run `PROGRAM ARGUMENTS`, and return its exit code, its stdout and its stderr."""
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        descriptors = (nothing.fileno(), stdout.fileno(), stderr.fileno())
        code = fork_server(program).start(arguments, env, descriptors).wait()
        for written in stdout, stderr:
            written.seek(0)
        return code, stdout.read(), stderr.read()


def close_fork_servers() -> None:
    """End the fork servers of this process."""
    while _servers:
        _servers.popitem()[1].close()


# In the process that forks


def main() -> None:
    """Fork until the tests end or are killed; then stop the processes that still run."""
    sys.path[0] = str(ROOT)
    program, asked = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    running: set[int] = set()
    with contextlib.suppress(ConnectionError):  # of tests that were killed before they read all reports
        fork_all(program, asked, running)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)


def fork_all(program: str, asked: socket.socket, running: set[int]) -> None:
    """Fork a process for each task that comes, and report how each of them ends; return when no more will come."""
    wait = select.select  # as it was before gevent patches it
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    prepare(program)
    while True:
        readable, _, _ = wait([asked, woken], [], [])
        if woken in readable:
            os.read(woken, 1024)
            reap(asked, running)
        if asked in readable:
            task, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 3)
            if not task:
                return
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                running.clear()  # The others are not its own.
                for descriptor in (asked.detach(), woken, wake):
                    os.close(descriptor)
                with ended_at_once():
                    become(program, json.loads(task), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            running.add(pid)
            asked.send(json.dumps({"started": pid}).encode())


def prepare(program: str) -> None:
    """Import what the program imports; for gunicorn patched, as gunicorn.conf.py does that before the first worker."""
    if program == "gunicorn":
        from gevent import monkey

        monkey.patch_all(os=False, signal=False, subprocess=False)
        modules = ["gunicorn.app.wsgiapp", "gunicorn.arbiter", "gunicorn.workers.ggevent", "rill.server.worker"]
    else:
        modules = ["flask.cli"]
    for module in (*modules, "app"):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # A collection in each process that is forked would take longer than its start.


def reap(asked: socket.socket, running: set[int]) -> None:
    """Report the processes that have ended."""
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            running.remove(pid)
            asked.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def become(program: str, task: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the program with these descriptors of its stdin, stdout and stderr, until it exits."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(task["env"])
    tempfile.tempdir = None  # It is read from TMPDIR when it is asked for.
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [str(Path(importlib.import_module(program).__path__[0]) / "__main__.py"), *task["arguments"]]
    if program == "gunicorn":
        importlib.import_module("gunicorn.app.wsgiapp").run(prog=program)
    else:
        importlib.import_module("flask.cli").main()
    sys.exit()


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """End the process as the interpreter does, except that it frees no memory, which takes longer than a start."""
    code = 1
    try:
        yield
    except SystemExit as exited:
        if isinstance(exited.code, str):
            print(exited.code, file=sys.stderr)
        else:
            code = exited.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
