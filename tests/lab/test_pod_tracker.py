"""Pods come into the datapath and leave it by themselves, as their devices and routes do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest
from attrs import evolve

from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.pod_devices import DevicePattern
from k8sdatapath.node import Capacity, Node, NodeConfig, PodTracker
from k8sdatapath.pins import PinDir
from tests.support.agents import Server, ask
from tests.support.wires import Wires

SMALL = Capacity(services=64, backends=256, slots=1024, flows=1024, pods=16)
CLIENT, ONE, TWO = (f"02:00:00:00:00:{number:02}" for number in (1, 2, 3))
FRONTS = {4: "10.96.0.10", 6: "fd00:96::10"}


@pytest.fixture
def wires() -> Iterator[Wires]:
    with Wires() as wires:
        wires.routed("v0", wires.namespace("client"), "10.1.0.2/32", "fd00:1::2/128", mac=CLIENT)
        yield wires


@pytest.fixture
def config(wires: Wires) -> Iterator[NodeConfig]:
    pins = PinDir(f"/sys/fs/bpf/{wires.name}")
    yield NodeConfig(netns=wires.node, pins=pins, capacity=SMALL)
    pins.remove()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def attached(tracker: PodTracker) -> dict[str, str]:
    return {str(each.address): each.device for each in tracker.statuses if each.device}


def problems(tracker: PodTracker) -> dict[str, str]:
    return {each.pod: each.problem for each in tracker.statuses if each.problem}


def services(four: str, six: str) -> list[Service]:
    return [
        Service(FRONTS[4], 80, backends=[Backend(four, 8080)]),
        Service(FRONTS[6], 80, backends=[Backend(six, 8080)]),
    ]


def test_routed_pods_reach_services_and_nobody_named_them(wires: Wires, config: NodeConfig) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(Node.open(config))
        tracker = stack.enter_context(PodTracker(node, DevicePattern(("v*",)), complete=True))
        node.services.upsert(*services("10.1.0.3", "fd00:1::3"))
        client = stack.enter_context(NetNs.open(f"{wires.name}-client"))
        one = wires.namespace("one")
        wires.routed("v1", one, "10.1.0.3/32", "fd00:1::3/128", mac=ONE)
        stack.enter_context(closing(Server(one, "one")))
        until(lambda: len(attached(tracker)) == 4)
        assert [ask(client, front) for front in FRONTS.values()] == ["one", "one"]

        wires.delete("v1")  # the pod is made anew, with the same device and addresses
        until(lambda: len(attached(tracker)) == 2)
        until(lambda: config.pins and "from_pod-v1" not in config.pins.links)
        two = wires.namespace("two")
        wires.routed("v1", two, "10.1.0.3/32", "fd00:1::3/128", mac=TWO)
        stack.enter_context(closing(Server(two, "two")))
        until(lambda: len(attached(tracker)) == 4)
        assert [ask(client, front) for front in FRONTS.values()] == ["two", "two"]


def test_an_address_that_moves_takes_its_traffic_along(wires: Wires, config: NodeConfig) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(Node.open(config))
        tracker = stack.enter_context(PodTracker(node, DevicePattern(), complete=True))
        client = stack.enter_context(NetNs.open(f"{wires.name}-client"))
        node.services.upsert(*services("10.1.0.3", "fd00:1::3"))
        for number, mac in (("1", ONE), ("2", TWO)):
            pod = wires.namespace(number)
            wires.routed(f"v{number}", pod, mac=mac)
            wires.dress(pod, "10.1.0.3/32", "fd00:1::3/128")
            stack.enter_context(closing(Server(pod, number)))
        for device in ("v1", "v2", "v1"):
            wires.reroute("10.1.0.3", device)
            wires.reroute("fd00:1::3", device)
            until(lambda device=device: attached(tracker).get("fd00:1::3") == device)
            until(lambda device=device: attached(tracker).get("10.1.0.3") == device)
            assert {ask(client, front) for front in FRONTS.values()} == {device[1:]}
            assert {pod.device for pod in node.pods} == {"v0", device}


def test_pods_behind_a_bridge_are_found_when_they_are_named(wires: Wires, config: NodeConfig) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(Node.open(config))
        tracker = stack.enter_context(PodTracker(node, DevicePattern()))
        wires.bridge("br0", "10.2.0.1/24", "fd00:2::1/64")
        client, one = wires.namespace("bridged-client"), wires.namespace("one")
        wires.bridged("p0", "br0", client, "10.2.0.2/24", "fd00:2::2/64", mac=CLIENT)
        wires.bridged("p1", "br0", one, "10.2.0.3/24", "fd00:2::3/64", mac=ONE)
        wires.default_route(client, "10.2.0.1", "fd00:2::1")
        stack.enter_context(closing(Server(one, "one")))
        node.services.upsert(*services("10.2.0.3", "fd00:2::3"))
        named = {
            "shop/client": [ip_address("10.2.0.2"), ip_address("fd00:2::2")],
            "shop/one": [ip_address("10.2.0.3"), ip_address("fd00:2::3")],
            "shop/late": [ip_address("10.2.0.4")],
        }
        tracker.update(named, complete=True)
        assert tracker.wait(10)
        assert problems(tracker) == {"shop/late": "it is behind no port of bridge br0 that could be a pod's"}
        assert attached(tracker)["10.2.0.3"] == "p1"
        assert [ask(client, front) for front in FRONTS.values()] == ["one", "one"]
        wires.bridged("p2", "br0", wires.namespace("late"), "10.2.0.4/24", mac=TWO)
        until(lambda: attached(tracker).get("10.2.0.4") == "p2")
        assert problems(tracker) == {}


def test_what_an_earlier_process_attached_stays_until_all_pods_are_told(
    wires: Wires, config: NodeConfig
) -> None:
    wires.bridge("br0", "10.2.0.1/24")
    wires.bridged("p1", "br0", wires.namespace("one"), "10.2.0.3/24", mac=ONE)
    wires.bridged("p2", "br0", wires.namespace("two"), "10.2.0.4/24", mac=TWO)
    stays, goes, gone = map(ip_address, ("10.2.0.3", "10.2.0.4", "10.1.0.77"))
    wires.routed("v7", wires.namespace("seven"), f"{gone}/32", mac=TWO)
    with Node.open(config) as node, PodTracker(node, DevicePattern()) as tracker:
        tracker.update({"a/stays": [stays], "a/goes": [goes]}, complete=True)
        assert tracker.wait(10)
        assert {pod.device for pod in node.pods} == {"v0", "v7", "p1", "p2"}
    wires.delete("v7")
    with Node.open(config) as node, PodTracker(node, DevicePattern()) as tracker:
        assert tracker.wait(10)
        assert {pod.device for pod in node.pods} == {"v0", "p1", "p2"}  # v7 is no more
        tracker.update({"a/stays": [stays]}, complete=False)
        assert tracker.wait(10)
        assert {pod.device for pod in node.pods} == {"v0", "p1", "p2"}
        tracker.update({"a/stays": [stays]}, complete=True)
        assert tracker.wait(10)
        assert {pod.device: pod.addresses for pod in node.pods if pod.device != "v0"} == {"p1": {stays}}


def test_a_device_keeps_its_programs_while_an_address_is_behind_it(wires: Wires, config: NodeConfig) -> None:
    one, other = ip_address("10.1.0.2"), ip_address("fd00:1::2")
    with Node.open(config) as node:
        node.attach_pod("v0", [one, other], pod_mac=CLIENT)
        node.detach_pod("v0", [one])
        assert [(pod.device, pod.addresses) for pod in node.pods] == [("v0", {other})]
        node.detach_pod("v0", [other])
        assert node.pods == ()


def test_what_is_left_behind_a_device_is_cut_off(wires: Wires, config: NodeConfig) -> None:
    """Also at a port of a bridge, which nobody takes for a pod's; for as long as the device is there."""
    bridged, routed = ip_address("10.2.0.3"), ip_address("10.1.0.2")
    wires.bridge("br0", "10.2.0.1/24")
    wires.bridged("p1", "br0", wires.namespace("one"), f"{bridged}/24", mac=ONE)
    with (
        Node.open(evolve(config, policy=True)) as node,
        PodTracker(node, DevicePattern(), isolate=True) as tracker,
    ):
        tracker.update({"a/one": [bridged]}, complete=True)
        assert tracker.wait(10)
        assert {pod.device: bridged in pod.addresses for pod in node.pods} == {"v0": False, "p1": True}
        tracker.update({}, complete=True)
        assert tracker.wait(10)
        wires.unroute("v0", str(routed), "fd00:1::2")
        until(lambda: [pod.addresses for pod in node.pods] == [frozenset()] * 2)
        wires.bridged("p2", "br0", wires.namespace("two"), "10.2.0.4/24", mac=TWO)  # a reason to look again
        tracker.update({"a/two": [ip_address("10.2.0.4")]}, complete=True)
        assert tracker.wait(10)
        assert config.pins is not None
        assert {"from_pod-v0", "to_pod-v0", "from_pod-p1", "to_pod-p1"} < set(config.pins.links)
        for device in ("v0", "p1"):
            wires.delete(device)
        until(lambda: {pod.device for pod in node.pods} == {"p2"})


def test_no_room_for_a_pod_is_told(wires: Wires, config: NodeConfig) -> None:
    crowd = [f"10.9.0.{number}/32" for number in range(1, 20)]
    wires.routed("v9", wires.namespace("crowd"), *crowd, mac=TWO)
    with Node.open(config) as node, PodTracker(node, DevicePattern(), complete=True) as tracker:
        assert tracker.wait(10)
        told = [each for each in tracker.statuses if each.problem]
        assert {str(each.address) for each in told} >= {"10.9.0.1", "10.9.0.19"}
        assert "kd_endpoints" in told[0].problem
        wires.delete("v9")
        until(lambda: not any(each.problem for each in tracker.statuses))
        assert attached(tracker) == {"10.1.0.2": "v0", "fd00:1::2": "v0"}
