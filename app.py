"""The routes, each with its dialect, and the order of their guards."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import click
import flask
from flask import Flask, g, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from rill import cli
from rill.admission.cross_site import Hosts, check_initiator
from rill.dialects import ANTHROPIC, OPENAI, SSE, TEXT, models, text
from rill.dialects.base import Dialect
from rill.events import Event
from rill.problems import Problem
from rill.server.drip import drip
from rill.server.open_files import fit_open_files
from rill.server.overload import RETRY_SECONDS
from rill.server.request import (
    ReadPrompt,
    address_of,
    api_key_of,
    check_range,
    connection_of,
    preferred_dialect,
    read_completion,
    read_messages,
    read_prompt_body,
    read_query,
)
from rill.server.response import Response, build_app, problem_of, send_file, send_json, send_page, send_problem
from rill.service import Request, Service
from rill.settings import Settings
from rill.telemetry.logs import write_logs
from rill.telemetry.rejection_log import RejectionLog

# They reveal only whether the service is up, and platforms send them to its IP address.
HEALTH_CHECKS = ("/healthz", "/readyz")


def create_app(settings: Settings, relays: bool = True) -> Flask:
    """Return the WSGI application; call it in each worker, after the fork."""
    # A command prints its answer to stdout.
    write_logs(sys.stderr if click.get_current_context(silent=True) else sys.stdout)
    app, routes = build_app(__name__, settings), Routes(settings, relays)
    app.before_request(routes.check_host)
    app.register_error_handler(Exception, routes.reject)
    for method, path, view in routes.table():
        app.add_url_rule(path, f"{method} {path}", view, methods=[method])
    app.extensions["rill"] = routes.telemetry
    app.cli.add_command(cli.ask_command(routes.read_answer))
    return app


class Routes:
    """Every route of the service."""

    def __init__(self, settings: Settings, relays: bool) -> None:
        self._settings = settings
        self._relays = relays
        self._hosts = Hosts(settings.allowed_hosts, exposed=not (settings.api_keys or settings.offline))
        self._rejections = RejectionLog()
        slots, _ = fit_open_files(settings.max_streams)
        self._service = Service(settings, slots)
        self.telemetry = self._service.telemetry

    def table(self) -> list[tuple[str, str, Callable[..., flask.Response]]]:
        """Return every route: method, path, and view. A GET also answers HEAD."""
        return [
            ("GET", "/", lambda: send_page("index.html")),
            ("GET", "/page/<file>", send_page),
            ("GET", "/openapi.json", lambda: send_file("rill", "openapi.json")),
            ("GET", "/drip", self.drip),
            ("GET", "/stream", lambda: self.answer(preferred_dialect(request), read_query)),
            ("POST", "/stream", lambda: self.answer(preferred_dialect(request), read_prompt_body)),
            ("GET", "/chat/stream", lambda: self.answer(SSE, read_query)),
            ("POST", "/v1/messages", lambda: self.answer(ANTHROPIC, read_messages)),
            ("POST", "/v1/chat/completions", lambda: self.answer(OPENAI, read_completion)),
            ("GET", "/v1/models", self.list_models),
            ("GET", "/healthz", lambda: Response("alive\n")),
            ("GET", "/readyz", self.check_ready),
            ("GET", "/metrics", self.show_metrics),
        ]

    def answer(self, dialect: Dialect, read_prompt: ReadPrompt) -> Response:
        """Stream an answer; return once it has started, and raise Problem if it does not."""
        if request.method == "HEAD":
            return Response(content_type=dialect.media_type)
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)
        if dialect in (TEXT, SSE):
            check_range(request)
        if dialect is SSE and "Last-Event-ID" in request.headers:
            return Response(status=204)  # EventSource reconnects after every end, and would be billed again.
        client = self.identify()
        self._service.rate_limit.count(client)
        prompt, reply = read_prompt(request, self._settings)
        self.check_open()
        connection = connection_of(request)
        admit = connection.admit if connection else None
        reset = connection.reset if connection and request.environ["SERVER_PROTOCOL"] == "HTTP/1.0" else None
        send = (connection.send_now, connection.sendall) if connection and self._relays else None
        answer = self._service.answer(Request(prompt, reply, dialect, client, g.request_id, admit, reset, send))
        if connection and answer.body.beginning:
            connection.hold_next()
        return Response(answer.body, content_type=answer.media_type, headers=answer.headers, direct_passthrough=True)

    def drip(self) -> Response:
        """Stream paced chunks without a model: if they arrive all at once, a proxy on the way buffers."""
        if request.method == "HEAD":
            return Response()
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)
        client = self.identify()
        self._service.rate_limit.count(client)
        with ExitStack() as held:
            held.enter_context(self._service.slots.hold_slot(client))
            response = Response(drip())
            response.call_on_close(held.pop_all().close)
        return response

    def list_models(self) -> Response:
        """List the models that may be asked for by name."""
        self.identify()
        return send_json(models.list_models(self._settings.known_models(), self._settings.offline))

    def check_ready(self) -> Response:
        """Report whether the worker accepts requests."""
        connection = connection_of(request)
        if connection and connection.overloaded:
            raise Problem("overloaded", retry_after=RETRY_SECONDS)
        self.check_open()
        self._service.slots.check_capacity()
        return Response("ready\n")

    def show_metrics(self) -> Response:
        """Return the metrics in Prometheus' format."""
        self.identify()
        return Response(self.telemetry.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def reject(self, error: Exception) -> Response:
        """Return the response to a request that failed."""
        problem = problem_of(error)
        self.telemetry.count_rejection(problem)
        if problem.name in ("unauthorized", "not_found"):
            self._rejections.write(problem, request.path, request_id=g.request_id, address=self._address())
        return send_problem(problem)

    def check_host(self) -> None:
        """Raise Problem for a Host that is not served; health checks may name any."""
        if request.path not in HEALTH_CHECKS:
            bound_to = request.environ["SERVER_NAME"]
            self._hosts.check(request.headers.get("Host", ""), bound_to, request.remote_addr or "")

    def check_open(self) -> None:
        """Raise Problem if the server is shutting down."""
        connection = connection_of(request)
        if connection and connection.connections.drain.begun:
            raise Problem("shutdown", retry_after=1)

    def identify(self) -> str:
        """Return the client's name; raise Problem if it is not allowed."""
        return self._service.api_keys.name_of(api_key_of(request), self._address())

    def read_answer(self, fields: Mapping[str, Any]) -> Iterator[list[Event]]:
        """Yield the events of the answer to a command; raise Problem."""
        yield from self._service.read_answer(text.read_fields(fields, self._settings))

    def _address(self) -> str:
        return address_of(request, self._settings.trusted_proxies)
