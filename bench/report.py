"""Make the Markdown table of all rows, with ratios and targets, and the list of disturbed runs."""

import statistics

from scenarios import Scenario
from targets import TARGETS, Target

FIGURES = {
    "cpu": "CPU µs/token",
    "start_cpu": "CPU ms/start",
    "first_p50": "first byte p50 ms",
    "first_p99": "first byte p99 ms",
    "p50": "added p50 ms",
    "p99": "added p99 ms",
    "tokens_per_second": "tokens/s",
    "answers_per_second": "answers/s",
    "streams": "open streams",
    "rejected": "rejected/s",
    "rejected_p99": "rejection p99 ms",
    "kb_per_stream": "KB/stream",
    "mb": "MB",
    "lost": "lost",
}
MAX_SHARE, MAX_OTHERS, MAX_LATE_MS = 0.85, 0.1, 1.0  # of a core, of a core, p99: beyond them a run is disturbed

Row = dict[str, float | None]


def rows_of(scenario: Scenario, result: dict) -> dict[str, Row]:
    """Return the figures of each window of a run; KB are 1,000 bytes, MB 1,000,000."""
    rows: dict[str, Row] = {}
    cores = {window["name"]: window["server_core"] for window in result["windows"]}
    for planned, window in zip(scenario.windows, result["windows"], strict=True):
        memory, grown = window["memory_kib"], window["memory_kib"] - result["idle_memory_kib"]
        row: Row = {
            "cpu": window["cpu_us"] if memory else None,
            "start_cpu": None,
            "tokens_per_second": window["tokens_per_second"],
            "answers_per_second": window["answers_per_second"],
            "streams": window["streams_open"],
            "rejected": window["rejected"] / (planned.end - planned.start),
            "rejected_p99": window["rejected_ms"]["p99"],
            "kb_per_stream": 1.024 * grown / window["streams_open"] if memory and window["streams_open"] else None,
            "mb": 1.024e-3 * memory if memory else None,
            "lost": sum(result["lost"].values()),
            "late_p99": window["lateness_ms"]["p99"],
        }
        if planned.beside:
            row["start_cpu"] = 1e3 * (cores[planned.name] - cores[planned.beside]) / planned.starts_per_second
        row |= {name: window["latency_ms"][name] for name in ("p50", "p99", "max")}
        row |= {f"first_{name}": window["first_ms"][name] for name in ("p50", "p99")}
        row |= {name: window[name] for name in ("upstream_core", "load_core", "other_core")}
        rows[planned.name] = row
    return rows


class Results:
    """The rows of all runs; a figure is the median of its repeats, a ratio the median of the ratios of each repeat."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], dict[int, Row]] = {}

    def add(self, server: str, repeat: int, rows: dict[str, Row]) -> None:
        """Add the rows of one run."""
        for name, row in rows.items():
            self.runs.setdefault((name, server), {})[repeat] = row

    def figure(self, row: str, figure: str, server: str) -> float | None:
        """Return one figure, None if it was not measured."""
        values = [run[figure] for run in self.runs.get((row, server), {}).values()]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    def ratio(self, row: str, figure: str, server: str = "", row_of: str = "") -> float | None:
        """Return Rill's figure relative to that of another server or of another row."""
        ours, theirs = self.runs.get((row, "rill"), {}), self.runs.get((row_of or row, server or "rill"), {})
        both = [(ours[repeat][figure], theirs[repeat][figure]) for repeat in ours.keys() & theirs.keys()]
        ratios = [mine / other for mine, other in both if mine is not None and other]
        return statistics.median(ratios) if ratios else None


def number(value: float | None) -> str:
    """Format a figure with three digits; a dash if there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def targets_of(row: str, figure: str, busy: bool) -> list[Target]:
    """Return the targets of a figure of a row."""
    return [each for each in TARGETS if (each.row, each.figure) == (row, figure) and each.busy in (None, busy)]


def verdict(target: Target, results: Results, titles: dict[str, str]) -> str:
    """Return a target with whether it is met; empty if its figures were not measured."""
    relative = bool(target.server or target.row_of)
    if relative:
        value = results.ratio(target.row, target.figure, target.server, target.row_of)
    else:
        value = results.figure(target.row, target.figure, "rill")
    if value is None:
        return ""
    met = value >= target.limit if target.at_least else value <= target.limit
    limit = f"{'≥' if target.at_least else '≤'} {target.limit:g}"
    of = f" of {titles.get(target.server, target.row_of)}" if relative else ""
    # The ratio to Go has its own column.
    measured = f", is {number(value)}" if relative and target.server != "go" else ""
    return f"{limit}{of}{measured}: {'met' if met else 'NOT met'}"


def table(scenarios: list[Scenario], results: Results, titles: dict[str, str], busy: bool) -> str:
    """Return the table: for each row its figures, with a column for each server that was measured."""
    servers = [name for name in titles if any(server == name for _, server in results.runs)]
    lines = [["scenario", "figure", *(titles[name] for name in servers), "Rill / Go", "target"]]
    for window in (window for scenario in scenarios for window in scenario.windows):
        for figure in window.figures:
            values = [results.figure(window.name, figure, server) for server in servers]
            verdicts = [verdict(each, results, titles) for each in targets_of(window.name, figure, busy)]
            if all(value is None for value in values) or (figure == "lost" and not any(values) and not verdicts):
                continue
            cells = [number(value) for value in (*values, results.ratio(window.name, figure, "go"))]
            lines.append([window.name, FIGURES[figure], *cells, "; ".join(filter(None, verdicts))])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Return a Markdown table, with the figures aligned right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = {0, 1, len(widths) - 1}
    rule = ["-" * width if at in text else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    padded = [
        [cell.ljust(widths[at]) if at in text else cell.rjust(widths[at]) for at, cell in enumerate(line)]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def measurement(row: Row) -> str:
    """Return how busy and how late the measuring processes were."""
    shares = ", ".join(f"{name} {row[f'{name}_core'] or 0:.0%}" for name in ("upstream", "load", "other"))
    return f"{shares} of a core; upstream's lateness p99 {number(row['late_p99'])} ms"


def disturbed(results: Results, busy: bool) -> list[str]:
    """Return a line for each run that something other than the server may have slowed down."""
    lines = []
    for (name, server), runs in results.runs.items():
        for repeat, row in runs.items():
            late = (row["late_p99"] or 0) > MAX_LATE_MS
            full = max(row["upstream_core"] or 0, row["load_core"] or 0) > MAX_SHARE
            if not busy and (late or full or (row["other_core"] or 0) > MAX_OTHERS):
                lines.append(f"disturbed: {name}, {server}, run {repeat}: {measurement(row)}")
    return lines
