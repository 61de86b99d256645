"""What one answer costs its client, in tokens."""

from collections.abc import Mapping
from typing import Any, Protocol

from rill.admission.budget import Reservation
from rill.admission.token_estimate import CACHE_COUNTS, count_of, estimate_output

# The client ended the answer, for which the upstream may have worked.
ENDED_BY_CLIENT = ("client_disconnected", "client_too_slow", "client_stopped")


class Counted(Protocol):
    """An answer of the upstream.

    `usage` is what the upstream has counted so far, `has_final_usage` once it has counted the output; `received_bytes`
    are those of its content.
    """

    @property
    def usage(self) -> Mapping[str, Any]: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def has_final_usage(self) -> bool: ...


class Bill:
    """The tokens of one answer, from its reservation on; `answer` is set once the upstream has responded."""

    __slots__ = ("_is_streamed", "answer", "reservation")

    def __init__(self, reservation: Reservation, is_streamed: bool) -> None:
        self.reservation = reservation
        self._is_streamed = is_streamed
        self.answer: Counted | None = None

    def tokens(self, outcome: str) -> int:
        """Return the tokens to charge: those that the upstream has counted, else an estimate that is rather high."""
        answer, reserved = self.answer, self.reservation
        read = count_of(answer.usage, "input_tokens", *CACHE_COUNTS) if answer else 0
        if answer is None or not (read or answer.received_bytes):
            if outcome not in ENDED_BY_CLIENT:
                return 0
            # The upstream may have written all of an answer that it sends as a whole.
            return reserved.input_tokens if self._is_streamed else reserved.tokens
        written = count_of(answer.usage, "output_tokens")
        if not (answer.has_final_usage and written):
            written = max(written, estimate_output(answer.received_bytes))
        return (read or reserved.input_tokens) + written
