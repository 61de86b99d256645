"""The SDK's HTTP client on real sockets, in a gevent-patched process; the fake upstream runs in this one."""

import base64
import gc
import gzip
import json
import os
import random
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any
from urllib.parse import urlsplit

import gevent
import gevent.socket
import httpx2
import pytest
import upstream as wire
from certificates import make_certificate
from gevent import monkey
from upstream import Upstream

from rill.upstream.body import Body, body_of
from rill.upstream.pool import _tls_context
from rill.upstream.proxy import proxy_of_environment
from rill.upstream.transport import GeventTransport, UpstreamClient

TESTS = Path(__file__).parent
OK = wire.status(200, body=b"ok")
HELLO = [200, wire.recorded("text").decode()]

# The harness: clients are generators that run in their own process


class GeventClient:
    """A generator of this module, run in a gevent-patched process.

    `next` resumes it until its next yield and returns the yielded value, transferred as JSON.
    """

    def __init__(self, forker: IO[str], pipes: Path, **task: Any) -> None:
        paths = [str(pipes / name) for name in ("in", "out")]
        for path in paths:
            os.mkfifo(path)
        print(json.dumps({"pipes": paths, **task}), file=forker, flush=True)
        self._input, self._output = open(paths[0], "wb", buffering=0), open(paths[1], "rb")  # noqa: SIM115
        self._pid = self.receive()

    def __enter__(self) -> "GeventClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._input, self._output, suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def resume(self) -> None:
        """Resume it without waiting for its next yield."""
        self._input.write(b"\n")

    def receive(self) -> Any:
        """Wait for the next yielded value and return it."""
        line = self._output.readline()
        assert line, "the client ended too early"
        return json.loads(line)

    def __next__(self) -> Any:
        self.resume()
        return self.receive()


def fork_clients() -> None:
    """Fork a client for each task on stdin; the process has imported everything, and the patched fork starts a hub."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if not monkey.get_original("os", "fork")():
            try:
                run_client(**json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)


def run_client(client: str, env: dict[str, str], arguments: dict[str, Any], pipes: list[str]) -> None:
    """Run the generator of a GeventClient."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(env)
    for descriptor, flags in enumerate((os.O_RDONLY, os.O_WRONLY)):
        os.dup2(os.open(pipes[descriptor], flags), descriptor)
    print(os.getpid(), flush=True)
    steps = globals()[client](**arguments)
    while True:
        gevent.socket.wait_read(0)  # other greenlets run meanwhile
        if not os.read(0, 1):
            return
        print(json.dumps(next(steps)), flush=True)


StartClient = Callable[..., GeventClient]


@pytest.fixture(scope="module")
def forker() -> Iterator[IO[str]]:
    """Yield the stdin of the process that forks every client."""
    patched = "from gevent import monkey; monkey.patch_all(); import test_transport; test_transport.fork_clients()"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    with subprocess.Popen([sys.executable, "-c", patched], env=env, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        yield process.stdin
        process.stdin.close()


@pytest.fixture
def start_client(forker: IO[str], tmp_path: Path) -> Iterator[StartClient]:
    """Start a client: `start_client(generator, env={...}, **arguments)`."""
    with ExitStack() as running:

        def start(client: Callable[..., Iterator[Any]], env: dict[str, str] | None = None, **arguments: Any) -> Any:
            pipes = Path(mkdtemp(dir=tmp_path))
            task = {"client": client.__name__, "env": env or {}, "arguments": arguments}
            return running.enter_context(GeventClient(forker, pipes, **task))

        yield start


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Yield one of each test's own, so that its connections can be counted; a fault in it fails the test."""
    with Upstream() as running:
        yield running
        assert running.faults == []


# The clients


def open_client(url: str, connections: int = 10, **timeouts: float) -> httpx2.Client:
    timeout = httpx2.Timeout(**{"connect": 5, "read": 5, "write": 5, "pool": 5, **timeouts})
    transport = GeventTransport(httpx2.URL(url), connections, proxy_of_environment(url))
    return UpstreamClient(transport, timeout=timeout)


def send(client: httpx2.Client, url: str, content: bytes = b"{}", **headers: str) -> httpx2.Response:
    return client.send(
        client.build_request("POST", f"{url}/v1/messages", content=content, headers=headers), stream=True
    )


def outcome(client: httpx2.Client, url: str, **request: Any) -> list[Any]:
    """Return the status and the body of one answer, and the name of the error that replaced or ended it."""
    got: list[Any] = []
    try:
        response = send(client, url, **request)
        got = [response.status_code, ""]
        with closing(body_of(response)) as body:
            while (data := body.read()) is not None:
                got[1] += data.decode()
    except httpx2.HTTPError as error:
        got.append(type(error).__name__)
    return got


def ask(url: str, content_bytes: int = 2, **options: Any) -> Iterator[Any]:
    """Send a request at each step."""
    client = open_client(url, **options)
    while True:
        yield outcome(client, url, content=b"x" * content_bytes)


def ask_with_high_descriptors(url: str) -> Iterator[Any]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    while os.dup(2) < 1100:
        pass
    yield from ask(url)


def ask_with_a_broken_header(url: str) -> Iterator[Any]:
    for value in ("a\r\nX-Injected: b", "a\nb", "a\rb", "a\0b"):
        yield outcome(open_client(url), url, **{"X-Note": value})


def ask_through_the_sdk(url: str, times: int = 1) -> Iterator[Any]:
    """Yield the text that the SDK returns, or the status and body of the error that it raises, each time."""
    import anthropic  # imported here, because the other clients start twice as fast without it

    client = anthropic.Anthropic(api_key="k", base_url=url, max_retries=0, http_client=open_client(url))
    request: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "?"}]}
    for _ in range(times):
        try:
            with client.messages.stream(**request) as stream:
                yield stream.get_final_text()
        except anthropic.APIStatusError as error:
            yield [error.status_code, error.body]


