"""The gunicorn worker: gevent's, which reads each request fairly, and drains before it stops."""

import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ECONNRESET, ENOTCONN, EPIPE
from functools import partial
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.workers.ggevent import GeventWorker

from rill.admission.auth import network_of
from rill.server import request_body as bodies
from rill.server.connection import ClientSocket
from rill.server.connections import Connections
from rill.server.request_head import check_expectation, check_head, close_where_body_failed, read_head, rejection_of
from rill.server.turns import Turns
from rill.settings import read_settings
from rill.streaming.cancellation import Drain
from rill.telemetry.log_stream import keep_logs_from_blocking

log = logging.getLogger("rill")

# Connections beyond the answers': those that are refused, health checks, idle keep-alive ones.
WAITING_CONNECTIONS = 1000
# Descriptors beyond the connections': kept ones to the upstream, listeners, logs, the loop's own.
RESERVED_DESCRIPTORS = 200
# How long the head of a request may take; on a new connection its first byte too.
HEAD_SECONDS = 15.0
# How often the master is told that this worker is alive.
HEARTBEAT_SECONDS = 1.0
# How long answers have to tell their clients that they were ended.
END_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.05
# While other workers go on, a connection this long idle is closed; on one that is used, the next response closes it.
RELOAD_IDLE_SECONDS = 5.0
# What a connection ends with whose client has gone.
GONE = (EPIPE, ECONNRESET, ENOTCONN)
TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Retry-After: 15\r\nContent-Length: 55\r\n\r\nThis address has too many open connections. Reuse one.\n"
)


