"""The TCP sockets of a process, asked of the kernel without those in TIME_WAIT.

psutil reads them all from /proc, of which a test suite leaves ten thousand: a tenth of a second for each question.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

NETLINK_SOCK_DIAG, BY_FAMILY, REQUEST_DUMP = 4, 20, 0x301
ERROR, DONE = 2, 3
TIME_WAIT, LISTEN = 6, 10
ALL_BUT_TIME_WAIT = 0xFFF & ~(1 << TIME_WAIT)
# struct inet_diag_req_v2 and inet_diag_msg of linux/inet_diag.h, each after a struct nlmsghdr.
HEADER, QUESTION = struct.Struct("=IHHII"), struct.Struct("=BBBxI48x")
ENTRY = struct.Struct("!xB2xHH60xI")


class TcpSocket(NamedTuple):
    """An IPv4 socket; the remote port is 0 if it listens."""

    local_port: int
    remote_port: int
    listens: bool


def tcp_sockets(pid: int) -> list[TcpSocket]:
    """Return the sockets of a process; none of a process that has ended."""
    inodes = {f"socket:[{inode}]": each for inode, each in _all_sockets()}
    return [inodes[link] for link in _links(pid) if link in inodes]


def _links(pid: int) -> Iterator[str]:
    """Yield what each descriptor of a process refers to."""
    with suppress(ProcessLookupError, FileNotFoundError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _all_sockets() -> Iterator[tuple[int, TcpSocket]]:
    """Yield every socket of this machine with its inode."""
    question = QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, ALL_BUT_TIME_WAIT)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asked:
        asked.send(HEADER.pack(HEADER.size + len(question), BY_FAMILY, REQUEST_DUMP, 1, 0) + question)
        while True:
            data = asked.recv(1 << 18)
            while data:
                length, kind, *_ = HEADER.unpack_from(data)
                if kind == DONE:
                    return
                if kind == ERROR:
                    raise OSError("the kernel does not list its sockets")
                state, local_port, remote_port, _ = ENTRY.unpack_from(data, HEADER.size)
                (inode,) = struct.unpack_from("=I", data, HEADER.size + ENTRY.size - 4)
                yield inode, TcpSocket(local_port, remote_port, state == LISTEN)
                data = data[(length + 3) & ~3 :]
