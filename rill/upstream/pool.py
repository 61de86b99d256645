"""The connections to the upstream: made over TLS or through a proxy, and kept for the next request."""

import os
import select
import socket
import ssl
import time
from base64 import b64encode
from typing import Any
from weakref import WeakSet

import certifi
import gevent
import gevent.ssl
import httpx2
from gevent import monkey
from geventhttpclient.connectionpool import ConnectionPool, SSLConnectionPool

# Idle connections kept for the next request; more would only hold descriptors.
KEPT_CONNECTIONS = 100
# How long the addresses of the upstream's name are used for.
RESOLVED_SECONDS = 30.0
# How long a connection may take while other addresses are left, and how long an address that failed is tried last.
ADDRESS_SECONDS = 2.0
FAILED_SECONDS = 60.0

_poll = monkey.get_original("select", "poll")


class _KeptConnections:
    """What both pools add to the library's: which connections have served before, and a bound to the idle ones."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: WeakSet[Any] = WeakSet()

    def was_kept(self, connection: gevent.socket.socket) -> bool:
        return connection in self._kept

    def after_connect(self, connection: gevent.socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def return_socket(self: Any, connection: gevent.socket.socket) -> None:
        if self._socket_queue.qsize() >= KEPT_CONNECTIONS:
            self.release_socket(connection)
        else:
            self._kept.add(connection)
            super().return_socket(connection)  # type: ignore[misc]

    def _is_socket_alive(self, sock: gevent.socket.socket | None) -> bool:
        # An idle connection that is readable has been closed. The library asks select, which ends at descriptor 1,023.
        poll = _poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)


class _Dialer(ConnectionPool):
    """Connect to the first address that answers: one that does not, such as IPv6 without a route, delays only once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._resolved: list[Any] = []
        self._resolved_until = 0.0
        self._failed_until: dict[Any, float] = {}  # address -> monotonic, in seconds

    def _resolve(self) -> list[Any]:
        # gevent resolves on a thread, also what is an address already; each return of it may take the GIL for 5 ms.
        if time.monotonic() >= self._resolved_until:
            self._resolved = super()._resolve()
            self._resolved_until = time.monotonic() + RESOLVED_SECONDS
            self._failed_until = {
                address: until for address, until in self._failed_until.items() if self._is_failed(address)
            }
        if not self._failed_until:
            return self._resolved
        return sorted(self._resolved, key=lambda found: self._is_failed(found[-1]))

    def _is_failed(self, address: Any) -> bool:
        return self._failed_until.get(address, 0.0) > time.monotonic()

    def _connect_socket(self, sock: gevent.socket.socket, address: Any) -> gevent.socket.socket:
        seconds = self.connection_timeout
        others = (found[-1] for found in self._resolved if found[-1] != address)
        if not all(map(self._is_failed, others)):
            sock.settimeout(min(ADDRESS_SECONDS, seconds))
        try:
            sock = super()._connect_socket(sock, address)
        except OSError:
            self._failed_until[address] = time.monotonic() + FAILED_SECONDS
            raise
        self._failed_until.pop(address, None)
        sock.settimeout(seconds)
        return sock


class _Pool(_KeptConnections, _Dialer):
    pass


class _TLSPool(_KeptConnections, SSLConnectionPool, _Dialer):
    pass


def open_pool(url: httpx2.URL, connections: int, proxy: httpx2.URL | None) -> Any:
    """A pool of at most `connections` to the origin of `url`, through the http `proxy` if given."""
    port = url.port or (443 if url.scheme == "https" else 80)
    via = (
        {"use_proxy": True, "proxy_user": proxy.username or None, "proxy_password": proxy.password or None}
        if proxy
        else {}
    )
    peer = (proxy.host, proxy.port or 80) if proxy else (url.host, port)
    if url.scheme == "https":
        return _TLSPool(*peer, url.host, port, size=connections, ssl_context_factory=_tls_context, **via)
    return _Pool(*peer, url.host, port, size=connections, **via)


def _tls_context(cafile: str | None = None) -> ssl.SSLContext:
    # Where an operator names the roots, no others are trusted; certifi's help where a system has none.
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    context: ssl.SSLContext = gevent.ssl.create_default_context(cafile=file, capath=folder)
    if not (file or folder):
        context.load_verify_locations(certifi.where())
    return context


def proxy_authorization(proxy: httpx2.URL) -> list[bytes]:
    """The header lines that tell the proxy who asks."""
    if not proxy.username and not proxy.password:
        return []
    return [b"Proxy-Authorization: Basic " + b64encode(f"{proxy.username}:{proxy.password}".encode())]
