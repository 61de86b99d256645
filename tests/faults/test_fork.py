"""The master imports the application; pools, locks and connections are made in each worker."""

from collections.abc import Callable

import psutil
import upstream as wire
from asking import ask
from server import Rill
from upstream import Upstream
from witness import ports_to, wait_until_all_serve

MOST_BYTES = 140_000_000


def test_workers_and_their_master_share_no_upstream_connection(upstream: Upstream, start: Callable[..., Rill]) -> None:
    upstream.always(*wire.answer("here"))
    rill = start(WEB_CONCURRENCY="2")
    wait_until_all_serve(rill, 2)
    for _ in range(20):
        with ask(rill, headers={"Connection": "close"}) as asked:
            assert asked.read_rest() == b"here"
    addresses = [ports_to(worker, upstream.port) for worker in rill.wait_for_workers(2)]
    assert all(addresses)
    assert addresses[0].isdisjoint(addresses[1])
    assert ports_to(psutil.Process(rill.pid), upstream.port) == set()


def test_two_idle_workers_and_their_master_use_less_than_140_megabytes(
    upstream: Upstream, start: Callable[..., Rill]
) -> None:
    upstream.always(*wire.answer("here"))
    rill = start(WEB_CONCURRENCY="2")
    wait_until_all_serve(rill, 2)
    processes = [psutil.Process(rill.pid), *rill.wait_for_workers(2)]
    assert sum(process.memory_full_info().pss for process in processes) < MOST_BYTES


def test_the_master_has_a_single_thread_when_it_forks(upstream: Upstream, start: Callable[..., Rill]) -> None:
    rill = start()
    assert psutil.Process(rill.pid).num_threads() == 1
