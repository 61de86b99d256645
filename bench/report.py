"""Rows into a table that reads in a terminal and pastes as Markdown; medians; the bars for Rill."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

COLUMNS = [
    ("CPU µs/token", "cpu"),
    ("added p50 ms", "p50"),
    ("p99 ms", "p99"),
    ("max ms", "max"),
    ("first byte p50 ms", "first_p50"),
    ("p99 ms", "first_p99"),
    ("KB/stream", "kb_per_stream"),
    ("MB", "mb"),
    ("tokens/s", "tokens_per_second"),
    ("lost", "lost"),
    ("upstream µs/token", "upstream_cpu"),
    ("load µs/token", "load_cpu"),
    ("others' CPU %", "other_cpu"),
]
FEWEST_STREAMS = 100  # below that, memory per stream says nothing


def rows_of(scenario: str, server: str, result: dict) -> list[dict]:
    """One row for each window of a run; KB are 1,000 bytes, MB 1,000,000."""
    rows = []
    for window in result["windows"]:
        memory, grown = window["memory_kib"], window["memory_kib"] - result["idle_memory_kib"]
        latency, open_now = window["latency_ms"], window["streams_open"]
        paced = scenario != "unpaced"  # there a token waits in buffers by design: its latency is their depth
        row = {
            "scenario": window["name"],
            "server": server,
            "cpu": window["cpu_us"]["server"] if memory else None,
            "first_p50": window["first_ms"]["p50"],
            "first_p99": window["first_ms"]["p99"],
            "kb_per_stream": 1.024 * grown / open_now if memory and open_now >= FEWEST_STREAMS else None,
            "mb": 1.024e-3 * memory if memory else None,
            "tokens_per_second": window["tokens_per_second"],
            "lost": result["lost"],
            "upstream_cpu": window["cpu_us"]["upstream"],
            "load_cpu": window["cpu_us"]["load"],
            "other_cpu": window["other_cpu_percent"],
        }
        row |= {name: latency[name] if paced else None for name in ("p50", "p99", "max")}
        rows.append(row)
    return rows


def medians(rows: list[dict]) -> list[dict]:
    """One row for each scenario and server, each figure the median of its repeats."""
    repeats: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        repeats.setdefault((row["scenario"], row["server"]), []).append(row)
    merged = []
    for (scenario, server), same in repeats.items():
        middle = {"scenario": scenario, "server": server}
        for _, field in COLUMNS:
            values = [row[field] for row in same if row[field] is not None]
            middle[field] = statistics.median(values) if values else None
        merged.append(middle)
    order = list(dict.fromkeys(row["scenario"] for row in merged))
    return sorted(merged, key=lambda row: order.index(row["scenario"]))


def figure(value: float | None) -> str:
    """A number of the table, two digits at least; a dash where there is none."""
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def aligned(lines: list[list[str]]) -> str:
    """A Markdown table, the first two columns to the left and the figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if at < 2 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def table(rows: list[dict], titles: dict[str, str]) -> str:
    """The table of all rows."""
    head = ["scenario", "server", *(title for title, _ in COLUMNS)]
    body = [
        [
            row["scenario"],
            titles[row["server"]],
            *(figure(row[field]) for _, field in COLUMNS),
        ]
        for row in rows
    ]
    return aligned([head, *body])


@dataclass(frozen=True)
class Bar:
    """Something that Rill must reach: `value` is at most `limit`, or at least that where `least`."""

    says: str
    value: Callable[["Rows"], float]
    limit: float
    least: bool = False


class Rows:
    """Finds a figure by scenario, server and field; raises LookupError where it was not measured."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = {(row["scenario"], row["server"]): row for row in rows}

    def get(self, scenario: str, field: str, server: str = "rill") -> float:
        """One figure of the table."""
        value = self.rows[scenario, server][field]
        if value is None:
            raise LookupError(field)
        return value

    def ratio(self, scenario: str, field: str, server: str) -> float:
        """Rill's figure divided by another server's."""
        return self.get(scenario, field) / self.get(scenario, field, server)


def at_most(scenario: str, field: str, says: str, limit: float) -> Bar:
    """A bar on one of Rill's own figures."""
    return Bar(f"{scenario}: {says}", lambda rows: rows.get(scenario, field), limit)


def cpu_ratio(scenario: str, server: str, limit: float) -> Bar:
    """A bar on Rill's CPU per token beside another server's."""
    says = f"{scenario}: CPU per token / {server}'s"
    return Bar(says, lambda rows: rows.ratio(scenario, "cpu", server), limit)


BARS = [
    cpu_ratio("steady200", "go", 1.4),
    cpu_ratio("steady200", "flask", 0.35),
    cpu_ratio("steady1000", "go", 1.6),
    cpu_ratio("steady1000", "flask", 0.35),
    cpu_ratio("starts1000", "go", 1.6),
    cpu_ratio("starts1000", "flask", 0.35),
    at_most("starts1000", "p99", "added latency p99, ms", 20),
    at_most("starts1000", "max", "added latency max, ms", 100),
    at_most("starts1000", "first_p50", "first byte p50, ms", 5),
    at_most("starts1000", "first_p99", "first byte p99, ms", 40),
    at_most("open5000", "kb_per_stream", "memory per stream, KB", 45),
    at_most("two_workers10k", "mb", "memory of all processes, MB", 512),
    at_most("two_workers10k", "lost", "streams lost", 0),
    *(
        Bar(
            f"{dialect}: CPU per token / plain text's",
            lambda rows, row=f"200 x 20/s, {dialect}": rows.get(row, "cpu") / rows.get("200 x 20/s, text", "cpu"),
            limit,
        )
        for dialect, limit in (("sse", 1.3), ("openai", 1.3), ("anthropic", 1.1))
    ),
    Bar(
        "long64k: CPU per token / short200's",
        lambda rows: rows.get("long64k", "cpu") / rows.get("short200", "cpu"),
        1.10,
    ),
    Bar(
        "unpaced: tokens a second / flask's",
        lambda rows: rows.ratio("unpaced", "tokens_per_second", "flask"),
        10,
        least=True,
    ),
]


def bars(rows: list[dict]) -> str:
    """The table of the bars, of those whose figures were measured."""
    found = Rows(rows)
    lines = [["bar", "", "measured", "asked"]]
    for bar in BARS:
        try:
            value = bar.value(found)
        except (LookupError, ZeroDivisionError):
            continue
        reached = value >= bar.limit if bar.least else value <= bar.limit
        asked = f"{'≥' if bar.least else '≤'} {bar.limit:g}"
        lines.append([bar.says, "reached" if reached else "NOT reached", f"{value:.3g}", asked])
    return aligned(lines) if len(lines) > 1 else ""
