"""A node with an agent, seen from outside: its ports, its addresses, its uplinks."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from k8sdatapath.net.netns import NetNs
from tests.support.agents import NodeUnderTest, answers, ask, seen_by, service, slices, write

pytestmark = pytest.mark.timeout(300)


def test_pods_leave_under_the_addresses_of_the_node(manifests: Path) -> None:
    options = {
        "bpf": {"masquerade": True},
        "enableIPv6Masquerade": False,
        "ipv4NativeRoutingCIDR": "10.0.0.0/8",
    }
    with NodeUnderTest([f"--source={manifests}"], **options) as node:
        client = node.pod("client", 2)
        node.start()
        assert seen_by(node.outside, client, "192.0.2.101") == "192.0.2.11"
        assert seen_by(node.outside, client, "2001:db8:2::101") == "fd00:1:1::2"


def test_node_ports_are_at_addresses_that_come_later(node: NodeUnderTest) -> None:
    node.pod("web", 3)
    node.start()
    node.wires.address("eth0", "192.0.2.12/24")
    node.until(lambda: answers(node.outside, "192.0.2.12", 30080))


def test_load_balancers_are_told_whether_the_node_serves(node: NodeUnderTest, manifests: Path) -> None:
    """Somebody has the port at first; then the node has an endpoint, is not well, and has none."""
    node.pod("web", 3)
    port = 32000
    balanced = service(
        "web", "10.96.0.10", "fd00:96::10", type="LoadBalancer", healthCheckNodePort=port,
        externalTrafficPolicy="Local",
    )  # fmt: skip

    def told(number: int) -> tuple[int, int, bool]:
        status, body = node.ask_http(node.outside, node.addresses[number], port)
        found = json.loads(body)
        assert found["service"] == {"namespace": "shop", "name": "web"}
        return status, found["localEndpoints"], found["serviceProxyHealthy"]

    with node.wires.node.call(socket.create_server, (node.addresses[0], port)):
        write(manifests, "web", [balanced, *slices("web", [(1, 3)])])
        node.start()
        node.until(lambda: any(f"{node.addresses[0]} port {port} cannot be" in e for e in node.messages()))
        node.until(lambda: told(1) == (200, 1, True))
    node.until(lambda: answers_http(node, port))
    assert told(0) == (200, 1, True)
    pin = next((node.pins.path).rglob("kd_frontends"))
    pin.unlink()
    assert node.probe("healthz")[0] == 503
    assert told(0) == told(1) == (503, 1, False)
    node.stop()
    node.start()
    node.until(lambda: answers_http(node, port))
    leaving = slices("web", [(1, 3)])
    for each in leaving:
        each["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    write(manifests, "web", [balanced, *leaving])
    node.until(lambda: told(0) == told(1) == (503, 0, True))


def answers_http(node: NodeUnderTest, port: int) -> bool:
    """Whether somebody listens for health checks."""
    try:
        return node.ask_http(node.outside, node.addresses[0], port)[0] == 200
    except OSError:
        return False


def sysctl(netns: NetNs, name: str, value: str) -> None:
    netns.call(Path("/proc/sys/net/ipv4", name).write_text, value)


def test_node_ports_that_sockets_are_given_by_chance_are_told(node: NodeUnderTest) -> None:
    sysctl(node.wires.node, "ip_local_port_range", "32000 60999")
    node.start()
    node.until(lambda: any("node ports from 32000 to 32767 are given" in each for each in node.messages()))
    node.stop()
    sysctl(node.wires.node, "ip_local_reserved_ports", "31990-32700,32701-32767")
    node.start()
    assert not any("node ports from" in each for each in node.messages())


def test_a_hangup_moves_node_ports(node: NodeUnderTest) -> None:
    node.pod("web", 3)
    node.start()
    first, second = node.addresses
    node.tell_again(nodePort={"addresses": ["2001:db8::/32"]})
    node.until(lambda: not answers(node.outside, first, 30080))
    assert answers(node.outside, second, 30080)
    node.tell_again(nodePort={"addresses": ["192.0.2.0/24"]})
    node.until(lambda: answers(node.outside, first, 30080))
    node.until(lambda: not answers(node.outside, second, 30080))


def test_an_uplink_that_is_made_anew_is_attached_anew(manifests: Path) -> None:
    options = {"bpf": {"masquerade": True}, "enableIPv6Masquerade": False}
    with NodeUnderTest([f"--source={manifests}"], ipv4NativeRoutingCIDR="10.0.0.0/8", **options) as node:
        client = node.pod("client", 2)
        node.pod("web", 3)
        node.start()
        assert answers(node.outside, node.addresses[0], 30080)
        node.wires.delete("eth0")
        node.make_uplink()
        node.until(lambda: any("made anew and are attached: eth0" in each for each in node.messages()))
        node.until(lambda: answers(node.outside, node.addresses[0], 30080))
        node.until(lambda: answers(node.outside, node.addresses[1], 30080))
        node.until(lambda: seen_by(node.outside, client, "192.0.2.101") == "192.0.2.11")
        node.stop()
        assert answers(node.outside, node.addresses[0], 30080)  # the new link is pinned as the old one was
        assert ask(client, "10.96.0.10") == "web"