def fit_open_files(streams: int) -> tuple[int, int]:
    """How many answers and how many connections fit, having raised the limit of descriptors for `streams` answers.

    An answer holds two descriptors, its client's and its upstream's; a client that is refused or idle holds one.
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
    """gunicorn's gevent worker with connections of its own, which drains before it stops.

    A worker that drains accepts no more. While its master goes on to listen, because it reloads or wants fewer workers,
    requests on open connections are served; once the whole server stops, they are rejected.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.draining = False

    def init_process(self) -> None:
        # gunicorn sets a worker's handlers only once it is loaded; until then they are its master's, and do nothing.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.handle_exit)
        settings = read_settings()
        self._drain_seconds = settings.shutdown_grace_seconds
        self._max_body = settings.max_body_bytes
        # Behind proxies, all clients come from a few addresses.
        self._limited = settings.trusted_proxies == 0
        super().init_process()

    def patch(self) -> None:
        # The master has patched what its modules need (gunicorn.conf.py); gevent warns of the rest.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
            super().patch()

    def run(self) -> None:
        """Serve until the worker is told to stop and has drained."""
        self._stopped = Event()
        self._turns = Turns()
        self._connections = Connections(Drain())
        self._inodes = {f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in self.sockets}
        self._servers = [self._listen(each) for each in self.sockets]
        while self.alive:
            self.notify()
            self._stopped.wait(HEARTBEAT_SECONDS)
        self._connections.hang_up_all()

    def _listen(self, listener: Any) -> StreamServer:
        server = StreamServer(
            listener, partial(self.handle, listener.getsockname()), spawn=Pool(self.worker_connections)
        )
        if self.cfg.workers > 1:
            server.max_accept = 1  # The others get their share.
        server.start()
        return server

    def handle(self, listener: Any, accepted: Any, addr: Any) -> None:
        """Serve one connection to the address `listener` until it ends."""
        address = network_of(addr[0]) if self._limited and addr else None
        client = ClientSocket(accepted, self._turns, address)
        try:
            if not self._connections.add(client):
                client.sendall(TOO_MANY)
                return
            with self._reporting(client, addr):
                self._serve(client, listener, addr)
        except OSError as error:
            if error.errno not in GONE and not isinstance(error, NoMoreData):
                self.log.exception("A connection failed")
        finally:
            self._connections.discard(client)
            client.close()

    @contextmanager
    def _reporting(self, client: ClientSocket, addr: Any) -> Iterator[None]:
        """Tell the client what was wrong with its request, unless it closed the connection."""
        try:
            yield
        except (StopIteration, OSError):
            raise
        except BaseException as error:
            self.handle_error(None, client, addr, error)

    def _serve(self, client: ClientSocket, name: Any, addr: Any) -> None:
        parser = RequestParser(self.cfg, client, addr)
        idle_seconds = head_seconds = min(HEAD_SECONDS, self.cfg.keepalive)
        while read_head(client, parser.unreader, idle_seconds, head_seconds):
            request = next(parser)
            if not self.handle_request(name, request, client, addr):
                client.linger()
                return
            idle_seconds = self.cfg.keepalive

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        """Answer one request; return whether another one may follow."""
        check_head(req)
        check_expectation(req, self._max_body)
        close_where_body_failed(req)
        bodies.bound_chunks(req.body)
        if self.draining:
            req.force_close()
            self._connections.drain.begun = not self._is_reload()
        self._connections.begin_request(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        except StopIteration:  # So gunicorn is told to close a connection.
            bodies.finish(req.body)
            return False
        finally:
            self._connections.end_request(sock)
        # A response that was begun before the drain has promised that the connection stays open.
        return bodies.finish(req.body)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that cannot be parsed, or that the application failed on; log no word of it, only where."""
        if isinstance(exc, Exception) and not isinstance(exc, ParseException):
            log.error("a request failed outside the application's own error handling", exc_info=exc)
        else:
            self.log.warning("A request could not be read: %s", type(exc).__name__)
        with suppress(OSError):
            client.sendall(rejection_of(exc))
            client.linger()

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """SIGTERM: drain, then stop; a worker that does not serve yet just stops."""
        if not self.booted:
            self.alive = False
        elif not self.draining:
            self.draining = True
            gevent.spawn(self._drain)

    handle_quit = handle_exit  # SIGINT, and what gunicorn makes of it.

    def _drain(self) -> None:
        """Stop accepting, let the answers finish, end the rest, and stop the worker."""
        for server in self._servers:
            self._stop_accepting(server)
        deadline = time.monotonic() + self._drain_seconds
        self._wait_until(deadline)
        self._connections.drain.begun = True
        self._connections.drain.cancel_all()
        self._connections.hang_up_idle()
        self._wait_until(time.monotonic() + END_SECONDS)
        self.alive = False
        self._stopped.set()

    def _wait_until(self, deadline: float) -> None:
        """Wait until no connection has or awaits a request, at most until the deadline."""
        fresh = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            reload = self._is_reload()
            self._connections.hang_up_idle(RELOAD_IDLE_SECONDS if reload else 0.0)
            # A connection that has sent no request yet may send one; when the whole server stops, only for a moment.
            if not (self._connections if reload or time.monotonic() < fresh else self._connections.busy):
                return
            gevent.sleep(DRAIN_LOOK_SECONDS)

    def _stop_accepting(self, server: StreamServer) -> None:
        """Close the listener; connections that only the kernel has accepted are taken in before, unless others do."""
        while not self._is_reload() and not server.full() and (accepted := server.do_read()):
            server.do_handle(*accepted)
        server.close()

    def _is_reload(self) -> bool:
        """Return whether the master goes on to listen, so that other workers serve new connections."""
        try:
            descriptors = os.listdir(f"/proc/{self.ppid}/fd")
            return any(self._is_listener(f"/proc/{self.ppid}/fd/{number}") for number in descriptors)
        except OSError:
            return False

    def _is_listener(self, path: str) -> bool:
        try:
            return os.readlink(path) in self._inodes
        except OSError:  # Closed meanwhile.
            return False


class Logger(GunicornLogger):
    """gunicorn's log, which never blocks the process, and without access lines.

    A platform may force access lines; they hold the query, and so the prompt.
    """

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        keep_logs_from_blocking()
        for handler in self.error_log.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)

    def access(self, *arguments: Any) -> None:
        pass
