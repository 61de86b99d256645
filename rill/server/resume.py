"""Resuming over HTTP: which recording a request continues, from which byte, and how the response reports that."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

import gevent
from werkzeug.wrappers import Request

from rill import service
from rill.admission.concurrency import ConcurrencyLimit
from rill.dialects import SSE
from rill.dialects.base import Dialect
from rill.problems import Problem
from rill.prompt import ReplyFormat
from rill.server.request import RESUMES, connection_of, read_body
from rill.settings import Settings
from rill.streaming.cancellation import Drain
from rill.streaming.reader import Connection, Reader
from rill.streaming.recording import Asked, Recording
from rill.streaming.replay import Recordings

ID = re.compile(r"[\w-]{22}", re.ASCII)
EVENT_ID = re.compile(r"([\w-]{22}):([0-9]{1,9})", re.ASCII)
# One range with a first byte; any other may be ignored: https://www.rfc-editor.org/rfc/rfc9110#section-14.2
RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{1,18})\s*-\s*([0-9]{0,18})\s*", re.ASCII | re.IGNORECASE)
# The last byte of an answer that is not complete: https://www.rfc-editor.org/rfc/rfc8673#section-2
VERY_LARGE = 2**53 - 1
UNKNOWN = "This answer is unknown, or has expired."
# How long another worker's answer may take to contain an event that a client has already received.
EVENT_SECONDS = 2.0


class Replay(NamedTuple):
    """A response from a recording; `body` must be closed, and is None if there is nothing to send."""

    status: int
    headers: Mapping[str, str]
    body: Reader | None = None


class Part(NamedTuple):
    """Which bytes a request asks for; `is_partial` if it names them itself."""

    position: int = 0
    stop: float = math.inf
    is_partial: bool = False


class Resumption:
    """The recorded answers of this worker, as its clients reach them; `limits` are headers that announce it."""

    def __init__(
        self, recordings: Recordings, readers: ConcurrencyLimit, answers: service.Service, settings: Settings
    ) -> None:
        # Otherwise by all who know its id.
        self._is_private = settings.authenticates
        self._recordings = recordings
        self._readers = readers
        self._service = answers
        self._max_body = settings.max_body_bytes
        self.limits = {"Accept-Ranges": "bytes", "Resume-Seconds": str(settings.resume_seconds)}

    def resume(self, request: Request, dialect: Dialect, name: str, connection: Connection) -> Replay | None:
        """Return the rest of the answer that a repeated request continues, None if it continues none; raise Problem."""
        if dialect is SSE and "Last-Event-ID" in request.headers:
            event = EVENT_ID.fullmatch(request.headers["Last-Event-ID"])
            return self._read(request, event and self._recordings.find(event[1]), name, connection)
        if not RESUMES.match(request.headers.get("Range", "")):
            return None
        asked = self._asked(request, dialect, name, 0)
        recording = self._recordings.find_identity(asked.identity)
        _check_request(recording, asked)
        return self._read(request, recording, name, connection)

    def read(self, request: Request, id: str, name: str, connection: Connection) -> Replay:
        """Return the answer with this id, or the part that the request asks for; raise Problem."""
        return self._read(request, self._recordings.find(id) if ID.fullmatch(id) else None, name, connection)

    def start(self, request: Request, asked: service.Request) -> Replay | None:
        """Return an answer once it has started, None if it cannot be recorded; raise Problem."""
        identified = self._asked(request, asked.dialect, asked.client.name, asked.prompt.resume_seconds)
        return self.begin(request, asked, identified)

    def begin(self, request: Request, asked: service.Request, identified: Asked) -> Replay | None:
        """Return the answer to a request that is identified in this way, as `start` does."""
        name, connection = asked.client.name, Connection(asked.admit, asked.reset, asked.send)
        with ExitStack() as held, ExitStack() as unused:
            unused.callback(self._service.cancel, asked)
            held.enter_context(self._readers.hold_slot(name))
            recording, is_new = self._recordings.open(identified, drain_of(request))
            if recording is None:
                unused.pop_all()
                return None
            _check_request(recording, identified)
            reader = Reader(recording, connection, held.pop_all().close, _receipts_of(request))
            if is_new:
                unused.pop_all()
                self._service.record(asked, recording)
            else:
                recording.note_resumption(0)
        return self._begin(reader, recording, lambda: Part())

    def stop(self, id: str, name: str) -> None:
        """End an answer, if it has not ended; raise Problem if it is unknown."""
        recording = self._recordings.find(id) if ID.fullmatch(id) else None
        if recording is None:
            raise Problem("not_found", UNKNOWN)
        self._check_client(recording, name)
        self._recordings.stop(recording)

    def _read(self, request: Request, recording: Recording | None, name: str, connection: Connection) -> Replay:
        is_event = "Last-Event-ID" in request.headers
        if recording is None:
            if is_event:
                return Replay(204, {})  # EventSource reconnects after every end, and would be billed again.
            raise Problem("not_resumable", f"{UNKNOWN} Send the request without Range.")
        self._check_client(recording, name)
        if request.method == "HEAD":
            return Replay(200, _headers_of(recording, Part()))
        with ExitStack() as held:
            held.enter_context(self._readers.hold_slot(name))
            reader = Reader(recording, connection, held.pop_all().close, _receipts_of(request))
        if is_event and recording.asked.media_type == SSE.media_type:
            return self._begin(reader, recording, lambda: _part_of_event(request, recording, reader))
        return self._begin(reader, recording, lambda: _part_of_range(request, recording))

    def _begin(self, reader: Reader, recording: Recording, find_part: Callable[[], Part]) -> Replay:
        with ExitStack() as opened:
            opened.callback(reader.close)
            reader.wait_for_start()
            part = find_part()
            reader.seek(part.position, part.stop)
            if part.position:
                recording.note_resumption(part.position)
            if part.position and part.position == recording.length and recording.ended in ("complete", "reported"):
                recording.note_receipt(1)
                return Replay(204, {})
            opened.pop_all()
            return Replay(206 if part.is_partial else 200, _headers_of(recording, part), reader)

    def _check_client(self, recording: Recording, name: str) -> None:
        if self._is_private and recording.asked.client != name:
            raise Problem("not_found", UNKNOWN)

    def _asked(self, request: Request, dialect: Dialect, name: str, seconds: int) -> Asked:
        body = read_body(request, self._max_body) if request.method == "POST" else b""
        target = request.environ.get("RAW_URI") or request.full_path
        media_type = request.headers.get("Content-Type", "")
        digest = digest_of(name, dialect.name, request.method, target, media_type, body)
        key = request.headers.get("Idempotency-Key")
        identity = digest_of(name, key) if key else digest
        return Asked(name, identity, digest, dialect.media_type, seconds, joins=bool(key))


def open_recordings(redis_url: str | None) -> Recordings:
    """Return the recordings of this worker, in Redis if there is one."""
    if not redis_url:
        return Recordings()
    # Several MB of a worker's memory.
    from rill.streaming.replay_redis import SharedRecordings

    lost = Problem("upstream_error", "The server that wrote this answer failed.")
    notice = SSE.open_encoder("", ReplyFormat(), "").encode_error(lost)
    return SharedRecordings(redis_url, {SSE.media_type: notice or b""})


def drain_of(request: Request) -> Drain | None:
    """Return what ends the worker's answers at shutdown, None without a server."""
    connection = connection_of(request)
    return connection.connections.drain if connection else None


