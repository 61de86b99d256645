"""A Messages API that needs no key and no network: POST /v1/messages in, an answer about the prompt out.

The wire format is the real one, streamed or whole; stop_sequences and tools are ignored. The same request
always gets the same bytes. In the last user text, `tokens=N` makes the answer exactly N tokens long (if
`max_tokens` allows), and `rate=R` sets the tokens a second, 0 for no pause at all.
"""

import argparse
import hashlib
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, cycle, islice
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import gevent

# From U+3000 on, scripts put no spaces between words: a character is a token. Matches cover any text whole.
TOKEN = re.compile(r"\s*(?:[^\s\u3000-\U0010ffff]{1,12}|\S)|\s+")
MAX_TOKENS = 128_000
PING_EVERY_TOKENS = 100
FIELDS = {"model": (str, "string"), "max_tokens": (int, "integer"), "messages": (list, "list")}

OPENING = """Hello! I am the offline model: no key, no network, no thoughts of my own. You asked me:\n
{prompt}\n
That is {count} tokens of input, meant for {model}, and it reached me whole."""
FURTHER = TOKEN.findall("""\n
What you are watching is real all the same. Each word leaves as one event of the Messages API, at the pace \
of a model. If the words appear one by one, nothing on the way holds them back.\n
You can steer me from the prompt: write tokens=500 and I say exactly that many, or rate=5 and I slow down \
enough to be read aloud. Ask me the same thing twice and you hear the same thing twice.\n
When you have seen enough, give the server an API key, and the next answer comes from Claude.""")


