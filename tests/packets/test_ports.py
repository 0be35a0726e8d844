"""Ports of flows under the node's own address, which its own sockets use too."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from attrs import evolve

from k8sdatapath.model import Protocol
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import icmp_error, parse, quoted, tcp, udp
from tests.packets.rig import Rig, Sent, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, V6, WORLDS, World

BOTH = [pytest.param(w, p, id=f"{w.name} {p.name}") for w in WORLDS for p in PROTOCOLS]
FLOWS = pytest.mark.parametrize(("world", "protocol"), BOTH)
FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
PORT = 40000


@pytest.fixture(scope="module")
def node() -> Iterator[NetNs]:
    """A namespace with an uplink, behind which ``one`` and ``two`` are."""

    def wire() -> None:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            set_sysctl(name, 1)
        with Netlink() as net:
            net.set_up("lo")
            net.create_veth("out", "far")
            net.set_up("far")
            for interface, router, world in (
                ("192.0.2.1/24", "192.0.2.2", V4),
                ("2001:db8:1::1/64", "2001:db8:1::2", V6),
            ):
                net.add_address("out", ip_interface(interface))
                net.add_neighbour("out", ip_address(router), "02:00:00:00:01:02")
                for name in ("one", "two"):
                    net.add_route(ip_network(world.address(name)), via=ip_address(router))
            net.wait_up("out")

    with NetNs.create(f"kddp-ports-{os.getpid()}") as made:
        made.call(wire)
        yield made


class Uplink:
    """An uplink of ``node`` with a service, and packets of one family and protocol through it."""

    def __init__(self, datapath: Rig, node: NetNs, world: World, protocol: Protocol) -> None:
        self.datapath, self.world, self.protocol = datapath, world, protocol
        self._node = node
        self._build = tcp if protocol is TCP else udp
        self.address = world.address("uplink")
        self.dial("one")

    def dial(self, *backends: str) -> None:
        self.datapath.services.upsert(self.world.service("service", self.protocol, list(backends)))

    def send(self, src: str, sport: int, dst: str, dport: int, flags: str = "S", via: str = "") -> Sent:
        more = (flags,) if self.protocol is TCP else ()
        frame = self._build(src, dst, sport, dport, *more)  # type: ignore[arg-type]
        sent = self.datapath.send(frame, via=via, netns=self._node)
        if sent.outcome != "PASS" and not sent.outcome.startswith("DROP"):
            assert sent.packet.checksums_ok
        return sent

    def visit(self, number: int = 1, flags: str = "S", port: int = PORT) -> Sent:
        """A packet to the service from a host outside, always from the same port."""
        visitor = f"198.51.100.{number}" if self.world is V4 else f"2001:db8:ff::{number:x}"
        return self.send(visitor, port, *self.world["service"], flags)

    def answer(self, port: int | None, flags: str = "SA") -> Sent:
        """A packet of the backend to a port of the node's."""
        assert port is not None
        return self.send(*self.world["one"], self.address, port, flags)

    def own(self, flags: str = "S", port: int = PORT) -> Sent:
        """A packet that a socket of the node sends to the backend."""
        return self.send(self.address, port, *self.world["one"], flags, via="to_uplink")

    @contextmanager
    def socket(self, address: str, port: int, peer: tuple[str, int] | None = None) -> Iterator[socket.socket]:
        family = socket.AF_INET if self.world is V4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if self.protocol is TCP else socket.SOCK_DGRAM
        with self._node.call(lambda: socket.socket(family, kind)) as sock:
            sock.setblocking(False)
            sock.bind((address, port))
            if peer is not None:
                sock.connect_ex(peer)
            yield sock


@pytest.fixture
def uplink(node: NetNs, request: pytest.FixtureRequest) -> Iterator[Uplink]:
    world, protocol = request.node.callspec.params["world"], request.node.callspec.params["protocol"]
    with rig("from_uplink") as datapath:
        yield Uplink(datapath, node, world, protocol)


