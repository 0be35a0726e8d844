"""A name server in a namespace, that says what a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSRecord

from k8sdatapath.lab.host import Host
from k8sdatapath.net.netns import NetNs
from k8sdatapath.resource import Resource

#: What a name has: addresses, or another name.
Zone = dict[str, Iterable[str]]


def question(name: str, kind: str = "A", *, ident: int = 7) -> bytes:
    """A message that asks."""
    record = DNSRecord.question(name, kind)
    record.header.id = ident
    return bytes(record.pack())


def reply(asked: bytes, zone: Zone, *, ttl: int = 60) -> bytes:
    """The answer to a message."""
    record = DNSRecord.parse(asked)
    made = record.reply()
    name, kind = str(record.q.qname).rstrip(".").lower(), QTYPE[record.q.qtype]
    if name not in zone:
        made.header.rcode = RCODE.NXDOMAIN
    todo = [name]
    for owner in todo:
        for each in zone.get(owner, ()):
            if each in zone:
                made.add_answer(RR(owner, QTYPE.CNAME, ttl=ttl, rdata=CNAME(each)))
                todo.append(each)
            elif kind == "A" and ip_address(each).version == 4:
                made.add_answer(RR(owner, QTYPE.A, ttl=ttl, rdata=A(tuple(ip_address(each).packed))))
            elif kind == "AAAA" and ip_address(each).version == 6:
                made.add_answer(RR(owner, QTYPE.AAAA, ttl=ttl, rdata=AAAA(tuple(ip_address(each).packed))))
    return bytes(made.pack())


def framed(message: bytes) -> bytes:
    """A message as it stands in a TCP connection."""
    return len(message).to_bytes(2) + message


def messages(stream: socket.socket) -> Iterator[bytes]:
    """Those of a TCP connection, until it ends."""
    with stream.makefile("rb") as source:
        while len(size := source.read(2)) == 2:
            message = source.read(int.from_bytes(size))
            if len(message) < int.from_bytes(size):
                return
            yield message


class NameServer(Resource):
    """Answers over UDP and TCP at all addresses of a namespace.

    :ivar zone: what it says; may be changed.
    :ivar answer: makes the messages that answer one.
    :ivar truncates: over UDP nothing is said but that there is more.
    :ivar asked: messages that have come over TCP.
    """

    def __init__(self, netns: NetNs, zone: Zone, *, port: int = 53, ttl: int = 60) -> None:
        self.zone, self.ttl = zone, ttl
        self.answer: Callable[[bytes], list[bytes]] = lambda asked: [reply(asked, self.zone, ttl=self.ttl)]
        self.truncates = False
        self.asked: list[bytes] = []
        self._socket = netns.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._socket.bind(("::", port))
        self._listener = netns.call(
            socket.create_server, ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
        )
        self._streams: list[socket.socket] = []
        self._talking: list[threading.Thread] = []
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._accept)]
        self._closing = False
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while True:
            asked, client = self._socket.recvfrom(4096)
            if self._closing:
                return
            for each in [truncated(asked)] if self.truncates else self.answer(asked):
                self._socket.sendto(each, client)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                self._streams.append(stream)
                thread = threading.Thread(target=self._talk, args=[stream], daemon=True)
                self._talking.append(thread)
                thread.start()

    def _talk(self, stream: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has reset it
            for asked in messages(stream):
                self.asked.append(asked)
                stream.sendall(b"".join(framed(each) for each in self.answer(asked)))

    def close(self) -> None:
        self._closing = True
        self._socket.sendto(b"", ("::1", self._socket.getsockname()[1]))
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for stream in self._streams:  # no others come, now that nobody accepts them
            with contextlib.suppress(OSError):  # it has ended
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self._talking:
            thread.join()
        for each in (self._socket, self._listener, *self._streams):
            each.close()


def truncated(asked: bytes) -> bytes:
    """The answer that there is more, elsewhere."""
    made = DNSRecord.parse(asked).reply()
    made.header.tc = 1
    return bytes(made.pack())


def resolve(client: Host, server: object, name: str, kind: str = "A", *, timeout: float = 10.0) -> DNSRecord:
    """What a client is answered."""
    return DNSRecord.parse(client.udp(str(server), 53, question(name, kind), timeout=timeout).data)
