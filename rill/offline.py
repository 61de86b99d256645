"""A Messages API that needs no key and no network: Rill's requests in, an answer about the prompt out.

POST /v1/messages/count_tokens counts the tokens of a request.

The wire format is the real one, streamed or whole; fields that this model does not need are ignored. The same request
always gets the same bytes. In the last user text, `tokens=N` makes the answer exactly N tokens long (if `max_tokens`
allows), and `rate=R` sets the tokens per second, 0 for no pause. A request with tools gets a call of the first one (or
of the one that `tool_choice` names), and a text once the conversation has a result. A request for structured output
gets JSON that satisfies its schema.
"""

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import gevent

from rill.offline_json import instance_of

# From U+3000 on, scripts put no spaces between words: a character is a token. The matches cover any text completely.
TOKEN = re.compile(r"\s*(?:[^\s\u3000-\U0010ffff]{1,12}|\S)|\s+")
PATH, COUNT_PATH = "/v1/messages", "/v1/messages/count_tokens"
MAX_TOKENS = 128_000
ROLES = ("user", "assistant", "system")
TOKENS_PER_SECOND = 50.0
PING_EVERY_TOKENS = 100

OPENING = """Hello! I am the offline model: no key, no network. You asked me:

{prompt}

That is {count} tokens of input for {model}."""
FURTHER = TOKEN.findall("""

Each word is sent as one event of the Messages API, at the pace of a model. If the words appear one by one, nothing \
on the way buffers them. You can control me from the prompt: tokens=N makes the answer exactly N tokens long, rate=R \
sends R of them a second. Set ANTHROPIC_API_KEY, and the next answer comes from Claude.""")


def create_offline(tokens_per_second: float = TOKENS_PER_SECOND) -> WSGIApplication:
    """Return a WSGI app that answers as the Messages API does, at `tokens_per_second` (0: unpaced).

    Streamed, it yields the first events at once, token n after n / tokens_per_second seconds, then the end; whole, it
    takes as long. It waits in `gevent.sleep`. Spec: https://docs.anthropic.com/en/api/messages-streaming
    """

    def offline(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        identity = f"offline_{hashlib.sha256(body).hexdigest()[:24]}"
        headers = [("content-type", "application/json"), ("request-id", f"req_{identity}")]
        is_count = environ["PATH_INFO"] == COUNT_PATH
        try:
            request = json.loads(body)
            prompt = next(_text(each["content"]) for each in reversed(request["messages"]) if each["role"] == "user")
            if is_count:
                whole = _encode({"input_tokens": _count(request)})
                start_response("200 OK", headers)
                return [whole]
            tokens, message = _compose(request, prompt, identity)
            whole = _encode(message)
        except Exception:  # A client of the Messages API may send anything as a message.
            start_response("400 Bad Request", headers)
            error = {"type": "invalid_request_error", "message": "The request is not valid."}
            return [_encode({"type": "error", "error": error, "request_id": f"req_{identity}"})]
        rate = _steered("rate", prompt, tokens_per_second)
        pause = 1 / rate if rate else 0.0
        if request.get("stream"):
            start_response("200 OK", [("content-type", "text/event-stream; charset=utf-8"), *headers[1:]])
            return _stream(message, tokens, pause)
        gevent.sleep(pause * len(tokens))
        start_response("200 OK", headers)
        return [whole]

    return offline


def _steered(name: str, prompt: str, default: float) -> float:
    found = re.search(rf"\b{name}=([0-9]{{1,9}}(?:\.[0-9]{{1,4}})?)", prompt)
    return float(found[1]) if found else default


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block["type"], str) for block in content):
        raise TypeError
    texts = [_text(block.get("content", "")) if block["type"] == "tool_result" else block for block in content]
    return "\n".join(
        each if isinstance(each, str) else each["text"]
        for each in texts
        if isinstance(each, str) or each["type"] == "text"
    )


def _count(request: dict[str, Any]) -> int:
    """Return the tokens of the request; raise any exception for a bad one."""
    messages = request["messages"]
    if any(each["role"] not in ROLES or (not each["content"] and each["role"] == "user") for each in messages):
        raise ValueError
    contents = [request.get("system", ""), *(each["content"] for each in messages)]
    return sum(len(TOKEN.findall(_text(content))) for content in contents)


