"""Run every server through every scenario and print one table. `bench/README.md` explains it."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import prepare
import report
import scenarios
import servers
from measure import raise_descriptor_limit

QUICK_SERVERS = ["rill", "go", "nginx", "flask"]
NAMES = [server.name for server in servers.SERVERS]


class Skipped(Exception):
    """The reason why a server skips a scenario."""


def names(text: str) -> list[str]:
    """Split a comma-separated list."""
    return [name for name in text.split(",") if name]


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four servers, two short scenarios")
    parser.add_argument("--only", type=names, metavar="NAME,...", help=f"servers, of: {', '.join(NAMES)}")
    known = ", ".join(scenario.name for scenario in scenarios.full())
    parser.add_argument("--scenario", type=names, metavar="NAME,...", help=f"scenarios, of: {known}")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the table shows medians")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows of every run to FILE")
    chosen = parser.parse_args()
    chosen.only = chosen.only or (QUICK_SERVERS if chosen.quick else NAMES)
    if unknown := set(chosen.only) - set(NAMES):
        parser.error(f"no such server: {', '.join(unknown)}")
    return chosen


def chosen_scenarios(chosen: argparse.Namespace) -> list[scenarios.Scenario]:
    """Return the scenarios of this run."""
    known = scenarios.quick() if chosen.quick else scenarios.full()
    if not chosen.scenario:
        return known
    if unknown := set(chosen.scenario) - {scenario.name for scenario in known}:
        sys.exit(f"no such scenario in this form: {', '.join(unknown)}")
    return [scenario for scenario in known if scenario.name in chosen.scenario]


def generate_load(plan: dict) -> dict:
    """Run the load generator with a plan, in its own process."""
    done = subprocess.run(
        [sys.executable, str(prepare.HERE / "load.py")],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=plan["end"] + 60,
    )
    return json.loads(done.stdout)


def measure(server: servers.Server, scenario: scenarios.Scenario) -> list[dict]:
    """Run one server through one scenario, with new processes; raise Skipped if it cannot."""
    alone = server.name == "none"
    if (scenario.rill_only and server.name != "rill") or (scenario.tls and alone):
        return []  # the load generator speaks no TLS
    if missing := server.prepare():
        raise Skipped(missing)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        certificate = prepare.certificate(folder) if scenario.tls else None
        if scenario.tls and not certificate:
            raise Skipped("openssl is not installed")
        with servers.upstream(certificate) as (upstream_pid, upstream_port):
            port = upstream_port if alone else servers.free_port()
            task = servers.Task(port, upstream_port, folder, certificate, scenario.workers)
            try:
                with servers.serving(server, task) as pids:
                    plan = {**scenario.plan(), "port": port, "server": pids, "upstream": [upstream_pid]}
                    return report.rows_of(scenario.name, server.name, generate_load(plan))
            except (RuntimeError, subprocess.SubprocessError) as problem:
                raise Skipped(str(problem)) from None


def main() -> None:
    """Run the selected servers and scenarios."""
    chosen = options()
    raise_descriptor_limit()
    titles = {server.name: server.title for server in servers.SERVERS}
    rows: list[dict] = []
    skipped: dict[str, None] = {}
    for repeat in range(chosen.repeat):
        for scenario in chosen_scenarios(chosen):
            for server in servers.SERVERS:
                if server.name not in chosen.only:
                    continue
                print(f"{repeat + 1}/{chosen.repeat} {scenario.name}: {server.title}", file=sys.stderr)
                try:
                    rows += measure(server, scenario)
                except Skipped as reason:
                    skipped[f"skipped: {server.title}, {scenario.name}: {reason}"] = None
    middle = report.medians(rows)
    print(report.table(middle, titles), *skipped, report.targets(middle), sep="\n\n")
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": rows, "skipped": list(skipped)}, indent=1))


if __name__ == "__main__":
    main()
