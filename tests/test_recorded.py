"""Recorded streams of the Messages API, replayed through the whole service, as plain text and as server-sent events."""

import json
import re
from typing import Any, NamedTuple

import pytest
import upstream as wire
from asking import ask
from server import Rill
from upstream import Step, Upstream

EXPECTED = wire.expected()
DONE = [name for name, outcome in EXPECTED.items() if outcome["outcome"] == "completed" and outcome["text"]]


class Event(NamedTuple):
    """One server-sent event, as EventSource dispatches it."""

    id: str
    name: str
    data: str


def events_of(body: str) -> list[Event]:
    """Parse an event stream as https://html.spec.whatwg.org/multipage/server-sent-events.html specifies."""
    events, identity, name, data = [], "", "", []
    for line in re.split(r"\r\n|\n|\r", body):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "id":
            identity = value
        elif field == "event":
            name = value
        elif not line:
            if data:
                events.append(Event(identity, name or "message", "\n".join(data)))
            name, data = "", []
    return events


def text_of(events: list[Event]) -> str:
    """Return the text of an answer: its unnamed events, without the end mark."""
    return "".join(event.data for event in events if event.name == "message" and event.data != "[DONE]")


def replay_by(name: str, size: int) -> list[Step]:
    """Return the steps that send a recorded answer in chunks of `size` bytes, 0 for one chunk."""
    return [wire.head(), wire.dribble(wire.recorded(name), size), wire.end()] if size else wire.replay(name)


def test_every_recorded_stream_has_an_expected_outcome() -> None:
    assert {file.stem for file in wire.RECORDED.glob("*.sse")} == set(EXPECTED)


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("name", DONE)
def test_plain_text_is_exactly_the_recorded_text(service: Rill, upstream: Upstream, name: str, size: int) -> None:
    upstream.script(*replay_by(name, size))
    with ask(service) as asked:
        assert asked.status == 200
        assert asked.read_rest().decode() == EXPECTED[name]["text"]
        assert asked.ended == "clean"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("name", [name for name in EXPECTED if EXPECTED[name]["outcome"] == "completed"])
def test_server_sent_events_contain_the_recorded_text_and_its_end(
    service: Rill, upstream: Upstream, name: str, size: int
) -> None:
    upstream.script(*replay_by(name, size))
    with ask(service, "sse") as asked:
        assert asked.status == 200
        events = events_of(asked.read_rest().decode())
        assert asked.ended == "clean"
    # The format cannot represent CR: every line end arrives as a newline.
    assert text_of(events) == re.sub(r"\r\n|\r", "\n", EXPECTED[name]["text"])
    assert [(event.name, event.data) for event in events][-1] == ("message", "[DONE]")
    done: dict[str, Any] = json.loads(events[-2].data)
    assert (events[-2].name, done["stop_reason"]) == ("done", EXPECTED[name]["stop_reason"])
    assert done["usage"]["input_tokens"] > 0
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("size", [0, 1])
def test_a_recorded_refusal_is_a_422_with_its_explanation(service: Rill, upstream: Upstream, size: int) -> None:
    upstream.script(*replay_by("refusal", size))
    with ask(service) as asked:
        assert asked.status == 422
        assert b"breaking into a system, which the usage policy does not allow." in asked.read_rest()


@pytest.mark.parametrize("size", [0, 1])
def test_a_recorded_error_in_mid_answer_aborts_plain_text_after_its_text(
    service: Rill, upstream: Upstream, size: int
) -> None:
    upstream.script(*replay_by("error_event", size))
    with ask(service) as asked:
        assert asked.status == 200
        assert asked.read_rest().decode() == EXPECTED["error_event"]["text"]
        assert asked.ended == "truncated"


@pytest.mark.parametrize("size", [0, 1])
def test_a_recorded_error_in_mid_answer_is_an_error_event_after_its_text(
    service: Rill, upstream: Upstream, size: int
) -> None:
    upstream.script(*replay_by("error_event", size))
    with ask(service, "sse") as asked:
        events = events_of(asked.read_rest().decode())
    assert text_of(events) == EXPECTED["error_event"]["text"]
    assert events[-1].name == "error"
    assert json.loads(events[-1].data)["status"] == 503
    assert not any(event.name == "done" or event.data == "[DONE]" for event in events)
