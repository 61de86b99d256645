"""The real server for tests: gunicorn on a free port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
from conversation import Conversation, request_bytes
from fork_server import UTF_8, Forked, fork_server, is_read_late
from leaks import WIRE_SECRETS, Leak, WireSecrets, find_leaks, forbidden_at
from tcp_sockets import tcp_sockets
from upstream import Upstream

ROOT = Path(__file__).parent.parent
START_SECONDS = 60
STOP_SECONDS = 40
BUSY_PORT = "Connection in use"  # gunicorn's message


# Whether servers have no relay: in some tests, and with GENERAL_PATH in the environment in all.
GENERAL_PATH = bool(os.environ.get("GENERAL_PATH"))
GENERAL_PATH_FOLDER = str(ROOT / "tests" / "general_path")


class StartFailed(Exception):
    """The server did not start; `output` is everything that it wrote, `exit_code` None if it was still running."""

    def __init__(self, output: str, exit_code: int | None) -> None:
        super().__init__(f"the server did not start (exit code {exit_code}); its output:\n{output}")
        self.output = output
        self.exit_code = exit_code


class PortTaken(StartFailed):
    """Another process listened on the port first."""


class Stopped(NamedTuple):
    """How long a stop took, and the exit code of gunicorn's master."""

    seconds: float
    exit_code: int


