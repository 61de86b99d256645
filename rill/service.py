"""The life of one request: admit, ask, stream, record. It knows no web framework."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import NamedTuple

from rill import offline
from rill.admission.auth import Tokens
from rill.admission.concurrency import Places
from rill.admission.rate_limit import Rate
from rill.dialects import Dialect
from rill.dialects.whole import WholeFrames
from rill.events import Bytes, Event
from rill.problems import Problem
from rill.prompt import Prompt
from rill.settings import Settings
from rill.streaming.cancellation import Client, Deadlines, Interrupted, Interruption
from rill.streaming.delivery import Delivery, Frames, await_beginning
from rill.telemetry.metrics import Telemetry
from rill.telemetry.record import Record
from rill.upstream.client import Answer, Upstream


class Question(NamedTuple):
    """A prompt with who asked it, and how: `connection` is None without a server, `http_1_0` has no chunks."""

    prompt: Prompt
    dialect: Dialect
    client: str
    request_id: str
    connection: Client | None = None
    http_1_0: bool = False


class Reply(NamedTuple):
    """A response that has begun; `body` yields its bytes and must be closed."""

    body: Delivery
    media_type: str
    headers: Mapping[str, str]


class Service:
    """What all requests of a worker share: limits, metrics, and the upstream."""

    def __init__(self, settings: Settings, slots: int) -> None:
        self.telemetry = Telemetry(bool(settings.tokens), settings.known_models())
        self.tokens = Tokens(settings.tokens)
        self.rate = Rate(settings.rate, settings.redis_url)
        self.places = Places(slots, settings.streams_per_caller)
        self._deadlines = Deadlines(settings.first_event_seconds, settings.idle_seconds, settings.total_seconds)
        base_url = settings.base_url
        if settings.offline:
            base_url = f"http://127.0.0.1:{offline.serve('127.0.0.1', 0, settings.offline_rate).server_port}"
        self._upstream = Upstream(settings, base_url, slots, self.telemetry.count_upstream_error)

    def answer(self, question: Question) -> Reply:
        """Return once the response has begun; raise Problem if it does not."""
        record = Record(question.request_id, question.dialect.name, question.client, question.prompt.model)
        with ExitStack() as held:
            self.telemetry.begin()
            held.callback(self.telemetry.end, record)
            try:
                held.enter_context(self.places.take(question.client))
                return self._ask(question, record, held)
            except Problem as problem:
                record.status, record.ending = problem.status, problem.name
                self.telemetry.count_upstream_error(problem)
                raise

    def read_answer(self, prompt: Prompt) -> Iterator[list[Event]]:
        """Yield the events of an answer that no connection waits for; raise Problem."""
        with closing(Interruption(self._deadlines, None)) as interruption:
            try:
                with closing(self._upstream.ask(prompt, self._deadlines.first_event)) as answer:
                    interruption.nudge = answer.nudge
                    yield from interruption.watch(answer)
            except Interrupted:
                raise interruption.problem() from None

    def _ask(self, question: Question, record: Record, held: ExitStack) -> Reply:
        """Ask the upstream and wait for the beginning of its answer; `held` collects what its end releases."""
        prompt, dialect, connection = question.prompt, question.dialect, question.connection
        interruption = held.enter_context(closing(Interruption(self._deadlines_of(prompt), connection)))
        record.watch = interruption
        if connection:
            held.enter_context(connection.admit(interruption))
        frames: Frames = dialect.open_frames(prompt, question.request_id)
        media_type, headers = dialect.media_type, {}
        note = partial(_note_answer, record, interruption)
        try:
            answer = held.enter_context(closing(self._upstream.ask(prompt, self._deadlines.first_event, note)))
            headers = answer.headers if prompt.verbatim else {}
            reads = interruption.watch(answer)
            if dialect.write_whole and not prompt.streamed:
                body, end = dialect.write_whole(reads, prompt, question.request_id)
                frames = WholeFrames()
                beginning: list[Event] = [Bytes(body), end]
                media_type, headers = "application/json", {**headers, "Content-Length": str(len(body))}
            else:
                beginning = await_beginning(reads, interruption, dialect.wants_text)
        except Interrupted:
            raise interruption.problem() from None
        dialect.check_beginning(beginning)
        reset = connection.reset if connection and question.http_1_0 else None
        release = held.pop_all()
        finish = partial(self._finish, record, release)
        return Reply(Delivery(chain([beginning], reads), frames, interruption, reset, finish), media_type, headers)

    def _deadlines_of(self, prompt: Prompt) -> Deadlines:
        if prompt.verbatim and not prompt.streamed:
            # Its first byte is its last one.
            return replace(self._deadlines, first_event=self._deadlines.idle)
        return self._deadlines

    def _finish(self, record: Record, release: ExitStack, delivery: Delivery) -> None:
        record.status, record.ending, record.bytes_sent = 200, delivery.ending, delivery.bytes_sent
        record.stop_reason = delivery.end.stop_reason if delivery.end else None
        if delivery.problem:
            self.telemetry.count_upstream_error(delivery.problem)
        release.close()


def _note_answer(record: Record, interruption: Interruption, answer: Answer) -> None:
    """Take over what is known of an answer once its headers are in."""
    interruption.nudge = answer.nudge
    record.upstream_request_id, record.usage = answer.request_id, answer.usage
