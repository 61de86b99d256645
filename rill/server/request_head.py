"""The head of a request: read within limits of size and time, and checked for what proxies might parse differently."""

import re
from collections.abc import Callable
from typing import Any

import gevent
from gunicorn.http.errors import (
    InvalidHeader,
    InvalidRequestLine,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import Unreader

from rill.server.connection import ClientSocket

# Of all headers together; parsing more would delay other clients.
MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 100
MAX_REQUEST_LINE_BYTES = 8190
# All of the above, with the separators of names and values.
MAX_HEAD_BYTES = MAX_REQUEST_LINE_BYTES + MAX_HEADER_BYTES + 8 * MAX_HEADERS
READ_BYTES = 8192
BARE_LF = re.compile(rb"(?<!\r)\n")
# https://www.rfc-editor.org/rfc/rfc9112#section-3.2 and, for a Host, https://www.rfc-editor.org/rfc/rfc3986#section-3.2.2
TARGET = re.compile(r"/.*|\*|https?://([^/?#]+).*", re.IGNORECASE)
HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[\w.~!$&'()*+;=%-]{1,255})(?::([0-9]{0,5}))?", re.ASCII | re.IGNORECASE)
MAX_PORT = 65_535


class ClientRequest(Request):
    """A request that closes its connection if its body cannot be read: where the next request begins is unknown."""

    body: Any

    def should_close(self) -> bool:
        return bool(super().should_close() or self.body.failed)


class ClientRequestParser(RequestParser):
    """The parser of a connection's requests."""

    mesg_class = ClientRequest


def read_head(
    client: ClientSocket,
    unreader: Unreader,
    idle_seconds: float,
    head_seconds: float,
    check_load: Callable[[bytearray], None],
) -> bool:
    """Buffer the head of the next request in `unreader`; return False if the client closes instead.

    The head has to begin within `idle_seconds`, and to end within another `head_seconds`. Raise NoMoreData after that,
    ParseException for a head that is too long, and what `check_load` raises for the first bytes, before the client's
    turn. gunicorn alone would search the whole head again after each piece.
    """
    head = bytearray(unreader.take_buffered())
    if not head:
        with gevent.Timeout(idle_seconds, NoMoreData):
            head += client.receive(READ_BYTES)
    if head:
        check_load(head)
        client.take_turn()
    whole = bool(head) and (_is_whole(head, 0) or _read_rest(client, head, head_seconds))
    unreader.unread(head)
    return whole


def _read_rest(client: ClientSocket, head: bytearray, seconds: float) -> bool:
    with gevent.Timeout(seconds, NoMoreData):
        while piece := client.recv(READ_BYTES):
            seen = len(head)
            head += piece
            if _is_whole(head, seen):
                return True
    return False


def _is_whole(head: bytearray, seen: int) -> bool:
    """Return whether a head ends in these bytes, the first `seen` of which were searched before."""
    end = head.find(b"\r\n\r\n", max(0, seen - 3))
    if BARE_LF.search(head, seen, end if end >= 0 else len(head)):
        raise InvalidHeader("bare LF as line terminator")
    if end >= 0:
        return True
    if len(head) > MAX_REQUEST_LINE_BYTES and b"\r\n" not in head[2 : MAX_REQUEST_LINE_BYTES + 4]:
        raise LimitRequestLine(len(head), MAX_REQUEST_LINE_BYTES)
    if len(head) > MAX_HEAD_BYTES or head.count(b"\n") > MAX_HEADERS + 2:
        raise LimitRequestHeaders("the head of the request")
    return False


def check_head(req: Any) -> None:
    """Raise ParseException for what gunicorn accepts, but a proxy on the way may have parsed differently.

    https://www.rfc-editor.org/rfc/rfc9112#section-11.2
    """
    target = TARGET.fullmatch(req.uri)
    is_valid = target and (target[1] is None or _is_host(target[1]))
    # https://www.rfc-editor.org/rfc/rfc9112#section-3.2.4
    if not is_valid or (req.uri == "*" and req.method != "OPTIONS"):
        raise InvalidRequestLine("the request target")
    req.path = req.path or "/"  # The target may be http://host
    hosts = _values_of(req, "HOST")
    if not all(map(_is_host, hosts)) or (not hosts and req.version >= (1, 1)):
        raise InvalidHeader("HOST")
    if [coding.lower() for coding in _values_of(req, "TRANSFER-ENCODING")] not in ([], ["chunked"]):
        raise UnsupportedTransferCoding("TRANSFER-ENCODING")
    if sum(len(name) + len(value) for name, value in req.headers) > MAX_HEADER_BYTES:
        raise LimitRequestHeaders("all header lines together")
    if "close" in [option.strip(" \t").lower() for option in ",".join(_values_of(req, "CONNECTION")).split(",")]:
        req.force_close()


def check_expectation(req: Any, max_body_bytes: int) -> None:
    """Do not send `100 Continue` for a body that is too long: the client would send it before it reads the rejection.

    The application then answers 413, and the connection is closed, because the client may send the body or not.
    https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1
    """
    if req._expected_100_continue and any(int(each) > max_body_bytes for each in _values_of(req, "CONTENT-LENGTH")):
        req._expected_100_continue = False
        req.force_close()


def _values_of(req: Any, name: str) -> list[str]:
    return [value for each, value in req.headers if each == name]


def _is_host(authority: str) -> bool:
    """Return whether this is a host, with a valid port or none, and without user information."""
    host = HOST.fullmatch(authority)
    return host is not None and int(host[1] or 0) <= MAX_PORT