def _receipts_of(request: Request) -> Callable[[Callable[[int], None]], None] | None:
    connection = connection_of(request)
    return connection.await_receipt if connection else None


def _check_request(recording: Recording | None, asked: Asked) -> None:
    if recording and recording.asked.request != asked.request:
        raise Problem("idempotency_key_reused")


def digest_of(*parts: str | bytes) -> str:
    """Return the SHA-256 of the parts, each of which is hashed so that no two lists of parts are the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def _part_of_range(request: Request, recording: Recording) -> Part:
    """Return the part that the Range header asks for; raise Problem if the answer does not have it.

    A status of 416 would be success for wget, and the whole answer would be appended by curl -C -.
    """
    sent = request.headers.get("Range", "")
    asked = RANGE.fullmatch(sent)
    position, last = (int(asked[1]), int(asked[2] or VERY_LARGE)) if asked else (0, VERY_LARGE)
    if not position and last == VERY_LARGE and not RESUMES.match(sent):
        return Part()
    if not asked or last < position or (recording.ended and position > recording.length):
        raise Problem("not_resumable", f"Range: should be bytes=N-, N at most {recording.length}.")
    return Part(position, last + 1 if last < VERY_LARGE else math.inf, is_partial=True)


def _part_of_event(request: Request, recording: Recording, reader: Reader) -> Part:
    """Return the part behind the event that the client received last; raise Problem if there is none."""
    event = EVENT_ID.fullmatch(request.headers["Last-Event-ID"])
    if not event or event[1] != recording.id:
        raise Problem("not_resumable", "Last-Event-ID: should be an id of this answer's events.")
    count = int(event[2])
    with suppress(TimeoutError), gevent.Timeout(EVENT_SECONDS, TimeoutError):
        reader.wait_until(lambda: bool(recording.ended) or _end_of_event(recording, count) is not None)
    position = _end_of_event(recording, count)
    if position is None:
        raise Problem("not_resumable", "Last-Event-ID: the answer has no such event.")
    return Part(position)


def _end_of_event(recording: Recording, count: int) -> int | None:
    line = f"id: {recording.id}:%d\n"
    following = recording.find((line % (count + 1)).encode())
    if following >= 0:
        return following
    begin = recording.find((line % count).encode())
    return recording.find(b"\n\n", begin) + 2 if begin >= 0 else None


def _headers_of(recording: Recording, part: Part) -> dict[str, str]:
    headers = {
        **recording.headers,
        "Content-Type": recording.asked.media_type,
        "Content-Location": f"/stream/{recording.id}",
        "Accept-Ranges": "bytes",
    }
    total: int | None = recording.length if recording.ended in ("complete", "reported") else None
    last = int(min(part.stop, VERY_LARGE + 1 if total is None else total)) - 1
    if total is not None:
        headers["Content-Length"] = str(last + 1 - part.position)
    if part.is_partial:
        headers["Content-Range"] = f"bytes {part.position}-{last}/{'*' if total is None else total}"
    return headers
