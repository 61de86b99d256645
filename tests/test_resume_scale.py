"""A thousand recorded answers at once, and how soon another worker resumes one."""

import math
import random
import resource
import time
from collections.abc import Iterator

import pytest
import upstream as wire
from conversation import Conversation
from redis_server import RedisServer
from server import Rill, StartRill, rill_env
from test_resume import ask, from_byte, id_of
from test_resume_chaos import text_of
from test_resume_redis import ENV
from upstream import Answer, Upstream

ANSWERS = 1000
# How many begin at once.
BURST = 50
RESUMES = 100
# What another worker sends of an answer that is resumed there.
FIRST_BYTE_SECONDS, BEHIND_SECONDS = 0.05, 0.25


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process more open files than the answers need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * ANSWERS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_thousand_recorded_answers_at_once_are_exact(
    start_rill: StartRill, upstream: Upstream, many_files: None
) -> None:
    rill = start_rill(RILL_RESUME_SECONDS="60", RILL_MAX_STREAMS=f"{ANSWERS}", RILL_MAX_STREAMS_PER_CLIENT=f"{ANSWERS}")
    upstream.always(wire.head(), wire.send(wire.opening()), wire.send(wire.text("<")), wire.gate("all", 200), play_rest)
    names = [f"one of a thousand: {number}" for number in range(ANSWERS)]
    chosen = random.Random(ANSWERS)
    opened = []
    for name in names:
        opened.append(ask(rill, name, resume="60"))
        if len(opened) >= BURST:
            assert opened[-BURST].next_chunk() == b"<"
    for asked in opened[1 - BURST :]:
        assert asked.next_chunk() == b"<"
    upstream.wait_at_gate("all", ANSWERS)
    upstream.open("all")
    got: list[bytes] = []
    for asked in opened:
        read = b"<"
        if chosen.random() < 0.5:
            while len(read) < 40 and (data := asked.next_chunk()):
                read += data
            asked.reset()
            read = read[: chosen.randint(1, len(read))]
            with rill.ask("GET", f"/stream/{id_of(asked)}", from_byte(len(read))) as resumed:
                got.append(read + resumed.read_rest())
                assert resumed.ended == "clean"
        else:
            got.append(read + asked.read_rest())
            assert asked.ended == "clean"
            asked.close()
    assert [data.decode() for data in got] == [f"<{text_of(name)}" for name in names]
    assert len(upstream.requests) == ANSWERS


def play_rest(answer: Answer) -> None:
    """Send the text of the prompt, and the end."""
    text, chosen = text_of(answer.request.json["messages"][-1]["content"]), random.Random(0)
    while text:
        size = chosen.randint(1, 60)
        wire.send(wire.text(text[:size]))(answer)
        text = text[size:]
    wire.send(wire.block_stop() + wire.stop())(answer)
    wire.end()(answer)


@pytest.mark.timing
def test_another_worker_resumes_an_answer_soon(
    shared_upstream: Upstream, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    upstream.always(wire.head(), wire.send(wire.opening()), wire.send(wire.text("x" * 2000)), send_times)
    firsts, behind = [], []
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        env = {**rill_env(shared_upstream), **ENV, "REDIS_URL": redis.url}
        with Rill(env) as owner, Rill(env) as other:
            with ask(owner, "warm up") as asked:
                asked.read_until(b"x" * 2000)
                first_byte(other, asked)[1].close()
            for number in range(RESUMES):
                with ask(owner, f"resumed {number}") as asked:
                    asked.read_until(b"x" * 2000)
                    seconds, resumed = first_byte(other, asked)
                    firsts.append(seconds)
                    with resumed:
                        behind += lateness(resumed)
    p99 = sorted(firsts)[math.ceil(0.99 * len(firsts)) - 1]
    print(f"first byte: median {sorted(firsts)[len(firsts) // 2]:.4f} s, p99 {p99:.4f} s; behind: {max(behind):.4f} s")
    assert p99 < FIRST_BYTE_SECONDS
    assert max(behind) < BEHIND_SECONDS


def lateness(resumed: Conversation) -> list[float]:
    """Return how many seconds after they were written the lines come that are written from now on."""
    begun, late = time.time(), []
    while line := resumed.read_until(b"\n"):
        late += [
            time.time() - float(written) for written in line.replace(b"x", b"").split()[-1:] if float(written) > begun
        ]
    return late


def first_byte(rill: Rill, asked: Conversation) -> tuple[float, Conversation]:
    """Resume an answer, and return after how many seconds its first byte came."""
    began = time.monotonic()
    resumed = rill.ask("GET", f"/stream/{id_of(asked)}", from_byte(10))
    assert resumed.next_chunk()
    return time.monotonic() - began, resumed


def send_times(answer: Answer) -> None:
    """Send the time in lines, ten in a second."""
    for _ in range(3):
        wire.send(wire.text(f"{time.time():.4f}\n"))(answer)
        answer.wait(seconds=0.1)
    wire.send(wire.block_stop() + wire.stop())(answer)
    wire.end()(answer)
