"""The benchmark: every server through every scenario, one table. `bench/README.md` says how to read it."""

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
    """Why a server is left out of a scenario, in a few words."""


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [name for name in text.split(",") if name]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four servers, two short scenarios")
    parser.add_argument("--only", type=names, metavar="NAME,...", help=f"servers, of: {', '.join(NAMES)}")
    known = ", ".join(scenario.name for scenario in scenarios.full())
    parser.add_argument("--scenario", type=names, metavar="NAME,...", help=f"scenarios, of: {known}")
    parser.add_argument("--repeat", type=int, default=1, help="run everything so often, and show the medians")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every repeat's rows there")
    chosen = parser.parse_args()
    chosen.only = chosen.only or (QUICK_SERVERS if chosen.quick else NAMES)
    if unknown := set(chosen.only) - set(NAMES):
        parser.error(f"no such server: {', '.join(unknown)}")
    return chosen


def chosen_scenarios(chosen: argparse.Namespace) -> list[scenarios.Scenario]:
    """The scenarios of this run."""
    known = scenarios.quick() if chosen.quick else scenarios.full()
    if not chosen.scenario:
        return known
    if unknown := set(chosen.scenario) - {scenario.name for scenario in known}:
        sys.exit(f"no such scenario in this form: {', '.join(unknown)}")
    return [scenario for scenario in known if scenario.name in chosen.scenario]


def generate_load(plan: dict) -> dict:
    """Run the load generator, a process of its own, through the plan."""
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
    """One server through one scenario, all processes fresh; raises Skipped where it cannot be."""
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
    """Run what the command line asks for."""
    chosen = options()
    raise_descriptor_limit()
    titles = {server.name: server.says for server in servers.SERVERS}
    rows: list[dict] = []
    skipped: dict[str, None] = {}
    for repeat in range(chosen.repeat):
        for scenario in chosen_scenarios(chosen):
            for server in servers.SERVERS:
                if server.name not in chosen.only:
                    continue
                print(f"{repeat + 1}/{chosen.repeat} {scenario.name}: {server.says}", file=sys.stderr)
                try:
                    rows += measure(server, scenario)
                except Skipped as reason:
                    skipped[f"skipped: {server.says}, {scenario.name}: {reason}"] = None
    middle = report.medians(rows)
    print(report.table(middle, titles), *skipped, report.bars(middle), sep="\n\n")
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": rows, "skipped": list(skipped)}, indent=1))


if __name__ == "__main__":
    main()
