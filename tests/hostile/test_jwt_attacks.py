"""Forged and misused JWTs: each attack of RFC 8725, and an identity provider that fails or misbehaves."""

import base64
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import upstream as wire
from asking import ask, wait_until
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from identity_provider import AUDIENCE, ISSUER, IdentityProvider, claims_of, jwk_of, make_key, sign
from server import StartRill
from upstream import Upstream

from rill.admission.jwks import MAX_BYTES
from rill.admission.jwt import EXPIRED, TOO_EARLY, WRONG, WRONG_AUDIENCE, Jwts
from rill.problems import Problem

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        running.jwks["keys"].append(jwk_of(make_key("RS256"), "rsa"))
        yield running


@pytest.fixture
def jwts(provider: IdentityProvider) -> Jwts:
    return Jwts(None, provider.url, AUDIENCE, ISSUER)


@pytest.fixture
def with_secret() -> Jwts:
    return Jwts(SECRET, None, AUDIENCE, ISSUER)


def rejection_of(jwts: Jwts, token: str) -> str:
    with pytest.raises(Problem) as rejected:
        jwts.client_of(token)
    return f"{rejected.value.status} {rejected.value.detail}"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_header(token: str, header: bytes) -> str:
    return f"{encode(header)}.{token.split('.', 1)[1]}"


def signed_raw(header: bytes, payload: bytes) -> str:
    """Return a token with exactly these bytes, with a correct signature by SECRET."""
    signing_input = f"{encode(header)}.{encode(payload)}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        signing_input.encode(), SECRET.encode()
    )
    return f"{signing_input}.{encode(signature)}"


HS256 = b'{"alg":"HS256","typ":"JWT"}'


# The signature


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "ES256K", "RS1", None, 7, ["ES256"]]
)
def test_another_algorithm_in_the_header_is_rejected(jwts: Jwts, provider: IdentityProvider, algorithm: object) -> None:
    header = json.dumps({"alg": algorithm, "kid": "first", "typ": "JWT"}).encode()
    valid = sign(provider.key)
    assert rejection_of(jwts, with_header(valid, header)) == f"401 {WRONG}"
    assert rejection_of(jwts, with_header(valid, header).rpartition(".")[0] + ".") == f"401 {WRONG}"


@pytest.mark.parametrize("form", ["PEM", "DER", "JWK"])
def test_a_public_key_is_never_the_secret_of_an_hmac(jwts: Jwts, form: str) -> None:
    key = make_key("RS256").public_key()
    if form == "JWK":
        secret = json.dumps(jwk_of(make_key("RS256"), "rsa")).encode()
    else:
        encoding = Encoding.PEM if form == "PEM" else Encoding.DER
        secret = key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    payload = json.dumps(claims_of()).encode()
    signing_input = f"{encode(json.dumps({'alg': 'HS256', 'kid': 'rsa'}).encode())}.{encode(payload)}"
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    forged = f"{signing_input}.{encode(algorithm.sign(signing_input.encode(), secret))}"
    assert rejection_of(jwts, forged) == f"401 {WRONG}"


def test_a_symmetric_key_of_a_key_set_is_not_used(provider: IdentityProvider) -> None:
    secret = encode(SECRET.encode())
    provider.jwks["keys"].append({"kty": "oct", "kid": "shared", "k": secret, "alg": "HS256"})
    jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
    forged = jwt.encode(claims_of(), SECRET, "HS256", {"kid": "shared"})
    assert rejection_of(jwts, forged) == f"401 {WRONG}"


def test_a_key_verifies_only_its_own_algorithm(provider: IdentityProvider) -> None:
    key = make_key("RS256")
    provider.jwks = {"keys": [jwk_of(key, "rsa", alg="RS256")]}
    jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
    assert jwts.client_of(sign(key, algorithm="RS256", kid="rsa")).name == "jwt:alice"
    assert rejection_of(jwts, sign(key, algorithm="PS256", kid="rsa")) == f"401 {WRONG}"


def test_with_a_secret_only_hs256_is_accepted(with_secret: Jwts, provider: IdentityProvider) -> None:
    assert with_secret.client_of(jwt.encode(claims_of(), SECRET, "HS256")).name == "jwt:alice"
    assert rejection_of(with_secret, jwt.encode(claims_of(), SECRET * 2, "HS512")) == f"401 {WRONG}"
    assert rejection_of(with_secret, sign(provider.key)) == f"401 {WRONG}"


