"""Open streams against one server on a timetable, and measure every token: a JSON plan in, a JSON result out.

One epoll loop. A token's added latency is the moment its bytes were read minus the moment it carries; a
stream is lost unless its response is a 200 with every requested token that ends with the terminating chunk in time.
"""

import array
import gc
import heapq
import itertools
import json
import math
import re
import select
import socket
import sys
import time
from urllib.parse import quote

from measure import cpu_seconds, machine_cpu_seconds, memory_kib, raise_descriptor_limit

STAMP = re.compile(rb"~([0-9a-f]{12})")
STAMP_BYTES = 13
READ_BYTES = 1 << 18


def microseconds() -> int:
    """CLOCK_MONOTONIC now, the clock of the tokens' stamps."""
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


class Stream:
    """One request and its answer, from connect to the last chunk."""

    __slots__ = (
        "chunks",
        "complete",
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
    )

    def __init__(self, load: "Load", group: dict, tokens: int) -> None:
        self.load, self.group, self.expected = load, group, tokens
        self.request = request_of(group["dialect"], f"tokens={tokens} rate={group['rate']} delay=0", load.port)
        self.head: bytes | None = b""
        self.tail, self.tokens, self.first, self.complete = b"", 0, 0, False
        self.chunks = Chunks()
        self.started = microseconds()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", load.port))
        load.epoll.register(self.sock.fileno(), select.EPOLLOUT)

    def on_event(self) -> None:
        """Send the request once connected; from then on read, and count the tokens of each read."""
        try:
            if self.request:
                self.sock.send(self.request)
                self.request = b""
                self.load.epoll.modify(self.sock.fileno(), select.EPOLLIN)
                return
            data = self.load.read(self.sock)
            now = microseconds()
            if not data:
                raise ValueError("truncated")
            if self.head is not None:
                data = self.after_head(data)
            self.count(self.chunks.feed(data), now)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self.load.finish(self)
            return
        if self.chunks.ended:
            self.complete = self.tokens == self.expected
            self.load.finish(self)

    def after_head(self, data: bytes) -> bytes:
        """Return what follows the response head; raise ValueError unless it is a chunked 200."""
        head, blank, body = (self.head + data).partition(b"\r\n\r\n")
        if not blank:
            self.head = head
        elif head[8:13] != b" 200 " or b"chunked" not in head.lower():
            raise ValueError("rejected")
        else:
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
        stamps = STAMP.findall(text)
        if stamps and not self.first:
            self.first = now
        self.tokens += len(stamps)
        for window in self.load.open_windows:
            window.latencies.extend([now - int(stamp, 16) for stamp in stamps])


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


class Window:
    """A stretch of the run over which tokens, latencies and CPU are counted."""

    def __init__(self, load: "Load", plan: dict) -> None:
        self.load, self.plan = load, plan
        self.latencies = array.array("q")
        self.before: list[float] = []
        self.result: dict = {}

    def costs(self) -> list[float]:
        """Seconds until now: the clock, the CPU of server, upstream, this process, and the whole machine."""
        plan, own = self.load.plan, time.process_time()
        return [
            time.monotonic(),
            cpu_seconds(plan["server"]),
            cpu_seconds(plan["upstream"]),
            own,
            machine_cpu_seconds(),
        ]

    def open(self) -> None:
        """Start counting."""
        self.before = self.costs()
        self.load.open_windows.append(self)

    def close(self) -> None:
        """Stop counting, then read the memory, which takes long enough to add latency."""
        seconds, server, upstream, own, machine = (
            now - then for now, then in zip(self.costs(), self.before, strict=True)
        )
        self.load.open_windows.remove(self)
        tokens = len(self.latencies)
        per_token = {"server": server, "upstream": upstream, "load": own}
        self.result = {
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "cpu_us": {name: 1e6 * used / tokens if tokens else None for name, used in per_token.items()},
            "other_cpu_percent": 100 * max(0.0, machine - server - upstream - own) / seconds,
            "streams_open": sum(1 for stream in self.load.streams.values() if stream.first),
            "memory_kib": memory_kib(self.load.plan["server"]),
        }

    def report(self) -> dict:
        """The window's result with its latencies, and its group's times to first byte, in milliseconds."""
        firsts = [
            stream.first - stream.started
            for stream in self.load.started
            if stream.group["name"] == self.plan["group"] and stream.first
        ]
        return {
            "name": self.plan["name"],
            **self.result,
            "latency_ms": percentiles(self.latencies),
            "first_ms": percentiles(firsts),
        }


