"""Caddy with deploy/Caddyfile in front of the real server, and the faults of older versions of Caddy."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import upstream as wire
from pieces import PIECES, ask, assert_healthy, assert_piece_by_piece, gated_pieces, rills_keepalive, status_from
from proxies import CADDY, CADDYFILE, Caddy, caddy_version
from server import ROOT, Rill, StartRill
from upstream import Step, Upstream

from rill.settings import Settings

pytestmark = pytest.mark.skipif(not CADDY, reason="needs caddy")

# Faults of older versions, as the Caddyfile and the documentation state.
PASSES_TRUNCATIONS = caddy_version() >= (2, 8)
DETECTS_DISCONNECTS = caddy_version() >= (2, 9)
ACCEPTS = pytest.mark.parametrize("accept", ["text/plain", "text/event-stream"])
TRUNCATIONS = pytest.mark.parametrize("how", [wire.close, wire.reset, wire.end], ids=["close", "reset", "end"])


@pytest.fixture(scope="module")
def caddy(service: Rill) -> Iterator[Caddy]:
    with Caddy(service) as running:
        yield running


def test_caddy_validates_the_file(tmp_path: Path) -> None:
    assert CADDY
    command = [CADDY, "validate", "--config", str(ROOT / "deploy" / "Caddyfile"), "--adapter", "caddyfile"]
    env = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not formatted" not in done.stderr


@ACCEPTS
def test_each_piece_passes_caddy_before_the_next_is_sent(accept: str, caddy: Caddy, upstream: Upstream) -> None:
    upstream.script(*gated_pieces())
    with ask(caddy, Accept=accept, Accept_Encoding="gzip") as asked:
        assert_piece_by_piece(asked, upstream)
        assert asked.ended == "clean"


def test_caddy_compresses_no_answer_even_if_encode_is_on(service: Rill, upstream: Upstream) -> None:
    upstream.script(*gated_pieces())
    with Caddy(service, directive="encode gzip") as changed, ask(changed, Accept_Encoding="gzip") as asked:
        assert_piece_by_piece(asked, upstream)
        assert "content-encoding" not in asked.headers


@TRUNCATIONS
def test_caddy_passes_on_a_truncation(how: Callable[[], Step], caddy: Caddy, upstream: Upstream) -> None:
    if not PASSES_TRUNCATIONS:
        pytest.skip("needs Caddy 2.8 or newer")
    assert end_behind(caddy, how, upstream) == "truncated"


@TRUNCATIONS
def test_an_old_caddy_ends_a_truncated_answer_cleanly(
    how: Callable[[], Step], caddy: Caddy, upstream: Upstream
) -> None:
    if PASSES_TRUNCATIONS:
        pytest.skip("needs Caddy before 2.8")
    assert end_behind(caddy, how, upstream) == "clean"


def end_behind(caddy: Caddy, how: Callable[[], Step], upstream: Upstream) -> str | None:
    """Return how a truncated answer ends behind Caddy."""
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("half")), wire.gate("truncate"), how())
    with ask(caddy) as asked:
        asked.read_until(b"half")
        upstream.open("truncate")
        asked.read_rest()
        return asked.ended


@ACCEPTS
def test_a_disconnect_behind_caddy_closes_the_upstream_connection(
    accept: str, caddy: Caddy, upstream: Upstream
) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(PIECES[0])), wire.silence())
    with ask(caddy, Accept=accept) as asked:
        asked.read_until(PIECES[0].encode())
    upstream.wait_for_disconnect()


def test_flush_interval_makes_an_old_caddy_miss_a_disconnect(service: Rill, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text(PIECES[0])), wire.silence())
    with Caddy(service, option="flush_interval -1") as changed:
        with ask(changed) as asked:
            asked.read_until(PIECES[0].encode())
        if DETECTS_DISCONNECTS:
            upstream.wait_for_disconnect()
        else:
            with pytest.raises(AssertionError, match="waited 1 s"):
                upstream.wait_for_disconnect(timeout=1)


@pytest.mark.parametrize(("body", "times"), [(b"", 2), (b"hi", 1)], ids=["GET", "POST"])
def test_caddy_repeats_only_a_get_when_rill_dies_before_it_answers(
    body: bytes, times: int, caddy: Caddy, service: Rill, upstream: Upstream
) -> None:
    upstream.script(*wire.answer("first"))
    upstream.always(wire.gate("never"), *wire.answer("again"))
    with caddy.ask("GET", "/stream?q=hi") as asked:
        assert asked.read_rest() == b"first"  # opens a persistent connection
    with caddy.ask("POST" if body else "GET", "/stream?q=hi", {"Content-Type": "text/plain"}, body) as asked:
        upstream.wait_at_gate("never")
        (worker,) = service.workers()
        worker.kill()
        upstream.wait_for_requests(1 + times)
        upstream.open("never")
        assert asked.status == (502 if body else 200)
    assert_healthy(service)
    assert len(upstream.requests) == 1 + times


def test_caddy_closes_an_idle_connection_before_rill_does() -> None:
    (ours,) = re.findall(r"^\t*keepalive (\d+)s$", CADDYFILE, re.MULTILINE)
    assert int(ours) < rills_keepalive()


def test_a_forged_x_forwarded_for_does_not_raise_the_rate_limit(start_rill: StartRill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("hi"))
    with Caddy(start_rill(RILL_TRUSTED_PROXIES="1", RILL_RATE_LIMIT="3/minute")) as caddy:
        statuses = []
        for n in range(5):
            with ask(caddy, X_Forwarded_For=f"192.0.2.{n}") as asked:
                statuses.append(asked.status)
                asked.read_rest()
        assert statuses == [200, 200, 200, 429, 429]
        assert status_from("127.0.0.2", caddy) == 200  # another client: Rill trusts the address from Caddy


def test_caddy_passes_a_body_that_rill_accepts_and_rills_message_for_a_longer_one(
    caddy: Caddy, upstream: Upstream
) -> None:
    limit: int = Settings.model_fields["max_body_bytes"].default
    upstream.script(*wire.answer("hi"))
    with ask(caddy, b"x" * limit) as asked:
        assert (asked.status, asked.read_rest()) == (200, b"hi")
    with ask(caddy, b"x" * (limit + 1)) as asked:
        assert (asked.status, asked.read_rest().decode()) == (413, f"The body should be at most {limit} bytes long.\n")
    assert len(upstream.requests) == 1
