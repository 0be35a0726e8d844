"""Classic filters of sockets, for what they do besides."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import addressof, create_string_buffer

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27


@contextmanager
def deaf(sock: socket.socket) -> Iterator[None]:
    """A socket that packets do not get to."""
    nothing = create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)  # BPF_RET, no bytes
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, addressof(nothing)))
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def crammed(sock: socket.socket) -> None:
    """Leave no room in a socket for what programs keep of it, by the largest filter that it takes."""

    def fits(large: int, small: int) -> bool:
        steps = [(0x01, 1), *[(0x3C, 0)] * large, *[(0x04, 1)] * small, (0x06, 0xFFFFFFFF)]  # accept at last
        code = create_string_buffer(b"".join(struct.pack("HBBI", op, 0, 0, value) for op, value in steps))
        where = struct.pack("HL", len(steps), addressof(code))
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, where)
        except OSError:
            return False
        return True

    def most(fit: Callable[[int], bool], limit: int) -> int:
        found = 0
        for step in (1 << bit for bit in reversed(range(12))):
            if found + step <= limit and fit(found + step):
                found += step
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        return found

    large = most(lambda size: fits(size, 0), 4000)
    assert fits(large, most(lambda size: fits(large, size), 4094 - large))
