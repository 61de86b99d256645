"""What can go wrong: one table, problem -> status, type and words for the caller."""

from collections.abc import Sequence
from typing import NamedTuple


class Kind(NamedTuple):
    """What every problem of one name has in common; `type` is the Messages API's name for such an error."""

    status: int
    type: str
    words: str


KINDS = {
    "bad_request": Kind(400, "invalid_request_error", "The request cannot be understood."),
    "unauthorized": Kind(
        401,
        "authentication_error",
        "A token is needed: send it as 'Authorization: Bearer TOKEN', as 'x-api-key', or as the password of Basic.",
    ),
    "forbidden": Kind(403, "permission_error", "This is not allowed here."),
    "prefetch": Kind(
        403, "permission_error", "An answer costs money, so it is never fetched ahead of being asked for."
    ),
    "not_found": Kind(404, "not_found_error", "There is nothing here. Ask GET /stream?q=... or POST /stream."),
    "wrong_method": Kind(405, "invalid_request_error", "This method is not allowed here."),
    "too_slow": Kind(408, "timeout_error", "The body of the request took too long to arrive."),
    "too_large": Kind(413, "request_too_large", "The request is too long."),
    "wrong_type": Kind(
        415,
        "invalid_request_error",
        "Send the prompt as text/plain, as application/x-www-form-urlencoded with a field q, or as application/json.",
    ),
    "refused": Kind(422, "refusal", "The model refused to answer."),
    "rate_limited": Kind(429, "rate_limit_error", "Too many requests."),
    "upstream_rate_limited": Kind(429, "rate_limit_error", "The model's rate limit is reached. Try again later."),
    "client_gone": Kind(499, "api_error", "The caller left before the answer."),
    "internal": Kind(500, "api_error", "Internal error."),
    "upstream_refused": Kind(502, "api_error", "The model's API does not accept this service's key or address."),
    "upstream_failed": Kind(502, "api_error", "The model's API failed. Try again."),
    "upstream_unreachable": Kind(502, "api_error", "The model's API cannot be reached. Try again later."),
    "upstream_truncated": Kind(502, "api_error", "The model's API broke off before the answer was whole."),
    "full": Kind(503, "overloaded_error", "All places for answers are taken. Try again in a moment."),
    "draining": Kind(503, "overloaded_error", "This server is shutting down. Try again: another one answers."),
    "upstream_overloaded": Kind(503, "overloaded_error", "The model is overloaded. Try again in a moment."),
    "upstream_timeout": Kind(504, "timeout_error", "The model did not begin to answer in time. Try again."),
    "upstream_silent": Kind(504, "timeout_error", "The model fell silent in mid-answer."),
    "too_long": Kind(504, "timeout_error", "The answer took longer than this service allows."),
}

# The `type` of an upstream's error -> our problem; it may come before the stream or, as an `error` event, within it.
# https://docs.anthropic.com/en/api/errors
UPSTREAM_TYPES = {
    "invalid_request_error": "bad_request",
    "authentication_error": "upstream_refused",
    "permission_error": "upstream_refused",
    "billing_error": "upstream_refused",
    "not_found_error": "upstream_refused",
    "request_too_large": "too_large",
    "rate_limit_error": "upstream_rate_limited",
    "overloaded_error": "upstream_overloaded",
    "timeout_error": "upstream_timeout",
}

# The upstream's status -> our problem, where its body tells no type that we know.
UPSTREAM_STATUSES = {
    400: "bad_request",
    401: "upstream_refused",
    403: "upstream_refused",
    404: "upstream_refused",
    413: "too_large",
    422: "bad_request",
    429: "upstream_rate_limited",
    503: "upstream_overloaded",
    504: "upstream_timeout",
    529: "upstream_overloaded",
}

# Where the caller can mend it, the upstream's own words are the best help; elsewhere they speak of our key or its
# internals, and stay in the log.
THEIR_WORDS_HELP = {"bad_request", "too_large"}


class Problem(Exception):
    """Something that the caller is told; `retry_after` is in seconds, where waiting helps.

    `detail` replaces the table's words with closer ones. It never holds a secret or a prompt.
    """

    # Whether the caller of a verbatim answer has it already, as the upstream's own `error` event.
    in_stream = False

    def __init__(self, name: str, detail: str | None = None, retry_after: int | None = None) -> None:
        kind = KINDS[name]
        # An upstream's words may hold half a surrogate pair, which no encoding knows.
        detail = detail and detail.encode("utf-8", "replace").decode()
        super().__init__(detail or kind.words)
        self.name = name
        self.status = kind.status
        self.type = kind.type
        self.detail = detail or kind.words
        self.retry_after = retry_after
        self.headers: dict[str, str] = {}
        # The upstream's own, for callers who speak its dialect.
        self.upstream_headers: dict[str, str] = {}

    def conceal(self, secrets: Sequence[str]) -> "Problem":
        """Takes the secrets out of the words: a relay may repeat what it was sent."""
        for secret in secrets:
            self.detail = self.detail.replace(secret, "[key]")
        self.args = (self.detail,)
        return self

    def as_json(self) -> dict[str, object]:
        """The problem as RFC 9457 writes it."""
        return {"type": "about:blank", "title": self.name, "status": self.status, "detail": self.detail}


def upstream_problem(
    type: str | None, message: str | None, status: int | None = None, retry_after: int | None = None
) -> Problem:
    """The problem behind an upstream's error, from its type, else its status; `retry_after` in seconds."""
    name = UPSTREAM_TYPES.get(type or "") or UPSTREAM_STATUSES.get(status or 0, "upstream_failed")
    problem = Problem(name, message if name in THEIR_WORDS_HELP else None, retry_after)
    if problem.status in (429, 503) and retry_after is None:
        problem.retry_after = 1
    return problem
