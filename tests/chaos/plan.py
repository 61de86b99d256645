"""What a random client asks, what its upstream does, and which results are correct."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import upstream as wire
from conversation import request_bytes
from upstream import Answer, Step

DIALECTS = ("get", "post", "sse", "chat", "messages", "messages-whole", "openai", "openai-whole")
PLAIN = ("get", "post")
WHOLE = ("messages-whole", "openai-whole")
PAUSE_SECONDS = 0.05
# Longer than the 0.5 s within which a lost connection means that the request was not processed.
LATE_SECONDS = 0.8

# A fault before the first byte -> the statuses that the client may see, and how often the upstream may be asked.
BEFORE: Mapping[str, tuple[set[int], int]] = {
    "overloaded": ({503}, 3),
    "failing": ({502}, 3),
    "rate limited": ({429}, 3),
    "key rejected": ({502}, 1),
    "out of credit": ({502}, 1),
    "bad request": ({400}, 1),
    "overloaded as first event": ({503}, 3),
    "closed late": ({502}, 1),
    "no answer": ({504}, 1),
    "recovers": ({200}, 2),
}
# A fault during the answer -> the outcome that is logged.
WITHIN = {
    "truncated": "upstream_truncated",
    "reset": "upstream_error",
    "error event": "upstream_error",
    "silent": "idle_timeout",
}
FAULTS = ("none", *BEFORE, *WITHIN)


@dataclass(frozen=True)
class Plan:
    """One prompt; `disconnect_after` is a number of bytes, None for a client that reads to the end."""

    number: int
    dialect: str
    fault: str
    pieces: int
    disconnect_after: int | None = None
    slow: bool = False

    @classmethod
    def draw(cls, number: int, chance: random.Random) -> "Plan":
        """Draw a prompt; every second one has no fault."""
        fault = "none" if chance.random() < 0.5 else chance.choice(FAULTS)
        dialect = chance.choice(DIALECTS)
        if dialect in WHOLE and (fault in WITHIN or fault in ("overloaded as first event", "no answer")):
            fault = "none"  # A response that is not streamed has no events, and its silence ends with the idle timeout.
        disconnect_after = chance.randrange(400) if chance.random() < 0.2 else None
        return cls(number, dialect, fault, chance.randrange(2, 20), disconnect_after, chance.random() < 0.1)

    @property
    def name(self) -> str:
        """Return the request id."""
        return f"chaos-{self.number}"

    @property
    def prompt(self) -> str:
        """Return the prompt, which contains the instructions for the upstream."""
        return json.dumps([self.number, self.fault, self.pieces])

    @property
    def text(self) -> str:
        """Return the complete text of the answer."""
        return "".join(self.piece(number) for number in range(self.pieces))

    def piece(self, number: int) -> str:
        """Return one piece of the answer, which occurs in no other answer."""
        return f"{self.name}.{number} 溪 "

    def request(self) -> bytes:
        """Return the bytes of the request."""
        headers = {"X-Request-Id": self.name, "Connection": "close"}
        messages = [{"role": "user", "content": self.prompt}]
        asked = {"model": "claude-test", "max_tokens": 1000, "messages": messages, "stream": self.dialect not in WHOLE}
        query = "".join(f"%{byte:02x}" for byte in self.prompt.encode())
        if self.dialect in ("get", "sse"):
            accept = {"Accept": "text/event-stream"} if self.dialect == "sse" else {}
            return request_bytes("GET", f"/stream?q={query}", {**headers, **accept})
        if self.dialect == "chat":
            return request_bytes("GET", f"/chat/stream?message={query}", headers)
        if self.dialect == "post":
            return request_bytes("POST", "/stream", {**headers, "Content-Type": "text/plain"}, self.prompt.encode())
        path = "/v1/messages" if self.dialect.startswith("messages") else "/v1/chat/completions"
        body = json.dumps(asked).encode()
        return request_bytes("POST", path, {**headers, "Content-Type": "application/json"}, body)

    def text_in(self, body: bytes) -> str:
        """Return the text in a body of the dialect."""
        if self.dialect in PLAIN:
            return body.decode("utf-8", "ignore")
        if self.dialect in WHOLE:
            return _text_of(json.loads(body)) if body else ""
        lines = [line[6:] for line in body.decode("utf-8", "ignore").split("\n") if line.startswith("data: ")]
        if self.dialect in ("sse", "chat"):
            return "".join(line for line in lines if not line.startswith("{") and line != "[DONE]")
        return "".join(_text_of(json.loads(line)) for line in lines if line.startswith("{") and line.endswith("}"))

    def says_complete(self, body: bytes) -> bool:
        """Return whether the body has the end mark of its dialect; true for a dialect without one."""
        if self.dialect in (*PLAIN, *WHOLE):
            return True
        return b"event: message_stop" in body if self.dialect == "messages" else b"data: [DONE]" in body


def _text_of(event: dict[str, Any]) -> str:
    if "choices" in event:
        choices = event["choices"]
        message = choices[0].get("delta") or choices[0].get("message") or {} if choices else {}
        return message.get("content") or ""
    if "delta" in event:
        text: str = event["delta"].get("text", "")
        return text
    return "".join(block["text"] for block in event.get("content", []))


class Play:
    """The upstream's script for each request, as its prompt says."""

    def __init__(self) -> None:
        self._failed_once: set[int] = set()

    def __call__(self, answer: Answer) -> None:
        number, fault, pieces = json.loads(answer.request.json["messages"][-1]["content"])
        is_second = number in self._failed_once
        if fault == "recovers":
            self._failed_once.add(number)
        streamed = answer.request.json.get("stream") is True
        for step in _steps(Plan(number, "", "none" if is_second else fault, pieces), streamed):
            step(answer)


def _steps(plan: Plan, streamed: bool) -> list[Step]:
    errors = {
        "overloaded": wire.error(529, "overloaded_error", "Overloaded"),
        "failing": wire.error(500, "api_error", "Internal server error"),
        "rate limited": wire.error(429, "rate_limit_error", "Slow down"),
        "key rejected": wire.error(401, "authentication_error", "invalid x-api-key"),
        "out of credit": wire.error(400, "invalid_request_error", "Your credit balance is too low"),
        "bad request": wire.error(400, "invalid_request_error", "messages: invalid"),
    }
    if plan.fault in errors:
        return [errors[plan.fault]]
    if plan.fault == "overloaded as first event":
        return [wire.head(), wire.send(wire.stream_error()), wire.end()]
    if plan.fault == "closed late":
        return [wire.pause(LATE_SECONDS), wire.close()]
    if plan.fault == "no answer":
        return [wire.silence()]
    if plan.fault == "recovers":
        return [errors["overloaded"]]
    return _answer(plan) if streamed else [wire.pause(PAUSE_SECONDS), _whole(plan)]


def _answer(plan: Plan) -> list[Step]:
    steps: list[Step] = [wire.head(), wire.send(wire.opening())]
    for number in range(plan.pieces):
        steps += [wire.pause(PAUSE_SECONDS), wire.send(wire.text(plan.piece(number)))]
    ends: dict[str, list[Step]] = {
        "truncated": [wire.close()],
        "reset": [wire.pause(PAUSE_SECONDS), wire.reset()],
        "error event": [wire.send(wire.stream_error()), wire.end()],
        "silent": [wire.silence()],
    }
    return steps + ends.get(plan.fault, [wire.send(wire.block_stop() + wire.stop()), wire.end()])


def _whole(plan: Plan) -> Step:
    message = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": plan.text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": plan.pieces},
    }
    return wire.status(200, {"content-type": "application/json"}, json.dumps(message).encode())
