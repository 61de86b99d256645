"""An unreachable upstream is a 502 within the timeout, and no prompt is sent to an untrusted server."""

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import upstream as wire
from asking import ask, wait_until
from server import Rill
from upstream import Upstream
from witness import logged, name_request, read_gauges


@pytest.fixture(scope="module")
def untrusted(certificate: Path) -> Iterator[Upstream]:
    """Yield an upstream over TLS with an untrusted certificate."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with Upstream(tls=tls) as running:
        running.always(*wire.answer("Hello"))
        yield running


def assert_unreachable(rill: Rill, port: int) -> None:
    """Assert that each request is a 502 without an address in its message, and leaks nothing."""
    assert requests.get(f"{rill.url}/stream", {"q": "hello"}, timeout=25).status_code == 502
    before = read_gauges(rill, port)
    for _ in range(2):
        name = name_request()
        with ask(rill, headers={"Connection": "close"}, name=name, timeout=25) as asked:
            assert asked.status == 502
            assert asked.read_rest() == b"The model's API cannot be reached. Try again later.\n"
        line = logged(rill, name)
        assert (line["status"], line["outcome"]) == (502, "upstream_unreachable")
    wait_until(
        lambda: all(now <= then for now, then in zip(read_gauges(rill, port), before, strict=True)),
        lambda: f"{read_gauges(rill, port)} is not back at {before}",
    )
    assert "Traceback" not in rill.output()


def test_a_closed_port_is_a_502(start: Callable[..., Rill]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    assert_unreachable(start(url=f"http://127.0.0.1:{port}"), port)


def test_an_unknown_host_is_a_502(start: Callable[..., Rill]) -> None:
    assert_unreachable(start(url="http://messages.invalid:9"), 9)


def test_an_untrusted_certificate_is_a_502_and_receives_no_prompt(
    start: Callable[..., Rill], untrusted: Upstream
) -> None:
    assert_unreachable(start(url=untrusted.url), untrusted.port)
    assert untrusted.accepted > 0
    assert untrusted.requests == []


def test_a_certificate_for_another_name_is_a_502_and_receives_no_prompt(
    start: Callable[..., Rill], untrusted: Upstream, certificate: Path
) -> None:
    url = f"https://localhost:{untrusted.port}"
    assert_unreachable(start(url=url, SSL_CERT_FILE=str(certificate)), untrusted.port)
    assert untrusted.requests == []


def test_a_trusted_certificate_is_accepted(start: Callable[..., Rill], untrusted: Upstream, certificate: Path) -> None:
    with ask(start(url=untrusted.url, SSL_CERT_FILE=str(certificate))) as asked:
        assert (asked.read_rest(), asked.ended) == (b"Hello", "clean")
    untrusted.clear()
    untrusted.always(*wire.answer("Hello"))