def test_a_changed_payload_is_rejected(jwts: Jwts, provider: IdentityProvider) -> None:
    head, _, signature = sign(provider.key).split(".")
    payload = encode(json.dumps(claims_of("mallory")).encode())
    assert rejection_of(jwts, f"{head}.{payload}.{signature}") == f"401 {WRONG}"


def test_a_short_rsa_key_is_not_used(provider: IdentityProvider) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    provider.jwks["keys"].append(jwk_of(weak, "weak"))
    jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = sign(weak, algorithm="RS256", kid="weak")
    assert rejection_of(jwts, token) == f"401 {WRONG}"


def test_a_key_for_encryption_is_not_used(provider: IdentityProvider) -> None:
    key = make_key(name="encryption")
    provider.jwks["keys"].append(jwk_of(key, "encryption", use="enc"))
    provider.jwks["keys"].append(jwk_of(key, "wrapping", key_ops=["wrapKey"]))
    jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
    assert rejection_of(jwts, sign(key, kid="encryption")) == f"401 {WRONG}"
    assert rejection_of(jwts, sign(key, kid="wrapping")) == f"401 {WRONG}"


# The header


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "first' OR '1'='1",
        "first\x00",
        "http://127.0.0.1/keys",
        "",
        "FIRST",
        7,
        None,
        ["first"],
        {"kid": "first"},
    ],
)
def test_a_key_id_selects_a_known_key_and_nothing_else(jwts: Jwts, provider: IdentityProvider, kid: object) -> None:
    forged = sign(make_key(name="mallory"))
    header = json.dumps({"alg": "ES256", "kid": kid}).encode()
    assert rejection_of(jwts, with_header(forged, header)) == f"401 {WRONG}"
    assert set(provider.paths) <= {"/jwks"}


@pytest.mark.parametrize("field", ["jku", "x5u"])
def test_a_url_in_the_header_is_never_requested(jwts: Jwts, field: str) -> None:
    mallory = make_key(name="mallory")
    with IdentityProvider() as elsewhere:
        elsewhere.jwks = {"keys": [jwk_of(mallory, "first")]}
        forged = sign(mallory, **{field: elsewhere.url})
        assert rejection_of(jwts, forged) == f"401 {WRONG}"
        assert rejection_of(jwts, sign(mallory, kid="new", **{field: elsewhere.url})) == f"401 {WRONG}"
        assert elsewhere.paths == []


@pytest.mark.parametrize("field", ["jwk", "x5c"])
def test_a_key_in_the_header_is_not_used(jwts: Jwts, field: str) -> None:
    mallory = make_key(name="mallory")
    embedded: Any = jwk_of(mallory, "first") if field == "jwk" else ["MIIB"]
    assert rejection_of(jwts, sign(mallory, **{field: embedded})) == f"401 {WRONG}"


@pytest.mark.parametrize("type", ["dpop+jwt", "logout+jwt", "secevent+jwt", "at+jwt+x", "", 7])
def test_a_token_of_another_type_is_rejected(with_secret: Jwts, type: object) -> None:
    header = json.dumps({"alg": "HS256", "typ": type}).encode()
    assert rejection_of(with_secret, signed_raw(header, json.dumps(claims_of()).encode())) == f"401 {WRONG}"


