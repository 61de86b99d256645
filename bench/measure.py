"""What a set of processes costs, read from Linux's /proc: CPU seconds and proportional memory."""

import contextlib
import os
import resource
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit of open files to its hard limit; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Set: the upstream and the load generator run on the last core only.
APART = "BENCH_APART"


def take_priority() -> None:
    """Run before the server, as if on another machine, where the system allows it (root, or CAP_SYS_NICE)."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        if os.environ.get(APART):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from `state` on; the command's name before them may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def process_tree(root: int) -> list[int]:
    """The process and all its descendants alive now."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                children.setdefault(int(stat_fields(entry)[1]), []).append(int(entry))
            except OSError:
                continue  # it ended since the listing
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return tree


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU seconds of the processes with all threads; raise OSError if one has ended."""
    # Linux derives the id of a process' CPU clock from its pid: clock_getcpuclockid(3).
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def machine_cpu_seconds() -> float:
    """CPU seconds that the whole machine has been busy, summed over its cores."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def memory_kib(pids: list[int]) -> int:
    """Proportional set size of the processes in KiB: a page shared by n of them counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
