"""Fallbacks: other models, and a second upstream, for a request that has failed before its first event.

`connect` returns what answers requests: the plain Upstream, or a Fallback with the same `ask` if any is configured.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import NamedTuple, Protocol
from urllib.parse import quote

import gevent

from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings
from rill.upstream.answer import Answer
from rill.upstream.circuit import Circuit
from rill.upstream.client import CONNECT_SECONDS, Upstream, ignore
from rill.upstream.retry import (
    ATTEMPTS,
    Failed,
    Failure,
    advice,
    fault_of,
    is_stale,
    is_unprocessed,
    pause_before_retry,
)

# The part of the start timeout that the connection to the primary upstream may take, if there is a second one.
CONNECT_SHARE = 0.2
# An attempt that the start timeout ended counts as a failure if it had at least this part of it.
SLOW_SHARE = 0.5
# The cancellation's clock begins a moment before the one of `ask`.
CLOCK_SECONDS = 0.1

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


class Target(NamedTuple):
    """A model at an upstream, with the circuits of both."""

    upstream: Upstream
    model: str
    upstream_circuit: Circuit
    model_circuit: Circuit

    @property
    def is_passable(self) -> bool:
        return self.upstream_circuit.is_passable and self.model_circuit.is_passable

    @property
    def is_quick(self) -> bool:
        return self.upstream_circuit.is_quick and self.model_circuit.is_quick

    @property
    def problem(self) -> Problem | None:
        """The failure for which the target is skipped."""
        blocking = self.model_circuit if self.upstream_circuit.is_passable else self.upstream_circuit
        return blocking.problem

    def begin(self) -> None:
        self.upstream_circuit.begin()
        self.model_circuit.begin()

    def release(self) -> None:
        self.upstream_circuit.release()
        self.model_circuit.release()

    def succeed(self) -> None:
        self.upstream_circuit.succeed()
        self.model_circuit.succeed()

    def fail(self, fault: str, problem: Problem, seconds: float) -> None:
        """Note a failure of the `upstream`, the `model`, or the `request`, after so many seconds."""
        if fault == "upstream":
            self.upstream_circuit.fail(problem, seconds)
            self.model_circuit.release()
        else:
            self.upstream_circuit.succeed()  # It responded.
            if fault == "model":
                self.model_circuit.fail(problem, seconds)
            else:
                self.model_circuit.release()


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

        targets = self._targets_of(prompt.model) if prompt.allows_fallback else []
        if len(targets) < 2:
            return self._upstreams[0].ask(prompt, seconds, verbatim, on_open, count_attempt)

        def send(target: Target) -> Answer:
            count_attempt(target.upstream.name, target.model)
            sent = prompt if target.model == prompt.model else replace(prompt, model=target.model)
            return target.upstream.attempt(sent, verbatim, on_open)

        return _Search(prompt, seconds, targets, send, self._metrics.count_upstream_error).run()

    def _targets_of(self, model: str) -> list[Target]:
        models = dict.fromkeys((model, *self._models))
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


class _Search:
    """The attempts of one request: each target in turn, the last one repeatedly."""

    def __init__(
        self,
        prompt: Prompt,
        seconds: float,
        targets: list[Target],
        send: Callable[[Target], Answer],
        count_error: Callable[[Problem], None],
    ) -> None:
        self._prompt = prompt
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._targets = targets
        self._send = send
        self._count_error = count_error
        self._attempts = 0
        self._first: Failure | None = None  # what the client is told if no target answers
        self._skipped: Problem | None = None  # the same, if there was no attempt
        # If every circuit is open, those that fail at once are tried, because one of them may work again.
        self._is_last_resort = not any(target.is_passable for target in targets)

    def run(self) -> Answer:
        """Return the first answer; raise Problem."""
        while self._targets:
            target = self._targets.pop(0)
            if not self._is_usable(target):
                self._skipped = self._skipped or target.problem
                continue
            for attempt in count(1):
                try:
                    return self._try(target)
                except Failed as failed:
                    pause = self._pause_after(failed, target, attempt)
                if pause is None:
                    break
                gevent.sleep(pause)
        if self._first is None:
            assert self._skipped
            raise self._skipped.replace(should_retry="false")
        raise self._first.problem.replace(should_retry=advice(self._first, self._attempts))

    def _is_usable(self, target: Target) -> bool:
        return target.is_quick if self._is_last_resort else target.is_passable

    def _try(self, target: Target) -> Answer:
        self._attempts += 1
        target.begin()
        begun = time.monotonic()
        try:
            answer = self._send(target)
        except Failed as failed:
            failure = failed.failure
            if is_stale(failure):
                target.release()
            else:
                target.fail(fault_of(failure), failure.problem, time.monotonic() - begun)
            raise
        except BaseException:  # Cancelled, by the client or by the start timeout.
            self._note_cancellation(target, time.monotonic() - begun)
            raise
        target.succeed()
        self._count_first()
        return answer

    def _note_cancellation(self, target: Target, seconds: float) -> None:
        is_late = self._prompt.is_streamed and time.monotonic() >= self._deadline - CLOCK_SECONDS
        if is_late and seconds >= self._seconds * SLOW_SHARE:
            target.fail("upstream", Problem("start_timeout"), seconds)
        target.release()
        self._count_first()

    def _count_first(self) -> None:
        if self._first:
            self._count_error(self._first.problem)

    def _pause_after(self, failed: Failed, target: Target, attempt: int) -> float | None:
        """Return the seconds until the target is asked again, None if it is not; drop targets that must not follow."""
        failure, is_streamed = failed.failure, self._prompt.is_streamed
        if is_stale(failure) and is_unprocessed(failure, is_streamed) and attempt < ATTEMPTS:
            self._count_error(failure.problem)
            return 0.0
        fault = fault_of(failure)
        is_unsuitable = fault == "request" and target.model != self._prompt.model
        if self._first or is_unsuitable:
            self._count_error(failure.problem)
        else:
            self._first = failure
        may_follow = is_unsuitable or (fault != "request" and is_unprocessed(failure, is_streamed))
        if not may_follow or time.monotonic() >= self._deadline:
            self._targets = []
        elif fault == "upstream":
            self._targets = [each for each in self._targets if each.upstream is not target.upstream]
        if any(map(self._is_usable, self._targets)):
            upstream, name = self._targets[0].upstream.name, failure.problem.name
            log.warning("upstream attempt %d failed (%s), next: %s upstream", self._attempts, name, upstream)
            return None
        pause = None if self._is_last_resort else pause_before_retry(failure, attempt, is_streamed)
        return None if pause is None or time.monotonic() + pause >= self._deadline else pause
