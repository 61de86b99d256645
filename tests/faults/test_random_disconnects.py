"""Thousands of clients that disconnect at random moments leak nothing."""

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import upstream as wire
from asking import ask, wait_until
from conversation import Conversation, request_bytes
from server import Rill
from upstream import Answer, Step, Upstream
from witness import assert_no_leaks, log_lines

DISCONNECTS, AT_ONCE, COMPLETE = 2000, 24, 100
LONGEST = 0.060
ENV = {"RILL_MAX_STREAMS": "40"}

BEGUN = (wire.head(), wire.send(wire.opening(), wire.text("one ")))
MORE = wire.send(wire.text("more "))
SCRIPTS: dict[str, tuple[Step, ...]] = {
    "flow": (*BEGUN, *[step for _ in range(100) for step in (wire.pause(0.003), MORE)], wire.close()),
    "silence": (*BEGUN, wire.silence()),
    "late": (wire.pause(0.030), *BEGUN, wire.silence()),
    "never": (wire.silence(),),
    "short": tuple(wire.answer("all")),
    "rejected": (wire.error(400, "invalid_request_error", "no"),),
    "overloaded": (wire.error(529, "overloaded_error", "Overloaded"),),
    "reset": (*BEGUN, wire.pause(0.020), wire.reset()),
}


def play_named_script(answer: Answer) -> None:
    """Play the script that the prompt names."""
    for step in SCRIPTS.get(answer.request.json["messages"][0]["content"], SCRIPTS["short"]):
        step(answer)


def disconnect_at_random(rill: Rill, seed: int) -> None:
    """Send a request, perhaps read, and disconnect at a random moment in a random way."""
    chance = random.Random(seed)
    asked = Conversation(rill.port, request_bytes("GET", f"/stream?q={chance.choice(list(SCRIPTS))}"))
    time.sleep(chance.uniform(0, LONGEST))
    if chance.random() < 0.3:
        asked.socket.setblocking(False)
        with contextlib.suppress(OSError):
            asked.socket.recv(65536)
    if chance.random() < 0.1:
        with contextlib.suppress(OSError):  # it may have been reset by now
            asked.half_close()
    asked.close() if chance.random() < 0.5 else asked.reset()


@pytest.mark.timeout(120)
def test_thousands_of_random_disconnects_leak_nothing(service: Rill, upstream: Upstream) -> None:
    with assert_no_leaks(service, upstream, streams=40):
        upstream.always(play_named_script)
        with ThreadPoolExecutor(AT_ONCE) as clients:
            for done in [clients.submit(disconnect_at_random, service, seed) for seed in range(DISCONNECTS)]:
                done.result()
        wait_until(lambda: all(each.outcome for each in upstream.answers), lambda: "upstream answers are open", 20)
        wait_until(lambda: requests.get(f"{service.url}/readyz", timeout=20).status_code == 200, "overload")
        for _ in range(COMPLETE):
            with ask(service, q="short", headers={"Connection": "close"}) as asked:
                assert (asked.status, asked.read_rest(), asked.ended) == (200, b"all", "clean")
    outcomes = {line["outcome"] for line in log_lines(service.output())}
    assert {"client_disconnected", "completed"} <= outcomes
    assert "internal_error" not in outcomes
