"""Where a translated packet goes: into a pod, out of a device, or to the stack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import sctp, tcp, udp
from tests.packets.rig import HOST_MAC, POD_MAC, Rig, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, V6, WORLDS, World

OURS, NEIGHBOURS = "02:00:00:00:01:01", "02:00:00:00:01:02"
FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig() as made:
        made.services.upsert(*(w.service("service", p, ["one"]) for w in WORLDS for p in PROTOCOLS))
        yield made


@pytest.fixture(scope="module")
def node() -> Iterator[NetNs]:
    """A namespace that routes ``one`` through a neighbour it knows, ``two`` through one it does not."""

    def wire() -> None:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            set_sysctl(name, 1)
        with Netlink() as net:
            net.set_up("lo")
            net.create_veth("out", "far", mac=OURS)
            net.set_up("far")
            for interface, known, unknown in (
                ("192.0.2.1/24", "192.0.2.2", "192.0.2.3"),
                ("2001:db8:1::1/64", "2001:db8:1::2", "2001:db8:1::3"),
            ):
                net.add_address("out", ip_interface(interface))
                net.add_neighbour("out", ip_address(known), NEIGHBOURS)
                world = V4 if "." in known else V6
                net.add_route(ip_network(world.address("one")), via=ip_address(known))
                net.add_route(ip_network(world.address("two")), via=ip_address(unknown))
            net.wait_up("out")

    with NetNs.create(f"kddp-{os.getpid()}") as made:
        made.call(wire)
        yield made


@FAMILIES
def test_into_a_pod_of_this_node(datapath: Rig, world: World) -> None:
    datapath.add_pod(world.address("one"))
    sent = datapath.send(world.frame("client", "service", TCP, ttl=9))
    assert sent.outcome == "TO_POD"
    assert (sent.packet.src_mac, sent.packet.dst_mac, sent.packet.ttl) == (HOST_MAC, POD_MAC, 8)
    assert sent.packet.checksums_ok


@FAMILIES
def test_out_of_the_device_to_a_neighbour_that_is_known(datapath: Rig, node: NetNs, world: World) -> None:
    sent = datapath.send(world.frame("client", "service", UDP, payload=b"x", ttl=9), netns=node)
    assert sent.outcome == "TO_DEVICE"
    assert (sent.packet.src_mac, sent.packet.dst_mac, sent.packet.ttl) == (OURS, NEIGHBOURS, 8)
    assert sent.packet.checksums_ok


@FAMILIES
def test_out_of_the_device_to_a_neighbour_that_has_to_be_asked(
    datapath: Rig, node: NetNs, world: World
) -> None:
    datapath.services.upsert(world.service("service", TCP, ["two"]))
    sent = datapath.send(world.frame("client", "service", TCP, ttl=9), netns=node)
    assert (sent.outcome, sent.packet.ttl) == ("TO_DEVICE", 8)
    assert str(sent.packet.dst) == world.address("two")
    assert sent.packet.checksums_ok


@FAMILIES
def test_to_the_stack_where_no_route_leads(datapath: Rig, node: NetNs, world: World) -> None:
    datapath.services.upsert(world.service("service", TCP, ["stranger"]))
    sent = datapath.send(world.frame("client", "service", TCP, ttl=9), netns=node)
    assert (sent.outcome, sent.packet.ttl) == ("TO_STACK", 9)
    assert sent.packet.checksums_ok


@FAMILIES
@pytest.mark.parametrize("ttl", [0, 1])
def test_to_the_stack_at_the_end_of_its_life(datapath: Rig, world: World, ttl: int) -> None:
    datapath.add_pod(world.address("one"))
    sent = datapath.send(world.frame("client", "service", TCP, ttl=ttl))
    assert (sent.outcome, sent.packet.ttl) == ("TO_STACK", ttl)
    assert sent.packet.checksums_ok


@FAMILIES
def test_to_the_stack_when_redirect_is_off(world: World) -> None:
    with rig(redirect=False) as datapath:
        datapath.services.upsert(world.service("service", TCP, ["one"]))
        datapath.add_pod(world.address("one"))
        sent = datapath.send(world.frame("client", "service", TCP, ttl=9))
        assert (sent.outcome, sent.packet.ttl) == ("TO_STACK", 9)


@FAMILIES
def test_answers_that_came_through_the_stack_are_translated_on_the_way_to_the_pod(
    datapath: Rig, world: World
) -> None:
    datapath.add_pod(world.address("one"))
    datapath.send(world.frame("client", "service", TCP, "S"))
    sent = datapath.send(world.frame("one", "client", TCP, "SA", ttl=9), via="to_pod")
    assert (sent.outcome, sent.packet.ttl) == ("TO_STACK", 9)
    assert (str(sent.packet.src), sent.packet.sport) == world["service"]
    assert sent.packet.checksums_ok


@FAMILIES
def test_nothing_else_is_translated_on_the_way_to_a_pod(datapath: Rig, world: World) -> None:
    datapath.send(world.frame("client", "service", TCP, "S"))
    for src, dst in (("client", "service"), ("stranger", "service"), ("one", "stranger")):
        frame = world.frame(src, dst, TCP, "S")
        sent = datapath.send(frame, via="to_pod")
        assert (sent.outcome, sent.frame) == ("PASS", frame)


VISITORS = {V4.name: ("192.0.2.2", "192.0.2.3"), V6.name: ("2001:db8:1::2", "2001:db8:1::3")}


@pytest.fixture
def uplink() -> Iterator[Rig]:
    with rig("from_uplink") as made:
        made.services.upsert(*(w.service("service", p, ["one"]) for w in WORLDS for p in PROTOCOLS))
        yield made


@FAMILIES
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_from_outside_to_a_backend_elsewhere_under_the_nodes_address(
    uplink: Rig, node: NetNs, world: World, protocol: int
) -> None:
    build = tcp if protocol == TCP else udp
    (vip, port), (one, target), us = world["service"], world["one"], world.address("uplink")
    ports = []
    for visitor in VISITORS[world.name]:  # both from the same port
        sent = uplink.send(build(visitor, vip, 40000, port), netns=node)
        assert (sent.outcome, sent.packet.checksums_ok) == ("TO_DEVICE", True)
        assert (str(sent.packet.src), str(sent.packet.dst), sent.packet.dport) == (us, one, target)
        again = uplink.send(build(visitor, vip, 40000, port), netns=node)
        assert again.packet.sport == sent.packet.sport
        assert sent.packet.sport is not None
        ports.append(sent.packet.sport)
    assert ports[0] == 40000 != ports[1] >= 1024
    for visitor, sport in zip(VISITORS[world.name], ports, strict=True):
        sent = uplink.send(build(one, us, target, sport), netns=node)
        assert (sent.outcome, sent.packet.checksums_ok) == ("TO_DEVICE", True)
        assert (str(sent.packet.src), sent.packet.sport) == (vip, port)
        assert (str(sent.packet.dst), sent.packet.dport) == (visitor, 40000)


@FAMILIES
def test_from_outside_to_a_pod_of_this_node_under_ones_own_address(
    uplink: Rig, node: NetNs, world: World
) -> None:
    uplink.add_pod(world.address("one"))
    visitor = VISITORS[world.name][0]
    sent = uplink.send(tcp(visitor, world.address("service"), 40000, 80), netns=node)
    assert (sent.outcome, str(sent.packet.src), sent.packet.sport) == ("TO_POD", visitor, 40000)


@FAMILIES
def test_from_a_pod_to_a_backend_elsewhere_under_ones_own_address(
    datapath: Rig, node: NetNs, world: World
) -> None:
    sent = datapath.send(world.frame("client", "service", TCP), netns=node)
    assert (str(sent.packet.src), sent.packet.sport) == world["client"]


@FAMILIES
def test_sctp_goes_under_the_nodes_address_with_its_own_port_or_not_at_all(
    uplink: Rig, node: NetNs, world: World
) -> None:
    (vip, port), one, us = world["service"], world.address("one"), world.address("uplink")
    uplink.services.upsert(Service(vip, port, "SCTP", backends=[Backend(one, port)]))
    first, second = (
        uplink.send(sctp(visitor, vip, 40000, port), netns=node) for visitor in VISITORS[world.name]
    )
    assert (first.outcome, first.packet.checksums_ok) == ("TO_DEVICE", True)
    assert (str(first.packet.src), str(first.packet.dst), first.packet.sport) == (us, one, 40000)
    assert second.outcome == "DROP_NO_PORT"
    answer = uplink.send(sctp(one, us, port, 40000, 2), netns=node)
    assert (answer.outcome, answer.packet.checksums_ok) == ("TO_DEVICE", True)
    assert (str(answer.packet.src), str(answer.packet.dst)) == (vip, VISITORS[world.name][0])


@FAMILIES
def test_many_clients_of_one_port_get_many_ports(uplink: Rig, node: NetNs, world: World) -> None:
    clients = [f"198.51.{n >> 8}.{n & 255}" if world is V4 else f"2001:db8:ff::{n:x}" for n in range(1, 500)]
    vip, port = world["service"]
    frames = [uplink.send(tcp(client, vip, 40000, port), netns=node) for client in clients]
    assert len({sent.packet.sport for sent in frames}) == len(clients)
    assert len(uplink.flows) == 2 * len(clients)


def test_what_is_counted_is_what_was_sent(datapath: Rig) -> None:
    frames = [V4.frame("client", "stranger", UDP, payload=bytes(n)) for n in (0, 100)]
    for frame in frames:
        datapath.send(frame)
    counted = datapath.read_counters()["PASS"]
    assert (counted.packets, counted.bytes) == (2, sum(map(len, frames)))
