"""JWTs for RILL_JWT_SECRET, as a user's own backend makes them."""

from typing import Any

from rill.problems import Problem
from rill.settings import Settings


def mint(settings: Settings, subject: str, seconds: float, **restrictions: Any) -> str:
    """Return a JWT for `subject` that is valid for so many seconds; raise ValueError if none can be made.

    `restrictions` are values of the claims `rill_<name>`; None omits one.
    """
    if not settings.jwt_secret:
        raise ValueError("set RILL_JWT_SECRET, for example to the output of `openssl rand -hex 32`")
    from rill.admission import jwt  # 20 MB of memory, which a service without JWTs does not need.

    claims = {
        "aud": settings.jwt_audience,
        "iss": settings.jwt_issuer,
        **{f"rill_{name}": value for name, value in restrictions.items()},
    }
    given = {name: value for name, value in claims.items() if value is not None}
    token = jwt.sign(settings.jwt_secret, subject, seconds, given)
    try:
        jwt.Jwts(settings.jwt_secret, None, settings.jwt_audience, settings.jwt_issuer).client_of(token)
    except Problem:
        raise ValueError("the subject should be printable, and the budget such as 5000/hour") from None
    return token
