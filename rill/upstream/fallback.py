"""Fallbacks: other models, and a second upstream, for a request that has failed before its first event.

`connect` returns what answers requests: the plain Upstream, or a Fallback with the same `ask` if any is configured.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol
from urllib.parse import quote

from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings
from rill.upstream.answer import Answer
from rill.upstream.circuit import Circuit
from rill.upstream.client import CONNECT_SECONDS, Upstream, ignore
from rill.upstream.search import Search, Target

# The part of the start timeout that the connection to the primary upstream may take, if there is a second one.
CONNECT_SHARE = 0.2

log = logging.getLogger(__name__)


class Metrics(Protocol):
    """What a Fallback reports to the metrics."""

    def count_upstream_error(self, problem: Problem) -> None:
        """Count a failed attempt that the client is not told about."""

    def count_attempt(self, upstream: str) -> None:
        """Count a request to an upstream."""

    def count_circuit(self, upstream: str, scope: str, is_open: bool) -> None:
        """Count a circuit that opened or closed."""


def connect(settings: Settings, base_url: str, streams: int, metrics: Metrics) -> "Upstream | Fallback":
    """Return the upstream of the settings, with its fallbacks if there are any; raise BadSettings."""
    if not settings.has_fallbacks():
        return Upstream(settings, base_url, streams, metrics.count_upstream_error)
    if not settings.fallback_base_url:
        return Fallback(settings, [Upstream(settings, base_url, streams, metrics.count_upstream_error)], metrics)
    seconds = min(CONNECT_SECONDS, settings.start_timeout_seconds * CONNECT_SHARE)
    open_upstream = partial(Upstream, settings, streams=streams, count_error=metrics.count_upstream_error)
    primary = open_upstream(base_url, connect_seconds=seconds)
    second = open_upstream(settings.fallback_base_url, name="fallback", api_key=settings.fallback_api_key)
    return Fallback(settings, [primary, second], metrics)


def answer_headers(upstream: str | None, model: str) -> Mapping[str, str]:
    """Return the response headers that name who answered."""
    # A client may choose any text as the model.
    return {"X-Rill-Upstream": upstream or "", "X-Rill-Model": quote(model, safe="!#$&'()*+,/:;=?@[]")}


class Fallback:
    """One or two upstreams with fallback models; `ask` is that of an Upstream."""

    def __init__(self, settings: Settings, upstreams: Sequence[Upstream], metrics: Metrics) -> None:
        self._upstreams = upstreams
        self._models = settings.fallback_models
        self._metrics = metrics
        # A single upstream is never skipped, nor is a model that is not in the settings.
        self._always_closed = Circuit(ignore, math.inf)
        failures = [] if len(upstreams) > 1 else [math.inf]
        self._circuits = {each.name: Circuit(self._reporter(each.name, None), *failures) for each in upstreams}
        known = {*settings.known_models(), *settings.fallback_models} - {"*"}
        self._model_circuits = {
            (each.name, model): Circuit(self._reporter(each.name, model)) for each in upstreams for model in known
        }

    def ask(
        self,
        prompt: Prompt,
        seconds: float,
        verbatim: bool = False,
        on_open: Callable[[Answer], None] = ignore,
        on_attempt: Callable[[str, str], None] = ignore,
    ) -> Answer:
        """Send the prompt and return once a model has started to answer; raise the Problem of the first failure.

        No further attempt begins after `seconds`, nor once an upstream may have processed the request.
        """

        def count_attempt(upstream: str, model: str) -> None:
            self._metrics.count_attempt(upstream)
            on_attempt(upstream, model)

        targets = self._targets_of(prompt) if prompt.allows_fallback else []
        if len(targets) < 2:
            return self._upstreams[0].ask(prompt, seconds, verbatim, on_open, count_attempt)

        def send(target: Target) -> Answer:
            count_attempt(target.upstream.name, target.model)
            sent = prompt if target.model == prompt.model else replace(prompt, model=target.model)
            return target.upstream.attempt(sent, verbatim, on_open)

        return Search(prompt, seconds, targets, send, self._metrics.count_upstream_error).run()

    def _targets_of(self, prompt: Prompt) -> list[Target]:
        allowed = self._models if prompt.allowed_models is None else prompt.allowed_models
        models = dict.fromkeys((prompt.model, *(model for model in self._models if model in allowed)))
        return [
            Target(
                upstream,
                each,
                self._circuits[upstream.name],
                self._model_circuits.get((upstream.name, each), self._always_closed),
            )
            for upstream in self._upstreams
            for each in models
        ]

    def _reporter(self, upstream: str, model: str | None) -> Callable[[bool], None]:
        def report(is_open: bool) -> None:
            self._metrics.count_circuit(upstream, "upstream" if model is None else "model", is_open)
            extra = {"upstream": upstream, **({} if model is None else {"model": model})}
            log.warning("a circuit opened" if is_open else "a circuit closed", extra=extra)

        return report
