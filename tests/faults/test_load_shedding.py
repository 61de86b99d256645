"""A worker that does not keep up rejects new requests for answers quickly, and serves everything else."""

import asyncio
import json
import signal
import time
from collections import defaultdict

import requests
import upstream as wire
from asking import ask, wait_until
from conversation import request_bytes
from server import StartRill
from upstream import Upstream

ORIGIN = "https://example.com"
# Each takes a turn and is rejected without a request to the upstream: they cost the worker more than this test.
JSON = {"Content-Type": "application/json", "Content-Length": "2", "Origin": ORIGIN}
REQUESTS = {
    "/stream": request_bytes("GET", "/stream", {"Origin": ORIGIN}),
    "/api/chat": request_bytes("POST", "/api/chat", JSON, b"{}"),
    "/api/completion": request_bytes("POST", "/api/completion", JSON, b"{}"),
    "/v1/messages": request_bytes("POST", "/v1/messages", JSON, b"{}"),
    "/v1/chat/completions": request_bytes("POST", "/v1/chat/completions", JSON, b"{}"),
    "/v1/responses": request_bytes("POST", "/v1/responses", JSON, b"{}"),
}
CONCURRENT = 400
MAX_SECONDS = 30


async def exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        return head + await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
    finally:
        writer.close()


async def flood(port: int, enough: int) -> dict[str, list[bytes]]:
    """Keep CONCURRENT requests open until each path has been rejected `enough` times; return the responses."""
    responses: dict[str, list[bytes]] = defaultdict(list)
    deadline = time.monotonic() + MAX_SECONDS

    def rejected(path: str) -> int:
        return sum(response.startswith(b"HTTP/1.1 503") for response in responses[path])

    async def repeat(path: str) -> None:
        while time.monotonic() < deadline and any(rejected(each) < enough for each in REQUESTS):
            responses[path].append(await exchange(port, REQUESTS[path]))

    paths = list(REQUESTS)
    await asyncio.gather(*(repeat(paths[number % len(paths)]) for number in range(CONCURRENT)))
    return responses


def test_an_overloaded_worker_rejects_answers_in_each_dialects_shape_while_open_streams_go_on(
    start_rill: StartRill, upstream: Upstream
) -> None:
    rill = start_rill(RILL_CORS_ORIGINS=ORIGIN, RILL_RATE_LIMIT="1000000/minute")
    upstream.script(
        wire.head(), wire.send(wire.opening(), wire.text("one ")), wire.gate("flooded"), wire.send(wire.text("two")),
        wire.gate("over"), wire.send(wire.stop()), wire.close(),
    )  # fmt: skip
    with ask(rill) as stream:
        assert stream.next_chunk() == b"one "
        upstream.open("flooded")
        responses = asyncio.run(flood(rill.port, enough=5))
        assert stream.next_chunk() == b"two"
        upstream.open("over")
        assert (stream.read_rest(), stream.ended) == (b"", "clean")
    shed = {path: [each for each in all if each.startswith(b"HTTP/1.1 503")] for path, all in responses.items()}
    assert min(map(len, shed.values())) >= 5
    assert all(each.startswith((b"HTTP/1.1 400", b"HTTP/1.1 503")) for all in responses.values() for each in all)
    for path, rejected in shed.items():
        for head, _, body in (each.decode().partition("\r\n\r\n") for each in rejected):
            assert "Retry-After: 5\r\n" in head
            assert f"Access-Control-Allow-Origin: {ORIGIN}\r\n" in head
            assert "X-Request-Id: " in head
            message = json.loads(body)["error"]["message"] if path.startswith("/v1/") else body.rstrip()
            assert message == "This server is overloaded. Try again in 5 s."
    counted = requests.get(f"{rill.url}/metrics", timeout=10).text
    number = sum(map(len, shed.values()))
    assert f'rill_requests_rejected_total{{reason="overloaded"}} {number:.1f}' in counted
    wait_until(lambda: requests.get(f"{rill.url}/readyz", timeout=10).status_code == 200)
    assert "the worker does not keep up" in rill.output()


def test_a_worker_that_the_host_pauses_rejects_nothing(start_rill: StartRill) -> None:
    rill = start_rill(RILL_CORS_ORIGINS=ORIGIN, RILL_RATE_LIMIT="1000000/minute")
    (worker,) = rill.workers()
    statuses: set[bytes] = set()
    paused = asyncio.Event()

    async def repeat() -> None:
        while not paused.is_set():
            statuses.add((await exchange(rill.port, REQUESTS["/stream"]))[:12])

    async def pause() -> None:
        for _ in range(20):
            await asyncio.sleep(0.02)
            worker.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)
            worker.send_signal(signal.SIGCONT)
        paused.set()

    async def both() -> None:
        await asyncio.gather(pause(), *(repeat() for _ in range(5)))

    asyncio.run(both())
    assert statuses == {b"HTTP/1.1 400"}
