"""What every client is asked with and answered: a first text, and more only once the test has seen that one arrive."""

from collections.abc import Callable
from typing import Any

import upstream as wire
from upstream import Step, Upstream

FIRST, SECOND = "A rill is", " a very small stream 🌊."
QUESTION = "What is a rill?"
MESSAGES = [{"role": "user", "content": QUESTION}]
ASKED: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 99, "messages": MESSAGES}
GATE_SECONDS = 10

# How an upstream may break off: without its end mark, by a reset, and cleanly but without a word of an end.
TRUNCATIONS: dict[str, Callable[[], Step]] = {"close": wire.close, "reset": wire.reset, "end": wire.end}


def gated_answer() -> list[Step]:
    """A whole answer, whose second text waits at the gate `second`."""
    outcome = wire.block_stop() + wire.stop("end_turn", output_tokens=7)
    held = [wire.gate("second", GATE_SECONDS), wire.send(wire.text(SECOND)), wire.send(outcome), wire.end()]
    return [wire.head(), wire.send(wire.opening()), wire.send(wire.text(FIRST)), *held]


def truncated_answer(how: str = "close") -> list[Step]:
    """An answer that breaks off at the gate `cut`, after its first text."""
    begun = [wire.head(), wire.send(wire.opening()), wire.send(wire.text(FIRST))]
    return [*begun, wire.gate("truncate", GATE_SECONDS), TRUNCATIONS[how]()]


def script_rate_limit(upstream: Upstream, seconds: int = 7) -> None:
    """The next answer is 429, to be tried again after more seconds than the server itself would wait."""
    upstream.script(wire.error(429, "rate_limit_error", "Slow down", {"retry-after": str(seconds)}))
