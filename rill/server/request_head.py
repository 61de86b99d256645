"""The head of a request, as strict as it has to be: what is refused before the application, and in which words."""

import re
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidHeader,
    InvalidRequestLine,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.unreader import Unreader

from rill.server.connection import ClientSocket

# All header lines together: what a thousand of them would cost to understand, everybody else would wait for.
MOST_HEADER_BYTES = 65_536
MOST_HEADERS = 100
MOST_REQUEST_LINE_BYTES = 8190
# All of the above, with what separates names and values.
MOST_HEAD_BYTES = MOST_REQUEST_LINE_BYTES + MOST_HEADER_BYTES + 8 * MOST_HEADERS
READ_BYTES = 8192
BARE_LF = re.compile(rb"(?<!\r)\n")
# https://www.rfc-editor.org/rfc/rfc9112#section-3.2 and, for a Host, https://www.rfc-editor.org/rfc/rfc3986#section-3.2.2
TARGET = re.compile(r"/.*|\*|https?://([^/?#]+).*", re.IGNORECASE)
HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[\w.~!$&'()*+;=%-]{1,255})(?::([0-9]{0,5}))?", re.ASCII | re.IGNORECASE)
MAX_PORT = 65_535

# The first that fits counts.
STATUSES = {
    LimitRequestLine: "414 URI Too Long",
    ExpectationFailed: "417 Expectation Failed",
    LimitRequestHeaders: "431 Request Header Fields Too Large",
    UnsupportedTransferCoding: "501 Not Implemented",
    ParseException: "400 Bad Request",
}
HELP = {
    "400 Bad Request": (
        "This is no HTTP request that can be read. In a URL, percent-encode whatever is not plain ASCII "
        "(curl: --get --data-urlencode 'q=...'), or send the prompt as the body of a POST.\n"
    ),
    "414 URI Too Long": "The URL is too long: it may be of about 8,000 bytes. Send the prompt as the body of a POST.\n",
    "431 Request Header Fields Too Large": (
        "At most 100 headers of at most 8,190 bytes each are read, and 65,536 bytes in all.\n"
    ),
}


def read_head(client: ClientSocket, unreader: Unreader, idle_seconds: float, head_seconds: float) -> bool:
    """Buffer the head of the next request in `unreader`; return False where the client closes instead.

    The client may be silent for `idle_seconds`; then its head has `head_seconds`. Raise NoMoreData after that, and
    ParseException for a head that is too long. gunicorn alone would look at all of a head again for each piece of it.
    """
    head = bytearray(unreader.take_buffered())
    if head:
        client.take_turn()
    else:
        with gevent.Timeout(idle_seconds, NoMoreData):
            head += client.recv(READ_BYTES)
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
    """Return whether a head ends in these bytes, of which the first `seen` were looked at before."""
    end = head.find(b"\r\n\r\n", max(0, seen - 3))
    if BARE_LF.search(head, seen, end if end >= 0 else len(head)):
        raise InvalidHeader("bare LF as line terminator")
    if end >= 0:
        return True
    if len(head) > MOST_REQUEST_LINE_BYTES and b"\r\n" not in head[2 : MOST_REQUEST_LINE_BYTES + 4]:
        raise LimitRequestLine(len(head), MOST_REQUEST_LINE_BYTES)
    if len(head) > MOST_HEAD_BYTES or head.count(b"\n") > MOST_HEADERS + 2:
        raise LimitRequestHeaders("the head of the request")
    return False


def check_head(req: Any) -> None:
    """Refuses what gunicorn lets pass, but another reader of HTTP on the way may have understood otherwise.

    Raises gunicorn's ParseException. https://www.rfc-editor.org/rfc/rfc9112#section-11.2
    """
    _check_target(req)
    req.path = req.path or "/"  # That of http://host
    fields: dict[str, list[str]] = {}
    for name, value in req.headers:
        fields.setdefault(name, []).append(value)
    hosts = fields.get("HOST", [] if req.version >= (1, 1) else ["unsaid"])
    if len(hosts) != 1 or not _is_host(hosts[0]):
        raise InvalidHeader("HOST")
    if [coding.lower() for coding in fields.get("TRANSFER-ENCODING", ["chunked"])] != ["chunked"]:
        raise UnsupportedTransferCoding("TRANSFER-ENCODING")
    if sum(len(name) + len(value) for name, value in req.headers) > MOST_HEADER_BYTES:
        raise LimitRequestHeaders("all header lines together")
    if "close" in [option.strip(" \t").lower() for option in ",".join(fields.get("CONNECTION", [])).split(",")]:
        req.force_close()


def check_expectation(req: Any, most_body_bytes: int) -> None:
    """Send no `100 Continue` for a body that is too long: the client would send all of it before it learns that.

    The application then answers 413, and the connection is closed, since the client may send the body or leave it out.
    https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1
    """
    lengths = [value for name, value in req.headers if name == "CONTENT-LENGTH"]
    if req._expected_100_continue and lengths and int(lengths[0]) > most_body_bytes:
        req._expected_100_continue = False
        req.force_close()


def close_where_body_failed(req: Any) -> None:
    """Announce the close of a connection whose body cannot be read on: where the next request begins is unknown."""
    req.should_close = partial(_should_close, type(req).should_close, weakref.proxy(req))  # No reference cycle.


def _should_close(should_close: Callable[[Any], bool], req: Any) -> bool:
    return should_close(req) or bool(req.body.failed)


def _check_target(req: Any) -> None:
    target = TARGET.fullmatch(req.uri)
    if not target or (target[1] is not None and not _is_host(target[1])):
        raise InvalidRequestLine("the request target")
    # https://www.rfc-editor.org/rfc/rfc9112#section-3.2.4
    if req.uri == "*" and req.method != "OPTIONS":
        raise InvalidRequestLine("the request target")


def _is_host(authority: str) -> bool:
    """Whether this is a host with a port in its range, if any; user information is none of it."""
    host = HOST.fullmatch(authority)
    return host is not None and int(host[1] or 0) <= MAX_PORT


def rejection_of(error: BaseException) -> bytes:
    """The whole answer to what is no request that the application could answer."""
    statuses = (status for kind, status in STATUSES.items() if isinstance(error, kind))
    status = next(statuses, "500 Internal Server Error")
    words = HELP.get(status, f"{status[4:]}.\n").encode()
    head = (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Cache-Control: no-store, no-transform\r\nX-Content-Type-Options: nosniff\r\n"
    )
    return f"{head}Content-Length: {len(words)}\r\n\r\n".encode() + words
