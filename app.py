"""The service: every route, what guards it, and how the rooms of `rill` are tied together."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import click
import flask
import gevent
from flask import Flask, current_app, g, request, send_from_directory
from flask_cors import CORS
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.http import parse_accept_header

from rill import offline, terminal
from rill.access import Tokens, address_of
from rill.client import ClientSocket
from rill.cross_site import Hosts, check_initiator
from rill.dialects import ANTHROPIC, OPENAI, SSE, TEXT, Dialect, anthropic, models, openai, text
from rill.dialects.paths import advice_for, dialect_of
from rill.dialects.whole import WholeFrames
from rill.endings import Deadlines, Delivery, Frames, Interrupted, Interruption, await_beginning
from rill.events import Bytes, Event
from rill.limits import RATE_HEADERS, Places, Rate
from rill.problems import Problem
from rill.prompt import Prompt
from rill.refusal_log import RefusalLog
from rill.request import FORMS, check_range, id_of, read_body, read_form, token_of
from rill.server import places_for
from rill.settings import Settings
from rill.telemetry import Record, Telemetry, write_logs
from rill.upstream import Answer, Upstream

HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# No answer may be shown as a page, or load anything; but the page may load what lies beside it, and ask its own origin.
POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What a page of another origin may read, beside the little that every browser lets it.
EXPOSED_HEADERS = ["Retry-After", "X-Should-Retry", "X-Request-Id", "Request-Id", *RATE_HEADERS]
# /drip: enough pieces, far enough apart, for a reader to tell whether they arrive one by one.
DRIP_CHUNKS, DRIP_SECONDS = 10, 0.1
# What tells nothing but whether the service is up, to whoever checks it by its address.
HEALTH_CHECKS = ("/healthz", "/readyz")
JSON_TYPES = ("application/problem+json", "application/json")
# What werkzeug raises by itself -> our problem.
HTTP_PROBLEMS = {404: "not_found", 405: "wrong_method"}

log = logging.getLogger("rill")


class Response(flask.Response):
    """An answer that is plain text unless it says otherwise, also where flask writes it."""

    default_mimetype = "text/plain"


def create_app(settings: Settings) -> Flask:
    """The WSGI application; made in each worker, after the fork."""
    app = Flask(__name__, static_folder=None)
    app.response_class = Response
    app.url_map.merge_slashes = False
    # One more than is allowed: of a chunked body that is longer, werkzeug returns this much without a word.
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = settings.max_body + 1
    # What a command prints is its answer.
    write_logs(sys.stderr if click.get_current_context(silent=True) else sys.stdout)
    service = Service(settings)
    for method, path, view in service.routes():
        app.add_url_rule(path, f"{method} {path}", view, methods=[method])
    app.before_request(name_request)
    app.before_request(answer_asterisk)
    app.before_request(service.check_host)
    app.after_request(complete_headers)
    app.register_error_handler(Exception, service.refuse)
    add_ask_command(app, service)
    if settings.cors_origins:
        allow_origins(app, settings.cors_origins)
    return app


def allow_origins(app: Flask, origins: Sequence[str]) -> None:
    """Lets the pages of these origins read what they are answered; `*` stands for all."""
    app.config["VARIES_BY_ORIGIN"] = "*" not in origins
    # Tokens travel in headers that a page sets itself: cookies and a browser's own credentials are never asked for.
    CORS(
        app,
        origins=[origin if origin == "*" else exactly(origin) for origin in origins],
        methods=["GET", "HEAD", "POST"],
        expose_headers=EXPOSED_HEADERS,
        send_wildcard=True,
        always_send=False,
        vary_header=False,
        max_age=600,
    )


def exactly(origin: str) -> re.Pattern[str]:
    """What matches this origin and no other: flask_cors takes the brackets of an IPv6 address for a pattern's."""
    return re.compile(rf"{re.escape(origin)}\Z", re.IGNORECASE)


def add_ask_command(app: Flask, service: "Service") -> None:
    """Adds `flask --app wsgi ask`."""

    @app.cli.command("ask")
    @click.argument("prompt")
    @click.option("--system", help="A system prompt.")
    @click.option("--model", help="The model to ask.")
    @click.option("--max-tokens", type=int, help="Tokens of the answer at most.")
    def ask(prompt: str, **options: Any) -> None:
        """Ask, and watch the answer arrive; where PROMPT is -, it is read from stdin.

        The exit code is 0 for a whole answer, 3 for one that was cut, 1 for none, and 130 where Ctrl-C stopped it.
        """
        write_logs(sys.stderr, logging.ERROR)
        fields = {"q": sys.stdin.read() if prompt == "-" else prompt, **options}
        sys.exit(terminal.show(service.read_answer(fields)))


