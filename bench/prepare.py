"""Set up what the servers need, once; each function returns None, or what is missing."""

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
    """Run a command; return the last line of its output if it fails."""
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
    """Return whether a file is missing, or older than its source."""
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


@functools.cache
def python_peers() -> str | None:
    """Install the Python peers' dependencies into their own virtual environment."""
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
    """Install the Node peers' dependencies from the lock file."""
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
    """Build the Go handler; it needs only the standard library, so nothing is downloaded."""
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
    """Check for nginx."""
    return None if shutil.which("nginx") else "nginx is not installed"


def rill() -> str | None:
    """Check for Rill in the repository that contains this folder."""
    return None if (HERE.parent / "wsgi.py").exists() else "there is no wsgi.py"


def nothing() -> None:
    """Need nothing."""


def certificate(folder: Path) -> Path | None:
    """Create a certificate for localhost and its key in one PEM file; return None without openssl."""
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
