"""Measure what RILL_RATE_LIMIT costs in an empty Redis: redis_cost.py REDIS_URL CLIENTS"""

import sys
import time

from gevent import monkey

monkey.patch_all()

import redis  # noqa: E402

from rill.admission.rate_limit import RateLimit  # noqa: E402
from rill.admission.redis import SharedCounts  # noqa: E402
from rill.quota import parse_quotas  # noqa: E402


def used(server: redis.Redis) -> tuple[float, float, int]:
    """Return the CPU seconds of Redis and of this process, and the bytes of memory of Redis."""
    cpu, memory = server.info("cpu"), server.info("memory")
    return cpu["used_cpu_user"] + cpu["used_cpu_sys"], time.process_time(), memory["used_memory"]


def main(url: str, clients: int) -> None:
    """Count one request for each client, one after the other."""
    rate, server = "60/minute", redis.Redis.from_url(url)
    limit = RateLimit(rate, SharedCounts(url, parse_quotas(rate)))
    limit.count("the first one loads the script")
    before = used(server)
    for client in range(clients):
        limit.count(f"client {client}")
    there, here, memory = (after - was for after, was in zip(used(server), before, strict=True))
    there, here = there / clients * 1e6, here / clients * 1e6
    print(f"{there:.0f} µs in Redis, {here:.0f} µs in the worker, {memory / clients:.0f} bytes per client")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
