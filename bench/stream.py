"""One request of the load generator, and its answer."""

import itertools
import json
import re
import select
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from load import Load

STAMP = re.compile(rb"~([0-9a-f]{18})")
STAMP_BYTES = 19
IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>
# Clients have addresses of their own: a server may limit the connections of one.
ADDRESSES = itertools.cycle(f"127.1.{third}.{fourth}" for third in range(16) for fourth in range(1, 255))
LATENESS_BITS = 24
RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


def microseconds() -> int:
    """Return the present CLOCK_MONOTONIC, the clock of the tokens' stamps."""
    return time.monotonic_ns() // 1000


class Chunks:
    """Decode a chunked body from data of any size; `ended` after the terminating chunk."""

    __slots__ = ("ended", "left", "rest")

    def __init__(self) -> None:
        self.rest, self.left, self.ended = b"", 0, False

    def feed(self, data: bytes) -> bytes:
        """Return the content of further bytes; raise ValueError if they are not a chunked body."""
        if self.rest:
            data, self.rest = self.rest + data, b""
        content, at, size = [], 0, len(data)
        while at < size and not self.ended:
            if self.left > 2:  # the two last bytes of a chunk are its CRLF
                content.append(data[at : min(size, at + self.left - 2)])
            if self.left:
                taken = min(size - at, self.left)
                at += taken
                self.left -= taken
                continue
            line = data.find(b"\n", at)
            if line < 0:
                self.rest = data[at:]
                break
            length = int(data[at:line], 16)
            self.ended, self.left, at = length == 0, length + 2, line + 1
        return content[0] if len(content) == 1 else b"".join(content)


class Rejected(Exception):
    """The server answered 503; `args` has the seconds of its Retry-After."""


class Stream:
    """One request and its answer, from connect to the last chunk."""

    __slots__ = (
        "chunks",
        "expected",
        "first",
        "group",
        "head",
        "load",
        "request",
        "sock",
        "started",
        "tail",
        "tokens",
        "windows",
    )

    def __init__(self, load: "Load", group: dict[str, Any], tokens: int) -> None:
        self.load, self.group, self.expected = load, group, tokens
        prompt = f"tokens={tokens} rate={group['rate']} delay={group['delay']}"
        self.request = request_of(group["dialect"], prompt, load.port)
        self.head: bytes | None = b""
        self.tail, self.tokens, self.first = b"", 0, 0
        self.chunks = Chunks()
        self.windows = tuple(load.open_windows)  # in which it starts
        self.started = microseconds()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)  # the port is chosen by connect
        self.sock.bind((next(ADDRESSES), 0))
        self.sock.connect_ex(("127.0.0.1", load.port))
        load.poller.register(self.sock.fileno(), select.EPOLLOUT)

    def on_event(self) -> None:
        """Send the request once connected; from then on read, and count the tokens of each read."""
        try:
            if self.request:
                self.sock.send(self.request)
                self.request = b""
                self.load.poller.modify(self.sock.fileno(), select.EPOLLIN)
                return
            data = self.load.read(self.sock)
            now = microseconds()
            if not data:
                raise ValueError("closed without a response" if self.head is not None else "truncated")
            if self.head is not None:
                data = self.after_head(data)
            self.count(self.chunks.feed(data), now)
        except BlockingIOError:
            return
        except Rejected as rejection:
            self.load.reject(self, rejection.args[0])
        except (OSError, ValueError) as problem:
            self.load.finish(self, str(problem))
        else:
            if self.chunks.ended:
                self.load.finish(self, "" if self.tokens == self.expected else "incomplete")

    def after_head(self, data: bytes) -> bytes:
        """Return what follows the response head; raise Rejected after a 503, ValueError unless it is a chunked 200."""
        head, blank, body = (self.head + data).partition(b"\r\n\r\n")
        if not blank:
            self.head = head
            return b""
        if head[8:13] == b" 503 ":
            seconds = RETRY_AFTER.search(head)
            raise Rejected(float(seconds[1]) if seconds else 1.0)
        if head[8:13] != b" 200 " or b"chunked" not in head.lower():
            raise ValueError(head.partition(b"\r\n")[0].decode("latin-1"))
        self.head = None
        return body

    def count(self, text: bytes, now: int) -> None:
        """Count the tokens with complete stamps, and keep the start of an incomplete one."""
        text = self.tail + text
        last = text.rfind(b"~")
        if last >= 0 and len(text) - last < STAMP_BYTES:
            text, self.tail = text[:last], text[last:]
        else:
            self.tail = b""
        stamps = [int(stamp, 16) for stamp in STAMP.findall(text)]
        if not stamps:
            return
        if not self.first:
            self.first = now
            self.load.count_first_byte(self)
        self.tokens += len(stamps)
        for window in self.load.open_windows:
            window.latencies.extend([now - (stamp >> LATENESS_BITS) for stamp in stamps])
            window.lateness.extend([stamp & (1 << LATENESS_BITS) - 1 for stamp in stamps])


def request_of(dialect: str, prompt: str, port: int) -> bytes:
    """Return a request in one of Rill's dialects; every server supports `text`."""
    if dialect in ("text", "sse", "resumable"):
        accept = "text/event-stream" if dialect == "sse" else "*/*"
        resume = "&resume=60" if dialect == "resumable" else ""
        line, body = f"GET /stream?q={quote(prompt)}{resume}", ""
        fields = f"Accept: {accept}\r\n"
    else:
        line = "POST /v1/messages" if dialect == "anthropic" else "POST /v1/chat/completions"
        messages = [{"role": "user", "content": prompt}]
        body = json.dumps({"model": "bench", "max_tokens": 32768, "stream": True, "messages": messages})
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{fields}\r\n{body}".encode()
