"""A known vulnerability in a locked package fails the audit, and packages that were not scanned are reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from server import ROOT

VULNERABLE = '{"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}'
SOUND = '{"name": "flask", "version": "3.1.3", "vulns": []}'
UNKNOWN = '{"name": "gevent", "skip_reason": "no data"}'


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        (f'{{"dependencies": [{SOUND}]}}', 0, "scanned 1 of 1 packages\n"),
        (f'{{"dependencies": [{SOUND}, {VULNERABLE}]}}', 1, "jinja2 2.10 has PYSEC-2019-217; fixed in 2.10.1"),
        (f'{{"dependencies": [{SOUND}, {UNKNOWN}]}}', 0, "scanned 1 of 2 packages, skipped 1 that"),
        ("no network", 0, "audit: skipped, the scanner had no data"),
    ],
    ids=["sound", "vulnerable", "unknown", "no data"],
)
def test_a_vulnerability_fails_the_audit_and_skipped_packages_are_reported(
    tmp_path: Path, found: str, code: int, message: str
) -> None:
    (tmp_path / "pip_audit.py").write_text(f"print({found!r})")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tests" / "audit.py")]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (code, "")
    assert message in ran.stdout
