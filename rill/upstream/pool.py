"""The pool of connections to the upstream, over TLS or through a proxy, which keeps idle ones for the next request."""

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

# The idle connections that are kept; more would only hold descriptors.
KEPT_CONNECTIONS = 100
# How long a resolved address is used.
RESOLVED_SECONDS = 30.0
# How long a connect may take while other addresses are untried, and how long a failed address is tried last.
ADDRESS_SECONDS = 2.0
FAILED_SECONDS = 60.0

_poll = monkey.get_original("select", "poll")


class _KeptConnections:
    """Limits the idle connections, and knows which connections have served before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: WeakSet[Any] = WeakSet()

    def was_kept(self, connection: gevent.socket.socket) -> bool:
        """Return whether the connection has served before."""
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
        # An idle connection that is readable has been closed. The library uses select, which ends at descriptor 1,023.
        poll = _poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)


class _Dialer(ConnectionPool):
    """Connects to the first address that responds; one that does not, such as unrouted IPv6, delays only once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._resolved: list[Any] = []
        self._resolved_until = 0.0
        self._failed_until: dict[Any, float] = {}  # address -> monotonic, in seconds

    def _resolve(self) -> list[Any]:
        # gevent resolves in a thread, even a literal address; each return from it may wait 5 ms for the GIL.
        if time.monotonic() >= self._resolved_until:
            self._resolved = super()._resolve()
            self._resolved_until = time.monotonic() + RESOLVED_SECONDS
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
    """Return a pool of at most `connections` to the origin of `url`, through the http `proxy` if given."""
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
    # If the operator names root certificates, no others are trusted; else certifi's are added, for systems without any.
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    context: ssl.SSLContext = gevent.ssl.create_default_context(cafile=file, capath=folder)
    if not (file or folder):
        context.load_verify_locations(certifi.where())
    return context


def proxy_authorization(proxy: httpx2.URL) -> bytes:
    """Return the header line with the credentials for the proxy, b"" if it needs none."""
    if not proxy.username and not proxy.password:
        return b""
    return b"Proxy-Authorization: Basic %b\r\n" % b64encode(f"{proxy.username}:{proxy.password}".encode())
