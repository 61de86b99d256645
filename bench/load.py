"""Open streams against one server on a timetable, and measure every token: a JSON plan in, a JSON result out.

One event loop. A token's added latency is the moment its bytes were read minus the moment it carries. A stream is lost
unless its response is a 200 with every requested token that ends with the terminating chunk in time.
"""

import gc
import heapq
import itertools
import json
import math
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from measure import memory_kib, raise_descriptor_limit, take_priority
from poller import Poller
from stream import Stream, microseconds
from window import Window

READ_BYTES = 1 << 18
RETRY_SECONDS = 0.2  # after a failure, so that a server that fails at once is not flooded


class Load:
    """The timetable and the event loop; times of the plan are seconds from its start."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.port = plan, plan["port"]
        self.poller = Poller()
        # One buffer for all: allocating a large buffer for each read would cost more than the read.
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.streams: dict[int, Stream] = {}
        self.lost: Counter[str] = Counter()  # by reason
        self.idle_memory_kib = 0
        self.open_windows: list[Window] = []
        self.windows = [Window(window, plan["server"], plan["upstream"]) for window in plan["windows"]]
        self.begun = time.monotonic()
        self.agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()

    def at(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Put an action on the timetable."""
        heapq.heappush(self.agenda, (seconds, next(self.order), action, arguments))

    def now(self) -> float:
        """Return the seconds since the start of the plan."""
        return time.monotonic() - self.begun

    def read(self, sock: socket.socket) -> bytes:
        """Return the socket's data; empty at its end."""
        return bytes(self.buffer[: sock.recv_into(self.buffer)])

    def run(self) -> dict[str, Any]:
        """Follow the timetable until every stream or the plan has ended."""
        self.at(self.plan["idle_at"], self.read_idle_memory)
        for group in self.plan["groups"]:
            for number in range(group["streams"]):
                self.at(group["at"] + (number + random.random()) / group["per_second"], self.start, group, True)
            if group["replace"]:
                self.at(group["until"], self.close_all, group)
        for window in self.windows:
            self.at(window.plan["start"], self.open_window, window)
            self.at(window.plan["end"], self.close_window, window)
        while (self.agenda or self.streams) and self.now() < self.plan["end"]:
            self.turn()
        return {
            "idle_memory_kib": self.idle_memory_kib,
            "lost": {**self.lost, **({"not ended in time": len(self.streams)} if self.streams else {})},
            "windows": [window.report() for window in self.windows],
        }

    def turn(self) -> None:
        """Handle ready sockets, then due actions."""
        next_time = self.agenda[0][0] if self.agenda else self.plan["end"]
        for descriptor, _ in self.poller.ready(next_time - self.now()):
            self.streams[descriptor].on_event()
        while self.agenda and self.agenda[0][0] <= self.now():
            _, _, action, arguments = heapq.heappop(self.agenda)
            action(*arguments)

    def start(self, group: dict[str, Any], initial: bool) -> None:
        """Open one stream; without a length of its own it lasts until the group's end."""
        # Two more than fit: the first token arrives at once, and the pause after it is shorter.
        tokens = group["tokens"] or math.ceil((group["until"] - self.now()) * group["rate"]) + 2
        if group["replace"] and initial:
            tokens = random.randint(1, tokens)  # answers are anywhere in their course when the first window opens
        stream = Stream(self, group, tokens)
        self.streams[stream.sock.fileno()] = stream

    def count_first_byte(self, stream: Stream) -> None:
        """Count the time to the first token, without the upstream's own delay, where the stream started."""
        for window in stream.windows:
            window.first_bytes.append(stream.first - stream.started - int(stream.group["delay"] * 1e6))

    def finish(self, stream: Stream, problem: str) -> None:
        """Close a stream that has ended, completely or with a problem, and replace it."""
        for window in self.open_windows:
            window.completed += not problem
        self.lose(stream, problem)
        self.close(stream)
        self.replace(stream.group, RETRY_SECONDS if problem else 0.0)

    def reject(self, stream: Stream, retry_after: float) -> None:
        """Close a stream that the server answered with 503, and ask again after the time that it named."""
        for window in self.open_windows:
            window.rejections.append(microseconds() - stream.started)
        if not stream.group["replace"]:
            self.lose(stream, "503")
        self.close(stream)
        self.replace(stream.group, retry_after * random.uniform(1, 2))

    def lose(self, stream: Stream, reason: str) -> None:
        """Count a lost stream, if there is a reason."""
        if reason and not stream.group["warm_up"]:
            self.lost[reason] += 1

    def replace(self, group: dict[str, Any], after: float) -> None:
        """Start a new stream after so many seconds, if the group's number of streams is constant."""
        if group["replace"] and self.now() + after < group["until"]:
            self.at(self.now() + after, self.start, group, False)

    def close(self, stream: Stream) -> None:
        """Close a stream's connection."""
        del self.streams[stream.sock.fileno()]
        stream.sock.close()

    def close_all(self, group: dict[str, Any]) -> None:
        """Close the streams of a group, which counts none of them as lost."""
        for stream in [stream for stream in self.streams.values() if stream.group is group]:
            self.close(stream)

    def open_window(self, window: Window) -> None:
        """Start counting."""
        window.open()
        self.open_windows.append(window)

    def close_window(self, window: Window) -> None:
        """Stop counting."""
        self.open_windows.remove(window)
        window.close(sum(1 for stream in self.streams.values() if stream.first))

    def read_idle_memory(self) -> None:
        """Read the server's memory after the warm-up, without streams."""
        self.idle_memory_kib = memory_kib(self.plan["server"])


def main() -> None:
    """Run the plan on standard input."""
    raise_descriptor_limit()
    take_priority()
    plan = json.load(sys.stdin)
    gc.disable()  # a run is short, and a collection would add latency
    json.dump(Load(plan).run(), sys.stdout)


if __name__ == "__main__":
    main()
