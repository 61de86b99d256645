"""deploy/rill.service is valid, its timeouts fit Rill's, and its command starts the service."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import Deployed
from gated import FIRST, SECOND, gated_answer
from server import ROOT, Rill
from upstream import Upstream

from rill.server.open_files import RESERVED_DESCRIPTORS, WAITING_CONNECTIONS
from rill.settings import Settings

UNIT = (ROOT / "deploy" / "rill.service").read_text("utf-8")
VALUES = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
ANALYZE = shutil.which("systemd-analyze")
NEEDS_SYSTEMD = pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")
# The exposure level (0 to 10) of `systemd-analyze security`; 9.6 without any protection.
MOST_EXPOSED = 2.0
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the unit, adapted to this repository and this Python."""
    path = tmp_path / "rill.service"
    here = UNIT.replace("/opt/rill/.venv/bin", str(Path(sys.executable).parent)).replace("/opt/rill", str(ROOT))
    path.write_text(here)
    return path


def analyze(*arguments: str) -> str:
    """Return the output of systemd-analyze; fail if it found an error."""
    assert ANALYZE
    done = subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@NEEDS_SYSTEMD
def test_systemd_accepts_the_unit(unit: Path) -> None:
    assert analyze("verify", str(unit)) == ""


@NEEDS_SYSTEMD
def test_the_sandbox_limits_a_compromised_service(unit: Path) -> None:
    output = analyze("security", "--offline=yes", "--no-pager", str(unit))
    (exposure,) = re.findall(r"Overall exposure level.*?: ([\d.]+)", output)
    assert float(exposure) <= MOST_EXPOSED


def test_systemd_waits_for_the_graceful_shutdown() -> None:
    assert float(VALUES["TimeoutStopSec"]) > DEFAULTS["shutdown_grace_seconds"] + 4  # as gunicorn.conf.py has it
    assert VALUES["KillMode"] == "mixed"


def test_the_file_descriptor_limit_suffices_for_every_stream() -> None:
    needed = 2 * DEFAULTS["max_streams"] + WAITING_CONNECTIONS + RESERVED_DESCRIPTORS
    assert int(VALUES["LimitNOFILE"]) >= needed


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield a notification socket, as systemd provides it for Type=notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def test_its_command_starts_rill_which_notifies_systemd_and_shuts_down_gracefully(
    notices: socket.socket, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    port = Rill({}).choose_port()
    env = {
        "PATH": os.defpath,
        "NOTIFY_SOCKET": notices.getsockname(),
        "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}",
        "ANTHROPIC_API_KEY": "sk-test-key",
        "ANTHROPIC_BASE_URL": upstream.url,
    }
    program, *arguments = VALUES["ExecStart"].split()
    assert program == f"{VALUES['WorkingDirectory']}/.venv/bin/gunicorn"
    command = [str(Path(sys.executable).parent / "gunicorn"), *arguments]
    with Deployed(command, ROOT, env, port) as running:
        assert VALUES["Type"] == "notify"
        assert b"READY=1" in notices.recv(4096).split(b"\n")
        running.wait_until_healthy()
        with running.ask("GET", "/stream?q=hi") as asked:
            asked.read_until(FIRST.encode())
            running.begin_to_stop()
            upstream.open("second")
            assert asked.read_rest() == SECOND.encode()
            assert asked.ended == "clean"
        assert running.exit_code() == 0, running.output()
