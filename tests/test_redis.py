"""RILL_RATE_LIMIT counted in Redis for all workers and services, and by each worker alone while Redis is lost."""

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import upstream as wire
from asking import wait_until
from conversation import Conversation, request_bytes
from redis_server import RedisServer, speaks_tls
from server import Rill, StartRill, rill_env
from upstream import Upstream

PASSWORD = "open-sesame-4711"
RATE = 5
# What it may keep open to Redis in each worker.
CONNECTIONS = 8
# Far more than it takes to learn that Redis is lost, and far less than a client would call a hang.
PATIENCE = 3.0
LOST, BACK = "Redis is lost", "Redis is back"

_addresses = itertools.count(1)


class Told(NamedTuple):
    """A status, and after how many seconds it came."""

    status: int | None
    seconds: float


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Yield a Redis with a password, which tests may lose and bring back."""
    with RedisServer(tmp_path_factory.mktemp("redis"), PASSWORD) as running:
        yield running


@pytest.fixture(scope="module")
def house(shared_upstream: Upstream) -> Callable[..., dict[str, str]]:
    """Return the environment of a service whose clients may ask RATE times an hour, each known by the address it claims."""

    def build(**more: str) -> dict[str, str]:
        rate = {"RILL_RATE_LIMIT": f"{RATE}/hour", "RILL_TRUSTED_PROXIES": "1", "RILL_MAX_STREAMS_PER_CLIENT": "1000"}
        return {**rill_env(shared_upstream), **rate, **more}

    return build


@pytest.fixture(scope="module")
def service(house: Callable[..., dict[str, str]], redis: RedisServer) -> Iterator[Rill]:
    with Rill(house(REDIS_URL=redis.url)) as running:
        yield running


@pytest.fixture(scope="module")
def another(house: Callable[..., dict[str, str]], redis: RedisServer) -> Iterator[Rill]:
    """Yield a second service on the same Redis."""
    with Rill(house(REDIS_URL=redis.url)) as running:
        yield running


@pytest.fixture(scope="module")
def crowd(house: Callable[..., dict[str, str]], redis: RedisServer) -> Iterator[Rill]:
    """Yield a service of two workers on the same Redis, whose clients have tokens."""
    tokens = "alice=wonder-land,bob=builder-bob,carol=singer-carol"
    with Rill(house(REDIS_URL=redis.url, WEB_CONCURRENCY="2", RILL_API_KEYS=tokens)) as running:
        running.wait_for_workers(2)
        yield running


@pytest.fixture(autouse=True)
def answers(upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))


def new_address() -> str:
    """Return the address of a client that has never asked."""
    high, low = divmod(next(_addresses), 250)
    return f"198.51.{high}.{low}"


def ask(service: Rill, client: str) -> Told:
    """Ask once, as the client with this address or token, on a connection of its own."""
    name = "X-Forwarded-For" if client[0].isdigit() else "x-api-key"
    began = time.monotonic()
    with service.ask("GET", "/stream?q=hi", {name: client, "Connection": "close"}) as asked:
        status = asked.status
        asked.read_rest()
        return Told(status, time.monotonic() - began)


def statuses(services: list[Rill], client: str, times: int) -> list[int | None]:
    """Ask so many times, of each service in turn."""
    return [ask(service, client).status for service, _ in zip(itertools.cycle(services), range(times), strict=False)]


def wait_until_said(service: Rill, words: str, since: int) -> None:
    """Ask, for nothing is looked at otherwise, until the service has said these words."""

    def is_said() -> bool:
        ask(service, new_address())
        return words in service.output()[since:]

    wait_until(is_said, lambda: f"never said {words!r}:\n{service.output()[since:][-3000:]}")


def warm(service: Rill) -> int:
    """Count once in Redis, and return how much the service has said until then."""
    assert ask(service, new_address()).status == 200
    return len(service.output())


@contextmanager
def load(service: Rill, told: list[Told], threads: int = 4) -> Iterator[None]:
    """Some clients who ask one after the other, each time from an address that never asked before."""
    over = threading.Event()

    def go_on_asking() -> None:
        while not over.wait(0.03):
            told.append(ask(service, new_address()))

    running = [threading.Thread(target=go_on_asking) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join(20)


ALLOWED, REFUSED = [200] * RATE, [429] * 2


# One count


def test_two_services_with_one_redis_share_the_count_of_an_address(service: Rill, another: Rill) -> None:
    assert statuses([service, another], new_address(), RATE + 2) == ALLOWED + REFUSED


def test_addresses_of_one_client_share_a_count_in_redis_too(service: Rill, another: Rill) -> None:
    assert statuses([service], "2001:db8:1:2::1", RATE) == ALLOWED
    assert statuses([another], "2001:db8:1:2:ffff::9", 1) == [429]


def test_two_workers_share_the_count_of_an_api_key_by_its_name(crowd: Rill, redis: RedisServer) -> None:
    before = redis.kept()
    assert statuses([crowd], "wonder-land", RATE + 5) == ALLOWED + [429] * 5
    assert statuses([crowd], "builder-bob", RATE + 1) == [*ALLOWED, 429]
    assert redis.kept() == before + 2
    with redis.client() as client:
        kept = b" ".join(client.scan_iter())
    assert b"alice" in kept
    assert b"wonder-land" not in kept


def test_a_rejection_counted_in_redis_states_when_to_retry(service: Rill, another: Rill) -> None:
    client = new_address()
    statuses([service], client, RATE)
    with another.ask("GET", "/stream?q=hi", {"X-Forwarded-For": client}) as refused:
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert refused.headers["ratelimit-limit"] == str(RATE)
        assert f"{RATE} per hour" in refused.read_rest().decode()


def test_every_count_in_redis_expires(service: Rill, redis: RedisServer) -> None:
    warm(service)
    with redis.client() as client:
        assert all(client.ttl(key) > 0 for key in client.scan_iter())


def test_a_service_without_redis_url_counts_alone(start_rill: StartRill, redis: RedisServer) -> None:
    alone = start_rill(RILL_RATE_LIMIT=f"{RATE}/hour", RILL_TRUSTED_PROXIES="1", REDIS_URL="")
    before, clients = redis.kept(), redis.clients()
    assert statuses([alone], new_address(), RATE + 2) == ALLOWED + REFUSED
    assert (redis.kept(), redis.clients()) == (before, clients)


# Redis lost


def test_a_redis_outage_under_load_fails_no_request_and_is_logged_once(
    service: Rill, another: Rill, redis: RedisServer
) -> None:
    since, told = warm(service), list[Told]()
    warm(another)
    with load(service, told):
        wait_until(lambda: len(told) > 5, lambda: "nobody is answered")
        redis.kill()
        try:
            wait_until_said(service, LOST, since)
            client = new_address()
            assert statuses([service], client, RATE + 2) == ALLOWED + REFUSED
            assert statuses([another], client, 1) == [200]  # each counts for itself, and none lets everybody in
        finally:
            redis.start()
        wait_until_said(service, BACK, since)
        wait_until_said(another, BACK, 0)
    assert {each.status for each in told} == {200}
    assert max(each.seconds for each in told) < PATIENCE
    assert (service.output()[since:].count(LOST), service.output()[since:].count(BACK)) == (1, 1)
    assert statuses([service, another], new_address(), RATE + 2) == ALLOWED + REFUSED
    assert "Traceback" not in service.output()


def test_a_hanging_redis_delays_requests_only_briefly(service: Rill, redis: RedisServer) -> None:
    since, told = warm(service), list[Told]()
    with load(service, told, threads=12):
        wait_until(lambda: len(told) > 20, lambda: "nobody is answered")
        redis.hang()
        try:
            wait_until_said(service, LOST, since)
            began = time.monotonic()
            assert statuses([service], new_address(), RATE + 2) == ALLOWED + REFUSED
            assert statuses([service], new_address(), RATE + 2) == ALLOWED + REFUSED
            assert time.monotonic() - began < PATIENCE
        finally:
            redis.go_on()
        wait_until_said(service, BACK, since)
    assert {each.status for each in told} == {200}
    assert max(each.seconds for each in told) < PATIENCE
    assert (service.output()[since:].count(LOST), service.output()[since:].count(BACK)) == (1, 1)


def test_many_concurrent_requests_keep_few_connections_and_leak_none(
    service: Rill, upstream: Upstream, redis: RedisServer
) -> None:
    since = warm(service)
    (worker,) = service.workers()
    many, begun = 200, redis.kept()
    upstream.always(
        wire.head(), wire.send(wire.opening(), wire.text("a")), wire.gate("all"), wire.send(wire.stop()), wire.end()
    )
    with ExitStack() as stack:
        requests = [request_bytes("GET", "/stream?q=hi", {"X-Forwarded-For": new_address()}) for _ in range(many)]
        asked = [stack.enter_context(Conversation(service.port, request, 30)) for request in requests]
        assert [each.next_chunk() for each in asked] == [b"a"] * many
        assert redis.kept() == begun + many
        assert connections_of(worker.pid, redis) <= CONNECTIONS
        upstream.open("all")
        assert [(each.read_rest(), each.ended) for each in asked] == [(b"", "clean")] * many
    assert LOST not in service.output()[since:]
    for _ in range(2):
        with redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)  # what is kept is gone, and nobody notices
        assert ask(service, new_address()).status == 200
    assert connections_of(worker.pid, redis) <= CONNECTIONS
    assert LOST not in service.output()[since:]


def connections_of(pid: int, redis: RedisServer) -> int:
    """Return how many connections a process holds to Redis, open or not yet closed."""
    found = psutil.Process(pid).net_connections("tcp4")
    return sum(bool(each.raddr) and each.raddr.port == redis.port for each in found)


# How REDIS_URL is meant


@pytest.fixture(scope="module")
def tls_redis(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if not shutil.which("redis-server") or not speaks_tls():
        pytest.skip("a redis-server that speaks TLS is not installed")
    with RedisServer(tmp_path_factory.mktemp("redis"), PASSWORD, certificate=certificate) as running:
        yield running


def assert_counts_in(redis: RedisServer, service: Rill) -> None:
    before = redis.kept()
    assert statuses([service], new_address(), RATE + 1) == [*ALLOWED, 429]
    assert redis.kept() == before + 1
    assert LOST not in service.output()
    assert PASSWORD not in service.output()


def assert_counts_alone(redis: RedisServer, service: Rill, *passwords: str) -> None:
    before = redis.kept()
    assert statuses([service], new_address(), RATE + 1) == [*ALLOWED, 429]
    assert redis.kept() == before
    assert service.output().count(LOST) == 1
    assert not [each for each in passwords if each in service.output()]


def test_a_redis_at_a_unix_socket_keeps_the_counts(house: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    with RedisServer(tmp_path, PASSWORD, socket_file=True) as redis, Rill(house(REDIS_URL=redis.url)) as service:
        assert_counts_in(redis, service)


def test_a_wrong_password_is_treated_as_a_lost_redis(house: Callable[..., dict[str, str]], redis: RedisServer) -> None:
    wrong = "close-sesame-4712"
    with Rill(house(REDIS_URL=redis.url_with(wrong))) as service:
        assert_counts_alone(redis, service, wrong, PASSWORD)


def test_a_self_signed_certificate_is_not_trusted(house: Callable[..., dict[str, str]], tls_redis: RedisServer) -> None:
    with Rill(house(REDIS_URL=tls_redis.url)) as service:
        assert_counts_alone(tls_redis, service, PASSWORD)


@pytest.mark.parametrize(
    ("query", "more"),
    [("?ssl_cert_reqs=none", {}), ("", {"DYNO": "web.1"})],
    ids=["where that is said", "where the platform is known for it"],
)
def test_a_self_signed_certificate_is_accepted_without_verification(
    house: Callable[..., dict[str, str]], tls_redis: RedisServer, query: str, more: dict[str, str]
) -> None:
    with Rill(house(REDIS_URL=f"{tls_redis.url}{query}", **more)) as service:
        assert_counts_in(tls_redis, service)
