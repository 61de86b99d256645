"""The HTTP client under the SDK: an httpx2 transport on gevent's own sockets.

The SDK's requests come in; out goes an httpx2.Response whose body (see `body_of`) is read, nudged and closed at any
moment with nothing leaked. geventhttpclient lends its pool and its parser in C; a read costs one wait and one recv.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol
from urllib.request import getproxies, proxy_bypass

import gevent
import httpx2
from gevent.queue import Queue
from geventhttpclient.connectionpool import ConnectionPool
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketPoolResponse

from rill.upstream.pool import open_pool, proxy_authorization

READ_BYTES = 65536


class Unanswered(httpx2.RemoteProtocolError):
    """The connection closed before a byte of the response, `seconds` after the request was written.

    `kept`: it had served before, so that the upstream may have closed it already.
    """

    def __init__(self, seconds: float, kept: bool) -> None:
        super().__init__("The upstream closed the connection without a response.")
        self.seconds = seconds
        self.kept = kept


_READY, _NUDGED, _EXPIRED = object(), object(), object()


class Body(Protocol):
    """The body of a response, for one reader."""

    def read(self) -> bytes | None:
        """The next bytes; b"" where the reader was nudged; None at the body's end. Raises httpx2.TransportError."""

    def nudge(self) -> None:
        """Wakes a read that waits; called from the hub."""

    def close(self) -> None:
        """Frees the connection: kept for the next request if the body was read to its end, else closed."""


def body_of(response: httpx2.Response) -> Body:
    """The body of a response to be streamed, whichever transport it came through."""
    body: Body | None = response.extensions.get("rill.body")
    return body or _PumpedBody(response)


def proxy_of_environment(url: httpx2.URL) -> httpx2.URL | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names for `url`, unless NO_PROXY excepts it."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    return httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")


class GeventTransport(httpx2.BaseTransport):
    """Sends requests to the one origin of `url`, at most `connections` at once, through an http `proxy` if given."""

    def __init__(self, url: httpx2.URL, connections: int, proxy: httpx2.URL | None = None) -> None:
        self._pool = open_pool(url, connections, proxy)
        gevent.socket.getaddrinfo("127.0.0.1", 0)  # Loads gevent's resolver, 4 ms that the first client would wait.
        self._proxy_headers: list[bytes] | None = None
        if proxy is not None and url.scheme == "http":
            self._proxy_headers = proxy_authorization(proxy)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request, once, and return when the response's headers are in; raise httpx2.TransportError."""
        message = self._serialize(request)
        timeouts = request.extensions["timeout"]
        body = self._exchange(self._connect(timeouts), message, timeouts)
        return httpx2.Response(
            body.get_code(),
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in body.items()],
            stream=_Stream(body),
            extensions={"rill.body": body},
        )

    def close(self) -> None:
        self._pool.close()

    def _serialize(self, request: httpx2.Request) -> bytes:
        through_proxy = self._proxy_headers is not None
        target = str(request.url).encode("ascii") if through_proxy else request.url.raw_path
        lines = [request.method.encode("ascii") + b" " + target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in request.headers.raw]
        lines += self._proxy_headers or []
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1 or b"\0" in head:
            raise httpx2.LocalProtocolError("A header holds a line end or NUL.")
        return head + request.read()

    def _connect(self, timeouts: dict[str, float]) -> gevent.socket.socket:
        self._pool.connection_timeout = timeouts["connect"]
        # The outer bound is for what has none of its own: the wait for a free place, and the name's resolution.
        bound = timeouts["pool"] + timeouts["connect"]
        try:
            with gevent.Timeout(bound, httpx2.PoolTimeout("No connection was to be had in time.")):
                connection: gevent.socket.socket = self._pool.get_socket()
                return connection
        except TimeoutError as error:
            raise httpx2.ConnectTimeout("The connection was not made in time.") from error
        except (OSError, RuntimeError) as error:
            raise httpx2.ConnectError(str(error)) from error

    def _exchange(self, connection: gevent.socket.socket, message: bytes, timeouts: dict[str, float]) -> "_Body":
        kept = self._pool.was_kept(connection)
        try:
            connection.settimeout(timeouts["write"])
            connection.sendall(message)
        except TimeoutError as error:
            self._pool.release_socket(connection)
            raise httpx2.WriteTimeout("The request was not taken in time.") from error
        except ConnectionError:
            pass  # An early refusal may stand behind it, which the read below finds; else the read says what broke.
        except OSError as error:
            self._pool.release_socket(connection)
            raise httpx2.WriteError(str(error)) from error
        except BaseException:
            self._pool.release_socket(connection)
            raise
        connection.settimeout(timeouts["read"])
        written = time.monotonic()
        try:
            return _Body(connection, self._pool, timeouts["read"])
        except HTTPConnectionClosed as error:
            raise Unanswered(time.monotonic() - written, kept) from error
        except (HTTPParseError, OSError) as error:
            raise _httpx2_error(error) from error


class UpstreamClient(httpx2.Client):
    """What the SDK needs of an httpx2 client, and no more: its requests and the responses go through untouched.

    httpx2's own looks after cookies, redirects, credentials and hooks for 80 µs a request, and there are none here.
    """

    def __init__(self, transport: httpx2.BaseTransport, **options: Any) -> None:
        super().__init__(transport=transport, trust_env=False, **options)
        self._handle = transport.handle_request

    def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
        extensions = {"timeout": httpx2.Timeout(options.pop("timeout", self.timeout)).as_dict()}
        return httpx2.Request(method, url, **{**options, "extensions": extensions})

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        response = self._handle(request)
        response.request = request
        response.encoding = "utf-8"  # As JSON always is; a charset that the upstream names may be none.
        if not stream:
            response.read()
        return response


