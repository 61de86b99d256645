"""Under random faults, client, upstream and log agree: no request billed twice, no wrong outcome, no answer lost."""

import time

from asking import wait_until
from plan import Play
from run import Clients, report
from server import StartRill
from upstream import Upstream
from witness import log_lines

CLIENTS = 30
SECONDS = 6.0
# Short timeouts, so that a silent upstream does not take long.
ENV = {
    "RILL_START_TIMEOUT_SECONDS": "4",
    "RILL_IDLE_TIMEOUT_SECONDS": "3",
    "RILL_MAX_STREAMS_PER_CLIENT": "1000",
}


def test_client_upstream_and_log_agree_on_every_answer(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(Play())
    rill = start_rill(**ENV)
    with Clients(rill, CLIENTS, seed=20261121) as clients:
        time.sleep(SECONDS)
    names = {result.plan.name for result, _, _ in clients.results}
    wait_until(lambda: names <= {line["request_id"] for line in log_lines(rill.output())}, lambda: "lines are missing")
    faults = clients.judge(upstream)
    print(report(clients, faults))
    assert not faults, report(clients, faults)
    assert len(clients.results) > 2 * CLIENTS