def read_and_nudge(url: str, size: int, **options: Any) -> Iterator[Any]:
    """Read `size` bytes, nudge the next read, and continue to read piece by piece."""
    body = body_of(send(open_client(url, **options), url))
    yield "open"
    got = 0
    while got < size:
        got += len(body.read() or b"")
    yield got
    timer = gevent.get_hub().loop.timer(0.05)  # its callback runs in the hub, as those of an answer's watcher
    timer.start(body.nudge)
    yield read_piece(body)
    yield read_piece(body)


def read_piece(body: Body) -> str | None:
    try:
        data = body.read()
    except httpx2.HTTPError as error:
        return type(error).__name__
    return "nudged" if data == b"" else data and data.decode()


def read_from_many(url: str, count: int, **options: Any) -> Iterator[Any]:
    """Open many concurrent answers, and read all of them."""
    client = open_client(url, connections=count, **options)
    asking = [gevent.spawn(outcome, client, url) for _ in range(count)]
    yield "asking"
    yield [each.get() for each in asking]


def hold_one_and_ask(url: str, connections: int, **options: Any) -> Iterator[Any]:
    """Send a request while an answer is open, and another after it is closed."""
    client = open_client(url, connections=connections, **options)
    with closing(body_of(send(client, url))):
        yield outcome(client, url)
    yield outcome(client, url)


def drop_and_ask(url: str, **options: Any) -> Iterator[Any]:
    """Drop an answer that was never read, and send another request."""
    client = open_client(url, connections=1, pool=0.5, connect=0.5, **options)
    send(client, url)
    gc.collect()
    yield outcome(client, url)


def read_and_close(url: str, **options: Any) -> Iterator[Any]:
    body = body_of(send(open_client(url, **options), url))
    yield read_piece(body)
    body.close()
    yield "closed"