class Service:
    """The routes, and what they share: who may ask and how much, the upstream, and the life of an answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.telemetry = Telemetry(bool(settings.tokens), settings.allowed_models())
        self._refusals = RefusalLog()
        self._hosts = Hosts(settings.allowed_hosts, exposed=not (settings.tokens or settings.offline))
        self._tokens = Tokens(settings.tokens)
        self._rate = Rate(settings.rate, settings.redis_url)
        streams, _ = places_for(settings.streams)
        self._places = Places(streams, settings.streams_per_caller)
        self._deadlines = Deadlines(settings.first_event_seconds, settings.idle_seconds, settings.total_seconds)
        base_url = settings.base_url
        if settings.offline:
            base_url = f"http://127.0.0.1:{offline.serve('127.0.0.1', 0, settings.offline_rate).server_port}"
        self._upstream = Upstream(settings, base_url, streams, self.telemetry.count_upstream_error)

    def routes(self) -> list[tuple[str, str, Callable[[], flask.Response]]]:
        """Every route: method, path, and what answers it. A GET also answers HEAD."""
        return [
            ("GET", "/", lambda: show_page("index.html")),
            ("GET", "/page.js", lambda: show_page("page.js")),
            ("GET", "/page.css", lambda: show_page("page.css")),
            ("GET", "/openapi.json", lambda: send_file("rill", "openapi.json")),
            ("GET", "/drip", self.drip),
            ("GET", "/stream", lambda: self.answer(preferred_dialect(), read_query)),
            ("POST", "/stream", lambda: self.answer(preferred_dialect(), read_question)),
            ("GET", "/chat/stream", lambda: self.answer(SSE, read_query)),
            ("POST", "/v1/messages", lambda: self.answer(ANTHROPIC, read_messages)),
            ("POST", "/v1/chat/completions", lambda: self.answer(OPENAI, read_completion)),
            ("GET", "/v1/models", self.list_models),
            ("GET", "/healthz", self.tell_alive),
            ("GET", "/readyz", self.tell_ready),
            ("GET", "/metrics", self.tell_metrics),
        ]

    def list_models(self) -> Response:
        self.identify()
        names = self._settings.allowed_models()
        return Response(json.dumps(models.list_models(names)), content_type="application/json")

    def drip(self) -> Response:
        """Short pieces in even time, from no model: where they arrive at once, something on the way holds text back."""
        if request.method == "HEAD":
            return Response()
        self.check_initiator()
        caller = self.identify()
        self._rate.count(caller)
        with ExitStack() as held:
            held.enter_context(self._places.take(caller))
            response = Response(drip())
            response.call_on_close(held.pop_all().close)
        return response

    def tell_alive(self) -> Response:
        return Response("alive\n")

    def tell_ready(self) -> Response:
        check_open()
        self._places.check_free()
        return Response("ready\n")

    def tell_metrics(self) -> Response:
        self.identify()
        return Response(self.telemetry.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def refuse(self, error: Exception) -> Response:
        """What a request that gets no answer is told instead."""
        problem, headers = problem_of(error)
        self.telemetry.count_refusal(problem)
        if problem.name in ("unauthorized", "not_found"):
            self._refusals.write(problem, request.path, request_id=g.request_id, address=self._address())
        return tell_problem(problem, headers)

    def read_answer(self, fields: Mapping[str, Any]) -> Iterator[list[Event]]:
        """The events of an answer that no caller's connection waits for; raises Problem."""
        prompt, deadlines = text.read_fields(fields, self._settings), self._deadlines
        with closing(Interruption(deadlines, None)) as interruption:
            try:
                with closing(self._upstream.ask(prompt, deadlines.first_event)) as answer:
                    interruption.nudge = answer.nudge
                    yield from interruption.watch(answer)
            except Interrupted:
                raise interruption.problem() from None

    def check_host(self) -> None:
        """Raise Problem for a Host that is not served; health checks may name any."""
        if request.path not in HEALTH_CHECKS:
            bound_to = request.environ["SERVER_NAME"]
            self._hosts.check(request.headers.get("Host", ""), bound_to, request.remote_addr or "")

    def check_initiator(self) -> None:
        """Raise Problem for a prefetch, and for a page of another site that may not ask."""
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)

    def identify(self) -> str:
        """The caller's name; raises Problem for one who may not ask."""
        return self._tokens.name_of(token_of(request), self._address())

    def _address(self) -> str:
        forwarded = request.headers.get("X-Forwarded-For", "")
        return address_of(request.remote_addr or "", forwarded, self._settings.trusted_proxies)

    def answer(self, dialect: Dialect, read_prompt: Callable[[Settings], Prompt]) -> Response:
        """Answers once it is known that there is an answer, and streams it; raises Problem where there is none."""
        if request.method == "HEAD":
            return Response(content_type=dialect.media_type)
        self.check_initiator()
        if dialect in (TEXT, SSE):
            check_range(request)
        if dialect is SSE and "Last-Event-ID" in request.headers:
            return Response(status=204)  # EventSource reconnects after every end, and would ask and be billed again.
        caller = self.identify()
        self._rate.count(caller)
        prompt = read_prompt(self._settings)
        check_open()
        record = Record(g.request_id, dialect.name, caller, prompt.model)
        with ExitStack() as held:
            self.telemetry.begin()
            held.callback(self.telemetry.end, record)
            try:
                held.enter_context(self._places.take(caller))
                return self._ask(prompt, dialect, record, held)
            except Problem as problem:
                record.status, record.ending = problem.status, problem.name
                self.telemetry.count_upstream_error(problem)
                raise

    def _ask(self, prompt: Prompt, dialect: Dialect, record: Record, held: ExitStack) -> Response:
        """Asks the upstream and waits for the beginning of its answer; `held` gathers what its end has to undo."""
        client = connection()
        deadlines = self._deadlines
        if prompt.verbatim and not prompt.streamed:
            # Its first byte is its last: it comes when all of it is written.
            deadlines = replace(deadlines, first_event=deadlines.idle)
        interruption = held.enter_context(closing(Interruption(deadlines, client)))
        record.watch = interruption
        if client:
            client.connections.admit(client)
            held.enter_context(client.connections.drain.watch(interruption))
        frames: Frames = dialect.open_frames(prompt, g.request_id)
        media_type, headers = dialect.media_type, {}
        note = partial(note_answer, record, interruption)
        try:
            answer = held.enter_context(closing(self._upstream.ask(prompt, deadlines.first_event, note)))
            headers = answer.headers if prompt.verbatim else {}
            reads = interruption.watch(answer)
            if dialect.write_whole and not prompt.streamed:
                body, end = dialect.write_whole(reads, prompt, g.request_id)
                frames = WholeFrames()
                beginning: list[Event] = [Bytes(body), end]
                media_type, headers = "application/json", {**headers, "Content-Length": str(len(body))}
            else:
                beginning = await_beginning(reads, interruption, dialect.wants_text)
        except Interrupted:
            raise interruption.problem() from None
        dialect.check_beginning(beginning)
        reset = client.reset if client and request.environ["SERVER_PROTOCOL"] == "HTTP/1.0" else None
        undo = ExitStack()
        finish = partial(self._finish, record, undo)
        delivery = Delivery(chain([beginning], reads), frames, interruption, reset, finish)
        response = Response(delivery, content_type=media_type, headers=headers, direct_passthrough=True)
        undo.push(held.pop_all())  # Last: where the response cannot be made, `held` is still the caller's to close.
        return response

    def _finish(self, record: Record, undo: ExitStack, delivery: Delivery) -> None:
        """Notes how an answer ended, and frees what it held."""
        record.status, record.ending, record.bytes_sent = 200, delivery.ending, delivery.bytes_sent
        record.stop_reason = delivery.end.stop_reason if delivery.end else None
        if delivery.problem:
            self.telemetry.count_upstream_error(delivery.problem)
        undo.close()


