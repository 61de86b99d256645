"""The recorded answers of one worker: where they are found, how many bytes they may have, and when they expire."""

import secrets
from collections import Counter
from typing import Any

import gevent

from rill.streaming.cancellation import Drain
from rill.streaming.recording import BLOCK_BYTES, Asked, Recording

# The bytes that one worker keeps, with Redis also there: of all clients, and of one.
MAX_BYTES = 64 << 20
MAX_CLIENT_BYTES = 16 << 20
# 22 characters of base64url.
ID_BYTES = 16


class Budget:
    """The memory that recordings may have, in blocks of BLOCK_BYTES."""

    def __init__(self, total: int, per_client: int) -> None:
        """Both are in bytes."""
        self._left = total // BLOCK_BYTES
        self._per_client = per_client // BLOCK_BYTES
        self._of: Counter[str] = Counter()
        self._blocks: Counter[str] = Counter()

    def reserve(self, id: str, client: str) -> bool:
        """Reserve one block for a recording; return False if there is none left for the client."""
        if not self._left or self._of[client] >= self._per_client:
            return False
        self._left -= 1
        self._of[client] += 1
        self._blocks[id] += 1
        return True

    def release(self, id: str, client: str) -> None:
        """Release all blocks of a recording."""
        blocks = self._blocks.pop(id, 0)
        self._left += blocks
        self._of[client] -= blocks
        if not self._of[client]:
            del self._of[client]


class Recordings:
    """The recordings in the memory of this worker, each until `seconds` after its end."""

    def __init__(self) -> None:
        self._budget = Budget(MAX_BYTES, MAX_CLIENT_BYTES)
        self._found: dict[str, Recording] = {}
        self._latest: dict[str, Recording] = {}  # by identity
        self._expiries: dict[str, Any] = {}

    def open(self, asked: Asked, drain: Drain | None) -> tuple[Recording | None, bool]:
        """Return the recording for a request, None if the answer cannot be recorded, and whether it is new.

        It is the earlier one of the same identity if nobody has it or reads it, or if the request joins it in any case.
        """
        earlier = None if asked.replaces else self._latest.get(asked.identity)
        if earlier and not earlier.is_ambiguous and (asked.joins or earlier.is_waiting):
            return earlier, False
        if recording := self._make(asked, drain):
            recording.is_ambiguous = bool(earlier and (earlier.is_ambiguous or not earlier.was_read))
            self._latest[asked.identity] = recording
        return recording, True

    def find(self, id: str) -> Recording | None:
        """Return the recording with this id, None if it is unknown or has expired."""
        return self._found.get(id)

    def find_identity(self, identity: str) -> Recording | None:
        """Return the recording that a request of this identity continues, None if there is not exactly one."""
        latest = self._latest.get(identity)
        return None if latest is None or latest.is_ambiguous else latest

    def stop(self, recording: Recording) -> None:
        """End the answer now; nobody returns to it."""
        recording.note_receipt(1)
        recording.cancel("client_stopped")

    def reserve(self, recording: Recording) -> bool:
        """Reserve another block of memory; return False if there is none left."""
        return self._budget.reserve(recording.id, recording.asked.client)

    def note_end(self, recording: Recording) -> None:
        """Keep a recording for its time after the end; one that never started is forgotten at once."""
        if recording.problem or recording.is_lost:
            self.forget(recording)
            return
        timer = self._expiries[recording.id] = gevent.get_hub().loop.timer(recording.asked.seconds)
        timer.start(self.forget, recording)

    def forget(self, recording: Recording) -> None:
        """Drop a recording: only its readers have it from now on."""
        if self._found.pop(recording.id, None) is None:
            return
        if self._latest.get(recording.asked.identity) is recording:
            del self._latest[recording.asked.identity]
        if timer := self._expiries.pop(recording.id, None):
            timer.close()
        self._budget.release(recording.id, recording.asked.client)

    def _make(self, asked: Asked, drain: Drain | None) -> Recording | None:
        recording = Recording(secrets.token_urlsafe(ID_BYTES), asked, self, drain)
        if not self.reserve(recording):
            return None
        self._found[recording.id] = recording
        return recording
