"""Run servers through scenarios, in turn, and print one table. `bench/README.md` explains it."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import prepare
import report
import scenarios
import servers
from measure import APART, raise_descriptor_limit

SECONDS, QUICK_SECONDS = 10, 3
QUICK_SCENARIOS = ["steady200", "200x20x100", "1000x10x100"]
NAMES = [server.name for server in servers.SERVERS]
KNOWN = [scenario.name for scenario in scenarios.known(SECONDS)]


class Skipped(Exception):
    """The reason why a server skips a scenario."""


def names_of(known: list[str]):
    """Return a parser of a comma-separated list of known names."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return names

    return parse


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"once, {QUICK_SECONDS} s, {', '.join(QUICK_SCENARIOS)}")
    parser.add_argument("--only", type=names_of(NAMES), metavar="NAME,...", help=f"servers, of: {', '.join(NAMES)}")
    parser.add_argument("--scenario", type=names_of(KNOWN), metavar="NAME,...", help=f"of: {', '.join(KNOWN)}")
    parser.add_argument("--repeat", type=int, help="runs of each server, in turn; the table shows medians (default 5)")
    parser.add_argument("--seconds", type=float, help=f"seconds of a window (default {SECONDS})")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside N busy loops")
    parser.add_argument("--apart", action="store_true", help="the upstream and the clients on a core of their own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures of every run to FILE")
    chosen = parser.parse_args()
    chosen.repeat = chosen.repeat or (1 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    chosen.scenario = chosen.scenario or (QUICK_SCENARIOS if chosen.quick else KNOWN)
    return chosen


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


def measure(server: servers.Server, scenario: scenarios.Scenario) -> dict[str, report.Row]:
    """Run one server through one scenario, with new processes; raise Skipped if it cannot."""
    alone = server.name == "none"
    if scenario.tls and alone:
        raise Skipped("the load generator has no TLS")
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
                    result = generate_load(plan)
                    if result["lost"]:
                        print(f", lost: {result['lost']}", end="", file=sys.stderr)
                    return report.rows_of(scenario, result)
            except (RuntimeError, subprocess.SubprocessError) as problem:
                raise Skipped(str(problem)) from None


def run(chosen: argparse.Namespace, selected: list[scenarios.Scenario]) -> tuple[report.Results, list[str]]:
    """Run each scenario, its servers in turn; return the results, and what was skipped for which reason."""
    results, skipped = report.Results(), dict[str, None]()
    for scenario in selected:
        wanted = [name for name in chosen.only or scenario.servers if name == "rill" or not scenario.rill_only]
        for repeat in range(1, chosen.repeat + 1):
            for server in (server for server in servers.SERVERS if server.name in wanted):
                print(f"{scenario.name}, {server.title}, {repeat}/{chosen.repeat}", end="", file=sys.stderr, flush=True)
                try:
                    rows = measure(server, scenario)
                except Skipped as reason:
                    skipped[f"skipped: {server.title}, {scenario.name}: {reason}"] = None
                    print(f": {reason}", file=sys.stderr)
                else:
                    results.add(server.name, repeat, rows)
                    print(f": {report.measurement(rows[scenario.windows[-1].name])}", file=sys.stderr)
    return results, list(skipped)


def machine(chosen: argparse.Namespace) -> str:
    """Return the line on the machine, the versions, the date and the command."""
    go = shutil.which("go") and subprocess.run(["go", "version"], capture_output=True, text=True).stdout.split()[2]
    loops = f", beside {chosen.busy} busy loops" if chosen.busy else ""
    versions = f"Python {platform.python_version()}, {go or 'no Go'}, Linux {platform.release()}"
    command = f"`{' '.join(['bench/run.py', *sys.argv[1:]])}`"
    date = time.strftime("%Y-%m-%d")
    return f"{os.cpu_count()} cores{loops}; {versions}; {date}; {command}; medians of {chosen.repeat}."


def main() -> None:
    """Run the selected servers and scenarios."""
    chosen = options()
    if chosen.apart:
        os.environ[APART] = "1"
    raise_descriptor_limit()
    titles = {server.name: server.title for server in servers.SERVERS}
    selected = [scenario for scenario in scenarios.known(chosen.seconds) if scenario.name in chosen.scenario]
    with servers.busy_loops(chosen.busy):
        results, skipped = run(chosen, selected)
    busy = chosen.busy > 0
    print(machine(chosen), report.table(selected, results, titles, busy), sep="\n\n")
    print("", *skipped, *report.disturbed(results, busy), sep="\n")
    if chosen.json:
        runs = {f"{name}: {server}": runs for (name, server), runs in results.runs.items()}
        chosen.json.write_text(json.dumps({"runs": runs, "skipped": skipped}, indent=1))


if __name__ == "__main__":
    main()
