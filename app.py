"""The routes, each with its dialect, and the order of their guards."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import click
import flask
import gevent
from flask import Flask, g, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from rill import cli
from rill.admission.auth import address_of
from rill.admission.cross_site import Hosts, check_initiator
from rill.dialects import ANTHROPIC, OPENAI, SSE, TEXT, Dialect, anthropic, models, openai, text
from rill.events import Event
from rill.problems import Problem
from rill.prompt import Prompt
from rill.server.connection import ClientSocket
from rill.server.request import FORMS, check_range, prefers_events, read_body, read_form, token_of
from rill.server.response import Response, build_app, problem_of, send_file, send_json, send_page, send_problem
from rill.server.worker import places_for
from rill.service import Question, Service
from rill.settings import Settings
from rill.telemetry.logs import write_logs
from rill.telemetry.rejection_log import RefusalLog

# /drip: enough chunks, far enough apart, for a reader to tell whether they arrive one by one.
DRIP_CHUNKS, DRIP_SECONDS = 10, 0.1
# They reveal only whether the service is up, to whoever checks it by its address.
HEALTH_CHECKS = ("/healthz", "/readyz")

ReadPrompt = Callable[[Settings], Prompt]


def create_app(settings: Settings) -> Flask:
    """Return the WSGI application; made in each worker, after the fork."""
    # What a command prints is its answer.
    write_logs(sys.stderr if click.get_current_context(silent=True) else sys.stdout)
    app, routes = build_app(__name__, settings), Routes(settings)
    app.before_request(routes.check_host)
    app.register_error_handler(Exception, routes.reject)
    for method, path, view in routes.table():
        app.add_url_rule(path, f"{method} {path}", view, methods=[method])
    app.cli.add_command(cli.ask_command(routes.read_answer))
    return app


class Routes:
    """Every route of the service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hosts = Hosts(settings.allowed_hosts, exposed=not (settings.tokens or settings.offline))
        self._rejections = RefusalLog()
        slots, _ = places_for(settings.streams)
        self._service = Service(settings, slots)

    def table(self) -> list[tuple[str, str, Callable[[], flask.Response]]]:
        """Return every route: method, path, and what answers it. A GET also answers HEAD."""
        return [
            ("GET", "/", lambda: send_page("index.html")),
            ("GET", "/page.js", lambda: send_page("page.js")),
            ("GET", "/page.css", lambda: send_page("page.css")),
            ("GET", "/openapi.json", lambda: send_file("rill", "openapi.json")),
            ("GET", "/drip", self.drip),
            ("GET", "/stream", lambda: self.answer(preferred_dialect(), read_query)),
            ("POST", "/stream", lambda: self.answer(preferred_dialect(), read_question)),
            ("GET", "/chat/stream", lambda: self.answer(SSE, read_query)),
            ("POST", "/v1/messages", lambda: self.answer(ANTHROPIC, read_messages)),
            ("POST", "/v1/chat/completions", lambda: self.answer(OPENAI, read_completion)),
            ("GET", "/v1/models", self.list_models),
            ("GET", "/healthz", lambda: Response("alive\n")),
            ("GET", "/readyz", self.check_ready),
            ("GET", "/metrics", self.show_metrics),
        ]

    def answer(self, dialect: Dialect, read_prompt: ReadPrompt) -> Response:
        """Stream an answer; return once it has begun, and raise Problem if it does not."""
        if request.method == "HEAD":
            return Response(content_type=dialect.media_type)
        self.check_initiator()
        if dialect in (TEXT, SSE):
            check_range(request)
        if dialect is SSE and "Last-Event-ID" in request.headers:
            return Response(status=204)  # EventSource reconnects after every end, and would ask and be billed again.
        client = self.identify()
        self._service.rate.count(client)
        prompt = read_prompt(self._settings)
        check_open()
        http_1_0 = request.environ["SERVER_PROTOCOL"] == "HTTP/1.0"
        reply = self._service.answer(Question(prompt, dialect, client, g.request_id, connection(), http_1_0))
        return Response(reply.body, content_type=reply.media_type, headers=reply.headers, direct_passthrough=True)

    def drip(self) -> Response:
        """Stream paced chunks that no model makes: if they arrive at once, a proxy on the way buffers."""
        if request.method == "HEAD":
            return Response()
        self.check_initiator()
        client = self.identify()
        self._service.rate.count(client)
        with ExitStack() as held:
            held.enter_context(self._service.places.take(client))
            response = Response(drip())
            response.call_on_close(held.pop_all().close)
        return response

    def list_models(self) -> Response:
        """List the models that may be asked for by name."""
        self.identify()
        return send_json(models.list_models(self._settings.known_models()))

    def check_ready(self) -> Response:
        """Say whether the worker takes requests."""
        check_open()
        self._service.places.check_free()
        return Response("ready\n")

    def show_metrics(self) -> Response:
        """Return the metrics, as Prometheus reads them."""
        self.identify()
        return Response(self._service.telemetry.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def reject(self, error: Exception) -> Response:
        """Return the response to a request that failed."""
        problem = problem_of(error)
        self._service.telemetry.count_refusal(problem)
        if problem.name in ("unauthorized", "not_found"):
            self._rejections.write(problem, request.path, request_id=g.request_id, address=self._address())
        return send_problem(problem)

    def check_host(self) -> None:
        """Raise Problem for a Host that is not served; health checks may name any."""
        if request.path not in HEALTH_CHECKS:
            bound_to = request.environ["SERVER_NAME"]
            self._hosts.check(request.headers.get("Host", ""), bound_to, request.remote_addr or "")

    def check_initiator(self) -> None:
        """Raise Problem for a prefetch, and for a page of another site that may not ask."""
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)

    def identify(self) -> str:
        """Return the client's name; raise Problem for one that may not ask."""
        return self._service.tokens.name_of(token_of(request), self._address())

    def read_answer(self, fields: Mapping[str, Any]) -> Iterator[list[Event]]:
        """Yield the events of the answer to a command; raise Problem."""
        yield from self._service.read_answer(text.read_fields(fields, self._settings))

    def _address(self) -> str:
        forwarded = request.headers.get("X-Forwarded-For", "")
        return address_of(request.remote_addr or "", forwarded, self._settings.trusted_proxies)


