"""Policies for nodes themselves, between real sockets: what reaches them through uplinks, what they send."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

import pytest

from k8sdatapath import Backend, Frontend, Lab, Service
from k8sdatapath.datapath.explanation import Place
from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.errors import ManifestError, ModelError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Protocol
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import udp
from k8sdatapath.node import NodeConfig
from tests.lab.test_policy import VIPS, denied, pod, reaches

pytestmark = pytest.mark.lab

ONLY_8080 = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: node1}}
  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: "8080", protocol: TCP}, {port: "8080", protocol: UDP}]}]
"""
ONLY_DIALS_8080 = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes-out}
spec:
  nodeSelector: {}
  egress:
  - toEntities: [world, remote-node]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""
OPEN = 7070  # by the guard
FIREWALL = HostFirewall(incoming=[OPEN], outgoing=[OPEN])
NAMES = ("CiliumClusterwideNetworkPolicy nodes", "CiliumClusterwideNetworkPolicy nodes-out")


@pytest.fixture(scope="module", params=["native", "vxlan"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab.start(nodes=2, routing=request.param, policy=True, host_firewall=FIREWALL) as lab:
        outside = lab.external("outside")
        for number, node in enumerate(lab.nodes, 1):
            lab.pod(f"pod{number}", node, labels={"app": "web"}).serve_http(8080, "pod")
        for host in (*lab.nodes, outside):
            for port in (8080, 9090, OPEN):
                host.serve_http(port, host.name)
        lab.node.serve_udp(8080)
        lab.node.serve_udp(9090)
        yield lab


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    yield cluster
    for node in cluster.nodes:
        node.policy.remove(*NAMES)


def as_node(name: str, *, addresses: Iterable[object] = ()) -> Workload:
    return Workload.node(name, {"kubernetes.io/hostname": name}, addresses=addresses, remote=False)


def dialled(client: Host, address: object, port: int) -> socket.socket:
    sock = client.socket(socket.AF_INET6 if ":" in str(address) else socket.AF_INET)
    sock.settimeout(10)
    sock.connect((str(address), port))
    return sock


def goes_on(sock: socket.socket, timeout: float = 10.0) -> bool:
    sock.settimeout(timeout)
    try:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return bool(sock.recv(100))
    except TimeoutError:
        return False


def test_nobody_is_kept_out_until_a_policy_selects_the_node(lab: Lab) -> None:
    (outside,) = lab.externals
    for address in lab.node.addresses:
        assert reaches(outside, address, 9090)


def test_only_what_policies_allow_reaches_the_node(lab: Lab) -> None:
    (outside,), (one, two) = lab.externals, lab.nodes
    lab.apply(ONLY_8080)
    for address, other in zip(one.addresses, two.addresses, strict=True):
        assert reaches(outside, address, 8080)
        assert reaches(outside, address, OPEN)
        assert denied(outside, address, 9090)
        assert outside.udp(address, 8080, b"in")
        with pytest.raises(TimeoutError):
            outside.udp(address, 9090, b"in", timeout=0.5)
        assert denied(two, address, 8080)  # which is not of the world
        assert reaches(two, address, OPEN)
        assert reaches(outside, other, 9090)  # the policy does not select it


def test_what_the_node_begins_is_answered(lab: Lab) -> None:
    (outside,), (one, two) = lab.externals, lab.nodes
    lab.apply(ONLY_8080)
    for host in (outside, two):
        for address in host.addresses:
            assert reaches(one, address, 9090)


def test_the_node_begins_only_what_policies_allow(lab: Lab) -> None:
    (outside,), (one, two) = lab.externals, lab.nodes
    lab.apply(ONLY_DIALS_8080)
    for host in (outside, two):
        for address in host.addresses:
            assert reaches(one, address, 8080)
            assert reaches(one, address, OPEN)
            assert denied(one, address, 9090)
    for address in one.addresses:  # whose answers are not the node's to begin
        assert reaches(outside, address, 9090)


def test_a_live_connection_feels_it(lab: Lab) -> None:
    (outside,) = lab.externals
    with dialled(outside, lab.node.address, 8080) as allowed, dialled(outside, lab.node.address, 9090) as cut:
        lab.apply(ONLY_8080)
        assert goes_on(allowed)
        assert not goes_on(cut, 0.5)


def test_pods_do_as_before(lab: Lab) -> None:
    (outside,), (one, _) = lab.externals, lab.nodes
    lab.apply(ONLY_8080, ONLY_DIALS_8080)
    mine, other = pod(lab, "pod1"), pod(lab, "pod2")
    for family in (0, 1):
        assert reaches(mine, one.addresses[family], 9090)  # its own node
        assert reaches(one, mine.addresses[family], 8080)
        assert reaches(mine, other.addresses[family], 8080)
        assert reaches(other, mine.addresses[family], 8080)
        assert lab.routing != "native" or reaches(outside, mine.addresses[family], 8080)


def test_a_backend_on_the_node_is_judged_as_what_it_is(lab: Lab) -> None:
    (outside,), (one, _) = lab.externals, lab.nodes
    backends = {4: one.address, 6: one.addresses[1]}
    for port, answers in ((8080, True), (9090, False)):
        services = [Service(VIPS[f], 80, backends=[Backend(backends[f], port)]) for f in VIPS]
        one.services.upsert(*services)
        lab.apply(ONLY_8080)
        for vip in VIPS.values():
            assert reaches(outside, vip, 80) if answers else denied(outside, vip, 80)
    one.services.remove(*(each.frontend for each in services))


def test_fragments_arrive(lab: Lab) -> None:
    (outside,) = lab.externals
    lab.apply(ONLY_8080)
    for address in lab.node.addresses:
        assert outside.udp(address, 8080, b"x" * 4000)
        with pytest.raises(TimeoutError):
            outside.udp(address, 9090, b"x" * 4000, timeout=0.5)


@pytest.mark.parametrize(("port", "tags", "answers"), [(8080, 1, True), (9090, 1, False), (9090, 2, False)])
def test_tags_of_no_vlan_hide_nothing(lab: Lab, port: int, tags: int, answers: bool) -> None:
    """The stack strips them, and delivers what is under them."""
    (outside,) = lab.externals
    lab.apply(ONLY_8080)
    for family, kind in enumerate((socket.AF_INET, socket.AF_INET6)):
        source, node = outside.addresses[family], lab.node.addresses[family]
        assert outside.udp(node, 8080, b"in")  # the neighbours know each other
        with (
            outside.socket(kind, socket.SOCK_DGRAM) as heard,
            outside.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
        ):
            heard.bind((str(source), 0))
            heard.settimeout(5 if answers else 0.3)
            sport = heard.getsockname()[1]
            frame = udp(source, node, sport, port, b"in", src_mac=outside.mac, dst_mac=lab.node.mac)
            wire.bind(("eth0", 0))
            wire.send(frame[:12] + b"\x81\0\0\0" * tags + frame[12:])
            if answers:
                assert heard.recv(100)
            else:
                with pytest.raises(TimeoutError):
                    heard.recv(100)


def test_the_oracle_agrees_and_the_rule_is_told(lab: Lab) -> None:
    (outside,), (one, _) = lab.externals, lab.nodes
    lab.apply(ONLY_8080)
    known = as_node("node1", addresses=one.addresses)
    policies = [*parse_policies(ONLY_8080, nodes=True), FIREWALL.failsafe]
    rules = {
        8080: "CiliumClusterwideNetworkPolicy nodes spec.ingress[0]",
        OPEN: "HostFirewall failsafe incoming",
    }
    for family, address in enumerate(one.addresses):
        source = outside.addresses[family]
        for port in (8080, 9090, OPEN):
            told = one.datapath.explain(Frontend(address, port), source, Place.UPLINK)
            (judged,) = told.judgements
            expected = allows(policies, source, known, port, Protocol.TCP, version=source.version, nodes=True)
            assert judged.allowed is expected is (port != 9090)
            assert told.outcome.name == ("PASS" if expected else "DROP_POLICY_DENIED")
            assert rules.get(port, "default deny: CiliumClusterwideNetworkPolicy nodes") in judged.rule
    lab.apply(ONLY_DIALS_8080)
    told = one.datapath.explain(Frontend(outside.address, 9090), one.address, Place.TO_UPLINK)
    assert "default deny: CiliumClusterwideNetworkPolicy nodes-out" in told.judgements[0].rule


def test_other_labels_are_other_policies(lab: Lab) -> None:
    (outside,) = lab.externals
    lab.apply(ONLY_8080)
    assert denied(outside, lab.node.address, 9090)
    lab.node.datapath.attach_host(as_node("another"))
    assert reaches(outside, lab.node.address, 9090)
    lab.node.datapath.attach_host(as_node("node1"))
    assert denied(outside, lab.node.address, 9090)


def test_without_a_firewall_such_policies_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"nodeSelector.*host firewall"):
        parse_policies(ONLY_8080)
    with pytest.raises(ModelError, match="policy=True"):
        NodeConfig(host_firewall=True)


def test_node_and_pods_are_not_selected_at_once() -> None:
    with pytest.raises(ManifestError, match="for pods or for nodes"):
        parse_policies(ONLY_8080.replace("  ingress:", "  endpointSelector: {}\n  ingress:"), nodes=True)
