"""Token budgets that Redis counts for all workers, and that each worker counts while Redis is lost."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import gevent
import pytest
import upstream as wire
from asking import ask, wait_until
from redis_server import RedisServer
from server import Rill, StartRill
from test_budget import ALICE, INPUT, prompt, token_of, usage_of, wait_for_use
from upstream import Upstream

from rill.admission.budget import Reservation, TokenBudget
from rill.admission.rate_limit import RateLimit
from rill.admission.redis import SharedCounts
from rill.problems import Problem
from rill.quota import parse_quotas

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()


class Worker:
    """The limits of one worker."""

    def __init__(self, redis: RedisServer, budgets: str = "1000/year", rate: str = "1000/minute", seconds: float = 900):
        shared = SharedCounts(redis.url, parse_quotas(rate))
        self.rate = RateLimit(rate, shared)
        self.budget = TokenBudget(parse_quotas(budgets), seconds, 2, shared)


def test_workers_share_what_is_used_and_reserved(redis: RedisServer) -> None:
    one, two = Worker(redis), Worker(redis)
    asked, reservation = one.budget.reserve(ALICE, prompt(max_tokens=600), one.rate)
    assert asked.max_tokens == 600
    second, other = two.budget.reserve(ALICE, prompt(max_tokens=600), two.rate)
    assert second.max_tokens == 1000 - reservation.tokens - other.input_tokens
    one.budget.settle(reservation, 100)
    two.budget.settle(other, 200)
    for worker in (one, two):
        (usage,) = worker.budget.usage(ALICE)
        assert (usage.used, usage.reserved) == (300, 0)


def test_two_quotas_are_each_counted(redis: RedisServer) -> None:
    worker = Worker(redis, "1000/year;300/hour")
    asked, reservation = worker.budget.reserve(ALICE, prompt(max_tokens=600), worker.rate)
    assert asked.max_tokens == 300 - reservation.input_tokens
    worker.budget.settle(reservation, 400)
    assert [usage.used for usage in worker.budget.usage(ALICE)] == [400, 400]
    with pytest.raises(Problem, match="300 per hour") as rejected:
        worker.budget.reserve(ALICE, prompt(), worker.rate)
    assert rejected.value.name == "budget_exhausted"
    assert 0 < (rejected.value.retry_after or 0) <= 3600


def test_a_request_over_its_rate_reserves_nothing_and_one_over_its_budget_is_counted(redis: RedisServer) -> None:
    worker = Worker(redis, "100/year", "2/hour")
    worker.budget.settle(worker.budget.reserve(ALICE, prompt(max_tokens=10), worker.rate)[1], 100)
    with pytest.raises(Problem) as rejected:
        worker.budget.reserve(ALICE, prompt(), worker.rate)
    assert rejected.value.name == "budget_exhausted"
    with pytest.raises(Problem) as rejected:
        worker.budget.reserve(ALICE, prompt(), worker.rate)
    assert rejected.value.name == "rate_limited"
    assert worker.budget.usage(ALICE)[0].reserved == 0


def test_a_reservation_that_is_never_settled_is_freed_by_time(redis: RedisServer) -> None:
    crashed, alive = Worker(redis, seconds=-59), Worker(redis)  # It expires after one second.
    crashed.budget.reserve(ALICE, prompt(max_tokens=900), crashed.rate)
    assert alive.budget.usage(ALICE)[0].reserved > 900
    assert alive.budget.reserve(ALICE, prompt(max_tokens=500), alive.rate)[0].max_tokens < 100
    wait_until(lambda: alive.budget.usage(ALICE)[0].reserved < 900, "the reservation is never freed")
    assert alive.budget.reserve(ALICE, prompt(max_tokens=500), alive.rate)[0].max_tokens == 500


def test_what_redis_keeps_of_a_client_expires(redis: RedisServer) -> None:
    worker = Worker(redis, "1000/hour")
    worker.budget.settle(worker.budget.reserve(ALICE, prompt(), worker.rate)[1], 10)
    with redis.client() as client:
        assert 0 < int(str(client.ttl("rill-budget:alice"))) <= 3600


def test_while_redis_is_lost_each_worker_has_its_share_of_what_was_left(redis: RedisServer) -> None:
    one, two = Worker(redis), Worker(redis)
    for worker in (one, two):
        worker.budget.settle(worker.budget.reserve(ALICE, prompt(max_tokens=10), worker.rate)[1], 200)
    redis.kill()
    try:
        granted = []
        for worker in (one, two):
            _, reservation = worker.budget.reserve(ALICE, prompt(max_tokens=2000), worker.rate)
            granted.append(reservation.tokens)
            worker.budget.settle(reservation, reservation.tokens)
            with pytest.raises(Problem):
                worker.budget.reserve(ALICE, prompt(), worker.rate)
        assert granted == [400, 300]  # Half of what each saw last.
    finally:
        redis.start()
    for worker in (one, two):
        wait_until(partial(has_paid, worker), "a charge is lost")
    # This Redis has lost what it had; each worker has paid what it charged meanwhile.
    assert [worker.budget.usage(ALICE)[0].used for worker in (one, two)] == [700, 700]


def has_paid(worker: Worker) -> bool:
    """Send a request, and let the worker's greenlets run; return whether Redis has the charges of its loss."""
    worker.rate.count("anyone")
    gevent.sleep(0.01)
    return not worker.budget._owed


