"""The offline model in its own process."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from server import ROOT

SERVE = """
from rill.offline import serve
server = serve("127.0.0.1", 0, 0.0)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def serve_offline_model() -> Iterator[str]:
    """Serve the offline model without pauses between tokens; yield its URL."""
    with subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
