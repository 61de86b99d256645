"""The clients' connections of a worker: how many one address may have, and which are closed when the worker stops."""

import os
import socket
import time
from collections import Counter
from contextlib import suppress

from rill.server.connection import ClientSocket
from rill.streaming.cancellation import Cancellation, Drain

# Connections of one address without an answer: they send a request, or are idle between two.
MAX_WAITING = 500


class Connections:
    """Every connection of this worker; `drain` ends the answers on them.

    A connection is waiting until its request is admitted, and again once that is answered.
    """

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.busy: set[ClientSocket] = set()
        self._open: set[ClientSocket] = set()
        self._idle: dict[ClientSocket, float] = {}  # since when (monotonic, in seconds); the longest idle first
        self._waiting: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, client: ClientSocket) -> bool:
        """Add an accepted connection; return False if its address has too many that wait.

        Before that, the connection of the same address that has been idle longest is closed instead.
        """
        if client.address is not None and self._waiting[client.address] >= MAX_WAITING:
            oldest = next((each for each in self._idle if each.address == client.address), None)
            if oldest is None:
                return False
            self.discard(oldest)
            shut_down(oldest)
        client.connections = self
        self._open.add(client)
        self._set_waiting(client, True)
        return True

    def begin_request(self, client: ClientSocket) -> None:
        """Note that a request has arrived."""
        self._idle.pop(client, None)
        self.busy.add(client)

    def admit(self, client: ClientSocket, answer: Cancellation) -> None:
        """Note that the request is answered; shutdown ends the answer, unless it is discarded from `drain` before."""
        self._set_waiting(client, False)
        self.drain.add(answer)

    def end_request(self, client: ClientSocket) -> None:
        """Note that the response was written."""
        self.busy.discard(client)
        if client in self._open:
            self._set_waiting(client, True)
            self._idle[client] = time.monotonic()

    def discard(self, client: ClientSocket) -> None:
        """Remove a connection that is closed."""
        if client in self._open:
            self._set_waiting(client, False)
        self._open.discard(client)
        self._idle.pop(client, None)
        self.busy.discard(client)

    def close_idle(self, seconds: float = 0.0) -> None:
        """Close the connections that have been idle for at least so many seconds."""
        since = time.monotonic() - seconds
        for client in [client for client, begun in self._idle.items() if begun <= since]:
            del self._idle[client]
            shut_down(client)

    def close_all(self) -> None:
        """Close every connection."""
        for client in tuple(self._open):
            shut_down(client)

    def _set_waiting(self, client: ClientSocket, waiting: bool) -> None:
        if client.waiting is not waiting:
            client.waiting = waiting
            self._waiting[client.address] += 1 if waiting else -1
            if not self._waiting[client.address]:
                del self._waiting[client.address]


def shut_down(client: ClientSocket) -> None:
    """Shut a connection down: its greenlet then reads the end of the data, and closes it."""
    with suppress(OSError), socket.socket(fileno=os.dup(client.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)
