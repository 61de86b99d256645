"""JSON Web Tokens as credentials: what they allow, and how they expire and are rejected."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import upstream as wire
from asking import ask, wait_until
from conversation import Conversation, request_bytes
from fork_server import run_forked
from identity_provider import AUDIENCE, ISSUER, IdentityProvider, claims_of, jwk_of, make_key, sign
from messages_api import error_body
from server import ROOT, Rill, StartRill
from upstream import Upstream

from rill.admission.jwt import EXPIRED, TOO_EARLY, WRONG, WRONG_AUDIENCE, Jwts
from rill.admission.jwt import sign as sign_with_secret
from rill.problems import Problem

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def jwts() -> Jwts:
    return Jwts(SECRET, None, AUDIENCE, ISSUER)


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    """Return a server that accepts an API key, and JWTs of a backend."""
    return share_rill(RILL_JWT_SECRET=SECRET, RILL_API_KEYS="key=the-key-of-a-server")


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


def token(claims: dict[str, Any], **header: Any) -> str:
    return jwt.encode(claims, SECRET, "HS256", header or None)


def backend_token(subject: str = "alice", seconds: float = 60, **claims: Any) -> str:
    return sign_with_secret(SECRET, subject, seconds, claims)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def rejection_of(jwts: Jwts, token: str) -> str:
    with pytest.raises(Problem) as rejected:
        jwts.client_of(token)
    assert rejected.value.status == 401
    return rejected.value.detail


# Claims


def test_a_valid_token_names_its_client(jwts: Jwts) -> None:
    assert jwts.client_of(token(claims_of("alice"))).name == "jwt:alice"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp": None}, WRONG),
        ({"exp": -31}, EXPIRED),
        ({"exp": 24 * 3600 + 60}, WRONG),
        ({"nbf": 60}, TOO_EARLY),
        ({"iat": 60}, TOO_EARLY),
        ({"aud": "another"}, WRONG_AUDIENCE),
        ({"aud": None}, WRONG_AUDIENCE),
        ({"aud": ["one", "two"]}, WRONG_AUDIENCE),
        ({"aud": {"rill": 1}}, WRONG_AUDIENCE),
        ({"iss": "https://id.example/"}, WRONG),
        ({"iss": None}, WRONG),
        ({"sub": None}, WRONG),
        ({"sub": ""}, WRONG),
        ({"sub": 7}, WRONG),
        ({"sub": "x" * 256}, WRONG),
        ({"sub": "a\nb"}, WRONG),
        ({"sub": "a\u202eb"}, WRONG),
        ({"rill_models": "claude-sonnet-5-5"}, WRONG),
        ({"rill_models": [1]}, WRONG),
        ({"rill_max_tokens": 0}, WRONG),
        ({"rill_max_tokens": True}, WRONG),
        ({"rill_max_tokens": "5"}, WRONG),
        ({"rill_budget": 5}, WRONG),
        ({"rill_budget": "much"}, WRONG),
    ],
)
def test_a_token_with_other_claims_is_rejected(jwts: Jwts, changes: dict[str, Any], message: str) -> None:
    for name in ("exp", "nbf", "iat"):
        if isinstance(changes.get(name), int):
            changes = {**changes, name: int(time.time()) + changes[name]}
    assert rejection_of(jwts, token(claims_of(**changes))) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": -20},
        {"exp": 24 * 3600},
        {"nbf": 20},
        {"iat": 20},
        {"aud": ["another", AUDIENCE]},
        {"sub": "x" * 255},
        {"sub": "auth0|5f7c8ec7c33c6c004bbafe82"},
        {"sub": "溪 流"},
        {"iat": None},
    ],
)
def test_a_token_at_the_limits_is_accepted(jwts: Jwts, changes: dict[str, Any]) -> None:
    for name in ("exp", "nbf", "iat"):
        if isinstance(changes.get(name), int):
            changes = {**changes, name: int(time.time()) + changes[name]}
    assert jwts.client_of(token(claims_of(**changes))).name.startswith("jwt:")


def test_without_a_configured_audience_a_token_for_an_audience_is_rejected() -> None:
    jwts = Jwts(SECRET, None, None, None)
    assert jwts.client_of(token(claims_of(aud=None))).name == "jwt:alice"
    assert rejection_of(jwts, token(claims_of())) == WRONG_AUDIENCE


def test_a_remembered_token_expires_too(jwts: Jwts) -> None:
    sent = token(claims_of(exp=int(time.time()) - 28))  # two seconds of the leeway are left
    assert jwts.client_of(sent).name == "jwt:alice"
    assert jwts.client_of(sent).name == "jwt:alice"
    time.sleep(2.1)  # pacing: the token expires
    assert rejection_of(jwts, sent) == EXPIRED


# The server


@pytest.mark.parametrize("path", ["/stream?q=hi", "/v1/models", "/drip"])
@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_jwt_is_accepted_where_an_api_key_is(rill: Rill, upstream: Upstream, path: str, header: str) -> None:
    upstream.script(*wire.answer("ok"))
    sent = backend_token()
    headers = bearer(sent) if header == "Authorization" else {"x-api-key": sent}
    with rill.ask("GET", path, headers) as asked:
        assert asked.status == 200


def test_an_api_key_is_accepted_beside_jwts(rill: Rill, upstream: Upstream) -> None:
    upstream.script(*wire.answer("ok"))
    with ask(rill, headers=bearer("the-key-of-a-server")) as asked:
        assert asked.read_rest() == b"ok"


@pytest.mark.parametrize("dialect", ["text", "sse", "anthropic", "openai"])
def test_each_dialect_reports_an_expired_token_and_nothing_more(rill: Rill, dialect: str) -> None:
    with ask(rill, dialect, bearer(backend_token(seconds=-60))) as asked:
        assert asked.status == 401
        body = asked.read_rest().decode()
    assert EXPIRED in body
    if dialect != "text" and dialect != "sse":
        assert json.loads(body)["error"]["message"] == EXPIRED


def test_an_answer_in_progress_survives_the_expiry_of_its_token(rill: Rill, upstream: Upstream) -> None:
    upstream.script(
        wire.head(),
        wire.send(wire.opening(), wire.text("first ")),
        wire.gate("expired"),
        wire.send(wire.text("second"), wire.block_stop(), wire.stop()),
        wire.end(),
    )
    sent = backend_token(seconds=-28)  # within the leeway for two seconds more
    with ask(rill, headers=bearer(sent)) as asked:
        assert asked.next_chunk() == b"first "
        wait_until(lambda: status_with(rill, sent) == 401, "the token never expired")
        upstream.open("expired")
        assert asked.read_rest() == b"second"
        assert asked.ended == "clean"


def status_with(rill: Rill, token: str) -> int | None:
    with rill.ask("GET", "/v1/models", bearer(token)) as asked:
        return asked.status


def test_a_jwt_client_has_its_name_in_the_log_and_a_shared_label_in_the_metrics(rill: Rill, upstream: Upstream) -> None:
    upstream.always(*wire.answer("ok"))
    for subject in ("metric-1", "metric-2"):
        with ask(rill, headers=bearer(backend_token(subject))) as asked:
            asked.read_rest()
    wait_until(lambda: '"client": "jwt:metric-2"' in rill.output(), rill.output)
    with rill.ask("GET", "/metrics", bearer("the-key-of-a-server")) as scraped:
        metrics = scraped.read_rest().decode()
    assert 'rill_requests_total{client="jwt",' in metrics
    assert "jwt:" not in metrics
    assert "metric-1" not in metrics


def test_a_jwt_does_not_read_the_metrics_of_clients_with_api_keys(rill: Rill) -> None:
    with rill.ask("GET", "/metrics", bearer(backend_token())) as scraped:
        assert scraped.status == 403


def test_the_models_of_a_token_restrict_the_enabled_ones(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_JWT_SECRET=SECRET, RILL_ALLOWED_MODELS="one,two,three")
    headers = bearer(backend_token(rill_models=["four", "three", "two"]))
    for model, expected in {None: "three", "two": "two"}.items():
        upstream.script(*wire.answer("ok"))
        with ask(rill, headers=headers, model=model) as asked:
            assert asked.read_rest() == b"ok"
        assert upstream.requests[-1].json["model"] == expected
    for dialect, model in (("text", "one"), ("text", "four"), ("anthropic", "one"), ("openai", "four")):
        with ask(rill, dialect, headers, model=model) as asked:
            assert asked.status == 403
    with ask(rill, headers=bearer(backend_token(rill_models=["four"]))) as asked:
        assert asked.status == 403
    with rill.ask("GET", "/v1/models", headers) as asked:
        assert [model["id"] for model in json.loads(asked.read_rest())["data"]] == ["two", "three"]


@pytest.mark.parametrize(("claim", "sent"), [(30, 30), (1000, 50)])
def test_the_max_tokens_of_a_token_lower_those_of_the_request(
    rill: Rill, upstream: Upstream, claim: int, sent: int
) -> None:
    upstream.script(*wire.answer("ok"))
    with ask(rill, "anthropic", bearer(backend_token(rill_max_tokens=claim))) as asked:
        assert asked.status == 200
        assert asked.headers.get("x-max-tokens") == (str(sent) if sent < 50 else None)
    assert upstream.requests[-1].json["max_tokens"] == sent


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ({"fallbacks": [{"model": "claude-opus-4-8"}]}, 403),
        ({"fallbacks": [{"model": "claude-sonnet-5-5", "max_tokens": 31}]}, 403),
        ({"fallbacks": [{"model": "claude-sonnet-5-5", "max_tokens": 30}]}, 200),
    ],
)
def test_a_nested_model_or_max_tokens_is_restricted_too(
    share_rill: StartRill, upstream: Upstream, field: dict[str, Any], status: int
) -> None:
    rill = share_rill(RILL_JWT_SECRET=SECRET, RILL_UPSTREAM_FEATURES="*")
    upstream.always(*wire.answer("ok"))
    headers = bearer(backend_token(rill_models=["claude-sonnet-5-5"], rill_max_tokens=30))
    with ask(rill, "anthropic", headers, **field) as asked:
        assert asked.status == status


def test_wrong_tokens_count_as_failures_of_their_address_and_correct_ones_still_work(rill: Rill) -> None:
    statuses = []
    for number in range(65):
        with rill.ask("GET", "/v1/models", bearer(backend_token(f"u{number}")[:-4] + "AAAA")) as asked:
            statuses.append(asked.status)
    assert set(statuses) == {401, 429}
    assert statuses[-1] == 429
    assert status_with(rill, backend_token("someone")) == 200


# The command


def mint(*arguments: str, secret: str = SECRET, **env: str) -> tuple[int, str, str]:
    """Return the exit code, the stdout and the stderr."""
    command = ["--app", "wsgi", "mint", *arguments]
    return run_forked("flask", command, {"RILL_OFFLINE": "1", "RILL_JWT_SECRET": secret, **env})


def test_mint_prints_a_token_that_the_service_accepts() -> None:
    audience = {"RILL_JWT_AUDIENCE": AUDIENCE, "RILL_JWT_ISSUER": ISSUER}
    options = ("--models", "a,b", "--max-tokens", "7", "--budget", "5000/hour")
    code, token, errors = mint("--subject", "alice", "--minutes", "10", *options, **audience)
    assert (code, errors) == (0, "")
    client = Jwts(SECRET, None, AUDIENCE, ISSUER).client_of(token.strip())
    assert (client.name, client.models, client.max_tokens) == ("jwt:alice", ["a", "b"], 7)
    assert [str(quota) for quota in client.restriction] == ["5000 per hour"]
    claims = jwt.decode(token.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 600


@pytest.mark.parametrize(
    ("arguments", "secret", "message"),
    [
        (("--subject", "alice"), "", "set RILL_JWT_SECRET"),
        (("--subject", "a\nb"), SECRET, "the subject should be printable"),
        (("--subject", "alice", "--budget", "much"), SECRET, "the budget such as 5000/hour"),
        (("--subject", "alice", "--minutes", "1441"), SECRET, "1440"),
    ],
)
def test_mint_states_what_is_wrong(arguments: tuple[str, ...], secret: str, message: str) -> None:
    code, token, errors = mint(*arguments, secret=secret)
    assert code != 0
    assert token == ""
    assert message in errors


# Public addresses and Hosts


def test_a_service_with_jwts_may_listen_on_a_public_address(start_rill: StartRill) -> None:
    rill = start_rill(bind=False, RILL_JWT_SECRET=SECRET)
    with Conversation(rill.port, request_bytes("GET", "/v1/models", {"Host": "x"})) as asked:
        assert asked.status == 401


# A key set


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
)
def test_each_allowed_algorithm_verifies(provider: IdentityProvider, algorithm: str) -> None:
    key = make_key(algorithm if algorithm[0] == "E" else "RS256")
    provider.jwks = {"keys": [jwk_of(make_key(name="other"), "other"), jwk_of(key, "first")]}
    jwts = Jwts(None, provider.url, AUDIENCE, ISSUER)
    assert jwts.client_of(sign(key, algorithm=algorithm)).name == "jwt:alice"


def test_the_server_accepts_the_tokens_of_a_provider_and_fetches_its_keys_once(
    start_rill: StartRill, upstream: Upstream, provider: IdentityProvider
) -> None:
    provider.jwks = {"keys": [jwk_of(provider.key, "first")]}
    provider.paths.clear()
    rill = start_rill(RILL_JWKS_URL=provider.url, RILL_JWT_AUDIENCE=AUDIENCE, RILL_JWT_ISSUER=ISSUER)
    wait_until(lambda: provider.paths, "the keys are not prefetched")
    upstream.always(*wire.answer("ok"))
    for subject in ("alice", "bob", "alice"):
        with ask(rill, headers=bearer(sign(provider.key, claims_of(subject)))) as asked:
            assert asked.read_rest() == b"ok"
    assert len(provider.paths) == 1


LOADED = """
import os
import sys
from app import create_app
from rill.settings import read_settings
for name, value in (("RILL_TOKEN_BUDGET", "1/day"), ("RILL_JWT_SECRET", "s" * 32)):
    os.environ[name] = value
    create_app(read_settings())
    print(*sorted({"cryptography", "jwt", "redis"} & sys.modules.keys()))
