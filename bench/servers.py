"""Start and stop the compared servers, each in its usual form with one worker process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import prepare
from measure import process_tree

READY_SECONDS = 30
STOP_SECONDS = 0.5
FIRST_REQUEST = b"GET /stream?q=tokens%3D2%20rate%3D0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Task:
    """The parameters of a server's start."""

    port: int
    upstream_port: int
    folder: Path  # for its files and logs; removed after the run
    certificate: Path | None  # of a TLS upstream
    workers: int
    settings: tuple[tuple[str, str], ...] = ()  # of Rill, besides those below

    @property
    def upstream(self) -> str:
        """Return the upstream's base URL."""
        return f"{'https' if self.certificate else 'http'}://localhost:{self.upstream_port}"


@dataclass(frozen=True)
class Server:
    """One row of the comparison."""

    name: str
    title: str
    prepare: Callable[[], str | None]
    command: Callable[[Task], list[str]]
    directory: Path = prepare.PEERS


def rill(task: Task) -> list[str]:
    """Rill with its own gunicorn.conf.py."""
    return [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{task.port}"]


def flask(task: Task) -> list[str]:
    """Gunicorn's gevent worker, with enough connections for every scenario."""
    options = ["--worker-class=gevent", "--worker-connections=10000", "--workers=1", "--backlog=4096"]
    bind = f"--bind=127.0.0.1:{task.port}"
    return [str(prepare.PYTHON), "-m", "gunicorn", *options, bind, "flask_text_stream:app"]


def fastapi(task: Task) -> list[str]:
    """Uvicorn with uvloop and httptools, without an access log like the others."""
    options = ["--loop=uvloop", "--http=httptools", "--no-access-log", "--backlog=4096"]
    bind = ["--host=127.0.0.1", f"--port={task.port}"]
    return [str(prepare.PYTHON), "-m", "uvicorn", *options, *bind, "fastapi_async:app"]


def nginx(task: Task) -> list[str]:
    """Nginx with its configuration template filled in."""
    verify = "proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_server_name on; "
    known = {
        "DESCRIPTORS": "16384",
        "FOLDER": str(task.folder),
        "PORT": str(task.port),
        "UPSTREAM_ADDRESS": f"127.0.0.1:{task.upstream_port}",
        "UPSTREAM_SCHEME": task.upstream.partition(":")[0],
        "TLS": f"{verify}proxy_ssl_trusted_certificate {task.certificate};" if task.certificate else "",
    }
    text = (prepare.PEERS / "nginx.conf").read_text()
    for name, value in known.items():
        text = text.replace(f"@{name}@", value)
    path = task.folder / "nginx.conf"
    path.write_text(text)
    return [shutil.which("nginx") or "nginx", "-e", "stderr", "-c", str(path)]


SERVERS = [
    Server("rill", "Rill", prepare.rill, rill, prepare.HERE.parent),
    Server("go", "Go", prepare.go_handler, lambda _: [str(prepare.GO_HANDLER)]),
    Server("nginx", "nginx", prepare.nginx, nginx),
    Server("node", "Node SDK", prepare.node_peers, lambda _: ["node", "node_sdk.mjs"]),
    Server("ai_sdk", "AI SDK", prepare.node_peers, lambda _: ["node", "ai_sdk.mjs"]),
    Server("flask", "Flask", prepare.python_peers, flask),
    Server("fastapi", "FastAPI", prepare.python_peers, fastapi),
    Server("none", "no server", prepare.nothing, lambda _: []),
]


def environment(task: Task) -> dict[str, str]:
    """Return the server's environment; only PATH is inherited."""
    known = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(task.folder),
        "ANTHROPIC_API_KEY": "bench",
        "ANTHROPIC_BASE_URL": task.upstream,
        "WEB_CONCURRENCY": str(task.workers),
        "RILL_ALLOWED_MODELS": "*",
        "RILL_RATE_LIMIT": "1000000000/minute",
        "RILL_MAX_STREAMS": "12000",
        "RILL_MAX_STREAMS_PER_CLIENT": "12000",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    known |= dict(task.settings)
    if task.certificate:
        known |= {"SSL_CERT_FILE": str(task.certificate), "NODE_EXTRA_CA_CERTS": str(task.certificate)}
    return known


def free_port() -> int:
    """Return an unused port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    """Return whether a first answer is complete."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(FIRST_REQUEST)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                data = connection.recv(65536)
                if not data:
                    return False
                answer += data
            return b" 200 " in answer.partition(b"\r\n")[0]
    except OSError:
        return False


def wait_ready(process: subprocess.Popen, port: int, log: Path) -> None:
    """Wait for a complete answer; raise RuntimeError with the last line of the log if there is none."""
    deadline = time.monotonic() + READY_SECONDS
    while not answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"did not start: {last[:120]}")
        time.sleep(0.1)


def stop(process: subprocess.Popen) -> None:
    """End a process and its children; its process group contains nothing else."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def serving(server: Server, task: Task) -> Iterator[list[int]]:
    """Run a server, and yield the ids of its processes once it answers."""
    command = server.command(task)
    if not command:
        yield []
        return
    log = task.folder / "server.log"
    known = environment(task)
    if server.name != "rill":
        known["PORT"] = str(task.port)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=server.directory, env=known, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_ready(process, task.port, log)
        yield process_tree(process.pid)
    finally:
        stop(process)


@contextlib.contextmanager
def upstream(certificate: Path | None) -> Iterator[tuple[int, int]]:
    """Run the fake upstream, and yield its process id and port."""
    command = [sys.executable, str(prepare.HERE / "upstream.py")]
    if certificate:
        command += ["--certificate", str(certificate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        stop(process)


BUSY_LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    sum(range(1_000_000))
"""


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Run so many processes that each keep a core busy; they also end with this process."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
