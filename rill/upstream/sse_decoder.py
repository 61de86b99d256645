"""Bytes of a Messages API stream in, events out; the text is the same however the stream is split into reads.

Lines are parsed by https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream and
the events in them by https://docs.anthropic.com/en/docs/build-with-claude/streaming. Nothing is accumulated: a token
costs the same at any length.
"""

import json
from collections.abc import Sequence
from typing import Any

import jiter

from rill.events import End, Event, Heartbeat, Start, Text, ToolCall, ToolInput
from rill.problems import Problem, upstream_problem

MAX_EVENT_BYTES = 16 * 1024 * 1024


class Decoder:
    """Decodes what is fed to it; `usage` is what the upstream has counted so far, in tokens.

    `received_bytes` are those of the content: text, thinking, and the input of tools.

    `ended` is set once the message is complete, `problem` once it cannot become so; then nothing more may be fed.
    `has_error`: the upstream itself reported the `problem`, in an `error` event. `is_error_private`: that event must
    not be forwarded, because it repeats one of the `secrets` or is about the operator's account.
    """

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = secrets
        self.usage: dict[str, Any] = {}
        self.received_bytes = 0
        self.ended = False
        self.has_error = False
        self.is_error_private = False
        self.problem: Problem | None = None
        self._unfinished = bytearray()  # a line without its end
        self._data: list[bytes] = []  # the lines of an event without its end
        self._size = 0  # of that event so far, in bytes
        self._text = ""
        self._working = False
        self._in_call = False
        self._stop: dict[str, Any] = {}
        self._surrogates = False
        self._high_surrogate = ""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events of one read, its text joined between others, or one Heartbeat if it has none.

        `problem` is set, and follows these events, if the upstream sent an `error` event or not the Messages API.
        """
        events: list[Event] = []
        self._working = False
        self._size += len(data)
        try:
            for line in self._split_lines(data):
                if line.startswith(b"data:"):
                    self._data.append(line[5:])
                elif not line:
                    self._size = 0
                    event = self._take(self._parse_data()) if self._data else None
                    if event:
                        events += self._take_text()
                        events.append(event)
                    if self.ended:
                        return events
            if self._size > MAX_EVENT_BYTES:
                raise Problem("upstream_error")
        except Problem as problem:
            self.problem = problem
        events += self._take_text()
        return events if events or self.problem else [Heartbeat(self._working)]

    def read_message(self, body: bytes, is_count: bool = False) -> End:
        """Return the end of a message (or of a count of tokens) that was not streamed; raise Problem for another body.

        The tokens of a count are not in `usage`, because they are not billed.
        """
        self._data.append(body)
        try:
            message = self._parse_data()
            if message.get("type") == "error":
                raise self._problem_in(message)
            if not ("input_tokens" in message if is_count else message.get("type") == "message"):
                raise Problem("upstream_error")
        except Problem as problem:
            self.problem = problem
            raise
        self._stop = message
        self._count(message.get("usage"))
        return self._end()

    def finish(self) -> list[Event]:
        """Return the events of the last line once the upstream has closed; set `problem` if the answer is truncated."""
        events = self.feed(b"\n\n")
        # A truncated event is not JSON, but the fault is that the upstream closed too early.
        if not self.ended and not self.has_error:
            self.problem = Problem("upstream_truncated")
        return events

    @property
    def is_between_events(self) -> bool:
        """Whether all that was fed has become events."""
        return not (self._unfinished or self._data or self._high_surrogate)

    @property
    def has_final_usage(self) -> bool:
        """Whether the upstream has counted the output."""
        return self.ended or bool(self._stop)

    def _split_lines(self, data: bytes) -> list[bytes]:
        if b"\n" not in data and b"\r" not in data:
            self._unfinished += data
            return []
        if self._unfinished:
            data = bytes(self._unfinished) + data
            self._unfinished.clear()
        pending = b""
        if b"\r" in data:
            # CR LF is one line end, even if a read ends between the two: a CR at the end waits for its LF.
            if data.endswith(b"\r"):
                data, pending = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        if rest := lines.pop() + pending:
            self._unfinished += rest
        return lines

    def _parse_data(self) -> dict[str, Any]:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        if not data or data.isspace():
            return {}  # Not an event, by the specification.
        try:
            message = jiter.from_json(data)
        except ValueError:
            # jiter rejects a lone surrogate, half of a pair that is split across two deltas, and invalid UTF-8, which
            # becomes U+FFFD by the rules of event streams.
            try:
                message = json.loads(data.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                raise Problem("upstream_error") from None
            self._surrogates = True
        if not isinstance(message, dict):
            raise Problem("upstream_error")
        return message

    def _take(self, message: dict[str, Any]) -> Start | ToolCall | ToolInput | End | None:
        kind = message.get("type")
        event: Start | ToolCall | ToolInput | None = None
        if kind == "content_block_delta":
            delta = message.get("delta")
            if isinstance(delta, dict):
                event = self._take_delta(delta)
        elif kind == "content_block_start":
            block = _mapping(message.get("content_block"))
            self._in_call = block.get("type") == "tool_use"
            if self._in_call:
                event = ToolCall(_string(block.get("id")) or "", _string(block.get("name")) or "")
        elif kind == "message_start":
            self._count(_mapping(message.get("message")).get("usage"))
            event = Start()
        elif kind == "message_delta":
            self._stop = _mapping(message.get("delta"))
            self._count(message.get("usage"))
        elif kind == "message_stop":
            return self._end()
        elif kind == "error":
            raise self._problem_in(message)
        elif kind != "content_block_stop":
            return None
        self._working = True
        return event

    def _take_delta(self, delta: dict[str, Any]) -> ToolInput | None:
        content = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
        if isinstance(content, str):
            self.received_bytes += len(content) if content.isascii() else len(content.encode("utf-8", "replace"))
            if delta.get("type") == "text_delta":
                self._text += content
            elif content and self._in_call and delta.get("type") == "input_json_delta":
                return ToolInput(content)
        return None

    def _problem_in(self, message: dict[str, Any]) -> Problem:
        self.has_error = True
        error = _mapping(message.get("error"))
        found = upstream_problem(_string(error.get("type")), _string(error.get("message")), secrets=self._secrets)
        # The upstream's message about the operator's account is not passed on.
        blocked = found.name == "upstream_account_blocked"
        self.is_error_private = blocked or any(secret in str(message) for secret in self._secrets)
        return found.replace(is_forwarded=not self.is_error_private)

    def _end(self) -> End:
        self.ended = True
        details = _mapping(self._stop.get("stop_details"))
        return End(_string(self._stop.get("stop_reason")), dict(self.usage), _string(details.get("explanation")))

    def _count(self, usage: Any) -> None:
        self.usage.update({name: count for name, count in _mapping(usage).items() if count is not None})

    def _take_text(self) -> list[Text]:
        text, self._text = self._text, ""
        if self._surrogates:
            text = self._join_surrogates(text)
        return [Text(text)] if text else []

    def _join_surrogates(self, text: str) -> str:
        """Join a pair that came in two deltas; a surrogate that stays alone becomes U+FFFD."""
        text = self._high_surrogate + text
        self._high_surrogate = ""
        if text and not self.ended and "\ud800" <= text[-1] <= "\udbff":
            text, self._high_surrogate = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mapping(value: Any) -> dict[str, Any]:
    """Return the JSON object, or an empty one for anything else: an odd event of a relay must not end an answer."""
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