def interrupt_many(url: str, count: int, connections: int) -> Iterator[Any]:
    """Interrupt answers at random moments; then yield the number of open descriptors before and after."""
    client = open_client(url, connections=connections)
    yield outcome(client, url)  # creates everything that is created only once
    before = len(os.listdir("/proc/self/fd"))
    chance = random.Random(7)
    for _ in range(count // 100):
        asking = [gevent.spawn(outcome_until_interrupted, client, url) for _ in range(100)]
        for each in asking:
            interrupt = each.kill if chance.random() < 0.5 else lambda each=each: throw_into(each)
            gevent.spawn_later(chance.uniform(0, 0.15), interrupt)
        gevent.joinall(asking)
    for _ in range(500):
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        gevent.sleep(0.01)  # gevent closes a socket in the next iteration of its loop
    yield [before, len(os.listdir("/proc/self/fd"))]
    asking = [gevent.spawn(outcome, client, url) for _ in range(connections)]
    yield "asking"
    yield [each.get() for each in asking]


class Cancelled(Exception):
    """An exception that is thrown into a greenlet at any moment."""


def throw_into(greenlet: Any) -> None:
    def throw() -> None:
        if not greenlet.dead:
            greenlet.throw(Cancelled())

    gevent.get_hub().loop.run_callback(throw)


def outcome_until_interrupted(client: httpx2.Client, url: str) -> None:
    with suppress(Cancelled, gevent.GreenletExit):
        outcome(client, url)


def interrupt_a_write(url: str, content_bytes: int) -> Iterator[Any]:
    """Interrupt a request while it is being sent, and send another with a pool of one connection."""
    client = open_client(url, connections=1, pool=0.5, connect=0.5, write=0.5)
    asking = gevent.spawn(outcome, client, url, content=b"x" * content_bytes)
    yield "asking"
    asking.kill()
    yield outcome(client, url, content=b"x" * content_bytes)


# Answers


def test_an_answer_arrives_complete(upstream: Upstream, start_client: StartClient) -> None:
    upstream.script(*wire.replay("text"))
    assert next(start_client(ask, url=upstream.url)) == HELLO
    (request,) = upstream.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/messages", b"xx")


def test_each_piece_is_read_before_the_next_is_sent(upstream: Upstream, start_client: StartClient) -> None:
    upstream.script(wire.head(), wire.gate("one"), wire.send(b"one"), wire.gate("two"), wire.send(b"two"), wire.end())
    client = start_client(read_and_nudge, url=upstream.url, size=3)
    assert next(client) == "open"
    upstream.wait_at_gate("one")
    upstream.open("one")
    assert next(client) == 3
    assert next(client) == "nudged"
    upstream.open("two")
    assert next(client) == "two"


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BEFORE_PAUSE = {
    "the head": ([wire.raw(HEAD)], 0),
    "the head with text": ([wire.raw(HEAD + b"3\r\none\r\n")], 3),
    "text after the head": ([wire.raw(HEAD), wire.gate("text"), wire.send(b"one")], 3),
    "a full buffer": ([wire.raw(HEAD), wire.gate("text"), wire.send(b"x" * (65536 - 8))], 65536 - 8),
    "a part of a chunk": ([wire.raw(HEAD), wire.gate("text"), wire.raw(b"9\r\none")], 3),
}


@pytest.mark.parametrize(("steps", "size"), BEFORE_PAUSE.values(), ids=BEFORE_PAUSE)
def test_a_nudge_wakes_a_read_whatever_was_read_before(
    upstream: Upstream, start_client: StartClient, steps: list[wire.Step], size: int
) -> None:
    upstream.script(*steps, wire.gate("rest"), wire.silence())
    client = start_client(read_and_nudge, url=upstream.url, size=size, read=3)
    assert next(client) == "open"
    upstream.open("text")
    assert next(client) == size
    assert next(client) == "nudged"


def test_a_body_closed_in_mid_answer_closes_the_upstream_connection(
    upstream: Upstream, start_client: StartClient
) -> None:
    upstream.script(wire.head(), wire.send(b"one"), wire.silence())
    client = start_client(read_and_close, url=upstream.url)
    assert [next(client), next(client)] == ["one", "closed"]
    upstream.wait_for_disconnect()
    upstream.wait_until(lambda: upstream.open_connections == 0, "the connection to close")


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]
)
def test_an_interim_response_is_skipped(upstream: Upstream, start_client: StartClient, interim: bytes) -> None:
    upstream.script(wire.raw(interim), wire.head(), wire.gate("body"), wire.send(b"body"), wire.end())
    upstream.script(wire.raw(interim), OK)
    client = start_client(ask, url=upstream.url)
    client.resume()
    upstream.wait_at_gate("body")
    upstream.open("body")
    assert client.receive() == [200, "body"]
    assert next(client) == [200, "ok"]
    assert upstream.accepted == 1