@pytest.mark.parametrize("type", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
def test_a_token_of_a_usual_type_is_accepted(with_secret: Jwts, type: str) -> None:
    header = json.dumps({"alg": "HS256", "typ": type}).encode()
    assert with_secret.client_of(signed_raw(header, json.dumps(claims_of()).encode())).name == "jwt:alice"


@pytest.mark.parametrize("field", [{"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"zip": "DEF"}, {"enc": "A128GCM"}])
def test_an_extension_in_the_header_is_rejected(with_secret: Jwts, field: dict[str, Any]) -> None:
    header = json.dumps({"alg": "HS256", **field}).encode()
    assert rejection_of(with_secret, signed_raw(header, json.dumps(claims_of()).encode())) == f"401 {WRONG}"


# The form


@pytest.mark.parametrize(
    "payload",
    [
        b'{"sub":"alice","sub":"admin","aud":"rill","iss":"https://id.example","exp":EXP}',
        b'{"sub":"alice","aud":"other","aud":"rill","iss":"https://id.example","exp":EXP}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":1,"exp":EXP}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":NaN}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":Infinity}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":1e999}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":"EXP"}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":true}',
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":' + b"9" * 4000 + b"}",
        b'{"sub":"alice","aud":"rill","iss":"https://id.example","exp":EXP,"nbf":null}',
        b'{"sub":"\\ud800","aud":"rill","iss":"https://id.example","exp":EXP}',
        b'["sub"]',
        b"null",
        b"",
        b"\xff\xfe",
        b'{"a":' + b"[" * 3000,
    ],
)
def test_a_signed_payload_of_another_form_is_rejected(with_secret: Jwts, payload: bytes) -> None:
    exp = str(int(time.time()) + 60).encode()
    assert rejection_of(with_secret, signed_raw(HS256, payload.replace(b"EXP", exp))) == f"401 {WRONG}"


@pytest.mark.parametrize(
    "header", [b'{"alg":"HS256","alg":"HS256"}', b'{"alg":"none","alg":"HS256"}', b"[]", b"", b"{"]
)
def test_a_signed_header_of_another_form_is_rejected(with_secret: Jwts, header: bytes) -> None:
    assert rejection_of(with_secret, signed_raw(header, json.dumps(claims_of()).encode())) == f"401 {WRONG}"


@pytest.mark.parametrize(
    "token", ["..", "a.b.c", "a.b.c.d.e", "é.é.é", "=.=.=", "\udcff.a.b", " . . ", f"{encode(HS256)}..", "." * 3]
)
def test_a_credential_that_is_no_token_is_rejected(with_secret: Jwts, token: str) -> None:
    assert rejection_of(with_secret, token) == f"401 {WRONG}"


def test_an_oversized_token_is_rejected_even_if_it_is_signed(with_secret: Jwts) -> None:
    assert rejection_of(with_secret, jwt.encode(claims_of(x="x" * 8192), SECRET, "HS256")) == f"401 {WRONG}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"exp": 1}, EXPIRED), ({"nbf": 2**40}, TOO_EARLY), ({"aud": "other"}, WRONG_AUDIENCE), ({"sub": None}, WRONG)],
)
def test_a_claim_is_reported_only_after_the_signature_is_verified(
    with_secret: Jwts, changes: dict[str, Any], message: str
) -> None:
    claims = claims_of(**changes)
    assert rejection_of(with_secret, jwt.encode(claims, SECRET, "HS256")) == f"401 {message}"
    assert rejection_of(with_secret, jwt.encode(claims, "x" * 32, "HS256")) == f"401 {WRONG}"


# The key set


def test_a_new_key_is_fetched_once_and_a_flood_of_unknown_ids_causes_no_further_fetch(
    jwts: Jwts, provider: IdentityProvider
) -> None:
    assert jwts.client_of(sign(provider.key)).name == "jwt:alice"
    fetched = len(provider.paths)
    for number in range(200):
        assert rejection_of(jwts, sign(make_key(name="mallory"), kid=f"kid-{number}")) == f"401 {WRONG}"
    assert len(provider.paths) - fetched <= 1


def test_a_rotated_key_is_accepted_during_operation_and_the_removed_one_is_not(
    provider: IdentityProvider, start_rill: StartRill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer("ok"))
    rill = start_rill(RILL_JWKS_URL=provider.url, RILL_JWT_AUDIENCE=AUDIENCE, RILL_JWT_ISSUER=ISSUER)
    old, new = sign(provider.key), sign(make_key(name="second"), kid="second")

    def status(token: str) -> int | None:
        with ask(rill, headers={"Authorization": f"Bearer {token}"}) as asked:
            return asked.status

    wait_until(lambda: provider.paths, "the keys are not prefetched")
    assert status(old) == 200
    provider.jwks = {"keys": [jwk_of(make_key(name="second"), "second")]}
    assert status(old) == 200  # It was verified before.
    assert status(new) == 200  # Its key is fetched now.
    assert status(old) == 401


def test_while_the_provider_is_down_the_known_keys_are_used(jwts: Jwts, provider: IdentityProvider) -> None:
    assert jwts.client_of(sign(provider.key)).name == "jwt:alice"
    for failure in ({"status": 500}, {"body": b"<html>"}, {"body": b'{"keys": []}'}, {"body": b" " * (MAX_BYTES + 1)}):
        for name, value in failure.items():
            setattr(provider, name, value)
        jwts._jwks._fetch()  # type: ignore[union-attr]  # as it does when the keys are old
        assert jwts.client_of(sign(provider.key, claims_of("bob"))).name == "jwt:bob"
        provider.status, provider.body = 200, None


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 500},
        {"status": 204},
        {"body": b""},
        {"body": b"[]"},
        {"body": b'{"keys": {}}'},
        {"body": b'{"keys": [7, null, {}, {"kty": []}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": 1}]}'},
        {"body": b'{"keys": [], "keys": []}'},
        {"body": b" " * (MAX_BYTES + 1)},
        {"body": json.dumps({"keys": [{}] * 101}).encode()},
    ],
)
def test_without_any_key_the_service_reports_that_it_cannot_verify(
    jwts: Jwts, provider: IdentityProvider, failure: dict[str, Any]
) -> None:
    for name, value in failure.items():
        setattr(provider, name, value)
    with pytest.raises(Problem) as rejected:
        jwts.client_of(sign(provider.key))
    assert (rejected.value.status, rejected.value.retry_after) == (503, 3)


