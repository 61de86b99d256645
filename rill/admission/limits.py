"""The limits of a client over time: its rate of requests, and its token budget."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rill.admission.budget import Reservation, TokenBudget, Usage
from rill.admission.client import Client
from rill.admission.rate_limit import RateLimit
from rill.prompt import Prompt, ReplyFormat
from rill.quota import parse_quotas
from rill.settings import Settings


class Admitted(NamedTuple):
    """A request within the limits, what is reserved for it, and headers of its response."""

    prompt: Prompt
    reply: ReplyFormat
    reservation: Reservation | None
    headers: Mapping[str, str]


class Limits:
    """The rate limit and the token budgets of all clients."""

    def __init__(self, settings: Settings) -> None:
        self._models = settings.enabled_models()
        self._shared = None
        if settings.redis_url:
            # 3 MB of a worker's memory, which a worker without REDIS_URL does not need.
            from rill.admission.redis import SharedCounts

            self._shared = SharedCounts(settings.redis_url, parse_quotas(settings.rate_limit))
        self._rate = RateLimit(settings.rate_limit, self._shared)
        budgets = parse_quotas(settings.token_budget) if settings.token_budget else ()
        self._budget = TokenBudget(budgets, settings.total_timeout_seconds, settings.workers, self._shared)

    def count(self, client: Client) -> None:
        """Count one request; raise Problem, and count nothing, if a quota is used up."""
        self._rate.count(client.name)

    def admit(self, client: Client, read: Callable[[], tuple[Prompt, ReplyFormat]]) -> Admitted:
        """Count a request, and return what `read` returns, within what the client may use; raise Problem.

        An invalid request counts too. With Redis, a request and its tokens are counted at once, so that `read` comes
        first.
        """
        has_budget = bool(self._budget.budgets_of(client))
        counts_later = has_budget and self._shared is not None
        if counts_later:
            self._rate.check_recent(client.name)
        else:
            self._rate.count(client.name)
        try:
            asked, reply = read()
            prompt = client.restrict(asked, self._models)
        except BaseException:
            if counts_later:
                self._rate.count(client.name)
            raise
        reservation = None
        if has_budget and not prompt.is_count:  # To count tokens is not billed.
            prompt, reservation = self._budget.reserve(client, prompt, self._rate)
        elif counts_later:
            self._rate.count(client.name)
        is_shorter = prompt.max_tokens < asked.max_tokens
        headers = {"X-Max-Tokens": str(prompt.max_tokens)} if is_shorter else {}
        return Admitted(prompt, reply, reservation, headers)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Charge the tokens of an answer that has ended."""
        self._budget.settle(reservation, tokens)

    def usage(self, client: Client) -> list[Usage]:
        """Return what the client has used of each of its budgets."""
        return self._budget.usage(client)
