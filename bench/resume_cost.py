"""Measure what recording an answer costs: resume_cost.py [--runs N] [--base FOLDER]

200 streams of 20 tokens a second: not recorded, recorded in memory, and in Redis; with --base also not recorded by the
Rill of another folder. CPU per token of Rill and of Redis, and Redis commands per second and open answer; medians.
"""

import argparse
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import prepare
import redis
import scenarios
import servers
from measure import raise_descriptor_limit
from run import generate_load

STREAMS, RATE, SECONDS = 200, 20, 10.0


def scenario(dialect: str) -> scenarios.Scenario:
    """Return the load, with answers that are recorded or not."""
    made = scenarios.open_all_along("resume", STREAMS, RATE, 100, SECONDS)
    return replace(made, groups=tuple(replace(group, dialect=dialect) for group in made.groups))


def measure(folder: Path, dialect: str, server: redis.Redis | None) -> dict[str, float]:
    """Return CPU in microseconds per token of Rill and of Redis, and Redis commands per second and open answer."""
    settings = [("RILL_RESUME_SECONDS", "60")] if dialect == "resumable" else []
    if server:
        settings.append(("REDIS_URL", f"redis://127.0.0.1:{server.connection_pool.connection_kwargs['port']}/0"))
    rill = replace(servers.SERVERS[0], directory=folder)
    before = used(server)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, servers.upstream(None) as (upstream_pid, upstream_port):
        task = servers.Task(servers.free_port(), upstream_port, Path(name), None, 1, tuple(settings))
        with servers.serving(rill, task) as pids:
            plan = {**scenario(dialect).plan(), "port": task.port, "server": pids, "upstream": [upstream_pid]}
            result = generate_load(plan)
    (window,) = result["windows"]
    cpu, commands = (after - was for after, was in zip(used(server), before, strict=True))
    # Redis is measured over the whole run, starts and ends included.
    tokens = window["tokens_per_second"] * (SECONDS + STREAMS / 100 + 1)
    per_answer = commands / (STREAMS * (SECONDS + 2))
    return {"rill": window["cpu_us"], "redis": cpu / tokens * 1e6, "commands": per_answer}


def used(server: redis.Redis | None) -> tuple[float, int]:
    """Return the CPU seconds and the commands of Redis so far."""
    if not server:
        return 0.0, 0
    cpu = server.info("cpu")
    return cpu["used_cpu_user"] + cpu["used_cpu_sys"], server.info("stats")["total_commands_processed"]


def main() -> None:
    """Run every variant in turn, so that a noisy host disturbs all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--base", type=Path)
    chosen = parser.parse_args()
    raise_descriptor_limit()
    port, here = servers.free_port(), prepare.HERE.parent
    command = ["redis-server", "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    variants = {"not recorded": (here, "text", None), "in memory": (here, "resumable", None)}
    variants["in Redis"] = (here, "resumable", redis.Redis(port=port))
    if chosen.base:
        variants = {"base": (chosen.base, "text", None), **variants}
    try:
        runs = [{name: measure(*variant) for name, variant in variants.items()} for _ in range(chosen.runs)]
    finally:
        process.terminate()
    for name in variants:
        rill, there, commands = (median(run[name][field] for run in runs) for field in ("rill", "redis", "commands"))
        print(
            f"{name:14} {rill:5.1f} µs in Rill, {there:4.1f} µs in Redis, {commands:.2f} commands/s per answer",
            end="; ",
        )
        print(*(f"{run[name]['rill']:.1f}" for run in runs))


if __name__ == "__main__":
    main()