def percentiles(values: "array.array[int] | list[int]") -> dict:
    """The 50th and 99th percentile and the largest of these microseconds, in milliseconds."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None, "max": None}
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[math.ceil(share * len(ordered)) - 1] / 1000 for name, share in at.items()}


class Load:
    """The timetable and the event loop; times of the plan are seconds from its start."""

    def __init__(self, plan: dict) -> None:
        self.plan, self.port = plan, plan["port"]
        self.epoll = select.epoll()
        # One buffer for all: allocating a large buffer for each read would cost more than the read.
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.streams: dict[int, Stream] = {}
        self.started: list[Stream] = []
        self.lost = 0
        self.idle_memory_kib = 0
        self.open_windows: list[Window] = []
        self.windows = [Window(self, window) for window in plan["windows"]]
        self.begun = time.monotonic()
        self.agenda: list = []
        self.order = itertools.count()

    def at(self, seconds: float, action, *arguments) -> None:
        """Put an action on the timetable."""
        heapq.heappush(self.agenda, (seconds, next(self.order), action, arguments))

    def now(self) -> float:
        """Seconds since the start of the plan."""
        return time.monotonic() - self.begun

    def read(self, sock: socket.socket) -> bytes:
        """Return the socket's data; empty at its end."""
        return bytes(self.buffer[: sock.recv_into(self.buffer)])

    def run(self) -> dict:
        """Follow the timetable until every stream or the plan has ended."""
        self.at(self.plan["idle_at"], self.read_idle_memory)
        for group in self.plan["groups"]:
            for number in range(group["streams"]):
                self.at(group["at"] + number / group["per_second"], self.start, group)
            for _ in range(group["parallel"]):
                self.at(group["at"], self.start, group)
        for window in self.windows:
            self.at(window.plan["start"], window.open)
            self.at(window.plan["end"], window.close)
        while (self.agenda or self.streams) and self.now() < self.plan["end"]:
            self.turn()
        self.lost += len(self.streams)
        return {
            "idle_memory_kib": self.idle_memory_kib,
            "streams": len(self.started),
            "lost": self.lost,
            "windows": [window.report() for window in self.windows],
        }

    def turn(self) -> None:
        """Handle ready sockets, then due actions."""
        next_time = self.agenda[0][0] if self.agenda else self.plan["end"]
        for descriptor, _ in self.epoll.poll(max(0.0, next_time - self.now())):
            self.streams[descriptor].on_event()
        while self.agenda and self.agenda[0][0] <= self.now():
            _, _, action, arguments = heapq.heappop(self.agenda)
            action(*arguments)

    def start(self, group: dict) -> None:
        """Open one stream; without a length of its own it lasts until the group's end."""
        # Two more than fit: the first token arrives at once, and the pause after it is shorter.
        tokens = group["tokens"] or math.ceil((group["until"] - self.now()) * group["rate"]) + 2
        stream = Stream(self, group, tokens)
        self.streams[stream.sock.fileno()] = stream
        if not group["warm_up"]:
            self.started.append(stream)

    def finish(self, stream: Stream) -> None:
        """Close a stream, and start the next one if its group is a closed loop."""
        del self.streams[stream.sock.fileno()]
        stream.sock.close()
        self.lost += not (stream.complete or stream.group["warm_up"])
        if stream.group["parallel"] and self.now() < stream.group["until"]:
            # Pause after a failure, so that a server that rejects at once is not flooded.
            self.at(self.now() + (0 if stream.complete else 0.2), self.start, stream.group)

    def read_idle_memory(self) -> None:
        """Read the server's memory after the warm-up, without streams."""
        self.idle_memory_kib = memory_kib(self.plan["server"])


def main() -> None:
    """Run the plan on standard input."""
    raise_descriptor_limit()
    plan = json.load(sys.stdin)
    gc.disable()  # a run is short, and a collection would add latency
    json.dump(Load(plan).run(), sys.stdout)


if __name__ == "__main__":
    main()
