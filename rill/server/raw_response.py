"""Responses to requests that never reach the application, as the bytes on the wire."""

from collections.abc import Mapping

from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)

# The first class that matches the error counts.
STATUSES = {
    LimitRequestLine: "414 URI Too Long",
    ExpectationFailed: "417 Expectation Failed",
    LimitRequestHeaders: "431 Request Header Fields Too Large",
    UnsupportedTransferCoding: "501 Not Implemented",
    ParseException: "400 Bad Request",
}
MESSAGES = {
    "400 Bad Request": (
        "This is not a valid HTTP request. In a URL, percent-encode everything that is not plain ASCII "
        "(curl: --get --data-urlencode 'q=...'), or send the prompt as the body of a POST."
    ),
    "414 URI Too Long": "The URL is too long: at most about 8,000 bytes. Send the prompt as the body of a POST.",
    "431 Request Header Fields Too Large": "Send at most 100 headers, of at most 8,190 bytes each and 65,536 in total.",
}


def rejection_of(error: BaseException) -> bytes:
    """Return the response to a request that could not be parsed or served."""
    statuses = (status for kind, status in STATUSES.items() if isinstance(error, kind))
    status = next(statuses, "500 Internal Server Error")
    return raw_response(status, f"{MESSAGES.get(status, f'{status[4:]}.')}\n".encode())


def raw_response(status: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole response, in plain text by default, after which the connection is closed."""
    fields = {
        "Connection": "close",
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": "no-store, no-transform",
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
        "Content-Length": str(len(body)),
    }
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


TOO_MANY_CONNECTIONS = raw_response(
    "429 Too Many Requests", b"This address has too many open connections. Reuse one.\n", {"Retry-After": "15"}
)
