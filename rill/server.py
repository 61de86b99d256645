"""The gunicorn worker: gevent's, which counts what it can hold, looks at each request's head, and drains at its end."""

import os
import resource
import signal
import socket
import time
from contextlib import suppress
from typing import Any

import gevent
from gevent.socket import socket as GeventSocket
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.workers.ggevent import GeventWorker

from rill.client import ClientSocket
from rill.heads import check_head, refusal_of

# What the kernel may hold for a caller that does not read; Linux doubles it.
SEND_BUFFER_BYTES = 65536 // 2
# Connections beyond the answers': those that are refused, health checks, idle keep-alive ones.
WAITING_CONNECTIONS = 1000
# Descriptors beyond the connections': kept ones to the upstream, listeners, logs, the loop's own.
RESERVED_DESCRIPTORS = 200
# How long answers have to tell their callers that they were ended.
END_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.05


def places_for(streams: int) -> tuple[int, int]:
    """How many answers and how many connections fit, having raised the limit of descriptors for `streams` answers.

    An answer holds two descriptors, its caller's and its upstream's; a caller that is refused or idle holds one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * streams + WAITING_CONNECTIONS + RESERVED_DESCRIPTORS
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit >= wanted:
        return streams, streams + WAITING_CONNECTIONS
    usable = max(5, limit - RESERVED_DESCRIPTORS)
    return 2 * usable // 5, 3 * usable // 5


class Worker(GeventWorker):
    """gunicorn's gevent worker, which drains before it stops: new callers are refused, and open answers may finish.

    The application's `extensions["drain"]` knows the open answers.
    """

    wsgi: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connections: set[Any] = set()
        self.idle: set[Any] = set()
        self.busy: set[Any] = set()
        self.draining = False

    def init_process(self) -> None:
        # gunicorn sets a worker's handlers only once it is loaded; until then they are its master's, and do nothing.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.handle_exit)
        super().init_process()

    def run(self) -> None:
        for listener in self.sockets:
            # Accepted connections inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().run()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if type(client) is GeventSocket:
            client = ClientSocket(client)
        self.connections.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self.connections.discard(client)
            self.idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        check_head(req)
        self.idle.discard(sock)
        if self.draining:
            req.force_close()
        self.busy.add(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self.busy.discard(sock)
        if self.draining:
            raise StopIteration  # So gunicorn is told to close a connection.
        self.idle.add(sock)
        self._read_rest(req)
        return True

    def _read_rest(self, req: Any) -> None:
        """Reads what the application left of the body; broken chunks in it close the connection, without a word.

        gunicorn would do it as it reads the next request, and answer what is broken as if it were one.
        """
        with gevent.Timeout(self.cfg.keepalive, NoMoreData()), suppress(ParseException):
            while not req.body.failed and req.body.read(65536):
                pass
        if req.body.failed:
            raise StopIteration

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers what is no request that the application could answer; the log gets no word of it, only its kind."""
        self.log.warning("A request could not be read: %s", type(exc).__name__)
        with suppress(OSError):
            client.sendall(refusal_of(exc))

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """SIGTERM: drains, then lets gunicorn stop the worker; one that has not begun to serve just stops."""
        if not self.booted:
            self.alive = False
        elif not self.draining:
            self.draining = True
            gevent.spawn(self._drain)

    handle_quit = handle_exit  # SIGINT, and what gunicorn makes of it.

    def _drain(self) -> None:
        drain = self.wsgi.extensions["drain"]
        drain.begun = True
        hang_up(self.idle)
        deadline = time.monotonic() + self.wsgi.config["DRAIN_SECONDS"]
        while self.busy and time.monotonic() < deadline:
            gevent.sleep(DRAIN_LOOK_SECONDS)
        drain.end_all()
        deadline = time.monotonic() + END_SECONDS
        while self.busy and time.monotonic() < deadline:
            gevent.sleep(DRAIN_LOOK_SECONDS)
        hang_up(self.connections)
        self.alive = False


def hang_up(connections: set[Any]) -> None:
    """Ends each connection as if its caller had left: who waits for a request finds the end, and closes."""
    for connection in tuple(connections):
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


class Logger(GunicornLogger):
    """gunicorn's log without its access lines, which a platform may force: they hold the query, and so the prompt."""

    def access(self, *arguments: Any) -> None:
        pass
