"""The request and the answers of the client tests: a first text, and a gate that the test opens once it has arrived."""

from collections.abc import Callable
from typing import Any

import upstream as wire
from upstream import Step, Upstream

FIRST, SECOND = "A rill is", " a very small stream 🌊."
QUESTION = "What is a rill?"
MESSAGES = [{"role": "user", "content": QUESTION}]
ASKED: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 99, "messages": MESSAGES}
GATE_SECONDS = 10

# How an upstream truncates an answer: FIN or reset without the last chunk, or the last chunk without an end mark.
TRUNCATIONS: dict[str, Callable[[], Step]] = {"close": wire.close, "reset": wire.reset, "end": wire.end}


def gated_answer() -> list[Step]:
    """Return a complete answer whose second text waits at the gate `second`."""
    outcome = wire.block_stop() + wire.stop("end_turn", output_tokens=7)
    held = [wire.gate("second", GATE_SECONDS), wire.send(wire.text(SECOND)), wire.send(outcome), wire.end()]
    return [wire.head(), wire.send(wire.opening()), wire.send(wire.text(FIRST)), *held]


def truncated_answer(how: str = "close") -> list[Step]:
    """Return an answer that is truncated after its first text, at the gate `truncate`."""
    begun = [wire.head(), wire.send(wire.opening()), wire.send(wire.text(FIRST))]
    return [*begun, wire.gate("truncate", GATE_SECONDS), TRUNCATIONS[how]()]


def script_rate_limit(upstream: Upstream, seconds: int = 7) -> None:
    """Queue a 429 whose Retry-After is longer than the server itself would wait."""
    upstream.script(wire.error(429, "rate_limit_error", "Slow down", {"retry-after": str(seconds)}))