class _Stream(httpx2.SyncByteStream):
    """The body as httpx2 reads it whole: so the SDK takes the body of an error."""

    def __init__(self, body: "_Body") -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        while (data := self._body.read()) is not None:
            yield data

    def close(self) -> None:
        self._body.close()


class _Body(HTTPSocketPoolResponse):
    """One response on one connection, made once its headers are in; `read_seconds` bounds each wait for bytes."""

    _sock: Any

    def __init__(self, connection: gevent.socket.socket, pool: ConnectionPool, read_seconds: float) -> None:
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(connection.fileno(), 1)
        self._timer: Any = None
        self._waiting: Any = None  # the greenlet that waits for bytes
        self._since = 0.0  # when its wait began: monotonic, in seconds
        self._read_seconds = read_seconds
        self._final = False
        super().__init__(connection, pool=pool, block_size=READ_BYTES, method="POST")

    def read(self) -> bytes | None:  # type: ignore[override]
        while not self._body_buffer:
            if self.message_complete:
                return None
            # To wait first saves a recv that would fail with EAGAIN, and only this wait can be nudged. (OpenSSL may
            # hold back the rest of a record where no watcher sees it.)
            if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
                woken = self._wait()
                if woken is _NUDGED:
                    return b""
                if woken is _EXPIRED:
                    raise httpx2.ReadTimeout("The upstream was silent for too long.")
            try:
                self._receive()
            except (HTTPParseError, OSError) as error:
                raise _httpx2_error(error) from error
        data = bytes(self._body_buffer)
        self._body_buffer.clear()
        return data

    def nudge(self) -> None:
        self._wake(_NUDGED)

    def close(self) -> None:
        self.release()

    def release(self) -> None:
        if self._timer is not None:
            self._timer.close()
        self._watcher.close()
        super().release()

    def _receive(self) -> None:
        data = self._sock.recv(READ_BYTES)
        self.feed(data)
        if data and isinstance(self._sock, ssl.SSLSocket):
            self._receive_records()
        if self.message_complete:
            self.release()
        elif not data:
            raise HTTPConnectionClosed("The connection was closed in mid-body.")

    def _receive_records(self) -> None:
        """Feeds what came behind: OpenSSL reads one record at a time, and a token is mostly a record of its own."""
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            while not self.message_complete and len(self._body_buffer) < READ_BYTES:
                data = self._sock.recv(READ_BYTES)
                if not data:
                    break
                self.feed(data)
        except OSError:
            pass  # Nothing more has come; what else it may be, the next read meets again, behind what is fed.
        finally:
            self._sock.settimeout(timeout)

    def _on_message_begin(self) -> None:
        if self._final:
            raise HTTPParseError("Bytes came behind the answer.")
        super()._on_message_begin()

    def _on_message_complete(self) -> None:
        # The library would give the connection back at once: also after an interim response, whose final one comes on
        # it, and with bytes behind the answer that are still to be parsed.
        self.message_complete = True
        self._final = self.get_code() >= 200

    def _wait(self) -> object:
        self._waiting = gevent.getcurrent()
        self._since = time.monotonic()
        if self._timer is None:
            self._set_timer(self._read_seconds)
        self._watcher.start(self._waiting.switch, _READY)
        try:
            return self._hub.switch()
        finally:
            self._waiting = None
            self._watcher.stop()

    def _wake(self, why: object) -> None:
        if self._waiting:
            self._waiting.switch(why)

    def _set_timer(self, seconds: float) -> None:
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._look_at_time)

    def _look_at_time(self) -> None:
        # One look in `read_seconds`: to set a timer anew for every wait would cost each token. Where nobody waits
        # none is set, so that it keeps no body alive that was dropped unread.
        self._timer.close()
        self._timer = None
        left = self._since + self._read_seconds - time.monotonic()
        if self._waiting and left > 0:
            self._set_timer(left)
        else:
            self._wake(_EXPIRED)


class _PumpedBody:
    """The body of a response of the SDK's own transport, read by a greenlet of its own.

    httpcore2 loses a connection for ever when an exception is thrown into it, so the pump is never interrupted: to
    close is to shut its socket down, and to let it run into that.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._chunks: Queue[bytes | Exception | None] = Queue(1)
        self._closed = self._ended = False
        self._pump = gevent.spawn(self._run)

    def read(self) -> bytes | None:
        if self._ended:
            return None
        chunk = self._chunks.get()
        self._ended = chunk is None or isinstance(chunk, Exception)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def nudge(self) -> None:
        if self._chunks.empty():
            self._chunks.put_nowait(b"")

    def close(self) -> None:
        self._closed = True
        if not self._pump.ready():
            # Once the response is closed, its connection may carry another answer.
            if not self._response.is_closed:
                stream = self._response.extensions.get("network_stream")
                connection = stream.get_extra_info("socket") if stream else None
                with suppress(OSError):
                    if connection is not None:
                        connection.shutdown(socket.SHUT_RDWR)
            while not self._chunks.empty():
                self._chunks.get_nowait()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            for chunk in self._response.iter_raw():
                if self._closed:
                    return
                self._chunks.put(chunk)
        except Exception as error:
            last = error
        finally:
            self._response.close()
        if not self._closed:
            self._chunks.put(last)


def _httpx2_error(error: Exception) -> httpx2.TransportError:
    if isinstance(error, TimeoutError):
        return httpx2.ReadTimeout("The upstream was silent for too long.")
    if isinstance(error, HTTPParseError):
        return httpx2.RemoteProtocolError(str(error) or "The upstream broke the protocol.")
    return httpx2.ReadError(str(error))
