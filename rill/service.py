"""The life of one request: admit, ask, stream, record. It imports no web framework."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import gevent

from rill import offline
from rill.admission.auth import Authentication
from rill.admission.bill import Bill
from rill.admission.budget import Reservation
from rill.admission.client import Client
from rill.admission.concurrency import ConcurrencyLimit
from rill.admission.limits import Limits
from rill.dialects.base import Dialect
from rill.events import Bytes, Encoder, Event
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings
from rill.streaming.cancellation import Cancellation, Cancelled, Deadlines
from rill.streaming.delivery import Delivery, PassThrough, await_beginning
from rill.streaming.recording import Recording
from rill.telemetry.metrics import Telemetry
from rill.telemetry.record import Record
from rill.upstream.answer import Answer
from rill.upstream.fallback import answer_headers, connect

if TYPE_CHECKING:
    from rill.admission.jwt import Jwts


class Request(NamedTuple):
    """A prompt, who sent it, and how its answer is delivered.

    `admit` connects the answer with the client's connection and returns what disconnects them; it is None without a
    connection. `reset` resets the connection of a client that cannot tell a truncated body from a complete one.
    `send` is the connection's write that never waits, and the one that may; None disables the relay. `reservation` is
    settled at the end of the answer. `recording` is where the answer goes instead of a connection.
    """

    prompt: Prompt
    reply: ReplyFormat
    dialect: Dialect
    client: Client
    request_id: str
    admit: Callable[[Cancellation], Callable[[], None]] | None = None
    reset: Callable[..., None] | None = None
    send: tuple[Callable[[bytes], int], Callable[[bytes], None]] | None = None
    reservation: Reservation | None = None
    recording: Recording | None = None


class Reply(NamedTuple):
    """A response that has started; `body` yields its bytes and must be closed."""

    body: Delivery
    media_type: str
    headers: Mapping[str, str]


class Held(list[Callable[[], None]]):
    """What an answer holds, as what releases it. An ExitStack would take 2 KB of each open answer."""

    def release(self) -> None:
        """Release all, the last first, whatever is raised meanwhile."""
        while self:
            try:
                self.pop()()
            finally:
                self.release()


class Service:
    """What all requests of a worker share: limits, metrics, and the upstream."""

    def __init__(self, settings: Settings, slots: int) -> None:
        models = (*settings.known_models(), *settings.fallback_models)
        self.telemetry = Telemetry(settings.authenticates, models, settings.has_fallbacks())
        self.authentication = Authentication(settings.api_keys, _jwts_of(settings))
        self.limits = Limits(settings)
        self.slots = ConcurrencyLimit(slots, settings.max_streams_per_client)
        self._deadlines = Deadlines(
            settings.start_timeout_seconds, settings.idle_timeout_seconds, settings.total_timeout_seconds
        )
        base_url = settings.anthropic_base_url
        if settings.offline:
            base_url = f"http://127.0.0.1:{offline.serve('127.0.0.1', 0).server_port}"
        self._upstream = connect(settings, base_url, slots, self.telemetry)
        self._names_who_answered = settings.has_fallbacks()

    def answer(self, request: Request) -> Reply:
        """Return once the response has started; raise Problem if it does not."""
        record = Record(request.request_id, request.dialect.name, request.client.name, request.prompt.model)
        held = Held()
        bill = Bill(request.reservation, request.prompt.is_streamed) if request.reservation else None
        if bill:
            # At the very end: Redis may be slow.
            held.append(partial(self._settle, bill, record))
        self.telemetry.begin()
        held.append(partial(self._end, bill, record))
        try:
            self.slots.take_slot(request.client.name)
            held.append(partial(self.slots.free_slot, request.client.name))
            return self._ask(request, record, bill, held)
        except BaseException as error:
            if isinstance(error, Problem):
                record.status, record.outcome = error.status, error.name
                self.telemetry.count_upstream_error(error)
            held.release()
            raise

    def record(self, request: Request, recording: Recording) -> None:
        """Begin to record the answer in a greenlet of its own."""
        reply = request.reply._replace(id_prefix=f"{recording.id}:")
        recorded = request._replace(reply=reply, admit=recording.admit, reset=_reset_nothing, recording=recording)
        gevent.spawn(recording.pump, lambda: self.answer(recorded))

    def cancel(self, request: Request) -> None:
        """Release what is reserved for a request that needs no answer of its own."""
        if request.reservation:
            self.limits.settle(request.reservation, 0)

    def read_answer(self, prompt: Prompt) -> Iterator[list[Event]]:
        """Yield the events of an answer that no connection waits for; raise Problem."""
        with closing(Cancellation(self._deadlines)) as cancellation:
            try:
                with closing(self._upstream.ask(prompt, self._deadlines.start)) as answer:
                    cancellation.nudge = answer.nudge
                    yield from cancellation.watch(answer)
            except Cancelled:
                raise cancellation.problem() from None

    def _end(self, bill: Bill | None, record: Record) -> None:
        if bill:
            record.charged_tokens = bill.tokens(record.outcome)
        self.telemetry.end(record)

    def _settle(self, bill: Bill, record: Record) -> None:
        self.limits.settle(bill.reservation, record.charged_tokens or 0)

    def _ask(self, request: Request, record: Record, bill: Bill | None, held: "Held") -> Reply:
        """Ask the upstream and wait for the start of its answer; `held` collects what the end releases."""
        prompt, dialect = request.prompt, request.dialect
        cancellation = Cancellation(self._deadlines_of(request))
        held.append(cancellation.close)
        if request.admit:
            held.append(request.admit(cancellation))
        note = partial(_note_answer, record, cancellation, bill)
        try:
            answer = self._upstream.ask(prompt, self._deadlines.start, dialect.is_verbatim, note, record.note_attempt)
            held.append(answer.close)
            reads = cancellation.watch(answer)
            headers = answer.headers if dialect.is_verbatim else dialect.headers
            if self._names_who_answered:
                headers = {**headers, **answer_headers(record.upstream, record.model)}
            media_type = dialect.media_type
            encoder: Encoder
            if dialect.encode_whole and not request.reply.streamed:
                body, end = dialect.encode_whole(reads, record.model, request.reply, request.request_id)
                beginning: list[Event] = [Bytes(body), end]
                encoder, media_type = PassThrough(), "application/json"
                headers = {**headers, "Content-Length": str(len(body))}
            else:
                encoder = dialect.open_encoder(record.model, request.reply, request.request_id)
                beginning = await_beginning(reads, cancellation, dialect.wants_text)
        except Cancelled:
            raise cancellation.problem() from None
        dialect.check_beginning(beginning)
        finish = partial(self._finish, record, cancellation, held, request.recording)
        delivery = Delivery(beginning, reads, encoder, cancellation, request.reset, finish)
        if request.send and request.recording:
            answer.relay(request.recording.relay(delivery.relay))
        elif request.send:
            answer.relay(delivery.relay(*request.send, chunked=not request.reset))
        return Reply(delivery, media_type, headers)

    def _deadlines_of(self, request: Request) -> Deadlines:
        if not request.prompt.is_streamed and not request.prompt.is_count:
            # The first byte of such an answer is its last one.
            return replace(self._deadlines, start=self._deadlines.idle)
        return self._deadlines

    def _finish(
        self,
        record: Record,
        cancellation: Cancellation,
        held: "Held",
        recording: Recording | None,
        delivery: Delivery,
    ) -> None:
        record.status, record.outcome, record.bytes_sent = 200, delivery.outcome, delivery.bytes_sent
        record.first_text = cancellation.first_text
        if recording:
            record.resumptions, record.replayed_bytes = recording.resumptions, recording.replayed_bytes
        record.stop_reason = delivery.end.stop_reason if delivery.end else None
        if delivery.problem:
            self.telemetry.count_upstream_error(delivery.problem)
        held.release()


def _reset_nothing(flush_seconds: float = 0.0) -> None:
    """Reset no connection: a recording has none, and knows how its answer ended."""


def _jwts_of(settings: Settings) -> "Jwts | None":
    if not settings.accepts_jwts:
        return None
    # 20 MB of memory, which a service without JWTs does not need.
    from rill.admission.jwt import Jwts

    jwts = Jwts(settings.jwt_secret, settings.jwks_url, settings.jwt_audience, settings.jwt_issuer)
    jwts.start()
    return jwts


def _note_answer(record: Record, cancellation: Cancellation, bill: Bill | None, answer: Answer) -> None:
    """Record what is known of an answer once its headers are in."""
    if bill:
        bill.answer = answer
    cancellation.nudge = answer.nudge
    record.upstream_request_id, record.usage = answer.request_id, answer.usage
