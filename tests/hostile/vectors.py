"""Requests that two HTTP parsers may interpret differently, and requests that only look like it.

Each vector hides a second request after or inside the first. The cases are those of RFC 9112 (sections 2.2, 3.2, 5, 6,
7.1 and 11) and of the public lists of smuggling attacks: https://portswigger.net/web-security/request-smuggling
"""

from conversation import request_bytes

HIDDEN = request_bytes("GET", "/stream?q=smuggled")
HELLO = b"5\r\nhello\r\n0\r\n\r\n"


def post(fields: bytes, body: bytes = HELLO, version: bytes = b"1.1") -> bytes:
    """Return a POST with these raw header lines, its body, and the hidden request after it."""
    return b"POST /stream HTTP/" + version + b"\r\nHost: x\r\n" + fields + b"\r\n\r\n" + body + HIDDEN


def chunks(body: bytes) -> bytes:
    """Return a POST with this raw chunked body, and the hidden request after it."""
    return post(b"Transfer-Encoding: chunked", body)


def get(head: bytes) -> bytes:
    """Return this raw head, and the hidden request after it."""
    return head + HIDDEN


# Two bodies in one: a length and chunks.
BOTH = {
    "a length, then chunks": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "chunks, then a length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    "a length of none, then chunks": post(b"Content-Length: 0\r\nTransfer-Encoding: chunked"),
    "a length, and an unknown coding": post(b"Content-Length: 5\r\nTransfer-Encoding: xchunked"),
    "a length, and a coding folded away": post(b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked"),
    "a length, and identity": post(b"Content-Length: 5\r\nTransfer-Encoding: identity"),
}

_CODINGS = {
    "space before the colon": b"Transfer-Encoding : chunked",
    "tab before the colon": b"Transfer-Encoding\t: chunked",
    "space before the name": b" Transfer-Encoding: chunked",
    "unknown": b"Transfer-Encoding: xchunked",
    "truncated": b"Transfer-Encoding: chunk",
    "empty": b"Transfer-Encoding:",
    "quoted": b'Transfer-Encoding: "chunked"',
    "with a parameter": b"Transfer-Encoding: chunked;q=1",
    "two words": b"Transfer-Encoding: chunked identity",
    "chunked twice in a list": b"Transfer-Encoding: chunked, chunked",
    "chunked in two lines": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "chunked, then identity": b"Transfer-Encoding: chunked, identity",
    "identity, then chunked": b"Transfer-Encoding: identity, chunked",
    "identity in a line before": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "identity in a line after": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "an empty line after": b"Transfer-Encoding: chunked\r\nTransfer-Encoding:",
    "compressed, then chunked": b"Transfer-Encoding: gzip, chunked",
    "compressed in a line before": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    "chunked, then compressed": b"Transfer-Encoding: chunked, gzip",
    "compressed only": b"Transfer-Encoding: gzip",
    "identity only": b"Transfer-Encoding: identity",
    "empty element before": b"Transfer-Encoding: , chunked",
    "empty element after": b"Transfer-Encoding: chunked,",
    "folded": b"Transfer-Encoding:\r\n chunked",
    "folded by a tab": b"Transfer-Encoding:\r\n\tchunked",
    "vertical tab before": b"Transfer-Encoding: \x0bchunked",
    "vertical tab after": b"Transfer-Encoding: chunked\x0b",
    "form feed before": b"Transfer-Encoding: \x0cchunked",
    "no-break space after": b"Transfer-Encoding: chunked\xa0",
    "byte before": b"Transfer-Encoding: \xffchunked",
    "NUL in the name": b"Transfer-Encoding\x00: chunked",
    "NUL in the value": b"Transfer-Encoding: chunked\x00",
    "soft hyphen in the name": b"Transfer\xadEncoding: chunked",
    "after a bare LF": b"X: y\nTransfer-Encoding: chunked",
    "after a bare CR": b"X: y\rTransfer-Encoding: chunked",
    "after a CR and a NUL": b"X: y\r\x00\nTransfer-Encoding: chunked",
    "before a bare CR": b"Transfer-Encoding: chunked\r\r",
}
CODINGS = {f"coding: {name}": post(fields) for name, fields in _CODINGS.items()}

_LENGTHS = {
    "twice the same": b"5\r\nContent-Length: 5",
    "twice, different": b"5\r\nContent-Length: 0",
    "a list of the same": b"5, 5",
    "a list of different": b"5, 0",
    "a plus": b"+5",
    "a minus": b"-1",
    "hexadecimal": b"0x5",
    "an underscore": b"5_0",
    "two numbers": b"5 5",
    "an exponent": b"1e1",
    "a fraction": b"5.0",
    "empty": b"",
    "quoted": b'"5"',
    "with a parameter": b"5;x",
    "of 5,000 digits": b"9" * 5000,
    "of 5,000 zeros": b"0" * 5000 + b"5",
    "a superscript": b"\xb2",
    "Arabic-Indic digits": b"\xd9\xa5",
    "fullwidth digits": b"\xef\xbc\x95",
    "folded": b"\r\n 5",
    "vertical tab": b"5\x0b",
    "NUL": b"5\x00",
    "after a bare LF": b"5\nContent-Length: 0",
}
LENGTHS = {f"length: {name}": post(b"Content-Length: " + value, b"hello") for name, value in _LENGTHS.items()}
LENGTHS["length: space before the colon"] = post(b"Content-Length : 5", b"hello")

_CHUNKS = {
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "a plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"5_0\r\nhello\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "space after": b"5 \r\nhello\r\n0\r\n\r\n",
    "tab after": b"5\t\r\nhello\r\n0\r\n\r\n",
    "no hexadecimal digit": b"g\r\nhello\r\n0\r\n\r\n",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "superscript": b"5\r\nhello\r\n\xb2\r\n\r\n",
    "Arabic-Indic digit": b"\xd9\xa5" + b"\r\nhello\r\n0\r\n\r\n",
    "NUL": b"5\x00\r\nhello\r\n0\r\n\r\n",
    "LF for CRLF": b"5\nhello\n0\n\n",
    "LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "LF after the last size": b"5\r\nhello\r\n0\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "empty extension": b"5;\r\nhello\r\n0\r\n\r\n",
    "extension over its limit": b"5;" + b"a" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
    "size over its limit": b"0" * 20_000 + b"5\r\nhello\r\n0\r\n\r\n",
    "no CRLF after the data": b"5\r\nhello0\r\n\r\n",
    "more data than the size": b"4\r\nhello\r\n0\r\n\r\n",
    "two bytes for CRLF": b"5\r\nhelloXX0\r\n\r\n",
    "empty line between": b"5\r\nhello\r\n\r\n0\r\n\r\n",
    "trailer with a length": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "trailer with a coding": b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer with a host": b"5\r\nhello\r\n0\r\nHost: y\r\n\r\n",
    "trailer with credentials": b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
    "trailer with a space before the colon": b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "trailer without a colon": b"5\r\nhello\r\n0\r\nGET /stream?q=smuggled HTTP/1.1\r\n\r\n",
    "trailer folded": b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "trailer ended by LF": b"5\r\nhello\r\n0\r\nX: y\n\r\n",
    "trailer with a NUL": b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n",
    "trailers by the hundred": b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "trailer of 9,000 bytes": b"5\r\nhello\r\n0\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
}
CHUNKS = {f"chunk: {name}": chunks(body) for name, body in _CHUNKS.items()}

_LINES = {
    "LF for CRLF": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "CR for CRLF": b"GET /healthz HTTP/1.1\rHost: x\r\r",
    "LF after the request line": b"GET /healthz HTTP/1.1\nHost: x\r\n\r\n",
    "LF after a header": b"GET /healthz HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "LF for the empty line": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\n",
    "CR CR LF": b"GET /healthz HTTP/1.1\r\nHost: x\r\r\n\r\n",
    "LF before": b"\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "two empty lines before": b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "folded first header": b"GET /healthz HTTP/1.1\r\n Host: x\r\n\r\n",
    "header without a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "header without a colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nfoo\r\n\r\n",
    "header name with a space": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n",
    "NUL in a header name": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\x00: y\r\n\r\n",
    "NUL in a header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    "NUL in the URL": b"GET /stream?q=a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the method": b"G\x00T /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "tabs for spaces": b"GET\t/healthz\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "space after the version": b"GET /healthz HTTP/1.1 \r\nHost: x\r\n\r\n",
    "space in the URL": b"GET /stream?q=a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "lowercase method": b"get /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "lowercase version": b"GET /healthz http/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9 without a version": b"GET /stream?q=first\r\n",
    "HTTP/0.9 with its version": b"GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/2.0": b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/11": b"GET /healthz HTTP/11\r\nHost: x\r\n\r\n",
    "HTTP/1.10": b"GET /healthz HTTP/1.10\r\nHost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "the PROXY protocol": b"PROXY TCP4 203.0.113.7 203.0.113.8 1234 80\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "chunks in HTTP/1.0": post(b"Transfer-Encoding: chunked", version=b"1.0"),
}
LINES = {f"line: {name}": get(head) for name, head in _LINES.items()}

_HOSTS = {
    "none": b"",
    "two the same": b"Host: x\r\nHost: x\r\n",
    "two different": b"Host: x\r\nHost: y\r\n",
    "empty": b"Host:\r\n",
    "port only": b"Host: :80\r\n",
    "two words": b"Host: x y\r\n",
    "list": b"Host: x, y\r\n",
    "path": b"Host: x/y\r\n",
    "query": b"Host: x?y\r\n",
    "fragment": b"Host: x#y\r\n",
    "user": b"Host: u@x\r\n",
    "URL": b"Host: http://x\r\n",
    "backslash": b"Host: x\\y\r\n",
    "markup": b"Host: <x>\r\n",
    "quotes": b'Host: "x"\r\n',
    "port that is a word": b"Host: x:port\r\n",
    "port of eight digits": b"Host: x:99999999\r\n",
    "bracket open": b"Host: [::1\r\n",
    "bracket with more after": b"Host: [::1]x\r\n",
    "name in brackets": b"Host: [x]\r\n",
    "bare IPv6": b"Host: ::1\r\n",
    "bytes": b"Host: \xff\xfe\r\n",
    "control": b"Host: x\x01\r\n",
    "space before the colon": b"Host : x\r\n",
    "space before the name": b" Host: x\r\n",
}
HOSTS = {f"host: {name}": get(b"GET /stream?q=first HTTP/1.1\r\n" + field + b"\r\n") for name, field in _HOSTS.items()}
HOSTS["host: two in HTTP/1.0"] = get(b"GET /stream?q=first HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n")
HOSTS["host: bad in HTTP/1.0"] = get(b"GET /stream?q=first HTTP/1.0\r\nHost: x/y\r\n\r\n")

_TARGETS = {
    "without its slash": b"stream?q=first",
    "without its slash, but with a scheme's colon": b"stream?q=://first",
    "no scheme": b"://x/stream?q=first",
    "another scheme": b"ftp://x/stream?q=first",
    "a script's scheme": b"javascript://x/stream?q=first",
    "no host": b"http:///stream?q=first",
    "a query for the host": b"http://?q=first",
    "a host with a bracket": b"http://[x/stream?q=first",
    "a host for a path": b"x:80",
    "asterisk": b"*",
    "backslash": b"\\stream?q=first",
    "query only": b"?q=first",
    "bytes": b"/stream?q=\xff",
    "empty": b"",
}
TARGETS = {
    f"target: {name}": get(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n") for name, target in _TARGETS.items()
}

_EXPECTED = [b"", b"200-ok", b"100-continue, 200-ok", b"100-continue;q=1", b"continue"]
EXPECTED = {
    f"expect: {value.decode() or 'empty'}": post(b"Content-Length: 5\r\nExpect: " + value, b"hello")
    for value in _EXPECTED
}

# Each of these must be rejected, and its connection closed.
REJECTED = {**BOTH, **CODINGS, **LENGTHS, **CHUNKS, **LINES, **HOSTS, **TARGETS, **EXPECTED}

_WITHIN = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
_LENGTH = b"Content-Length: %d" % len(HIDDEN)
FIVE = b"Content-Length: 5"

# Unusual but unambiguous requests -> the prompts that reach the upstream; the follower is answered after them.
ACCEPTED: dict[str, tuple[bytes, list[str]]] = {
    "coding in mixed case": (post(b"tRANSFER-eNCODING: cHuNkEd"), ["hello", "smuggled"]),
    "coding between tabs": (post(b"Transfer-Encoding:\t chunked\t "), ["hello", "smuggled"]),
    "TE is no coding": (post(b"TE: chunked\r\n" + FIVE, b"hello"), ["hello", "smuggled"]),
    "underscore makes another name": (post(b"Transfer_Encoding: chunked\r\n" + FIVE, b"hello"), ["hello", "smuggled"]),
    "length with zeros before": (post(b"Content-Length: 0005", b"hello"), ["hello", "smuggled"]),
    "length of none": (post(b"Content-Length: 0", b""), ["smuggled"]),
    "extension": (chunks(b"5;a=b\r\nhello\r\n0;c\r\n\r\n"), ["hello", "smuggled"]),
    "extension with space": (chunks(b"5 ; a\r\nhello\r\n0\r\n\r\n"), ["hello", "smuggled"]),
    "extension that quotes": (chunks(b'5;a="\\"; b"\r\nhello\r\n0\r\n\r\n'), ["hello", "smuggled"]),
    "extension of 8,000 bytes": (chunks(b"5;" + b"a" * 8000 + b"\r\nhello\r\n0\r\n\r\n"), ["hello", "smuggled"]),
    "size with zeros before": (chunks(b"0" * 100 + b"5\r\nhello\r\n000\r\n\r\n"), ["hello", "smuggled"]),
    "trailers": (chunks(b"5\r\nhello\r\n0\r\nX: y\r\nX-Api-Key: z\r\n\r\n"), ["hello", "smuggled"]),
    "request within chunks": (post(b"Transfer-Encoding: chunked", _WITHIN), [HIDDEN.decode(), "smuggled"]),
    "request within a length": (post(_LENGTH, HIDDEN), [HIDDEN.decode(), "smuggled"]),
    "one empty line before": (get(b"\r\nGET /stream?q=first HTTP/1.1\r\nHost: x\r\n\r\n"), ["first", "smuggled"]),
    "upgrade to HTTP/2": (
        get(
            b"GET /stream?q=first HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ),
        ["first", "smuggled"],
    ),
    "expectation": (post(b"Expect: 100-Continue\r\n" + FIVE, b"hello"), ["hello", "smuggled"]),
}

# Requests that close their connection: nothing after them is a request.
CLOSED = {
    "close": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "Close": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n",
    "close in a list": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, close\r\n\r\n",
    "close in another line": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: x\r\nConnection: close\r\n\r\n",
    "close with a body": b"POST /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with a host": b"GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n",
    "HTTP/1.0 without a length": b"POST /stream HTTP/1.0\r\nHost: x\r\nContent-Type: text/plain\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
}
