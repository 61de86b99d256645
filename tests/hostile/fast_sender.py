"""A client that sends as fast as the server reads: `python fast_sender.py PORT SENDER SECONDS`.

It reads and discards every response, reconnects when the server closes, and stops by itself.
"""

import os
import select
import socket
import sys
import time
from contextlib import suppress
from itertools import chain, cycle, repeat

KEY = "wonder-land"
BURST = 200


def _chunked(path: str, key: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n"
        f"x-api-key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()


def _get(path: str, key: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {key}\r\n\r\n".encode()


# A sender -> what it sends once on each connection, and what it repeats endlessly.
SENDERS = {
    "rejected body in one-byte chunks": (_chunked("/nowhere"), b"1\r\nx\r\n" * 2000),
    "unauthorized body in one-byte chunks": (_chunked("/stream"), b"1\r\nx\r\n" * 2000),
    "accepted body in one-byte chunks": (_chunked("/stream", KEY), b"1\r\nx\r\n" * 2000),
    "long chunk extensions": (_chunked("/stream", KEY), b"1;" + b"a" * 8000 + b"\r\nx\r\n"),
    "short chunk extensions": (_chunked("/nowhere"), b'1;a=b;c="d"\r\nx\r\n' * 2000),
    "pipelined health checks": (b"", _get("/healthz", KEY) * BURST),
    "pipelined 401s": (b"", _get("/stream?q=x") * BURST),
    "pipelined 404s": (b"", _get("/nowhere", KEY) * BURST),
    "pipelined prompts": (b"", _get("/stream?q=fast", KEY) * BURST),
    "600 header lines": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-Header: value\r\n" * 600 + b"\r\n"),
    "100 long header lines": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-Header: " + b"v" * 8000 + b"\r\n"),
    "an endless head": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Header: ", b"v" * 65536),
    "an endless request line": (b"GET /", b"v" * 65536),
    "a body of any length": (
        b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"v" * 65536,
    ),
    "empty lines": (b"", b"\r\n" * 4096),
    "new connections": (_get("/healthz", KEY).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b""),
}


def send(port: int, name: str, until: float) -> None:
    """Send on one connection until the server closes it, at most until `until` (monotonic, seconds)."""
    once, again = SENDERS[name]
    pieces = chain([once], cycle([again]) if again else repeat(b""))
    with socket.create_connection(("127.0.0.1", port), 5) as connected:
        connected.setblocking(False)
        unsent = memoryview(b"")
        while time.monotonic() < until:
            unsent = unsent or memoryview(next(pieces))
            readable, writable, _ = select.select([connected], [connected] if unsent else [], [], 0.1)
            if readable and not connected.recv(1 << 20):
                return
            if writable:
                unsent = unsent[connected.send(unsent) :]


def main() -> None:
    """Send for the seconds on the command line."""
    port, name, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    os.nice(10)  # The sender's CPU time must not affect the measurement.
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError):
            send(port, name, until)


if __name__ == "__main__":
    main()
