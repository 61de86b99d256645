"""The gunicorn worker: it serves connections fairly, and drains before it stops."""

import logging
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
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
from gunicorn.workers.ggevent import GeventWorker

from rill.admission.auth import network_of
from rill.server import request_body
from rill.server.connection import ClientSocket
from rill.server.connections import Connections
from rill.server.overload import Overload, Overloaded
from rill.server.raw_response import TOO_MANY_CONNECTIONS, rejection_of
from rill.server.request_head import ClientRequestParser, check_expectation, check_head, read_head
from rill.server.turns import Turns
from rill.settings import read_settings
from rill.streaming.cancellation import Drain
from rill.telemetry.log_stream import keep_logs_from_blocking

log = logging.getLogger("rill")

# How long the head of a request may take; on a new connection its first byte too.
HEAD_SECONDS = 15.0
# How often the worker reports to the master that it is alive.
HEARTBEAT_SECONDS = 1.0
# How long cancelled answers have to report that to their clients.
END_SECONDS = 1.0
DRAIN_POLL_SECONDS = 0.05
# At least this much is discarded of what a client sends beyond a rejected request.
MIN_LINGER_BYTES = 1 << 20
# During a reload, a connection that is idle for this long is closed; one that is in use closes after its next response.
RELOAD_IDLE_SECONDS = 5.0
# The errors of a connection that its client closed.
DISCONNECTED = (EPIPE, ECONNRESET, ENOTCONN)


