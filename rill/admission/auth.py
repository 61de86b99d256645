"""Authentication: the client, by the API key or the JWT that it sent, and a limit on failed attempts."""

import hmac
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from rill.admission.client import Client
from rill.admission.sliding_window import SlidingWindow
from rill.credentials import ApiKey, digest_of
from rill.problems import Problem
from rill.quota import Quota

if TYPE_CHECKING:
    from rill.admission.jwt import Jwts

WRONG_KEY = (
    "This API key is not valid. Send a key as 'Authorization: Bearer KEY', as 'x-api-key', or as the password of Basic."
)
# A hop of X-Forwarded-For; some proxies write a port behind the address.
_HOP = re.compile(r"[ \t]*(?:\[([0-9a-fA-F:.]+)\](?::\d+)?|([\d.]+)(?::\d+)?|([0-9a-fA-F:.]+))[ \t]*", re.ASCII)
TOO_MANY_FAILURES = "Too many requests without a valid API key."
# Failed attempts of one client address.
FAILURES = Quota(60, 60, "minute")
# Addresses whose failures are remembered, about 2 MB.
MAX_ADDRESSES = 10_000


class Authentication:
    """The API keys by the client's name, and `jwts`, that let a client in; without any, everybody may ask."""

    def __init__(
        self, keys: Mapping[str, ApiKey], jwts: "Jwts | None" = None, failures: SlidingWindow | None = None
    ) -> None:
        self._keys = [(digest, Client(name, budget=key.budget)) for name, key in keys.items() for digest in key.digests]
        self._known = frozenset(digest for digest, _ in self._keys)
        self._jwts = jwts
        self._failures = SlidingWindow(FAILURES, max_clients=MAX_ADDRESSES) if failures is None else failures

    def client_of(self, sent: str | None, address: str) -> Client:
        """Return the client with this key or JWT, or the one at this address if none is required; raise Problem.

        An address with too many failures gets 429 for a wrong key; a correct one still works, because another client
        may share the address.
        """
        network = network_of(address)
        if not self._keys and not self._jwts:
            return Client(network)
        digest = digest_of(sent) if sent else b""
        is_jwt = bool(self._jwts and sent and sent.count(".") == 2 and digest not in self._known)
        wait = self._failures.seconds_left(network)
        if wait and digest not in self._known and not is_jwt:
            raise Problem("rate_limited", TOO_MANY_FAILURES, math.ceil(wait))
        try:
            if is_jwt and self._jwts and sent:
                return self._jwts.client_of(sent)
            return self._client_with(digest, sent)
        except Problem as problem:
            if problem.name == "unauthorized" and wait:
                raise Problem("rate_limited", TOO_MANY_FAILURES, math.ceil(wait)) from None
            if problem.name == "unauthorized":
                self._failures.add(network)
            raise

    def _client_with(self, digest: bytes, sent: str | None) -> Client:
        # Compare with every digest, so that the time taken reveals nothing.
        clients = [client for known, client in self._keys if hmac.compare_digest(known, digest)]
        if not clients:
            raise Problem("unauthorized", WRONG_KEY if sent else None)
        return clients[0]


def address_of(peer: str, forwarded: str, hops: int) -> str:
    """Return the client's address: from X-Forwarded-For as the last `hops` proxies wrote it, else the peer's.

    Entries to the left of theirs come from the client and are ignored; for the same reason no quoting is parsed.
    """
    entries = forwarded.split(",")
    hop = _HOP.fullmatch(entries[-hops]) if 0 < hops <= len(entries) else None
    return next(filter(None, hop.groups())) if hop else peer


@lru_cache(maxsize=1000)
def network_of(address: str) -> str:
    """Return the part of an address that identifies a client; `unknown` if it is not an address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        # A client with one IPv6 address has its whole /64: https://www.rfc-editor.org/rfc/rfc6177
        return str(parsed.ipv4_mapped or ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
