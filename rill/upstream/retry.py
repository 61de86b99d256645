"""The retry policy: which failed attempts are repeated, after which pause, and what the client's SDK is told."""

import math
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import NamedTuple

import httpx2

from rill.problems import Problem
from rill.upstream.transport import Unanswered

ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.5
# A longer Retry-After is passed on to the client.
LONGEST_PAUSE_SECONDS = 2.0
# A connection that closes without a byte this soon after the request was written did not process it.
UNPROCESSED_SECONDS = 0.5
# SDKs wait for a Retry-After of up to this long; they should not retry after a longer one.
LONGEST_WAIT_SECONDS = 60
# https://www.rfc-editor.org/rfc/rfc9110#status.504, and a common gateway's own status:
# https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/error-524/
GATEWAY_TIMEOUTS = (504, 524)

# The problems of an `error` event for which the model was certainly not asked, if it is the first event.
UNPROCESSED_EVENTS = (
    *("upstream_overloaded", "upstream_rate_limited", "upstream_rejected", "upstream_account_blocked"),
    "model_not_found",
)


class Failure(NamedTuple):
    """An attempt that failed before its answer began.

    `status` and `headers` are those of the upstream's response, if it rejected the request; `error` is the transport's,
    if there was no response. With neither, the answer's first event was an error.
    """

    problem: Problem
    status: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    error: BaseException | None = None


class Failed(Exception):
    """Raised for an attempt that failed; its cause is the exception behind the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.problem.name)
        self.failure = failure


def pause_before_retry(failure: Failure, attempt: int, is_streamed: bool) -> float | None:
    """Return the seconds to wait before the next attempt; None if there must be none."""
    if attempt == ATTEMPTS or not _may_retry(failure, is_streamed):
        return None
    if is_stale(failure):
        return 0.0
    advised = retry_after(failure.headers)
    if advised is None:
        return FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.75, 1.0)
    return float(advised) if advised <= LONGEST_PAUSE_SECONDS else None


def is_stale(failure: Failure) -> bool:
    """Return whether the upstream closed a kept connection, maybe before the request was sent."""
    return isinstance(failure.error, Unanswered) and failure.error.kept


def fault_of(failure: Failure) -> str:
    """Return what failed: the `request`, the `model`, or the whole `upstream`."""
    name = failure.problem.name
    if name in ("bad_request", "content_too_large"):
        return "request"
    is_models = failure.status == 404 or name in ("upstream_overloaded", "upstream_rate_limited", "model_not_found")
    return "model" if is_models else "upstream"


def is_unprocessed(failure: Failure, is_streamed: bool) -> bool:
    """Return whether the request was certainly not billed, so that another model or upstream may answer it."""
    error = failure.error
    if failure.status is not None:
        return failure.status not in GATEWAY_TIMEOUTS
    if isinstance(error, Unanswered):
        return error.seconds <= UNPROCESSED_SECONDS and is_streamed
    if error is not None:
        # A request that was not written completely cannot be processed.
        return isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)) or (
            isinstance(error, (httpx2.WriteError, httpx2.WriteTimeout)) and is_streamed
        )
    return failure.problem.name in UNPROCESSED_EVENTS


def advice(failure: Failure, attempt: int) -> str:
    """Return the `x-should-retry` for the client after the last attempt: "true", "false", or "" if its SDK decides."""
    own = failure.headers.get("x-should-retry")
    if own == "false" or attempt > 1:
        return "false"
    if own == "true":
        return "true"
    problem = failure.problem
    can_wait = problem.status in (429, 503) and (problem.retry_after or 0) <= LONGEST_WAIT_SECONDS
    return "" if can_wait else "false"


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of Retry-After, a number or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    value = headers.get("retry-after", "")
    with suppress(ValueError, OverflowError):
        return max(0, math.ceil(float(value)))
    with suppress(ValueError, OverflowError):
        return max(0, math.ceil(parsedate_to_datetime(value).timestamp() - time.time()))
    return None


def _may_retry(failure: Failure, is_streamed: bool) -> bool:
    """Return whether the same request may succeed a moment later, and was certainly not billed."""
    if failure.status is not None:
        own = failure.headers.get("x-should-retry")
        # Behind a gateway that timed out, the model may still be at work.
        is_transient = failure.status in (408, 409, 429) or (
            failure.status >= 500 and failure.status not in GATEWAY_TIMEOUTS
        )
        return own == "true" or (own != "false" and is_transient)
    is_slow = isinstance(failure.error, httpx2.TimeoutException)
    is_transient = failure.error is not None or failure.problem.name in ("upstream_overloaded", "upstream_rate_limited")
    return is_transient and not is_slow and is_unprocessed(failure, is_streamed)
