"""Prompt in, events out, through the official SDK's `client.messages.stream`; the only importer of anthropic.

The SDK builds and sends the request and names its errors. The answer is read from the response's bytes: the SDK's own
events rebuild the whole message at every token, which costs seven times as much, and more the longer the answer is.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import Any

import anthropic
import gevent
import httpx2
from opentelemetry import trace

from rill.events import Bytes, End, Event, Heartbeat, Start, Text
from rill.problems import UPSTREAM_TYPES, Problem, upstream_problem
from rill.prompt import Prompt
from rill.settings import Settings
from rill.upstream.sse_decoder import Decoder
from rill.upstream.transport import GeventTransport, Unanswered, UpstreamClient, body_of, proxy_of_environment

CONNECT_SECONDS = WRITE_SECONDS = POOL_SECONDS = 10.0
# Heartbeat is the Cancellation's to end, as every deadline is; the transport's own bound only stands behind it.
SPARE_SECONDS = 5.0
ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.5
# A longer Retry-After is the client's to keep: a request that sleeps here helps nobody.
LONGEST_PAUSE_SECONDS = 2.0
# A connection that closes this soon after the request was written, without a byte, did not process it.
UNPROCESSED_SECONDS = 0.5
# SDKs wait for a Retry-After of up to this long; they should not try again for a longer one.
LONGEST_WAIT_SECONDS = 60
# A message is over at message_stop; the body's end mostly comes with it, and frees the connection for the next one.
TERMINATOR_SECONDS = 0.05
# https://www.rfc-editor.org/rfc/rfc9110#status.504 and, of a well-known gateway,
# https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/error-524/
GATEWAY_TIMEOUTS = (504, 524)
# No compression: an event that waits for a compressor's block to fill arrives late.
HEADERS = {"Accept-Encoding": "identity"}

log = logging.getLogger(__name__)


def _ignore(anything: object) -> None:
    pass


class Upstream:
    """The Messages API at `base_url`, for `streams` answers at once; one for each worker, made after the fork."""

    def __init__(
        self, settings: Settings, base_url: str, streams: int, count_error: Callable[[Problem], None] = _ignore
    ) -> None:
        """Set up the client; `count_error` gets the problem of each attempt that is made again."""
        self._count_error = count_error
        self._secrets = [secret for secret in (settings.anthropic_api_key, settings.anthropic_auth_token) if secret]
        self._client = anthropic.Anthropic(
            api_key="offline" if settings.offline else settings.anthropic_api_key,
            auth_token=None if settings.offline or settings.anthropic_api_key else settings.anthropic_auth_token,
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(
                connect=CONNECT_SECONDS,
                write=WRITE_SECONDS,
                pool=POOL_SECONDS,
                read=settings.idle_timeout_seconds + SPARE_SECONDS,
            ),
            # The offline model is in this very process, where no proxy reaches it.
            http_client=_build_http_client(base_url, streams, proxied=not settings.offline),
            open_telemetry=None if _is_traced() else False,
        )

    def ask(
        self, prompt: Prompt, seconds: float, verbatim: bool = False, on_open: Callable[["Answer"], None] = _ignore
    ) -> "Answer":
        """Send the prompt and return once the upstream has started to answer; raise Problem.

        A request that the upstream certainly did not process, or failed in a way that may pass, is sent again as long
        as that fits in `seconds`. `verbatim` adds the bytes of each read to its events. `on_open` gets each answer as
        soon as its headers are in.
        """
        deadline = time.monotonic() + seconds
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._begin(prompt, verbatim, on_open)
            except (anthropic.APIError, Problem) as error:
                problem = error if isinstance(error, Problem) else self._problem_of(error, prompt)
                pause = _pause_before_retry(error, prompt, attempt)
                if pause is None or time.monotonic() + pause >= deadline:
                    cause = error.__cause__ if problem is error else error
                    raise problem.replace(should_retry=_advice(error, problem, attempt)) from cause
            self._count_error(problem)
            log.warning("upstream attempt %d failed (%s), next in %.1f s", attempt, problem.name, pause)
            gevent.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _begin(self, prompt: Prompt, verbatim: bool, on_open: Callable[["Answer"], None]) -> "Answer":
        answer = Answer(self._open(prompt), prompt.is_streamed, verbatim, self._secrets)
        try:
            on_open(answer)
            answer.begin()
        except BaseException as error:
            answer.close()
            if isinstance(error, Problem):
                raise error.replace(upstream_headers=answer.headers) from error
            raise
        return answer

    def _open(self, prompt: Prompt) -> anthropic.MessageStream[None]:
        try:
            return self._client.messages.stream(
                model=prompt.model,
                max_tokens=prompt.max_tokens,
                messages=prompt.messages,  # type: ignore[arg-type]
                extra_body=dict(prompt.options),
                extra_headers={**prompt.headers, **HEADERS},
                extra_query=dict(prompt.query),
            ).__enter__()
        except anthropic.APIConnectionError as error:
            # The SDK takes every exception for the connection's; one that was thrown in to interrupt is not.
            if error.__cause__ is not None and not isinstance(error.__cause__, httpx2.HTTPError):
                raise error.__cause__ from None
            raise
        except httpx2.RequestError as error:
            # An error whose body broke off, or is not compressed as it says: the SDK reads it unguarded.
            raise Problem("upstream_error") from error
        except ValueError as error:
            # What JSON can read it cannot always write: 1e999 is read as an infinity.
            raise Problem("bad_request", f"The request cannot be passed on as JSON: {error}.") from None

    def _problem_of(self, error: anthropic.APIError, prompt: Prompt) -> Problem:
        if isinstance(error, anthropic.APITimeoutError):
            late = isinstance(error.__cause__, httpx2.ReadTimeout)
            return Problem("start_timeout" if late else "upstream_unreachable")
        if isinstance(error, anthropic.APIStatusError):
            body = error.body if isinstance(error.body, dict) else {}
            detail = body.get("error")
            detail = detail if isinstance(detail, dict) else {}
            kind = str(detail.get("type"))
            log.warning(
                "the upstream says %d %s", error.status_code, kind if kind in UPSTREAM_TYPES else "of no known type"
            )
            message = detail.get("message")
            message = message if isinstance(message, str) else ""
            model = None if prompt.default_model else prompt.model
            found = (kind, message or None, error.status_code, _retry_after(error), model, self._secrets)
            return upstream_problem(*found).replace(upstream_headers=_headers_of(error.response, self._secrets))
        return Problem("upstream_unreachable" if isinstance(error.__cause__, httpx2.ConnectError) else "upstream_error")


class Answer:
    """One open answer: iterate it once for the events of each read; `close` frees its connection at any moment."""

    # Thousands are open at once, and a dict for each would weigh.
    __slots__ = (
        "_beginning",
        "_body",
        "_break",
        "_decoder",
        "_end_span",
        "_reads",
        "_streamed",
        "_verbatim",
        "headers",
        "nudge",
        "request_id",
    )

    def __init__(
        self, stream: anthropic.MessageStream[None], is_streamed: bool, verbatim: bool, secrets: Sequence[str]
    ) -> None:
        self.headers = _headers_of(stream.response, secrets)
        self.request_id = self.headers.get("request-id")
        self._verbatim = verbatim
        self._streamed = is_streamed
        self._beginning: list[Event] = []
        self._reads = self._read_stream() if self._streamed else self._read_whole()
        self._decoder = Decoder(secrets)
        # The SDK's span of the call ends when the SDK has read the body, which it never does here.
        observer = getattr(stream.response.stream, "stream_observer", None)
        self._end_span: Callable[..., None] = observer.end if observer else _end_no_span
        self._break: httpx2.TransportError | None = None
        self._body = body_of(stream.response)
        self.nudge = self._body.nudge

    @property
    def usage(self) -> dict[str, Any]:
        """What the upstream has counted so far, in tokens."""
        return self._decoder.usage

    def __iter__(self) -> Iterator[list[Event]]:
        """Yields what each read brings, Heartbeat where it was nudged, at last an End; raises Problem if none comes."""
        beginning, self._beginning = self._beginning, []
        return chain([beginning], self._reads) if beginning else self._reads

    def begin(self) -> None:
        """Read a streamed answer until its first event that is not a ping; raise Problem where it is an error."""
        while self._streamed and not any(isinstance(event, Start | Text | End) for event in self._beginning):
            events = next(self._reads)
            self._beginning += events
            if isinstance(events[-1], Heartbeat) and events[-1].working:
                break

    def close(self) -> None:
        self._body.close()
        if problem := self._break or self._decoder.problem:
            self._end_span("failed", problem)
        else:
            self._end_span("read" if self._decoder.ended else "closed")

    def _read_stream(self) -> Iterator[list[Event]]:
        reader = self._decoder
        broken: Problem | None = None
        while not reader.ended:
            try:
                data = self._read()
            except Problem as problem:
                data, broken = None, problem
            if data == b"":
                yield [Heartbeat(working=False)]
                continue
            events = reader.finish() if data is None else reader.feed(data)
            if reader.unfit and data:
                data = data[: max(0, data.rfind(b"event: error"))]  # The dialect tells it in words of ours.
            if self._verbatim and data:
                events.insert(0, Bytes(data))
            if events:
                yield events
            if reader.problem:
                raise broken if broken and not reader.has_error else reader.problem
        self._await_terminator()

    def _read_whole(self) -> Iterator[list[Event]]:
        chunks: list[bytes] = []
        try:
            while (data := self._read()) is not None:
                chunks.append(data)
                yield [Heartbeat(working=bool(data))]
            end = self._decoder.read_message(b"".join(chunks))
        except Exception:
            # Whatever ended the wait for the last bytes: a message that is complete was paid for.
            complete = self._complete_end(b"".join(chunks))
            if complete is None:
                raise
            end = complete
        yield [Bytes(b"".join(chunks)), end]

    def _complete_end(self, body: bytes) -> End | None:
        reader = Decoder()
        with suppress(Problem):
            end = reader.read_message(body)
            self._decoder.usage.update(reader.usage)
            self._break, self._decoder.ended = None, True
            return end
        return None

    def _read(self) -> bytes | None:
        try:
            return self._body.read()
        except httpx2.TransportError as error:
            self._break = error
            raise _problem_of_break(error) from error

    def _await_terminator(self) -> None:
        # The message is complete: whatever ends this wait, an cancellation too, takes nothing from it.
        with suppress(Exception), gevent.Timeout(TERMINATOR_SECONDS, TimeoutError):
            while self._body.read() is not None:
                pass


def _end_no_span(how: str, error: Exception | None = None) -> None:
    pass


def _problem_of_break(error: httpx2.TransportError) -> Problem:
    if isinstance(error, httpx2.TimeoutException):
        return Problem("idle_timeout")
    return Problem("upstream_truncated" if isinstance(error, httpx2.RemoteProtocolError) else "upstream_error")


def _is_traced() -> bool:
    """Whether the process has a tracer: without one, the SDK's spans would cost each request and go nowhere."""
    try:
        return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    except Exception:  # OTEL_PYTHON_TRACER_PROVIDER names one that is not installed; what is raised then is anybody's.
        return False


