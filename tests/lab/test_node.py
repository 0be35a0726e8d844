"""Node: what its configuration says is what is on the hooks, whatever was pinned before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve

from k8sdatapath.errors import (
    AddressInUseError,
    BpffsError,
    KernelError,
    LayoutError,
    ModelError,
    PinsBusyError,
)
from k8sdatapath.lab import Lab
from k8sdatapath.model import Masquerade, Service
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.pins import PinDir
from k8sdatapath.pybpf import progs

SMALL = Capacity(services=64, backends=256, slots=1024, flows=1024, pods=16)
CONNECT4 = 10  # BPF_CGROUP_INET4_CONNECT


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.start(datapath=False) as lab:
        yield lab


@pytest.fixture
def config(lab: Lab) -> Iterator[NodeConfig]:
    pins = PinDir(f"/sys/fs/bpf/kdtest-node-{lab.name}")
    yield NodeConfig(netns=lab.node.netns, cgroup=lab.node.cgroup.path, pins=pins, capacity=SMALL)
    pins.remove()


def on_cgroup(path: Path) -> int:
    """How many programs connect4 runs in a cgroup."""
    number = os.open(path, os.O_RDONLY)
    try:
        return len(progs.query(number, CONNECT4))
    finally:
        os.close(number)


def test_another_cgroup_takes_the_place_of_the_one_before(config: NodeConfig, lab: Lab) -> None:
    assert config.cgroup is not None
    Node.open(config).close()
    assert on_cgroup(config.cgroup) == 1
    with Cgroup.create(f"kdtest-other-{lab.name}") as other:
        Node.open(evolve(config, cgroup=other.path)).close()
        assert (on_cgroup(config.cgroup), on_cgroup(other.path)) == (0, 1)
        Node.open(evolve(config, cgroup=None)).close()
        assert on_cgroup(other.path) == 0


def test_an_uplink_that_is_not_asked_for_any_more_is_left(config: NodeConfig) -> None:
    assert config.pins is not None
    Node.open(evolve(config, uplinks="eth0")).close()
    assert "from_uplink-eth0" in config.pins.links
    Node.open(config).close()
    assert "from_uplink-eth0" not in config.pins.links


def test_a_pin_directory_has_one_node(config: NodeConfig) -> None:
    with Node.open(config) as node, pytest.raises(PinsBusyError):
        Node.open(config)
    with Node.open(config):
        pass
    assert node.config is config


def test_a_device_of_the_same_name_elsewhere_gets_its_own_program(config: NodeConfig, lab: Lab) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    web.serve_http(8080, "web")
    with Node.open(evolve(config, cgroup=None)) as node:
        node.services.upsert(Service("10.96.0.10", 80, backends=[web.at(8080)]))
        for pod in (client, web):
            node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
        assert client.get("http://10.96.0.10").text == "web"
    lab.node.exec(["ip", "link", "set", client.device, "name", "aside"], check=True)
    lab.node.exec(["ip", "link", "add", client.device, "type", "veth", "peer", "name", "far"], check=True)
    with Node.open(evolve(config, cgroup=None)) as node:
        node.detach_pod("aside", client.addresses)
        node.attach_pod(client.device, client.addresses, pod_mac=client.mac)
        devices = lab.node.exec(["ip", "-o", "link", "show", client.device], check=True).stdout
        links = node._hooks._links.items()
        attached = {link.info.ifindex for hook, link in links if hook.place == client.device}
        assert attached == {int(devices.split(":")[0])}


def test_what_cannot_be_attached_is_told_before_anything_is(config: NodeConfig, lab: Lab) -> None:
    pod = lab.pod("web")
    with Node.open(config) as node:
        before = config.pins.links if config.pins else []
        with pytest.raises(ModelError):
            node.attach_pod(pod.device, ["10.244.1.999"], pod_mac=pod.mac)  # type: ignore[list-item]
        with pytest.raises(LayoutError):
            node.attach_pod(pod.device, pod.addresses, pod_mac="no mac")
        assert config.pins is not None
        assert config.pins.links == before


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"backends": (1 << 22) + 1}, {"services": 0}, {"slots": -1}, {"flows": 1.5}):
        with pytest.raises(ModelError, match="cannot be"):
            Capacity(**wrong)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="/nonexistent"):
        Node.open(NodeConfig(cgroup="/nonexistent", capacity=SMALL))


def test_a_pod_does_not_take_over_the_address_of_another(config: NodeConfig, lab: Lab) -> None:
    one, two = lab.pod("one"), lab.pod("two")
    with Node.open(config) as node:
        node.attach_pod(one.device, one.addresses, pod_mac=one.mac)
        with pytest.raises(AddressInUseError, match=f"{one.address} belongs to the pod at {one.device}"):
            node.attach_pod(two.device, [*two.addresses, *one.addresses], pod_mac=two.mac)
        assert config.pins is not None
        assert not [name for name in config.pins.links if two.device in name]
        node.attach_pod(one.device, one.addresses, pod_mac=one.mac)  # the same device: its own
        lab.node.exec(["ip", "link", "del", one.device], check=True)
        node.attach_pod(two.device, one.addresses, pod_mac=two.mac)  # its device is gone: free
        node.detach_pod(one.device, one.addresses)  # late, and of no harm to the new one
        with pytest.raises(AddressInUseError):
            node.attach_pod(lab.pod("three").device, one.addresses, pod_mac=one.mac)


def test_pins_that_somebody_removed_are_missed(config: NodeConfig) -> None:
    assert config.pins is not None
    with Node.open(config) as node:
        node.check_pins()
        config.pins.map_path("kd_conntrack").unlink()
        with pytest.raises(BpffsError, match=r"keep pins: .*a pin was removed: start again"):
            node.check_pins()
        config.pins.remove()
        with pytest.raises(BpffsError, match=r"and [0-9]+ more were removed"):
            node.check_pins()


def test_pods_that_come_and_go_are_not_missed(config: NodeConfig, lab: Lab) -> None:
    pod = lab.pod("pod")
    with Node.open(config) as node, ThreadPoolExecutor(1) as other:

        def come_and_go() -> None:
            for _ in range(20):
                node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
                node.detach_pod(pod.device, pod.addresses)

        going = other.submit(come_and_go)
        while not going.done():
            node.check_pins()
            node.prune()
        going.result()


def test_what_is_not_asked_for_any_more_stays_until_all_else_is_done(config: NodeConfig) -> None:
    assert config.pins is not None
    Node.open(evolve(config, uplinks="eth0")).close()
    with Node.open(config, prune=False) as node:
        assert "from_uplink-eth0" in config.pins.links
        node.prune()
        assert "from_uplink-eth0" not in config.pins.links


def test_a_device_whose_packets_have_no_ethernet_header_is_refused(config: NodeConfig, lab: Lab) -> None:
    """Its packets would be taken for damaged ones, and dropped: all of them."""
    lab.node.exec(["ip", "tuntap", "add", "tun0", "mode", "tun"], check=True)
    for wanted in {"uplinks": "tun0"}, {"masquerade": Masquerade(devices="tun0")}:
        with pytest.raises(KernelError, match=r"tun0.*no Ethernet header"):
            Node.open(evolve(config, **wanted))
    assert config.pins is not None
    assert not config.pins.links
