"""JSON Web Tokens: a signed token in, the client that it identifies out.

The rules are those of https://www.rfc-editor.org/rfc/rfc8725. The header selects a known key and nothing else: keys and
URLs in it (`jwk`, `jku`, `x5u`, `x5c`) are ignored.
"""

import base64
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt

from rill.admission.client import Client
from rill.admission.jwks import Jwks
from rill.admission.strict_json import read_object
from rill.credentials import JWT_CLIENT, digest_of
from rill.problems import Problem
from rill.quota import Quota, parse_quotas

WRONG = "This JWT is not valid."
EXPIRED = "This JWT has expired."
TOO_EARLY = "This JWT is not valid yet."
WRONG_AUDIENCE = "This JWT is for another audience."

LEEWAY_SECONDS = 30
MAX_LIFETIME_SECONDS = 24 * 3600
MAX_LENGTH = 8192
MAX_SUBJECT_LENGTH = 255  # https://openid.net/specs/openid-connect-core-1_0.html#IDToken
# An identity token, or an access token (RFC 9068); tokens of other types have other purposes.
TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")
SECRET_ALGORITHM = "HS256"
# Verified tokens that are remembered, about 5 MB.
MAX_VERIFIED = 10_000


class Jwts:
    """Verifies tokens that are signed with `secret`, or by a key at `jwks_url`."""

    def __init__(self, secret: str | None, jwks_url: str | None, audience: str | None, issuer: str | None) -> None:
        self._audience = audience
        self._issuer = issuer
        self._secret = secret
        self._verified: OrderedDict[bytes, tuple[Client, float]] = OrderedDict()
        # A token whose key was removed is not valid any longer.
        self._jwks = Jwks(jwks_url, self._verified.clear) if jwks_url else None
        self._jws = jwt.PyJWS()

    def start(self) -> None:
        """Fetch the keys in the background."""
        if self._jwks:
            self._jwks.start()

    def client_of(self, token: str) -> Client:
        """Return the client that a token identifies; raise Problem."""
        if self._jwks:
            self._jwks.refresh()
        digest = digest_of(token)
        client, expires = self._verified.get(digest, (None, 0.0))
        if client is not None and time.time() < expires:
            self._verified.move_to_end(digest)
            return client
        claims = self._verify(token)
        client = self._read(claims)
        self._verified[digest] = client, claims["exp"] + LEEWAY_SECONDS
        while len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return client

    def _verify(self, token: str) -> dict[str, Any]:
        """Return the claims in a token with a correct signature."""
        try:
            if len(token) > MAX_LENGTH:
                raise ValueError
            header = read_object(_decode(token.partition(".")[0]))
            algorithm = _check_header(header)
            key = self._find_key(algorithm, header.get("kid"))
            return read_object(self._jws.decode_complete(token, key, [algorithm])["payload"])
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Problem("unauthorized", WRONG) from None

    def _find_key(self, algorithm: str, kid: object) -> Any:
        if not (kid is None or isinstance(kid, str)):
            raise ValueError
        if self._secret and algorithm == SECRET_ALGORITHM:
            return self._secret.encode()
        key = self._jwks.find(algorithm, kid) if self._jwks else None
        if key is None:
            raise ValueError
        return key

    def _read(self, claims: Mapping[str, Any]) -> Client:
        """Return the client that valid claims identify; raise Problem."""
        _check_times(claims, time.time())
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise Problem("unauthorized", WRONG)
        # A token for another service is not accepted, even if no audience is set.
        audience = claims.get("aud")
        if audience != self._audience and not (
            self._audience and isinstance(audience, list) and self._audience in audience
        ):
            raise Problem("unauthorized", WRONG_AUDIENCE)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.isprintable():
            raise Problem("unauthorized", WRONG)
        try:
            return Client(f"{JWT_CLIENT}:{subject}", *_restrictions_in(claims))
        except ValueError:
            raise Problem("unauthorized", WRONG) from None


def sign(secret: str, subject: str, seconds: float, claims: Mapping[str, Any]) -> str:
    """Return a token for `subject` that is valid for so many seconds."""
    now = time.time()
    payload = {"sub": subject, "iat": int(now), "exp": int(now + seconds), **claims}
    return jwt.encode(payload, secret, SECRET_ALGORITHM)


def _check_header(header: Mapping[str, Any]) -> str:
    """Return the algorithm; raise ValueError for a header with extensions, and for a token of another type."""
    algorithm, type = header.get("alg"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(type, str) or type.lower() not in TYPES:
        raise ValueError
    if not {"crit", "b64", "zip", "enc"}.isdisjoint(header):
        raise ValueError
    return algorithm


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    if "exp" not in times or not all(_is_time(value) for value in times.values()):
        raise Problem("unauthorized", WRONG)
    if times["exp"] + LEEWAY_SECONDS <= now:
        raise Problem("unauthorized", EXPIRED)
    if max(times.get("nbf", now), times.get("iat", now)) > now + LEEWAY_SECONDS:
        raise Problem("unauthorized", TOO_EARLY)
    if times["exp"] > now + MAX_LIFETIME_SECONDS + LEEWAY_SECONDS:
        raise Problem("unauthorized", WRONG)


def _is_time(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _restrictions_in(claims: Mapping[str, Any]) -> tuple[list[str] | None, int | None, tuple[()], tuple[Quota, ...]]:
    """Return the restrictions as arguments of Client; raise ValueError, so that none is ignored by mistake."""
    models, max_tokens = claims.get("rill_models"), claims.get("rill_max_tokens")
    budget = claims.get("rill_budget")
    if not (models is None or (isinstance(models, list) and all(isinstance(model, str) for model in models))):
        raise ValueError
    if not (max_tokens is None or (type(max_tokens) is int and max_tokens > 0)):
        raise ValueError
    if not (budget is None or isinstance(budget, str)):
        raise ValueError
    return models, max_tokens, (), () if budget is None else parse_quotas(budget)


def _decode(segment: str) -> bytes:
    return base64.b64decode(segment + "=" * (-len(segment) % 4), altchars="-_", validate=True)