def _build_http_client(base_url: str, connections: int, proxied: bool) -> httpx2.Client:
    url = httpx2.URL(base_url)
    proxy = proxy_of_environment(url) if proxied else None
    if proxy is None or proxy.scheme == "http":
        return UpstreamClient(GeventTransport(url, connections, proxy))
    log.warning("the proxy of the environment is not an http one: using the SDK's own transport, which is slower")
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=100)
    return anthropic.DefaultHttpxClient(limits=limits, follow_redirects=False)


def _pause_before_retry(error: anthropic.APIError | Problem, prompt: Prompt, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt; None where there is to be none."""
    if attempt == ATTEMPTS or not _may_pass(error, prompt):
        return None
    if isinstance(error.__cause__, Unanswered) and error.__cause__.kept:
        return 0.0  # Only the kept connection was at fault.
    advised = _retry_after(error) if isinstance(error, anthropic.APIStatusError) else None
    if advised is None:
        return FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.75, 1.0)
    return float(advised) if advised <= LONGEST_PAUSE_SECONDS else None


def _may_pass(error: anthropic.APIError | Problem, prompt: Prompt) -> bool:
    """Return whether the same request may succeed a moment later, and is certainly not paid for yet."""
    if isinstance(error, Problem):
        return error.name in ("upstream_overloaded", "upstream_rate_limited")
    if isinstance(error, anthropic.APIStatusError):
        advice = error.response.headers.get("x-should-retry")
        status = error.status_code
        # Behind a gateway that ran out of time, the model may be at work.
        may_pass = status in (408, 409, 429) or (status >= 500 and status not in GATEWAY_TIMEOUTS)
        return advice == "true" or (advice != "false" and may_pass)
    cause = error.__cause__
    if isinstance(cause, Unanswered):
        return cause.seconds <= UNPROCESSED_SECONDS and prompt.is_streamed
    # A request that was not written whole cannot be processed.
    return isinstance(cause, httpx2.ConnectError) or (isinstance(cause, httpx2.WriteError) and prompt.is_streamed)


def _advice(error: anthropic.APIError | Problem, problem: Problem, attempt: int) -> str:
    """Return what an SDK is told about a retry after this attempt, the last one here; "" lets it decide."""
    own = error.response.headers.get("x-should-retry") if isinstance(error, anthropic.APIStatusError) else None
    if own == "false" or attempt > 1:
        return "false"
    if own == "true":
        return "true"
    waits = problem.status in (429, 503) and (problem.retry_after or 0) <= LONGEST_WAIT_SECONDS
    return "" if waits else "false"


def _headers_of(response: httpx2.Response, secrets: Sequence[str]) -> dict[str, str]:
    """What of the upstream's headers is of use to a client who speaks its dialect, but none that repeats a secret."""
    return {
        name: value
        for name, value in response.headers.items()
        if (name in ("request-id", "retry-after") or name.startswith("anthropic-ratelimit-"))
        and value.isascii()
        and not any(secret in value for secret in secrets)
    }


def _retry_after(error: anthropic.APIStatusError) -> int | None:
    """Seconds, of a number or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    value = error.response.headers.get("retry-after", "")
    with suppress(ValueError, OverflowError):
        return max(0, math.ceil(float(value)))
    with suppress(ValueError, OverflowError):
        return max(0, math.ceil(parsedate_to_datetime(value).timestamp() - time.time()))
    return None
