"""Measure Rill's CPU per start on new connections, without and with TLS to the upstream: start_cost.py STARTS"""

import socket
import sys
import tempfile
from pathlib import Path

import prepare
import servers
from measure import cpu_seconds

REQUEST = b"GET /stream?q=tokens%3D2+rate%3D0.02 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def seconds_per_start(folder: Path, tls: bool, starts: int) -> float:
    """Open so many streams, one after the other, and return the CPU seconds of Rill for each."""
    certificate = prepare.certificate(folder) if tls else None
    with servers.upstream(certificate) as (_, upstream_port):
        task = servers.Task(servers.free_port(), upstream_port, folder, certificate, workers=1)
        with servers.serving(servers.SERVERS[0], task) as rill:
            before, streams = cpu_seconds(rill), []
            for _ in range(starts):
                streams.append(socket.create_connection(("127.0.0.1", task.port)))
                streams[-1].sendall(REQUEST)
                streams[-1].recv(100)
            return (cpu_seconds(rill) - before) / starts


if __name__ == "__main__":
    for tls in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            cost = seconds_per_start(Path(folder), tls, int(sys.argv[1]))
            print(f"{cost * 1000:.1f} ms per start{' over TLS' * tls}")
