"""Fallback models and a second upstream: every fault before the first event, in all dialects."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import upstream as wire
from asking import ask
from fallbacks import (
    AT_ONCE,
    KEY,
    MODEL,
    OVERLOADED,
    SECOND_KEY,
    SPARE,
    WAYS,
    answer_of,
    assert_recovered,
    fallbacks,
    heal,
    models_of,
)
from server import StartRill
from upstream import Step, Upstream
from witness import logged, name_request

CONFIGURATIONS = ("none", "model", "upstream", "both")


class Fault(NamedTuple):
    """How the primary upstream fails, and the status without a fallback; `fault` is what a fallback replaces."""

    steps: tuple[Step, ...]
    status: int
    fault: str


def error(code: int, type: str, message: str = "no", **headers: str) -> tuple[Step, ...]:
    return (wire.error(code, type, message, {**AT_ONCE, **headers}),)


FIRST_EVENT = {
    "overloaded_error": Fault((), 503, "model"),
    "rate_limit_error": Fault((), 429, "model"),
    "authentication_error": Fault((), 502, "upstream"),
    "invalid_request_error": Fault((), 400, ""),
    "api_error": Fault((), 502, ""),
}
FAULTS = {
    "401": Fault(error(401, "authentication_error"), 502, "upstream"),
    "403": Fault(error(403, "permission_error"), 502, "upstream"),
    "404": Fault(error(404, "not_found_error", f"model: {MODEL}"), 404, "model"),
    "429": Fault(error(429, "rate_limit_error"), 429, "model"),
    "429 for an hour": Fault((wire.error(429, "rate_limit_error", "no", {"retry-after": "3600"}),), 429, "model"),
    "400 of our account": Fault(
        error(400, "invalid_request_error", "Your credit balance is too low."), 502, "upstream"
    ),
    "500": Fault(error(500, "api_error"), 502, "upstream"),
    "502 in HTML": Fault((wire.status(502, {"content-type": "text/html", **AT_ONCE}, b"<html>"),), 502, "upstream"),
    "529": Fault(error(529, "overloaded_error"), 503, "model"),
    "redirect": Fault((wire.status(307, {"location": "http://127.0.0.1:9/"}),), 502, "upstream"),
    # The client's own errors.
    "400": Fault(error(400, "invalid_request_error", "max_tokens: 9 is odd"), 400, ""),
    "413": Fault(error(413, "request_too_large"), 413, ""),
    # The upstream may have processed the request.
    "504": Fault(error(504, "timeout_error"), 504, ""),
    "lost late": Fault((wire.pause(0.6), wire.close()), 502, ""),
    "a byte of a response": Fault((wire.raw(b"HTTP/1.1 200 OK\r\ncon"), wire.close()), 502, ""),
    "200 in HTML": Fault((wire.status(200, {"content-type": "text/html"}, b"<html>"),), 502, ""),
    **{
        f"{type} as the first event": Fault(
            (wire.head(), wire.send(wire.stream_error(type, "temperature: no")), wire.end()), status, fault
        )
        for type, (_, status, fault) in FIRST_EVENT.items()
    },
    "reset before the first event": Fault((wire.head(), wire.send(wire.ping()), wire.reset()), 502, ""),
}
ANSWERED_BY = {
    ("model", "model"): ("primary", SPARE),
    ("model", "upstream"): ("fallback", MODEL),
    ("model", "both"): ("primary", SPARE),
    ("upstream", "upstream"): ("fallback", MODEL),
    ("upstream", "both"): ("fallback", MODEL),
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_before_the_first_event_is_answered_by_the_fallback_that_can(
    share_rill: StartRill, upstream: Upstream, second: Upstream, what: str, configuration: str
) -> None:
    steps, status, fault = FAULTS[what]
    rill = share_rill(**fallbacks(configuration, second))
    by = ANSWERED_BY.get((fault, configuration))
    for way in WAYS if by or what == "400" else ("text", "anthropic"):
        if way == "anthropic whole" and "event" in what:
            continue
        heal(rill, upstream)
        second.clear()
        second.always(*answer_of(way, "spare"))
        upstream.script(*steps)
        upstream.always(*(answer_of(way, "spare") if by == ("primary", SPARE) else steps))
        if by:
            assert_recovered(rill, way, by)
            assert models_of(upstream) == ([MODEL, SPARE] if by[1] == SPARE else [MODEL])
            assert models_of(second) == ([MODEL] if by[0] == "fallback" else [])
            assert {request.headers["authorization"] for request in upstream.requests} == {f"Bearer {KEY}"}
            assert {request.headers["authorization"] for request in second.requests} <= {f"Bearer {SECOND_KEY}"}
            continue
        name = name_request()
        with ask(rill, way, name=name, model=MODEL) as asked:
            assert asked.status == status
            assert "x-rill-upstream" not in asked.headers
        assert second.requests == []
        line = logged(rill, name)
        assert (line["upstream"], line["model"], line["attempts"]) == ("primary", MODEL, len(upstream.requests))
        assert set(models_of(upstream)) == {MODEL}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("way", WAYS)
def test_a_connection_that_closes_at_once_is_answered_by_the_second_upstream_if_streamed(
    share_rill: StartRill, upstream: Upstream, second: Upstream, way: str, how: str
) -> None:
    rill = share_rill(**fallbacks("both", second))
    heal(rill, upstream)  # It also leaves a kept connection, on which the request is repeated at once.
    second.always(*answer_of(way, "spare"))
    upstream.always({"close": wire.close(), "reset": wire.reset()}[how])
    if way == "anthropic whole":
        with ask(rill, way) as asked:
            assert asked.status == 502
        assert (len(upstream.requests), second.requests) == (1, [])
    else:
        assert_recovered(rill, way, ("fallback", MODEL), attempts=3)
        assert models_of(upstream) == [MODEL, MODEL]


# An upstream that cannot be reached


@pytest.fixture(scope="module")
def untrusted(certificate: Path) -> Iterator[Upstream]:
    """Yield an upstream over TLS with an untrusted certificate."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with Upstream(tls=tls) as running:
        yield running


