"""The settings, read once from the environment: one table of name, default, unit and meaning."""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rill.credentials import ApiKey, parse_api_keys
from rill.problems import Problem
from rill.quota import parse_quotas
from rill.urls import is_http_url, is_on_loopback, is_redis_url

Names = Annotated[tuple[str, ...], NoDecode]
ApiKeys = Annotated[Mapping[str, ApiKey], NoDecode]
ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE)
HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.IGNORECASE)
MAX_MODEL_LENGTH = 200
DEFAULT_MODEL = "claude-sonnet-5-5"
MIN_JWT_SECRET_BYTES = 32  # https://www.rfc-editor.org/rfc/rfc7518#section-3.2


def _setting(name: str, default: Any, meaning: str, **bounds: Any) -> Any:
    return Field(default, validation_alias=name, description=meaning, **bounds)


class Settings(BaseSettings):
    """The settings of the service; `read_settings` makes them, or raises BadSettings."""

    model_config = SettingsConfigDict(
        frozen=True, env_ignore_empty=True, case_sensitive=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    anthropic_api_key: str | None = _setting("ANTHROPIC_API_KEY", None, "key of the Messages API", repr=False)
    anthropic_auth_token: str | None = _setting(
        "ANTHROPIC_AUTH_TOKEN", None, "bearer token, instead of a key", repr=False
    )
    anthropic_base_url: str = _setting(
        "ANTHROPIC_BASE_URL", "https://api.anthropic.com", "the Messages API, or any relay of it"
    )
    port: int | None = _setting("PORT", None, "the platform's: serve on 0.0.0.0 at this port", ge=0, le=65535)
    workers: int = _setting("WEB_CONCURRENCY", 1, "worker processes, each on one core", ge=1, le=1024)
    redis_url: str | None = _setting(
        "REDIS_URL", None, "a Redis that counts requests and tokens of clients for all workers and machines", repr=False
    )
    offline: bool = _setting("RILL_OFFLINE", False, "1: answer from the embedded offline model, no key")
    default_model: str = _setting("RILL_DEFAULT_MODEL", DEFAULT_MODEL, "model when the request names none")
    allowed_models: Names = _setting(
        "RILL_ALLOWED_MODELS",
        (),
        "exactly the models that may be asked for, comma-separated, `*` any; `RILL_DEFAULT_MODEL`",
    )
    fallback_models: Names = _setting(
        "RILL_FALLBACK_MODELS", (), "models to try in turn if the requested one is overloaded or unavailable"
    )
    fallback_base_url: str | None = _setting(
        "RILL_FALLBACK_BASE_URL", None, "a second upstream, for when the first fails"
    )
    fallback_api_key: str | None = _setting("RILL_FALLBACK_API_KEY", None, "key of the second upstream", repr=False)
    default_max_tokens: int = _setting(
        "RILL_DEFAULT_MAX_TOKENS", 4096, "tokens of an answer when the request names none", ge=1
    )
    max_tokens: int = _setting("RILL_MAX_TOKENS", 64000, "tokens of an answer at most", ge=1)
    system_prompt: str | None = _setting("RILL_SYSTEM_PROMPT", None, "system prompt when the request has none")
    api_keys: ApiKeys = _setting(
        "RILL_API_KEYS", {}, "who may ask: `name=secret`, comma-separated; `sha256:<hex>` for a secret", repr=False
    )
    jwks_url: str | None = _setting(
        "RILL_JWKS_URL", None, "who may ask: JWTs that the keys at this URL sign, those of an OpenID provider"
    )
    jwt_secret: str | None = _setting(
        "RILL_JWT_SECRET", None, "who may ask: JWTs of your own backend, signed with this secret (HS256)", repr=False
    )
    jwt_audience: str | None = _setting("RILL_JWT_AUDIENCE", None, "the `aud` of JWTs; required with `RILL_JWKS_URL`")
    jwt_issuer: str | None = _setting("RILL_JWT_ISSUER", None, "the `iss` of JWTs; any if unset")
    allow_anonymous: bool = _setting("RILL_ALLOW_ANONYMOUS", False, "1: serve without keys on a public address")
    rate_limit: str = _setting(
        "RILL_RATE_LIMIT", "60/minute", "requests of one client (key's name, else address); several joined by `;`"
    )
    token_budget: str | None = _setting(
        "RILL_TOKEN_BUDGET", None, "tokens of one client in a time, such as `200000/day`; several joined by `;`"
    )
    max_streams: int = _setting("RILL_MAX_STREAMS", 1000, "concurrent answers, per worker", ge=1, le=100_000)
    max_streams_per_client: int = _setting(
        "RILL_MAX_STREAMS_PER_CLIENT", 50, "concurrent answers of one client, per worker", ge=1
    )
    max_body_bytes: int = _setting("RILL_MAX_BODY_BYTES", 4194304, "bytes of a request body at most", ge=1)
    cors_origins: Names = _setting(
        "RILL_CORS_ORIGINS", (), "origins whose pages may ask, comma-separated, such as https://app.example; `*` all"
    )
    allowed_hosts: Names = _setting(
        "RILL_ALLOWED_HOSTS", (), "Host names to answer to, comma-separated; `*` any; local names always"
    )
    upstream_features: Names = _setting(
        "RILL_UPSTREAM_FEATURES", (), "features of the Messages API to allow, such as `web_search`; `*` all"
    )
    trusted_proxies: int = _setting("RILL_TRUSTED_PROXIES", 0, "hops of X-Forwarded-For to trust; 1 on Heroku", ge=0)
    start_timeout_seconds: float = _setting("RILL_START_TIMEOUT_SECONDS", 25, "seconds until the answer begins", gt=0)
    idle_timeout_seconds: float = _setting(
        "RILL_IDLE_TIMEOUT_SECONDS", 120, "seconds without content from the model", gt=0
    )
    total_timeout_seconds: float = _setting("RILL_TOTAL_TIMEOUT_SECONDS", 900, "seconds of an answer in total", gt=0)
    shutdown_grace_seconds: float = _setting(
        "RILL_SHUTDOWN_GRACE_SECONDS", 20, "seconds that answers may finish in after SIGTERM", ge=0
    )
    resume_seconds: int = _setting(
        "RILL_RESUME_SECONDS", 0, "most seconds of `resume=`: an answer outlives its connection", ge=0, le=86_400
    )

    @field_validator(
        *("allowed_models", "fallback_models", "cors_origins", "allowed_hosts", "upstream_features"), mode="before"
    )
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("anthropic_base_url", "fallback_base_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not is_http_url(value):
            raise ValueError("should be an http or https URL without a password, such as https://api.anthropic.com")
        return value

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks_url(cls, value: str | None) -> str | None:
        if value is not None and not (is_http_url(value) and (value.startswith("https:") or is_on_loopback(value))):
            raise ValueError("should be an https URL without a password (http on loopback only)")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _check_jwt_secret(cls, value: str | None) -> str | None:
        is_key = value is not None and value.startswith(("-----BEGIN", "ssh-", "ecdsa-"))
        if value is not None and (is_key or len(value.encode("utf-8", "surrogateescape")) < MIN_JWT_SECRET_BYTES):
            raise ValueError(f"should be at least {MIN_JWT_SECRET_BYTES} random bytes, as of `openssl rand -hex 32`")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None and not is_redis_url(value):
            raise ValueError("should be as redis://host:6379/0, rediss:// with TLS, or redis+unix:///path")
        if value and value.startswith("rediss://") and "DYNO" in os.environ and "ssl_cert_reqs" not in value:
            # Its certificate is self-signed: https://devcenter.heroku.com/articles/connecting-heroku-redis
            value += f"{'&' if '?' in value else '?'}ssl_cert_reqs=none"
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: Names) -> Names:
        if not all(origin == "*" or ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("should be origins such as https://app.example or http://localhost:3000, without a path")
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: Names) -> Names:
        if not all(host == "*" or HOST.fullmatch(host) for host in hosts):
            raise ValueError("should be names such as rill.example.com or [fd00::7], without scheme and port")
        return hosts

    @field_validator("api_keys", mode="before")
    @classmethod
    def _digest_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_api_keys(value)
        except ValueError:
            raise ValueError(
                "should be name=secret or name=sha256:<64 hex digits>, comma-separated, with ;budget=50000/day if the "
                "client has its own; at most two secrets for one name, and no name jwt or jwt:..."
            ) from None

    @field_validator("rate_limit", "token_budget")
    @classmethod
    def _check_quotas(cls, value: str | None, info: ValidationInfo) -> str | None:
        examples = "requests in a time, such as 60/minute or 5/second;1000/day"
        if info.field_name == "token_budget":
            examples = "tokens in a time, such as 200000/day"
        try:
            parse_quotas(value or "1/day")
        except ValueError:
            raise ValueError(f"should be a number of {examples}") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _trust_the_platform(cls, values: Any) -> Any:
        # Heroku's router adds the client's address, and it is the only way to a dyno.
        return {"RILL_TRUSTED_PROXIES": "1", **values} if "DYNO" in os.environ else values

    @model_validator(mode="before")
    @classmethod
    def _choose_default_model(cls, values: Any) -> Any:
        allowed = cls._split_commas(values.get("RILL_ALLOWED_MODELS") or "")
        named = [model for model in allowed if model != "*"]
        return values if values.get("RILL_DEFAULT_MODEL") or not named else {**values, "RILL_DEFAULT_MODEL": named[0]}

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.allowed_models and "*" not in self.allowed_models and self.default_model not in self.allowed_models:
            raise ValueError("RILL_ALLOWED_MODELS should list RILL_DEFAULT_MODEL")
        if self.default_max_tokens > self.max_tokens:
            raise ValueError("RILL_DEFAULT_MAX_TOKENS should be at most RILL_MAX_TOKENS")
        if self.jwks_url and (self.jwt_secret or not self.jwt_audience):
            raise ValueError("RILL_JWKS_URL should be set with RILL_JWT_AUDIENCE, and without RILL_JWT_SECRET")
        if (self.jwt_audience or self.jwt_issuer) and not self.accepts_jwts:
            raise ValueError("RILL_JWT_AUDIENCE and RILL_JWT_ISSUER need RILL_JWKS_URL or RILL_JWT_SECRET")
        if not (self.offline or self.anthropic_api_key or self.anthropic_auth_token):
            raise ValueError("set ANTHROPIC_API_KEY to serve Claude, or RILL_OFFLINE=1 to try Rill without a key")
        if bool(self.fallback_base_url) != bool(self.fallback_api_key):
            raise ValueError("RILL_FALLBACK_BASE_URL and RILL_FALLBACK_API_KEY should be set together")
        if "*" in self.fallback_models:
            raise ValueError("RILL_FALLBACK_MODELS should be names of models; * is none")
        return self

    @property
    def accepts_jwts(self) -> bool:
        """Whether a JWT lets a client in."""
        return bool(self.jwks_url or self.jwt_secret)

    @property
    def authenticates(self) -> bool:
        """Whether a client needs an API key or a JWT."""
        return bool(self.api_keys) or self.accepts_jwts

    def enabled_models(self) -> tuple[str, ...]:
        """Return the models that clients may ask for by name; `*` stands for any, which the offline model plays."""
        return tuple(dict.fromkeys(self.allowed_models)) or ("*" if self.offline else self.default_model,)

    def known_models(self) -> tuple[str, ...]:
        """Return the models that have a name here, the default first; `*` stands for any other."""
        return tuple(dict.fromkeys((self.default_model, *self.allowed_models)))

    def has_fallbacks(self) -> bool:
        """Return whether another model or upstream may answer; the offline model never fails."""
        return not self.offline and bool(self.fallback_models or self.fallback_base_url)

    def allows(self, model: str) -> bool:
        """Return whether clients may ask for the model by name."""
        return not {model, "*"}.isdisjoint(self.enabled_models())

    def check(self, model: str | None, max_tokens: int | None) -> tuple[str, int]:
        """Return the model and max_tokens, by default those of the settings; raise Problem if they are not allowed."""
        if model is not None and len(model) > MAX_MODEL_LENGTH:
            raise Problem("bad_request", f"model: should be at most {MAX_MODEL_LENGTH} characters.")
        if model is not None and not self.allows(model):
            allowed = ", ".join(self.enabled_models())
            raise Problem("forbidden", f"model: this one may not be asked for here. Allowed: {allowed}.")
        if max_tokens is not None and not 1 <= max_tokens <= self.max_tokens:
            raise Problem("bad_request", f"max_tokens: should be from 1 to {self.max_tokens}.")
        return model or self.default_model, max_tokens or self.default_max_tokens

    def check_resume(self, seconds: int) -> int:
        """Return the seconds that a client asks an answer to outlive its connection; raise Problem if too many."""
        if not self.resume_seconds:
            raise Problem("bad_request", "resume: should be 0: RILL_RESUME_SECONDS is not set here.")
        if not 0 <= seconds <= self.resume_seconds:
            raise Problem("bad_request", f"resume: should be from 0 to {self.resume_seconds} seconds.")
        return seconds


def check_names(names: Iterable[str]) -> None:
    """Raise BadSettings for a name that begins with RILL_ and is not a setting."""
    known = [str(field.validation_alias) for field in Settings.model_fields.values()]
    for name in names:
        if name.startswith("RILL_") and name not in known:
            near = get_close_matches(name, known, 1, cutoff=0.5)
            raise BadSettings(f"{name}: no such setting{f'; did you mean {near[0]}?' if near else ''}")


class BadSettings(Exception):
    """An invalid setting; the message is one line with its name and the allowed values."""


def read_settings() -> Settings:
    """Return the settings of this process's environment; raise BadSettings."""
    check_names(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
        raise BadSettings("; ".join(lines).replace("Value error, ", "")) from None
