"""Routes to the pods of neighbouring nodes: made, moved, taken away, and nobody else's touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from k8sdatapath import Node, NodeConfig
from k8sdatapath.datapath.direct_routes import DirectRoutes
from k8sdatapath.errors import KernelError, ModelError
from k8sdatapath.model import Peer
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Capacity

pytestmark = pytest.mark.lab

SMALL = Capacity(services=64, backends=64, slots=1024, flows=1024, pods=64)
ONE = Peer("192.0.2.12", ["10.244.2.0/24", "fd00:10:244:2::/64"])
TWO = Peer("2001:db8::13", ["10.244.3.0/24", "fd00:10:244:3::/64"])
STRANGER = Peer("198.51.100.1", ["10.244.4.0/24"])


def _wire() -> None:
    with Netlink() as net:
        net.set_up("lo")
        net.create_veth("eth0", "far")
        net.set_up("far")
        for address in "192.0.2.11/24", "2001:db8::11/64":
            net.add_address("eth0", ip_interface(address))


@pytest.fixture
def netns() -> Iterator[NetNs]:
    with NetNs.create(f"kdtest-routes-{os.getpid()}") as made:
        made.call(_wire)
        yield made


def test_each_network_is_led_to_its_node_and_a_new_process_knows(netns: NetNs) -> None:
    routes = DirectRoutes(netns=netns)
    plan = routes.plan([ONE, TWO])
    assert str(plan).splitlines() == ["10.244.2.0/24 via 192.0.2.12", "fd00:10:244:3::/64 via 2001:db8::13"]
    report = plan.apply()
    assert (report.added, report.changed, report.removed) == (2, 0, 0)
    routes = DirectRoutes(netns=netns)
    assert routes.plan([ONE, TWO]).empty
    moved = Peer("192.0.2.99", ONE.networks)
    report = routes.plan([moved]).apply()
    assert (report.added, report.changed, report.removed) == (0, 1, 1)
    assert routes.dump() == {ip_network("10.244.2.0/24"): ip_address("192.0.2.99")}
    assert routes.remove() == 1
    with pytest.raises(ModelError, match=r"several peers have the pods 10\.244\.2\.0/24"):
        routes.plan([ONE, moved])


def test_a_node_that_is_no_neighbour_is_told_and_hinders_no_other(netns: NetNs) -> None:
    routes = DirectRoutes(netns=netns)
    with pytest.raises(KernelError, match=r"10\.244\.4\.0/24"):
        routes.plan([STRANGER, ONE]).apply()
    assert set(routes.dump()) == {ip_network("10.244.2.0/24")}


def test_routes_of_others_stay(netns: NetNs) -> None:
    network, gateway = ip_network("10.244.2.0/24"), ip_address("192.0.2.77")

    def add() -> None:
        with Netlink() as net:
            net.add_route(network, via=gateway, protocol=4)

    def read() -> object:
        with Netlink() as net:
            return net.gateways(4)

    netns.call(add)
    routes = DirectRoutes(netns=netns)
    with pytest.raises(KernelError, match=r"10\.244\.2\.0/24"):
        routes.plan([ONE]).apply()
    routes.remove()
    assert netns.call(read) == {network: gateway}


def test_without_pins_they_end_with_their_node(netns: NetNs) -> None:
    with Node.open(NodeConfig(netns=netns, direct_routes=True, capacity=SMALL)) as node:
        assert node.routes is not None
        node.routes.plan([ONE]).apply()
    assert not DirectRoutes(netns=netns).dump()
