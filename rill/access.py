"""Who may ask: the caller of a request, by the name of the token that it sent."""

import hmac
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from rill.problems import Problem
from rill.settings import digest_of

# A hop of X-Forwarded-For; some proxies write a port behind the address.
_HOP = re.compile(r"[ \t]*(?:\[([0-9a-fA-F:.]+)\](?::\d+)?|([\d.]+)(?::\d+)?|([0-9a-fA-F:.]+))[ \t]*", re.ASCII)


class Tokens:
    """The tokens that let a caller in, as name -> digest of the secret; where there are none, everybody may ask."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = digests

    def name_of(self, sent: str | None, address: str) -> str:
        """The caller's name: its token's, else its address where no tokens are set; raises Problem."""
        if not self._digests:
            return network_of(address)
        if not sent:
            raise Problem("unauthorized")
        digest = digest_of(sent)
        # Every digest is compared, so that the time taken tells nothing.
        names = [name for name, known in self._digests.items() if hmac.compare_digest(known, digest)]
        if not names:
            raise Problem("unauthorized")
        return names[0]


def address_of(peer: str, forwarded: str, hops: int) -> str:
    """The caller's address, from X-Forwarded-For as the last `hops` proxies wrote it; the peer's where they did not.

    What stands left of theirs is the caller's own words, which must change nothing: no quoting is understood.
    """
    said = forwarded.split(",")
    hop = _HOP.fullmatch(said[-hops]) if 0 < hops <= len(said) else None
    return next(filter(None, hop.groups())) if hop else peer


@lru_cache(maxsize=1000)
def network_of(address: str) -> str:
    """The address as far as it tells one caller from another; what is none shares a name."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        # Whoever has one IPv6 address has a whole /64 of them: https://www.rfc-editor.org/rfc/rfc6177
        return str(parsed.ipv4_mapped or ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
