"""What is asked of the model: the one thing that every dialect makes of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, in the words of the Messages API: https://docs.anthropic.com/en/api/messages

    `max_tokens` counts tokens of the answer; `options` holds the API's further fields (system, temperature ...),
    which travel to the upstream as they are.
    """

    model: str
    max_tokens: int
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
