"""The agent as people run it: a process, on nodes without any CNI, fed by manifests or an API server."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8sdatapath.agent.options import OPTIONS
from k8sdatapath.datapath.direct_routes import DirectRoutes
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from tests.api.graph import ROOT
from tests.support.agents import (
    SMALL,
    Callers,
    NodeUnderTest,
    ask,
    in_cgroup,
    plugin,
    seen_by,
    service,
    slices,
    write,
    write_kubeconfig,
)
from tests.support.api_double import ApiDouble, Query, Refusal
from tests.support.chaos import SECONDS

pytestmark = pytest.mark.timeout(300)

WEB = service("web", "10.96.0.10", "fd00:96::10", node_port=30080)


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(directory, "web", [WEB, *slices("web", [(1, 3)])])
    return directory


@pytest.fixture
def node(manifests: Path) -> Iterator[NodeUnderTest]:
    with NodeUnderTest([f"--source={manifests}"]) as node:
        yield node


def test_pods_the_node_and_the_outside_reach_services(node: NodeUnderTest, manifests: Path) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    assert {ask(client, address) for address in ("10.96.0.10", "fd00:96::10")} == {"web"}
    assert {ask(node.outside, address, 30080) for address in node.addresses} == {"web"}
    with in_cgroup(node) as dial:
        assert [dial("10.96.0.10"), dial("fd00:96::10")] == ["web", "web"]
    assert json.loads(node.probe("healthz")[1])["status"] == "ok"

    late = node.pod("late", 4)  # pods come while it runs, and are clients and backends at once
    write(manifests, "web", [WEB, *slices("web", [(1, 4)])])
    node.until(lambda: ask(client, "10.96.0.10") == "late")
    node.until(lambda: any("10.1.1.4" in str(line.get("address")) for line in node.log))
    assert ask(late, "fd00:96::10") == "late"

    status, metrics = node.probe("metrics")
    assert status == 200
    told = dict(re.findall(r"^(\w+)(?:\{[^}]*\})? ([0-9.e+]+)$", metrics, re.MULTILINE))
    assert float(told["k8sdatapath_services"]) == 2
    assert 'k8sdatapath_pod_addresses{state="attached"} 6.0' in metrics
    assert 'k8sdatapath_packets_total{drop="false",outcome="to_pod"}' in metrics
    assert 'k8sdatapath_map_capacity{map="kd_frontends"} 256.0' in metrics
    assert "kubeproxy_network_programming_duration_seconds_bucket" in metrics

    assert node.stop() == 0
    assert "stopping; the datapath goes on" in node.messages()
    assert ask(client, "10.96.0.10") == "late"
    assert ask(node.outside, "192.0.2.11", 30080) == "late"


def test_killed_and_started_again_under_traffic(node: NodeUnderTest, manifests: Path) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.pod("other", 4)
    node.start()
    with Callers(client, "10.96.0.10") as inside, Callers(node.outside, "192.0.2.11", 30080) as outside:
        for endpoints in ([(1, 4)], [(1, 3), (1, 4)], [(1, 3)]):
            node.stop(signal.SIGKILL)
            write(manifests, "web", [WEB, *slices("web", endpoints)])
            made = inside.made
            node.until(lambda made=made: inside.made > made + 20)  # nobody runs, and it goes on
            node.start()
        expected = "web"
        node.until(lambda: ask(client, "10.96.0.10") == expected)
        made = outside.made
        node.until(lambda: outside.made > made + 20)
    assert (inside.failures, outside.failures) == ([], [])


def test_a_graceful_stop_leaves_it_and_cleanup_takes_all_of_it(node: NodeUnderTest) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    refused = node.cleanup()
    assert refused.returncode == 1
    assert re.search(r"process \d+ has it", refused.stderr)
    assert node.stop(signal.SIGINT) == 0
    assert ask(client, "10.96.0.10") == "web"
    done = node.cleanup()
    assert done.returncode == 0, done.stderr
    assert "from_uplink-eth0" in done.stdout
    assert not node.pins.path.exists()
    with pytest.raises(OSError, match=r"timed out|route|unreachable|refused"):
        ask(client, "10.96.0.10", timeout=0.5)
    again = node.cleanup()
    assert (again.returncode, again.stdout) == (0, "none\n")


def test_cleanup_takes_nothing_that_an_agent_has_not_made(node: NodeUnderTest, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    file = directory / "file"
    file.write_text("precious")
    node.arguments.remove("--pod-device-pattern=v*")
    for path in (directory, file):  # a word too few, or too many
        done = node.cleanup(f"--cni-socket={path}")
        assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr
    assert file.read_text() == "precious"
    other = directory / "containerd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other))
        listener.listen()
        assert node.cleanup(f"--cni-socket={other}").stdout == "none\n"
        assert other.is_socket()
    assert str(other) in node.cleanup(f"--cni-socket={other}").stdout  # as one that was killed leaves it


def test_what_keeps_it_from_being_ready_is_told(node: NodeUnderTest, manifests: Path) -> None:
    (manifests / "bad.yaml").write_text("a: [")
    node.launch()
    node.until(lambda: any("bad.yaml: line 2" in each for each in node.messages()))
    assert node.probe("readyz")[0] == 503
    assert 'k8sdatapath_objects_wrong{kind="File"} 1.0' in node.probe("metrics")[1]
    (manifests / "bad.yaml").unlink()
    node.until(lambda: node.probe("readyz")[0] == 200)


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
    with ExitStack() as stack:
        nodes: list[NodeUnderTest] = []
        for number in (1, 2):
            options = {
                "routingMode": "tunnel",
                "tunnelAddresses": [f"10.1.{number}.1", f"fd00:1:{number}::1"],
            }
            outside = nodes[0].outside if nodes else None
            made = NodeUnderTest([f"--source={tmp_path}"], number=number, outside=outside, **options)
            nodes.append(stack.enter_context(made))
        one, two = nodes
        client = one.pod("client", 2)
        two.pod("far", 3)
        write(tmp_path, "all", [WEB, *slices("web", [(2, 3)], node="node-2"), *map(kube_node, nodes)])
        for node in nodes:
            node.start()
        assert {ask(client, address) for address in ("10.96.0.10", "fd00:96::10")} == {"far"}
        assert ask(client, "10.1.2.3", 8080) == "far"
        assert ask(one.outside, one.addresses[0], 30080) == "far"
        for node in nodes:
            assert node.stop() == 0
        assert ask(client, "10.96.0.10") == "far"
        for node in nodes:
            done = node.cleanup()
            assert "device kdtunnel" in done.stdout
            assert "kdtunnel" not in dict(node.wires.node.call(socket.if_nameindex)).values()


def test_pods_of_other_nodes_are_reached_by_routes_that_the_agent_makes(tmp_path: Path) -> None:
    options = {"routingMode": "native", "autoDirectNodeRoutes": True}
    with ExitStack() as stack:
        nodes: list[NodeUnderTest] = []
        for number in (1, 2):
            outside = nodes[0].outside if nodes else None
            made = NodeUnderTest([f"--source={tmp_path}"], number=number, outside=outside, **options)
            nodes.append(stack.enter_context(made))
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


def kube_node(node: NodeUnderTest, addresses: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "spec": {"podCIDRs": [f"10.1.{node.number}.0/24", f"fd00:1:{node.number}::/64"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": each} for each in addresses or node.addresses]
        },
    }


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


def answers(client: NetNs, address: str, port: int) -> bool:
    try:
        return bool(ask(client, address, port, timeout=1))
    except OSError:
        return False


def test_a_second_agent_of_one_directory_is_refused(node: NodeUnderTest) -> None:
    node.start()
    first, node.process = node.process, None
    try:
        node.launch("--log-format=text")
        assert node.process is not None
        assert node.process.wait(60) == 1
        node.until(lambda: any(f"process {first.pid} has it" in each for each in node.messages()))
    finally:
        node.process = first


def test_pins_of_another_version_are_refused_and_go_on(node: NodeUnderTest) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    node.stop()
    node.pins.map_path("kd_counters").rename(node.pins.map_path("kd_affinity"))  # another value, as it were
    pinned = node.pins.links, node.pins.maps
    node.launch()
    assert node.process is not None
    assert node.process.wait(60) == 1
    node.until(lambda: any("It was made by another version" in each for each in node.messages()))
    assert any("--cleanup" in each for each in node.messages())
    assert (node.pins.links, node.pins.maps) == pinned
    assert ask(client, "10.96.0.10") == "web"
    assert node.cleanup().returncode == 0
    node.start()
    assert ask(client, "10.96.0.10") == "web"


def test_where_a_plugin_tells_of_pods_none_are_looked_for(node: NodeUnderTest) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    socket_path = node.config.with_name("cni.sock")
    node.arguments = [each for each in node.arguments if not each.startswith("--pod-device-pattern")]
    node.start(f"--cni-socket={socket_path}")
    assert not any(link.startswith("from_pod") for link in node.pins.links)
    plugin(node, socket_path, "client", 2)
    assert ask(client, "10.96.0.10") == "web"
    node.stop(signal.SIGKILL)
    assert ask(client, "10.96.0.10") == "web"
    node.start(f"--cni-socket={socket_path}")
    assert ask(client, "10.96.0.10") == "web"
    node.stop()
    done = node.cleanup(f"--cni-socket={socket_path}")
    assert done.returncode == 0, done.stderr
    assert list(socket_path.parent.iterdir()) == [node.config]


def test_what_is_wrong_is_told_and_what_was_right_goes_on(node: NodeUnderTest, manifests: Path) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    bad = service("bad", "10.96.0.11", "fd00:96::11")
    bad["spec"]["ports"][0]["port"] = 70000
    write(manifests, "bad", [bad])
    node.until(lambda: any("70000 is not a port" in each for each in node.messages()))
    assert ask(client, "10.96.0.10") == "web"
    assert 'k8sdatapath_objects_wrong{kind="File"} 1.0' in node.probe("metrics")[1]
    (manifests / "bad.yaml").unlink()
    node.until(lambda: 'objects_wrong{kind="File"}' not in node.probe("metrics")[1])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "not in a cluster"),
        (["--kubeconfig=/nonexistent"], {}, "/nonexistent"),
        (["--source=/tmp"], {"uplinks": ["nosuch"]}, "nosuch"),
        (["--source=/tmp"], {"uplinks": ["lo"], "loadBalancer": {"acceleration": "native"}}, "native XDP"),
    ],
)
def test_an_agent_that_cannot_start_leaves_nothing(
    source: list[str], options: dict[str, Any], message: str
) -> None:
    with NodeUnderTest(source, **options) as node:
        if "uplinks" in options:
            node.arguments.remove("--uplink=eth0")
        node.launch()
        assert node.process is not None
        assert node.process.wait(60) == 1
        node.until(lambda: any(message in each for each in node.messages()))
        assert {"level", "message"} < node.log[-1].keys()  # to its end a program can read it
        assert message in node.log[-1]["message"]
        assert not node.pins.path.exists()


def test_a_hangup_changes_how_much_is_told(node: NodeUnderTest) -> None:
    node.start()
    node.tell_again(log={"level": "debug"})
    node.probe("livez")
    node.until(lambda: any(line.get("level") == "debug" for line in node.log))
    node.tell_again(writeEvents=True, socketLB={"enabled": False})
    node.until(
        lambda: any("needs a new start: socketLB.enabled, writeEvents" in each for each in node.messages())
    )
    node.config.write_text("nosuch: 1")
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    node.until(lambda: any("nosuch: unknown" in each for each in node.messages()))
    assert node.probe("readyz")[0] == 200


def test_a_hangup_makes_room_for_services_and_what_did_not_fit_was_told(
    node: NodeUnderTest, manifests: Path
) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    many = [service(f"s{n}", f"10.96.1.{n}", f"fd00:96:1::{n}") for n in range(1, 200)]
    write(manifests, "many", many)
    node.until(lambda: node.probe("readyz")[0] == 503)
    finding = json.loads(node.probe("readyz")[1])["checks"]["all services"]
    assert re.search(r"^\d+ not in the kernel as wanted, such as .* too many", finding)
    assert node.probe("healthz")[0] == 200  # a load balancer goes on: what fits is served
    assert re.search(r"^k8sdatapath_services_failed [1-9]", node.probe("metrics")[1], re.MULTILINE)
    with Callers(client, "10.96.0.10") as callers:
        node.tell_again(capacity={**SMALL, "services": 1024})
        node.until(lambda: node.probe("readyz")[0] == 200)
        node.tell_again(capacity=SMALL)
        node.until(lambda: any("tables keep their sizes" in each for each in node.messages()))
    assert callers.failures == []
    assert 'k8sdatapath_map_capacity{map="kd_frontends"} 1024.0' in node.probe("metrics")[1]
    assert "k8sdatapath_services_failed 0.0" in node.probe("metrics")[1]


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
    assert not answers(node.outside, second, 30080)


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


# -- with an API server --


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    with (
        NodeUnderTest([f"--kubeconfig={tmp_path / 'config'}"]) as node,
        node.wires.node.call(ApiDouble) as api,
    ):
        write_kubeconfig(tmp_path / "config", api.url)
        yield node, api


def pod(name: str, *addresses: str, node: str = "node-1") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": each} for each in addresses]},
    }


def test_a_cluster_is_followed(served: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = served
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.pod("other", 4)
    api.put("services", WEB)
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    node.start()
    assert ask(client, "10.96.0.10") == "web"
    assert ask(node.outside, "192.0.2.11", 30080) == "web"
    for each in slices("web", [(1, 4)]):
        api.put("endpointslices", each)
    node.until(lambda: ask(client, "fd00:96::10") == "other")

    reference = (ROOT / "docs/reference/agent.md").read_text()
    families = re.findall(r"^# TYPE ((?:k8sdatapath|kubeproxy)_\w+)", node.probe("metrics")[1], re.MULTILINE)
    assert len(families) > 15
    assert [name for name in families if f"| `{name.removesuffix('_created')}" not in reference] == []

    api.put("pods", pod("lost", "10.1.1.99"))
    node.until(lambda: any("not in the datapath: no route leads to it" in each for each in node.messages()))
    assert 'k8sdatapath_pod_addresses{state="not_found"} 1.0' in node.probe("metrics")[1]
    node.pod("lost", 99)
    node.until(lambda: 'state="not_found"} 0.0' in node.probe("metrics")[1])

    node.stop(signal.SIGKILL)
    api.put("services", service("late", "10.96.0.12", "fd00:96::12"))
    for each in slices("late", [(1, 3)]):
        api.put("endpointslices", each)
    api.delete("services", "shop", "web")
    assert ask(client, "10.96.0.10") == "other"  # nobody knows yet that it has gone
    node.start()
    assert ask(client, "10.96.0.12") == "web"
    with pytest.raises(OSError, match=r"timed out|route|unreachable|refused"):
        ask(client, "10.96.0.10", timeout=0.5)


def test_what_was_recorded_can_be_played_back(
    served: tuple[NodeUnderTest, ApiDouble], tmp_path: Path
) -> None:
    node, api = served
    client = node.pod("client", 2)
    node.pod("web", 3)
    api.put("services", WEB)
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    recording = tmp_path / "cluster.jsonl"
    node.start(f"--record={recording}")
    node.stop()
    assert node.cleanup().returncode == 0
    api.down()
    node.arguments = [each for each in node.arguments if not each.startswith("--kubeconfig")]
    node.start(f"--replay={recording}")
    assert ask(client, "10.96.0.10") == "web"


def test_events_tell_what_is_wrong_with_objects(served: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = served
    node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "writeEvents": True}))
    node.start()
    bad = service("bad", "10.96.0.11", "fd00:96::11")
    bad["spec"]["ports"][0]["port"] = 70000
    api.put("services", bad)
    node.until(lambda: api.written)
    (method, path, told), *_ = api.written
    assert (method, path) == ("POST", "/api/v1/namespaces/shop/events")
    assert "70000 is not a port" in told["message"]
    assert told["involvedObject"]["name"] == "bad"
    assert node.stop() == 0


def test_a_server_that_is_away_changes_nothing(served: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = served
    client = node.pod("client", 2)
    node.pod("web", 3)
    api.put("services", WEB)
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    node.start()
    api.down()
    node.stop()
    node.launch()
    node.until(lambda: node.probe("livez")[0] == 200)
    assert node.probe("readyz")[0] == 503
    assert ask(client, "10.96.0.10") == "web"
    assert ask(node.outside, "192.0.2.11", 30080) == "web"
    node.wires.node.call(api.up)
    node.until(lambda: node.probe("readyz")[0] == 200)
    assert ask(client, "10.96.0.10") == "web"


def storm(api: ApiDouble) -> None:
    """Every watch is told that its version is gone, and every list that there are too many."""

    def refuse(query: Query) -> None:
        raise Refusal(410, "Expired") if query.watch else Refusal(429, "TooManyRequests", retry_after=1)

    api.refuse = refuse
    api.compact()
    api.cut()


def gone_forever(api: ApiDouble) -> None:
    """Lists are answered, and no watch is."""

    def refuse(query: Query) -> None:
        if query.watch:
            raise Refusal(410, "Expired")

    api.refuse = refuse
    api.cut()


@pytest.mark.timeout(SECONDS + 200)
@pytest.mark.parametrize("fault", [ApiDouble.down, storm, gone_forever, ApiDouble.stall])
def test_a_server_that_is_away_for_long_costs_neither_traffic_nor_cpu(
    served: tuple[NodeUnderTest, ApiDouble], fault: Callable[[ApiDouble], object]
) -> None:
    node, api = served
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.pod("other", 4)
    api.put("services", WEB)
    api.put("services", service("gone", "10.96.0.11", "fd00:96::11"))
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    node.start()
    seconds = SECONDS / 4
    with (
        Callers(client, "10.96.0.10", pause=0.01) as inside,
        Callers(node.outside, "192.0.2.11", 30080, pause=0.01) as outside,
    ):
        fault(api)
        used, made, asked = node.cpu(), inside.made, len(api.requests)
        time.sleep(seconds)
        used, made, asked = node.cpu() - used, inside.made - made, len(api.requests) - asked
        print(f"{used:.2f} s of CPU, {made} connections, {asked} requests in {seconds:.0f} s")
        assert node.probe("livez")[0] == 200
        api.delete("services", "shop", "gone")
        for each in slices("web", [(1, 4)]):
            api.put("endpointslices", each)
        api.compact()  # and nobody can tell what has happened meanwhile
        api.refuse = lambda query: None
        api.stall(False)
        if fault is ApiDouble.down:
            node.wires.node.call(api.up)
        node.until(lambda: ask(client, "10.96.0.10") == "other")
        node.until(lambda: "k8sdatapath_services 2.0" in node.probe("metrics")[1])
    assert (inside.failures, outside.failures) == ([], [])
    assert made > 20
    assert used < 0.05 * seconds + 0.2
    assert asked < 200


def test_rights_in_deploy_are_what_is_asked_for(served: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = served
    node.start()
    node.until(lambda: {query.plural for query in api.requests if query.watch} >= {"services", "pods"})
    node.until(lambda: len({query.plural for query in api.requests if query.watch}) == 4)
    asked = {
        (query.api.rpartition("/")[0], query.plural, "watch" if query.watch else "list")
        for query in api.requests
    }
    (role,) = (
        each
        for each in yaml.safe_load_all((ROOT / "deploy/base/rbac.yaml").read_text())
        if each["kind"] == "ClusterRole"
    )
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert asked == allowed


def test_capabilities_in_deploy_are_enough(node: NodeUnderTest) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/base/daemonset.yaml").read_text())
    (container,) = next(documents)["spec"]["template"]["spec"]["containers"]
    names = container["securityContext"]["capabilities"]["add"]
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start(wrapper=["setpriv", f"--bounding-set={bounding}", "--no-new-privs"])
    assert ask(client, "10.96.0.10") == "web"
    with in_cgroup(node) as dial:
        assert dial("10.96.0.10") == "web"
    assert node.stop() == 0


def test_every_flag_is_told_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/agent.md").read_text()
    for word, option in OPTIONS.items():
        if option.flag:
            assert re.search(rf"^\| `--.*`{re.escape(word)}`", reference, re.MULTILINE), word
