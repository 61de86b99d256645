"""The body of a request as gunicorn parses it: how much its chunks may cost, and what happens to an unread rest."""

from collections.abc import Generator, Iterable
from typing import Any

import gevent
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import InvalidChunkSize, NoMoreData, ParseException

# To parse a chunk costs the same whatever its size: beyond the first ones, each has to bring this much on average.
FREE_CHUNKS = 4096
CHUNK_BYTES = 64
# The unread rest of a body is read, so that the connection can be kept, only where that is cheap.
UNREAD_BYTES = 65_536
UNREAD_SECONDS = 5.0


class ChunksTooSmall(InvalidChunkSize):
    """A body whose chunks cost more than its size justifies."""

    def __str__(self) -> str:
        return f"The body's chunks are too small: send at least {CHUNK_BYTES} bytes in each."


def bound_chunks(body: Any) -> None:
    """Make reading a chunked body raise ChunksTooSmall where its chunks are many and small."""
    if isinstance(body.reader, ChunkedReader) and body.reader.parser:
        body.reader.parser = _bounded(body.reader.parser)


def finish(body: Any) -> bool:
    """Read what the application left of a body; return whether the next request begins behind it.

    gunicorn would read all of it before the next request.
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
