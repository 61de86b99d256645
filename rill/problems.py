"""Everything that can go wrong: one table of problem -> status, error type and message."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What all problems of one name share.

    `type` is the Messages API's name for such an error. `advice` follows the message if no time to wait is known.
    """

    status: int
    type: str
    message: str
    advice: str = ""


KINDS = {
    "bad_request": Kind(400, "invalid_request_error", "The request is not valid."),
    "unauthorized": Kind(
        401,
        "authentication_error",
        "An API key is needed: send it as 'Authorization: Bearer KEY', as 'x-api-key', or as the password of Basic.",
    ),
    "forbidden": Kind(403, "permission_error", "This is not allowed here."),
    "host_not_allowed": Kind(
        403,
        "permission_error",
        "This Host is not served here. Use localhost or 127.0.0.1; the operator can allow others with "
        "RILL_ALLOWED_HOSTS.",
    ),
    "prefetch": Kind(403, "permission_error", "A prefetch is not answered, because an answer costs money."),
    "not_found": Kind(404, "not_found_error", "No such path. Use GET /stream?q=... or POST /stream."),
    "model_not_found": Kind(404, "not_found_error", "This model does not exist."),
    "method_not_allowed": Kind(405, "invalid_request_error", "This method is not allowed here."),
    "request_timeout": Kind(408, "timeout_error", "The request body took too long to arrive."),
    "not_resumable": Kind(
        412, "invalid_request_error", "An answer cannot be resumed from a byte. Send the request again without Range."
    ),
    "content_too_large": Kind(413, "request_too_large", "The request is too long."),
    "unsupported_media_type": Kind(
        415,
        "invalid_request_error",
        "Send the prompt as text/plain (curl -H 'Content-Type: text/plain' --data-binary ...), as application/json, or "
        "as application/x-www-form-urlencoded with a field q.",
    ),
    "refused": Kind(422, "refusal", "The model refused to answer."),
    "rate_limited": Kind(429, "rate_limit_error", "Too many requests.", "Try again later."),
    "budget_exhausted": Kind(429, "rate_limit_error", "The token budget is used up.", "Try again later."),
    "idempotency_key_reused": Kind(
        422, "invalid_request_error", "This Idempotency-Key was sent with a different request. Use a new one."
    ),
    "upstream_rate_limited": Kind(429, "rate_limit_error", "The model's rate limit is reached.", "Try again later."),
    "client_disconnected": Kind(499, "api_error", "The client disconnected before the end of the answer."),
    "client_stopped": Kind(499, "api_error", "The client stopped the answer."),
    "client_too_slow": Kind(499, "api_error", "The client did not read the answer."),
    "internal_error": Kind(500, "api_error", "Internal error."),
    "upstream_rejected": Kind(502, "api_error", "The model's API does not accept this service's key or address."),
    "upstream_account_blocked": Kind(502, "api_error", "The model's API does not serve this service's account now."),
    "upstream_error": Kind(502, "api_error", "The model's API failed.", "Try again."),
    "upstream_unreachable": Kind(502, "api_error", "The model's API cannot be reached.", "Try again later."),
    "upstream_truncated": Kind(502, "api_error", "The model's API closed before the answer was complete."),
    "keys_unavailable": Kind(
        503, "api_error", "The keys that verify JWTs cannot be fetched now.", "Try again in a moment."
    ),
    "at_capacity": Kind(503, "overloaded_error", "This server is at capacity.", "Try again in a moment."),
    "overloaded": Kind(503, "overloaded_error", "This server is overloaded.", "Try again in a few seconds."),
    "shutdown": Kind(503, "overloaded_error", "This server is shutting down.", "Try again in a moment."),
    "upstream_overloaded": Kind(503, "overloaded_error", "The model is overloaded.", "Try again in a moment."),
    "upstream_timeout": Kind(504, "timeout_error", "The model's API reports a timeout.", "Try again."),
    "start_timeout": Kind(504, "timeout_error", "The model did not start to answer in time.", "Try again."),
    "idle_timeout": Kind(504, "timeout_error", "The model was idle for too long.", "Try again."),
    "total_timeout": Kind(504, "timeout_error", "The answer took longer than this service allows."),
}

# Problems for which an SDK may retry: the same request may succeed later, and nothing was billed.
RETRYABLE = {"request_timeout", "rate_limited", "keys_unavailable", "at_capacity", "overloaded", "shutdown"}

