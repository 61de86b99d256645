"""How much a client may use in a time, as settings say it: `60/minute`, `5 per 2 hours`, `5/second;1000/day`."""

import re
from typing import NamedTuple

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 30 * 86_400, "year": 365 * 86_400}
QUOTA = re.compile(rf"\s*0*([1-9][0-9]*)\s*(?:/|per)\s*0*([1-9][0-9]*)?\s*({'|'.join(SECONDS)})s?\s*", re.IGNORECASE)


class Quota(NamedTuple):
    """An amount in a time of `seconds`, which is called `period`."""

    amount: int
    seconds: int
    period: str

    def __str__(self) -> str:
        return f"{self.amount} per {self.period}"


def parse_quotas(text: str) -> tuple[Quota, ...]:
    """Return one or several quotas, which may be joined by a semicolon, a comma or a bar; raise ValueError."""
    return tuple(map(_parse, re.split("[;,|]", text)))


def _parse(text: str) -> Quota:
    parts = QUOTA.fullmatch(text)
    if not parts:
        raise ValueError(f"not a number in a time: {text!r}")
    amount, number, unit = int(parts[1]), int(parts[2] or 1), parts[3].lower()
    return Quota(amount, number * SECONDS[unit], unit if number == 1 else f"{number} {unit}s")
