"""Resuming a chat of the AI SDK: GET /api/chat/<id>/stream has the chat's latest answer until a page has read it."""

import json
import uuid

import pytest
import upstream as wire
from asking import wait_until
from conversation import Conversation
from redis_server import RedisServer
from server import Rill, StartRill
from test_resume import gated, line_of
from upstream import Upstream

from rill.dialects.ui_messages import HEADER

ALICE, BOB = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}


@pytest.fixture
def rill(share_rill: StartRill) -> Rill:
    return share_rill(RILL_RESUME_SECONDS="30", RILL_RATE_LIMIT="100000/minute")


@pytest.fixture
def chat() -> str:
    return str(uuid.uuid4())


def send(rill: Rill, chat: str, text: str = "hi", headers: dict[str, str] | None = None) -> Conversation:
    """Send a message of a chat that can be resumed."""
    body = {"id": chat, "resume": 20, "messages": [{"role": "user", "parts": [{"type": "text", "text": text}]}]}
    return rill.ask(
        "POST", "/api/chat", {"Content-Type": "application/json", **(headers or {})}, json.dumps(body).encode()
    )


def resume(rill: Rill, chat: str, headers: dict[str, str] | None = None) -> Conversation:
    return rill.ask("GET", f"/api/chat/{chat}/stream", headers)


def status(rill: Rill, chat: str, method: str = "GET", headers: dict[str, str] | None = None) -> int:
    with rill.ask(method, f"/api/chat/{chat}/stream", headers) as asked:
        return asked.status


def test_a_page_that_returns_gets_all_of_the_answer_and_then_nothing(rill: Rill, chat: str, upstream: Upstream) -> None:
    upstream.script(*gated("second", "One", ", two."))
    with send(rill, chat) as first:
        assert (first.status, first.headers[HEADER]) == (200, "v1")
        begun = first.read_until(b"One")
    with resume(rill, chat) as second:
        assert (second.status, second.headers[HEADER]) == (200, "v1")
        assert second.read_until(b"One") == begun
        upstream.open("second")
        assert b", two." in second.read_rest()
        assert second.ended == "clean"
    assert status(rill, chat) == 204
    assert len(upstream.requests) == 1


def test_an_answer_that_ended_without_a_reader_is_still_there(rill: Rill, chat: str, upstream: Upstream) -> None:
    upstream.script(*gated("second", "One", ", two."))
    with send(rill, chat, headers={"X-Request-Id": chat}) as first:
        first.read_until(b"One")
    upstream.open("second")
    assert line_of(rill, chat)["outcome"] == "completed"
    with resume(rill, chat) as second:
        assert b", two." in second.read_rest()


def test_the_next_message_of_a_chat_takes_its_place(rill: Rill, chat: str, upstream: Upstream) -> None:
    upstream.script(*gated("first", "One"))
    upstream.script(*gated("second", "Two"))
    with send(rill, chat, "1") as asked:
        asked.read_until(b"One")
    with send(rill, chat, "2") as asked:
        asked.read_until(b"Two")
    with resume(rill, chat) as asked:
        assert b"One" not in asked.read_until(b"Two")
        upstream.open("second")
        asked.read_rest()
    upstream.open("first")


def test_a_deleted_answer_ends_at_the_upstream(rill: Rill, chat: str, upstream: Upstream) -> None:
    upstream.script(wire.head(), wire.send(wire.opening(), wire.text("One")), wire.silence())
    with send(rill, chat, headers={"X-Request-Id": chat}) as asked:
        asked.read_until(b"One")
    assert status(rill, chat, "DELETE") == 204
    upstream.wait_for_disconnect()
    assert line_of(rill, chat)["outcome"] == "client_stopped"
    assert status(rill, chat) == 204
    assert status(rill, str(uuid.uuid4()), "DELETE") == 404


def test_a_chat_that_does_not_ask_for_it_has_nothing_to_resume(
    rill: Rill, service: Rill, chat: str, upstream: Upstream
) -> None:
    upstream.always(*wire.answer("One"))
    body = json.dumps({"id": chat, "messages": [{"role": "user", "content": "hi"}]}).encode()
    for each in (rill, service):
        with each.ask("POST", "/api/chat", {"Content-Type": "application/json"}, body) as asked:
            asked.read_until(b"One")
        assert status(each, chat) == 204
    with send(rill, "short") as asked:
        assert (asked.status, b"id: should have 16" in asked.read_rest()) == (400, True)
    assert status(service, chat, "DELETE") == 404


def test_only_the_client_that_asked_may_read_or_stop_its_chat(
    share_rill: StartRill, chat: str, upstream: Upstream
) -> None:
    rill = share_rill(RILL_RESUME_SECONDS="30", RILL_API_KEYS="alice=one,bob=two")
    upstream.script(*gated("second", "One"))
    with send(rill, chat, headers=ALICE) as asked:
        asked.read_until(b"One")
    assert status(rill, chat) == 401
    assert (status(rill, chat, headers=BOB), status(rill, chat, "DELETE", BOB)) == (204, 404)
    with resume(rill, chat, ALICE) as asked:
        asked.read_until(b"One")
        upstream.open("second")
        asked.read_rest()


def test_another_worker_resumes_a_chat(
    start_rill: StartRill, chat: str, upstream: Upstream, redis: RedisServer
) -> None:
    env = {"RILL_RESUME_SECONDS": "30", "REDIS_URL": redis.url}
    owner, other = start_rill(**env), start_rill(**env)
    upstream.script(*gated("first", "One"))
    upstream.script(*gated("second", "Two", ", three."))
    with send(owner, chat, "1") as asked:
        asked.read_until(b"One")
    with send(owner, chat, "2") as asked:
        asked.read_until(b"Two")
    with resume(other, chat) as asked:
        asked.read_until(b"Two")
        upstream.open("second")
        assert b", three." in asked.read_rest()
    wait_until(lambda: status(other, chat) == 204, "the mark that the answer was read")
    wait_until(lambda: status(owner, chat) == 204, "the message that the answer was read")
    upstream.open("first")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with RedisServer(tmp_path_factory.mktemp("redis"), "open-sesame-4711") as running:
        yield running
