"""What a request asks of the model, and how its client wants the answer: what every dialect makes of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request of the Messages API: https://docs.anthropic.com/en/api/messages

    `max_tokens` limits the tokens of the answer. `options` holds the API's other fields (system, temperature ...);
    `headers` and `query` go with the request unchanged. `default_model`: the client named no model.
    `allows_fallback`: another model or upstream may answer; of the fallback models only `allowed_models`, None for all.
    `resume_seconds`: how long the answer outlives its connection. `is_count`: only the tokens of the
    request are counted, for which `max_tokens` is not sent. `chat`: the id by which a chat finds the answer again.
    """

    model: str
    max_tokens: int
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    default_model: bool = False
    allows_fallback: bool = True
    allowed_models: Sequence[str] | None = None
    resume_seconds: int = 0
    is_count: bool = False
    chat: str = ""

    @property
    def is_streamed(self) -> bool:
        """Whether the upstream sends the answer as events."""
        return not self.is_count and bool(self.options.get("stream", True))


class ReplyFormat(NamedTuple):
    """How the client wants the answer: in pieces or whole, and with the count of tokens in an event of its own.

    `id_prefix` begins the ids of server-sent events. `namespaces`: the namespace and the client's own name of a tool,
    by its name in the prompt. `message_id`: the client's message that the answer continues.
    """

    streamed: bool = True
    include_usage: bool = False
    id_prefix: str = ""
    namespaces: Mapping[str, tuple[str, str]] = MappingProxyType({})
    message_id: str = ""
