"""A part of the run over which tokens, latencies and costs are counted."""

import array
import math
import time
from typing import Any

from measure import cpu_seconds, machine_cpu_seconds, memory_kib


def percentiles(values: "array.array[int] | list[int]") -> dict[str, float | None]:
    """Return the 50th and 99th percentile and the largest of these microseconds, in milliseconds."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None, "max": None}
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[math.ceil(share * len(ordered)) - 1] / 1000 for name, share in at.items()}


class Window:
    """Counters, from `open` to `close`; times are microseconds unless a name says otherwise."""

    def __init__(self, plan: dict[str, Any], server: list[int], upstream: list[int]) -> None:
        self.plan, self.server, self.upstream = plan, server, upstream
        self.latencies, self.lateness = array.array("q"), array.array("q")
        self.first_bytes: list[int] = []  # of the answers that started here
        self.rejections: list[int] = []
        self.completed = 0
        self.before: list[float] = []
        self.result: dict[str, Any] = {}

    def costs(self) -> list[float]:
        """Return the seconds of the clock, and of CPU: server, upstream, this process, and the whole machine."""
        used = [cpu_seconds(self.server), cpu_seconds(self.upstream), time.process_time(), machine_cpu_seconds()]
        return [time.monotonic(), *used]

    def open(self) -> None:
        """Start counting."""
        self.before = self.costs()

    def close(self, streams_open: int) -> None:
        """Stop counting, then read the memory, which takes long enough to add latency."""
        seconds, server, upstream, own, machine = (
            now - then for now, then in zip(self.costs(), self.before, strict=True)
        )
        tokens = len(self.latencies)
        self.result = {
            "name": self.plan["name"],
            "tokens_per_second": tokens / seconds,
            "answers_per_second": self.completed / seconds,
            "cpu_us": 1e6 * server / tokens if tokens else None,
            "server_core": server / seconds,
            "upstream_core": upstream / seconds,
            "load_core": own / seconds,
            "other_core": max(0.0, machine - server - upstream - own) / seconds,
            "streams_open": streams_open,
            "memory_kib": memory_kib(self.server),
        }

    def report(self) -> dict[str, Any]:
        """Return the result, with percentiles in milliseconds."""
        return {
            **self.result,
            "latency_ms": percentiles(self.latencies),
            "lateness_ms": percentiles(self.lateness),
            "first_ms": percentiles(self.first_bytes),
            "rejected": len(self.rejections),
            "rejected_ms": percentiles(self.rejections),
        }
