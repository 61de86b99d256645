"""Authentication: the name of a client, by the API key that it sent, and a limit on failed attempts."""

import hmac
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from rill.problems import Problem
from rill.settings import digest_of

WRONG_KEY = (
    "This API key is not valid. Send a key as 'Authorization: Bearer KEY', as 'x-api-key', or as the password of Basic."
)
# A hop of X-Forwarded-For; some proxies write a port behind the address.
_HOP = re.compile(r"[ \t]*(?:\[([0-9a-fA-F:.]+)\](?::\d+)?|([\d.]+)(?::\d+)?|([0-9a-fA-F:.]+))[ \t]*", re.ASCII)


FAILURES_PER_WINDOW = 60
WINDOW_SECONDS = 60
# Addresses whose failures are remembered, about 2 MB of them; the one that began longest ago is forgotten first.
MOST_ADDRESSES = 10_000


class FailedAttempts:
    """Failed attempts to authenticate, counted for each client address in windows of WINDOW_SECONDS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST_ADDRESSES) -> None:
        self._clock = clock
        self._most = most
        # Address -> when its window ends (in the clock's seconds), and its failures so far.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, address: str) -> None:
        """Count one failure."""
        now = self._clock()
        end, failures = self._windows.get(address, (0.0, 0))
        if end <= now:
            end, failures = now + WINDOW_SECONDS, 0
            self._windows.pop(address, None)
        self._windows[address] = (end, failures + 1)
        if len(self._windows) > self._most:
            self._windows.popitem(last=False)

    def seconds_left(self, address: str) -> int:
        """Return the seconds for which the address has used up its failures, 0 where it has not."""
        end, failures = self._windows.get(address, (0.0, 0))
        return max(0, math.ceil(end - self._clock())) if failures >= FAILURES_PER_WINDOW else 0


class ApiKeys:
    """The API keys that let a client in, as name -> digest of the key; where there are none, everybody may ask."""

    def __init__(self, digests: Mapping[str, bytes], failures: FailedAttempts | None = None) -> None:
        self._digests = digests
        self._known = frozenset(digests.values())
        self._failures = FailedAttempts() if failures is None else failures

    def name_of(self, sent: str | None, address: str) -> str:
        """Return the client's name: its key's, else its address where no keys are set; raise Problem.

        An address with too many failures gets 429 for a wrong key; a correct one still works, because another client
        may share the address.
        """
        client = network_of(address)
        if not self._digests:
            return client
        digest = digest_of(sent) if sent else b""
        wait = self._failures.seconds_left(client)
        if wait and digest not in self._known:
            raise Problem("rate_limited", "Too many requests without a valid API key.", wait)
        # Every digest is compared, so that the time taken tells nothing.
        names = [name for name, known in self._digests.items() if hmac.compare_digest(known, digest)]
        if not names:
            self._failures.count(client)
            raise Problem("unauthorized", WRONG_KEY if sent else None)
        return names[0]


def address_of(peer: str, forwarded: str, hops: int) -> str:
    """The client's address, from X-Forwarded-For as the last `hops` proxies wrote it; the peer's where they did not.

    What stands left of theirs is the client's own words, which must change nothing: no quoting is understood.
    """
    said = forwarded.split(",")
    hop = _HOP.fullmatch(said[-hops]) if 0 < hops <= len(said) else None
    return next(filter(None, hop.groups())) if hop else peer


@lru_cache(maxsize=1000)
def network_of(address: str) -> str:
    """The address as far as it tells one client from another; what is none shares a name."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        # Whoever has one IPv6 address has a whole /64 of them: https://www.rfc-editor.org/rfc/rfc6177
        return str(parsed.ipv4_mapped or ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
