"""Capacity planning: simulate clients, a router and workers with measured costs. `docs/scaling.md` uses the result.

Clients arrive at random (Poisson), the length of an answer is log-normal, and the router assigns each to a worker. For
each second and worker, the load of the core is the measured cost of its starts and tokens. Load over 100% would delay
text; the delay is not simulated. For more streams than a cell has, one cell is simulated and multiplied.
"""

import math
from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random
from statistics import fmean

# Measured: docs/performance.md, by scenario and figure. Seconds of a core, and MB of 1,000,000 bytes.
TOKEN_CPU = 35.9e-6  # steady1000, CPU µs/token
START_CPU = 1.62e-3  # starts1000, CPU ms/start
STREAM_MB = 0.0255  # open5000, KB/stream
REST_MB = 385 - 10_000 * STREAM_MB  # two_workers10k, MB, without its streams
# Measured: docs/scaling.md, "TLS and Redis".
TLS_TOKEN_CPU, TLS_START_CPU, TLS_STREAM_MB, REDIS_START_CPU = 5e-6, 1.4e-3, 0.038, 0.1e-3
# Assumed load. Each token is an event of its own, read and written separately.
TOKENS, SIGMA, RATE = 600, 1.0, 60  # mean length of an answer, spread of its logarithm, tokens per second
RETRY_SECONDS, BOOT_SECONDS = 5.0, 2.0  # until a client with a truncated answer retries, at most; until a worker serves
# Chosen.
BUSY, MOST_BUSY, MOST_REJECTED = 0.70, 0.01, 0.001  # of a core; of the seconds above that; of the clients
SLOTS, CELL = 300, 5_000  # RILL_MAX_STREAMS; streams of a cell
WORKERS = 2  # per machine: one per core, each with its own port, so that the router sees it

TOKEN, START = TOKEN_CPU + TLS_TOKEN_CPU, START_CPU + TLS_START_CPU + REDIS_START_CPU
LOG_MEAN = math.log(TOKENS) - SIGMA**2 / 2
RANDOM, ROUND_ROBIN, TWO_CHOICES, LEAST = "random", "round robin", "two choices", "least connections"
COLUMNS = (
    "open streams|event|routing|machines|streams per worker|core|busiest second|seconds over 70%|rejected|truncated|MB"
)


