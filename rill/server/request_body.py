"""The body of a request as gunicorn parses it: a limit on the cost of its chunks, and the end of an unread body."""

from collections.abc import Generator, Iterable
from typing import Any

import gevent
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import InvalidChunkSize, NoMoreData, ParseException

# A chunk costs the same to parse whatever its size: beyond the first ones, chunks need this average size.
FREE_CHUNKS = 4096
CHUNK_BYTES = 64
# An unread body is read to its end, so that the connection can be kept, only if that is cheap.
UNREAD_BYTES = 65_536
UNREAD_SECONDS = 5.0


class ChunksTooSmall(InvalidChunkSize):
    """Raised for a body whose chunks cost more to parse than its size justifies."""

    def __str__(self) -> str:
        return f"The body's chunks are too small: send at least {CHUNK_BYTES} bytes in each."


def bound_chunks(body: Any) -> None:
    """Make the body raise ChunksTooSmall on reading, if it has many small chunks."""
    if isinstance(body.reader, ChunkedReader) and body.reader.parser:
        body.reader.parser = _bounded(body.reader.parser)


def finish(body: Any) -> bool:
    """Read the rest of a body; return whether the end was reached, so that another request may follow.

    gunicorn would read all of it, however long, before the next request.
    """
    if body.failed or (isinstance(body.reader, LengthReader) and body.reader.length > UNREAD_BYTES):
        return False
    left = UNREAD_BYTES
    try:
        with gevent.Timeout(UNREAD_SECONDS, NoMoreData()):
            while left > 0 and (data := body.read(1024)):
                left -= len(data)
    except ParseException:
        return False
    return left > 0


def _bounded(chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    size = 0
    for count, chunk in enumerate(chunks):
        size += len(chunk)
        if count > FREE_CHUNKS + size // CHUNK_BYTES:
            raise ChunksTooSmall(b"")
        yield chunk
