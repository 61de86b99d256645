"""RILL_RATE_LIMIT counted in Redis for all workers and services, and by each worker alone while Redis is lost."""

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import upstream as wire
from asking import wait_until
from conversation import Conversation, request_bytes
from redis_server import RedisServer, speaks_tls
from server import Rill, StartRill, rill_env
from tcp_sockets import tcp_sockets
from upstream import Upstream

PASSWORD = "open-sesame-4711"
RATE = 5
# The most connections to Redis that each worker may keep open.
CONNECTIONS = 8
# The longest response time: far more than the detection of a lost Redis needs, far less than a hang.
LONGEST_SECONDS = 3.0
LOST, BACK = "Redis is lost", "Redis is back"

_addresses = itertools.count(1)


class Response(NamedTuple):
    """A status, and the seconds until it arrived."""

    status: int | None
    seconds: float


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Yield a Redis with a password, which tests may stop and restart."""
    with RedisServer(tmp_path_factory.mktemp("redis"), PASSWORD) as running:
        yield running


@pytest.fixture(scope="module")
def environment(shared_upstream: Upstream) -> Callable[..., dict[str, str]]:
    """Return a function that builds the environment of a service with RATE requests per hour and forwarded address."""

    def build(**more: str) -> dict[str, str]:
        rate = {"RILL_RATE_LIMIT": f"{RATE}/hour", "RILL_TRUSTED_PROXIES": "1", "RILL_MAX_STREAMS_PER_CLIENT": "1000"}
        return {**rill_env(shared_upstream), **rate, **more}

    return build


@pytest.fixture(scope="module")
def service(environment: Callable[..., dict[str, str]], redis: RedisServer) -> Iterator[Rill]:
    with Rill(environment(REDIS_URL=redis.url)) as running:
        yield running


@pytest.fixture(scope="module")
def second_service(environment: Callable[..., dict[str, str]], redis: RedisServer) -> Iterator[Rill]:
    """Yield a second service on the same Redis."""
    with Rill(environment(REDIS_URL=redis.url)) as running:
        yield running


@pytest.fixture(scope="module")
def two_workers(environment: Callable[..., dict[str, str]], redis: RedisServer) -> Iterator[Rill]:
    """Yield a service of two workers on the same Redis, with API keys."""
    keys = "alice=wonder-land,bob=builder-bob,carol=singer-carol"
    with Rill(environment(REDIS_URL=redis.url, WEB_CONCURRENCY="2", RILL_API_KEYS=keys)) as running:
        running.wait_for_workers(2)
        yield running


@pytest.fixture(autouse=True)
def answers(upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))


def new_address() -> str:
    """Return the address of a new client."""
    high, low = divmod(next(_addresses), 250)
    return f"198.51.{high}.{low}"


def send_as(service: Rill, client: str) -> Response:
    """Send a request on a new connection, as the client with this address or API key."""
    name = "X-Forwarded-For" if client[0].isdigit() else "x-api-key"
    began = time.monotonic()
    with service.ask("GET", "/stream?q=hi", {name: client, "Connection": "close"}) as asked:
        status = asked.status
        asked.read_rest()
        return Response(status, time.monotonic() - began)


def statuses(services: list[Rill], client: str, times: int) -> list[int | None]:
    """Send that many requests, to each service in turn, and return the statuses."""
    return [
        send_as(service, client).status for service, _ in zip(itertools.cycle(services), range(times), strict=False)
    ]


def wait_until_logged(service: Rill, message: str, since: int) -> None:
    """Send requests, which check the state of Redis, until the service has logged the message."""

    def is_logged() -> bool:
        send_as(service, new_address())
        return message in service.output()[since:]

    wait_until(is_logged, lambda: f"never logged {message!r}:\n{service.output()[since:][-3000:]}")


def warm(service: Rill) -> int:
    """Send a request that is counted in Redis, and return the length of the output so far."""
    assert send_as(service, new_address()).status == 200
    return len(service.output())


@contextmanager
def load(service: Rill, responses: list[Response], threads: int = 4) -> Iterator[None]:
    """Run clients that send requests one after the other, each from a new address."""
    over = threading.Event()

    def send_requests() -> None:
        while not over.wait(0.03):
            responses.append(send_as(service, new_address()))

    running = [threading.Thread(target=send_requests) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join(20)


ALLOWED, REJECTED = [200] * RATE, [429] * 2


# One shared count


def test_two_services_with_one_redis_share_the_count_of_an_address(service: Rill, second_service: Rill) -> None:
    assert statuses([service, second_service], new_address(), RATE + 2) == ALLOWED + REJECTED


def test_addresses_of_one_client_share_a_count_in_redis_too(service: Rill, second_service: Rill) -> None:
    assert statuses([service], "2001:db8:1:2::1", RATE) == ALLOWED
    assert statuses([second_service], "2001:db8:1:2:ffff::9", 1) == [429]


def test_two_workers_share_the_count_of_an_api_key_by_its_name(two_workers: Rill, redis: RedisServer) -> None:
    before = redis.kept()
    assert statuses([two_workers], "wonder-land", RATE + 5) == ALLOWED + [429] * 5
    assert statuses([two_workers], "builder-bob", RATE + 1) == [*ALLOWED, 429]
    assert redis.kept() == before + 2
    with redis.client() as client:
        kept = b" ".join(client.scan_iter())
    assert b"alice" in kept
    assert b"wonder-land" not in kept


def test_a_rejection_counted_in_redis_states_when_to_retry(service: Rill, second_service: Rill) -> None:
    client = new_address()
    statuses([service], client, RATE)
    with second_service.ask("GET", "/stream?q=hi", {"X-Forwarded-For": client}) as rejected:
        assert rejected.status == 429
        assert 1 <= int(rejected.headers["retry-after"]) <= 3600
        assert rejected.headers["ratelimit-limit"] == str(RATE)
        assert f"{RATE} per hour" in rejected.read_rest().decode()


def test_every_count_in_redis_expires(service: Rill, redis: RedisServer) -> None:
    warm(service)
    with redis.client() as client:
        assert all(client.ttl(key) > 0 for key in client.scan_iter())


def test_a_service_without_redis_url_counts_alone(start_rill: StartRill, redis: RedisServer) -> None:
    alone = start_rill(RILL_RATE_LIMIT=f"{RATE}/hour", RILL_TRUSTED_PROXIES="1", REDIS_URL="")
    before, clients = redis.kept(), redis.clients()
    assert statuses([alone], new_address(), RATE + 2) == ALLOWED + REJECTED
    assert (redis.kept(), redis.clients()) == (before, clients)


# Redis lost


def test_a_redis_outage_under_load_fails_no_request_and_is_logged_once(
    service: Rill, second_service: Rill, redis: RedisServer
) -> None:
    since, responses = warm(service), list[Response]()
    warm(second_service)
    with load(service, responses):
        wait_until(lambda: len(responses) > 5, lambda: "no request is answered")
        redis.kill()
        try:
            wait_until_logged(service, LOST, since)
            client = new_address()
            assert statuses([service], client, RATE + 2) == ALLOWED + REJECTED
            # Each service counts for itself, and still applies the limit.
            assert statuses([second_service], client, 1) == [200]
        finally:
            redis.start()
        wait_until_logged(service, BACK, since)
        wait_until_logged(second_service, BACK, 0)
    assert {each.status for each in responses} == {200}
    assert max(each.seconds for each in responses) < LONGEST_SECONDS
    assert (service.output()[since:].count(LOST), service.output()[since:].count(BACK)) == (1, 1)
    assert statuses([service, second_service], new_address(), RATE + 2) == ALLOWED + REJECTED
    assert "Traceback" not in service.output()


def test_a_hanging_redis_delays_requests_only_briefly(service: Rill, redis: RedisServer) -> None:
    since, responses = warm(service), list[Response]()
    with load(service, responses, threads=12):
        wait_until(lambda: len(responses) > 20, lambda: "no request is answered")
        redis.hang()
        try:
            wait_until_logged(service, LOST, since)
            began = time.monotonic()
            assert statuses([service], new_address(), RATE + 2) == ALLOWED + REJECTED
            assert statuses([service], new_address(), RATE + 2) == ALLOWED + REJECTED
            assert time.monotonic() - began < LONGEST_SECONDS
        finally:
            redis.go_on()
        wait_until_logged(service, BACK, since)
    assert {each.status for each in responses} == {200}
    assert max(each.seconds for each in responses) < LONGEST_SECONDS
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
            client.client_kill_filter(_type="normal", skipme=True)  # the kept connections, unknown to the service
        assert send_as(service, new_address()).status == 200
    assert connections_of(worker.pid, redis) <= CONNECTIONS
    assert LOST not in service.output()[since:]


def connections_of(pid: int, redis: RedisServer) -> int:
    """Return how many connections a process holds to Redis, open or not yet closed."""
    return sum(each.remote_port == redis.port for each in tcp_sockets(pid))


# Forms of REDIS_URL


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


def test_a_redis_at_a_unix_socket_keeps_the_counts(environment: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    with RedisServer(tmp_path, PASSWORD, socket_file=True) as redis, Rill(environment(REDIS_URL=redis.url)) as service:
        assert_counts_in(redis, service)


def test_a_wrong_password_is_treated_as_a_lost_redis(
    environment: Callable[..., dict[str, str]], redis: RedisServer
) -> None:
    wrong = "close-sesame-4712"
    with Rill(environment(REDIS_URL=redis.url_with(wrong))) as service:
        assert_counts_alone(redis, service, wrong, PASSWORD)


def test_a_self_signed_certificate_is_not_trusted(
    environment: Callable[..., dict[str, str]], tls_redis: RedisServer
) -> None:
    with Rill(environment(REDIS_URL=tls_redis.url)) as service:
        assert_counts_alone(tls_redis, service, PASSWORD)


@pytest.mark.parametrize(
    ("query", "more"),
    [("?ssl_cert_reqs=none", {}), ("", {"DYNO": "web.1"})],
    ids=["by the URL", "on Heroku"],
)
def test_a_self_signed_certificate_is_accepted_without_verification(
    environment: Callable[..., dict[str, str]], tls_redis: RedisServer, query: str, more: dict[str, str]
) -> None:
    with Rill(environment(REDIS_URL=f"{tls_redis.url}{query}", **more)) as service:
        assert_counts_in(tls_redis, service)
