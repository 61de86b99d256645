"""Rill's targets: one for a figure of a row of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A limit: absolute, or relative to the figure of another server (`server`) or of another row (`row_of`)."""

    row: str
    figure: str
    limit: float
    server: str = ""
    row_of: str = ""
    at_least: bool = False
    busy: bool | None = None  # whether it holds beside busy loops only, or on an idle machine only


def cpu(row: str, limit: float, server: str = "go") -> Target:
    """Return a target for the CPU per token relative to another server's."""
    return Target(row, "cpu", limit, server)


TARGETS = [
    cpu("steady200", 0.65),
    cpu("steady200", 0.15, "flask"),
    cpu("steady1000", 0.7),
    cpu("tls200", 0.95),
    cpu("200x20x400", 0.8),
    cpu("200x60x600", 0.8),
    cpu("200x20x100", 1.1),
    cpu("1000x10x100", 1.15),
    cpu("starts1000", 1.3),
    Target("starts1000", "start_cpu", 2, "go"),
    Target("starts1000", "p99", 3, busy=False),
    Target("starts1000", "p99", 30, busy=True),
    Target("starts1000", "first_p50", 5, busy=False),
    Target("starts1000", "first_p99", 40, busy=False),
    Target("1000x10x100", "p99", 60, busy=True),
    *(Target(f"overload{streams}", figure, 100) for streams in (500, 1000) for figure in ("p99", "rejected_p99")),
    *(Target(f"overload{streams}", "lost", 0) for streams in (500, 1000)),
    Target("overload1000", "tokens_per_second", 0.95, row_of="overload500", at_least=True),
    Target("wait750", "answers_per_second", 0.95, "go", at_least=True),
    *(Target(f"dialects: {name}", "cpu", 1.1, row_of="dialects: text") for name in ("sse", "anthropic", "openai")),
    Target("open5000", "kb_per_stream", 22),
    Target("two_workers10k", "mb", 400),
    Target("two_workers10k", "lost", 0),
    Target("long64k", "cpu", 1.1, row_of="short200"),
    Target("unpaced", "tokens_per_second", 10, "flask", at_least=True),
]