@FLOWS
def test_a_port_that_a_socket_of_the_node_uses_towards_the_backend_is_not_given_away(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    with uplink.socket(uplink.address, PORT, world["one"]):
        port = uplink.visit().packet.sport
        assert port != PORT
        assert uplink.answer(PORT).outcome == "PASS"
        assert str(uplink.answer(port).packet.dst).endswith(":1" if world is V6 else ".1")


@FLOWS
def test_a_socket_that_talks_to_another_than_the_backend_is_in_nobodys_way(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    with uplink.socket(uplink.address, PORT, world["two"]):
        assert uplink.visit().packet.sport == PORT


@FLOWS
def test_a_bound_socket_is_in_the_way_only_where_it_may_yet_send(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    with uplink.socket("::" if world is V6 else "0.0.0.0", PORT) as sock:
        if protocol is TCP:
            sock.listen()
        assert (uplink.visit().packet.sport == PORT) is (protocol is TCP)


@FLOWS
def test_a_socket_of_the_node_that_comes_second_gets_another_port_on_the_wire(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    assert uplink.visit().packet.sport == PORT
    sent = uplink.own()
    port = sent.packet.sport
    assert (sent.outcome, str(sent.packet.src)) == ("TO_STACK", uplink.address)
    assert (str(sent.packet.dst), sent.packet.dport) == world["one"]
    assert port not in (PORT, None)
    assert uplink.own("S").packet.sport == uplink.own("A").packet.sport == port

    mine = uplink.answer(port)
    assert (mine.outcome, str(mine.packet.src), mine.packet.sport) == ("TO_STACK", *world["one"])
    assert (str(mine.packet.dst), mine.packet.dport) == (uplink.address, PORT)
    theirs = uplink.answer(PORT)
    assert (str(theirs.packet.src), theirs.packet.sport) == world["service"]
    assert uplink.visit(flags="A").packet.sport == PORT


@FLOWS
def test_a_socket_of_the_node_takes_the_port_of_a_flow_that_is_over(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    assert uplink.visit().packet.sport == PORT
    if protocol is TCP:
        uplink.answer(PORT, "RA")
    else:
        uplink.datapath.let_time_pass()
    assert uplink.own().outcome == "PASS"
    assert uplink.answer(PORT).outcome == "PASS"
    assert not dict(uplink.datapath.flows)


@FAMILIES
@pytest.mark.parametrize("protocol", [TCP], ids=["TCP"])
def test_a_connection_that_had_another_port_ends_with_it(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    uplink.visit()
    first = uplink.own().packet.sport
    uplink.answer(first)
    uplink.own("FA")
    uplink.visit(flags="R")
    assert uplink.own("A").packet.sport == first
    assert uplink.own("S").outcome == "PASS"  # the visitor has gone meanwhile
    assert not dict(uplink.datapath.flows)


@FAMILIES
@pytest.mark.parametrize("protocol", [UDP], ids=["UDP"])
def test_datagrams_of_the_node_keep_their_port_on_the_wire_when_the_other_flow_has_gone(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    uplink.visit()
    port = uplink.own().packet.sport
    for key in dict(uplink.datapath.flows):
        if PORT in (key.sport, key.dport) and str(key.src) != uplink.address:
            del uplink.datapath.flows[key]
    assert len(uplink.datapath.flows) == 2
    assert uplink.own().packet.sport == port


@FLOWS
def test_what_the_node_sends_otherwise_is_left_alone(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    uplink.visit()
    for port, flags in ((PORT + 1, "S"), (PORT + 1, "A"), (80, "SA")):
        assert uplink.own(flags, port).outcome == "PASS"
    assert uplink.send(uplink.address, PORT, *world["two"], via="to_uplink").outcome == "PASS"
    assert len(uplink.datapath.flows) == 2


@FLOWS
def test_answers_of_a_backend_on_the_node_itself_come_from_the_service(
    uplink: Uplink, world: World, protocol: Protocol
) -> None:
    here = Protocol(protocol)
    service = world.service("service", here, ["uplink"])
    uplink.datapath.services.upsert(service)
    sent = uplink.visit()
    assert (sent.outcome, str(sent.packet.dst)) == ("TO_STACK", uplink.address)
    target, port = world["uplink"]
    back = uplink.send(target, port, str(sent.packet.src), PORT, "SA", via="to_uplink")
    assert (back.outcome, str(back.packet.src), back.packet.sport) == ("TO_STACK", *world["service"])
    error = icmp_error(target, str(sent.packet.src), sent.frame, (3, 3) if world is V4 else (1, 4))
    told = uplink.datapath.send(error, via="to_uplink")
    assert told.outcome == "TO_STACK"
    assert told.packet.checksums_ok
    assert str(quoted(told.packet).dst) == world.address("service")
    assert str(parse(told.frame).src) == world.address("service")


@FLOWS
@pytest.mark.parametrize("count", [4, 200])
def test_a_flow_is_dropped_only_when_every_port_is_taken(
    node: NetNs, world: World, protocol: Protocol, count: int
) -> None:
    first = PORT - 2
    with rig("from_uplink", port_min=first, port_max=first + count - 1) as datapath:
        uplink = Uplink(datapath, node, world, protocol)
        ports = {uplink.visit(number).packet.sport for number in range(1, count + 1)}
        assert ports == set(range(first, first + count))
        assert uplink.visit(count + 1).outcome == "DROP_NO_PORT"
        assert len(datapath.flows) == 2 * count
        uplink.dial("two")
        assert uplink.visit(count + 1).packet.sport in ports  # to another, ports are free
        uplink.dial("one")

        freed = first + count // 2
        if protocol is TCP:
            uplink.answer(freed, "RA")
        else:
            for key, row in dict(datapath.flows).items():
                if freed in (key.dport, row.to.sport):
                    datapath.flows[key] = evolve(row, last_seen=1)
        deadline = time.monotonic() + 10
        while (sent := uplink.visit(count + 2)).outcome == "DROP_NO_PORT":  # not looked for all the time
            assert time.monotonic() < deadline
        assert sent.packet.sport == freed
        assert uplink.visit(count + 3).outcome == "DROP_NO_PORT"


@FLOWS
def test_a_port_outside_of_the_range_is_not_kept(node: NetNs, world: World, protocol: Protocol) -> None:
    with rig("from_uplink", port_min=50000, port_max=50009) as datapath:
        uplink = Uplink(datapath, node, world, protocol)
        assert uplink.visit(1, port=PORT).packet.sport in range(50000, 50010)
        assert uplink.visit(2, port=50010).packet.sport in range(50000, 50010)
