"""Several nodes with an agent each: side by side, and whose pods reach each other."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from ipaddress import ip_interface
from pathlib import Path

import pytest

from k8sdatapath.datapath.direct_routes import DirectRoutes
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from tests.support.agents import (
    WEB,
    Callers,
    NodeUnderTest,
    ask,
    in_cgroup,
    kube_node,
    slices,
    two_nodes,
    write,
)

pytestmark = pytest.mark.timeout(300)


def test_two_agents_side_by_side_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes, clients = [], []
        for number in (1, 2):  # with the same services, at other pods
            directory = tmp_path / str(number)
            directory.mkdir()
            write(directory, "web", [WEB, *slices("web", [(number, 3)], node=f"node-{number}")])
            node = stack.enter_context(NodeUnderTest([f"--source={directory}"], number=number))
            nodes.append(node)
            clients.append(node.pod(f"client{number}", 2))
            node.pod(f"web{number}", 3)
        for node in nodes:
            node.start()
        one, two = nodes
        assert [ask(client, "10.96.0.10") for client in clients] == ["web1", "web2"]
        with in_cgroup(one) as dial_one, in_cgroup(two) as dial_two:
            assert (dial_one("10.96.0.10"), dial_two("10.96.0.10")) == ("web1", "web2")
        assert ask(two.outside, "192.0.2.11", 30080) == "web2"
        pinned = two.pins.links, two.pins.maps
        with Callers(clients[1], "10.96.0.10") as callers:
            assert one.stop() == 0
            assert one.cleanup().returncode == 0
            assert not one.pins.path.exists()
            made = callers.made
            two.until(lambda: callers.made > made + 20)
        assert callers.failures == []
        assert (two.pins.links, two.pins.maps) == pinned
        assert two.probe("healthz")[0] == 200
        assert ask(two.outside, "192.0.2.11", 30080) == "web2"


def test_pods_of_other_nodes_are_reached_through_a_tunnel(tmp_path: Path) -> None:
    with two_nodes(f"--source={tmp_path}", tunnel=True) as nodes:
        one, two = nodes
        client = one.pod("client", 2)
        two.pod("far", 3)
        write(tmp_path, "all", [WEB, *slices("web", [(2, 3)], node="node-2"), *map(kube_node, nodes)])
        for node in nodes:
            node.start()
        assert {ask(client, address) for address in ("10.96.0.10", "fd00:96::10")} == {"far"}
        assert ask(client, "10.1.2.3", 8080) == "far"
        assert ask(one.outside, one.addresses[0], 30080) == "far"
        stray = kube_node(two, ("192.0.2.77",)) | {"metadata": {"name": "node-3"}}
        write(tmp_path, "stray", [stray])
        one.until(lambda: "nodes node-2 and node-3 both have the pods" in one.probe("healthz")[1])
        assert ask(client, "10.1.2.3", 8080) == "far"
        (tmp_path / "stray.yaml").unlink()
        one.until(lambda: one.probe("healthz")[0] == 200)
        for node in nodes:
            assert node.stop() == 0
        assert ask(client, "10.96.0.10") == "far"
        for node in nodes:
            done = node.cleanup()
            assert "device kdtunnel" in done.stdout
            assert "kdtunnel" not in dict(node.wires.node.call(socket.if_nameindex)).values()


def test_pods_of_other_nodes_are_reached_by_routes_that_the_agent_makes(tmp_path: Path) -> None:
    options = {"routingMode": "native", "autoDirectNodeRoutes": True}
    with two_nodes(f"--source={tmp_path}", **options) as nodes:
        one, two = nodes
        one.wires.node.call(neighbours, two.wires.node)
        two.wires.node.call(take_place, 2)
        near = {node: (f"198.51.100.{node.number}", f"2001:db8:100::{node.number}") for node in nodes}
        client = one.pod("client", 2)
        two.pod("far", 3)
        services = [WEB, *slices("web", [(2, 3)], node="node-2")]
        write(tmp_path, "all", [*services, *(kube_node(node, near[node]) for node in nodes)])
        for node in nodes:
            node.start("--uplink=near")
        for address in "10.96.0.10", "fd00:96::10":
            assert ask(client, address) == "far"
        for address in "10.1.2.3", "fd00:1:2::3":
            assert ask(client, address, 8080) == "far"
        assert ask(one.outside, one.addresses[0], 30080) == "far"
        routes = DirectRoutes(netns=one.wires.node)
        made_routes = {"10.1.2.0/24": "198.51.100.2", "fd00:1:2::/64": "2001:db8:100::2"}
        assert {str(network): str(node) for network, node in routes.dump().items()} == made_routes
        assert one.stop(signal.SIGKILL) == -signal.SIGKILL
        assert ask(client, "10.1.2.3", 8080) == "far"
        one.start("--uplink=near")
        write(tmp_path, "all", [*services, kube_node(one, near[one])])
        one.until(lambda: not routes.dump())  # the other node has gone
        write(tmp_path, "all", [*services, *(kube_node(node, near[node]) for node in nodes)])
        one.until(lambda: len(routes.dump()) == 2)
        for node in nodes:
            assert node.stop() == 0
            assert "2 routes to pods of other nodes" in node.cleanup().stdout
        assert not routes.dump()


def neighbours(other: NetNs) -> None:
    """A link between two nodes, which are then neighbours."""
    with Netlink() as net:
        net.create_veth("near", "near", peer_netns=other)
    take_place(1)


def take_place(number: int) -> None:
    with Netlink() as net:
        net.set_up("near")
        for address in f"198.51.100.{number}/24", f"2001:db8:100::{number}/64":
            net.add_address("near", ip_interface(address))
