"""The clients' connections of a worker: how many one address may have, and how each ends when the worker stops."""

import os
import socket
import time
from collections import Counter
from contextlib import suppress

from rill.server.connection import ClientSocket
from rill.streaming.cancellation import Cancellation, Drain

# Connections of one address that no answer is delivered on: they send a request, or are idle between two.
MOST_WAITING = 500


class Connections:
    """Every connection of this worker; `drain` ends the answers on them.

    A connection is waiting until its request is admitted, and again once that is answered.
    """

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.busy: set[ClientSocket] = set()
        self._open: set[ClientSocket] = set()
        self._idle: dict[ClientSocket, float] = {}  # since when: monotonic, in seconds; the longest one first
        self._waiting: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, client: ClientSocket) -> bool:
        """Take in an accepted connection; return False where its address has too many that wait.

        An idle connection of the same address is closed for it, the longest idle one first.
        """
        if client.address is not None and self._waiting[client.address] >= MOST_WAITING:
            oldest = next((each for each in self._idle if each.address == client.address), None)
            if oldest is None:
                return False
            self.discard(oldest)
            hang_up(oldest)
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
        """Forget a connection that is closed."""
        if client in self._open:
            self._set_waiting(client, False)
        self._open.discard(client)
        self._idle.pop(client, None)
        self.busy.discard(client)

    def hang_up_idle(self, seconds: float = 0.0) -> None:
        """Close the connections that have been idle for so long."""
        since = time.monotonic() - seconds
        for client in [client for client, begun in self._idle.items() if begun <= since]:
            del self._idle[client]
            hang_up(client)

    def hang_up_all(self) -> None:
        """Close every connection."""
        for client in tuple(self._open):
            hang_up(client)

    def _set_waiting(self, client: ClientSocket, waiting: bool) -> None:
        if client.waiting is not waiting:
            client.waiting = waiting
            self._waiting[client.address] += 1 if waiting else -1
            if not self._waiting[client.address]:
                del self._waiting[client.address]


def hang_up(client: ClientSocket) -> None:
    """End a connection as if its client had closed it: its greenlet finds the end, and closes."""
    with suppress(OSError), socket.socket(fileno=os.dup(client.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)
