"""An answer that waits at a gate before each piece, and checks of what a client has received by then."""

import http.client
import re
import zlib
from contextlib import closing
from typing import Protocol

import upstream as wire
from conversation import Conversation
from server import ROOT
from upstream import Step, Upstream

PIECES = ["A rill", " is a very", " small", " stream."]
HELD_SECONDS = 0.5


class Server(Protocol):
    """A server, or a proxy in front of it."""

    port: int

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Conversation: ...


class Reader:
    """The decoded text of an answer that is being read."""

    def __init__(self, asked: Conversation) -> None:
        self.text = ""
        self._asked = asked
        zipped = asked.headers.get("content-encoding") == "gzip"
        self._unzip = zlib.decompressobj(wbits=31) if zipped else None

    def read_until(self, wanted: str) -> None:
        """Read until the text contains `wanted`; raise TimeoutError if it does not arrive."""
        while wanted not in self.text:
            chunk = self._asked.next_chunk()
            assert chunk, f"{wanted!r} did not arrive; the answer is {self._asked.ended}"
            self.text += (self._unzip.decompress(chunk) if self._unzip else chunk).decode()


def gated_pieces() -> list[Step]:
    """Return a complete answer with a gate before each piece but the first (its name) and before the end (`end`)."""
    first, *rest = PIECES
    held = [step for piece in rest for step in (wire.gate(piece), wire.send(wire.text(piece)))]
    outcome = [wire.gate("end"), wire.send(wire.block_stop(), wire.stop()), wire.end()]
    return [wire.head(), wire.send(wire.opening()), wire.send(wire.text(first)), *held, *outcome]


def ask(server: Server, prompt: bytes = b"What is a rill?", **headers: str) -> Conversation:
    """Send a prompt; an underscore in a header's name stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.ask("POST", "/stream", {"Content-Type": "text/plain", **named}, prompt)


def assert_piece_by_piece(asked: Conversation, upstream: Upstream) -> None:
    """Assert that each piece arrives before the upstream sends the next one; then read the rest."""
    reader = Reader(asked)
    for piece, next_gate in zip(PIECES, [*PIECES[1:], "end"], strict=True):
        reader.read_until(piece)
        upstream.open(next_gate)
    asked.read_rest()


def assert_delayed(asked: Conversation, upstream: Upstream) -> None:
    """Assert that no piece arrives before the upstream has sent the end."""
    for piece in PIECES[1:]:
        upstream.open(piece)
    upstream.wait_at_gate("end")
    asked.socket.settimeout(HELD_SECONDS)
    try:
        early = asked.next_chunk()
    except TimeoutError:
        early = b""
    assert early == b""
    asked.socket.settimeout(10)
    upstream.open("end")
    Reader(asked).read_until(PIECES[-1])


def status_from(address: str, server: Server) -> int:
    """Return the status that a client at another loopback address gets."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, 10, source_address=(address, 0))) as asked:
        asked.request("GET", "/stream?q=hi")
        return asked.getresponse().status


def assert_healthy(service: Server) -> None:
    """Wait for the replacement of a killed worker."""
    with service.ask("GET", "/healthz") as asked:
        assert asked.status == 200


def rills_keepalive() -> int:
    """Return the seconds for which Rill keeps an idle connection."""
    (seconds,) = re.findall(r"^keepalive = (\d+)$", (ROOT / "gunicorn.conf.py").read_text("utf-8"), re.MULTILINE)
    return int(seconds)
