"""The events of the Messages API as they are on the wire, for the fake upstreams of the tests and of the benchmark.

See https://docs.claude.com/en/api/messages-streaming. It imports the standard library only.
"""

import json

REQUEST_ID = "req_011CXv7QmZr3TtYk8NdPfJ2w"


def event(type: str, **data: object) -> bytes:
    """Return one event in the wire format, its data on one line of compact JSON."""
    line = json.dumps({"type": type, **data}, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate has no UTF-8; backslashreplace writes the very escape that JSON has for it.
    return f"event: {type}\ndata: {line}\n\n".encode("utf-8", "backslashreplace")


def start(model: str = "claude-sonnet-5-5", input_tokens: int = 12) -> bytes:
    """Return the message_start event."""
    usage = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 1,
        "service_tier": "standard",
    }
    opening = {"model": model, "id": "msg_01TestAnswer5vQ2mZkXw8Lr", "type": "message", "role": "assistant"}
    unknown: dict[str, object] = {"content": [], "stop_reason": None, "stop_sequence": None}
    return event("message_start", message={**opening, **unknown, "usage": usage})


def block_start(index: int = 0, type: str = "text", **fields: object) -> bytes:
    """Return a content_block_start event, with the fields that a block of a known type begins with."""
    known: dict[str, dict[str, object]] = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"id": "toolu_01TestCall7Yq", "name": "get_weather", "input": {}},
    }
    return event("content_block_start", index=index, content_block={"type": type, **known.get(type, {}), **fields})


def delta(index: int, type: str, **fields: object) -> bytes:
    """Return a content_block_delta event of any type."""
    return event("content_block_delta", index=index, delta={"type": type, **fields})


def text(piece: str, index: int = 0) -> bytes:
    """Return a content_block_delta event with a text_delta."""
    return delta(index, "text_delta", text=piece)


def thinking(piece: str, index: int = 0) -> bytes:
    """Return a content_block_delta event with a thinking_delta."""
    return delta(index, "thinking_delta", thinking=piece)


def ping() -> bytes:
    """Return a ping event."""
    return b'event: ping\ndata: {"type": "ping"}\n\n'


def block_stop(index: int = 0) -> bytes:
    """Return a content_block_stop event."""
    return event("content_block_stop", index=index)


def message_delta(stop_reason: str = "end_turn", output_tokens: int = 7, **fields: object) -> bytes:
    """Return a message_delta event; `fields` join the delta, as stop_details does."""
    outcome = {"stop_reason": stop_reason, "stop_sequence": None, **fields}
    return event("message_delta", delta=outcome, usage={"output_tokens": output_tokens})


def message_stop() -> bytes:
    """Return the message_stop event."""
    return event("message_stop")


def stop(stop_reason: str = "end_turn", output_tokens: int = 7, **fields: object) -> bytes:
    """Return the message_delta and message_stop events."""
    return message_delta(stop_reason, output_tokens, **fields) + message_stop()


def stream_error(type: str = "overloaded_error", message: str = "Overloaded") -> bytes:
    """Return an error event, as sent in the middle of a stream."""
    return event("error", error={"details": None, "type": type, "message": message}, request_id=REQUEST_ID)


def opening(model: str = "claude-sonnet-5-5") -> bytes:
    """Return the events before the first text of an answer."""
    return start(model) + block_start() + ping()


def error_body(type: str, message: str) -> bytes:
    """Return the body of a response that reports an error."""
    body = {"type": "error", "error": {"type": type, "message": message}, "request_id": REQUEST_ID}
    return json.dumps(body).encode()
