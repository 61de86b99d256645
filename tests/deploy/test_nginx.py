"""nginx with deploy/nginx.conf in front of the real server, and the effect of changes of that file."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import upstream as wire
from pieces import (
    PIECES,
    ask,
    assert_delayed,
    assert_healthy,
    assert_piece_by_piece,
    gated_pieces,
    rills_keepalive,
    status_from,
)
from proxies import BUFFER, BUFFERING, HTTP_1_0, NGINX, NGINX_CONF, Nginx
from server import Rill, StartRill
from upstream import Step, Upstream

from rill.settings import Settings

pytestmark = pytest.mark.skipif(not NGINX, reason="needs nginx")

BUFFER_BY_DEFAULT = {"proxy_buffering off;": "proxy_buffering on;"}
COMPRESS = {"gzip off;": "gzip on; gzip_types text/plain text/event-stream;"}
ACCEPTS = pytest.mark.parametrize("accept", ["text/plain", "text/event-stream"])
SECRET = "petrichor"  # a prompt that no log may contain


@pytest.fixture(scope="module")
def nginx(service: Rill) -> Iterator[Nginx]:
    with Nginx(service) as running:
        yield running


# Unbuffered streaming


@ACCEPTS
def test_each_piece_passes_nginx_before_the_next_is_sent(accept: str, nginx: Nginx, upstream: Upstream) -> None:
    upstream.script(*gated_pieces())
    with ask(nginx, Accept=accept) as asked:
        assert_piece_by_piece(asked, upstream)
        assert asked.ended == "clean"


@pytest.mark.parametrize(
    "changes",
    [HTTP_1_0, {**HTTP_1_0, **BUFFER_BY_DEFAULT}, {**COMPRESS, **BUFFER_BY_DEFAULT}],
    ids=["HTTP/1.0", "nginx's defaults", "gzip"],
)
@ACCEPTS
def test_each_piece_passes_if_nginx_respects_x_accel_buffering(
    accept: str, changes: Mapping[str, str], service: Rill, upstream: Upstream
) -> None:
    upstream.script(*gated_pieces())
    with Nginx(service, changes) as changed, ask(changed, Accept=accept, Accept_Encoding="gzip") as asked:
        assert_piece_by_piece(asked, upstream)
        assert asked.ended == "clean"


@ACCEPTS
def test_gzip_without_buffering_delays_no_piece(accept: str, service: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_pieces())
    with Nginx(service, COMPRESS) as changed, ask(changed, Accept=accept, Accept_Encoding="gzip") as asked:
        assert asked.headers["content-encoding"] == "gzip"
        assert_piece_by_piece(asked, upstream)


def test_the_deployed_configuration_compresses_no_answer(nginx: Nginx, upstream: Upstream) -> None:
    upstream.script(*wire.answer(*PIECES))
    with ask(nginx, Accept_Encoding="gzip") as asked:
        assert asked.read_rest() == "".join(PIECES).encode()
        assert "content-encoding" not in asked.headers


@pytest.mark.parametrize("changes", [BUFFERING, {**BUFFER, **COMPRESS}], ids=["HTTP/1.0", "gzip"])
@ACCEPTS
def test_a_proxy_that_buffers_delays_every_piece(
    accept: str, changes: Mapping[str, str], service: Rill, upstream: Upstream
) -> None:
    upstream.script(*gated_pieces())
    with Nginx(service, changes) as changed, ask(changed, Accept=accept, Accept_Encoding="gzip") as asked:
        assert_delayed(asked, upstream)


# Truncations and disconnects


@pytest.mark.parametrize("how", [wire.close, wire.reset, wire.end], ids=["close", "reset", "end"])
@pytest.mark.parametrize("changes", [{}, HTTP_1_0, COMPRESS], ids=["unchanged", "HTTP/1.0", "gzip"])
def test_nginx_passes_on_a_truncation(
    changes: Mapping[str, str], how: Callable[[], Step], service: Rill, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("half")), wire.gate("truncate"), how())
    with Nginx(service, changes) as changed, ask(changed, Accept_Encoding="gzip") as asked:
        assert asked.status == 200
        upstream.open("truncate")
        asked.read_rest()
        assert asked.ended == "truncated"


@ACCEPTS
def test_a_disconnect_behind_nginx_closes_the_upstream_connection(
    accept: str, nginx: Nginx, service: Rill, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(PIECES[0])), wire.silence())
    request_id = f"disconnect-{accept.partition('/')[2]}"
    with ask(nginx, Accept=accept, X_Request_Id=request_id) as asked:
        asked.read_until(PIECES[0].encode())
    upstream.wait_for_disconnect()
    assert wait_for_line(service, request_id)["outcome"] == "client_disconnected"


def test_a_disconnect_before_the_answer_closes_the_upstream_connection(nginx: Nginx, upstream: Upstream) -> None:
    upstream.script(wire.silence())
    with ask(nginx):
        upstream.wait_for_requests(1)
    upstream.wait_for_disconnect()


def test_nginx_repeats_no_request_when_rill_dies_before_it_answers(
    nginx: Nginx, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*wire.answer("first"))
    upstream.always(wire.gate("never"), *wire.answer("second"))
    with nginx.ask("GET", "/stream?q=hi") as asked:
        assert asked.read_rest() == b"first"  # opens a persistent connection, on which nginx would repeat a request
    with nginx.ask("GET", "/stream?q=hi") as asked:
        upstream.wait_at_gate("never")
        (worker,) = service.workers()
        worker.kill()
        assert asked.status == 502
    assert_healthy(service)
    assert len(upstream.requests) == 2


# Clients, limits and logs


def test_a_forged_x_forwarded_for_does_not_raise_the_rate_limit(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("hi"))
    with Nginx(start_rill(RILL_TRUSTED_PROXIES="1", RILL_RATE_LIMIT="3/minute")) as nginx:
        statuses = []
        for n in range(5):
            with ask(nginx, X_Forwarded_For=f"192.0.2.{n}") as asked:
                statuses.append(asked.status)
                asked.read_rest()
        assert statuses == [200, 200, 200, 429, 429]
        assert status_from("127.0.0.2", nginx) == 200  # another client: Rill trusts the address from nginx


def test_nginx_reuses_a_connection_to_rill(nginx: Nginx, upstream: Upstream) -> None:
    upstream.always(*wire.answer("hi"))
    with ask(nginx) as asked:
        asked.read_rest()
    open_before = nginx.connections()
    for _ in range(3):
        with ask(nginx) as asked:
            asked.read_rest()
    assert nginx.connections() == open_before != set()


def test_nginx_passes_a_body_that_rill_accepts_and_rejects_a_longer_one_with_413(
    nginx: Nginx, upstream: Upstream
) -> None:
    limit: int = Settings.model_fields["max_body_bytes"].default
    upstream.script(*wire.answer("hi"))
    with ask(nginx, b"x" * limit) as asked:
        assert (asked.status, asked.read_rest()) == (200, b"hi")
    with ask(nginx, b"x" * (limit + 1)) as asked:
        assert asked.status == 413
    assert len(upstream.requests) == 1


def test_nginx_passes_rills_own_messages(nginx: Nginx, upstream: Upstream) -> None:
    upstream.script(wire.error(429, "rate_limit_error", "Slow down", {"retry-after": "7"}))
    with ask(nginx) as asked:
        assert (asked.status, asked.headers["retry-after"]) == (429, "7")
        assert asked.read_rest() == b"The model's rate limit is reached. Try again in 7 s.\n"


def test_no_log_or_file_of_nginx_contains_a_prompt(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("half")), wire.close())
    upstream.script(wire.gate("never"))
    upstream.script(wire.gate("long"), *wire.answer("hi"))
    with Nginx(service) as nginx:
        with nginx.ask("GET", f"/stream?q={SECRET}") as asked:
            asked.read_rest()
            assert asked.ended == "truncated"
        with nginx.ask("GET", f"/stream?q={SECRET}") as asked:
            upstream.wait_at_gate("never")
            service.workers()[0].kill()
            assert asked.status == 502
        assert_healthy(service)
        with ask(nginx, SECRET.encode() * 100_000):
            upstream.wait_at_gate("long")
            assert nginx.temporary_files() == []
            files = [path for path in nginx.folder.rglob("*") if path.is_file()]
        assert {"rill.log", "output"} <= {path.name for path in files}
        assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []


# The timeouts of nginx.conf and of Rill


def test_nginx_waits_longer_than_rills_own_timeouts() -> None:
    assert seconds("proxy_read_timeout") > Settings.model_fields["total_timeout_seconds"].default


def test_nginx_closes_an_idle_connection_before_rill_does() -> None:
    assert seconds("keepalive_timeout") < rills_keepalive()


def seconds(name: str) -> int:
    """Return the value of a directive in deploy/nginx.conf, in seconds."""
    (value,) = re.findall(rf"^ *{name} (\d+)s;$", NGINX_CONF, re.MULTILINE)
    return int(value)


def wait_for_line(service: Rill, request_id: str) -> dict[str, Any]:
    """Wait for the log line of an answer, which is written after its end, and return it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in service.output().splitlines():
            if request_id in line and '"outcome"' in line:
                fields: dict[str, Any] = json.loads(line)
                return fields
        time.sleep(0.02)
    raise AssertionError(f"no log line of {request_id}:\n{service.output()}")
