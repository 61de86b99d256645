"""With default settings, a shutdown takes at most 25 s, whatever the clients do."""

import signal
import time
from contextlib import ExitStack

import pytest
from asking import SSE, ask
from server import Rill
from test_shutdown import FLOW, SCRIPTS
from upstream import Answer, Upstream
from witness import log_lines, probed

MAX_SECONDS = 25.0
ASKED = {"flow": ({}, "HTTP/1.1"), "sse": (SSE, "HTTP/1.1"), "big": ({}, "HTTP/1.1"), "big-1.0": ({}, "HTTP/1.0")}


def play_named_script(answer: Answer) -> None:
    prompt = answer.request.json["messages"][0]["content"]
    for step in SCRIPTS["big"] if prompt.startswith("big") else FLOW:
        step(answer)


def open_all(rill: Rill, stack: ExitStack) -> None:
    for name, (headers, version) in ASKED.items():
        asked = stack.enter_context(ask(rill, headers=headers, name=name, q=name, version=version))
        assert asked.status == 200


@pytest.mark.waits
@pytest.mark.timeout(120)
def test_endless_answers_and_clients_that_never_read_delay_a_shutdown_by_at_most_25_seconds(
    upstream: Upstream,
) -> None:
    upstream.always(play_named_script)
    with probed(upstream.url) as rill, ExitStack() as stack:
        open_all(rill, stack)
        begun = time.monotonic()
        rill.signal(signal.SIGTERM)
        assert rill.wait() == 0
        assert 19 < time.monotonic() - begun < MAX_SECONDS
        outcomes = {line["request_id"]: line["outcome"] for line in log_lines(rill.output())}
        assert outcomes == dict.fromkeys(ASKED, "shutdown")
        assert "SIGKILL" not in rill.output()
        assert "Traceback" not in rill.output()
