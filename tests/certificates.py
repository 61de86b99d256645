"""Certificates for servers that speak TLS."""

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, names: str) -> Path:
    """Return a file with a key and a self-signed certificate for the `names`; skip the test if openssl is missing."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl command makes the certificate")
    made, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    options = ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    made.write_text(made.read_text() + key.read_text())
    return made
