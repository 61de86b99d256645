"""Authentication: the name of a client, by the API key that it sent, and a limit on failed attempts."""

import hmac
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from rill.admission.sliding_window import SlidingWindow
from rill.problems import Problem
from rill.quota import Quota
from rill.settings import digest_of

WRONG_KEY = (
    "This API key is not valid. Send a key as 'Authorization: Bearer KEY', as 'x-api-key', or as the password of Basic."
)
# A hop of X-Forwarded-For; some proxies write a port behind the address.
_HOP = re.compile(r"[ \t]*(?:\[([0-9a-fA-F:.]+)\](?::\d+)?|([\d.]+)(?::\d+)?|([0-9a-fA-F:.]+))[ \t]*", re.ASCII)
# Failed attempts of one client address.
FAILURES = Quota(60, 60, "minute")
# Addresses whose failures are remembered, about 2 MB.
MAX_ADDRESSES = 10_000


class ApiKeys:
    """The API keys that let a client in, as name -> digest of the key; without any, everybody may ask."""

    def __init__(self, digests: Mapping[str, bytes], failures: SlidingWindow | None = None) -> None:
        self._digests = digests
        self._known = frozenset(digests.values())
        self._failures = SlidingWindow(FAILURES, max_clients=MAX_ADDRESSES) if failures is None else failures

    def name_of(self, sent: str | None, address: str) -> str:
        """Return the client's name: that of its key, or its address if no keys are set; raise Problem.

        An address with too many failures gets 429 for a wrong key; a correct one still works, because another client
        may share the address.
        """
        client = network_of(address)
        if not self._digests:
            return client
        digest = digest_of(sent) if sent else b""
        wait = self._failures.seconds_left(client)
        if wait and digest not in self._known:
            raise Problem("rate_limited", "Too many requests without a valid API key.", math.ceil(wait))
        # Compare with every digest, so that the time taken reveals nothing.
        names = [name for name, known in self._digests.items() if hmac.compare_digest(known, digest)]
        if not names:
            self._failures.add(client)
            raise Problem("unauthorized", WRONG_KEY if sent else None)
        return names[0]


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
