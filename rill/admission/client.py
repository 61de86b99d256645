"""Who sent a request, and what its credential allows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rill.credentials import JWT_CLIENT
from rill.problems import Problem
from rill.prompt import Prompt
from rill.quota import Quota


class Client(NamedTuple):
    """A client: its `name`, and what its credential restricts.

    `models` may be asked for, None for all that are enabled. `max_tokens` limits each answer. `budget` replaces that of
    the settings, and `restriction` applies as well.
    """

    name: str
    models: Sequence[str] | None = None
    max_tokens: int | None = None
    budget: tuple[Quota, ...] = ()
    restriction: tuple[Quota, ...] = ()

    def may_ask(self, model: str) -> bool:
        """Return whether the credential allows a model."""
        return self.models is None or model in self.models

    def check_operator(self) -> None:
        """Raise Problem for a client with a JWT, who is a user of the operator's rather than the operator."""
        if self.name.startswith(f"{JWT_CLIENT}:"):
            raise Problem("forbidden", "A JWT does not give access to the metrics. Send an API key.")

    def restrict(self, prompt: Prompt, enabled: Sequence[str]) -> Prompt:
        """Return the prompt within the restrictions; raise Problem for a model that is not among them.

        `enabled` are the models of the settings, `*` for any. A request that names no model gets the first one that
        both allow.
        """
        if self.max_tokens is not None and prompt.max_tokens > self.max_tokens:
            prompt = replace(prompt, max_tokens=self.max_tokens)
        if self.models is not None or self.max_tokens is not None:
            self._check_nested(prompt.options)
        if self.models is not None:
            prompt = replace(prompt, allowed_models=self.models)
        if self.may_ask(prompt.model):
            return prompt
        allowed = [model for model in self.models or () if model in enabled or "*" in enabled]
        if not prompt.default_model or not allowed:
            raise Problem("forbidden", f"model: this JWT does not allow it. Allowed: {', '.join(allowed) or 'none'}.")
        return replace(prompt, model=allowed[0])

    def _check_nested(self, value: Any) -> None:
        """Raise Problem for a field, such as a fallback, that names another model or a longer answer."""
        if isinstance(value, Mapping):
            model, max_tokens = value.get("model"), value.get("max_tokens")
            longest = math.inf if self.max_tokens is None else self.max_tokens
            is_longer = isinstance(max_tokens, int) and max_tokens > longest
            if is_longer or (isinstance(model, str) and not self.may_ask(model)):
                raise Problem("forbidden", "model, max_tokens: this JWT does not allow a nested one.")
        if isinstance(value, Mapping | list):
            for part in value.values() if isinstance(value, Mapping) else value:
                self._check_nested(part)
