"""Failed authentication is limited for each address, and never locks out a valid key."""

import itertools
import time

import pytest
import upstream as wire
from conversation import request_bytes
from raw import exchange
from server import Rill, StartRill
from upstream import Upstream

from rill.admission.auth import FAILURES, ApiKeys
from rill.admission.sliding_window import SlidingWindow
from rill.problems import Problem
from rill.settings import digest_of

GOOD, ADDRESS = "the-secret-of-alice", "203.0.113.7"


_hosts = itertools.count(1)


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_API_KEYS=f"alice={GOOD}")


def new_address() -> str:
    """Return an address of the loopback that no other test uses."""
    high, low = divmod(next(_hosts), 250)
    return f"127.9.{high}.{low + 1}"


def statuses(rill: Rill, times: int, key: str, source: str, path: str = "/stream?q=hi") -> list[int]:
    """Return the statuses of as many requests, on one connection, from an address of the loopback."""
    request = request_bytes("GET", path, {"x-api-key": key} if key else {})
    return exchange(rill.port, request * times, source).statuses[:times]


@pytest.mark.parametrize("key", ["wrong", ""], ids=["a wrong key", "no key"])
@pytest.mark.parametrize("path", ["/stream?q=hi", "/v1/models", "/metrics", "/drip"])
def test_too_many_failures_of_one_address_are_429_and_a_valid_key_still_works(
    rill: Rill, upstream: Upstream, key: str, path: str
) -> None:
    upstream.always(*wire.answer("ok"))
    address = new_address()
    told = statuses(rill, FAILURES.amount + 5, key, address, path)
    assert told == [401] * FAILURES.amount + [429] * 5
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


def name(tokens: ApiKeys, sent: str | None, address: str = ADDRESS) -> int:
    """Return the status of the problem that a key meets, 200 where it is known."""
    try:
        assert tokens.name_of(sent, address) == "alice"
    except Problem as problem:
        return problem.status
    return 200


def test_an_address_may_fail_again_after_its_window() -> None:
    clock = Clock()
    tokens = ApiKeys({"alice": digest_of(GOOD)}, SlidingWindow(FAILURES, clock))
    assert [name(tokens, "wrong") for _ in range(FAILURES.amount)] == [401] * FAILURES.amount
    assert (name(tokens, "wrong"), name(tokens, GOOD), name(tokens, None)) == (429, 200, 429)
    clock.now += FAILURES.seconds
    assert name(tokens, "wrong") == 401


def test_addresses_of_one_ipv6_network_share_their_failures() -> None:
    tokens = ApiKeys({"alice": digest_of(GOOD)}, SlidingWindow(FAILURES, Clock()))
    for number in range(FAILURES.amount):
        name(tokens, "wrong", f"2001:db8::{number:x}")
    assert name(tokens, "wrong", "2001:db8::ffff") == 429
    assert name(tokens, "wrong", "2001:db8:1::1") == 401


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
    digests = {f"name-{number}": digest_of(f"secret {number}") for number in range(20_000)}
    tokens = ApiKeys(digests, SlidingWindow(FAILURES, Clock()))

    def seconds() -> float:
        begun = time.perf_counter()
        name(tokens, "wrong")
        return time.perf_counter() - begun

    compared = min(seconds() for _ in range(FAILURES.amount))
    assert min(seconds() for _ in range(20)) < compared / 10
