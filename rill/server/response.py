"""What every response carries, and how a problem becomes one."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import flask
from flask import Flask, g, request, send_from_directory
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from rill.admission.budget import Usage
from rill.admission.rate_limit import RATE_HEADERS
from rill.dialects import ANTHROPIC
from rill.problems import Problem
from rill.server.help import HELP
from rill.server.paths import advice_for, dialect_of
from rill.server.request import id_of
from rill.server.resume import Replay
from rill.settings import Settings

HEADERS = [
    ("Cache-Control", "no-store, no-transform"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]
# No response may be shown as a page or load anything; the page loads its own files and asks its own origin, by its form
# where scripts are disabled.
POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Headers that a page of another origin may read, beside those that every browser allows.
EXPOSED_HEADERS = ", ".join(
    (
        *(
            "Retry-After",
            "Content-Location",
            "Content-Range",
            "X-Should-Retry",
            "X-Max-Tokens",
            "X-Request-Id",
            "Request-Id",
            "X-Rill-Model",
            "X-Rill-Upstream",
        ),
        *RATE_HEADERS,
    )
)
JSON_TYPES = ("application/problem+json", "application/json")
# What werkzeug raises by itself -> the problem.
HTTP_PROBLEMS = {404: "not_found", 405: "method_not_allowed"}

log = logging.getLogger("rill")


class Response(flask.Response):
    """A response that is plain text by default, also where flask makes it."""

    default_mimetype = "text/plain"

    def get_wsgi_headers(self, environ: Any) -> Any:
        # A stream has no Location, and its length is known to whoever made it.
        return self.headers if self.direct_passthrough else super().get_wsgi_headers(environ)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Start the response. One that is streamed releases the request, which would be kept as long as it is open."""
        body = super().__call__(environ, start_response)
        if self.direct_passthrough:
            used_by_gunicorn = environ["wsgi.file_wrapper"]
            environ.clear()
            environ["wsgi.file_wrapper"] = used_by_gunicorn
        return body


def build_app(name: str, settings: Settings) -> Flask:
    """Return a Flask application without routes, whose responses carry what every response carries."""
    app = Flask(name, static_folder=None)
    app.ensure_sync = lambda func: func  # type: ignore[method-assign]  # No view is a coroutine function.
    app.response_class = Response
    app.url_map.merge_slashes = False
    # One more than is allowed: of a chunked body that is longer, werkzeug returns this much without an error.
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = settings.max_body_bytes + 1
    app.before_request(_begin)
    app.after_request(_complete_headers)
    if settings.cors_origins:
        app.after_request(partial(_allow_origin, frozenset(map(str.lower, settings.cors_origins))))
    return app


def send_page(file: str) -> flask.Response:
    """Return a file of the web page."""
    response = send_file("rill/page", file)
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


def send_greeting() -> flask.Response:
    """Return the page if the client prefers HTML, as browsers do, else help as text; curl accepts anything."""
    if request.accept_mimetypes.best_match(["text/plain", "text/html"]) == "text/html":
        return send_page("index.html")
    return Response(HELP.replace("ADDRESS", request.host_url.rstrip("/")), content_type="text/plain; charset=utf-8")


def send_file(folder: str, file: str) -> flask.Response:
    """Return a file that exists, as far as the request's conditions ask for it."""
    if request.headers.get("If-Match", "").strip() == "*":
        del request.environ["HTTP_IF_MATCH"]  # Any version will do; werkzeug would look for one of this name.
    return send_from_directory(folder, file)


def send_json(value: Any) -> Response:
    """Return a value as JSON."""
    return Response(json.dumps(value), content_type="application/json")


def send_replay(replay: Replay) -> Response:
    """Return a response from a recording."""
    return Response(replay.body, status=replay.status, headers=replay.headers, direct_passthrough=True)


