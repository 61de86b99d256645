"""The offline model in its own process."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from server import ROOT


@contextmanager
def serve_offline_model() -> Iterator[str]:
    """Serve the offline model without pauses between tokens; yield its URL."""
    command = [sys.executable, "-m", "rill.offline", "--port", "0", "--rate", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ANTHROPIC_BASE_URL=(\S+)", line)
        try:
            assert found, f"expected a line with ANTHROPIC_BASE_URL, got {line!r}"
            yield found[1]
        finally:
            process.terminate()
