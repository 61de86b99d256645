"""The files in which several workers share their metrics: their directory, and which worker writes which files.

prometheus_client maps these files into memory, and the kernel kills a process that touches a mapped page for which the
disk has no space. So each file is fully allocated before it is mapped, and never grows (series_budget.py).

A worker writes the files of its own slot. When a worker ends, its successor takes over the slot and continues its
counts, so there are few files, and nothing has to be merged.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from itertools import count

PREFIX = "rill-metrics-"
COUNTER_BYTES = 2 << 20
# The names that prometheus_client gives to the files, and their sizes in bytes.
SIZES = {"counter": COUNTER_BYTES, "histogram": 1 << 17, "gauge_livesum": 4096}

# The directory of this worker's server, and the worker's slot in it. Without a directory, a worker counts for itself;
# without a slot, because the disk is full, it is not counted.
directory: str | None = None
slot: int | None = None


def make_directory() -> str:
    """Make the directory of a server, and remove those of servers that were killed; raise OSError.

    A lock on it shows that its server is alive: the server's processes hold it until they end.
    """
    hidden = tempfile.mkdtemp(prefix=f".{PREFIX}{os.getpid()}-")
    parent, name = os.path.split(hidden)
    remove_abandoned(parent)
    fcntl.flock(os.open(hidden, os.O_RDONLY), fcntl.LOCK_SH)
    visible = os.path.join(parent, name.removeprefix("."))
    os.rename(hidden, visible)  # Other servers find it only now, when it is locked.
    return visible


def remove_abandoned(parent: str) -> None:
    """Remove the directories of servers that have ended."""
    for found in glob.glob(os.path.join(glob.escape(parent), f"{PREFIX}*-*")):
        with suppress(OSError):
            opened = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(opened).st_uid == os.geteuid():
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(opened)


def find_free_slot(taken: Collection[int]) -> int:
    """Return the lowest slot that no running worker has."""
    return next(number for number in count(1) if number not in taken)


def take_slot(its_directory: str, number: int) -> None:
    """Allocate the files of a slot for this worker; raise OSError if the disk has no space for them."""
    global directory, slot
    directory, slot = its_directory, None
    for kind, size in SIZES.items():
        path = _path_of(directory, kind, number)
        if not os.path.exists(path):
            _allocate(path, size)
    slot = number


def free_slot(its_directory: str, number: int) -> None:
    """Subtract the open answers of a worker that has ended."""
    with suppress(OSError):
        os.unlink(_path_of(its_directory, "gauge_livesum", number))


def counter_file() -> str | None:
    """Return the path of this worker's counters, None if it has no files."""
    return _path_of(directory, "counter", slot) if directory and slot else None


def _allocate(path: str, size: int) -> None:
    unfinished = f"{path}.new"  # A scrape would read it otherwise.
    with open(unfinished, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    os.rename(unfinished, path)


def _path_of(parent: str, kind: str, number: int) -> str:
    return os.path.join(parent, f"{kind}_{number}.db")