def connection() -> ClientSocket | None:
    """Return the client's connection, None without a server."""
    client = request.environ.get("gunicorn.socket")
    return client if isinstance(client, ClientSocket) else None


def check_open() -> None:
    """Raise Problem where the server is stopping."""
    client = connection()
    if client and client.connections.drain.begun:
        raise Problem("shutdown", retry_after=1)


def note_answer(record: Record, interruption: Interruption, answer: Answer) -> None:
    """Take over what is known of an answer once its headers are in."""
    interruption.nudge = answer.nudge
    record.upstream_request_id, record.usage = answer.request_id, answer.usage


def show_page(file: str) -> flask.Response:
    """A file of the page."""
    response = send_file("rill/page", file)
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


def send_file(folder: str, file: str) -> flask.Response:
    """Send a file that exists, as far as the request's conditions ask for it."""
    if request.headers.get("If-Match", "").strip() == "*":
        del request.environ["HTTP_IF_MATCH"]  # Any version will do; werkzeug would look for one of this name.
    return send_from_directory(folder, file)


def drip() -> Iterator[bytes]:
    """The pieces of /drip."""
    for number in range(1, DRIP_CHUNKS + 1):
        gevent.sleep(DRIP_SECONDS)
        yield b"%d of %d\n" % (number, DRIP_CHUNKS)


