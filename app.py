"""The routes, each with its dialect, and the order of their guards."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import click
import flask
from flask import Flask, g, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from rill import cli
from rill.admission.client import Client
from rill.admission.concurrency import ConcurrencyLimit
from rill.admission.cross_site import Hosts, check_initiator
from rill.admission.mint import mint
from rill.dialects import ANTHROPIC, OPENAI, RESPONSES, SSE, TEXT, UI_MESSAGES, models, text
from rill.dialects.base import Dialect
from rill.events import Event
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.server.drip import drip
from rill.server.open_files import fit_open_files
from rill.server.overload import RETRY_SECONDS
from rill.server.paths import advice_for
from rill.server.request import (
    ReadPrompt,
    address_of,
    api_key_of,
    apply_fallback_header,
    check_range,
    connection_of,
    preferred_dialect,
    read_chat,
    read_completion,
    read_count,
    read_messages,
    read_prompt_body,
    read_query,
    read_response,
    writer_of,
)
from rill.server.response import (
    Response,
    build_app,
    problem_of,
    send_file,
    send_greeting,
    send_json,
    send_page,
    send_problem,
    send_replay,
    send_usage,
)
from rill.server.resume import open_recordings
from rill.server.resume_chat import NOTHING, ChatResumption
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
    app.cli.add_command(cli.mint_command(partial(mint, settings)))
    return app


class Routes:
    """Every route of the service."""

    def __init__(self, settings: Settings, relays: bool) -> None:
        self._settings = settings
        self._relays = relays
        self._hosts = Hosts(settings.allowed_hosts, exposed=not (settings.authenticates or settings.offline))
        self._rejections = RejectionLog()
        slots, _ = fit_open_files(settings.max_streams)
        self._service = Service(settings, slots)
        self.telemetry = self._service.telemetry
        self._resumption = None
        if settings.resume_seconds:
            readers = ConcurrencyLimit(slots, settings.max_streams_per_client)
            self._resumption = ChatResumption(open_recordings(settings.redis_url), readers, self._service, settings)

    def table(self) -> list[tuple[str, str, Callable[..., flask.Response]]]:
        """Return every route: method, path, and view. A GET also answers HEAD."""
        return [
            ("GET", "/", self.greet),
            ("GET", "/page/<file>", send_page),
            ("GET", "/openapi.json", lambda: send_file("rill", "openapi.json")),
            ("GET", "/drip", self.drip),
            ("GET", "/stream", lambda: self.answer(preferred_dialect(request), read_query)),
            ("POST", "/stream", lambda: self.answer(preferred_dialect(request), read_prompt_body)),
            ("GET", "/stream/<id>", self.replay),
            ("DELETE", "/stream/<id>", self.stop),
            ("POST", "/api/chat", lambda: self.answer(UI_MESSAGES, read_chat)),
            ("GET", "/api/chat/<id>/stream", self.replay_chat),
            ("DELETE", "/api/chat/<id>/stream", self.stop_chat),
            ("POST", "/api/completion", lambda: self.answer(UI_MESSAGES, read_prompt_body)),
            ("GET", "/chat/stream", lambda: self.answer(SSE, read_query)),
            ("POST", "/v1/messages", lambda: self.answer(ANTHROPIC, read_messages)),
            ("POST", "/v1/messages/count_tokens", lambda: self.answer(ANTHROPIC, read_count)),
            ("POST", "/v1/chat/completions", lambda: self.answer(OPENAI, read_completion)),
            ("POST", "/v1/responses", lambda: self.answer(RESPONSES, read_response)),
            ("GET", "/v1/models", self.list_models),
            ("GET", "/usage", self.show_usage),
            ("GET", "/v1/models/<path:id>", self.show_model),
            ("GET", "/healthz", lambda: Response("alive\n")),
            ("GET", "/readyz", self.check_ready),
            ("GET", "/metrics", self.show_metrics),
        ]

    def answer(self, dialect: Dialect, read_prompt: ReadPrompt) -> Response:
        """Stream an answer; return once it has started, and raise Problem if it does not."""
        resumption = self._resumption if dialect in (TEXT, SSE) else None
        if request.method == "HEAD":
            return Response(content_type=dialect.media_type, headers=resumption.limits if resumption else {})
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)
        if dialect in (TEXT, SSE) and not resumption:
            check_range(request)
            if dialect is SSE and "Last-Event-ID" in request.headers:
                return Response(status=204)  # EventSource reconnects after every end, and would be billed again.
        client, connection = self.identify(), writer_of(request, self._relays)
        if resumption and (replay := resumption.resume(request, dialect, client.name, connection)):
            return send_replay(replay)
        prompt, reply, reservation, headers = self._service.limits.admit(client, lambda: self.read(read_prompt))
        asked = Request(prompt, reply, dialect, client, g.request_id, *connection, reservation)
        recorder = self._resumption if prompt.chat else resumption
        if recorder and prompt.resume_seconds and (replay := recorder.start(request, asked)):
            return send_replay(replay._replace(headers={**headers, **replay.headers}))
        answer = self._service.answer(asked)
        if answer.body.beginning and (held := connection_of(request)):
            held.hold_next()
        headers = {**answer.headers, **headers}
        return Response(answer.body, content_type=answer.media_type, headers=headers, direct_passthrough=True)

    def read(self, read_prompt: ReadPrompt) -> tuple[Prompt, ReplyFormat]:
        """Return the prompt of the request; raise Problem, also if the server is shutting down."""
        prompt, reply = read_prompt(request, self._settings)
        self.check_open()
        return apply_fallback_header(request, prompt), reply

    def replay(self, id: str) -> Response:
        """Send a recorded answer, or the rest of it."""
        resumption, name = self._find_resumption()
        return send_replay(resumption.read(request, id, name, writer_of(request, self._relays)))

    def stop(self, id: str) -> Response:
        """Stop a recorded answer."""
        resumption, name = self._find_resumption()
        resumption.stop(id, name)
        return Response(status=204)

    def replay_chat(self, id: str) -> Response:
        """Send the answer of a chat that its page has not received completely."""
        if not self._resumption:
            self.identify()
            return send_replay(NOTHING)
        resumption, name = self._find_resumption()
        return send_replay(resumption.read_chat(request, id, name, writer_of(request, self._relays)))

    def stop_chat(self, id: str) -> Response:
        """Stop the answer of a chat."""
        resumption, name = self._find_resumption()
        resumption.stop_chat(id, name)
        return Response(status=204)

    def _find_resumption(self) -> tuple[ChatResumption, str]:
        """Return what resumes answers here, and the client's name; raise Problem."""
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)
        if not self._resumption:
            raise Problem("not_found", advice_for(request.path))
        name = self.identify().name
        self.check_open()
        return self._resumption, name

    def greet(self) -> flask.Response:
        """Answer `/?q=` as /stream does; otherwise send the page, or help as text."""
        if "q" in request.args:
            return self.answer(preferred_dialect(request), read_query)
        return send_greeting()

    def drip(self) -> Response:
        """Stream paced chunks without a model: if they arrive all at once, a proxy on the way buffers."""
        if request.method == "HEAD":
            return Response()
        check_initiator(request.method, request.headers.get, self._settings.cors_origins)
        client = self.identify()
        self._service.limits.count(client)
        with ExitStack() as held:
            held.enter_context(self._service.slots.hold_slot(client.name))
            response = Response(drip())
            response.call_on_close(held.pop_all().close)
        return response

    def list_models(self) -> Response:
        """List the models that may be asked for by name."""
        client = self.identify()
        allowed = list(filter(client.may_ask, self._settings.known_models()))
        return send_json(models.list_models(allowed, self._settings.offline))

    def show_usage(self) -> Response:
        """Return what the client has used of its token budgets."""
        client = self.identify()
        return send_usage(client.name, self._service.limits.usage(client))

    def show_model(self, id: str) -> Response:
        """Describe a model that may be asked for by name."""
        if not (self.identify().may_ask(id) and self._settings.allows(id)):
            raise Problem("model_not_found")
        return send_json(models.describe_model(id, self._settings.offline))

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
        self.identify().check_operator()
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

    def identify(self) -> Client:
        """Return the client; raise Problem if it is not allowed."""
        return self._service.authentication.client_of(api_key_of(request), self._address())

    def read_answer(self, fields: Mapping[str, Any]) -> Iterator[list[Event]]:
        """Yield the events of the answer to a command; raise Problem."""
        yield from self._service.read_answer(text.read_fields(fields, self._settings))

    def _address(self) -> str:
        return address_of(request, self._settings.trusted_proxies)