def connection() -> ClientSocket | None:
    """Return the client's connection, None without a server."""
    client = request.environ.get("gunicorn.socket")
    return client if isinstance(client, ClientSocket) else None


def check_open() -> None:
    """Raise Problem where the server is stopping."""
    client = connection()
    if client and client.connections.drain.begun:
        raise Problem("shutdown", retry_after=1)


def drip() -> Iterator[bytes]:
    """Yield the chunks of /drip."""
    for number in range(1, DRIP_CHUNKS + 1):
        gevent.sleep(DRIP_SECONDS)
        yield b"%d of %d\n" % (number, DRIP_CHUNKS)


def preferred_dialect() -> Dialect:
    """Return server-sent events where the client prefers them, else plain text."""
    return SSE if prefers_events(request.headers.get("Accept", "")) else TEXT


def read_query(settings: Settings) -> Prompt:
    """Return the prompt of a GET; raise Problem."""
    return text.read_fields(request.args.to_dict(), settings)


def read_question(settings: Settings) -> Prompt:
    """Return the prompt in the body of POST /stream, whatever its media type; raise Problem."""
    body, options = read_body(request, settings.max_body), request.args.to_dict()
    if request.is_json:
        return text.read_json(body, settings, options)
    if request.mimetype in FORMS:
        return text.read_form({**options, **read_form(request, body)}, settings)
    if request.mimetype in ("text/plain", "application/octet-stream", ""):
        return text.read_text(body, options, settings)
    raise Problem("wrong_type")


def read_messages(settings: Settings) -> Prompt:
    """Return the prompt of a request of the Messages API; raise Problem."""
    body = read_body(request, settings.max_body)
    return anthropic.read_messages(body, dict(request.headers), request.args.to_dict(), settings)


def read_completion(settings: Settings) -> Prompt:
    """Return the prompt of a chat completion's request; raise Problem."""
    return openai.read_completion(read_body(request, settings.max_body), settings)
