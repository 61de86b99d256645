"""What the tests of fallbacks share: configurations, answers, and who answered."""

import json

import upstream as wire
from asking import ask
from server import Rill
from upstream import Step, Upstream
from witness import logged, name_request

MODEL, SPARE = "claude-sonnet-5-5", "claude-haiku-5"
KEY, SECOND_KEY = "sk-test-key", "sk-second-key"
WAYS = ("text", "sse", "anthropic", "openai", "anthropic whole", "openai whole")
# Makes each repeated attempt immediate.
AT_ONCE = {"retry-after": "0"}
OVERLOADED = wire.error(529, "overloaded_error", "Overloaded", AT_ONCE)
FAILING = wire.error(500, "api_error", "oh", AT_ONCE)


def fallbacks(configuration: str, second: Upstream) -> dict[str, str]:
    """Return the settings of a configuration."""
    env = {"RILL_START_TIMEOUT_SECONDS": "8", "RILL_ALLOWED_MODELS": MODEL}
    if configuration in ("model", "both"):
        env |= {"RILL_FALLBACK_MODELS": SPARE}
    if configuration in ("upstream", "both"):
        env |= {"RILL_FALLBACK_BASE_URL": second.url, "RILL_FALLBACK_API_KEY": SECOND_KEY}
    return env


def answer_of(way: str, text: str) -> list[Step]:
    """Return the steps of an answer, streamed or whole as the way asks for it."""
    if way != "anthropic whole":
        return wire.answer(text)
    message = {"type": "message", "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "usage": {}}
    return [wire.status(200, {"content-type": "application/json"}, json.dumps(message).encode())]


def heal(rill: Rill, upstream: Upstream) -> None:
    """Get an answer of the primary upstream, so that no circuit opens, and forget it."""
    upstream.script(*wire.answer("fine"))
    with ask(rill) as asked:
        assert (asked.read_rest(), asked.headers.get("x-rill-upstream", "primary")) == (b"fine", "primary")
    upstream.wait_until(lambda: upstream.answers[-1].outcome == "sent", "the end of the answer")
    upstream.clear()


def models_of(upstream: Upstream) -> list[str]:
    return [request.json["model"] for request in upstream.requests]


def assert_recovered(rill: Rill, way: str, by: tuple[str, str], attempts: int = 2) -> None:
    """Ask, and assert who answered: in the response and in the log."""
    name = name_request()
    with ask(rill, way, name=name, model=MODEL) as asked:
        assert asked.status == 200
        assert (asked.headers["x-rill-upstream"], asked.headers["x-rill-model"]) == by
        body = asked.read_rest()
        assert asked.ended == "clean"
    assert b"spare" in body
    if way.startswith("openai"):
        assert json.dumps({"model": by[1]})[1:-1].encode() in body
    line = logged(rill, name)
    assert (line["requested_model"], line["upstream"], line["model"]) == (MODEL, *by)
    assert (line["outcome"], line["attempts"]) == ("completed", attempts)
