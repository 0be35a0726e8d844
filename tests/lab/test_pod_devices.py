"""Pods are found by what the kernel knows of their addresses, in real namespaces and with no CNI."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.pod_devices import DevicePattern, NotFound, PodDevice, PodDevices, pod_links
from tests.support.wires import Wires

ONE, TWO = "02:00:00:00:00:01", "02:00:00:00:00:02"


@pytest.fixture
def wires() -> Iterator[Wires]:
    with Wires() as wires:
        yield wires


def look(wires: Wires, *patterns: str, uplinks: tuple[str, ...] = ()) -> PodDevices:
    return wires.node.call(PodDevices.look, DevicePattern(patterns, uplinks))


def found(devices: PodDevices, address: str) -> tuple[str, str]:
    device = devices.find(ip_address(address))
    assert isinstance(device, PodDevice), device
    return device.name, device.pod_mac


def reason(devices: PodDevices, address: str) -> str:
    missing = devices.find(ip_address(address))
    assert isinstance(missing, NotFound), missing
    return str(missing)


def test_a_routed_veth_is_found_by_its_host_routes_in_both_families(wires: Wires) -> None:
    wires.routed("v1", wires.namespace("one"), "10.1.0.2/32", "fd00:1::2/128", mac=ONE)
    wires.routed("v2", wires.namespace("two"), "10.1.0.3/32", "fd00:1::3/128", mac=TWO)
    devices = look(wires)
    assert found(devices, "10.1.0.2") == found(devices, "fd00:1::2") == ("v1", ONE)
    assert found(devices, "10.1.0.3") == found(devices, "fd00:1::3") == ("v2", TWO)
    assert {str(address) for address in devices.routed} == {
        "10.1.0.2",
        "10.1.0.3",
        "fd00:1::2",
        "fd00:1::3",
    }


def test_a_port_of_a_bridge_is_found_before_anybody_has_talked(wires: Wires) -> None:
    wires.bridge("br0", "10.2.0.1/24", "fd00:2::1/64")
    wires.bridged("p1", "br0", wires.namespace("one"), "10.2.0.2/24", "fd00:2::2/64", mac=ONE)
    wires.bridged("p2", "br0", wires.namespace("two"), "10.2.0.3/24", "fd00:2::3/64", mac=TWO)
    devices = look(wires)
    assert found(devices, "10.2.0.2") == found(devices, "fd00:2::2") == ("p1", ONE)
    assert found(devices, "10.2.0.3") == found(devices, "fd00:2::3") == ("p2", TWO)
    assert reason(devices, "10.2.0.9") == "it is behind no port of bridge br0 that could be a pod's"
    assert devices.routed == {}  # behind a bridge may be anything: who has to tell which are pods


def test_the_other_end_knows_better_than_old_neighbours(wires: Wires) -> None:
    wires.routed("v1", wires.namespace("one"), "10.1.0.2/32", mac=ONE)
    wires.neighbour("v1", "10.1.0.2", TWO)
    assert found(look(wires), "10.1.0.2") == ("v1", ONE)


def test_what_has_no_other_end_is_known_by_its_neighbours(wires: Wires) -> None:
    wires.tap("tap1", "10.1.0.2/32")
    assert reason(look(wires), "10.1.0.2") == "its route leads to tap1, which is no device of a pod"
    assert "no MAC is known" in reason(look(wires, "tap*"), "10.1.0.2")
    wires.neighbour("tap1", "10.1.0.2", TWO)
    assert found(look(wires, "tap*"), "10.1.0.2") == ("tap1", TWO)


def test_only_devices_that_may_be_pods_are(wires: Wires) -> None:
    wires.routed("v1", wires.namespace("one"), "10.1.0.2/32", mac=ONE)
    wires.routed("w1", wires.namespace("two"), "10.1.0.3/32", mac=TWO)
    for patterns in (("v*",), ("v+",), ("x*", "v?")):
        assert found(look(wires, *patterns), "10.1.0.2")[0] == "v1"
        assert (
            reason(look(wires, *patterns), "10.1.0.3") == "its route leads to w1, which is no device of a pod"
        )
    assert len(look(wires, "v*").routed) == 1
    assert "no device of a pod" in reason(look(wires, uplinks=("v1",)), "10.1.0.2")


def test_the_way_out_is_no_pod(wires: Wires) -> None:
    wires.routed("v1", wires.namespace("one"), "10.1.0.2/32", "0.0.0.0/0", mac=ONE)
    assert "v1, which is no device of a pod" in reason(look(wires), "10.1.0.2")


def test_what_is_not_known_is_not_guessed(wires: Wires) -> None:
    wires.bridge("br0", "10.2.0.1/24")
    wires.routed("v1", wires.namespace("one"), "10.1.0.2/32", mac=ONE)
    devices = look(wires)
    assert reason(devices, "10.2.0.1") == "it is an address of the node itself"
    assert reason(devices, "10.1.0.9") == "no route leads to it, and no device's other end has it"


def test_without_a_route_the_other_end_tells(wires: Wires) -> None:
    one, two = wires.namespace("one"), wires.namespace("two")
    wires.bridge("br0")
    wires.bridged("p1", "br0", one, "10.2.0.2/24", mac=ONE)
    assert found(look(wires), "10.2.0.2") == ("p1", ONE)
    wires.bridged("p2", "br0", two, "10.2.0.2/24", mac=TWO)
    assert reason(look(wires), "10.2.0.2") == "it is behind more than one device: p1, p2"


def test_an_address_that_has_moved_is_found_where_its_route_leads(wires: Wires) -> None:
    one, two = wires.namespace("one"), wires.namespace("two")
    wires.routed("v1", one, "10.1.0.2/32", mac=ONE)
    wires.routed("v2", two, "10.1.0.3/32", mac=TWO)
    wires.reroute("10.1.0.2", "v2")
    assert found(look(wires), "10.1.0.2") == ("v2", TWO)


def test_a_device_made_anew_is_another(wires: Wires) -> None:
    wires.routed("v1", wires.namespace("one"), "10.1.0.2/32", mac=ONE)
    before = look(wires).find(ip_address("10.1.0.2"))
    wires.delete("v1")
    assert "no route" in reason(look(wires), "10.1.0.2")
    wires.routed("v1", wires.namespace("again"), "10.1.0.2/32", mac=ONE)
    after = look(wires).find(ip_address("10.1.0.2"))
    assert isinstance(before, PodDevice)
    assert isinstance(after, PodDevice)
    assert (after.name, after.index == before.index) == ("v1", False)


def test_a_namespace_that_ends_is_no_trouble(wires: Wires) -> None:
    with NetNs.create(f"{wires.name}-short") as short:
        wires.routed("v1", short, "10.1.0.2/32", mac=ONE)
        assert found(look(wires), "10.1.0.2") == ("v1", ONE)
    for _ in range(20):  # while the kernel takes it apart
        look(wires).find(ip_address("10.1.0.2"))


def test_who_is_held_for_a_pod_before_anything_is_known_of_it(wires: Wires) -> None:
    def held(*patterns: str) -> set[str]:
        return wires.node.call(pod_links, DevicePattern(patterns, ("eth0",)))

    wires.uplink("eth0", wires.namespace("out"), "192.0.2.1/24", out=("192.0.2.2/24",))
    wires.uplink("eth1", wires.namespace("peer"), "192.0.3.1/24", "fd00:3::1/64", out=(), end="eth1")
    wires.bridge("docker0", "172.17.0.1/16")
    wires.bridged("veth1", "docker0", wires.namespace("container"), "172.17.0.2/16", mac=ONE)
    wires.routed("lxc1", wires.namespace("new"), mac=TWO)
    wires.routed("vpn1", wires.namespace("vpn"), mac=ONE)
    wires.node.call(pair)
    assert held() == {"lxc1", "vpn1"}
    assert held("!vpn*") == {"lxc1"}
    assert held("veth*", "lxc+") == {"veth1", "lxc1"}
    wires.address("vpn1", "10.8.0.1/24")
    assert held() == {"lxc1"}


def pair() -> None:
    with Netlink() as net:
        net.create_veth("both", "ends")