def test_an_interim_response_does_not_release_its_connection(upstream: Upstream, start_client: StartClient) -> None:
    upstream.script(wire.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"), wire.head(), wire.silence())
    upstream.script(OK)
    client = start_client(hold_one_and_ask, url=upstream.url, connections=2, read=2)
    assert next(client) == [200, "ok"]
    assert upstream.accepted == 2


def test_a_body_without_length_ends_with_its_connection(upstream: Upstream, start_client: StartClient) -> None:
    upstream.script(wire.raw(b"HTTP/1.1 200 OK\r\n\r\nabc"), wire.gate("rest"), wire.raw(b"def"), wire.close())
    upstream.open("rest")
    assert next(start_client(ask, url=upstream.url)) == [200, "abcdef"]


def test_a_header_that_would_inject_another_is_never_sent(upstream: Upstream, start_client: StartClient) -> None:
    client = start_client(ask_with_a_broken_header, url=upstream.url)
    for _ in range(4):
        assert next(client) == ["LocalProtocolError"]
    assert upstream.requests == []


# Reused connections


def test_a_connection_is_reused(upstream: Upstream, start_client: StartClient) -> None:
    upstream.always(*wire.replay("text"))
    client = start_client(ask, url=upstream.url)
    assert [next(client) for _ in range(5)] == [HELLO] * 5
    assert upstream.accepted == upstream.open_connections == 1


def test_a_connection_is_reused_after_a_content_length_and_after_an_error(
    upstream: Upstream, start_client: StartClient
) -> None:
    upstream.script(OK)
    upstream.script(wire.error(429, "rate_limit_error", "no"))
    upstream.script(OK)
    client = start_client(ask, url=upstream.url)
    assert [next(client)[0] for _ in range(3)] == [200, 429, 200]
    assert upstream.accepted == 1


def test_a_connection_is_reused_with_descriptors_above_1024(upstream: Upstream, start_client: StartClient) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("the hard limit of descriptors is too low")
    upstream.always(*wire.replay("text"))
    client = start_client(ask_with_high_descriptors, url=upstream.url)
    assert [next(client) for _ in range(3)] == [HELLO] * 3
    assert upstream.accepted == 1


def test_a_connection_with_connection_close_is_not_reused(upstream: Upstream, start_client: StartClient) -> None:
    upstream.always(wire.status(200, {"connection": "close"}, b"ok"))
    client = start_client(ask, url=upstream.url)
    assert [next(client), next(client)] == [[200, "ok"]] * 2
    assert upstream.accepted == 2


def test_a_kept_connection_that_the_upstream_has_closed_is_replaced(
    upstream: Upstream, start_client: StartClient
) -> None:
    upstream.script(OK, wire.close())
    upstream.script(OK)
    client = start_client(ask, url=upstream.url)
    assert next(client) == [200, "ok"]
    upstream.wait_until(lambda: upstream.open_connections == 0, "the upstream to close")
    assert next(client) == [200, "ok"]
    assert len(upstream.requests) == upstream.accepted == 2


@pytest.mark.parametrize("failure", [wire.close(), wire.reset()], ids=["close", "reset"])
def test_a_kept_connection_that_closes_before_the_first_byte_is_not_retried_here(
    upstream: Upstream, start_client: StartClient, failure: wire.Step
) -> None:
    upstream.script(OK)
    upstream.script(failure)
    client = start_client(ask, url=upstream.url)
    assert [next(client), next(client)] == [[200, "ok"], ["Unanswered"]]
    assert (len(upstream.requests), upstream.accepted) == (2, 1)


@pytest.mark.parametrize("failure", [wire.close(), wire.reset()], ids=["close", "reset"])
def test_a_new_connection_that_closes_is_not_retried(
    upstream: Upstream, start_client: StartClient, failure: wire.Step
) -> None:
    upstream.script(failure)
    assert next(start_client(ask, url=upstream.url)) == ["Unanswered"]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("failure", [wire.close(), wire.reset()], ids=["close", "reset"])
def test_a_kept_connection_that_closes_after_the_first_byte_is_not_retried(
    upstream: Upstream, start_client: StartClient, failure: wire.Step
) -> None:
    upstream.script(OK)
    upstream.script(wire.raw(b"HTTP/1.1 200 OK\r\n"), wire.pause(0.3), failure)  # a reset would overtake the byte
    client = start_client(ask, url=upstream.url)
    assert next(client) == [200, "ok"]
    assert next(client)[0] in ("ReadError", "RemoteProtocolError")
    assert len(upstream.requests) == 2


def test_bytes_after_an_answer_never_become_the_next_one(upstream: Upstream, start_client: StartClient) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    upstream.script(wire.raw(answer + b"ok" + answer + b"no"))
    upstream.script(wire.status(200, body=b"mine"))
    client = start_client(ask, url=upstream.url)
    assert next(client) in ([200, "ok"], ["RemoteProtocolError"], [200, "ok", "RemoteProtocolError"])
    assert next(client) == [200, "mine"]


# Failures


def test_a_refused_connection_is_a_connect_error(start_client: StartClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert next(start_client(ask, url=f"http://127.0.0.1:{port}")) == ["ConnectError"]


def test_an_unknown_host_is_a_connect_error(start_client: StartClient) -> None:
    # The resolver uses a port of this machine that does not answer, so that no query leaves the machine.
    env = {"GEVENT_RESOLVER": "ares", "GEVENT_RESOLVER_SERVERS": "127.0.0.1:1"}
    assert next(start_client(ask, env=env, url="http://nowhere.example")) == ["ConnectError"]


def test_a_peer_that_never_accepts_is_a_connect_timeout(start_client: StartClient) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as full, ExitStack() as queued:
        for _ in range(8):  # more than the backlog holds: later ones hang
            client = queued.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        client = start_client(ask, url=f"http://127.0.0.1:{full.getsockname()[1]}", connect=0.3, pool=30)
        assert next(client) == ["ConnectTimeout"]


def test_a_full_pool_is_a_pool_timeout_and_a_released_connection_is_reused(
    upstream: Upstream, start_client: StartClient
) -> None:
    upstream.script(wire.head(), wire.silence())
    upstream.script(OK)
    client = start_client(hold_one_and_ask, url=upstream.url, connections=1, pool=0.2, connect=0.2)
    assert next(client) == ["PoolTimeout"]
    assert next(client) == [200, "ok"]


def test_silence_before_the_head_is_a_read_timeout(upstream: Upstream, start_client: StartClient) -> None:
    upstream.script(wire.silence())
    assert next(start_client(ask, url=upstream.url, read=0.3)) == ["ReadTimeout"]
    upstream.wait_for_disconnect()


@pytest.mark.parametrize(
    "sent", [[wire.send(b"one")], [wire.raw(b"3\r\non")], []], ids=["after a piece", "within a piece", "after the head"]
)
def test_silence_in_mid_body_is_a_read_timeout(
    upstream: Upstream, start_client: StartClient, sent: list[wire.Step]
) -> None:
    upstream.script(wire.head(), *sent, wire.silence())
    status, text, error = next(start_client(ask, url=upstream.url, read=0.3))
    assert (status, error) == (200, "ReadTimeout")
    assert text in ("one", "on", "")
    upstream.wait_for_disconnect()


def test_a_peer_that_never_reads_is_a_write_timeout(start_client: StartClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as peer:
        url = f"http://127.0.0.1:{peer.getsockname()[1]}"
        assert next(start_client(ask, url=url, content_bytes=30_000_000, write=0.3)) == ["WriteTimeout"]


def test_an_early_error_response_is_read_before_the_request_is_sent_completely(start_client: StartClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as peer:
        url = f"http://127.0.0.1:{peer.getsockname()[1]}"
        client = start_client(ask, url=url, content_bytes=30_000_000)
        client.resume()
        accepted, _ = peer.accept()
        with accepted:
            accepted.recv(100)
            accepted.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
            accepted.shutdown(socket.SHUT_WR)
            while accepted.recv(1_000_000):
                pass
        assert client.receive() == [413, "no"]


FAILURES = {
    "garbage": ([wire.raw(b"\x16\x03\x01 not http\r\n\r\n")], "RemoteProtocolError"),
    "a truncated head": ([wire.raw(b"HTTP/1.1 200 OK\r\ncontent-ty"), wire.close()], "RemoteProtocolError"),
    "a close after the head": ([wire.head(), wire.close()], "RemoteProtocolError"),
    "a close after a chunk": ([wire.head(), wire.send(b"one"), wire.close()], "RemoteProtocolError"),
    "a close in a chunk": ([wire.head(), wire.raw(b"5\r\none"), wire.close()], "RemoteProtocolError"),
    "a bad chunk": ([wire.head(), wire.raw(b"3\r\noneX"), wire.silence()], "RemoteProtocolError"),
    "a close before the content length": (
        [wire.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none"), wire.close()],
        "RemoteProtocolError",
    ),
    "a reset after a chunk": ([wire.head(), wire.send(b"one"), wire.pause(0.3), wire.reset()], "ReadError"),
}


@pytest.mark.parametrize(("steps", "error"), FAILURES.values(), ids=FAILURES)
def test_a_failed_response_is_never_a_clean_end(
    upstream: Upstream, start_client: StartClient, steps: list[wire.Step], error: str
) -> None:
    upstream.script(*steps)
    assert next(start_client(ask, url=upstream.url))[-1] == error


# Behaviour that the SDK relies on


def test_a_compressed_error_is_readable_through_the_sdk(upstream: Upstream, start_client: StartClient) -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: too many 溪"}}
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    upstream.script(wire.status(400, headers, gzip.compress(json.dumps(error).encode())))
    assert next(start_client(ask_through_the_sdk, url=upstream.url)) == [400, error]


def test_a_redirect_is_not_followed_and_the_prompt_goes_nowhere_else(
    upstream: Upstream, start_client: StartClient
) -> None:
    codes = (301, 302, 303, 307, 308)
    client = start_client(ask_through_the_sdk, url=upstream.url, times=len(codes))
    with Upstream() as elsewhere:
        for code in codes:
            upstream.script(wire.status(code, {"location": f"{elsewhere.url}/v1/messages"}))
            assert next(client)[0] == code
        assert elsewhere.accepted == 0
    assert len(upstream.requests) == len(codes)


def test_the_sdk_streams_through_the_transport(upstream: Upstream, start_client: StartClient) -> None:
    upstream.script(*wire.replay("text"))
    assert next(start_client(ask_through_the_sdk, url=upstream.url)) == wire.expected()["text"]["text"]


# Concurrent answers


def test_as_many_answers_are_concurrent_as_there_are_connections(upstream: Upstream, start_client: StartClient) -> None:
    upstream.always(wire.head(), wire.gate("all"), wire.send(b"ok"), wire.end())
    client = start_client(read_from_many, url=upstream.url, count=150)
    next(client)
    upstream.wait_at_gate("all", n=150)
    upstream.open("all")
    assert next(client) == [[200, "ok"]] * 150


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_nothing_is_lost_when_answers_are_interrupted_at_random_moments(
    start_client: StartClient, certificate: Path, secure: bool
) -> None:
    paced = [each for _ in range(5) for each in (wire.pause(0.01), wire.send(b"text"))]
    with Upstream(tls=tls_of(certificate) if secure else None) as own:
        own.script(OK)
        own.always(wire.pause(0.02), wire.head(), *paced, wire.silence())
        client = start_client(
            interrupt_many, env={"SSL_CERT_FILE": str(certificate)}, url=own.url, count=500, connections=40
        )
        assert next(client) == [200, "ok"]
        before, after = next(client)
        assert after <= before
        own.clear()
        own.always(wire.gate("all"), OK)
        assert next(client) == "asking"
        own.wait_at_gate("all", n=40)
        own.open("all")
        assert next(client) == [[200, "ok"]] * 40


def test_a_request_interrupted_while_it_is_sent_releases_its_connection(start_client: StartClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as peer:
        url = f"http://127.0.0.1:{peer.getsockname()[1]}"
        client = start_client(interrupt_a_write, url=url, content_bytes=30_000_000)
        assert next(client) == "asking"
        accepted, _ = peer.accept()
        with accepted:
            assert accepted.recv(4) == b"POST"
            assert next(client) == ["WriteTimeout"]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("good"), "DNS:localhost,IP:127.0.0.1")


@pytest.fixture(scope="module")
def foreign_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("foreign"), "DNS:api.example.com")


def tls_of(certificate: Path) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    return tls


def test_over_tls_the_server_name_is_sent_and_the_connection_is_reused(
    start_client: StartClient, certificate: Path
) -> None:
    names: list[str | None] = []
    tls = tls_of(certificate)
    tls.sni_callback = lambda _, name, __: names.append(name)
    with Upstream(tls=tls) as own:
        own.always(*wire.replay("text"))
        url = f"https://localhost:{own.port}"
        client = start_client(ask, env={"SSL_CERT_FILE": str(certificate)}, url=url)
        assert [next(client) for _ in range(3)] == [HELLO] * 3
        assert own.accepted == 1
    assert names == ["localhost"]


def test_over_tls_an_address_is_verified_too(start_client: StartClient, certificate: Path) -> None:
    with Upstream(tls=tls_of(certificate)) as own:
        own.script(OK)
        assert next(start_client(ask, env={"SSL_CERT_FILE": str(certificate)}, url=own.url)) == [200, "ok"]


def test_an_untrusted_certificate_is_a_connect_error(start_client: StartClient, certificate: Path) -> None:
    with Upstream(tls=tls_of(certificate)) as own:
        assert next(start_client(ask, url=own.url)) == ["ConnectError"]
        assert own.requests == []


def test_a_certificate_for_another_name_is_a_connect_error(
    start_client: StartClient, foreign_certificate: Path
) -> None:
    with Upstream(tls=tls_of(foreign_certificate)) as own:
        env = {"SSL_CERT_FILE": str(foreign_certificate)}
        assert next(start_client(ask, env=env, url=own.url)) == ["ConnectError"]
        assert own.requests == []


def test_a_plain_upstream_under_an_https_url_is_a_connect_error(upstream: Upstream, start_client: StartClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        client = start_client(ask, url=f"https://127.0.0.1:{plain.getsockname()[1]}")
        client.resume()
        accepted, _ = plain.accept()
        with accepted:
            accepted.recv(100)
            accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert client.receive() == ["ConnectError"]


@pytest.mark.parametrize("size", [10, 16384, 65536 - 9, 200_000])
def test_over_tls_received_data_never_waits_for_later_data(
    start_client: StartClient, certificate: Path, size: int
) -> None:
    with Upstream(tls=tls_of(certificate)) as own:
        own.script(wire.head(), wire.send(b"x" * size), wire.gate("rest"), wire.end())
        client = start_client(read_exactly, env={"SSL_CERT_FILE": str(certificate)}, url=own.url, size=size)
        assert next(client) == size
        own.wait_at_gate("rest")
        own.open("rest")
        assert next(client) is None


def test_over_tls_all_pending_records_are_one_read(start_client: StartClient, certificate: Path) -> None:
    with Upstream(tls=tls_of(certificate)) as own:
        pieces = [wire.send(piece) for piece in (b"one", b"two", b"three")]
        own.script(wire.head(), wire.gate("pieces"), *pieces, wire.gate("rest"), wire.send(b"four"), wire.end())
        client = start_client(read_on, env={"SSL_CERT_FILE": str(certificate)}, url=own.url)
        assert next(client) == "open"
        own.wait_at_gate("pieces")
        own.open("pieces")
        own.wait_at_gate("rest")
        assert next(client) == "onetwothree"
        own.open("rest")
        assert next(client) == "four"


def read_on(url: str) -> Iterator[Any]:
    """Open an answer, then read once at each step."""
    body = body_of(send(open_client(url), url))
    yield "open"
    while True:
        yield read_piece(body)


def read_exactly(url: str, size: int) -> Iterator[Any]:
    body = body_of(send(open_client(url), url))
    got = 0
    while got < size:
        got += len(body.read() or b"")
    yield got
    yield read_piece(body)


@pytest.mark.parametrize("failure", [wire.close(), wire.reset()], ids=["close", "reset"])
def test_over_tls_a_kept_connection_that_closes_is_distinguished_from_an_answer(
    start_client: StartClient, certificate: Path, failure: wire.Step
) -> None:
    with Upstream(tls=tls_of(certificate)) as own:
        own.script(OK)
        own.script(failure)
        client = start_client(ask, env={"SSL_CERT_FILE": str(certificate)}, url=own.url)
        assert [next(client), next(client)] == [[200, "ok"], ["Unanswered"]]
        assert len(own.requests) == 2


def test_over_tls_a_truncated_response_is_never_a_clean_end(start_client: StartClient, certificate: Path) -> None:
    with Upstream(tls=tls_of(certificate)) as own:
        own.script(wire.head(), wire.send(b"one"), wire.close())
        client = start_client(ask, env={"SSL_CERT_FILE": str(certificate)}, url=own.url)
        assert next(client) == [200, "one", "RemoteProtocolError"]


# Proxies


class Proxy:
    """An http proxy: forwards requests by their absolute URI, tunnels after CONNECT, records the head of each."""

    def __init__(self, error_response: bytes = b"") -> None:
        self.heads: list[str] = []
        self._error_response = error_response
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        self.heads.append(head.partition(b"\r\n\r\n")[0].decode())
        method, target, _ = head.decode("latin-1").split(" ", 2)
        tunnel = method == "CONNECT"
        url = urlsplit(f"//{target}" if tunnel else target)
        with client, socket.create_connection((url.hostname, url.port)) as server:
            if self._error_response:
                client.sendall(self._error_response)
            elif tunnel:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                relay(client, server)
            else:
                server.sendall(head)
                relay(client, server)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Forward bytes in both directions until either side closes."""
    with suppress(OSError):
        while True:
            for ready in select.select([one, other], [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    return
                (other if ready is one else one).sendall(data)


CREDENTIALS = "user:p%40ss@"
AUTHORIZATION = "Proxy-Authorization: Basic " + base64.b64encode(b"user:p@ss").decode()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_an_http_proxy_forwards_an_http_request(upstream: Upstream, start_client: StartClient, name: str) -> None:
    upstream.always(*wire.replay("text"))
    with Proxy() as proxy:
        client = start_client(ask, env={name: f"http://{CREDENTIALS}{proxy.address}"}, url=upstream.url)
        assert [next(client), next(client)] == [HELLO, HELLO]
        (head,) = proxy.heads  # the second request used the same connection
    assert head.startswith(f"POST {upstream.url}/v1/messages HTTP/1.1\r\n")
    assert AUTHORIZATION in head


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_an_http_proxy_tunnels_an_https_request(start_client: StartClient, certificate: Path, name: str) -> None:
    with Upstream(tls=tls_of(certificate)) as own, Proxy() as proxy:
        own.always(*wire.replay("text"))
        env = {name: f"http://{CREDENTIALS}{proxy.address}", "SSL_CERT_FILE": str(certificate)}
        client = start_client(ask, env=env, url=f"https://localhost:{own.port}")
        assert [next(client), next(client)] == [HELLO, HELLO]
        (head,) = proxy.heads
        assert head.startswith(f"CONNECT localhost:{own.port} HTTP/1.1\r\n")
        assert AUTHORIZATION in head
        assert "proxy-authorization" not in own.requests[0].headers
        assert own.accepted == 1


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_proxy_without_credentials_is_sent_none(start_client: StartClient, certificate: Path, secure: bool) -> None:
    with Upstream(tls=tls_of(certificate) if secure else None) as own, Proxy() as proxy:
        own.script(OK)
        env = {"ALL_PROXY": proxy.address, "SSL_CERT_FILE": str(certificate)}
        assert next(start_client(ask, env=env, url=own.url)) == [200, "ok"]
        assert "authorization" not in proxy.heads[0].lower()


def test_through_a_proxy_the_certificate_is_still_verified(start_client: StartClient, certificate: Path) -> None:
    with Upstream(tls=tls_of(certificate)) as own, Proxy() as proxy:
        env = {"HTTPS_PROXY": f"http://{proxy.address}"}
        assert next(start_client(ask, env=env, url=own.url)) == ["ConnectError"]
        assert own.requests == []


@pytest.mark.parametrize(
    "error_response",
    [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"\r\n\r\n"],
)
def test_an_error_of_the_proxy_is_a_connect_error(
    start_client: StartClient, certificate: Path, error_response: bytes
) -> None:
    with Upstream(tls=tls_of(certificate)) as own, Proxy(error_response) as proxy:
        env = {"HTTPS_PROXY": f"http://{proxy.address}", "SSL_CERT_FILE": str(certificate)}
        assert next(start_client(ask, env=env, url=own.url)) == ["ConnectError"]


@pytest.mark.parametrize("exception", ["127.0.0.1", "localhost,127.0.0.1", "*"])
def test_hosts_in_no_proxy_are_connected_directly(
    upstream: Upstream, start_client: StartClient, exception: str
) -> None:
    upstream.script(OK)
    with Proxy() as proxy:
        env = {"HTTP_PROXY": f"http://{proxy.address}", "NO_PROXY": exception}
        assert next(start_client(ask, env=env, url=upstream.url)) == [200, "ok"]
        assert proxy.heads == []


def test_an_answer_that_is_dropped_unread_releases_its_connection(
    upstream: Upstream, start_client: StartClient
) -> None:
    upstream.script(wire.head(), wire.silence())
    upstream.script(*wire.answer("Hi"))
    client = start_client(drop_and_ask, url=upstream.url)
    assert next(client)[0] == 200


# Several addresses


def reach(url: str, unreachable: int) -> Iterator[Any]:
    """Yield the seconds until a response starts, each on a new connection; the first address never answers."""

    def resolve(*arguments: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.2", unreachable)), (*kind, ("127.0.0.1", urlsplit(url).port))]

    with closing(open_client(url, connect=10)) as client:
        gevent.socket.getaddrinfo = resolve  # A name with two addresses, as a resolver returns it.
        held = []
        while True:
            began = time.monotonic()
            held.append(send(client, url))
            yield time.monotonic() - began


@contextmanager
def unreachable_port() -> Iterator[int]:
    """Yield a port that answers no connection attempt, because its backlog is full."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = held.enter_context(socket.socket())
            waiting.settimeout(0.3)
            with suppress(OSError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


def test_an_unresponsive_address_delays_one_connection_by_two_seconds_and_no_other(
    start_client: StartClient, upstream: Upstream
) -> None:
    upstream.always(wire.head(), wire.send(wire.opening()), wire.silence())
    with unreachable_port() as port:
        client = start_client(reach, url=upstream.url, unreachable=port)
        first, second = next(client), next(client)
    assert 1.5 < first < 7
    assert second < 1.5


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_only_the_root_certificates_that_an_operator_sets_are_trusted(
    name: str, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    assert _tls_context().cert_store_stats()["x509_ca"] > 10
    monkeypatch.setenv(name, str(certificate if name == "SSL_CERT_FILE" else tmp_path))
    assert _tls_context().cert_store_stats()["x509"] == (name == "SSL_CERT_FILE")
