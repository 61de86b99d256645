"""The service as a deployment file starts it: its command, its folder, its environment, its user."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from conversation import Conversation, request_bytes
from server import BUSY_PORT

START_SECONDS = 60
STOP_SECONDS = 40
# Like the user nobody it may write nowhere, but it may read every file: the tests' Python may be in root's folder.
MAY_READ = "=-all,+dac_read_search"
NOBODY = ("--reuid=nobody", "--regid=nogroup", "--clear-groups", f"--inh-caps{MAY_READ}", f"--ambient-caps{MAY_READ}")


class Deployed:
    """A command that serves at a port, running while the context is entered."""

    def __init__(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str], port: int, as_nobody: bool = False
    ) -> None:
        switch = ["setpriv", *NOBODY, "--"] if as_nobody and os.getuid() == 0 and shutil.which("setpriv") else []
        self.port = port
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (read until the server has stopped)
        self._process = subprocess.Popen(
            [*switch, *command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Deployed":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    @property
    def user(self) -> str:
        """Return the name of the user who runs it."""
        return pwd.getpwuid(Path(f"/proc/{self._process.pid}").stat().st_uid).pw_name

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Conversation:
        """Send a request on a new connection, and return the connection before reading the response."""
        return Conversation(self.port, request_bytes(method, path, headers, body))

    def output(self) -> str:
        """Return its output so far."""
        return os.pread(self._output.fileno(), 1_000_000, 0).decode("utf-8", "replace")

    def wait_until_healthy(self) -> None:
        """Wait until it answers /healthz."""
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline and BUSY_PORT not in self.output():
            try:
                with self.ask("GET", "/healthz", {"Connection": "close"}) as asked:
                    assert asked.status == 200
                    return
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise AssertionError(f"it did not start (exit code {self._process.poll()}):\n{self.output()}")

    def begin_to_stop(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        """Wait until it has ended, and return its exit code."""
        return self._process.wait(STOP_SECONDS)
