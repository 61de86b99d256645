"""The scenarios: which streams open when, over which windows they are measured; seconds, rates per second.

Every scenario begins alike: a warm-up of short answers, a moment of rest in which the idle memory is read,
then its streams.
"""

from dataclasses import dataclass

IDLE_AT = 1.2
BEGIN = 1.4
GRACE = 15.0  # after the last stream should have ended; what is still open then counts as lost


@dataclass(frozen=True)
class Group:
    """Streams of one kind: `streams` opened at `per_second`, or `parallel` loops asking again till then."""

    name: str
    rate: float  # tokens a second of each stream; 0: as fast as the upstream can
    at: float
    until: float
    streams: int = 0
    per_second: float = 1.0
    parallel: int = 0
    tokens: int = 0  # 0: as many as last until then
    warm_up: bool = False  # neither counted as lost nor measured
    dialect: str = "text"


@dataclass(frozen=True)
class Window:
    """A stretch that becomes a row of the table; its time to first byte is that of `group`."""

    name: str
    start: float
    end: float
    group: str


@dataclass(frozen=True)
class Scenario:
    """One run of one server."""

    name: str
    groups: tuple[Group, ...]
    windows: tuple[Window, ...]
    tls: bool = False
    workers: int = 1
    rill_only: bool = False

    def plan(self) -> dict:
        """What the load generator follows, as plain data."""
        warm_up = Group("warm-up", rate=50, at=0, until=0.8, parallel=4, tokens=5, warm_up=True)
        groups = [vars(group) for group in (warm_up, *self.groups)]
        windows = [vars(window) for window in self.windows]
        end = max(group["until"] for group in groups) + GRACE
        return {"idle_at": IDLE_AT, "groups": groups, "windows": windows, "end": end}


def steady(name: str, streams: int, rate: float, per_second: float, seconds: float, **options) -> Scenario:
    """Streams that are all open over one window of so many seconds."""
    start = BEGIN + streams / per_second + max(0.5, min(2.0, 1 / rate))
    end = start + seconds
    group = Group("steady", rate, BEGIN, end + 1.0, streams=streams, per_second=per_second)
    return Scenario(name, (group,), (Window(name, start, end, "steady"),), **options)


def starts(streams: int, rate: float, per_second: float, seconds: float) -> Scenario:
    """Steady streams over two windows: left alone, then with short streams starting beside them."""
    quiet = BEGIN + streams / per_second + 1.0
    begin = quiet + seconds + 0.5
    busy = begin + 0.5
    end = busy + seconds
    groups = (
        Group("steady", rate, BEGIN, end + 1.0, streams=streams, per_second=per_second),
        Group(
            "starts",
            rate,
            begin,
            end + 1.0,
            streams=int((end - begin) * per_second),
            per_second=per_second,
            tokens=5,
        ),
    )
    windows = (
        Window(f"steady{streams}", quiet, quiet + seconds, "steady"),
        Window(f"starts{streams}", busy, end, "starts"),
    )
    return Scenario(f"starts{streams}", groups, windows)


def long_answer(tokens: int = 64_000, rate: float = 4000.0) -> Scenario:
    """Answers of 200 tokens one after the other, then a single long one at the same pace."""
    start = BEGIN + 6.0
    end = start + tokens / rate
    groups = (
        Group("short", rate, BEGIN, start - 1.0, parallel=1, tokens=200),
        Group("long", rate, start, end, streams=1, tokens=tokens),
    )
    windows = (
        Window("short200", BEGIN + 0.5, start - 1.5, "short"),
        Window("long64k", start, end - 0.1, "long"),
        Window("long64k, last quarter", start + 0.75 * (end - start), end - 0.1, "long"),
    )
    return Scenario("long64k", groups, windows)


def unpaced(seconds: float) -> Scenario:
    """Four readers that take answers of 20,000 tokens as fast as they come."""
    start = BEGIN + 1.0
    end = start + seconds
    group = Group("unpaced", 0, BEGIN, end, parallel=4, tokens=20_000)
    return Scenario("unpaced", (group,), (Window("unpaced", start, end, "unpaced"),))


def dialects(streams: int = 200, rate: float = 20, seconds: float = 6) -> Scenario:
    """The same steady streams in each of Rill's dialects, one after the other."""
    groups, windows, at = [], [], BEGIN
    for dialect in ("text", "sse", "anthropic", "openai"):
        start = at + streams / 100 + 1.0
        end = start + seconds
        groups.append(Group(dialect, rate, at, end + 0.5, streams=streams, per_second=100, dialect=dialect))
        windows.append(Window(f"200 x 20/s, {dialect}", start, end, dialect))
        at = end + 2.0
    return Scenario("dialects", tuple(groups), tuple(windows), rill_only=True)


def full() -> list[Scenario]:
    """The scenarios of the whole benchmark."""
    return [
        steady("steady200", 200, 20, per_second=100, seconds=10),
        starts(1000, 10, per_second=200, seconds=10),
        steady("open5000", 5000, 1, per_second=250, seconds=10),
        long_answer(),
        unpaced(seconds=6),
        steady("tls200", 200, 20, per_second=100, seconds=10, tls=True),
        dialects(),
        steady("two_workers10k", 10_000, 0.5, per_second=250, seconds=15, workers=2, rill_only=True),
    ]


def quick() -> list[Scenario]:
    """Two short scenarios, for a look after a change: a minute with the four servers of the quick form."""
    return [
        steady("steady200", 200, 20, per_second=250, seconds=3),
        starts(250, 10, per_second=200, seconds=1.5),
    ]
