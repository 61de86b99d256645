"""Token budgets: what is reserved, what is charged, and what an exhausted client gets."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import upstream as wire
from asking import ask, wait_until
from conversation import Conversation
from server import Rill, StartRill
from upstream import Upstream

from rill.admission.bill import Bill
from rill.admission.budget import RESERVED_SECONDS, TokenBudget
from rill.admission.client import Client
from rill.admission.jwt import sign
from rill.admission.rate_limit import RateLimit
from rill.admission.token_estimate import estimate_input
from rill.problems import Problem
from rill.prompt import Prompt
from rill.quota import parse_quotas

SECRET = "0123456789abcdef0123456789abcdef"
# The input tokens that the fake upstream reports, and the output tokens of an answer of one piece.
INPUT, OUTPUT = 12, 1
RATE = RateLimit("1000000/minute")
ALICE = Client("alice")


def prompt(text: str = "hi", max_tokens: int = 100, **options: Any) -> Prompt:
    return Prompt("m", max_tokens, [{"role": "user", "content": text}], options)


def budget_of(quotas: str) -> TokenBudget:
    return TokenBudget(parse_quotas(quotas), 900)


def token_of(subject: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {sign(SECRET, subject, 60, claims)}"}


# Reservations


def test_a_request_reserves_its_input_and_its_max_tokens_until_it_is_settled() -> None:
    budget = budget_of("10000/day")
    asked, reservation = budget.reserve(ALICE, prompt(), RATE)
    assert asked.max_tokens == 100
    assert reservation.tokens == estimate_input(asked) + 100
    (usage,) = budget.usage(ALICE)
    assert (usage.used, usage.reserved) == (0, reservation.tokens)
    budget.settle(reservation, 42)
    (usage,) = budget.usage(ALICE)
    assert (usage.used, usage.reserved, usage.remaining) == (42, 0, 9958)


def test_if_less_is_left_max_tokens_are_lowered_to_it() -> None:
    budget = budget_of("200/day")
    asked, _ = budget.reserve(ALICE, prompt(max_tokens=1000), RATE)
    assert asked.max_tokens == 200 - estimate_input(asked)
    with pytest.raises(Problem) as rejected:
        budget.reserve(ALICE, prompt(), RATE)
    assert (rejected.value.name, rejected.value.retry_after) == ("budget_exhausted", RESERVED_SECONDS)


def test_an_exhausted_budget_states_when_its_window_ends() -> None:
    budget = budget_of("200/day")
    _, reservation = budget.reserve(ALICE, prompt(), RATE)
    budget.settle(reservation, 500)
    with pytest.raises(Problem) as rejected:
        budget.reserve(ALICE, prompt(), RATE)
    assert rejected.value.status == 429
    assert rejected.value.retry_after == pytest.approx(86400 - time.time() % 86400, abs=5)
    assert "200 per day" in rejected.value.detail


def test_each_client_has_its_own_budget() -> None:
    budget = budget_of("200/day")
    budget.settle(budget.reserve(ALICE, prompt(), RATE)[1], 200)
    with pytest.raises(Problem):
        budget.reserve(ALICE, prompt(), RATE)
    budget.reserve(Client("bob"), prompt(), RATE)


def test_a_budget_is_new_in_the_next_window() -> None:
    budget = budget_of("100/second")
    budget.settle(budget.reserve(ALICE, prompt(max_tokens=1), RATE)[1], 100)
    wait_until(lambda: budget.usage(ALICE)[0].used == 0, "the window never ends")
    budget.reserve(ALICE, prompt(max_tokens=1), RATE)


def test_thinking_is_never_lowered_below_its_own_budget() -> None:
    budget = budget_of("2000/day")
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1500}}
    asked, reservation = budget.reserve(ALICE, prompt(max_tokens=4000, **thinking), RATE)
    assert 1500 < asked.max_tokens < 2000
    budget.settle(reservation, 500)
    with pytest.raises(Problem) as rejected:
        budget.reserve(ALICE, prompt(max_tokens=4000, **thinking), RATE)
    assert rejected.value.name == "budget_exhausted"


def test_a_request_that_exceeds_the_whole_budget_is_too_large() -> None:
    with pytest.raises(Problem) as rejected:
        budget_of("100/day").reserve(ALICE, prompt("x" * 3000), RATE)
    assert rejected.value.status == 413
    assert "100 per day" in rejected.value.detail


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (Client("a"), ["1000 per day"]),
        (Client("a", budget=parse_quotas("5000/day")), ["5000 per day"]),
        (Client("a", budget=parse_quotas("50/hour")), ["50 per hour"]),
        (Client("a", restriction=parse_quotas("5000/day")), ["1000 per day"]),
        (Client("a", restriction=parse_quotas("500/day")), ["500 per day"]),
        (Client("a", restriction=parse_quotas("50/hour")), ["1000 per day", "50 per hour"]),
    ],
)
def test_an_api_key_replaces_the_budget_and_a_jwt_only_restricts_it(client: Client, expected: list[str]) -> None:
    assert [str(quota) for quota in budget_of("1000/day").budgets_of(client)] == expected


@pytest.mark.parametrize(
    ("content", "least", "most"),
    [
        ("x" * 3000, 1000, 1100),
        ("溪" * 1000, 1000, 1100),
        ([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 90000}}], 1600, 1700),
        (
            [{"type": "document", "source": {"media_type": "application/pdf", "data": "A" * 120_000}}],
            10_000,
            10_100,
        ),
        ([{"type": "text", "text": "\ud800"}], 1, 100),
    ],
)
def test_the_estimate_of_the_input_is_rather_high(content: Any, least: int, most: int) -> None:
    assert least <= estimate_input(Prompt("m", 1, [{"role": "user", "content": content}])) <= most


def test_system_prompt_and_tools_count_as_input() -> None:
    tools = [{"name": "get", "description": "y" * 3000, "input_schema": {}}]
    assert estimate_input(prompt(system="x" * 3000, tools=tools)) > 2000


class Counted:
    """An answer with these counts."""

    def __init__(self, usage: dict[str, Any], received_bytes: int = 0, has_final_usage: bool = False) -> None:
        self.usage = usage
        self.received_bytes = received_bytes
        self.has_final_usage = has_final_usage


STARTED = {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 2}


@pytest.mark.parametrize(
    ("answer", "outcome", "tokens"),
    [
        (Counted({**STARTED, "output_tokens": 30}, 3000, True), "completed", 48),
        (Counted(STARTED, 300), "client_disconnected", 118),
        (Counted(STARTED, 0), "client_disconnected", 20),
        (Counted(STARTED, 300), "upstream_truncated", 118),
        (Counted({**STARTED, "output_tokens": 500}, 300), "client_disconnected", 518),
        (Counted({}, 0), "client_disconnected", "input"),
        (None, "client_disconnected", "input"),
        (None, "client_too_slow", "input"),
        (None, "upstream_overloaded", 0),
        (None, "start_timeout", 0),
        (None, "at_capacity", 0),
        (Counted({}, 0), "upstream_error", 0),
        (Counted({"input_tokens": "many", "output_tokens": -5}, 30, True), "completed", "input + 10"),
    ],
)
def test_what_an_answer_costs(answer: Counted | None, outcome: str, tokens: int | str) -> None:
    _, reservation = budget_of("100000/day").reserve(ALICE, prompt("x" * 300), RATE)
    bill = Bill(reservation, is_streamed=True)
    bill.answer = answer
    expected = {"input": reservation.input_tokens, "input + 10": reservation.input_tokens + 10}
    assert bill.tokens(outcome) == (expected[tokens] if isinstance(tokens, str) else tokens)


def test_a_disconnect_before_an_answer_that_is_sent_whole_costs_the_reservation() -> None:
    _, reservation = budget_of("100000/day").reserve(ALICE, prompt(), RATE)
    assert Bill(reservation, is_streamed=False).tokens("client_disconnected") == reservation.tokens
    assert Bill(reservation, is_streamed=True).tokens("client_stopped") == reservation.input_tokens


# The server


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_JWT_SECRET=SECRET, RILL_TOKEN_BUDGET="1000/day", RILL_API_KEYS="big=of-big;budget=50000/day")


def usage_of(rill: Rill, headers: dict[str, str]) -> dict[str, int]:
    with rill.ask("GET", "/usage", {"Accept": "application/json", **headers}) as asked:
        assert asked.status == 200
        budgets: list[dict[str, int]] = json.loads(asked.read_rest())["budgets"]
        return budgets[0]


def wait_for_use(rill: Rill, headers: dict[str, str], expected: Callable[[int], bool]) -> int:
    """Wait until nothing is reserved and the used tokens are as expected; return them."""
    seen: list[dict[str, int]] = []

    def settled() -> bool:
        seen.append(usage_of(rill, headers))
        return seen[-1]["reserved"] == 0 and expected(seen[-1]["used"])

    wait_until(settled, lambda: str(seen[-1]))
    return seen[-1]["used"]


@pytest.mark.parametrize("dialect", ["text", "sse", "anthropic", "anthropic whole", "openai", "openai whole"])
def test_an_answer_costs_what_the_upstream_counts(rill: Rill, upstream: Upstream, dialect: str) -> None:
    headers = token_of(f"counts {dialect}")
    if dialect == "anthropic whole":
        usage = {"input_tokens": INPUT, "output_tokens": 7}
        message = {"type": "message", "content": [], "stop_reason": "end_turn", "usage": usage}
        upstream.script(wire.status(200, {"Content-Type": "application/json"}, json.dumps(message).encode()))
        tokens = INPUT + 7
    else:
        upstream.script(*wire.answer("one ", "two ", "three"))
        tokens = INPUT + 3
    with ask(rill, dialect, headers, max_tokens=50) as asked:
        assert asked.status == 200
        asked.read_rest()
    wait_for_use(rill, headers, lambda used: used == tokens)


@pytest.mark.parametrize("dialect", ["text", "sse", "anthropic", "openai"])
def test_a_disconnect_before_the_last_event_saves_nothing(rill: Rill, upstream: Upstream, dialect: str) -> None:
    headers = token_of(f"leaves {dialect}")
    begin, rest = wire.text("a word and another " * 5), wire.text("some more of them, " * 9 + "and a last word ...")
    upstream.script(wire.head(), wire.send(wire.opening(), begin), wire.gate("rest"), wire.send(rest), wire.silence())
    with ask(rill, dialect, headers, max_tokens=500) as asked:
        asked.read_until(b"another")
        upstream.open("rest")
        asked.read_until(b"last word")
    wait_for_use(rill, headers, lambda used: used == INPUT + 95)


def test_a_disconnect_before_any_event_costs_the_estimated_input(rill: Rill, upstream: Upstream) -> None:
    headers = token_of("leaves at once")
    upstream.script(wire.silence())
    with ask(rill, headers=headers, q="x" * 300, max_tokens=100):
        upstream.wait_for_requests(1)
    wait_for_use(rill, headers, lambda used: 100 <= used <= 150)


def test_a_failure_of_the_upstream_costs_nothing(rill: Rill, upstream: Upstream) -> None:
    headers = token_of("fails")
    upstream.script(wire.error(400, "invalid_request_error", "no"))
    with ask(rill, headers=headers, max_tokens=100) as asked:
        assert asked.status == 400
    wait_for_use(rill, headers, lambda used: used == 0)


def test_what_is_left_lowers_max_tokens_and_a_header_says_so(rill: Rill, upstream: Upstream) -> None:
    headers = token_of("lowers")
    upstream.script(*wire.answer("ok"))
    with ask(rill, headers=headers, max_tokens=5000) as asked:
        lowered = int(asked.headers["x-max-tokens"])
        asked.read_rest()
    assert 900 < lowered < 1000
    assert upstream.requests[-1].json["max_tokens"] == lowered
    upstream.script(*wire.answer("ok"))
    with ask(rill, headers=headers, max_tokens=50) as asked:
        assert "x-max-tokens" not in asked.headers


def exhaust(rill: Rill, upstream: Upstream, headers: dict[str, str]) -> None:
    events = wire.block_stop() + wire.stop(output_tokens=2000)
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("much"), events), wire.end())
    with ask(rill, headers=headers, max_tokens=100) as asked:
        asked.read_rest()
    wait_for_use(rill, headers, lambda used: used == INPUT + 2000)


def test_an_exhausted_client_is_rejected_in_each_dialect_and_counted(rill: Rill, upstream: Upstream) -> None:
    headers = token_of("exhausted")
    exhaust(rill, upstream, headers)
    for dialect in ("text", "sse", "anthropic", "openai"):
        with ask(rill, dialect, headers) as asked:
            assert asked.status == 429
            assert 1 <= int(asked.headers["retry-after"]) <= 86400
            assert asked.headers.get("x-should-retry") == ("false" if dialect in ("anthropic", "openai") else None)
            assert_reports_exhaustion(asked, dialect)
    with rill.ask("GET", "/metrics", {"x-api-key": "of-big"}) as scraped:
        assert b'rill_requests_rejected_total{reason="budget_exhausted"}' in scraped.read_rest()
    with rill.ask("GET", "/stream?q=hi", {"Accept": "application/json", **headers}) as asked:
        assert json.loads(asked.read_rest())["code"] == "budget_exhausted"


def assert_reports_exhaustion(asked: Conversation, dialect: str) -> None:
    body = asked.read_rest().decode()
    assert "1000 per day" in body
    if dialect == "anthropic":
        assert json.loads(body)["error"]["type"] == "rate_limit_error"
    if dialect == "openai":
        assert "rate_limit" in str(json.loads(body)["error"])


def test_the_budget_of_an_api_key_replaces_that_of_the_settings(rill: Rill, upstream: Upstream) -> None:
    assert usage_of(rill, {"x-api-key": "of-big"})["limit"] == 50000
    upstream.script(*wire.answer("ok"))
    with ask(rill, headers={"x-api-key": "of-big"}, max_tokens=5000) as asked:
        assert "x-max-tokens" not in asked.headers


def test_a_client_without_credentials_has_a_budget_too(share_rill: StartRill, upstream: Upstream) -> None:
    rill = share_rill(RILL_TOKEN_BUDGET="100/day", RILL_TRUSTED_PROXIES="1")
    alice, bob = {"X-Forwarded-For": "203.0.113.1"}, {"X-Forwarded-For": "203.0.113.2"}
    exhaust(rill, upstream, alice)
    upstream.script(*wire.answer("ok"))
    with ask(rill, headers=alice) as first, ask(rill, headers=bob) as second:
        assert (first.status, second.status) == (429, 200)


def test_the_log_has_the_tokens_of_each_kind_and_the_charge(rill: Rill, upstream: Upstream) -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 11, "output_tokens": 1}
    begin = wire.event("message_start", message={"usage": usage, "role": "assistant"})
    upstream.script(wire.head(), wire.send(begin, wire.text("ok"), wire.stop(output_tokens=13)), wire.end())
    with ask(rill, headers=token_of("logged"), name="logged-tokens", max_tokens=10) as asked:
        asked.read_rest()
    wait_until(lambda: '"logged-tokens"' in rill.output(), rill.output)
    line = json.loads(next(line for line in rill.output().splitlines() if '"logged-tokens"' in line))
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "charged_tokens")
    assert [line[name] for name in names] == [5, 13, 7, 11, 36]


def test_a_reservation_holds_for_the_whole_answer_and_concurrent_ones_share_the_budget(
    rill: Rill, upstream: Upstream
) -> None:
    headers = token_of("concurrent")
    upstream.always(
        wire.head(),
        wire.send(wire.opening(), wire.text("first")),
        wire.gate("rest"),
        wire.send(wire.stop(output_tokens=3)),
        wire.end(),
    )
    with ask(rill, headers=headers, max_tokens=600) as first, ask(rill, headers=headers, max_tokens=600) as second:
        assert (first.status, second.status) == (200, 200)
        lowered = [int(each.headers.get("x-max-tokens", 600)) for each in (first, second)]
        assert 600 in lowered
        assert sum(lowered) < 1000
        with ask(rill, headers=headers) as third:
            assert (third.status, third.headers["retry-after"]) == (429, str(RESERVED_SECONDS))
        upstream.open("rest")
        assert (first.read_rest(), second.read_rest()) == (b"first", b"first")
    wait_for_use(rill, headers, lambda used: used == 2 * (INPUT + 3))
