"""The Anthropic Messages API itself: request and answer are forwarded unchanged.

https://docs.anthropic.com/en/api/messages and https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rill.dialects.base import KeepAlive
from rill.dialects.features import check_features
from rill.dialects.validation import MAX_MESSAGES, read_json_object
from rill.events import Bytes, End, Event
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings

# Request headers that are forwarded; the client's credentials never are.
FORWARDED_HEADERS = ("anthropic-beta", "anthropic-version")
EVENT_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")


def read_messages(
    body: bytes, headers: Mapping[str, str], query: Mapping[str, str], settings: Settings
) -> tuple[Prompt, ReplyFormat]:
    """Return the request to forward; raise Problem for anything that this service does not allow."""
    fields = read_json_object(body)
    model, max_tokens = _model_of(fields), fields.get("max_tokens")
    if type(max_tokens) is not int or not isinstance(fields.get("messages"), list):
        raise Problem("bad_request", "max_tokens and messages: should be a number and a list.")
    settings.check(model, max_tokens)
    forwarded = _check(fields, headers, settings)
    streamed = fields.get("stream", False)
    if not isinstance(streamed, bool):
        raise Problem("bad_request", "stream: should be true or false.")
    options = {name: value for name, value in fields.items() if name not in ("model", "max_tokens", "messages")}
    prompt = Prompt(
        model=model,
        max_tokens=max_tokens,
        messages=fields["messages"],
        options={**options, "stream": streamed},
        headers=forwarded,
        query=_query_of(query),
    )
    return prompt, ReplyFormat(streamed)


def read_count(
    body: bytes, headers: Mapping[str, str], query: Mapping[str, str], settings: Settings
) -> tuple[Prompt, ReplyFormat]:
    """Return the request to count the tokens of a prompt; raise Problem for anything that is not allowed.

    https://docs.anthropic.com/en/api/messages-count-tokens
    """
    fields = read_json_object(body)
    model = _model_of(fields)
    settings.check(model, None)
    forwarded = _check(fields, headers, settings)
    options = {name: value for name, value in fields.items() if name not in ("model", "messages")}
    prompt = Prompt(model, 0, fields["messages"], options, forwarded, _query_of(query), is_count=True)
    return prompt, ReplyFormat(streamed=False)


def _model_of(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise Problem("bad_request", "model: should be the name of a model.")
    return model


def _check(fields: Mapping[str, Any], headers: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the headers to forward; raise Problem for messages or features that are not allowed."""
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise Problem("bad_request", "messages: should be a list.")
    if len(messages) > MAX_MESSAGES:
        raise Problem("bad_request", f"messages: should be at most {MAX_MESSAGES}.")
    forwarded = {name.lower(): value for name, value in headers.items() if name.lower() in FORWARDED_HEADERS}
    betas = check_features(fields, forwarded.pop("anthropic-beta", ""), settings)
    return {**forwarded, "anthropic-beta": betas} if betas else forwarded


def _query_of(query: Mapping[str, str]) -> dict[str, str]:
    return {"beta": query["beta"]} if "beta" in query else {}


class AnthropicEncoder:
    """Passes the upstream's bytes on in whole events, so that an error event never follows part of another one."""

    def __init__(self, model: str, reply: ReplyFormat, request_id: str) -> None:
        self._unfinished = bytearray()
        self._keep_alive = KeepAlive()
        self._request_id = request_id

    def encode(self, event: Event) -> bytes:
        if isinstance(event, End):
            return self._finish()
        if not isinstance(event, Bytes):
            return b"" if self._unfinished else self._keep_alive.comment()
        self._keep_alive.note_write()
        if not self._unfinished and event.data.endswith((b"\n\n", b"\r\n\r\n")):
            return event.data
        # An end may begin in the bytes before; to search all of them again would make a long event expensive.
        start = max(0, len(self._unfinished) - 2)
        self._unfinished += event.data
        ends = [(self._unfinished.rfind(end, start), len(end)) for end in EVENT_ENDS]
        whole = max(at + length if at >= 0 else 0 for at, length in ends)
        events = bytes(self._unfinished[:whole])
        del self._unfinished[:whole]
        return events

    def encode_deltas(self, text: str, events: bytes) -> bytes:
        return self.encode(Bytes(events))

    def encode_error(self, problem: Problem) -> bytes:
        """Return the API's error event, unless the upstream has sent it already."""
        if problem.is_forwarded:
            return self._finish()
        return b"event: error\ndata: " + encode_problem(problem, self._request_id) + b"\n\n"

    def _finish(self) -> bytes:
        """Return the upstream's last event, if it closed without the blank line that ends one."""
        last, self._unfinished = bytes(self._unfinished), bytearray()
        return last.rstrip(b"\r\n") + b"\n\n" if last else b""


def encode_whole(reads: Iterable[list[Event]], model: str, reply: ReplyFormat, request_id: str) -> tuple[bytes, End]:
    """Return the message as the upstream wrote it, and its end; raise what the reads raise."""
    *_, (body, end) = reads
    assert isinstance(body, Bytes)
    assert isinstance(end, End)
    return body.data, end


def encode_problem(problem: Problem, request_id: str) -> bytes:
    """Return the problem in the API's shape: https://docs.anthropic.com/en/api/errors"""
    error = {"type": problem.type, "message": problem.detail}
    return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
