"""GET /usage: what a client has used of its token budgets."""

import json
from typing import Any

import pytest
import upstream as wire
from asking import ask, wait_until
from server import Rill, StartRill
from upstream import Upstream

from rill.admission.jwt import sign

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_JWT_SECRET=SECRET, RILL_TOKEN_BUDGET="1000/day")


def token_of(subject: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {sign(SECRET, subject, 60, claims)}"}


def test_curl_gets_one_line_and_a_program_json(rill: Rill, upstream: Upstream) -> None:
    headers = token_of("alice")
    upstream.script(*wire.answer("ok"))
    with ask(rill, headers=headers, max_tokens=10) as asked:
        asked.read_rest()

    def line() -> str:
        with rill.ask("GET", "/usage", {"Accept": "*/*", **headers}) as asked:
            assert asked.headers["content-type"] == "text/plain; charset=utf-8"
            return asked.read_rest().decode()

    expected = "jwt:alice: 13 of 1000 tokens per day used, 0 reserved, 987 left, new budget in "
    wait_until(lambda: line().startswith(expected), line)
    assert line().count("\n") == 1
    with rill.ask("GET", "/usage", {"Accept": "application/json", **headers}) as asked:
        report = json.loads(asked.read_rest())
    (budget,) = report["budgets"]
    assert 0 < budget.pop("resets_in_seconds") <= 86400
    assert report["client"] == "jwt:alice"
    assert budget == {"limit": 1000, "period": "day", "used": 13, "reserved": 0, "remaining": 987}


def test_each_client_sees_its_own_usage_only(rill: Rill) -> None:
    with rill.ask("GET", "/usage", token_of("bob")) as asked:
        assert asked.read_rest().startswith(b"jwt:bob: 0 of 1000 ")
    with rill.ask("GET", "/usage") as asked:
        assert asked.status == 401


def test_every_budget_that_applies_has_its_line(rill: Rill) -> None:
    with rill.ask("GET", "/usage", token_of("carol", rill_budget="50/hour")) as asked:
        lines = asked.read_rest().decode().splitlines()
    assert [line.split(" tokens")[0] for line in lines] == ["jwt:carol: 0 of 1000", "jwt:carol: 0 of 50"]


def test_without_a_budget_the_usage_says_so(share_rill: StartRill) -> None:
    rill = share_rill()
    with rill.ask("GET", "/usage") as asked:
        assert asked.read_rest() == b"127.0.0.1: no token budget\n"
    with rill.ask("GET", "/usage", {"Accept": "application/json"}) as asked:
        assert json.loads(asked.read_rest()) == {"client": "127.0.0.1", "budgets": []}
