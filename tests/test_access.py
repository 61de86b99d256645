"""Who may ask: whoever sends one of the tokens that are set."""

import hashlib

import pytest

from rill.access import Tokens
from rill.problems import Problem

HASHED = "sha256:" + hashlib.sha256(b"open sesame").hexdigest()


@pytest.mark.parametrize(
    ("entries", "sent", "name"),
    [
        (["alice=one"], "one", "alice"),
        (["alice=one", "bob=two"], "two", "bob"),
        (["one"], "one", "default"),
        (["alice=one", "two"], "two", "default"),
        ([f"alice={HASHED}"], "open sesame", "alice"),
        ([HASHED], "open sesame", "default"),
        (["sha256:" + HASHED.removeprefix("sha256:").upper()], "open sesame", "default"),
        (["alice=a=b=c"], "a=b=c", "alice"),
        (["alice=schlüssel-溪"], "schlüssel-溪", "alice"),
    ],
)
def test_a_token_that_is_set_names_its_caller(entries: list[str], sent: str, name: str) -> None:
    assert Tokens(entries).name_of(sent, "203.0.113.7") == name


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
def test_any_other_token_is_refused(sent: str | None) -> None:
    with pytest.raises(Problem) as refused:
        Tokens(["alice=one", f"bob={HASHED}"]).name_of(sent, "203.0.113.7")
    assert refused.value.status == 401


@pytest.mark.parametrize("entry", ["alice=", "=", "alice=sha256:" + hashlib.sha256(b"").hexdigest()])
@pytest.mark.parametrize("sent", [None, ""])
def test_an_empty_secret_lets_nobody_in(entry: str, sent: str | None) -> None:
    with pytest.raises(Problem):
        Tokens([entry]).name_of(sent, "203.0.113.7")


def test_the_refusal_never_repeats_what_was_sent() -> None:
    with pytest.raises(Problem) as refused:
        Tokens(["alice=one"]).name_of("a-secret-mistyped", "203.0.113.7")
    assert "mistyped" not in str(refused.value.as_json())
    assert "one" not in refused.value.detail.split()


@pytest.mark.parametrize("sent", [None, "", "anything"])
def test_where_no_tokens_are_set_everybody_may_ask_and_is_known_by_address(sent: str | None) -> None:
    assert Tokens([]).name_of(sent, "203.0.113.7") == "203.0.113.7"
