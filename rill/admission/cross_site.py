"""Guards against pages of other sites: the Host that a request names, and the origin that sent it.

A page of any site can reach a service on loopback through a browser on this machine, and without API keys nothing else
distinguishes that page from the operator.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from rill.problems import Problem

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
DEFAULT_PORTS = {"http": "80", "https": "443"}
_AUTHORITY = r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::([0-9]*))?"
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(rf"(https?)://{_AUTHORITY}")


class Hosts:
    """The Host names that are served: those of `allowed`, `*` for any, and always the local ones.

    If `allowed` is empty, any Host is served, unless the server is bound to loopback and nothing else protects the
    upstream key (`exposed`): then a page that rebinds its own name to 127.0.0.1 would have the same origin as this
    service. https://en.wikipedia.org/wiki/DNS_rebinding
    """

    def __init__(self, allowed: Sequence[str], exposed: bool) -> None:
        self._allowed = frozenset((*LOCAL_HOSTS, *map(str.lower, allowed)))
        self._everywhere = bool(allowed)
        self._on_loopback = exposed

    def check(self, host: str, bound_to: str, peer: str) -> None:
        """Raise Problem if `host` is not served at the address that the server is bound to.

        `peer` is the client's address; it is empty for a unix socket, which no browser reaches. A request without a
        Host is HTTP/1.0, which no browser sends.
        """
        if not host or not (self._everywhere or (self._on_loopback and peer and is_loopback(bound_to))):
            return
        named = _HOST.fullmatch(host.lower())
        if "*" not in self._allowed and not (named and named[1] in self._allowed):
            raise Problem("host_not_allowed")


@lru_cache(maxsize=100)
def is_loopback(address: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def check_initiator(method: str, header: Callable[[str], str | None], origins: Sequence[str]) -> None:
    """Raise Problem for a browser's prefetch, and for a page of another site that is not in `origins`.

    Such a page sends requests in its visitor's name, and the operator would be billed. Following a link is allowed.
    `header` returns a header of the request by its name.
    https://www.w3.org/TR/fetch-metadata/
    """
    if "prefetch" in (header("Sec-Purpose") or header("Purpose") or ""):
        raise Problem("prefetch")
    if not _is_cross_site(method, header) or "*" in origins:
        return
    if (header("Origin") or "").lower() not in map(str.lower, origins):
        raise Problem(
            "forbidden",
            "Pages of this origin are not allowed here. The operator can allow them with RILL_CORS_ORIGINS.",
        )


def _is_cross_site(method: str, header: Callable[[str], str | None]) -> bool:
    site, origin = header("Sec-Fetch-Site"), header("Origin")
    if site is None:
        # Browsers send Sec-Fetch headers to https origins and to localhost only.
        return origin is not None and not is_same_origin(origin, header("Host") or "")
    is_link = method == "GET" and header("Sec-Fetch-Dest") == "document"
    return site in ("cross-site", "same-site") and not is_link


def is_same_origin(origin: str, host: str) -> bool:
    """Return whether an Origin is this Host; the scheme is not compared, because a proxy may terminate TLS."""
    sent, named = _ORIGIN.fullmatch(origin.lower()), _HOST.fullmatch(host.lower())
    if not sent or not named or sent[2] != named[1]:
        return False
    port = sent[3] or DEFAULT_PORTS[sent[1]]
    return port == named[2] if named[2] else port in DEFAULT_PORTS.values()
