"""From measured cost to machines: clients, a router and workers, simulated; `docs/scaling.md` shows the table.

Clients arrive at random (Poisson), answers are of log-normal length, and the router gives each to a worker. Each second
every worker's core is reckoned up: its starts and its tokens, at their measured cost. What is over 100% would be late;
that is not simulated. More streams are many cells that share nothing: one is simulated, and counted as often.
"""

import math
from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random
from statistics import fmean

# Measured: docs/performance.md, on a dearer hour, by row and column. Seconds of a core, and MB of 1,000,000 bytes.
TOKEN_CPU = 60e-6  # steady1000, CPU µs/token
START_CPU = 1.7e-3  # below the table: what the starts add
STREAM_MB = 0.0319  # open5000, KB/stream
REST_MB = 509 - 10_000 * STREAM_MB  # two_workers10k, MB, without its streams
# Measured: docs/scaling.md, "What TLS and Redis add".
TLS_TOKEN_CPU, TLS_START_CPU, TLS_STREAM_MB, REDIS_START_CPU = 5e-6, 1.4e-3, 0.038, 0.1e-3
# Guessed: what is asked. Each token is an event of its own, read and written by itself.
TOKENS, SIGMA, RATE = 600, 1.0, 60  # an answer's mean length, the spread of its logarithm, tokens a second
AGAIN_SECONDS, BOOT_SECONDS = 5.0, 2.0  # until who was cut asks again, at most; until a new worker serves
# Chosen.
BUSY, MOST_BUSY, MOST_REFUSED = 0.70, 0.01, 0.001  # of a core; of the seconds over that; of the clients
PLACES, CELL = 200, 5_000  # RILL_MAX_STREAMS; streams of a cell
WORKERS = 2  # of a machine: one a core, each on a port of its own, so that the router sees it

TOKEN, START = TOKEN_CPU + TLS_TOKEN_CPU, START_CPU + TLS_START_CPU + REDIS_START_CPU
MIDDLE = math.log(TOKENS) - SIGMA**2 / 2
RANDOM, TURNS, TWO, LEAST = "random", "round robin", "two choices", "least connections"
HEADS = "open streams|what happens|routing|machines|streams a worker|core|its worst second|over 70%|refused|cut|MB"