def test_a_redirect_of_the_provider_is_not_followed(provider: IdentityProvider) -> None:
    with IdentityProvider() as elsewhere:
        provider.status, provider.headers = 302, {"Location": elsewhere.url}
        jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
        with pytest.raises(Problem):
            jwts.client_of(sign(elsewhere.key))
        assert elsewhere.paths == []


@pytest.mark.parametrize("trusted", [True, False])
def test_over_tls_the_certificate_of_the_provider_is_verified(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with IdentityProvider(tls) as provider:
        jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
        if trusted:
            assert jwts.client_of(sign(provider.key)).name == "jwt:alice"
        else:
            with pytest.raises(Problem) as rejected:
                jwts.client_of(sign(provider.key))
            assert rejected.value.status == 503


def test_one_unusual_key_does_not_disable_the_others(provider: IdentityProvider) -> None:
    private = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(make_key(name="leaked"))), "kid": "leaked"}
    odd: list[Any] = [7, {"kty": ["RSA"]}, {"kty": "RSA", "key_ops": 7}, {"kty": "EC", "crv": "P-256"}, private]
    provider.jwks["keys"][:0] = odd
    jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
    assert jwts.client_of(sign(provider.key)).name == "jwt:alice"
    assert rejection_of(jwts, sign(make_key(name="leaked"), kid="leaked")) == f"401 {WRONG}"


def test_a_provider_that_starts_later_is_found(
    provider: IdentityProvider, start_rill: StartRill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer("ok"))
    provider.status = 503
    rill = start_rill(RILL_JWKS_URL=provider.url, RILL_JWT_AUDIENCE=AUDIENCE, RILL_JWT_ISSUER=ISSUER)
    wait_until(lambda: provider.paths, "the keys are not prefetched")
    headers = {"Authorization": f"Bearer {sign(provider.key)}"}
    with ask(rill, headers=headers) as asked:
        assert asked.status == 503
        assert asked.headers["retry-after"] == "3"
    with ask(rill) as asked:
        assert asked.status == 401
    provider.status = 200

    def is_served() -> bool:
        with ask(rill, headers=headers) as asked:
            return asked.status == 200

    wait_until(is_served, "the keys are not fetched")
    assert "cannot be fetched: status 503" in rill.output()
    assert "are fetched again" in rill.output()


def test_a_slow_provider_delays_only_those_who_wait_for_its_keys(
    provider: IdentityProvider, start_rill: StartRill, upstream: Upstream
) -> None:
    upstream.always(*wire.answer("ok"))
    provider.seconds = 3.0
    rill = start_rill(
        RILL_JWKS_URL=provider.url, RILL_JWT_AUDIENCE=AUDIENCE, RILL_JWT_ISSUER=ISSUER, RILL_API_KEYS="key=an-api-key"
    )
    with ask(rill, headers={"Authorization": f"Bearer {sign(provider.key)}"}) as waiting:
        began = time.monotonic()
        with ask(rill, headers={"x-api-key": "an-api-key"}) as asked:
            assert asked.read_rest() == b"ok"
        assert time.monotonic() - began < 2.5
        assert waiting.status == 200
