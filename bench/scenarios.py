"""The scenarios: which streams open when, over which windows they are measured; seconds, rates per second.

Every scenario begins alike: a warm-up of short answers, a moment of rest in which the idle memory is read, then its
streams.
"""

from dataclasses import dataclass, replace

IDLE_AT = 1.2
BEGIN = 1.4
AFTER = 2.0  # from the end of the last window to the end of the streams
LATENCY = ("cpu", "p50", "p99", "lost")  # figures of report.FIGURES
FIRST_BYTE = ("first_p50", "first_p99")
OVERLOAD = ("tokens_per_second", "streams", "first_p99", "p99", "rejected", "rejected_p99", "lost")
GRACE = 15.0  # after the last stream should have ended; what is still open then counts as lost


@dataclass(frozen=True)
class Group:
    """Streams of one kind: `streams`, opened at `per_second` and, if `replace`, each replaced as soon as it ends."""

    name: str
    rate: float  # tokens per second of each stream; 0: as fast as the upstream can
    at: float
    until: float
    streams: int
    per_second: float
    tokens: int = 0  # of each answer; 0: as many as last until then
    replace: bool = False
    delay: float = 0.0  # of the upstream's first token
    warm_up: bool = False  # not counted as lost
    dialect: str = "text"


@dataclass(frozen=True)
class Window:
    """A part of a run, with the figures that the table shows of it."""

    name: str
    start: float
    end: float
    figures: tuple[str, ...] = LATENCY
    beside: str = ""  # the window that has the same streams without the starts
    starts_per_second: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """One run of one server."""

    name: str
    groups: tuple[Group, ...]
    windows: tuple[Window, ...]
    tls: bool = False
    workers: int = 1
    servers: tuple[str, ...] = ("rill", "go")  # without --only
    rill_only: bool = False  # the other servers cannot run it

    def plan(self) -> dict:
        """Return what the load generator follows, as plain data."""
        warm_up = Group("warm-up", 50, at=0, until=0.8, streams=4, per_second=100, tokens=5, replace=True, warm_up=True)
        groups = [vars(group) for group in (warm_up, *self.groups)]
        windows = [vars(window) for window in self.windows]
        end = max(group["until"] for group in groups) + GRACE
        return {"idle_at": IDLE_AT, "groups": groups, "windows": windows, "end": end}


def open_all_along(name: str, streams: int, rate: float, per_second: float, seconds: float, *figures: str) -> Scenario:
    """Return streams that are all open over one window of so many seconds, in which none starts."""
    start = BEGIN + streams / per_second + max(0.5, min(2.0, 1 / rate))
    end = start + seconds
    group = Group("steady", rate, BEGIN, end + AFTER, streams, per_second)
    return Scenario(name, (group,), (Window(name, start, end, (*figures, *LATENCY)),))


def replaced(
    name: str,
    streams: int,
    rate: float,
    tokens: int,
    seconds: float,
    delay: float = 0,
    figures: tuple[str, ...] = (*FIRST_BYTE, *LATENCY),
) -> Scenario:
    """Return a constant number of clients, each of which asks again as soon as its answer has ended."""
    ramp = max(1.0, streams / 250)
    start = BEGIN + ramp + delay + 1.0
    end = start + seconds
    group = Group(
        "replaced", rate, BEGIN, end + AFTER + delay, streams, streams / ramp, tokens, replace=True, delay=delay
    )
    return Scenario(name, (group,), (Window(name, start, end, figures),))


def over_tls(scenario: Scenario, name: str) -> Scenario:
    """Return the same scenario with a TLS upstream."""
    windows = tuple(replace(window, name=name) for window in scenario.windows)
    return replace(scenario, name=name, windows=windows, tls=True)


def starts(streams: int, rate: float, per_second: float, seconds: float) -> Scenario:
    """Return steady streams over two windows: alone, then with short streams that start beside them."""
    quiet = BEGIN + streams / per_second + 1.0
    begin = quiet + seconds + 0.5
    busy = begin + 0.5
    end = busy + seconds
    number = int((end - begin) * per_second)
    groups = (
        Group("steady", rate, BEGIN, end + AFTER, streams, per_second),
        Group("starts", rate, begin, end + AFTER, number, per_second, tokens=5),
    )
    alone, name, figures = f"steady{streams}", f"starts{streams}", ("start_cpu", *FIRST_BYTE, *LATENCY)
    windows = (Window(alone, quiet, quiet + seconds), Window(name, busy, end, figures, alone, per_second))
    return Scenario(name, groups, windows)


def long_answer(tokens: int = 64_000, rate: float = 4000.0) -> Scenario:
    """Return answers of 200 tokens one after the other, then a single long one at the same pace."""
    start = BEGIN + 6.0
    end = start + tokens / rate
    groups = (
        Group("short", rate, BEGIN, start - 1.0, streams=1, per_second=100, tokens=200, replace=True),
        Group("long", rate, start, end, streams=1, per_second=100, tokens=tokens),
    )
    windows = (
        Window("short200", BEGIN + 0.5, start - 1.5, ("cpu",)),
        Window("long64k", start, end - 0.1, ("cpu",)),
        Window("long64k, last quarter", start + 0.75 * (end - start), end - 0.1, ("cpu",)),
    )
    return Scenario("long64k", groups, windows)


def dialects(seconds: float, streams: int = 200, rate: float = 20) -> Scenario:
    """Return the same steady streams in each of Rill's dialects, one after the other."""
    groups, windows, at = [], [], BEGIN
    for dialect in ("text", "sse", "anthropic", "openai"):
        start = at + streams / 100 + 1.0
        end = start + seconds
        groups.append(Group(dialect, rate, at, end + 0.5, streams, per_second=100, dialect=dialect))
        windows.append(Window(f"dialects: {dialect}", start, end, ("cpu", "p99")))
        at = end + 2.0
    return Scenario("dialects", tuple(groups), tuple(windows), servers=("rill",), rill_only=True)


def known(seconds: float) -> list[Scenario]:
    """Return every scenario, with windows of so many seconds."""
    steady200 = open_all_along("steady200", 200, 20, per_second=100, seconds=seconds)
    answers400 = replaced("200x20x400", 200, 20, 400, seconds)
    two_workers = open_all_along("two_workers10k", 10_000, 0.5, 250, seconds, "mb", "kb_per_stream")
    unpaced = replaced("unpaced", 4, 0, 20_000, seconds, figures=("tokens_per_second", "cpu"))
    return [
        replace(steady200, servers=("rill", "go", "flask")),
        starts(1000, 10, per_second=200, seconds=seconds),
        answers400,
        replaced("200x60x600", 200, 60, 600, seconds),
        replaced("200x20x100", 200, 20, 100, seconds),
        replaced("1000x10x100", 1000, 10, 100, seconds),
        over_tls(steady200, "tls200"),
        over_tls(answers400, "tls200x20x400"),
        replaced("overload500", 500, 60, 600, seconds, figures=OVERLOAD),
        replaced("overload1000", 1000, 60, 600, seconds, figures=OVERLOAD),
        replaced("wait750", 750, 0, 20, seconds, delay=1.5, figures=("answers_per_second", *FIRST_BYTE, "lost")),
        dialects(seconds),
        open_all_along("open5000", 5000, 1, 250, seconds, "mb", "kb_per_stream"),
        replace(two_workers, workers=2, servers=("rill",), rill_only=True),
        replace(long_answer(), servers=("rill", "flask")),
        replace(unpaced, servers=("rill", "flask")),
    ]
