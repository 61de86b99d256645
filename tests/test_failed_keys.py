"""Failed authentication is limited per address, and a valid key always works."""

import itertools
import time

import pytest
import upstream as wire
from conversation import request_bytes
from raw import exchange
from server import Rill, StartRill
from upstream import Upstream

from rill.admission.auth import FAILURES, Authentication
from rill.admission.sliding_window import SlidingWindow
from rill.credentials import ApiKey, digest_of, parse_api_keys
from rill.problems import Problem

GOOD, ADDRESS = "the-secret-of-alice", "203.0.113.7"
KEYS = parse_api_keys(f"alice={GOOD}")

_hosts = itertools.count(1)


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_API_KEYS=f"alice={GOOD}")


def new_address() -> str:
    """Return a loopback address that no other test uses."""
    high, low = divmod(next(_hosts), 250)
    return f"127.9.{high}.{low + 1}"


def statuses(rill: Rill, times: int, key: str, source: str, path: str = "/stream?q=hi") -> list[int]:
    """Return the statuses of that many requests, on one connection, from a loopback address."""
    request = request_bytes("GET", path, {"x-api-key": key} if key else {})
    return exchange(rill.port, request * times, source).statuses[:times]


@pytest.mark.parametrize("key", ["wrong", ""], ids=["a wrong key", "no key"])
@pytest.mark.parametrize("path", ["/stream?q=hi", "/v1/models", "/metrics", "/drip"])
def test_too_many_failures_of_one_address_are_429_and_a_valid_key_still_works(
    rill: Rill, upstream: Upstream, key: str, path: str
) -> None:
    upstream.always(*wire.answer("ok"))
    address = new_address()
    received = statuses(rill, FAILURES.amount + 5, key, address, path)
    assert received == [401] * FAILURES.amount + [429] * 5
    assert statuses(rill, 1, GOOD, address) == [200]
    assert statuses(rill, 1, "wrong", address) == [429]
    assert statuses(rill, 1, "wrong", new_address()) == [401]


def test_the_429_states_when_to_retry_and_is_counted(start_rill: StartRill) -> None:
    rill = start_rill(RILL_API_KEYS=f"alice={GOOD}")
    statuses(rill, FAILURES.amount, "wrong", "127.0.0.1")
    with rill.ask("GET", "/stream?q=hi", {"x-api-key": "wrong"}) as asked:
        assert asked.status == 429
        assert 1 <= int(asked.headers["retry-after"]) <= FAILURES.seconds
        assert "www-authenticate" not in asked.headers
        assert b"API key" in asked.read_rest()
    with rill.ask("GET", "/metrics", {"x-api-key": GOOD}) as asked:
        assert b'rill_requests_rejected_total{reason="rate_limited"} 1.0' in asked.read_rest()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def status_of(keys: Authentication, sent: str | None, address: str = ADDRESS) -> int:
    """Return 200 for a known key, or the status of the problem."""
    try:
        assert keys.client_of(sent, address).name == "alice"
    except Problem as problem:
        return problem.status
    return 200


def test_an_address_may_fail_again_after_its_window() -> None:
    clock = Clock()
    keys = Authentication(KEYS, failures=SlidingWindow(FAILURES, clock))
    assert [status_of(keys, "wrong") for _ in range(FAILURES.amount)] == [401] * FAILURES.amount
    assert (status_of(keys, "wrong"), status_of(keys, GOOD), status_of(keys, None)) == (429, 200, 429)
    clock.now += FAILURES.seconds
    assert status_of(keys, "wrong") == 401


def test_addresses_of_one_ipv6_network_share_their_failures() -> None:
    keys = Authentication(KEYS, failures=SlidingWindow(FAILURES, Clock()))
    for number in range(FAILURES.amount):
        status_of(keys, "wrong", f"2001:db8::{number:x}")
    assert status_of(keys, "wrong", "2001:db8::ffff") == 429
    assert status_of(keys, "wrong", "2001:db8:1::1") == 401


def test_the_memory_of_failures_is_bounded() -> None:
    failures = SlidingWindow(FAILURES, Clock(), max_clients=100)
    for number in range(1000):
        failures.add(f"address {number}")
    assert len(failures) == 100
    for _ in range(FAILURES.amount):
        failures.add("the newest")
    assert failures.seconds_left("the newest") > 0


@pytest.mark.timing
def test_a_rejection_over_the_limit_costs_less_than_comparing_the_keys() -> None:
    secrets = {f"name-{number}": ApiKey((digest_of(f"secret {number}"),)) for number in range(20_000)}
    keys = Authentication(secrets, failures=SlidingWindow(FAILURES, Clock()))

    def seconds() -> float:
        begun = time.perf_counter()
        status_of(keys, "wrong")
        return time.perf_counter() - begun

    compared = min(seconds() for _ in range(FAILURES.amount))
    assert min(seconds() for _ in range(20)) < compared / 10
