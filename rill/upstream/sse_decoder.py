"""Bytes of a Messages API stream in, events out; however the stream is cut into reads, the text is the same.

The lines are those of https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream and the
events in them those of https://docs.anthropic.com/en/docs/build-with-claude/streaming. Nothing is accumulated: a token
costs the same at any length.
"""

import json
from collections.abc import Sequence
from typing import Any

import jiter

from rill.events import End, Event, Heartbeat, Start, Text
from rill.problems import Problem, upstream_problem

MAX_EVENT_BYTES = 16 * 1024 * 1024


class Decoder:
    """Makes events of what is fed to it; `usage` is what the upstream counted so far, in tokens.

    `ended` once the message is whole, or `problem` once it cannot become so; then nothing more is to be fed. `unfit`
    tells of an `error` event that repeats one of the `secrets` or speaks of our account: it must not be passed on.
    """

    # Thousands are open at once, and a dict for each would weigh.
    __slots__ = (
        "_data",
        "_data_bytes",
        "_high_surrogate",
        "_secrets",
        "_stop",
        "_surrogates",
        "_text",
        "_unfinished",
        "_unfinished_bytes",
        "_working",
        "ended",
        "problem",
        "unfit",
        "usage",
    )

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = secrets
        self.usage: dict[str, Any] = {}
        self.ended = False
        self.unfit = False
        self.problem: Problem | None = None
        self._unfinished: list[bytes] = []
        self._unfinished_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._text = ""
        self._working = False
        self._stop: dict[str, Any] = {}
        self._surrogates = False
        self._high_surrogate = ""

    def feed(self, data: bytes) -> list[Event]:
        """What one read brings: its text joined in one Text, or one Heartbeat where there is none.

        An `error` event, or what is not the Messages API, ends it: `problem` is then what stands behind these events.
        """
        events: list[Event] = []
        self._working = False
        try:
            for line in self._split_lines(data):
                if line.startswith(b"data:"):
                    self._add_data(line[5:])
                elif not line and self._data:
                    event = self._take(self._parse_data())
                    if event:
                        events += self._take_text()
                        events.append(event)
                    if self.ended:
                        return events
        except Problem as problem:
            self.problem = problem
        events += self._take_text()
        return events if events or self.problem else [Heartbeat(self._working)]

    def read_message(self, body: bytes) -> End:
        """The end that a message which came whole tells of itself; raises Problem where it is none."""
        self._data.append(body)
        try:
            message = self._parse_data()
            if message.get("type") == "error":
                raise self._problem_in(message)
            if message.get("type") != "message":
                raise Problem("upstream_error")
        except Problem as problem:
            self.problem = problem
            raise
        self._stop = message
        self._count(message.get("usage"))
        return self._end()

    def finish(self) -> list[Event]:
        """What stood in the last line of an upstream that has closed; `problem` where that cut the answer."""
        events = self.feed(b"\n\n")
        # Half an event is not JSON: the upstream closed too early, and sent nothing wrong.
        if not self.ended and not self.has_error:
            self.problem = Problem("upstream_truncated")
        return events

    @property
    def has_error(self) -> bool:
        """Whether the upstream itself reported what `problem` is, in an `error` event."""
        return self.unfit or (self.problem is not None and self.problem.is_forwarded)

    def _split_lines(self, data: bytes) -> list[bytes]:
        if b"\n" not in data and b"\r" not in data:
            self._keep(data)
            return []
        if self._unfinished:
            data = b"".join(self._unfinished) + data
            self._unfinished.clear()
            self._unfinished_bytes = 0
        held = b""
        if b"\r" in data:
            # CR LF is one line end, also when a read ends between the two: a CR at the end waits for its LF.
            if data.endswith(b"\r"):
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        rest = lines.pop() + held
        if rest:
            self._keep(rest)
        return lines

    def _keep(self, data: bytes) -> None:
        """Keeps the begin of a line in pieces, so that a long one is joined once."""
        self._unfinished.append(data)
        self._unfinished_bytes += len(data)
        if self._unfinished_bytes > MAX_EVENT_BYTES:
            raise Problem("upstream_error")

    def _add_data(self, data: bytes) -> None:
        self._data.append(data)
        self._data_bytes += len(data)
        if self._data_bytes > MAX_EVENT_BYTES:
            raise Problem("upstream_error")

    def _parse_data(self) -> dict[str, Any]:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._data_bytes = 0
        if not data or data.isspace():
            return {}  # By the specification no event at all.
        try:
            message = jiter.from_json(data)
        except ValueError:
            # jiter knows no lone surrogates, which come where a pair is split across two deltas, nor broken UTF-8,
            # which the event stream's own rules turn into U+FFFD.
            try:
                message = json.loads(data.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                raise Problem("upstream_error") from None
            self._surrogates = True
        if not isinstance(message, dict):
            raise Problem("upstream_error")
        return message

    def _take(self, message: dict[str, Any]) -> Start | End | None:
        kind = message.get("type")
        if kind == "content_block_delta":
            self._working = True
            delta = message.get("delta")
            if isinstance(delta, dict) and delta.get("type") == "text_delta":
                text = delta.get("text")
                self._text += text if isinstance(text, str) else ""
        elif kind == "content_block_start" or kind == "content_block_stop":
            self._working = True
        elif kind == "message_start":
            self._working = True
            self._count(_mapping(message.get("message")).get("usage"))
            return Start()
        elif kind == "message_delta":
            self._working = True
            self._stop = _mapping(message.get("delta"))
            self._count(message.get("usage"))
        elif kind == "message_stop":
            return self._end()
        elif kind == "error":
            raise self._problem_in(message)
        return None

    def _problem_in(self, message: dict[str, Any]) -> Problem:
        error = _mapping(message.get("error"))
        found = upstream_problem(_string(error.get("type")), _string(error.get("message")), secrets=self._secrets)
        # The upstream's message about the operator's account is not passed on.
        blocked = found.name == "upstream_account_blocked"
        self.unfit = blocked or any(secret in str(message) for secret in self._secrets)
        return found.replace(is_forwarded=not self.unfit)

    def _end(self) -> End:
        self.ended = True
        details = _mapping(self._stop.get("stop_details"))
        return End(_string(self._stop.get("stop_reason")), dict(self.usage), _string(details.get("explanation")))

    def _count(self, usage: Any) -> None:
        self.usage.update({name: count for name, count in _mapping(usage).items() if count is not None})

    def _take_text(self) -> list[Text]:
        text, self._text = self._text, ""
        if self._surrogates:
            text = self._mend_surrogates(text)
        return [Text(text)] if text else []

    def _mend_surrogates(self, text: str) -> str:
        """Joins a pair that came in two deltas; a surrogate that stays alone becomes U+FFFD."""
        text = self._high_surrogate + text
        self._high_surrogate = ""
        if text and not self.ended and "\ud800" <= text[-1] <= "\udbff":
            text, self._high_surrogate = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mapping(value: Any) -> dict[str, Any]:
    """The JSON object that was expected, or an empty one: a relay's odd event is no reason to break an answer."""
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
