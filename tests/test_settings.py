"""Settings come from the environment only, and a bad one stops the start in one line that names it."""

import hashlib
import os
import re
import socket
import subprocess
import sys
from typing import Any

import pytest
from server import ROOT, StartFailed, StartRill

from rill.problems import Problem
from rill.settings import BadSettings, Settings, read_settings

KEY = {"ANTHROPIC_API_KEY": "sk-ant-test"}
HASHED = "sha256:" + hashlib.sha256(b"open sesame").hexdigest()

# The documented defaults.
DEFAULTS = {
    "offline": False,
    "default_model": "claude-sonnet-5-5",
    "default_max_tokens": 4096,
    "max_tokens": 64000,
    "system_prompt": None,
    "api_keys": {},
    "allow_anonymous": False,
    "rate_limit": "60/minute",
    "max_streams": 1000,
    "max_streams_per_client": 50,
    "max_body_bytes": 4194304,
    "trusted_proxies": 0,
    "allowed_hosts": (),
    "upstream_features": (),
    "fallback_models": (),
    "fallback_base_url": None,
    "fallback_api_key": None,
    "start_timeout_seconds": 25,
    "idle_timeout_seconds": 120,
    "total_timeout_seconds": 900,
    "shutdown_grace_seconds": 20,
    "anthropic_base_url": "https://api.anthropic.com",
    "port": None,
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {field.validation_alias for field in Settings.model_fields.values()} | {"DYNO"}
    for name in names:
        monkeypatch.delenv(str(name), raising=False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    def read_with(**env: str) -> Settings:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return read_settings()

    return read_with


def rejection(read: Any, **env: str) -> str:
    with pytest.raises(BadSettings) as rejected:
        read(**{**KEY, **env})
    message = str(rejected.value)
    assert message
    assert "\n" not in message
    return message


# Values


@pytest.mark.parametrize(("field", "default"), DEFAULTS.items())
def test_each_setting_has_its_documented_default(read: Any, field: str, default: object) -> None:
    assert getattr(read(**KEY), field) == default


def test_on_heroku_one_proxy_is_trusted_by_default(read: Any) -> None:
    assert read(**KEY, DYNO="web.1").trusted_proxies == 1
    assert read(**KEY, DYNO="web.1", RILL_TRUSTED_PROXIES="0").trusted_proxies == 0


def test_an_empty_variable_is_treated_as_unset(read: Any) -> None:
    names = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert read(**{**dict.fromkeys(names, ""), **KEY}) == read(**KEY)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("PORT", "8080", "port", 8080),
        ("WEB_CONCURRENCY", "4", "workers", 4),
        ("RILL_OFFLINE", "1", "offline", True),
        ("RILL_OFFLINE", "0", "offline", False),
        ("RILL_ALLOW_ANONYMOUS", "1", "allow_anonymous", True),
        ("RILL_DEFAULT_MODEL", "claude-opus-4-8", "default_model", "claude-opus-4-8"),
        ("RILL_DEFAULT_MAX_TOKENS", "1", "default_max_tokens", 1),
        ("RILL_SYSTEM_PROMPT", "Be brief, 溪.", "system_prompt", "Be brief, 溪."),
        ("RILL_RATE_LIMIT", "5/second", "rate_limit", "5/second"),
        ("RILL_MAX_STREAMS", "10000", "max_streams", 10000),
        ("RILL_START_TIMEOUT_SECONDS", "0.5", "start_timeout_seconds", 0.5),
        ("RILL_SHUTDOWN_GRACE_SECONDS", "0", "shutdown_grace_seconds", 0),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9000/relay", "anthropic_base_url", "http://127.0.0.1:9000/relay"),
        ("RILL_ALLOWED_MODELS", "a, b ,,c", "allowed_models", ("a", "b", "c")),
        ("RILL_FALLBACK_MODELS", "a, b ,,c", "fallback_models", ("a", "b", "c")),
        ("RILL_ALLOWED_HOSTS", "a.example, [::2]", "allowed_hosts", ("a.example", "[::2]")),
        ("RILL_UPSTREAM_FEATURES", "web_search,context-1m", "upstream_features", ("web_search", "context-1m")),
    ],
)
def test_each_value_is_read(read: Any, name: str, value: str, field: str, expected: object) -> None:
    assert getattr(read(**{**KEY, name: value}), field) == expected


