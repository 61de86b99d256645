"""Prompt in, answer out, through the official SDK's `client.messages.stream`.

The SDK builds and sends the request and raises its errors. The answer is read from the bytes of the response: the SDK's
own events rebuild the whole message at every token, which costs seven times as much, and more the longer the answer is.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import anthropic
import gevent
import httpx2
from opentelemetry import trace

from rill.problems import UPSTREAM_TYPES, Problem, upstream_problem
from rill.prompt import Prompt
from rill.settings import Settings
from rill.upstream.answer import Answer, visible_headers
from rill.upstream.direct import DirectClient
from rill.upstream.proxy import proxy_of_environment
from rill.upstream.retry import ATTEMPTS, Failed, Failure, advice, pause_before_retry, retry_after
from rill.upstream.transport import GeventTransport, UpstreamClient

# For each of: a free connection, the connection itself, the write of the request.
CONNECT_SECONDS = 10.0
# The Cancellation ends a silent answer, as at every deadline; the transport's timeout is only a safety net behind it.
SPARE_SECONDS = 5.0
# No compression: an event that waits for a compressor's block to fill arrives late.
HEADERS = {"Accept-Encoding": "identity"}

log = logging.getLogger(__name__)


def ignore(*anything: object) -> None:
    """Do nothing."""


class Upstream:
    """The Messages API at `base_url`, for `streams` answers at once; one in each worker, made after the fork."""

    def __init__(
        self,
        settings: Settings,
        base_url: str,
        streams: int,
        count_error: Callable[[Problem], None] = ignore,
        name: str = "primary",
        api_key: str | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """Set up the client; `count_error` gets the problem of each attempt that is repeated. Raise BadSettings.

        `api_key` replaces the credentials of the settings. A connection and a write take at most `connect_seconds`.
        """
        self.name = name
        self._count_error = count_error
        own, token = (api_key, None) if api_key else (settings.anthropic_api_key, settings.anthropic_auth_token)
        self._secrets = [secret for secret in (own, token) if secret]
        # The offline model runs in this process, where no proxy reaches it.
        proxy = None if settings.offline else proxy_of_environment(base_url)
        transport = GeventTransport(httpx2.URL(base_url), streams, proxy)
        read_seconds = settings.idle_timeout_seconds + SPARE_SECONDS
        timeout = httpx2.Timeout(connect_seconds, read=read_seconds)
        options: dict[str, Any] = {
            "api_key": "offline" if settings.offline else own,
            "auth_token": None if settings.offline or own else token,
            "base_url": base_url,
            "http_client": UpstreamClient(transport),
        }
        self._client = (
            anthropic.Anthropic(timeout=timeout, max_retries=0, **options)
            if _is_traced()
            else DirectClient(transport, timeout, **options)
        )

    def ask(
        self,
        prompt: Prompt,
        seconds: float,
        verbatim: bool = False,
        on_open: Callable[[Answer], None] = ignore,
        on_attempt: Callable[[str, str], None] = ignore,
    ) -> Answer:
        """Send the prompt and return once the upstream has started to answer; raise Problem.

        An attempt that the upstream certainly did not process, or whose failure is transient, is repeated as long as
        that fits in `seconds`. `verbatim` adds the bytes of each read to its events. `on_attempt` gets the names of the
        upstream and the model before each attempt, `on_open` each answer as soon as its headers are in.
        """
        deadline = time.monotonic() + seconds
        for attempt in range(1, ATTEMPTS + 1):
            on_attempt(self.name, prompt.model)
            try:
                return self.attempt(prompt, verbatim, on_open)
            except Failed as failed:
                failure, cause = failed.failure, failed.__cause__
            pause = pause_before_retry(failure, attempt, prompt.is_streamed)
            if pause is None or time.monotonic() + pause >= deadline:
                raise failure.problem.replace(should_retry=advice(failure, attempt)) from cause
            self._count_error(failure.problem)
            log.warning("upstream attempt %d failed (%s), next in %.1f s", attempt, failure.problem.name, pause)
            gevent.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def attempt(self, prompt: Prompt, verbatim: bool, on_open: Callable[[Answer], None]) -> Answer:
        """Send the prompt once and return once the upstream has started to answer; raise Failed."""
        try:
            return self._begin(prompt, verbatim, on_open)
        except Problem as problem:
            raise Failed(Failure(problem)) from problem.__cause__
        except anthropic.APIError as error:
            raise Failed(self._failure_of(error, prompt)) from error

    def _begin(self, prompt: Prompt, verbatim: bool, on_open: Callable[[Answer], None]) -> Answer:
        answer = Answer(self._open(prompt), prompt.is_streamed, verbatim, self._secrets, prompt.is_count)
        try:
            on_open(answer)
            answer.begin()
        except BaseException as error:
            answer.close()
            if isinstance(error, Problem):
                raise error.replace(upstream_headers=answer.headers) from error
            raise
        return answer

    def _open(self, prompt: Prompt) -> httpx2.Response:
        try:
            return self._send_count(prompt) if prompt.is_count else self._send(prompt)
        except anthropic.APIConnectionError as error:
            # The SDK takes any exception for an error of the connection, a Cancelled too.
            if error.__cause__ is not None and not isinstance(error.__cause__, httpx2.HTTPError):
                raise error.__cause__ from None
            raise
        except httpx2.RequestError as error:
            # The SDK reads the body of an error unguarded: it was truncated, or is not compressed as declared.
            raise Problem("upstream_error") from error
        except ValueError as error:
            # Python reads JSON that it cannot write: 1e999 is read as an infinity.
            raise Problem("bad_request", f"The request cannot be passed on as JSON: {error}.") from None

    def _send(self, prompt: Prompt) -> httpx2.Response:
        stream = self._client.messages.stream(
            model=prompt.model,
            max_tokens=prompt.max_tokens,
            messages=prompt.messages,  # type: ignore[arg-type]
            extra_body=dict(prompt.options),
            extra_headers={**prompt.headers, **HEADERS},
            extra_query=dict(prompt.query),
        )
        return stream.__enter__().response

    def _send_count(self, prompt: Prompt) -> httpx2.Response:
        # `messages.count_tokens` reads the body, which has to be cancellable, and knows no further fields.
        stream = self._client.post(
            "/v1/messages/count_tokens",
            cast_to=object,
            body={"model": prompt.model, "messages": prompt.messages, **prompt.options},
            options={"headers": {**prompt.headers, **HEADERS}, "params": dict(prompt.query)},
            stream=True,
            stream_cls=anthropic.Stream[object],
        )
        return stream.response

    def _failure_of(self, error: anthropic.APIError, prompt: Prompt) -> Failure:
        if isinstance(error, anthropic.APIStatusError):
            return Failure(self._problem_of(error, prompt), error.status_code, error.response.headers)
        cause = error.__cause__
        if isinstance(error, anthropic.APITimeoutError):
            name = "start_timeout" if isinstance(cause, httpx2.ReadTimeout) else "upstream_unreachable"
        else:
            name = "upstream_unreachable" if isinstance(cause, httpx2.ConnectError) else "upstream_error"
        return Failure(Problem(name), error=cause or error)

    def _problem_of(self, error: anthropic.APIStatusError, prompt: Prompt) -> Problem:
        """Return the problem that a rejection by the upstream is."""
        body = error.body if isinstance(error.body, dict) else {}
        detail = body.get("error")
        detail = detail if isinstance(detail, dict) else {}
        kind, message = str(detail.get("type")), detail.get("message")
        log.warning("the upstream responded %d %s", error.status_code, kind if kind in UPSTREAM_TYPES else "(unknown)")
        return upstream_problem(
            kind,
            message if isinstance(message, str) and message else None,
            error.status_code,
            retry_after(error.response.headers),
            None if prompt.default_model else prompt.model,
            self._secrets,
        ).replace(upstream_headers=visible_headers(error.response, self._secrets))


def _is_traced() -> bool:
    """Return whether the process has a tracer: without one, the SDK's spans would cost each request for nothing."""
    try:
        return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    except Exception:  # OTEL_PYTHON_TRACER_PROVIDER names one that is not installed; it may raise anything.
        return False