"""


def test_a_service_without_jwts_does_not_load_their_library() -> None:
    command, env = [sys.executable, "-c", LOADED], {"RILL_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "\ncryptography jwt\n"


@pytest.mark.timing
def test_a_verified_token_costs_little() -> None:
    jwts, sent = Jwts(SECRET, None, None, None), backend_token()
    jwts.client_of(sent)

    def seconds() -> float:
        begun = time.process_time()
        for _ in range(100):
            jwts.client_of(sent)
        return (time.process_time() - begun) / 100

    assert min(seconds() for _ in range(10)) < 0.00015


@pytest.mark.parametrize(("models", "status"), [(["model"], 503), (["model", "spare"], 200)])
def test_a_fallback_is_among_the_models_that_a_jwt_allows(
    share_rill: StartRill, upstream: Upstream, models: list[str], status: int
) -> None:
    rill = share_rill(
        RILL_JWT_SECRET=SECRET, RILL_DEFAULT_MODEL="model", RILL_ALLOWED_MODELS="model", RILL_FALLBACK_MODELS="spare"
    )
    overloaded = wire.status(529, {"retry-after": "0"}, error_body("overloaded_error", "Overloaded"))
    upstream.script(overloaded)
    upstream.always(*(wire.answer("hi") if status == 200 else [overloaded]))
    with ask(rill, headers=bearer(backend_token(rill_models=models))) as asked:
        assert asked.status == status
    assert {request.json["model"] for request in upstream.requests} == set(models)