@pytest.mark.parametrize(
    ("keys", "secrets"),
    [
        ("one", {"default": "one"}),
        ("alice=one, bob=two ,three,", {"alice": "one", "bob": "two", "default": "three"}),
        ("alice=a=b=c", {"alice": "a=b=c"}),
        ("alice=schlüssel-溪", {"alice": "schlüssel-溪"}),
        ("alice=\udcff", {"alice": "\udcff"}),
        (f"alice={HASHED}", {"alice": "open sesame"}),
        (f"{HASHED}", {"default": "open sesame"}),
        ("sha256:" + HASHED.removeprefix("sha256:").upper(), {"default": "open sesame"}),
    ],
)
def test_api_keys_are_stored_as_digests(read: Any, keys: str, secrets: dict[str, str]) -> None:
    assert {name: key.digests for name, key in read(**KEY, RILL_API_KEYS=keys).api_keys.items()} == {
        name: (hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest(),) for name, secret in secrets.items()
    }


@pytest.mark.parametrize(
    ("models", "allowed", "rejected"),
    [
        ("", ["claude-sonnet-5-5"], ["other", "", "*"]),
        ("one, two", ["one", "two"], ["three", "on", "claude-sonnet-5-5"]),
        ("*", ["anything", "claude-sonnet-5-5"], []),
    ],
)
def test_only_allowed_models_are_accepted(read: Any, models: str, allowed: list[str], rejected: list[str]) -> None:
    settings = read(**KEY, RILL_ALLOWED_MODELS=models)
    assert [settings.check(model, None)[0] for model in allowed] == allowed
    for model in rejected:
        with pytest.raises(Problem, match="model:") as forbidden:
            settings.check(model, None)
        assert forbidden.value.status == 403


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"RILL_ALLOWED_MODELS": "one,two"}, "one"),
        ({"RILL_ALLOWED_MODELS": "*,two"}, "two"),
        ({"RILL_ALLOWED_MODELS": "*"}, "claude-sonnet-5-5"),
        ({"RILL_ALLOWED_MODELS": "one,two", "RILL_DEFAULT_MODEL": "two"}, "two"),
    ],
)
def test_the_first_allowed_model_is_the_default_if_no_other_is_set(
    read: Any, env: dict[str, str], expected: str
) -> None:
    assert read(**KEY, **env).check(None, None)[0] == expected


def test_the_known_models_begin_with_the_default_one(read: Any) -> None:
    settings = read(**KEY, RILL_ALLOWED_MODELS="one,two,*", RILL_DEFAULT_MODEL="two")
    assert settings.known_models() == ("two", "one", "*")


def test_the_self_signed_certificate_of_heroku_is_accepted(read: Any) -> None:
    url = "rediss://:hidden@redis.example:6379/0"
    assert read(**KEY, REDIS_URL=url).redis_url == url
    assert read(**KEY, REDIS_URL=url, DYNO="web.1").redis_url == f"{url}?ssl_cert_reqs=none"
    assert read(**KEY, REDIS_URL=f"{url}?db=1", DYNO="web.1").redis_url == f"{url}?db=1&ssl_cert_reqs=none"


def test_a_default_model_that_is_not_allowed_is_rejected(read: Any) -> None:
    assert "RILL_ALLOWED_MODELS" in rejection(read, **KEY, RILL_ALLOWED_MODELS="one", RILL_DEFAULT_MODEL="two")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("RILL_API_KEY", "RILL_API_KEYS"), ("RILL_RATE", "RILL_RATE_LIMIT"), ("RILL_MAX_STREAM", "RILL_MAX_STREAMS")],
)
def test_an_unknown_setting_is_rejected_and_the_nearest_name_is_suggested(read: Any, name: str, expected: str) -> None:
    assert rejection(read, **KEY, **{name: "1"}) == f"{name}: no such setting; did you mean {expected}?"


def test_the_length_of_a_model_name_is_limited(read: Any) -> None:
    settings = read(**KEY, RILL_ALLOWED_MODELS="*")
    assert settings.check("m" * 200, None)[0] == "m" * 200
    with pytest.raises(Problem, match="model: should be at most 200 characters"):
        settings.check("m" * 201, None)


def test_max_tokens_is_limited_and_has_a_default(read: Any) -> None:
    settings = read(**KEY, RILL_DEFAULT_MAX_TOKENS="10", RILL_MAX_TOKENS="20")
    assert settings.check(None, None) == ("claude-sonnet-5-5", 10)
    assert [settings.check(None, count)[1] for count in (1, 20)] == [1, 20]
    for count in (0, -1, 21):
        with pytest.raises(Problem, match="max_tokens: should be from 1 to 20"):
            settings.check(None, count)


# Bad values

