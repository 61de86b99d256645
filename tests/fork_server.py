"""Starts gunicorn by a fork of a process that has imported the application, which takes a tenth of the CPU of a start.

What a server reads from its environment when its modules are imported would come too late: see `Rill` for what may be
started so. `python fork_server.py DESCRIPTOR` is that process; it ends, with all servers, when the tests do.
"""

import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent


class Forked:
    """A server that was forked, with those methods of subprocess.Popen that tests use."""

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
                raise subprocess.TimeoutExpired("gunicorn", timeout)
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

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._codes: dict[int, int] = {}
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [sys.executable, __file__, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**env, "LANG": "C.UTF-8"}, pass_fds=[theirs.fileno()], start_new_session=True
            )

    def start(self, arguments: Sequence[str], env: Mapping[str, str], output: int) -> Forked:
        """Fork `gunicorn ARGUMENTS`, which writes to the descriptor `output`."""
        task = json.dumps({"arguments": list(arguments), "env": dict(env)}).encode()
        with self._lock:
            socket.send_fds(self._socket, [task], [output])
            while "started" not in (report := self._hear()):
                pass
            self._codes.pop(report["started"], None)  # of a process that had the same id
        return Forked(self, report["started"])

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a server; None while it runs."""
        with self._lock:
            while select.select([self._socket], [], [], 0)[0]:
                self._hear()
            return self._codes.get(pid)

    def close(self) -> None:
        """End the process that forks, and its servers."""
        self._socket.close()
        self._process.wait()

    def _hear(self) -> dict[str, int]:
        report: dict[str, int] = json.loads(self._socket.recv(1024))
        if "ended" in report:
            self._codes[report["ended"]] = report["code"]
        return report


@functools.cache
def fork_server() -> ForkServer:
    """Return the fork server of this process."""
    return ForkServer()


# In the process that forks


def main() -> None:
    """Fork servers until the tests end or are killed; then stop those that still run."""
    sys.path[0] = str(ROOT)
    asked = socket.socket(fileno=int(sys.argv[1]))
    running: set[int] = set()
    with contextlib.suppress(ConnectionError):  # of tests that were killed before they read all reports
        fork_all(asked, running)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)


def fork_all(asked: socket.socket, running: set[int]) -> None:
    """Fork a server for each task that comes, and report how each of them ends; return when no more will come."""
    wait = select.select  # as it was before gevent patches it
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    prepare()
    while True:
        readable, _, _ = wait([asked, woken], [], [])
        if woken in readable:
            os.read(woken, 1024)
            reap(asked, running)
        if asked in readable:
            task, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 1)
            if not task:
                return
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                running.clear()  # The others are not its own.
                for descriptor in (asked.detach(), woken, wake):
                    os.close(descriptor)
                serve(json.loads(task), descriptors[0])
            os.close(descriptors[0])
            running.add(pid)
            asked.send(json.dumps({"started": pid}).encode())


def prepare() -> None:
    """Import what gunicorn.conf.py imports before the first worker, patched as it does that."""
    from gevent import monkey

    monkey.patch_all(os=False, signal=False, subprocess=False)
    for module in ("gunicorn.app.wsgiapp", "gunicorn.arbiter", "gunicorn.workers.ggevent", "rill.server.worker", "app"):
        importlib.import_module(module)


def reap(asked: socket.socket, running: set[int]) -> None:
    """Report the servers that have ended."""
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            running.remove(pid)
            asked.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def serve(task: dict[str, Any], output: int) -> NoReturn:
    """Be gunicorn, and end as it does."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(task["env"])
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    import gunicorn.__main__
    from gunicorn.app.wsgiapp import run

    sys.argv = [gunicorn.__main__.__file__, *task["arguments"]]
    run(prog="gunicorn")
    sys.exit()


if __name__ == "__main__":
    main()