class Rill:
    """`gunicorn wsgi:app`, running in its own process group while the context is entered."""

    def __init__(
        self,
        env: Mapping[str, str],
        arguments: tuple[str, ...] = (),
        root: Path = ROOT,
        bind: bool = True,
        app: str = "wsgi:app",
        outputs: tuple[int | None, int] | None = None,
        forked: bool = True,
    ) -> None:
        """`bind=False` names the port as a platform does, by PORT in the environment.

        `outputs` are the files for stdout and stderr; `output()` contains stdout only if the first is None.
        A server is forked from a process that has imported it, unless that makes a difference or `forked` is false.
        """
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env = {**inherited, **UTF_8, **env}
        self.arguments = without_relay(arguments) if GENERAL_PATH else arguments
        self.root = root
        self.bind = bind
        self.app = app
        self.outputs = outputs
        self.forked = forked and root == ROOT and is_read_late(self.env)
        self.port = 0
        self._stopped: Stopped | None = None
        self._begun = 0  # offset in bytes of what `output` returns

    def __enter__(self) -> "Rill":
        if self.port:  # entered before, by a fixture
            return self
        # The port is free when it is chosen; if another process takes it before gunicorn does, choose another.
        for _ in range(4):
            with contextlib.suppress(PortTaken):
                return self._start()
        return self._start()

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop()
        finally:
            self._output.close()

    @property
    def url(self) -> str:
        """The server's address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of gunicorn's master, which is also that of its process group."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server has been started, and has not ended."""
        return bool(self.port) and self._stopped is None and self._process.poll() is None

    def choose_port(self) -> int:
        """Return a port that is free at this moment."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
            return port

    def output(self) -> str:
        """Return what the server has written to stdout and stderr since its start, or since `forget_output`."""
        # pread: the server shares the file's offset, so a seek here would move where it writes.
        size = os.fstat(self._output.fileno()).st_size - self._begun
        return os.pread(self._output.fileno(), size, self._begun).decode("utf-8", "replace")

    def check_output(self) -> None:
        """Raise Leak if the output contains a secret."""
        leaks = find_leaks(self.output(), forbidden_at(self.port, self.env))
        if leaks:
            raise Leak("\n".join([f"gunicorn {self.app} {' '.join(self.arguments)} at {self.url} wrote:", *leaks]))

    def forget_output(self) -> None:
        """Make `output` begin here."""
        self._begun = os.fstat(self._output.fileno()).st_size

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes alive now."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as listed:  # psutil would read about every process
            children = [psutil.Process(int(pid)) for pid in listed.read().split() if psutil.pid_exists(int(pid))]
        return [each for each in children if each.status() != psutil.STATUS_ZOMBIE]

    def wait_for_workers(self, n: int, timeout: float = 10) -> list[psutil.Process]:
        """Wait until `n` workers are alive, and return them: a healthy server may still be forking."""
        deadline = time.monotonic() + timeout
        while len(alive := self.workers()) != n:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(alive)} workers instead of {n}:\n{self.output()}")
            time.sleep(0.02)
        return alive

    def signal(self, number: int, everyone: bool = False) -> None:
        """Send a signal to the master, or to the whole group, as Heroku does."""
        if everyone:
            os.killpg(self.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Wait until the master has exited, and return its exit code."""
        return self._process.wait(timeout)

    def stop(self) -> Stopped:
        """Send SIGTERM and wait for all processes to end; after 40 s kill the group and raise.

        Raise Leak if the server has written a secret.
        """
        if self._stopped:
            return self._stopped
        began = time.monotonic()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        while self._survivors():
            if time.monotonic() - began > STOP_SECONDS:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
                raise AssertionError(f"SIGTERM did not stop the server in {STOP_SECONDS} s:\n{self.output()}")
            time.sleep(0.05)
        self._stopped = Stopped(time.monotonic() - began, self._process.returncode)
        self.check_output()
        return self._stopped

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> "Conversation":
        """Send a request on a new connection, and read nothing of the answer yet."""
        return Conversation(self.port, request_bytes(method, path, headers, body))

    def _start(self) -> "Rill":
        self._launch()
        try:
            self._wait_until_healthy()
        except BaseException:
            if BUSY_PORT in self.output():
                self.signal(signal.SIGKILL)  # it would wait five seconds for the port
            self.__exit__()
            raise
        return self

    def _launch(self) -> None:
        self.port = self.choose_port()
        WIRE_SECRETS[self.port] = WireSecrets()
        self._stopped = None
        self._begun = 0
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (read until the server has stopped)
        stdout, stderr = self.outputs or (None, subprocess.STDOUT)
        bind = ["--bind", f"127.0.0.1:{self.port}"] if self.bind else []
        arguments = [self.app, *bind, *self.arguments]
        env = self.env if self.bind else {**self.env, "PORT": str(self.port)}
        self._process: Forked | subprocess.Popen[bytes]
        if self.forked:
            self._process = self._fork(arguments, env)
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *arguments],
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output if stdout is None else stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def _fork(self, arguments: list[str], env: Mapping[str, str]) -> Forked:
        written = self._output.fileno()
        stdout, stderr = self.outputs or (written, written)
        with open(os.devnull) as nothing:
            return fork_server().start(arguments, env, (nothing.fileno(), stdout or written, stderr))

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline and BUSY_PORT not in self.output():
            if self._is_listening() and self._is_healthy(max(0.1, deadline - time.monotonic())):
                return
            time.sleep(0.02)
        failure = PortTaken if BUSY_PORT in self.output() else StartFailed
        raise failure(self.output(), self._process.poll())

    def _is_listening(self) -> bool:
        """Return whether this very process listens: another server on the port could be healthy too."""
        return any(each.listens and each.local_port == self.port for each in tcp_sockets(self.pid))

    def _is_healthy(self, timeout: float) -> bool:
        with (
            contextlib.suppress(OSError),
            Conversation(self.port, request_bytes("GET", "/healthz", {"Connection": "close"}), timeout) as asked,
        ):
            return asked.status == 200
        return False

    def _survivors(self) -> list[int]:
        """Return the ids of the group's processes that have not ended (a zombie has)."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return []
        return [each.pid for each in psutil.process_iter(["status"]) if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == self.pid
        except ProcessLookupError:
            return False


def without_relay(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return gunicorn's arguments with the folder of a wsgi module that has no relay."""
    if "--pythonpath" not in arguments:
        return ("--pythonpath", GENERAL_PATH_FOLDER, *arguments)
    value = arguments.index("--pythonpath") + 1
    return (*arguments[:value], f"{arguments[value]},{GENERAL_PATH_FOLDER}", *arguments[value + 1 :])


StartRill = Callable[..., Rill]


def rill_env(upstream: Upstream) -> dict[str, str]:
    """Return the environment of a server that uses the fake upstream."""
    return {
        "ANTHROPIC_API_KEY": "sk-test-key",
        "ANTHROPIC_BASE_URL": upstream.url,
        "RILL_ALLOWED_MODELS": "*",
        "RILL_RATE_LIMIT": "1000000/minute",
        # The Host of requests that are written by hand, and a name that the browser resolves to this machine.
        "RILL_ALLOWED_HOSTS": "x,rill.test",
    }


def with_changes(env: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment with the changes; None unsets a variable."""
    return {name: value for name, value in {**env, **changes}.items() if value is not None}