def problem_of(error: Exception) -> Problem:
    """Return the problem behind an exception; log one that nobody expected."""
    if isinstance(error, Problem):
        return error
    if not isinstance(error, HTTPException):
        log.exception("a request failed")
        return Problem("internal_error")
    allowed = error.valid_methods if isinstance(error, MethodNotAllowed) else None
    return Problem(
        HTTP_PROBLEMS.get(error.code or 500, "bad_request"),
        advice_for(request.path) if error.code == 404 else None,
        headers={"Allow": ", ".join(sorted(allowed))} if allowed else {},
    )


def send_problem(problem: Problem) -> Response:
    """Return a problem in its dialect's shape, as JSON (RFC 9457) where that is preferred, or as plain text."""
    dialect = dialect_of(request.path, "anthropic-version" in request.headers)
    if request.path.startswith("/v1/") and dialect.encode_problem:
        response = Response(dialect.encode_problem(problem, g.request_id), content_type="application/json")
        if dialect is ANTHROPIC:
            response.headers.update(problem.upstream_headers)
        if problem.should_retry:
            response.headers["x-should-retry"] = problem.should_retry
    elif _prefers_json():
        response = Response(json.dumps(problem.as_json()), content_type="application/problem+json")
    else:
        response = Response(f"{problem.detail}\n", content_type="text/plain; charset=utf-8")
    response.status_code = problem.status
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    if problem.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="Rill", Basic realm="Rill"'
    response.headers.update(problem.headers)
    response.vary.add("anthropic-version" if request.path.startswith("/v1/models") else "Accept")
    return response


def send_usage(client: str, usages: Sequence[Usage]) -> Response:
    """Return what a client has used of its token budgets, as JSON where that is preferred, or as lines of text."""
    if _prefers_json():
        budgets = [
            {
                "limit": usage.budget.amount,
                "period": usage.budget.period,
                "used": usage.used,
                "reserved": usage.reserved,
                "remaining": usage.remaining,
                "resets_in_seconds": usage.seconds,
            }
            for usage in usages
        ]
        response = send_json({"client": client, "budgets": budgets})
    else:
        lines = [
            f"{client}: {usage.used} of {usage.budget.amount} tokens per {usage.budget.period} used, "
            f"{usage.reserved} reserved, {usage.remaining} left, new budget in {usage.seconds} s\n"
            for usage in usages
        ]
        response = Response("".join(lines) or f"{client}: no token budget\n", content_type="text/plain; charset=utf-8")
    response.vary.add("Accept")
    return response


def _prefers_json() -> bool:
    return request.accept_mimetypes.best_match(["text/plain", *JSON_TYPES]) in JSON_TYPES


def _begin() -> Response | None:
    """Name the request, and answer `OPTIONS *`, which asks about the server.

    https://www.rfc-editor.org/rfc/rfc9110#section-9.3.7
    """
    g.request_id = id_of(request)
    if request.environ.get("RAW_URI") != "*":
        return None
    return Response(status=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})


def _complete_headers(response: Response) -> Response:
    """Forbid proxies and browsers on the way to store, buffer, compress or guess."""
    headers = response.headers
    headers.remove("Cache-Control")  # of a file
    headers.extend([*HEADERS, ("X-Request-Id", g.request_id)])  # `update` would search all headers for each of these.
    if "Content-Security-Policy" not in headers:
        headers.add("Content-Security-Policy", POLICY)
    if request.path in ("/", "/stream"):
        response.vary.add("Accept")
    return response


def _allow_origin(origins: frozenset[str], response: Response) -> Response:
    """Let pages of these origins (`*` for all) read the response. https://fetch.spec.whatwg.org/#http-cors-protocol

    API keys travel in headers that a page sets itself, so cookies and a browser's own credentials are not allowed.
    """
    if "*" not in origins:
        response.vary.add("Origin")
    origin = request.headers.get("Origin", "")
    if not origin or origins.isdisjoint(("*", origin.lower())):
        return response
    response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
    response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    if request.method == "OPTIONS":
        is_recorded = request.path.startswith(("/stream/", "/api/chat/"))
        response.headers["Access-Control-Allow-Methods"] = f"GET, HEAD, {'DELETE' if is_recorded else 'POST'}"
        response.headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Max-Age"] = "600"
    return response
