"""Connections between hosts of a lab, both ends of which a test holds."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from itertools import count

from attrs import frozen

from k8sdatapath.lab.host import Host
from k8sdatapath.resource import Resource

_PORTS = count(20000)


@frozen
class Connection(Resource):
    """Both ends of a connection."""

    client: socket.socket
    server: socket.socket

    def say(self, data: bytes) -> None:
        """Something there, and the same back."""
        self.client.sendall(data)
        assert read(self.server, len(data)) == data
        self.server.sendall(data)
        assert read(self.client, len(data)) == data

    def close(self) -> None:
        """The client first."""
        self.client.close()
        self.server.close()


def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or all until the end if that comes before."""
    got = bytearray()
    while len(got) < size and (piece := sock.recv(min(size - len(got), 1 << 20))):
        got += piece
    return bytes(got)


def sent_again(sock: socket.socket) -> int:
    """Segments of a TCP socket that were sent more than once."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (total,) = struct.unpack_from("I", info, 100)  # tcpi_total_retrans
    return int(total)


def listen(host: Host, port: int | None = None, *, address: str | None = None) -> socket.socket:
    """A listening socket of a host, at all its addresses if none is given; the port is a fresh one."""
    family = socket.AF_INET6 if address is None or ":" in address else socket.AF_INET
    listener = host.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address or "::", next(_PORTS) if port is None else port))
    listener.listen(128)
    listener.settimeout(10)
    return listener


def dial(
    client: Host, listener: socket.socket, address: str | IPv4Address | IPv6Address, port: int | None = None
) -> Connection:
    """Connect to what leads to a listener, at its own port if none is given."""
    near = client.tcp(address, port or listener.getsockname()[1], timeout=10)
    try:
        far, _ = listener.accept()
    except BaseException:
        near.close()
        raise
    far.settimeout(10)
    for each in (near, far):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(near, far)


@contextmanager
def connected(
    client: Host,
    server: Host,
    address: str | IPv4Address | IPv6Address | None = None,
    port: int | None = None,
) -> Iterator[Connection]:
    """A connection from one host to another; the address, if one is given, leads there."""
    with listen(server) as listener:
        made = dial(client, listener, server.address if address is None else address, port)
    with made:
        yield made
