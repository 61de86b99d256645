"""A worker's connections to the Redis that has the recorded answers: commands, and messages between workers."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.event import Event
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

# A command takes a fraction of a millisecond; nothing waits longer for a Redis that does not answer.
TIMEOUT_SECONDS = 0.25
MAX_CONNECTIONS = 16
# How long a worker goes without a lost Redis before it tries it again.
RETRY_SECONDS = 1.0
# How often the worker wakes to check that the connection on which it receives messages is alive.
LISTEN_SECONDS = 2.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Link:
    """Redis, as one worker uses it; `worker` is the worker's name there. It connects at the first use."""

    def __init__(self, url: str, receive: Callable[[bytes], None]) -> None:
        """`receive` gets each message to this worker; it must not wait."""
        self._options = {"socket_connect_timeout": TIMEOUT_SECONDS, "socket_timeout": TIMEOUT_SECONDS}
        self._url = url.replace("redis+unix://", "unix://")
        self._receive = receive
        self._is_listening = Event()
        self._listener: gevent.Greenlet[..., None] | None = None
        self._retry_at = 0.0  # monotonic, in seconds
        self._is_lost = False
        self.worker = secrets.token_urlsafe(12)
        self.redis: Any = self._connect(retry=Retry(NoBackoff(), 1))  # A kept connection may have been closed.

    def run(self, command: Callable[[], T]) -> T:
        """Return what the command returns; raise RedisError, at once if Redis was lost a moment ago."""
        if time.monotonic() < self._retry_at:
            raise RedisConnectionError("Redis is lost")
        try:
            returned = command()
        except RedisError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._is_lost:
                self._is_lost = True
                log.warning("Redis is lost (%s): answers cannot be resumed", type(error).__name__)
            raise
        if self._is_lost:
            self._is_lost = False
            log.warning("Redis is back: answers can be resumed again")
        return returned

    def listen(self) -> None:
        """Return once messages to this worker are received; raise RedisError."""
        if self._listener is None:
            self._listener = gevent.spawn(self._listen)
        if not self._is_listening.is_set():
            self.run(self._await_subscription)

    def send(self, worker: str, message: str, data: bytes = b"") -> int:
        """Send a message to a worker; return 0 if it does not listen; raise RedisError."""
        return self.run(lambda: int(self.redis.publish(channel_of(worker), message.encode() + b"\n" + data)))

    def _await_subscription(self) -> None:
        if not self._is_listening.wait(2 * TIMEOUT_SECONDS):
            raise RedisConnectionError("no subscription")

    def _listen(self) -> None:
        redis = self._connect(health_check_interval=LISTEN_SECONDS)
        while True:
            try:
                with redis.pubsub() as messages:
                    messages.subscribe(channel_of(self.worker))
                    while True:
                        message = messages.get_message(timeout=LISTEN_SECONDS)
                        if message and message["type"] == "subscribe":
                            self._is_listening.set()
                        elif message and message["type"] == "message":
                            self._receive(message["data"])
            except RedisError:
                self._is_listening.clear()
                gevent.sleep(RETRY_SECONDS / 2)
            except Exception:
                log.exception("a message from another worker could not be read")

    def _connect(self, **options: Any) -> Any:
        pool = ConnectionPool.from_url(self._url, max_connections=MAX_CONNECTIONS, **self._options, **options)
        return Redis(connection_pool=pool)


def channel_of(worker: str) -> str:
    """Return the channel on which a worker receives messages."""
    return f"rill:worker:{worker}"
