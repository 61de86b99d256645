"""Sets up what the servers need, once; each function returns None, or what this machine lacks."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
PYTHON = HERE / ".venv" / "bin" / "python"
GO_HANDLER = HERE / ".cache" / "go_handler"
SET_UP_SECONDS = 600


def run(*command: str | Path, cwd: Path = HERE, **environ: str) -> str | None:
    """Run a set-up command; on failure return the last line that it said."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SET_UP_SECONDS,
    )
    return None if done.returncode == 0 else done.stdout.strip().rpartition("\n")[2] or "set-up failed"


def stale(made: Path, source: Path) -> bool:
    """Whether what was made from a file is missing, or older than it."""
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


@functools.cache
def python_peers() -> str | None:
    """The Python peers' dependencies, in a virtual environment of their own."""
    requirements, done = HERE / "requirements.txt", HERE / ".venv" / ".done"
    if not stale(done, requirements):
        return None
    print("setting up the Python peers", file=sys.stderr)
    problem = run(sys.executable, "-m", "venv", HERE / ".venv") or run(
        PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements
    )
    if not problem:
        done.touch()
    return problem


@functools.cache
def node_peers() -> str | None:
    """The Node peers' dependencies, from the committed lock."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node or npm is not installed"
    done = HERE / "node_modules" / ".done"
    if not stale(done, HERE / "package-lock.json"):
        return None
    print("setting up the Node peers", file=sys.stderr)
    problem = run("npm", "ci", "--silent", "--no-audit", "--no-fund")
    if not problem:
        done.touch()
    return problem


@functools.cache
def go_handler() -> str | None:
    """The compiled handler; it needs the standard library alone, so nothing is downloaded."""
    if not shutil.which("go"):
        return "go is not installed"
    folder = PEERS / "go_handler"
    if not stale(GO_HANDLER, folder / "main.go"):
        return None
    print("building the Go handler", file=sys.stderr)
    return run(
        "go",
        "build",
        "-o",
        GO_HANDLER,
        ".",
        cwd=folder,
        GOPROXY="off",
        GOFLAGS="-mod=mod",
        GOTOOLCHAIN="local",
    )


def nginx() -> str | None:
    """The relay that is the floor."""
    return None if shutil.which("nginx") else "nginx is not installed"


def rill() -> str | None:
    """The service itself, from the repository that holds this folder."""
    return None if (HERE.parent / "wsgi.py").exists() else "there is no wsgi.py"


def nothing() -> None:
    """Needs no set-up."""


def certificate(folder: Path) -> Path | None:
    """Make a certificate for localhost with its key, in one PEM file; None without openssl."""
    if not shutil.which("openssl"):
        return None
    key, pem = folder / "key.pem", folder / "localhost.pem"
    problem = run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", pem),
    )
    if problem:
        return None
    pem.write_bytes(pem.read_bytes() + key.read_bytes())
    return pem
