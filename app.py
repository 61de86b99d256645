"""The service: every route, what guards it, and how the rooms of `rill` are tied together."""

import logging
import re
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import chain

import gevent
from flask import Flask, Response, current_app, g, jsonify, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from rill import offline
from rill.access import Tokens
from rill.dialects import SSE, TEXT, Dialect, text
from rill.endings import Deadlines, Delivery, Drain, Interrupted, Interruption, await_beginning
from rill.limits import Places, Rate
from rill.problems import Problem
from rill.prompt import Prompt
from rill.server import ClientSocket, places_for
from rill.settings import Settings
from rill.telemetry import Record, write_logs
from rill.upstream import Upstream

BODY_SECONDS = 30.0
SANE_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
JSON_TYPES = ("application/problem+json", "application/json")
# What werkzeug raises by itself -> our problem.
HTTP_PROBLEMS = {404: "not_found", 405: "wrong_method", 413: "too_large"}

log = logging.getLogger("rill")


def create_app(settings: Settings) -> Flask:
    """The WSGI application; made in each worker, after the fork."""
    app = Flask(__name__, static_folder=None)
    app.response_class = PlainResponse
    # One more than is allowed: of a chunked body that is longer, werkzeug returns this much without a word.
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = settings.max_body + 1
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    write_logs()
    service = Service(settings)

    app.extensions["drain"] = service.drain
    app.config["DRAIN_SECONDS"] = settings.drain_seconds

    @app.get("/stream")
    def ask_by_query() -> Response:
        return service.answer(preferred_dialect(), lambda: text.read_fields(request.args.to_dict(), settings))

    @app.post("/stream")
    def ask_by_body() -> Response:
        return service.answer(preferred_dialect(), lambda: read_body(settings))

    @app.get("/chat/stream")
    def chat() -> Response:
        return service.answer(SSE, lambda: text.read_fields(request.args.to_dict(), settings))

    @app.get("/healthz")
    def tell_alive() -> Response:
        return Response("alive\n", content_type=TEXT.media_type)

    @app.get("/readyz")
    def tell_ready() -> Response:
        service.check_ready()
        return Response("ready\n", content_type=TEXT.media_type)

    app.before_request(name_request)
    app.after_request(complete_headers)
    app.register_error_handler(Exception, tell_problem)
    return app


class PlainResponse(Response):
    """An answer that is never HTML, also where flask writes it."""

    default_mimetype = "text/plain"


