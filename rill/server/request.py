"""What a client's request says besides the prompt: its id, its API key and its body."""

import re
import uuid
from functools import lru_cache

import gevent
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Request

from rill.problems import Problem
from rill.server.request_body import ChunksTooSmall

BODY_SECONDS = 30.0
MAX_FORM_FIELDS = 1000
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
# A Range that begins behind the first byte: what wget -c and curl -C - send for a file that is there in part.
RESUMES = re.compile(r"\s*bytes\s*=\s*0*[1-9][0-9]*\s*-", re.ASCII | re.IGNORECASE)
SANE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def id_of(request: Request) -> str:
    """The id that the caller chose, if it is sane, or a new one."""
    sent = request.headers.get("X-Request-Id", "")
    return sent if SANE_ID.fullmatch(sent) else uuid.uuid4().hex


def token_of(request: Request) -> str | None:
    """The token that the request carries: what SDKs, curl -u and EventSource send; never from the URL."""
    sent = request.headers.get("Authorization", "")
    scheme, _, credentials = sent.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    # Bytes that base64 has not are no credentials; werkzeug would raise ValueError.
    if scheme.lower() == "basic" and sent.isascii() and request.authorization is not None:
        return request.authorization.password
    return request.headers.get("x-api-key")


@lru_cache(maxsize=100)
def prefers_events(accept: str) -> bool:
    """Return whether an Accept header prefers server-sent events to plain text."""
    return (
        parse_accept_header(accept, MIMEAccept).best_match(["text/plain", "text/event-stream"]) == "text/event-stream"
    )


def check_range(request: Request) -> None:
    """Raise Problem where the client wants the rest of an answer: it would join it with a new, different one.

    416 is not used: wget takes it for success.
    """
    if RESUMES.match(request.headers.get("Range", "")):
        raise Problem("not_resumable")


def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of the request; raises Problem where it is too long, too slow or not whole."""
    too_long = Problem("too_large", f"The body should be of at most {most_bytes} bytes.")
    if (request.content_length or 0) > most_bytes:
        raise too_long
    try:
        with gevent.Timeout(BODY_SECONDS, Problem("too_slow", f"The body should arrive in {BODY_SECONDS:g} s.")):
            body = request.get_data(parse_form_data=False)
    except ChunksTooSmall as error:
        raise Problem("bad_request", str(error)) from None
    except ParseException:
        raise Problem("bad_request", "The body's chunks are broken.") from None
    except RequestEntityTooLarge:
        raise too_long from None
    if len(body) > most_bytes:
        raise too_long
    if len(body) < (request.content_length or 0):
        raise Problem("bad_request", "The body broke off before its Content-Length.")
    return body


def read_form(request: Request, body: bytes) -> dict[str, str]:
    """The fields of the form in the body; raises Problem where to read so many would hold up everybody."""
    too_many = Problem("too_large", f"A form may have at most {MAX_FORM_FIELDS} fields.")
    if request.mimetype != "multipart/form-data" and body.count(b"&") >= MAX_FORM_FIELDS:
        raise too_many
    try:
        return request.form.to_dict()
    except RequestEntityTooLarge:
        raise too_many from None  # Of the form's parts: the body's own length has been looked at.
