"""The public keys of an identity provider: a JSON Web Key Set (RFC 7517), fetched in the background and kept."""

import logging
import os
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import certifi
import gevent
import httpx2
import jwt
from gevent.lock import BoundedSemaphore

from rill.admission.strict_json import read_object
from rill.problems import Problem
from rill.urls import is_on_loopback

# The algorithms that a key may verify, by its type and curve: https://www.rfc-editor.org/rfc/rfc8725#section-3.1
ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
MIN_RSA_BITS = 2048
MAX_BYTES = 256 * 1024
MAX_KEYS = 100
FETCH_SECONDS = 5.0
# The shortest time between two fetches for key ids that are not known.
REFETCH_SECONDS = 30.0
# The time after which the keys are fetched again, so that a key that was removed is not used for long.
FRESH_SECONDS = 300.0
# The time between two attempts while no keys are known.
RETRY_SECONDS = 3.0

log = logging.getLogger(__name__)


class PublicKey(NamedTuple):
    """A key that verifies signatures of these `algorithms`; `kid` is its id, if it has one."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


class Jwks:
    """The keys at `url`; `on_change` is called when they have changed.

    While the provider does not respond, the last keys are used.
    """

    def __init__(self, url: str, on_change: Callable[[], None]) -> None:
        self._url = url
        self._on_change = on_change
        self._keys: Sequence[PublicKey] = ()
        self._fetched: bytes | None = None
        self._turn = BoundedSemaphore(1)
        self._is_lost = False
        self._stale_at = self._refetch_at = 0.0  # monotonic, in seconds

    def start(self) -> None:
        """Fetch the keys in the background, and try again until they are there."""
        self._stale_at = time.monotonic() + FRESH_SECONDS
        gevent.spawn(self._prefetch)

    def refresh(self) -> None:
        """Fetch the keys again in the background if they are old."""
        if time.monotonic() >= self._stale_at:
            self._stale_at = time.monotonic() + FRESH_SECONDS
            gevent.spawn(self._fetch)

    def find(self, algorithm: str, kid: str | None) -> Any:
        """Return the key for a signature, None if there is none; raise Problem if no keys could be fetched.

        For a key id that is not known, the keys are fetched again, at most once in REFETCH_SECONDS.
        """
        key = self._pick(algorithm, kid)
        if key is None:
            with self._turn:  # Who waits here for a fetch uses its keys.
                key = self._pick(algorithm, kid)
                if key is None and time.monotonic() >= self._refetch_at:
                    self._refetch_at = time.monotonic() + REFETCH_SECONDS
                    self._fetch()
                    key = self._pick(algorithm, kid)
        if not self._keys:
            raise Problem("keys_unavailable", retry_after=int(RETRY_SECONDS))
        return key

    def _pick(self, algorithm: str, kid: str | None) -> Any:
        fitting = [each for each in self._keys if algorithm in each.algorithms and kid in (None, each.kid)]
        # Without a key id, only a single key is certain to be meant.
        return fitting[0].key if fitting and (kid is not None or len(fitting) == 1) else None

    def _prefetch(self) -> None:
        while not self._keys:
            with self._turn:
                self._fetch()
            if not self._keys:
                gevent.sleep(RETRY_SECONDS)

    def _fetch(self) -> None:
        try:
            body = _download(self._url)
            keys = _keys_in(body) if body != self._fetched else self._keys
        except Exception as error:
            if not self._is_lost:
                log.warning("the keys at RILL_JWKS_URL cannot be fetched: %s", _reason_of(error))
            self._is_lost = True
            return
        if self._is_lost:
            log.warning("the keys at RILL_JWKS_URL are fetched again")
        self._is_lost, changed = False, body != self._fetched
        self._fetched, self._keys = body, keys
        if changed:
            self._on_change()


class _Refused(Exception):
    """A response that is not a key set; the message contains nothing of it."""


def _reason_of(error: Exception) -> str:
    return str(error) if isinstance(error, _Refused) else type(error).__name__


def _download(url: str) -> bytes:
    body = bytearray()
    # A proxy of the environment leads elsewhere than to this machine.
    uses_proxy = not is_on_loopback(url)
    client = httpx2.Client(verify=_tls_context(), follow_redirects=False, timeout=FETCH_SECONDS, trust_env=uses_proxy)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    with gevent.Timeout(FETCH_SECONDS, TimeoutError), client, client.stream("GET", url, headers=headers) as response:
        if response.status_code != 200:
            raise _Refused(f"status {response.status_code}; redirects are not followed")
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MAX_BYTES:
                raise _Refused(f"more than {MAX_BYTES} bytes")
    return bytes(body)


def _tls_context() -> ssl.SSLContext:
    # If the operator names root certificates, no others are trusted.
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    return ssl.create_default_context(cafile=None if named else certifi.where())


def _keys_in(body: bytes) -> Sequence[PublicKey]:
    found = read_object(body).get("keys")
    if not isinstance(found, list) or len(found) > MAX_KEYS:
        raise _Refused(f"not a JSON Web Key Set of at most {MAX_KEYS} keys")
    keys = [key for key in map(_public_key, found) if key]
    if not keys:
        raise _Refused(f"none of {len(found)} keys is usable")
    return keys


def _public_key(jwk: Any) -> PublicKey | None:
    """Return the key, None if it is not one that verifies signatures, safely."""
    try:
        if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]) or "d" in jwk:
            return None
        algorithms = ALGORITHMS.get((jwk["kty"], jwk.get("crv")), ())
        if "alg" in jwk:
            algorithms = tuple(each for each in algorithms if each == jwk["alg"])
        key = jwt.PyJWK(jwk, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, LookupError, AttributeError):
        return None  # One unusual key must not disable the others.
    kid = jwk.get("kid")
    is_weak = jwk["kty"] == "RSA" and key.key_size < MIN_RSA_BITS
    return None if is_weak or not isinstance(kid, str | None) else PublicKey(kid, algorithms, key)