class Cell:
    """A router and its workers; `streams` would be open on average if none were rejected or truncated."""

    def __init__(self, streams: float, workers: int, routing: str = LEAST, slots: int = SLOTS, seed: int = 1) -> None:
        self.streams, self.workers, self.routing, self.slots = streams, workers, routing, slots
        self.random = Random(seed)
        self.open, self.starts, self.life = [0] * workers, [0] * workers, [0] * workers
        self.alive, self.accepting = list(range(workers)), list(range(workers))
        # Time, kind, worker, and which of the worker's lives; at the same time, the kinds happen in alphabetical order.
        self.events: list[tuple[float, str, int, int]] = []
        self.arrived = self.rejected = self.stopped = self.truncated = 0
        self.cores: list[float] = []  # load, for each second and worker
        self.counts: list[int] = []  # open answers, for each second

    def route(self) -> int:
        """Return the worker for the next client."""
        if self.routing == RANDOM:
            return self.random.choice(self.accepting)
        if self.routing == ROUND_ROBIN:
            return self.accepting[self.arrived % len(self.accepting)]
        among = self.random.sample(self.accepting, 2) if self.routing == TWO_CHOICES else self.accepting
        return min(among, key=self.open.__getitem__)

    def arrive(self, now: float, tokens: float) -> None:
        """Admit or reject a client whose answer has so many tokens."""
        self.arrived += 1
        worker = self.route()
        if self.open[worker] >= self.slots:
            self.rejected += 1
            return
        self.open[worker] += 1
        self.starts[worker] += 1
        heappush(self.events, (now + tokens / RATE, "complete", worker, self.life[worker]))

    def stop(self, now: float, worker: int) -> None:
        """Stop a worker; its open answers are truncated."""
        self.alive.remove(worker)
        self.truncated += self.open[worker]
        for _ in range(self.open[worker]):
            heappush(self.events, (now + self.random.uniform(0, RETRY_SECONDS), "retry", 0, 0))
        self.open[worker] = 0
        self.life[worker] += 1

    def run(self, seconds: int, stop: int = 0, drain: float | None = None) -> "Cell":
        """Run from a steady state; at first `stop` workers are lost or, with `drain` seconds, drained and replaced."""
        at = 0.0
        # A Poisson number is open at any moment; long answers more likely than short ones, anywhere in their course.
        while (at := at + self.random.expovariate(1)) < self.streams:
            self.arrive(0, self.random.lognormvariate(LOG_MEAN + SIGMA**2, SIGMA) * self.random.random())
        self.arrived, self.rejected, self.starts = 0, 0, [0] * self.workers
        self.events += [(second, "sample" if second else "arrive", 0, 0) for second in range(seconds + 1)]
        self.events += [(drain or 0, "end", worker, 0) for worker in range(stop)]
        self.events += [(drain + BOOT_SECONDS, "boot", worker, 0) for worker in range(stop) if drain is not None]
        self.events.sort()
        self.stopped, self.accepting = sum(self.open[:stop]), self.accepting[stop:]
        while len(self.counts) < seconds:
            now, kind, worker, life = heappop(self.events)
            if kind in ("arrive", "retry"):
                self.arrive(now, self.random.lognormvariate(LOG_MEAN, SIGMA))
            if kind == "arrive":
                heappush(self.events, (now + self.random.expovariate(self.streams * RATE / TOKENS), "arrive", 0, 0))
            elif kind == "complete" and life == self.life[worker]:
                self.open[worker] -= 1
            elif kind == "sample":
                self.cores += [self.open[each] * RATE * TOKEN + self.starts[each] * START for each in self.alive]
                self.counts.append(sum(self.open))
                self.starts = [0] * self.workers
            elif kind == "end":
                self.stop(now, worker)
            elif kind == "boot":
                self.alive.append(worker)
                self.accepting.append(worker)
        return self

    def row(self, event: str, cells: int = 1) -> list[str]:
        """Return a row of the table, for as many cells like this one."""
        streams = fmean(self.counts) / self.workers
        head = [f"{self.streams * cells:,.0f}", event, self.routing, f"{self.workers // WORKERS * cells:,}"]
        over = fmean(core > BUSY for core in self.cores)
        shares = (fmean(self.cores), max(self.cores), over, self.rejected / self.arrived)
        truncated = f"{self.truncated / self.stopped:.0%}" if self.stopped else "-"
        memory = REST_MB + WORKERS * streams * (STREAM_MB + TLS_STREAM_MB)
        return [*head, f"{streams:.0f}", *(f"{share:.1%}" for share in shares), truncated, f"{memory:.0f}"]


def fewest(streams: int, routing: str) -> Cell:
    """Return a run with the fewest machines that carry so many streams within the chosen limits."""
    workers = WORKERS * math.ceil(streams * RATE * (TOKEN + START / TOKENS) / BUSY / WORKERS)
    while True:
        cell = Cell(streams, workers, routing).run(max(30, 150_000 // streams))
        if fmean(core > BUSY for core in cell.cores) <= MOST_BUSY and cell.rejected <= MOST_REJECTED * cell.arrived:
            return cell
        workers += WORKERS


def rows(streams: int, *scales: int) -> Iterator[list[str]]:
    """Yield the rows for a cell, and for so many streams in cells like it."""
    steady = {routing: fewest(streams, routing) for routing in (RANDOM, ROUND_ROBIN, TWO_CHOICES, LEAST)}
    yield from (cell.row("none") for cell in steady.values())
    for spare, many in enumerate(("no spare", "one spare")):
        workers = steady[TWO_CHOICES].workers + WORKERS * spare
        yield Cell(streams, workers, TWO_CHOICES).run(30, WORKERS).row(f"a machine is lost, {many}")
    for routing, drain in ((LEAST, 20), (TWO_CHOICES, 20), (TWO_CHOICES, 120)):
        yield Cell(streams, workers, routing).run(drain + 25, WORKERS, drain).row(f"replacement, drain of {drain} s")
    for slots in (SLOTS, 1000):
        overload = Cell(3 * streams, workers, TWO_CHOICES, slots).run(30)
        yield overload.row(f"three times the clients, {slots} slots")
    for scale in scales:
        yield steady[RANDOM].row("none", scale // streams)
        yield Cell(streams, workers, TWO_CHOICES).run(30).row("none, one spare per cell", scale // streams)


if __name__ == "__main__":
    lines = [COLUMNS.split("|"), *rows(1_000), *rows(CELL, 100_000, 10_000_000)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    print(*(f"| {' | '.join(map(str.rjust, line, widths))} |" for line in lines), sep="\n")