def preferred_dialect() -> Dialect:
    """Plain text, but server-sent events where the caller would rather have them."""
    return SSE if prefers_events(request.headers.get("Accept", "")) else TEXT


@lru_cache(maxsize=100)
def prefers_events(accept: str) -> bool:
    """Whether an Accept header would rather have server-sent events than plain text."""
    wanted = parse_accept_header(accept, MIMEAccept)
    return wanted.best_match(["text/plain", "text/event-stream"]) == "text/event-stream"


def read_query(settings: Settings) -> Prompt:
    """The prompt of a GET; raises Problem."""
    return text.read_fields(request.args.to_dict(), settings)


def read_question(settings: Settings) -> Prompt:
    """The prompt in the body of a POST to /stream, whatever its media type; raises Problem."""
    body, options = read_body(request, settings.max_body), request.args.to_dict()
    if request.is_json:
        return text.read_json(body, settings, options)
    if request.mimetype in FORMS:
        return text.read_form({**options, **read_form(request, body)}, settings)
    if request.mimetype in ("text/plain", "application/octet-stream", ""):
        return text.read_text(body, options, settings)
    raise Problem("wrong_type")


def read_messages(settings: Settings) -> Prompt:
    """The prompt of a request of the Messages API; raises Problem."""
    body = read_body(request, settings.max_body)
    return anthropic.read_messages(body, dict(request.headers), request.args.to_dict(), settings)


def read_completion(settings: Settings) -> Prompt:
    """The prompt of a chat completion's request; raises Problem."""
    return openai.read_completion(read_body(request, settings.max_body), settings)


def name_request() -> None:
    """Gives the request its id."""
    g.request_id = id_of(request)


def answer_asterisk() -> Response | None:
    """Answer `OPTIONS *`, which asks about the server as a whole: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.7"""
    if request.environ.get("RAW_URI") != "*":
        return None
    return Response(status=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})


def complete_headers(response: Response) -> Response:
    """Adds what every answer carries: no proxy or browser on the way may store, buffer, compress or guess."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers["X-Request-Id"] = g.request_id
    if request.path == "/stream":
        response.vary.add("Accept")
    if current_app.config.get("VARIES_BY_ORIGIN"):
        response.vary.add("Origin")
    return response


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """The problem behind whatever was raised, and the headers that tell more of it."""
    headers = {}
    if isinstance(error, HTTPException):
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            headers["Allow"] = ", ".join(sorted(error.valid_methods))
        detail = advice_for(request.path) if error.code == 404 else None
        error = Problem(HTTP_PROBLEMS.get(error.code or 500, "bad_request"), detail)
    elif not isinstance(error, Problem):
        log.exception("a request failed")
        error = Problem("internal_error")
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Rill", Basic realm="Rill"'
    return error, {**headers, **error.headers}


def tell_problem(problem: Problem, headers: dict[str, str]) -> Response:
    """The problem as its true status: in its dialect's shape, as JSON (RFC 9457) where preferred, or in words."""
    dialect = dialect_of(request.path, "anthropic-version" in request.headers)
    if request.path.startswith("/v1/") and dialect.write_problem:
        if dialect is ANTHROPIC:
            headers = {**problem.upstream_headers, **headers}
        if problem.should_retry:
            headers = {**headers, "x-should-retry": problem.should_retry}
        response = Response(dialect.write_problem(problem, g.request_id), content_type="application/json")
    elif request.accept_mimetypes.best_match(["text/plain", *JSON_TYPES]) in JSON_TYPES:
        response = Response(json.dumps(problem.as_json()), content_type="application/problem+json")
    else:
        response = Response(f"{problem.detail}\n", content_type="text/plain; charset=utf-8")
    response.status_code = problem.status
    response.headers.update(headers)
    response.vary.add("anthropic-version" if request.path == "/v1/models" else "Accept")
    return response
