"""How many answers and connections fit into the limit of open files."""

import resource

# Connections without an answer: rejected requests, health checks, idle keep-alive connections.
WAITING_CONNECTIONS = 1000
# Descriptors for other purposes: idle connections to the upstream, listeners, logs, the event loop.
RESERVED_DESCRIPTORS = 200


def fit_open_files(streams: int) -> tuple[int, int]:
    """Raise the limit of open files for `streams` answers; return how many answers and how many connections fit.

    An answer needs two descriptors, one for its client and one for its upstream; any other connection needs one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * streams + WAITING_CONNECTIONS + RESERVED_DESCRIPTORS
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit >= wanted:
        return streams, streams + WAITING_CONNECTIONS
    usable = max(5, limit - RESERVED_DESCRIPTORS)
    return 2 * usable // 5, 3 * usable // 5
