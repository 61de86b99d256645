"""What a client's request holds: its id, its API key, its address, its connection, and the prompt in its body."""

import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import gevent
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Request

from rill.admission import auth
from rill.dialects import SSE, TEXT, UI_MESSAGES, anthropic, chat, openai, responses, text, ui_messages
from rill.dialects.base import Dialect
from rill.dialects.validation import read_switch
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.server.connection import ClientSocket
from rill.server.request_body import ChunksTooSmall
from rill.settings import Settings
from rill.streaming.reader import Connection

BODY_SECONDS = 30.0
MAX_FORM_FIELDS = 1000
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
# A Range that starts after the first byte: wget -c and curl -C - send it for a partial file.
RESUMES = re.compile(r"\s*bytes\s*=\s*0*[1-9][0-9]*\s*-", re.ASCII | re.IGNORECASE)
VALID_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

NO_ENCODING = "Content-Encoding: a compressed body is not supported here. Send it uncompressed, without this header."

ReadPrompt = Callable[[Request, Settings], tuple[Prompt, ReplyFormat]]


def id_of(request: Request) -> str:
    """Return the id that the client chose, if it is valid, else a new one."""
    sent = request.headers.get("X-Request-Id", "")
    return sent if VALID_ID.fullmatch(sent) else uuid.uuid4().hex


def address_of(request: Request, trusted_proxies: int) -> str:
    """Return the client's address, from X-Forwarded-For as the trusted proxies wrote it."""
    return auth.address_of(request.remote_addr or "", request.headers.get("X-Forwarded-For", ""), trusted_proxies)


def connection_of(request: Request) -> ClientSocket | None:
    """Return the client's connection, None without a server."""
    connection = request.environ.get("gunicorn.socket")
    return connection if isinstance(connection, ClientSocket) else None


def writer_of(request: Request, relays: bool) -> Connection:
    """Return the client's connection as answers are written to it; `relays`: also from within the event loop."""
    connection = connection_of(request)
    if not connection:
        return Connection()
    reset = connection.reset if request.environ["SERVER_PROTOCOL"] == "HTTP/1.0" else None
    return Connection(connection.admit, reset, (connection.send_now, connection.sendall) if relays else None)


def api_key_of(request: Request) -> str | None:
    """Return the API key that the request carries, as SDKs, curl -u and EventSource send it; never from the URL."""
    sent = request.headers.get("Authorization", "")
    scheme, _, credentials = sent.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    # Bytes outside base64 are not credentials; werkzeug would raise ValueError.
    if scheme.lower() == "basic" and sent.isascii() and request.authorization is not None:
        return request.authorization.password
    return request.headers.get("x-api-key")


def preferred_dialect(request: Request) -> Dialect:
    """Return the AI SDK's stream if a header names it, server-sent events if Accept prefers them, else plain text."""
    if ui_messages.HEADER in request.headers:
        return UI_MESSAGES
    return _dialect_for(request.headers.get("Accept", ""))


@lru_cache(maxsize=100)
def _dialect_for(accept: str) -> Dialect:
    accepted = parse_accept_header(accept, MIMEAccept)
    return SSE if accepted.best_match(["text/plain", "text/event-stream"]) == "text/event-stream" else TEXT


def check_range(request: Request) -> None:
    """Raise Problem if the client asks for the rest of an answer: it would append the rest of a different one.

    The status is not 416, because wget takes that for success.
    """
    if RESUMES.match(request.headers.get("Range", "")):
        raise Problem("not_resumable")


def apply_fallback_header(request: Request, prompt: Prompt) -> Prompt:
    """Return the prompt, without fallbacks if the header X-Rill-Fallback is false; raise Problem."""
    value = read_switch(request.headers.get("X-Rill-Fallback", "true"))
    if not isinstance(value, bool):
        raise Problem("bad_request", "X-Rill-Fallback: should be true or false.")
    return prompt if value else replace(prompt, allows_fallback=False)


def read_query(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a GET; raise Problem."""
    return text.read_fields(request.args.to_dict(), settings), ReplyFormat()


def read_prompt_body(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt in the body of POST /stream, whatever its media type; raise Problem."""
    body, options = read_body(request, settings.max_body_bytes), request.args.to_dict()
    if request.is_json:
        return text.read_json(body, settings, options), ReplyFormat()
    if request.mimetype in FORMS:
        return text.read_form({**options, **read_form(request, body)}, settings), ReplyFormat()
    if request.mimetype in ("text/plain", "application/octet-stream", ""):
        return text.read_text(body, options, settings), ReplyFormat()
    raise Problem("unsupported_media_type")


def read_chat(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a chat of the AI SDK, or of any request to POST /stream; raise Problem."""
    if request.is_json:
        return chat.read_chat(read_body(request, settings.max_body_bytes), settings, request.args.to_dict())
    return read_prompt_body(request, settings)


def read_messages(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a request of the Messages API; raise Problem."""
    body = read_body(request, settings.max_body_bytes)
    return anthropic.read_messages(body, dict(request.headers), request.args.to_dict(), settings)


def read_count(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt whose tokens a request of the Messages API counts; raise Problem."""
    body = read_body(request, settings.max_body_bytes)
    return anthropic.read_count(body, dict(request.headers), request.args.to_dict(), settings)


def read_completion(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a request for a chat completion; raise Problem."""
    return openai.read_completion(read_body(request, settings.max_body_bytes), settings)


def read_response(request: Request, settings: Settings) -> tuple[Prompt, ReplyFormat]:
    """Return the prompt of a request of OpenAI's Responses; raise Problem."""
    return responses.read_response(read_body(request, settings.max_body_bytes), settings)


def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of the request; raise Problem if it is too long, too slow, incomplete or compressed."""
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        # https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3
        raise Problem("unsupported_media_type", NO_ENCODING, headers={"Accept-Encoding": "identity"})
    too_long = Problem("content_too_large", f"The body should be at most {max_bytes} bytes long.")
    if (request.content_length or 0) > max_bytes:
        raise too_long
    try:
        with gevent.Timeout(BODY_SECONDS, Problem("request_timeout", f"The body should arrive in {BODY_SECONDS:g} s.")):
            body = request.get_data(parse_form_data=False)
    except ChunksTooSmall as error:
        raise Problem("bad_request", str(error)) from None
    except ParseException:
        raise Problem("bad_request", "The chunks of the body are malformed.") from None
    except RequestEntityTooLarge:
        raise too_long from None
    if len(body) > max_bytes:
        raise too_long
    if len(body) < (request.content_length or 0):
        raise Problem("bad_request", "The body is shorter than its Content-Length.")
    return body


def read_form(request: Request, body: bytes) -> dict[str, str]:
    """Return the fields of the form in the body; raise Problem if there are too many to parse at once."""
    too_many = Problem("content_too_large", f"A form may have at most {MAX_FORM_FIELDS} fields.")
    if request.mimetype != "multipart/form-data" and body.count(b"&") >= MAX_FORM_FIELDS:
        raise too_many
    try:
        return request.form.to_dict()
    except RequestEntityTooLarge:
        raise too_many from None  # The parts of the form: the body's length is checked already.