class Worker(GeventWorker):
    """gunicorn's gevent worker, which serves its own kind of connections, and drains before it stops.

    A draining worker accepts no connections. If its master continues to listen, because it reloads or reduces its
    workers, requests on open connections are served; if the whole server stops, they are rejected.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.draining = False

    def init_process(self) -> None:
        # gunicorn sets these handlers after loading; until then a worker would ignore the signals, as its master's do.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.handle_exit)
        settings = read_settings()
        self._drain_seconds = settings.shutdown_grace_seconds
        self._max_body = settings.max_body_bytes
        # A client that sends a body somewhat above the limit, and all of it before it reads, can still read why not.
        self._linger_bytes = max(MIN_LINGER_BYTES, 2 * self._max_body)
        self._cors_origins = settings.cors_origins
        # Behind proxies, all clients have a few addresses, so connections per address are not limited.
        self._limited = settings.trusted_proxies == 0
        super().init_process()

    def patch(self) -> None:
        # gevent warns because the master has patched some modules already (gunicorn.conf.py).
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
            super().patch()

    def run(self) -> None:
        """Serve until the worker is told to stop and has drained."""
        self._stopped = Event()
        self._turns = Turns()
        self._connections = Connections(Drain())
        # The application may be wrapped in another one.
        telemetry = getattr(self.wsgi, "extensions", {}).get("rill")
        self._overload = Overload(self._cors_origins, telemetry.count_rejection if telemetry else lambda problem: None)
        self._inodes = {f"socket:[{os.fstat(each.fileno()).st_ino}]" for each in self.sockets}
        self._servers = [self._listen(each) for each in self.sockets]
        while self.alive:
            self.notify()
            self._stopped.wait(HEARTBEAT_SECONDS)
        self._connections.close_all()

    def _listen(self, listener: Any) -> StreamServer:
        server = StreamServer(
            listener, partial(self.handle, listener.getsockname()), spawn=Pool(self.worker_connections)
        )
        if self.cfg.workers > 1:
            server.max_accept = 1  # Leave other connections to the other workers.
        server.start()
        return server

    def handle(self, listener: Any, accepted: Any, addr: Any) -> None:
        """Serve one connection to the address `listener` until it ends."""
        address = network_of(addr[0]) if self._limited and addr else None
        client = ClientSocket(accepted, self._turns, address)
        try:
            if not self._connections.add(client):
                client.sendall(TOO_MANY_CONNECTIONS)
                return
            self._serve(client, listener, addr)
        except StopIteration:
            pass
        except Overloaded as rejected:
            self._reject(client, rejected.response)
        except OSError as error:
            if error.errno not in DISCONNECTED and not isinstance(error, NoMoreData):
                self.log.exception("A connection failed")
        except BaseException as error:
            self.handle_error(None, client, addr, error)
        finally:
            self._connections.discard(client)
            client.close()

    def _serve(self, client: ClientSocket, name: Any, addr: Any) -> None:
        parser = ClientRequestParser(self.cfg, client, addr)
        idle_seconds = head_seconds = min(HEAD_SECONDS, self.cfg.keepalive)
        while read_head(client, parser.unreader, idle_seconds, head_seconds, self._check_load):
            request = next(parser)
            if not self.handle_request(name, request, client, addr):
                client.linger(self._linger_bytes)
                return
            idle_seconds = self.cfg.keepalive

    def _check_load(self, head: bytearray) -> None:
        """Raise Overloaded for a request that the worker has no time for."""
        if self._turns.overloaded and (response := self._overload.rejection(head)):
            raise Overloaded(response)

    def _reject(self, client: ClientSocket, response: bytes) -> None:
        with suppress(OSError):
            client.sendall(response)
            client.linger(self._linger_bytes)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        """Answer one request; return whether another one may follow."""
        check_head(req)
        check_expectation(req, self._max_body)
        request_body.bound_chunks(req.body)
        if self.draining:
            req.force_close()
            self._connections.drain.begun = not self._is_reload()
        self._connections.begin_request(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        except StopIteration:  # The response closes the connection.
            return False
        finally:
            self._connections.end_request(sock)
        # The connection stays open even if the worker drains by now: the response promised it.
        return request_body.finish(req.body)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that cannot be parsed or served; log only where that failed, and nothing of the request."""
        if isinstance(exc, Exception) and not isinstance(exc, ParseException):
            log.error("a request failed outside the application's own error handling", exc_info=exc)
        else:
            self.log.warning("A request could not be read: %s", type(exc).__name__)
        self._reject(client, rejection_of(exc))

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """Drain and stop (SIGTERM); a worker that does not serve yet stops at once."""
        if not self.booted:
            self.alive = False
        elif not self.draining:
            self.draining = True
            gevent.spawn(self._drain)

    handle_quit = handle_exit  # SIGINT, and SIGQUIT by which gunicorn passes it on.

    def _drain(self) -> None:
        """Stop accepting, let the answers that have readers finish, cancel the rest, and stop the worker."""
        for server in self._servers:
            self._stop_accepting(server)
        deadline = time.monotonic() + self._drain_seconds
        self._connections.drain.end_unread()
        self._wait_until(deadline)
        self._connections.drain.begun = True
        self._connections.drain.cancel_all()
        self._connections.close_idle()
        self._wait_until(time.monotonic() + END_SECONDS)
        self.alive = False
        self._stopped.set()

    def _wait_until(self, deadline: float) -> None:
        """Wait until no connection has or awaits a request, at most until the deadline."""
        fresh = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            reload = self._is_reload()
            self._connections.close_idle(RELOAD_IDLE_SECONDS if reload else 0.0)
            # A new connection may still send its request; if the whole server stops, only within END_SECONDS.
            waiting = self._connections if reload or time.monotonic() < fresh else self._connections.busy
            # The reader of a recorded answer may be at another worker.
            if not waiting and self._connections.drain.is_empty:
                return
            gevent.sleep(DRAIN_POLL_SECONDS)

    def _stop_accepting(self, server: StreamServer) -> None:
        """Close the listener; before that, accept what waits in the kernel, unless other workers will."""
        while not self._is_reload() and not server.full() and (accepted := server.do_read()):
            server.do_handle(*accepted)
        server.close()

    def _is_reload(self) -> bool:
        """Return whether the master continues to listen, so that other workers serve new connections."""
        try:
            descriptors = os.listdir(f"/proc/{self.ppid}/fd")
            return any(self._is_listener(f"/proc/{self.ppid}/fd/{number}") for number in descriptors)
        except OSError:
            return False

    def _is_listener(self, path: str) -> bool:
        try:
            return os.readlink(path) in self._inodes
        except OSError:  # It was closed meanwhile.
            return False


class Logger(GunicornLogger):
    """gunicorn's log, which never blocks the process and has no access lines.

    A platform may switch access lines on; they would contain the query, and so the prompt.
    """

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        keep_logs_from_blocking()
        for handler in self.error_log.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)

    def access(self, *arguments: Any) -> None:
        pass
