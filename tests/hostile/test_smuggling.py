"""Ambiguous requests are rejected, and nothing after them is read.

A proxy in front decides by itself where a request ends; if Rill decided differently, one client's bytes would become
another's request. https://www.rfc-editor.org/rfc/rfc9112#section-11.2
"""

import pytest
from conversation import request_bytes
from raw import exchange, prompts, send_and_half_close
from server import Rill, StartRill
from upstream import Upstream
from vectors import ACCEPTED, CLOSED, HIDDEN, REJECTED, chunks

REJECTION_STATUSES = {400, 414, 417, 431, 501, 505}


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return a server that accepts any valid Host."""
    return share_rill(RILL_ALLOWED_HOSTS="*")


@pytest.mark.parametrize("name", REJECTED)
def test_an_ambiguous_request_is_rejected_and_nothing_after_it_is_read(
    rill: Rill, upstream: Upstream, name: str
) -> None:
    received = exchange(rill.port, REJECTED[name])
    assert len(received.statuses) == 1
    assert received.statuses[0] in REJECTION_STATUSES
    assert b"<" not in received.data
    assert b"smuggled" not in received.data
    assert not received.in_sync
    assert upstream.requests == []


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unambiguous_request_is_answered_and_the_next_request_begins_where_it_ends(
    rill: Rill, upstream: Upstream, name: str
) -> None:
    data, expected = ACCEPTED[name]
    received = exchange(rill.port, data)
    assert received.in_sync
    assert received.statuses[-1] == 200
    assert prompts(upstream) == expected


@pytest.mark.parametrize("name", CLOSED)
def test_nothing_after_a_request_that_closes_its_connection_is_read(rill: Rill, upstream: Upstream, name: str) -> None:
    received = exchange(rill.port, CLOSED[name] + HIDDEN)
    assert len(received.statuses) == 1
    assert not received.in_sync
    assert upstream.requests == []


# Also if the body is not read: wrong method, no route, or a view without a body.
UNREAD = {
    "GET /stream?q=first": (200, ["first"]),
    "GET /healthz": (200, []),
    "HEAD /stream?q=first": (200, []),
    "OPTIONS /stream": (200, []),
    "POST /healthz": (405, []),
    "PUT /stream": (405, []),
    "TRACE /stream?q=first": (405, []),
    "POST /nowhere": (404, []),
}
BODIES = {
    "length": b"Content-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN),
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN),
}


@pytest.mark.parametrize("framing", BODIES)
@pytest.mark.parametrize("line", UNREAD)
def test_a_request_inside_an_unread_body_is_never_processed(
    rill: Rill, upstream: Upstream, line: str, framing: str
) -> None:
    status, expected = UNREAD[line]
    received = exchange(rill.port, f"{line} HTTP/1.1\r\nHost: x\r\n".encode() + BODIES[framing])
    assert (received.statuses, received.in_sync) == ([status, 200], True)
    assert prompts(upstream) == expected


@pytest.mark.parametrize("line", UNREAD)
def test_a_malformed_unread_body_gets_no_second_response(rill: Rill, upstream: Upstream, line: str) -> None:
    status, expected = UNREAD[line]
    broken = b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + HIDDEN
    received = exchange(rill.port, f"{line} HTTP/1.1\r\nHost: x\r\n".encode() + broken)
    assert (received.statuses, received.in_sync) == ([status], False)
    assert prompts(upstream) == expected


HUGE = {
    "64 bits and one": b"1" + b"0" * 15 + b"5",
    "as great as 64 bits": b"F" * 16,
    "more than 64 bits": b"1" + b"0" * 16 + b"5",
    "128 bits": b"F" * 32,
    "8,000 digits": b"F" * 8000,
}


@pytest.mark.parametrize("size", HUGE)
def test_a_huge_chunk_size_never_overflows(rill: Rill, upstream: Upstream, size: str) -> None:
    received = send_and_half_close(rill.port, chunks(HUGE[size] + b"\r\nhello\r\n0\r\n\r\n"))
    assert received.statuses in ([], [400], [413])
    assert upstream.requests == []


@pytest.mark.parametrize("length", [b"9" * 30, b"1" + b"0" * 4298, b"18446744073709551621"])
def test_a_huge_content_length_never_overflows(rill: Rill, upstream: Upstream, length: bytes) -> None:
    head = b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\nhello"
    received = send_and_half_close(rill.port, head + HIDDEN)
    assert received.statuses == [413]
    assert upstream.requests == []


def without_colons(value: str) -> str:
    """Return an id that pytest-xdist does not mistake for a module path."""
    return value.replace("::", "..")


GOOD_HOSTS = [
    "x",
    "X.example.",
    "127.0.0.1:8000",
    "[::1]",
    "[2001:db8::7]:443",
    "a_b.internal:80",
    "x:",
    "xn--fsq.example",
]


@pytest.mark.parametrize("host", GOOD_HOSTS, ids=without_colons)
def test_any_single_valid_host_is_answered(rill: Rill, upstream: Upstream, host: str) -> None:
    received = exchange(rill.port, request_bytes("GET", "/stream?q=first", {"Host": host}))
    assert (received.statuses, received.in_sync, prompts(upstream)) == ([200, 200], True, ["first"])


def test_http_1_0_needs_no_host(rill: Rill, upstream: Upstream) -> None:
    received = exchange(rill.port, b"GET /stream?q=first HTTP/1.0\r\n\r\n")
    assert (received.statuses, prompts(upstream)) == ([200], ["first"])


ABSOLUTE = ["http://x/stream", "http://y/stream", "https://y:9/stream", "HTTP://X/stream", "http://[::1]:80/stream"]


@pytest.mark.parametrize("target", ABSOLUTE, ids=without_colons)
def test_an_absolute_target_has_the_same_route_whatever_its_host(rill: Rill, upstream: Upstream, target: str) -> None:
    received = exchange(rill.port, request_bytes("GET", f"{target}?q=first", {"Host": "x"}))
    assert (received.statuses, received.in_sync, prompts(upstream)) == ([200, 200], True, ["first"])
    assert b"http" not in received.data.lower().replace(b"http/1.1", b"")


@pytest.mark.parametrize("target", ["http://x", "http://x?other=first", "http://x/"])
def test_a_target_without_a_path_is_the_front_page_and_not_a_redirect(
    rill: Rill, upstream: Upstream, target: str
) -> None:
    received = exchange(rill.port, request_bytes("GET", target, {"Host": "y"}))
    assert (received.statuses, received.in_sync) == ([200, 200], True)
    assert b"Location" not in received.data
    assert upstream.requests == []


# A decoded path is compared byte for byte, so path rules of a proxy in front cannot be bypassed.
OTHER_PATHS = [
    "/stream/",
    "/stream%2f",
    "/stream%00",
    "/stream;x",
    "/./stream",
    "/x/../stream",
    "/%2e/stream",
    "/Stream",
]


@pytest.mark.parametrize("path", OTHER_PATHS)
def test_a_path_that_resembles_a_route_is_a_404(rill: Rill, upstream: Upstream, path: str) -> None:
    received = exchange(rill.port, request_bytes("GET", f"{path}?q=first"))
    assert (received.statuses, received.in_sync, upstream.requests) == ([404, 200], True, [])


def test_an_encoded_line_end_does_not_split_the_response(rill: Rill, upstream: Upstream) -> None:
    hidden = "%0d%0aSet-Cookie:%20a=b%0d%0a%0d%0aHTTP/1.1%20200%20OK"
    for data in (
        request_bytes("GET", f"/nowhere{hidden}"),
        request_bytes("GET", f"/stream?q=first&model={hidden}", {"X-Request-Id": hidden}),
    ):
        received = exchange(rill.port, data)
        assert len(received.statuses) == 2
        assert b"Set-Cookie" not in received.data
