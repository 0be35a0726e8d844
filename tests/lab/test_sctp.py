"""SCTP between machines: packets made by hand, since not every kernel has sockets for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Service
from k8sdatapath.net.packet import Packet, parse, sctp
from k8sdatapath.node import Capacity

pytestmark = pytest.mark.lab

SCTP = socket.IPPROTO_SCTP
VIP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
PORT = 3868
INIT, INIT_ACK = 1, 2
SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with a pod each, and a client outside."""
    with Lab.start(nodes=2, capacity=SMALL) as lab:
        for name, node in (("here", lab.nodes[0]), ("also-here", lab.nodes[0]), ("there", lab.nodes[1])):
            lab.pod(name, node)
        lab.external("visitor")
        yield lab


class Speaker:
    """Somebody who says and hears SCTP."""

    def __init__(self, host: Host, family: int) -> None:
        self.address = str(host.addresses[family == 6])
        self._v6 = family == 6
        self.socket = host.socket(socket.AF_INET6 if self._v6 else socket.AF_INET, socket.SOCK_RAW, SCTP)
        self.socket.settimeout(10)

    def say(self, to: str, sport: int, dport: int, chunk: int) -> None:
        whole = sctp(self.address, to, sport, dport, chunk, b"hello...", tag=7)
        self.socket.sendto(whole[54 if self._v6 else 34 :], (to, 0))

    def hear(self) -> Packet:
        """The next packet; of IPv6 the header is made up from what the socket says."""
        data, source = self.socket.recvfrom(2048)
        if not self._v6:
            return parse(bytes(12) + b"\x08\x00" + data)
        header = b"\x60\0\0\0" + len(data).to_bytes(2) + bytes((SCTP, 64))
        ends = (socket.inet_pton(socket.AF_INET6, each) for each in (source[0], self.address))
        return parse(bytes(12) + b"\x86\xdd" + header + b"".join(ends) + data)


@FAMILIES
@pytest.mark.parametrize("who", ["a pod here", "a pod elsewhere", "somebody outside"])
def test_an_association_through_a_service(lab: Lab, family: int, who: str) -> None:
    here, neighbour, there = (pod for node in lab.nodes for pod in node.pods)
    asker, backend = {
        "a pod here": (neighbour, here),
        "a pod elsewhere": (here, there),
        "somebody outside": (lab.externals[0], there),
    }[who]
    lab.node.services.upsert(Service(VIP[family], PORT, "SCTP", backends=[backend.at(PORT, family)]))
    with ExitStack() as own:
        client, server = Speaker(asker, family), Speaker(backend, family)
        own.enter_context(client.socket)
        own.enter_context(server.socket)
        client.say(VIP[family], 40000, PORT, INIT)
        asked = server.hear()
        seen = lab.node.addresses[family == 6] if who == "somebody outside" else client.address
        assert (str(asked.src), asked.sport, asked.dport) == (str(seen), 40000, PORT)
        assert asked.checksums_ok
        server.say(str(asked.src), PORT, 40000, INIT_ACK)
        answered = client.hear()
        assert (str(answered.src), answered.sport, answered.dport) == (VIP[family], PORT, 40000)
        assert answered.checksums_ok
