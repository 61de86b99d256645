"""Helpers that send a request in each dialect and wait for a condition."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from conversation import Conversation, request_bytes
from server import Rill

SSE = {"Accept": "text/event-stream"}
JSON = {"Content-Type": "application/json"}
PATHS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}


def ask(
    rill: Rill,
    dialect: str = "text",
    headers: Mapping[str, str] | None = None,
    *,
    name: str = "",
    q: str = "hi",
    version: str = "HTTP/1.1",
    timeout: float = 10,
    **fields: Any,
) -> Conversation:
    """Ask in a dialect: text, sse, anthropic or openai; followed by ` whole` for a response that is not streamed.

    `name` is the request id. `fields` are added to the query or the body; None removes one.
    """
    dialect, _, whole = dialect.partition(" ")
    sent = {**({"X-Request-Id": name} if name else {}), **(headers or {})}
    if dialect in PATHS:
        messages = [{"role": "user", "content": q}]
        asked = {"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": messages, "stream": not whole, **fields}
        body = json.dumps({key: value for key, value in asked.items() if value is not None}).encode()
        request = request_bytes("POST", PATHS[dialect], {**JSON, **sent}, body, version)
    else:
        query = urlencode({"q": q, **{key: value for key, value in fields.items() if value is not None}})
        request = request_bytes("GET", f"/stream?{query}", {**(SSE if dialect == "sse" else {}), **sent}, b"", version)
    return Conversation(rill.port, request, timeout)


def wait_until(condition: Callable[[], object], what: str | Callable[[], str] = "", timeout: float = 20) -> None:
    """Wait until the condition holds; after `timeout` seconds fail with `what`, or with what it returns."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.02)