@pytest.mark.parametrize("configuration", ["model", "upstream", "both"])
@pytest.mark.parametrize("what", ["closed port", "unknown host", "untrusted certificate"])
def test_an_unreachable_upstream_is_answered_by_the_second_one(
    start_rill: StartRill, second: Upstream, untrusted: Upstream, what: str, configuration: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    urls = {
        "closed port": f"http://127.0.0.1:{port}",
        "unknown host": "http://messages.invalid:9",
        "untrusted certificate": untrusted.url,
    }
    rill = start_rill(**{**fallbacks(configuration, second), "ANTHROPIC_BASE_URL": urls[what]})
    if configuration == "model":
        with ask(rill) as asked:
            assert asked.status == 502
        assert second.requests == []
        return
    for attempts, way in enumerate(WAYS):
        second.always(*answer_of(way, "spare"))
        # After five failures the circuit is open.
        assert_recovered(rill, way, ("fallback", MODEL), attempts=2 if attempts < 5 else 1)
    assert models_of(second) == [MODEL] * len(WAYS)
    assert untrusted.requests == []


def test_a_recorded_answer_names_who_answers(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(**fallbacks("model", upstream), RILL_RESUME_SECONDS="30")
    upstream.script(OVERLOADED)
    upstream.script(OVERLOADED)
    upstream.script(*wire.answer("spare"))
    with rill.ask("GET", "/stream?q=who&resume=20") as first:
        assert first.read_rest() == b"spare"
    with rill.ask("GET", first.headers["content-location"], {"Range": "bytes=2-"}) as resumed:
        assert resumed.read_rest() == b"are"
    for asked in first, resumed:
        assert (asked.headers["x-rill-upstream"], asked.headers["x-rill-model"]) == ("primary", SPARE)