class Cell:
    """A router and its workers; `streams` would be open on average if none were refused or cut."""

    def __init__(self, streams: float, workers: int, routing: str = LEAST, places: int = PLACES, seed: int = 1) -> None:
        self.streams, self.workers, self.routing, self.places = streams, workers, routing, places
        self.random = Random(seed)
        self.open, self.starts, self.life = [0] * workers, [0] * workers, [0] * workers
        self.alive, self.taking = list(range(workers)), list(range(workers))
        self.events: list[tuple[float, str, int, int]] = []  # when, what, at which worker, in which of its lives
        self.asked = self.refused = self.stopped = self.cut = 0
        self.cores: list[float] = []  # how busy, each second of each worker
        self.counts: list[int] = []  # answers open, each second

    def route(self) -> int:
        """The worker for the next client."""
        if self.routing == RANDOM:
            return self.random.choice(self.taking)
        if self.routing == TURNS:
            return self.taking[self.asked % len(self.taking)]
        among = self.random.sample(self.taking, 2) if self.routing == TWO else self.taking
        return min(among, key=self.open.__getitem__)

    def ask(self, now: float, tokens: float) -> None:
        """A client comes, for so many tokens."""
        self.asked += 1
        worker = self.route()
        if self.open[worker] >= self.places:
            self.refused += 1
            return
        self.open[worker] += 1
        self.starts[worker] += 1
        heappush(self.events, (now + tokens / RATE, "leave", worker, self.life[worker]))

    def end(self, now: float, worker: int) -> None:
        """A worker ends, and cuts what is still open."""
        self.alive.remove(worker)
        self.cut += self.open[worker]
        for _ in range(self.open[worker]):
            heappush(self.events, (now + self.random.uniform(0, AGAIN_SECONDS), "again", 0, 0))
        self.open[worker] = 0
        self.life[worker] += 1

    def run(self, seconds: int, stop: int = 0, drain: float | None = None) -> "Cell":
        """So many seconds from a steady state; at first `stop` workers are lost or, with `drain`, replaced after it."""
        at = 0.0
        # A Poisson number is open at any moment; long answers more likely than short ones, anywhere in their course.
        while (at := at + self.random.expovariate(1)) < self.streams:
            self.ask(0, self.random.lognormvariate(MIDDLE + SIGMA**2, SIGMA) * self.random.random())
        self.asked, self.refused, self.starts = 0, 0, [0] * self.workers
        self.events += [(second, "look" if second else "ask", 0, 0) for second in range(seconds + 1)]
        self.events += [(drain or 0, "end", worker, 0) for worker in range(stop)]
        self.events += [(drain + BOOT_SECONDS, "boot", worker, 0) for worker in range(stop) if drain is not None]
        self.events.sort()
        self.stopped, self.taking = sum(self.open[:stop]), self.taking[stop:]
        while len(self.counts) < seconds:
            now, what, worker, life = heappop(self.events)
            if what in ("ask", "again"):
                self.ask(now, self.random.lognormvariate(MIDDLE, SIGMA))
            if what == "ask":
                heappush(self.events, (now + self.random.expovariate(self.streams * RATE / TOKENS), "ask", 0, 0))
            elif what == "leave" and life == self.life[worker]:
                self.open[worker] -= 1
            elif what == "look":
                self.cores += [self.open[each] * RATE * TOKEN + self.starts[each] * START for each in self.alive]
                self.counts.append(sum(self.open))
                self.starts = [0] * self.workers
            elif what == "end":
                self.end(now, worker)
            elif what == "boot":
                self.alive.append(worker)
                self.taking.append(worker)
        return self

    def row(self, what: str, cells: int = 1) -> list[str]:
        """What happened here, and in as many cells like this one."""
        streams = fmean(self.counts) / self.workers
        head = [f"{self.streams * cells:,.0f}", what, self.routing, f"{self.workers // WORKERS * cells:,}"]
        over = fmean(core > BUSY for core in self.cores)
        shares = (fmean(self.cores), max(self.cores), over, self.refused / self.asked)
        cut = f"{self.cut / self.stopped:.0%}" if self.stopped else "-"
        memory = REST_MB + WORKERS * streams * (STREAM_MB + TLS_STREAM_MB)
        return [*head, f"{streams:.0f}", *(f"{share:.1%}" for share in shares), cut, f"{memory:.0f}"]


def fewest(streams: int, routing: str) -> Cell:
    """A while with the fewest machines that carry so many streams by the rules chosen above."""
    workers = WORKERS * math.ceil(streams * RATE * (TOKEN + START / TOKENS) / BUSY / WORKERS)
    while True:
        cell = Cell(streams, workers, routing).run(max(30, 150_000 // streams))
        if fmean(core > BUSY for core in cell.cores) <= MOST_BUSY and cell.refused <= MOST_REFUSED * cell.asked:
            return cell
        workers += WORKERS


def rows(streams: int, *scales: int) -> Iterator[list[str]]:
    """What may happen to a cell; and what serves so many streams in cells like it."""
    quiet = {routing: fewest(streams, routing) for routing in (RANDOM, TURNS, TWO, LEAST)}
    yield from (cell.row("nothing") for cell in quiet.values())
    for spare, many in enumerate(("none", "one")):
        workers = quiet[TWO].workers + WORKERS * spare
        yield Cell(streams, workers, TWO).run(30, WORKERS).row(f"a machine is lost, {many} to spare")
    for routing, drain in ((LEAST, 20), (TWO, 20), (TWO, 120)):
        yield Cell(streams, workers, routing).run(drain + 25, WORKERS, drain).row(f"one is replaced, drains {drain} s")
    for places in (PLACES, 1000):
        yield Cell(3 * streams, workers, TWO, places).run(30).row(f"three times the clients, {places} places")
    for scale in scales:
        yield quiet[RANDOM].row("nothing", scale // streams)
        yield Cell(streams, workers, TWO).run(30).row("nothing, one a cell to spare", scale // streams)


if __name__ == "__main__":
    lines = [HEADS.split("|"), *rows(1_000), *rows(CELL, 100_000, 10_000_000)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    print(*(f"| {' | '.join(map(str.rjust, line, widths))} |" for line in lines), sep="\n")
