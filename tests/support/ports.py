"""Ports that stay a test's own, though other tests open and close sockets at the same time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class ReservedPort:
    """A port that the kernel gives to nobody who asks for any, at no address.

    Who connects to it is refused, until somebody listens there, which everybody may who sets SO_REUSEADDR.
    """

    def __init__(self) -> None:
        self._holder = socket.socket(socket.AF_INET6)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._holder.bind(("::", 0))
        self.number = int(self._holder.getsockname()[1])

    def close(self) -> None:
        self._holder.close()


@contextmanager
def reserved_ports() -> Iterator[Iterator[int]]:
    """As many ports as are asked for, each another one."""

    def ports() -> Iterator[int]:
        while True:
            port = ReservedPort()
            own.callback(port.close)
            yield port.number

    with ExitStack() as own:
        yield ports()
