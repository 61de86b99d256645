"""A real redis-server for tests: a child process on its own port or Unix socket."""

import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

START_SECONDS = 60
# Below the range of ephemeral ports, so that no other process takes one while its server is down.
PORTS = range(20_000, 32_000)


class RedisServer:
    """A redis-server while the context is entered; `kill` stops it and `start` restarts it at the same address."""

    def __init__(self, folder: Path, password: str = "", socket_file: bool = False, certificate: Path | None = None):
        """With `certificate`, a file with a key and its certificate, it accepts TLS only."""
        if not shutil.which("redis-server"):
            pytest.skip("redis-server is not installed")
        self.folder = folder
        self.password = password
        self.path = folder / "redis.sock" if socket_file else None
        self.certificate = certificate
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # The port is free when it is chosen; if another process takes it first, the server ends and another is chosen.
        for _ in range(4):
            self.port = choose_port()
            with suppress(RuntimeError):
                self.start()
                return self
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """The value of REDIS_URL, with the password."""
        return self.url_with(self.password)

    def url_with(self, password: str) -> str:
        """Return the URL with another password."""
        credentials = f":{password}@" if password else ""
        if self.path:
            return f"redis+unix://{credentials}{self.path}"
        return f"{'rediss' if self.certificate else 'redis'}://{credentials}127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis":
        """Return a client for the test."""
        if self.path:
            return redis.Redis(unix_socket_path=str(self.path), password=self.password or None)
        return redis.Redis(
            port=self.port, password=self.password or None, ssl=bool(self.certificate), ssl_cert_reqs="none"
        )

    def clients(self) -> int:
        """Return how many connections it has, without the one that counts."""
        with self.client() as client:
            return len(client.client_list()) - 1

    def kept(self) -> int:
        """Return how many keys it contains."""
        with self.client() as client:
            return int(str(client.dbsize()))

    def start(self) -> None:
        """Start it, and wait until it answers; raise RuntimeError if it ends instead."""
        self._process = subprocess.Popen(
            ["redis-server", *self._options()], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(0.02)
        raise RuntimeError(f"redis-server does not start: {self.kill()}")

    def kill(self) -> str:
        """Kill it, so that it closes nothing properly; return its output."""
        process, self._process = self._process, None
        if not process:
            return ""
        process.kill()
        return process.communicate()[0].decode()

    def hang(self) -> None:
        """Suspend it until `go_on`: it accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume it."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _options(self) -> list[str]:
        options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        if self.password:
            options += ["--requirepass", self.password]
        if self.path:
            return [*options, "--port", "0", "--unixsocket", str(self.path)]
        if not self.certificate:
            return [*options, "--port", str(self.port)]
        tls = {"tls-port": self.port, "tls-cert-file": self.certificate, "tls-key-file": self.certificate}
        more = {**tls, "tls-ca-cert-file": self.certificate, "tls-auth-clients": "no", "port": 0}
        return [*options, *(part for name, value in more.items() for part in (f"--{name}", str(value)))]


def speaks_tls() -> bool:
    """Return whether the redis-server of this machine was built with TLS."""
    ran = subprocess.run(["redis-server", "--tls-port", "1", "--port", "0"], capture_output=True, timeout=10)
    return b"Bad directive" not in ran.stdout + ran.stderr


def choose_port() -> int:
    """Return a free port."""
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
