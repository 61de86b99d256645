"""The search for a target that answers a request: which one is asked next, and what the client is told if none does."""

import logging
import time
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import gevent

from rill.problems import Problem
from rill.prompt import Prompt
from rill.upstream.answer import Answer
from rill.upstream.circuit import Circuit
from rill.upstream.client import Upstream
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

# An attempt that the start timeout ended counts as a failure if it had at least this part of it.
SLOW_SHARE = 0.5
# The cancellation's clock begins a moment before the one of the search.
CLOCK_SECONDS = 0.5

log = logging.getLogger(__name__)


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


class Search:
    """The attempts of one request: each target in turn, and the last one repeatedly.

    `send` sends the request to a target and raises Failed; `count_error` gets the problems that no client is told.
    """

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
        if following := next(filter(self._is_usable, self._targets), None):
            message = "upstream attempt %d failed (%s), next at the %s upstream"
            log.warning(message, self._attempts, failure.problem.name, following.upstream.name)
            return None
        pause = None if self._is_last_resort else pause_before_retry(failure, attempt, is_streamed)
        return None if pause is None or time.monotonic() + pause >= self._deadline else pause
