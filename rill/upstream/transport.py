"""The HTTP client under the SDK: an httpx2 transport on gevent's own sockets.

The SDK's requests come in; out goes an httpx2.Response once its headers are in, with a Body (see `body_of`).
"""

import time
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import gevent
import httpx2

from rill.upstream.body import Body
from rill.upstream.pool import open_pool, proxy_authorization


class Unanswered(httpx2.RemoteProtocolError):
    """The connection closed before a byte of the response, `seconds` after the request was written.

    `kept`: it had served before, so that the upstream may have closed it already.
    """

    def __init__(self, seconds: float, kept: bool) -> None:
        super().__init__("The upstream closed the connection without a response.")
        self.seconds = seconds
        self.kept = kept


class GeventTransport(httpx2.BaseTransport):
    """Sends requests to the one origin of `url`, at most `connections` at once, through an http `proxy` if given."""

    def __init__(self, url: httpx2.URL, connections: int, proxy: httpx2.URL | None = None) -> None:
        self._pool = open_pool(url, connections, proxy)
        gevent.socket.getaddrinfo("127.0.0.1", 0)  # Load gevent's resolver now; the first request would wait 4 ms.
        # A proxy gets requests with the whole URL, unless they go through a tunnel to a TLS upstream.
        self._origin, self._proxy_head = b"", b""
        if proxy is not None and url.scheme == "http":
            self._origin, self._proxy_head = b"http://" + url.netloc, proxy_authorization(proxy)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request, once, and return when the response's headers are in; raise httpx2.TransportError."""
        head = b"".join(header_line(name.decode("latin-1"), value) for name, value in request.headers.raw)
        method, timeouts = request.method.encode("ascii"), request.extensions["timeout"]
        return self.send(method, request.url.raw_path, head, request.read(), timeouts)

    def send(
        self, method: bytes, path: bytes, head: bytes, content: bytes, timeouts: dict[str, float]
    ) -> httpx2.Response:
        """Send one request, whose header lines are in `head`; otherwise as `handle_request`."""
        message = b"%b %b%b HTTP/1.1\r\n%b%b\r\n%b" % (method, self._origin, path, head, self._proxy_head, content)
        body = self._exchange(self._connect(timeouts), message, timeouts)
        response = httpx2.Response(body.status, headers=body.headers, stream=body, extensions={"rill.body": body})
        response.encoding = "utf-8"  # JSON is always UTF-8; the upstream may name an unknown charset.
        return response

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _connect(self, timeouts: dict[str, float]) -> gevent.socket.socket:
        self._pool.connection_timeout = timeouts["connect"]
        # The outer timeout covers what has none of its own: the wait for a free connection, and the name's resolution.
        seconds = timeouts["pool"] + timeouts["connect"]
        try:
            with gevent.Timeout(seconds, httpx2.PoolTimeout("No connection was free in time.")):
                connection: gevent.socket.socket = self._pool.get_socket()
                return connection
        except TimeoutError as error:
            raise httpx2.ConnectTimeout("The connection was not made in time.") from error
        except (OSError, RuntimeError) as error:
            raise httpx2.ConnectError(str(error)) from error

    def _exchange(self, connection: gevent.socket.socket, message: bytes, timeouts: dict[str, float]) -> Body:
        kept = self._pool.was_kept(connection)
        try:
            _write(connection, message, timeouts["write"])
        except BaseException:
            self._pool.release_socket(connection)
            raise
        written = time.monotonic()
        body = Body(connection, self._pool, timeouts["read"])
        try:
            if not body.read_head():
                raise Unanswered(time.monotonic() - written, kept)
        except BaseException:
            body.close()
            raise
        return body


def header_line(name: str, value: str | bytes) -> bytes:
    """Return a header as it is sent; raise httpx2.LocalProtocolError for a value that would end the line."""
    encoded = value.encode("latin-1") if isinstance(value, str) else value
    if b"\r" in encoded or b"\n" in encoded or b"\0" in encoded:
        raise httpx2.LocalProtocolError("A header contains a line end or NUL.")
    return b"%b: %b\r\n" % (name.encode("ascii"), encoded)


def _write(connection: gevent.socket.socket, message: bytes, seconds: float) -> None:
    connection.settimeout(seconds)
    try:
        connection.sendall(message)
    except TimeoutError as error:
        raise httpx2.WriteTimeout("The request was not accepted in time.") from error
    except ConnectionError:
        pass  # The upstream may have rejected the request early; the read finds its response, or what failed.
    except OSError as error:
        raise httpx2.WriteError(str(error)) from error


class UpstreamClient(httpx2.Client):
    """The SDK's HTTP client over a transport; it ignores the environment, and the upstream's cookies."""

    def __init__(self, transport: httpx2.BaseTransport, **options: Any) -> None:
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        super().__init__(transport=transport, trust_env=False, cookies=no_cookies, **options)