BAD_VALUES = {
    "PORT": ["no", "-1", "65536", "80.5"],
    "WEB_CONCURRENCY": ["0", "-2", "2000", "many"],
    "RILL_OFFLINE": ["2", "maybe"],
    "RILL_ALLOW_ANONYMOUS": ["2", "please"],
    "RILL_DEFAULT_MAX_TOKENS": ["0", "-1", "1.5", "many", "64001"],
    "RILL_MAX_TOKENS": ["0", "lots"],
    "RILL_RATE_LIMIT": ["fast", "60", "60/fortnight", "/minute", "-1/minute", "0/minute"],
    "RILL_MAX_STREAMS": ["0", "-1", "1e3", "1000001"],
    "RILL_MAX_STREAMS_PER_CLIENT": ["0", "x"],
    "RILL_MAX_BODY_BYTES": ["0", "1MB"],
    "RILL_TRUSTED_PROXIES": ["-1", "all"],
    "RILL_ALLOWED_HOSTS": ["https://a.example", "a.example:80", "a.example/", "a b", "*.example", "[::1", "::1"],
    "RILL_CORS_ORIGINS": [
        *("app.example", "https://app.example/", "https://app.example/path", "https://*.example", "null"),
        *("https://app[0-9].example", "https://(app|web).example", "https://app.example,nonsense"),
    ],
    "REDIS_URL": [
        *("http://:hidden@127.0.0.1:6379/0", "redis://:hidden@127.0.0.1:hidden/0"),
        *("redis://:pass/hidden@127.0.0.1:6379/0", "redis://:hidden@127.0.0.1:6379/0?hidden=1"),
        "redis://:hidden@127.0.0.1:6379/0?socket_timeout=hidden",
    ],
    "RILL_START_TIMEOUT_SECONDS": ["0", "-1", "soon", "nan", "inf"],
    "RILL_IDLE_TIMEOUT_SECONDS": ["0", "nan", "inf"],
    "RILL_TOTAL_TIMEOUT_SECONDS": ["0", "nan", "inf"],
    "RILL_SHUTDOWN_GRACE_SECONDS": ["-1", "nan", "inf"],
    "ANTHROPIC_BASE_URL": [
        *("api.anthropic.com", "ftp://x", "http://", "https:///v1", "http://[bad", "http://x:99999"),
        *("http://256.1.1.1", "http://a..b", f"http://{'a' * 64}.example", "https://name:hidden@relay.example"),
    ],
    "RILL_FALLBACK_MODELS": ["*", "a,*"],
    "RILL_FALLBACK_BASE_URL": ["api.anthropic.com", "https://name:hidden@relay.example", "https://alone.example"],
    "RILL_FALLBACK_API_KEY": ["hidden"],
    "RILL_API_KEYS": [
        "alice=",
        "=secret",
        "alice=sha256:abc",
        f"alice=sha256:{'g' * 64}",
        "sha256:",
        "one,bob=",
        "=",
        "c2VjcmV0cw==",
        "a,b",
        "a=1,a=1",
        "a=1,a=2,a=3",
        "a=1;budget=5/day,a=2;budget=6/day",
        "a=1;budget=",
        "a=1;budget=some/day",
        "jwt=hidden",
        "jwt:alice=hidden",
    ],
    "RILL_JWKS_URL": [
        *("http://id.example/keys", "file:///keys.json", "https://name:hidden@id.example", "https://", "localhost"),
        "https://id.example/keys",  # without RILL_JWT_AUDIENCE
    ],
    "RILL_JWT_SECRET": ["hidden", "x" * 31, "-----BEGIN PUBLIC KEY-----" + "x" * 32],
    "RILL_JWT_AUDIENCE": ["rill"],
    "RILL_JWT_ISSUER": ["https://id.example"],
    "RILL_TOKEN_BUDGET": ["many", "200000", "0/day", "1000/fortnight"],
}


# The example of a good value in the message.
EXAMPLES = {
    "RILL_ALLOWED_HOSTS": "rill.example.com",
    "RILL_CORS_ORIGINS": "https://app.example",
    "REDIS_URL": "redis://",
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values])
def test_a_bad_value_is_rejected_in_one_line_that_names_it(read: Any, name: str, value: str) -> None:
    message = rejection(read, **{name: value})
    assert name in message
    assert EXAMPLES.get(name, "") in message
    assert "hidden" not in message


def test_without_an_upstream_key_the_message_states_what_to_set(read: Any) -> None:
    message = rejection(read, ANTHROPIC_API_KEY="")
    assert "ANTHROPIC_API_KEY" in message
    assert "RILL_OFFLINE=1" in message


@pytest.mark.parametrize("env", [{"RILL_OFFLINE": "1"}, {"ANTHROPIC_AUTH_TOKEN": "t"}, KEY])
def test_an_api_key_an_auth_token_or_offline_mode_is_sufficient(read: Any, env: dict[str, str]) -> None:
    read(**env)


def test_a_second_upstream_has_its_own_key(read: Any) -> None:
    second = {"RILL_FALLBACK_BASE_URL": "https://relay.example", "RILL_FALLBACK_API_KEY": "sk-hidden"}
    settings = read(**KEY, **second)
    assert (settings.fallback_base_url, settings.fallback_api_key) == tuple(second.values())
    assert settings.has_fallbacks()
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("env", "expected"),
    [({}, False), ({"RILL_FALLBACK_MODELS": "b"}, True), ({"RILL_FALLBACK_MODELS": "b", "RILL_OFFLINE": "1"}, False)],
)
def test_only_real_models_have_fallbacks(read: Any, env: dict[str, str], expected: bool) -> None:
    assert read(**KEY, **env).has_fallbacks() is expected


