"""Make a Markdown table of the rows, medians of repeats, and the table of Rill's targets."""

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
MIN_STREAMS = 100  # with fewer, memory per stream is meaningless


def rows_of(scenario: str, server: str, result: dict) -> list[dict]:
    """Return one row for each window of a run; KB are 1,000 bytes, MB 1,000,000."""
    rows = []
    for window in result["windows"]:
        memory, grown = window["memory_kib"], window["memory_kib"] - result["idle_memory_kib"]
        latency, open_now = window["latency_ms"], window["streams_open"]
        paced = scenario != "unpaced"  # in unpaced, tokens wait in buffers by design
        row = {
            "scenario": window["name"],
            "server": server,
            "cpu": window["cpu_us"]["server"] if memory else None,
            "first_p50": window["first_ms"]["p50"],
            "first_p99": window["first_ms"]["p99"],
            "kb_per_stream": 1.024 * grown / open_now if memory and open_now >= MIN_STREAMS else None,
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
    """Return one row for each scenario and server, each figure the median of its repeats."""
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
    """Format a figure with at least two digits; a dash if there is none."""
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def aligned(lines: list[list[str]]) -> str:
    """Return a Markdown table, with the first two columns aligned left and the figures right."""
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
    """Return the table of all rows."""
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
class Target:
    """A target for Rill: `value` is at most `limit`, or at least, if `at_least`."""

    name: str
    value: Callable[["Rows"], float]
    limit: float
    at_least: bool = False


class Rows:
    """Find a figure by scenario, server and field; raise LookupError if it was not measured."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = {(row["scenario"], row["server"]): row for row in rows}

    def get(self, scenario: str, field: str, server: str = "rill") -> float:
        """Return one figure of the table."""
        value = self.rows[scenario, server][field]
        if value is None:
            raise LookupError(field)
        return value

    def ratio(self, scenario: str, field: str, server: str) -> float:
        """Return Rill's figure divided by another server's."""
        return self.get(scenario, field) / self.get(scenario, field, server)


def at_most(scenario: str, field: str, name: str, limit: float) -> Target:
    """Return a target for one of Rill's figures."""
    return Target(f"{scenario}: {name}", lambda rows: rows.get(scenario, field), limit)


def cpu_ratio(scenario: str, server: str, limit: float) -> Target:
    """Return a target for Rill's CPU per token relative to another server's."""
    name = f"{scenario}: CPU per token / {server}'s"
    return Target(name, lambda rows: rows.ratio(scenario, "cpu", server), limit)


TARGETS = [
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
        Target(
            f"{dialect}: CPU per token / plain text's",
            lambda rows, row=f"200 x 20/s, {dialect}": rows.get(row, "cpu") / rows.get("200 x 20/s, text", "cpu"),
            limit,
        )
        for dialect, limit in (("sse", 1.3), ("openai", 1.3), ("anthropic", 1.1))
    ),
    Target(
        "long64k: CPU per token / short200's",
        lambda rows: rows.get("long64k", "cpu") / rows.get("short200", "cpu"),
        1.10,
    ),
    Target(
        "unpaced: tokens a second / flask's",
        lambda rows: rows.ratio("unpaced", "tokens_per_second", "flask"),
        10,
        at_least=True,
    ),
]


def targets(rows: list[dict]) -> str:
    """Return the table of the targets whose figures were measured."""
    found = Rows(rows)
    lines = [["target", "", "measured", "limit"]]
    for target in TARGETS:
        try:
            value = target.value(found)
        except (LookupError, ZeroDivisionError):
            continue
        met = value >= target.limit if target.at_least else value <= target.limit
        limit = f"{'≥' if target.at_least else '≤'} {target.limit:g}"
        lines.append([target.name, "met" if met else "NOT met", f"{value:.3g}", limit])
    return aligned(lines) if len(lines) > 1 else ""