class Service:
    """What the routes share: who may ask and how much, the upstream, and the life of an answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.drain = Drain()
        self._tokens = Tokens(settings.tokens)
        self._rate = Rate(settings.rate)
        streams, _ = places_for(settings.streams)
        self._places = Places(streams, settings.streams_per_caller)
        self._deadlines = Deadlines(settings.first_event_seconds, settings.idle_seconds, settings.total_seconds)
        base_url = settings.base_url
        if settings.offline:
            base_url = f"http://127.0.0.1:{offline.serve('127.0.0.1', 0, settings.offline_rate).server_port}"
        self._upstream = Upstream(settings, base_url, streams)

    def check_ready(self) -> None:
        """Raises Problem where no new answer would be taken."""
        if self.drain.begun:
            raise Problem("draining", retry_after=1)
        self._places.check_free()

    def answer(self, dialect: Dialect, read_prompt: Callable[[], Prompt]) -> Response:
        """Answers once it is known that there is an answer, and streams it; raises Problem where there is none."""
        if request.method == "HEAD":
            return Response(content_type=dialect.media_type)
        if "prefetch" in request.headers.get("Sec-Purpose", request.headers.get("Purpose", "")):
            raise Problem("prefetch")
        if dialect is SSE and "Last-Event-ID" in request.headers:
            return Response(status=204)  # EventSource reconnects after every end, and would ask and be billed again.
        caller = self._tokens.name_of(sent_token(), request.remote_addr or "local")
        self._rate.count(caller)
        prompt = read_prompt()
        if self.drain.begun:
            raise Problem("draining", retry_after=1)
        record = Record(g.request_id, dialect.name, caller, prompt.model)
        with ExitStack() as held:
            held.callback(record.write)
            try:
                held.enter_context(self._places.take(caller))
                delivery = self._ask(prompt, dialect, record, held)
            except Problem as problem:
                record.status, record.ending = problem.status, problem.name
                raise
        return Response(delivery, content_type=dialect.media_type, direct_passthrough=True)

    def _ask(self, prompt: Prompt, dialect: Dialect, record: Record, held: ExitStack) -> Delivery:
        """Asks the upstream and waits for the beginning of its answer; `held` gathers what its end has to undo."""
        client = request.environ.get("gunicorn.socket")
        client = client if isinstance(client, ClientSocket) else None
        interruption = held.enter_context(closing(Interruption(self._deadlines, client)))
        held.enter_context(self.drain.watch(interruption))
        try:
            answer = held.enter_context(closing(self._upstream.ask(prompt, self._deadlines.first_event)))
            interruption.nudge = answer.nudge
            record.upstream_request_id, record.usage = answer.request_id, answer.usage
            reads = interruption.watch(answer)
            beginning = await_beginning(reads, interruption, dialect.wants_text)
        except Interrupted:
            raise interruption.problem() from None
        dialect.check_beginning(beginning)
        undo = held.pop_all()

        def finish(delivery: Delivery) -> None:
            record.status, record.ending, record.bytes_sent = 200, delivery.ending, delivery.bytes_sent
            record.stop_reason = delivery.end.stop_reason if delivery.end else None
            undo.close()

        reset = client.reset if client and request.environ["SERVER_PROTOCOL"] == "HTTP/1.0" else None
        return Delivery(chain([beginning], reads), dialect.open_frames(), interruption, reset, finish)


def preferred_dialect() -> Dialect:
    """Plain text, but server-sent events where the caller would rather have them."""
    best = request.accept_mimetypes.best_match(["text/plain", "text/event-stream"])
    return SSE if best == "text/event-stream" else TEXT


def read_body(settings: Settings) -> Prompt:
    """The prompt in the body of a POST, whatever its media type; raises Problem."""
    try:
        with gevent.Timeout(BODY_SECONDS, Problem("too_slow")):
            body = request.get_data(parse_form_data=False)
    except ParseException:
        raise Problem("bad_request", "The body's chunks are broken.") from None
    if len(body) > settings.max_body:
        raise RequestEntityTooLarge
    if len(body) < (request.content_length or 0):
        raise Problem("bad_request", "The body broke off before its Content-Length.")
    options = request.args.to_dict()
    if request.is_json:
        return text.read_json(body, settings)
    if request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return text.read_fields({**options, **request.form.to_dict()}, settings)
    if request.mimetype in ("text/plain", ""):
        return text.read_text(body, options, settings)
    raise Problem("wrong_type")


def sent_token() -> str | None:
    """The token that the request carries: what SDKs, curl -u and EventSource send; never from the URL."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if request.authorization is not None and request.authorization.type == "basic":
        return request.authorization.password
    return request.headers.get("x-api-key")


def name_request() -> None:
    """Gives the request the id that its caller chose, if that is sane, or a new one."""
    sent = request.headers.get("X-Request-Id", "")
    g.request_id = sent if SANE_REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def complete_headers(response: Response) -> Response:
    """Adds what every answer carries: no proxy or browser on the way may store, buffer, compress or guess."""
    response.headers.update(HEADERS)
    response.headers["X-Request-Id"] = g.request_id
    if request.path == "/stream":
        response.headers["Vary"] = "Accept"
    return response


def tell_problem(error: Exception) -> Response:
    """The problem as its true status, in plain text, or as JSON (RFC 9457) where that is preferred."""
    headers = {}
    if isinstance(error, HTTPException):
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            headers["Allow"] = ", ".join(sorted(error.valid_methods))
        name = HTTP_PROBLEMS.get(error.code or 500, "bad_request")
        limit = current_app.config["MAX_CONTENT_LENGTH"] - 1
        error = Problem(name, f"The body should be of at most {limit} bytes." if name == "too_large" else None)
    elif not isinstance(error, Problem):
        log.exception("a request failed")
        error = Problem("internal")
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Rill", Basic realm="Rill"'
    headers["Vary"] = "Accept"
    if request.accept_mimetypes.best_match(["text/plain", *JSON_TYPES]) in JSON_TYPES:
        response = jsonify(error.as_json())
        response.content_type = "application/problem+json"
    else:
        response = Response(f"{error.detail}\n", content_type="text/plain; charset=utf-8")
    response.status_code = error.status
    response.headers.update(headers)
    return response
