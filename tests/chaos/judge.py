"""Compare what a client received, what the upstream saw and what was logged for one prompt: all three must agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plan import BEFORE, PLAIN, WHOLE, WITHIN, Plan
from upstream import Answer


@dataclass(frozen=True)
class Result:
    """What a client received: `ended` is how its connection ended, or "disconnected" if the client closed it."""

    plan: Plan
    status: int | None
    body: bytes
    ended: str | None


def faults_of(
    result: Result, asked: Sequence[Answer], lines: Sequence[dict[str, Any]], disturbed: bool
) -> Iterator[str]:
    """Yield each contradiction; `disturbed` is true if a worker was killed or stopped meanwhile."""
    plan = result.plan
    text = plan.text_in(result.body) if result.status == 200 else ""
    yield from _faults_of_text(result, text)
    yield from _faults_of_billing(plan, asked)
    if disturbed:
        return
    if len(lines) != 1:
        yield f"{len(lines)} log lines"
        return
    yield from _faults_of_log(result, lines[0])
    if result.ended != "disconnected" and result.status not in _statuses(plan):
        yield f"status {result.status}"


def _statuses(plan: Plan) -> set[int]:
    return BEFORE.get(plan.fault, ({200}, 1))[0]


def _is_complete(result: Result, text: str) -> bool:
    complete = result.status == 200 and result.ended == "clean" and result.plan.says_complete(result.body)
    return complete and (result.plan.dialect not in WHOLE or bool(text))


def _faults_of_text(result: Result, text: str) -> Iterator[str]:
    plan = result.plan
    if not plan.text.startswith(text.rstrip("\ufffd")):
        yield f"text that is not the beginning of the answer: {text[:200]!r}"
    if _is_complete(result, text) and (text != plan.text or plan.fault in WITHIN):
        yield f"an incomplete answer ended as a complete one: {len(text)} of {len(plan.text)} characters"
    if plan.dialect in PLAIN and result.status == 200 and plan.fault in WITHIN and result.ended == "clean":
        yield "a truncated plain text ended cleanly"


def _faults_of_billing(plan: Plan, asked: Sequence[Answer]) -> Iterator[str]:
    most = BEFORE.get(plan.fault, (set(), 1))[1]
    if len(asked) > most:
        yield f"{len(asked)} requests reached the upstream, {most} allowed"


def _faults_of_log(result: Result, line: dict[str, Any]) -> Iterator[str]:
    plan, outcome = result.plan, line["outcome"]
    if result.ended == "disconnected":
        return  # The disconnect may have come before or after anything else.
    if result.status != 200:
        if line["status"] != result.status:
            yield f"status {result.status} was logged as {line['status']}"
        return
    expected = WITHIN.get(plan.fault, "completed")
    if outcome != expected and not (plan.fault == "reset" and outcome == "upstream_truncated"):
        yield f"logged as {outcome} instead of {expected}"
    if line["bytes"] != len(result.body) and result.ended == "clean":
        yield f"{line['bytes']} bytes were logged, {len(result.body)} received"