def test_several_bad_values_are_all_named_in_one_line(read: Any) -> None:
    message = rejection(read, RILL_MAX_STREAMS="none", RILL_MAX_BODY_BYTES="0")
    assert "RILL_MAX_STREAMS" in message
    assert "RILL_MAX_BODY_BYTES" in message


def test_no_message_shows_a_secret(read: Any) -> None:
    message = rejection(read, ANTHROPIC_API_KEY="sk-ant-hidden", RILL_API_KEYS="alice=hidden", RILL_MAX_STREAMS="0")
    assert "hidden" not in message
    settings = read(ANTHROPIC_API_KEY="sk-ant-hidden", RILL_MAX_STREAMS="1")
    assert "hidden" not in repr(settings)


def test_settings_are_immutable(read: Any) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(**KEY).max_streams = 5


# The start of the real server

# Settings that gunicorn.conf.py reads; BAD_VALUES has every bad value.
STARTS: dict[str, tuple[dict[str, str | None], str]] = {
    "no key": ({"ANTHROPIC_API_KEY": None}, "ANTHROPIC_API_KEY"),
    "a bad port": ({"PORT": "70000"}, "PORT"),
    "an endless shutdown": ({"RILL_SHUTDOWN_GRACE_SECONDS": "inf"}, "RILL_SHUTDOWN_GRACE_SECONDS"),
}


def fail_to_start(start_rill: StartRill, *arguments: str, **options: Any) -> str:
    """Return the line with which the start of the server fails."""
    with pytest.raises(StartFailed) as failed:
        start_rill(*arguments, **options)
    assert failed.value.exit_code not in (None, 0)
    assert "Traceback" not in failed.value.output
    (line,) = re.findall(r"^rill: (.*)$", failed.value.output, re.MULTILINE)
    return str(line)


@pytest.mark.parametrize(("env", "name"), STARTS.values(), ids=STARTS)
def test_a_bad_setting_stops_the_start(start_rill: StartRill, env: dict[str, str | None], name: str) -> None:
    assert name in fail_to_start(start_rill, **env)


def test_a_public_address_among_others_stops_the_start(start_rill: StartRill) -> None:
    line = fail_to_start(start_rill, "--bind", "127.0.0.1:0", "--bind", "0.0.0.0:0")
    assert "RILL_ALLOW_ANONYMOUS=1" in line


# Starts the server as systemd starts a socket-activated service: https://www.freedesktop.org/software/systemd/man/sd_listen_fds.html
HAND_DOWN = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS=sys.argv[2], LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "wsgi:app", *sys.argv[3:]])
"""


@pytest.mark.server
@pytest.mark.parametrize("options", [["1"], ["0", "--bind", "fd://3"]], ids=["LISTEN_FDS", "fd://3"])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_a_public_socket_that_systemd_passes_stops_the_start(address: str, options: list[str]) -> None:
    with (
        socket.create_server((address, 0)) as listener,
        subprocess.Popen(
            [sys.executable, "-c", HAND_DOWN, str(listener.fileno()), *options],
            cwd=ROOT,
            env={**KEY, "PATH": os.environ["PATH"]},
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server,
    ):
        assert server.stdout
        line = next(line for line in server.stdout if "rill: " in line or "Listening" in line)
        server.terminate()
    assert ("RILL_ALLOW_ANONYMOUS=1" in line) == (address == "0.0.0.0")
    assert ("Listening" in line) == (address == "127.0.0.1")


def test_an_answer_may_outlive_its_connection_for_the_seconds_of_the_settings(read: Any) -> None:
    settings = read(RILL_OFFLINE="1", RILL_RESUME_SECONDS="60")
    assert settings.check_resume(60) == 60
    for seconds in (-1, 61):
        with pytest.raises(Problem, match="resume: should be from 0 to 60 seconds"):
            settings.check_resume(seconds)
    with pytest.raises(Problem, match="RILL_RESUME_SECONDS is not set here"):
        read(RILL_OFFLINE="1", RILL_RESUME_SECONDS="0").check_resume(1)


def test_a_key_or_a_jwt_authenticates(read: Any) -> None:
    assert not read(RILL_OFFLINE="1").authenticates
    assert read(RILL_OFFLINE="1", RILL_JWT_SECRET="s" * 32).authenticates


@pytest.mark.server
def test_a_failed_start_writes_one_line_to_stderr_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "wsgi:app"], cwd=ROOT, env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert re.fullmatch(r"rill: [^\n]+\n", done.stderr)
