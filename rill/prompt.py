"""What is asked of the model: the one thing that every dialect makes of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, in the words of the Messages API: https://docs.anthropic.com/en/api/messages

    `max_tokens` counts tokens of the answer; `options` holds the API's further fields (system, temperature ...), and
    `headers` and `query` what else goes with the request, as it is. `streamed` and `include_usage` are how the caller
    wants to be answered: in pieces or at once, with a count of tokens at the end, in the upstream's own bytes.
    `default_model`: the client named no model.
    """

    model: str
    max_tokens: int
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = True
    include_usage: bool = False
    verbatim: bool = False
    default_model: bool = False