def _compose(request: dict[str, Any], prompt: str, identity: str) -> tuple[list[str], dict[str, Any]]:
    """Return the tokens of the answer, and the message that they make; raise any exception for a bad request."""
    model, limit = request["model"], request["max_tokens"]
    if not 1 <= limit <= MAX_TOKENS:
        raise ValueError
    count = _count(request)
    tool = _called_tool(request)
    schema = _schema_of(request)
    if tool is not None:
        given = instance_of(tool.get("input_schema", {}))
        tokens, stop_reason = TOKEN.findall(_encode(given).decode()), "tool_use"
        block = {"type": "tool_use", "id": f"toolu_{identity}", "name": tool["name"], "input": given}
    else:
        if schema is not None:
            natural = TOKEN.findall(_encode(instance_of(schema)).decode())
            wanted = len(natural)
        else:
            natural = [*TOKEN.findall(OPENING.format(prompt=prompt, count=count, model=model)), *FURTHER]
            wanted = int(_steered("tokens", prompt, len(natural)))
        tokens = list(islice(chain(natural, cycle(FURTHER)), min(wanted, limit)))
        stop_reason = "max_tokens" if wanted > limit else "end_turn"
        block = {"type": "text", "text": "".join(tokens)}
    message = {"id": f"msg_{identity}", "type": "message", "role": "assistant", "model": model, "content": [block]}
    stop = {"stop_reason": stop_reason, "stop_sequence": None}
    return tokens, {**message, **stop, "usage": {"input_tokens": count, "output_tokens": len(tokens)}}


def _called_tool(request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tool that the answer calls; raise any exception for a bad request."""
    choice = request.get("tool_choice") or {"type": "auto"}
    tools = [tool for tool in request.get("tools") or [] if "input_schema" in tool]
    contents = [each["content"] for each in request["messages"] if isinstance(each["content"], list)]
    # Anywhere: an agent adds reminders and notices behind them, and would be made to call forever.
    has_results = any(block["type"] == "tool_result" for block in chain.from_iterable(contents))
    if not tools or choice["type"] == "none" or (choice["type"] == "auto" and has_results):
        return None
    called: dict[str, Any] = next(each for each in tools if choice["type"] != "tool" or each["name"] == choice["name"])
    return called


def _schema_of(request: dict[str, Any]) -> Any:
    form = (request.get("output_config") or {}).get("format") or request.get("output_format")
    return form["schema"] if form else None


def _stream(message: dict[str, Any], tokens: list[str], pause: float) -> Iterator[bytes]:
    begun = time.monotonic()
    end = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    usage = {**message["usage"], "output_tokens": 0}
    empty: dict[str, Any] = {**message, **dict.fromkeys(end), "content": [], "usage": usage}
    opened = message["content"][0]
    opened = {**opened, "input": {}} if opened["type"] == "tool_use" else {**opened, "text": ""}
    kind, field = ("input_json_delta", "partial_json") if "input" in opened else ("text_delta", "text")
    block = _event("content_block_start", index=0, content_block=opened)
    yield _event("message_start", message=empty) + block + _event("ping")
    for count, token in enumerate(tokens, 1):
        # Sleeping until a point in time keeps the rate, whatever sending costs; a sleep of 0 lets other greenlets run.
        gevent.sleep(max(0.0, begun + count * pause - time.monotonic()))
        yield _event("content_block_delta", index=0, delta={"type": kind, field: token})
        if count % PING_EVERY_TOKENS == 0:
            yield _event("ping")
    yield _event("content_block_stop", index=0)
    yield _event("message_delta", delta=end, usage=message["usage"]) + _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def serve(host: str, port: int, tokens_per_second: float = TOKENS_PER_SECOND) -> Any:
    """Start a gevent.pywsgi.WSGIServer with the app and return it; port 0 is a free one, in `server_port`."""
    from gevent import pywsgi  # loaded only where it is used

    app = create_offline(tokens_per_second)
    server = pywsgi.WSGIServer((host, port), app, backlog=2048, log=None, error_log=None)
    server.init_socket()
    # Accepted sockets inherit it; otherwise Nagle's algorithm keeps a token until the last one is acknowledged.
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.start()
    return server
