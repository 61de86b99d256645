"""The Anthropic Messages API itself: the request goes up and the answer comes down as they are.

https://docs.anthropic.com/en/api/messages and https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain

from rill.dialects.fields import MAX_MESSAGES, read_json_object
from rill.dialects.silences import Silences
from rill.events import Bytes, End, Event
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings

# What of the caller's request goes up with its body; its credentials are for us, and never do.
FORWARDED_HEADERS = ("anthropic-beta", "anthropic-version")
WHOLE_EVENTS = re.compile(rb".*(?:\n\n|\n\r\n|\r\r)", re.DOTALL)


def read_messages(body: bytes, headers: Mapping[str, str], query: Mapping[str, str], settings: Settings) -> Prompt:
    """The request as the upstream will get it; raises Problem. Only the model and max_tokens are looked at."""
    fields = read_json_object(body)
    model, max_tokens, messages = fields.get("model"), fields.get("max_tokens"), fields.get("messages")
    if not isinstance(model, str) or not model:
        raise Problem("bad_request", "model: should be the name of a model.")
    if type(max_tokens) is not int or not isinstance(messages, list):
        raise Problem("bad_request", "max_tokens and messages: should be a number and a list.")
    if len(messages) > MAX_MESSAGES:
        raise Problem("bad_request", f"messages: should be at most {MAX_MESSAGES}.")
    settings.check(model, max_tokens)
    streamed = fields.get("stream") is True
    options = {name: value for name, value in fields.items() if name not in ("model", "max_tokens", "messages")}
    return Prompt(
        model=model,
        max_tokens=max_tokens,
        messages=messages,
        options={**options, "stream": streamed},
        headers={name.lower(): value for name, value in headers.items() if name.lower() in FORWARDED_HEADERS},
        query={"beta": query["beta"]} if "beta" in query else {},
        streamed=streamed,
        verbatim=True,
    )


class AnthropicFrames:
    """The upstream's own bytes, handed on an event at a time, so that one that broke off is never followed by ours."""

    def __init__(self, prompt: Prompt, request_id: str) -> None:
        self._unfinished = b""
        self._silence = Silences()
        self._request_id = request_id

    def frame(self, event: Event) -> bytes:
        if isinstance(event, End):
            return self._finish()
        if not isinstance(event, Bytes):
            return b"" if self._unfinished else self._silence.comment()
        self._silence.break_()
        data = self._unfinished + event.data
        if data.endswith((b"\n\n", b"\r\n\r\n")):
            self._unfinished = b""
            return data
        events = WHOLE_EVENTS.match(data)
        whole = events.end() if events else 0
        self._unfinished = data[whole:]
        return data[:whole]

    def fail(self, problem: Problem) -> bytes:
        """The API's error event, unless the upstream has just sent it."""
        if problem.in_stream:
            return self._finish()
        return b"event: error\ndata: " + write_problem(problem, self._request_id) + b"\n\n"

    def _finish(self) -> bytes:
        """The upstream's last event, where it closed without the blank line that ends one."""
        last, self._unfinished = self._unfinished, b""
        return last.rstrip(b"\r\n") + b"\n\n" if last else b""


def write_whole(reads: Iterable[list[Event]], prompt: Prompt, request_id: str) -> tuple[bytes, End]:
    """The message as the upstream wrote it, and its end; raises what the reads raise."""
    body, end = b"", End(None, {})
    for event in chain.from_iterable(reads):
        if isinstance(event, Bytes):
            body = event.data
        elif isinstance(event, End):
            end = event
    return body, end


def write_problem(problem: Problem, request_id: str) -> bytes:
    """The problem in the API's shape: https://docs.anthropic.com/en/api/errors"""
    error = {"type": problem.type, "message": problem.detail}
    return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
