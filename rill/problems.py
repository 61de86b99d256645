"""What can go wrong: one table, problem -> status, type and words for the caller."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple


class Kind(NamedTuple):
    """What every problem of one name has in common.

    `type` is the Messages API's name for such an error. `advice` follows the words where no time to wait is known.
    """

    status: int
    type: str
    words: str
    advice: str = ""


KINDS = {
    "bad_request": Kind(400, "invalid_request_error", "The request cannot be understood."),
    "unauthorized": Kind(
        401,
        "authentication_error",
        "An API key is needed: send it as 'Authorization: Bearer KEY', as 'x-api-key', or as the password of Basic.",
    ),
    "forbidden": Kind(403, "permission_error", "This is not allowed here."),
    "wrong_host": Kind(
        403,
        "permission_error",
        "This Host is not served here. Use localhost or 127.0.0.1; the operator can allow others with "
        "RILL_ALLOWED_HOSTS.",
    ),
    "prefetch": Kind(
        403, "permission_error", "An answer costs money, so it is never fetched ahead of being asked for."
    ),
    "not_found": Kind(404, "not_found_error", "There is nothing here. Ask GET /stream?q=... or POST /stream."),
    "model_not_found": Kind(404, "not_found_error", "This model does not exist."),
    "wrong_method": Kind(405, "invalid_request_error", "This method is not allowed here."),
    "too_slow": Kind(408, "timeout_error", "The body of the request took too long to arrive."),
    "not_resumable": Kind(
        412, "invalid_request_error", "An answer cannot be continued from the middle. Ask again without Range."
    ),
    "too_large": Kind(413, "request_too_large", "The request is too long."),
    "wrong_type": Kind(
        415,
        "invalid_request_error",
        "Send the prompt as text/plain (curl -H 'Content-Type: text/plain' --data-binary ...), as application/json, or "
        "as application/x-www-form-urlencoded with a field q.",
    ),
    "refused": Kind(422, "refusal", "The model refused to answer."),
    "rate_limited": Kind(429, "rate_limit_error", "Too many requests.", "Try again later."),
    "upstream_rate_limited": Kind(429, "rate_limit_error", "The model's rate limit is reached.", "Try again later."),
    "client_disconnected": Kind(499, "api_error", "The client disconnected before the end of the answer."),
    "client_too_slow": Kind(499, "api_error", "The client did not read the answer."),
    "internal_error": Kind(500, "api_error", "Internal error."),
    "upstream_refused": Kind(502, "api_error", "The model's API does not accept this service's key or address."),
    "upstream_account_blocked": Kind(502, "api_error", "The model's API does not serve this service's account now."),
    "upstream_failed": Kind(502, "api_error", "The model's API failed.", "Try again."),
    "upstream_unreachable": Kind(502, "api_error", "The model's API cannot be reached.", "Try again later."),
    "upstream_truncated": Kind(502, "api_error", "The model's API closed before the answer was complete."),
    "full": Kind(503, "overloaded_error", "All places for answers are taken.", "Try again in a moment."),
    "shutdown": Kind(
        503, "overloaded_error", "This server is shutting down, and another one answers.", "Try again in a moment."
    ),
    "upstream_overloaded": Kind(503, "overloaded_error", "The model is overloaded.", "Try again in a moment."),
    "upstream_timeout": Kind(504, "timeout_error", "The model's API reports a timeout.", "Try again."),
    "start_timeout": Kind(504, "timeout_error", "The model did not begin to answer in time.", "Try again."),
    "idle_timeout": Kind(504, "timeout_error", "The model sent nothing for too long.", "Try again."),
    "total_timeout": Kind(504, "timeout_error", "The answer took longer than this service allows."),
}

# Where the same request may succeed if it is sent again, and nothing was paid for it.
RETRY_HELPS = {"too_slow", "rate_limited", "full", "shutdown"}

# The `type` of an upstream's error -> our problem; it may come before the stream or, as an `error` event, within it.
# https://docs.anthropic.com/en/api/errors
UPSTREAM_TYPES = {
    "invalid_request_error": "bad_request",
    "authentication_error": "upstream_refused",
    "permission_error": "upstream_refused",
    "billing_error": "upstream_account_blocked",
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
    402: "upstream_account_blocked",
    403: "upstream_refused",
    404: "upstream_refused",
    413: "too_large",
    422: "bad_request",
    429: "upstream_rate_limited",
    503: "upstream_overloaded",
    504: "upstream_timeout",
    529: "upstream_overloaded",
}

# Where the client can fix the request, the upstream's own words are the best help; elsewhere they speak of our key or
# its internals, and stay in the log.
THEIR_WORDS_HELP = {"bad_request", "too_large"}

# The API reports that our own account cannot be used as a 400 `invalid_request_error`, in these words. The client's own
# errors begin with the path of a field.
ACCOUNT_BLOCKED = re.compile(
    r"(?![\w.\[\]]+: ).*?\b(?:credit balance|usage limits?|spend(?:ing)? limits?"
    r"|(?:organization|workspace|account)\b.{0,60}\b(?:disabled|suspended|deactivated|archived|limits?))\b",
    re.IGNORECASE | re.DOTALL,
)


# Of our statuses only 499 is in no specification.
TITLED = frozenset(HTTPStatus)


class Problem(Exception):
    """Something that the client is told; `retry_after` is in seconds, where waiting helps.

    `detail` replaces the table's words with closer ones. It never holds a secret or a prompt.
    """

    # Whether the client of a verbatim answer has it already, as the upstream's own `error` event.
    in_stream = False

    def __init__(self, name: str, detail: str | None = None, retry_after: int | None = None) -> None:
        kind = KINDS[name]
        advice = f"Try again in {retry_after} s." if retry_after else "" if detail else kind.advice
        # An upstream's words may hold half a surrogate pair, which no encoding knows.
        words = detail.encode("utf-8", "replace").decode() if detail else kind.words
        self.detail = f"{words} {advice}" if advice else words
        super().__init__(self.detail)
        self.name = name
        self.status = kind.status
        self.type = kind.type
        self.retry_after = retry_after
        self.headers: dict[str, str] = {}
        # Whether the upstream is where it went wrong, or what found it.
        self.from_upstream = name.startswith("upstream_") or name in ("start_timeout", "idle_timeout")
        # The upstream's own, for clients who speak its dialect.
        self.upstream_headers: dict[str, str] = {}
        # What an SDK is told of sending the request again: "true", "false", or None where it decides itself.
        self.should_retry: str | None = None if name in RETRY_HELPS else "false"

    def conceal(self, secrets: Sequence[str]) -> "Problem":
        """Takes the secrets out of the words: a relay may repeat what it was sent."""
        for secret in secrets:
            self.detail = self.detail.replace(secret, "[key]")
        self.args = (self.detail,)
        return self

    def as_json(self) -> dict[str, object]:
        """The problem as RFC 9457 writes it; `code` is its name, for programs."""
        title = HTTPStatus(self.status).phrase if self.status in TITLED else "Client Closed Request"
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, "code": self.name}


def upstream_problem(
    type: str | None,
    message: str | None,
    status: int | None = None,
    retry_after: int | None = None,
    model: str | None = None,
) -> Problem:
    """Return the problem behind an upstream's error, from its type, else its status.

    `retry_after` is in seconds; `model` is the one that the client chose, None where it chose none.
    """
    name = UPSTREAM_TYPES.get(type or "") or UPSTREAM_STATUSES.get(status or 0, "upstream_failed")
    detail = message if name in THEIR_WORDS_HELP else None
    if name == "bad_request" and ACCOUNT_BLOCKED.match(message or ""):
        name, detail = "upstream_account_blocked", None
    elif type == "not_found_error" and model and "model" in (message or "").lower():
        # Of a wrong address the API says "Not Found" alone.
        name, detail = "model_not_found", f"The model {model} does not exist, or this service cannot use it."
    if retry_after is None and KINDS[name].status in (429, 503):
        retry_after = 1
    problem = Problem(name, detail, retry_after)
    problem.from_upstream = True
    return problem
