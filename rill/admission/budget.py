"""Token budgets: tokens are reserved before a request is sent, and charged once its answer has ended."""

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import gevent

from rill.admission.client import Client
from rill.admission.local_usage import LocalUsage
from rill.admission.rate_limit import RateLimit
from rill.admission.token_estimate import estimate_input, least_output
from rill.problems import Problem
from rill.prompt import Prompt
from rill.quota import Quota

if TYPE_CHECKING:
    from rill.admission.redis import SharedCounts

# A reservation outlives its answer by this time at most, if the worker was killed.
SPARE_SECONDS = 60
# When a client may retry whose other answers have reserved what is left.
RESERVED_SECONDS = 5


class Decision(NamedTuple):
    """What was decided about a request: the seconds left of each rate, and about its budgets.

    `granted` tokens are reserved, 0 if less than the least were left. `reserved` are those of other requests, `used`
    those used of each budget.
    """

    waits: Sequence[float]
    granted: int = 0
    reserved: int = 0
    used: Sequence[int] = ()


class Reservation(NamedTuple):
    """The tokens reserved for one answer: `input_tokens` are estimated, `tokens` are those of the whole answer."""

    client: str
    id: str
    budgets: tuple[Quota, ...]
    input_tokens: int
    tokens: int


class Usage(NamedTuple):
    """What a client has used of a budget, what its open answers have reserved, and the seconds until a new window."""

    budget: Quota
    used: int
    reserved: int
    seconds: int

    @property
    def remaining(self) -> int:
        """The tokens that a new request may use."""
        return max(0, self.budget.amount - self.used - self.reserved)


class TokenBudget:
    """The tokens that each client may use: `budgets`, or those of its API key, and the restrictions of its JWT.

    Windows are fixed: a day begins at midnight UTC. With `shared`, Redis counts for all workers and machines; while it
    is lost, this worker, one of `workers`, counts for itself. `seconds` is how long an answer may take.
    """

    def __init__(
        self, budgets: tuple[Quota, ...], seconds: float, workers: int = 1, shared: "SharedCounts | None" = None
    ) -> None:
        self._budgets = budgets
        self._lifetime = math.ceil(seconds) + SPARE_SECONDS
        self._shared = shared
        self._local = LocalUsage(workers if shared else 1)
        self._reserved: Counter[str] = Counter()
        self._ids = itertools.count()
        self._name = os.urandom(6).hex()
        # What was charged while Redis was lost.
        self._owed: Counter[tuple[str, tuple[Quota, ...]]] = Counter()
        if shared:
            shared.on_return = partial(gevent.spawn, self._pay)

    def budgets_of(self, client: Client) -> tuple[Quota, ...]:
        """Return the budgets that apply to a client, the smallest one of each period."""
        smallest: dict[int, Quota] = {}
        for quota in (*(client.budget or self._budgets), *client.restriction):
            smallest[quota.seconds] = min(quota, smallest.get(quota.seconds, quota))
        return tuple(smallest.values())

    def reserve(self, client: Client, prompt: Prompt, rate: RateLimit) -> tuple[Prompt, Reservation]:
        """Reserve the tokens of a request; return it within what is left, and its reservation; raise Problem.

        With Redis, the request is counted for `rate` at once.
        """
        budgets = self.budgets_of(client)
        input_tokens = estimate_input(prompt)
        least, most = input_tokens + least_output(prompt), input_tokens + prompt.max_tokens
        _check_size(least, budgets)
        id, now = f"{self._name}{next(self._ids)}", time.time()
        decision = self._shared and self._shared.reserve(client.name, id, self._lifetime, least, most, budgets)
        if decision:
            rate.check(client.name, decision.waits)
            self._local.note_total(client.name, budgets, decision.used, now)
        else:
            if self._shared:
                rate.count_here(client.name)
            decision = self._decide(client.name, least, most, budgets, now)
        if not decision.granted:
            raise _exhausted(least, budgets, decision, now)
        self._reserved[client.name] += decision.granted
        reservation = Reservation(client.name, id, budgets, input_tokens, decision.granted)
        max_tokens = min(prompt.max_tokens, decision.granted - input_tokens)
        return replace(prompt, max_tokens=max_tokens), reservation

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Charge the tokens, and release the reservation."""
        name, budgets, now = reservation.client, reservation.budgets, time.time()
        self._reserved[name] -= reservation.tokens
        if self._reserved[name] <= 0:
            del self._reserved[name]
        used = self._shared.settle(name, reservation.id, tokens, budgets) if self._shared else None
        if used is not None:
            self._local.note_total(name, budgets, used, now)
            return
        self._local.add(name, budgets, tokens, now)
        if self._shared:
            self._owed[name, budgets] += tokens

    def usage(self, client: Client) -> list[Usage]:
        """Return what the client has used of each of its budgets."""
        budgets, now = self.budgets_of(client), time.time()
        found = self._shared.usage(client.name, budgets) if self._shared and budgets else None
        if found is None:
            used = [self._local.used(client.name, quota, now) for quota in budgets]
            found = self._reserved[client.name], used
        return [
            Usage(quota, used, found[0], _seconds_left(quota, now))
            for quota, used in zip(budgets, found[1], strict=True)
        ]

    def _decide(self, name: str, least: int, most: int, budgets: Sequence[Quota], now: float) -> Decision:
        used = [self._local.used(name, quota, now) for quota in budgets]
        reserved = self._reserved[name]
        left = min(quota.amount - tokens for quota, tokens in zip(budgets, used, strict=True)) - reserved
        return Decision([], min(most, left) if left >= least else 0, reserved, used)

    def _pay(self) -> None:
        """Charge in Redis what was charged here while it was lost."""
        owed, self._owed = self._owed, Counter()
        for (name, budgets), tokens in owed.items():
            if self._shared and self._shared.settle(name, "", tokens, budgets) is None:
                self._owed[name, budgets] += tokens


def _check_size(least: int, budgets: Sequence[Quota]) -> None:
    for quota in budgets:
        if least > quota.amount:
            raise Problem("content_too_large", f"This request needs about {least} tokens; the budget is {quota}.")


def _exhausted(least: int, budgets: Sequence[Quota], decision: Decision, now: float) -> Problem:
    exceeded = [quota for quota, used in zip(budgets, decision.used, strict=True) if used + least > quota.amount]
    if not exceeded:
        message = "The tokens that are left of the budget are reserved for other answers of this client."
        return Problem("budget_exhausted", message, RESERVED_SECONDS)
    quota = max(exceeded, key=lambda quota: _seconds_left(quota, now))
    message = f"The token budget of {quota} for one client is used up."
    return Problem("budget_exhausted", message, _seconds_left(quota, now))


def _seconds_left(quota: Quota, now: float) -> int:
    return math.ceil(quota.seconds - now % quota.seconds)