# The status and the `type` of an upstream's error, before the stream or as an `error` event within it -> the problem.
# https://docs.anthropic.com/en/api/errors
UPSTREAM_ERRORS = [
    (400, "invalid_request_error", "bad_request"),
    (401, "authentication_error", "upstream_rejected"),
    (402, "billing_error", "upstream_account_blocked"),
    (403, "permission_error", "upstream_rejected"),
    (404, "not_found_error", "upstream_rejected"),
    (413, "request_too_large", "content_too_large"),
    (429, "rate_limit_error", "upstream_rate_limited"),
    (504, "timeout_error", "upstream_timeout"),
    (529, "overloaded_error", "upstream_overloaded"),
]
UPSTREAM_TYPES = {type: name for _, type, name in UPSTREAM_ERRORS}
# If the body of the error has no known type; a relay may send further ones.
UPSTREAM_STATUSES = {status: name for status, _, name in UPSTREAM_ERRORS} | {
    422: "bad_request",
    503: "upstream_overloaded",
}

# Problems that the client can fix: the upstream's own message is passed on. Other messages are about the operator's key
# or the upstream's internals.
FORWARDED_MESSAGES = {"bad_request", "content_too_large"}

# The API reports a blocked account as a 400 `invalid_request_error` with one of these phrases. Messages about the
# client's own errors begin with the path of a field.
ACCOUNT_BLOCKED = re.compile(
    r"(?![\w.\[\]]+: ).*?\b(?:credit balance|usage limits?|spend(?:ing)? limits?"
    r"|(?:organization|workspace|account)\b.{0,60}\b(?:disabled|suspended|deactivated|archived|limits?))\b",
    re.IGNORECASE | re.DOTALL,
)


# Problems by which Rill itself ends an answer early.
CANCELLATION_REASONS = (
    "start_timeout",
    "idle_timeout",
    "total_timeout",
    "shutdown",
    "client_disconnected",
    "client_stopped",
    "client_too_slow",
)


@dataclass(eq=False)
class Problem(Exception):
    """A failure that is reported to the client; it does not change once it is made.

    `message` replaces the table's with a closer one; it holds no secret and no prompt. `retry_after` is in seconds.
    `headers` go with the response. `from_upstream`: the upstream caused it. `upstream_headers` are the upstream's own,
    for clients of its dialect. `should_retry` is what an SDK is told about a retry: "true", "false", or "" to let it
    decide. `is_forwarded`: a verbatim answer holds it already, as the upstream's own `error` event.
    """

    name: str
    message: str | None = None
    retry_after: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    from_upstream: bool | None = None
    upstream_headers: Mapping[str, str] = field(default_factory=dict)
    should_retry: str | None = None
    is_forwarded: bool = False

    def __post_init__(self) -> None:
        self.status, self.type, message, advice = KINDS[self.name]
        if self.message:
            # An upstream's message may hold a lone surrogate, which cannot be encoded.
            message, advice = self.message.encode("utf-8", "replace").decode(), ""
        if self.retry_after:
            advice = f"Try again in {self.retry_after} s."
        self.detail = f"{message} {advice}".rstrip()
        super().__init__(self.detail)
        if self.from_upstream is None:
            self.from_upstream = self.name.startswith("upstream_") or self.name in ("start_timeout", "idle_timeout")
        if self.should_retry is None:
            self.should_retry = "" if self.name in RETRYABLE else "false"

    def replace(self, **changes: Any) -> "Problem":
        """Return a copy with these fields changed."""
        return replace(self, **changes)

    def as_json(self) -> dict[str, object]:
        """Return the problem as RFC 9457 defines it; `code` is its name, for programs."""
        # Of all these statuses, only 499 is in no specification.
        title = "Client Closed Request" if self.status == 499 else HTTPStatus(self.status).phrase
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, "code": self.name}


def upstream_problem(
    type: str | None,
    message: str | None,
    status: int | None = None,
    retry_after: int | None = None,
    model: str | None = None,
    secrets: Sequence[str] = (),
) -> Problem:
    """Return the problem for an upstream's error, by its type, else by its status.

    `retry_after` is in seconds; `model` is the one that the client chose, None if it chose none. `secrets` are removed
    from the message, because a relay may repeat what it was sent.
    """
    name = UPSTREAM_TYPES.get(type or "") or UPSTREAM_STATUSES.get(status or 0, "upstream_error")
    detail = message if name in FORWARDED_MESSAGES else None
    for secret in secrets:
        detail = detail and detail.replace(secret, "[key]")
    if name == "bad_request" and ACCOUNT_BLOCKED.match(message or ""):
        name, detail = "upstream_account_blocked", None
    elif type == "not_found_error" and model and "model" in (message or "").lower():
        # For a wrong address, the API's message is "Not Found" alone.
        name, detail = "model_not_found", f"The model {model} does not exist, or this service cannot use it."
    if retry_after is None and KINDS[name].status in (429, 503):
        retry_after = 1
    return Problem(name, detail, retry_after, from_upstream=True)
