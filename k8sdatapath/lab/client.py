"""What a client in a lab gets back, and HTTP over a socket that is made elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown

#: Address and port, as the caller sees them.
Endpoint = tuple[str, int]

Connect = Callable[[str, int, float], socket.socket]


@frozen
class Response:
    """The answer to an HTTP request.

    :ivar peer: whom the client believes it has talked to (``getpeername``).
    :ivar headers: names in lower case; ``x-peer`` is whom a lab server believes it has talked to.
    """

    status: int
    text: str
    peer: Endpoint
    headers: Mapping[str, str] = field(repr=False)


@frozen
class Datagram:
    """An answer by UDP.

    :ivar source: where it came from, as the client sees it.
    """

    data: bytes
    source: Endpoint


def get(connect: Connect, url: str, timeout: float) -> Response:
    """One HTTP request over a connection of its own.

    :param connect: makes the connection from address, port and timeout.
    :raises ModelError: it is not a URL of an address.
    """
    from http.client import HTTPConnection  # takes longer to import than a pod to start
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, 80 if parts.port is None else parts.port
    except ValueError:
        host = None
    if not host or parts.scheme != "http":
        raise ModelError(f"not a URL like http://10.96.0.10:80/path: {shown(url)}")
    connection = HTTPConnection(host, port)
    connection.sock = connect(host, port, timeout)
    try:
        peer = connection.sock.getpeername()[:2]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Connection": "close"})
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, answer.read().decode(errors="replace"), peer, headers)
    finally:
        connection.close()
