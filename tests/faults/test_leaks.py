"""Memory and descriptors do not grow after the first thousand answers."""

import http.client
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import upstream as wire
from asking import SSE, wait_until
from server import Rill
from upstream import Answer, Upstream
from witness import baseline, read_gauges, wait_for_baseline

FIRST, SHORT_FORM, FULL_FORM = 1_000, 1_000, 19_000
CLIENTS = 6
MORE = 1.02
ENV = {"RILL_MAX_STREAMS": "50", "RILL_RATE_LIMIT": "1000/second"}
BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one ")))
SCRIPTS = {
    "whole": tuple(wire.answer("a few ", "words")),
    "truncated": (*BEGUN, wire.close()),
    "disconnected": (*BEGUN, wire.silence()),
    "rejected": (wire.error(400, "invalid_request_error", "no"),),
}
# Of twenty answers, sixteen are complete.
MIX = ["whole"] * 16 + ["truncated", "disconnected", "disconnected", "rejected"]


def play_named_script(answer: Answer) -> None:
    for step in SCRIPTS[answer.request.json["messages"][0]["content"]]:
        step(answer)


def ask_once(connection: http.client.HTTPConnection, number: int) -> None:
    kind = MIX[number % len(MIX)]
    connection.request("GET", f"/stream?q={kind}", headers=SSE if number % 2 else {})
    response = connection.getresponse()
    if kind == "whole":
        assert b"words" in response.read()
    elif kind == "rejected":
        assert (response.status, bool(response.read())) == (400, True)
    else:
        response.read1(4)
        response.close()
        connection.close()


def ask_many(rill: Rill, upstream: Upstream, answers: int) -> None:
    """Request `answers` answers in total, with several clients over persistent connections."""

    def ask_share(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", rill.port, timeout=20)
        for number in range(first, answers, CLIENTS):
            ask_once(connection, number)
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(ask_share, range(CLIENTS)))
    wait_until(lambda: all(each.outcome for each in upstream.answers), lambda: "upstream answers are open")
    upstream.clear()
    upstream.always(play_named_script)


def memory(rill: Rill) -> int:
    """Return the bytes of memory that only the worker uses."""
    (worker,) = rill.workers()
    return worker.memory_full_info().uss


@pytest.mark.timeout(600)
@pytest.mark.parametrize("further", [SHORT_FORM, pytest.param(FULL_FORM, marks=pytest.mark.soak)])
def test_memory_and_descriptors_do_not_grow_after_the_first_thousand_answers(
    upstream: Upstream, service: Rill, further: int
) -> None:
    baseline(service, upstream)
    upstream.always(play_named_script)
    ask_many(service, upstream, FIRST)
    before, held = read_gauges(service, upstream.port), memory(service)
    for answers in itertools.repeat(1_000, further // 1_000):
        ask_many(service, upstream, answers)
    wait_for_baseline(service, upstream, before)
    assert memory(service) <= MORE * held