def create_offline(tokens_per_second: float = 50.0) -> WSGIApplication:
    """Make a WSGI app that answers as the Messages API does, at `tokens_per_second` (0: unpaced).

    Streamed, it yields the opening events at once, token n after n / tokens_per_second seconds, then the end;
    whole, it takes as long. It waits in `gevent.sleep`.
    Spec: https://docs.anthropic.com/en/api/messages-streaming
    """

    def offline(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # A chunked body has no length; a server that sets this flag ends the reading where the body ends.
        size = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        identity = f"offline_{hashlib.sha256(body).hexdigest()[:24]}"
        headers = [("content-type", "application/json"), ("request-id", f"req_{identity}")]
        status, request = _judge(environ, body)
        if status != "200 OK":
            start_response(status, headers)
            error = {"type": "error", "error": request, "request_id": f"req_{identity}"}
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [_encode(error)]
        tokens, message = _compose(request, f"msg_{identity}")
        rate = _steered("rate", _prompt(request), tokens_per_second)
        pause = 1 / rate if rate else 0.0
        if request.get("stream"):
            start_response(status, [("content-type", "text/event-stream; charset=utf-8"), *headers[1:]])
            return _stream(message, tokens, pause)
        gevent.sleep(pause * len(tokens))
        start_response(status, headers)
        return [_encode(message)]

    return offline


def _judge(environ: WSGIEnvironment, body: bytes) -> tuple[str, dict[str, Any]]:
    # Gives the request where the status is 200, and the error otherwise.
    if environ["PATH_INFO"] != "/v1/messages":
        words = "Not found: the offline model answers POST /v1/messages only"
        return "404 Not Found", {"type": "not_found_error", "message": words}
    if environ["REQUEST_METHOD"] != "POST":
        return "405 Method Not Allowed", {"type": "invalid_request_error", "message": "Method not allowed"}
    try:
        request = json.loads(body)
        _encode(request)  # a lone surrogate passes loads, but no answer could carry it
        fault = next(_faults(request), None)
    except (ValueError, RecursionError) as error:
        fault = f"The request body is not valid JSON: {error}"
    if fault:
        return "400 Bad Request", {"type": "invalid_request_error", "message": fault}
    return "200 OK", request


def _faults(request: Any) -> Iterator[str]:
    # Each check relies on those before it, so only the first fault may be asked for.
    if not isinstance(request, dict):
        yield "Input should be a valid dictionary"
    for name, (kind, word) in FIELDS.items():
        if name not in request:
            yield f"{name}: Field required"
        if type(request[name]) is not kind:
            yield f"{name}: Input should be a valid {word}"
    if not 1 <= request["max_tokens"] <= MAX_TOKENS:
        yield f"max_tokens: Input should be from 1 to {MAX_TOKENS}, not {request['max_tokens']}"
    if not request["messages"]:
        yield "messages: at least one message is required"
    for index, message in enumerate(request["messages"]):
        yield from _message_faults(f"messages.{index}", message)
    if request["messages"][0]["role"] != "user":
        yield 'messages: first message must use the "user" role'
    yield from _content_faults("system", request.get("system", ""))


def _message_faults(where: str, message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f"{where}: Input should be a valid dictionary"
    yield from (f"{where}.{name}: Field required" for name in ("role", "content") if name not in message)
    if message["role"] not in ("user", "assistant", "system"):
        yield f"{where}.role: Input should be 'user', 'assistant' or 'system'"
    if message["role"] != "assistant" and message["content"] in ("", []):
        yield f"{where}: {message['role']} messages must have non-empty content"
    yield from _content_faults(f"{where}.content", message["content"])


def _content_faults(where: str, content: Any) -> Iterator[str]:
    if not isinstance(content, str | list):
        yield f"{where}: Input should be a valid string or list"
    for index, block in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            yield f"{where}.{index}: Input should be a content block with a type"
        if block["type"] == "text" and not isinstance(block.get("text"), str):
            yield f"{where}.{index}.text: Input should be a valid string"


def _text(content: str | list[dict[str, Any]]) -> str:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "\n".join(block["text"] for block in blocks if block["type"] == "text")


def _prompt(request: dict[str, Any]) -> str:
    return next(_text(said["content"]) for said in reversed(request["messages"]) if said["role"] == "user")


def _steered(name: str, prompt: str, otherwise: float) -> float:
    said = re.search(rf"\b{name}=([0-9]{{1,9}}(?:\.[0-9]{{1,4}})?)", prompt)
    return float(said[1]) if said else otherwise


def _compose(request: dict[str, Any], identity: str) -> tuple[list[str], dict[str, Any]]:
    model, limit, prompt = request["model"], request["max_tokens"], _prompt(request)
    contents = [request.get("system", ""), *(said["content"] for said in request["messages"])]
    count = sum(len(TOKEN.findall(_text(content))) for content in contents)
    natural = [*TOKEN.findall(OPENING.format(prompt=prompt, count=count, model=model)), *FURTHER]
    wanted = int(_steered("tokens", prompt, len(natural)))
    tokens = list(islice(chain(natural, cycle(FURTHER)), min(wanted, limit)))
    stop = {"stop_reason": "max_tokens" if wanted > limit else "end_turn", "stop_sequence": None}
    content = [{"type": "text", "text": "".join(tokens)}]
    message = {"id": identity, "type": "message", "role": "assistant", "model": model, "content": content}
    return tokens, {**message, **stop, "usage": {"input_tokens": count, "output_tokens": len(tokens)}}


def _stream(message: dict[str, Any], tokens: list[str], pause: float) -> Iterator[bytes]:
    begun = time.monotonic()
    end = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    usage = {**message["usage"], "output_tokens": 0}
    unsaid: dict[str, Any] = {**message, **dict.fromkeys(end), "content": [], "usage": usage}
    block = _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield _event("message_start", message=unsaid) + block + _event("ping")
    for count, token in enumerate(tokens, 1):
        # Aiming at a point in time keeps the rate whatever sending costs; a sleep of 0 lets others run.
        gevent.sleep(max(0.0, begun + count * pause - time.monotonic()))
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": token})
        if count % PING_EVERY_TOKENS == 0:
            yield _event("ping")
    yield _event("content_block_stop", index=0)
    yield _event("message_delta", delta=end, usage=message["usage"]) + _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def serve(host: str, port: int, tokens_per_second: float) -> Any:
    """Start a gevent.pywsgi.WSGIServer with the app and return it; port 0 is a free one, in `server_port`."""
    from gevent import pywsgi  # not loaded where it is not used

    app = create_offline(tokens_per_second)
    server = pywsgi.WSGIServer((host, port), app, backlog=2048, log=None, error_log=None)
    server.init_socket()
    # Accepted sockets inherit it: otherwise Nagle's algorithm keeps a token until the last is acknowledged.
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.start()
    return server


def main() -> None:
    """Serve the app alone on 127.0.0.1 until interrupted."""
    parser = argparse.ArgumentParser("python -m rill.offline", description="A Messages API with no network.")
    parser.add_argument("--port", type=int, default=8001, help="0 is a free one; default %(default)s")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second; default %(default)s")
    options = parser.parse_args()
    server = serve("127.0.0.1", options.port, options.rate)
    url = f"http://127.0.0.1:{server.server_port}"
    print(f"offline model: export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=offline", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
