"""The life of one request: admit, ask, stream, record. It imports no web framework."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from rill import offline
from rill.admission.auth import ApiKeys
from rill.admission.concurrency import ConcurrencyLimit
from rill.admission.rate_limit import RateLimit
from rill.dialects.base import Dialect
from rill.events import Bytes, Encoder, Event
from rill.problems import Problem
from rill.prompt import Prompt, ReplyFormat
from rill.settings import Settings
from rill.streaming.cancellation import Cancellation, Cancelled, Deadlines
from rill.streaming.delivery import Delivery, PassThrough, await_beginning
from rill.telemetry.metrics import Telemetry
from rill.telemetry.record import Record
from rill.upstream.answer import Answer
from rill.upstream.client import Upstream


class Request(NamedTuple):
    """A prompt, who sent it, and how its answer is delivered.

    `admit` connects the answer with the client's connection and returns what disconnects them; it is None without a
    connection. `reset` resets the connection of a client that cannot tell a truncated body from a complete one.
    `send` is the connection's write that never waits, and the one that may; None disables the relay.
    """

    prompt: Prompt
    reply: ReplyFormat
    dialect: Dialect
    client: str
    request_id: str
    admit: Callable[[Cancellation], Callable[[], None]] | None = None
    reset: Callable[..., None] | None = None
    send: tuple[Callable[[bytes], int], Callable[[bytes], None]] | None = None


class Reply(NamedTuple):
    """A response that has started; `body` yields its bytes and must be closed."""

    body: Delivery
    media_type: str
    headers: Mapping[str, str]


class Service:
    """What all requests of a worker share: limits, metrics, and the upstream."""

    def __init__(self, settings: Settings, slots: int) -> None:
        self.telemetry = Telemetry(bool(settings.api_keys), settings.known_models())
        self.api_keys = ApiKeys(settings.api_keys)
        self.rate_limit = RateLimit(settings.rate_limit, settings.redis_url)
        self.slots = ConcurrencyLimit(slots, settings.max_streams_per_client)
        self._deadlines = Deadlines(
            settings.start_timeout_seconds, settings.idle_timeout_seconds, settings.total_timeout_seconds
        )
        base_url = settings.anthropic_base_url
        if settings.offline:
            base_url = f"http://127.0.0.1:{offline.serve('127.0.0.1', 0).server_port}"
        self._upstream = Upstream(settings, base_url, slots, self.telemetry.count_upstream_error)

    def answer(self, request: Request) -> Reply:
        """Return once the response has started; raise Problem if it does not."""
        record = Record(request.request_id, request.dialect.name, request.client, request.prompt.model)
        with ExitStack() as held:
            self.telemetry.begin()
            held.callback(self.telemetry.end, record)
            try:
                held.enter_context(self.slots.hold_slot(request.client))
                return self._ask(request, record, held)
            except Problem as problem:
                record.status, record.outcome = problem.status, problem.name
                self.telemetry.count_upstream_error(problem)
                raise

    def read_answer(self, prompt: Prompt) -> Iterator[list[Event]]:
        """Yield the events of an answer that no connection waits for; raise Problem."""
        with closing(Cancellation(self._deadlines)) as cancellation:
            try:
                with closing(self._upstream.ask(prompt, self._deadlines.start)) as answer:
                    cancellation.nudge = answer.nudge
                    yield from cancellation.watch(answer)
            except Cancelled:
                raise cancellation.problem() from None

    def _ask(self, request: Request, record: Record, held: ExitStack) -> Reply:
        """Ask the upstream and wait for the start of its answer; `held` collects what the end releases."""
        prompt, dialect = request.prompt, request.dialect
        cancellation = held.enter_context(closing(Cancellation(self._deadlines_of(request))))
        if request.admit:
            held.callback(request.admit(cancellation))
        note = partial(_note_answer, record, cancellation)
        try:
            answer = self._upstream.ask(prompt, self._deadlines.start, dialect.is_verbatim, note)
            held.enter_context(closing(answer))
            reads = cancellation.watch(answer)
            headers = answer.headers if dialect.is_verbatim else dialect.headers
            media_type = dialect.media_type
            encoder: Encoder
            if dialect.encode_whole and not request.reply.streamed:
                body, end = dialect.encode_whole(reads, prompt.model, request.request_id)
                beginning: list[Event] = [Bytes(body), end]
                encoder, media_type = PassThrough(), "application/json"
                headers = {**headers, "Content-Length": str(len(body))}
            else:
                encoder = dialect.open_encoder(prompt.model, request.reply, request.request_id)
                beginning = await_beginning(reads, cancellation, dialect.wants_text)
        except Cancelled:
            raise cancellation.problem() from None
        dialect.check_beginning(beginning)
        release = ExitStack()
        finish = partial(self._finish, record, cancellation, release)
        delivery = Delivery(beginning, reads, encoder, cancellation, request.reset, finish)
        release.enter_context(held.pop_all())
        if request.send:
            answer.relay(delivery.relay(*request.send, chunked=not request.reset))
        return Reply(delivery, media_type, headers)

    def _deadlines_of(self, request: Request) -> Deadlines:
        if not request.prompt.is_streamed and not request.prompt.is_count:
            # The first byte of such an answer is its last one.
            return replace(self._deadlines, start=self._deadlines.idle)
        return self._deadlines

    def _finish(self, record: Record, cancellation: Cancellation, release: ExitStack, delivery: Delivery) -> None:
        record.status, record.outcome, record.bytes_sent = 200, delivery.outcome, delivery.bytes_sent
        record.first_text = cancellation.first_text
        record.stop_reason = delivery.end.stop_reason if delivery.end else None
        if delivery.problem:
            self.telemetry.count_upstream_error(delivery.problem)
        release.close()


def _note_answer(record: Record, cancellation: Cancellation, answer: Answer) -> None:
    """Record what is known of an answer once its headers are in."""
    cancellation.nudge = answer.nudge
    record.upstream_request_id, record.usage = answer.request_id, answer.usage
