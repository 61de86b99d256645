"""/drip: paced chunks that show whether a proxy on the way passes a stream on as it comes."""

from collections.abc import Iterator

import gevent

# Enough chunks, far enough apart, to tell whether they arrive one by one.
DRIP_CHUNKS, DRIP_SECONDS = 10, 0.1


def drip() -> Iterator[bytes]:
    """Yield a numbered line every DRIP_SECONDS."""
    for number in range(1, DRIP_CHUNKS + 1):
        gevent.sleep(DRIP_SECONDS)
        yield b"%d of %d\n" % (number, DRIP_CHUNKS)