@pytest.fixture
def services(start_rill: StartRill, redis: RedisServer) -> list[Rill]:
    env = {"RILL_JWT_SECRET": SECRET, "RILL_TOKEN_BUDGET": "1000/year", "REDIS_URL": redis.url}
    return [start_rill(**env), start_rill(WEB_CONCURRENCY="2", **env)]


def test_services_on_one_redis_share_a_budget(services: list[Rill], upstream: Upstream) -> None:
    headers = token_of("alice")
    upstream.always(*wire.answer("one ", "two ", "three"))
    for number in range(4):
        with ask(services[number % 2], headers=headers, max_tokens=100) as asked:
            assert asked.read_rest() == b"one two three"
    for service in services:
        wait_for_use(service, headers, lambda used: used == 4 * (INPUT + 3))


def test_the_loss_and_the_return_of_redis_are_logged_and_no_charge_is_lost(
    services: list[Rill], redis: RedisServer, upstream: Upstream
) -> None:
    service, headers = services[0], token_of("bob")
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("x" * 300)), wire.gate("lost"), wire.close())
    with ask(service, headers=headers, max_tokens=200) as asked:
        asked.next_chunk()
        redis.kill()
        try:
            upstream.open("lost")
            asked.read_rest()
            wait_until(lambda: "Redis is lost" in service.output(), service.output)
            upstream.script(*wire.answer("ok"))
            with ask(service, headers=headers, max_tokens=100) as second:
                assert second.read_rest() == b"ok"
            wait_until(lambda: usage_of(service, headers)["reserved"] == 0, "a reservation remains")
        finally:
            redis.start()
    wait_until(lambda: usage_of(service, headers) and "Redis is back" in service.output(), service.output)
    wait_for_use(services[1], headers, lambda used: used == INPUT + 100 + INPUT + 1)


def test_an_invalid_request_counts_for_the_rate(start_rill: StartRill, redis: RedisServer) -> None:
    env = {"RILL_TOKEN_BUDGET": "1000/year", "REDIS_URL": redis.url, "RILL_RATE_LIMIT": "3/hour"}
    service = start_rill(**env)
    statuses = []
    for _ in range(5):
        with service.ask("GET", "/stream?q=") as asked:
            statuses.append(asked.status)
    assert statuses == [400, 400, 400, 429, 429]


@pytest.mark.timing
def test_a_reservation_costs_little_beside_the_rate_limit(redis: RedisServer) -> None:
    worker, asked = Worker(redis, "1000000000/year", "100000000/minute"), prompt("x" * 200)
    reservations: list[Reservation | None] = []

    def cost(call: Callable[[], object]) -> float:
        begun = time.thread_time()
        for _ in range(30):
            call()
        return (time.thread_time() - begun) / 30

    def reserve() -> None:
        reservations.append(worker.budget.reserve(ALICE, asked, worker.rate)[1])

    rates, starts = [], []
    for _ in range(20):
        rates.append(cost(lambda: worker.rate.count("alice")))
        starts.append(cost(reserve))
        while reservations:  # At the end of an answer, in a call of its own.
            worker.budget.settle(reservations.pop(), 10)
    assert min(starts) - min(rates) < 0.0002
