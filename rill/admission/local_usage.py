"""The tokens that clients have used in fixed windows, in this worker's memory."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from rill.quota import Quota

# Clients that are remembered, about 30 MB; the one that asked least recently is forgotten first.
MAX_CLIENTS = 50_000


@dataclass(slots=True)
class Window:
    """The tokens `used` in the window of this `number`; `is_total` if those of other workers are among them."""

    number: int
    used: int
    is_total: bool


class LocalUsage:
    """What each client has used: by this worker, or in total as Redis last reported it.

    If Redis is lost, this worker gets one of `shares` equal parts of what was left then.
    """

    def __init__(self, shares: int) -> None:
        self._shares = shares
        self._windows: OrderedDict[str, dict[int, Window]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def used(self, client: str, quota: Quota, now: float) -> int:
        """Return the tokens used of a quota, of which this worker decides alone from now on."""
        window = self._window(client, quota.seconds, now)
        if window.is_total:
            left = max(0, quota.amount - window.used)
            window.used, window.is_total = window.used + left - left // self._shares, False
        return window.used

    def add(self, client: str, quotas: Sequence[Quota], tokens: int, now: float) -> None:
        """Count what the client has used."""
        for quota in quotas:
            self._window(client, quota.seconds, now).used += tokens

    def note_total(self, client: str, quotas: Sequence[Quota], used: Sequence[int], now: float) -> None:
        """Note what the client has used of each quota in total."""
        for quota, tokens in zip(quotas, used, strict=True):
            window = self._window(client, quota.seconds, now)
            window.used, window.is_total = tokens, True

    def _window(self, client: str, seconds: int, now: float) -> Window:
        windows = self._windows.setdefault(client, {})
        self._windows.move_to_end(client)
        while len(self._windows) > MAX_CLIENTS:
            self._windows.popitem(last=False)
        number = int(now // seconds)
        known = windows.get(seconds)
        if known is None or known.number != number:
            # A restriction of a JWT may have any period; those that have ended are forgotten.
            for period in [each for each, window in windows.items() if window.number != int(now // each)]:
                del windows[period]
            known = windows[seconds] = Window(number, 0, self._shares > 1)
        return known
