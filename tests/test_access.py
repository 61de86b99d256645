"""Authentication accepts exactly the configured API keys."""

import pytest

from rill.admission.auth import Authentication
from rill.credentials import ApiKey, digest_of, parse_api_keys
from rill.problems import Problem

HASHED = "sha256:" + digest_of("open sesame").hex()


KEYS = Authentication(parse_api_keys("alice=one,bob=open sesame,schlüssel-溪"))


@pytest.mark.parametrize(("sent", "name"), [("one", "alice"), ("open sesame", "bob"), ("schlüssel-溪", "default")])
def test_a_configured_key_identifies_its_client(sent: str, name: str) -> None:
    assert KEYS.client_of(sent, "203.0.113.7").name == name


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        " ",
        "wrong",
        "ONE",
        "one ",
        "on",
        "alice=one",
        "alice",
        HASHED,
        HASHED.removeprefix("sha256:"),
        "пароль",
        "\udcff",
        "x" * 100_000,
    ],
)
def test_any_other_key_is_rejected(sent: str | None) -> None:
    with pytest.raises(Problem) as rejected:
        KEYS.client_of(sent, "203.0.113.7")
    assert rejected.value.status == 401


@pytest.mark.parametrize("sent", [None, ""])
def test_an_empty_secret_never_authenticates(sent: str | None) -> None:
    with pytest.raises(Problem):
        Authentication({"alice": ApiKey((digest_of(""),))}).client_of(sent, "203.0.113.7")


def test_the_rejection_never_repeats_the_key_that_was_sent() -> None:
    with pytest.raises(Problem) as rejected:
        KEYS.client_of("a-secret-mistyped", "203.0.113.7")
    assert "mistyped" not in str(rejected.value.as_json())
    assert "one" not in rejected.value.detail.split()


@pytest.mark.parametrize("sent", [None, "", "anything"])
def test_without_keys_every_client_is_identified_by_its_address(sent: str | None) -> None:
    assert Authentication({}).client_of(sent, "203.0.113.7").name == "203.0.113.7"
