"""Three nodes, and a tunnel between them: nobody on the wire knows a route to a pod."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
from typer.testing import CliRunner

from k8sdatapath import (
    Backend,
    Direction,
    Exposure,
    First,
    Frontend,
    Lab,
    NetNs,
    Node,
    NodeConfig,
    Service,
    features,
    maps,
    programs,
)
from k8sdatapath.cli.app import app
from k8sdatapath.compiler import compile
from k8sdatapath.errors import CapacityError, KernelError, ModelError, NotSupportedError, StalePlanError
from k8sdatapath.lab.addressing import pod_networks
from k8sdatapath.lab.client import Response
from k8sdatapath.lab.host import Host
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.layout import u32
from k8sdatapath.model import Peer
from k8sdatapath.net.packet import udp
from k8sdatapath.node import Capacity, Tunnel
from k8sdatapath.pins import PinDir

pytestmark = pytest.mark.lab

VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)
DEVICE = "kdtunnel"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(nodes=3, routing="vxlan", capacity=SMALL) as lab:
        for number, node in enumerate(lab.nodes, 1):
            pod = lab.pod(f"pod{number}", node)
            pod.serve_http(8080, pod.name)
            pod.serve_udp(5353)
        lab.external("outside")
        for node in lab.nodes:
            node.services.upsert(*(_service(lab, node, family) for family in VIPS))
        yield lab


def _service(lab: Lab, node: LabNode, family: int) -> Service:
    """All pods but those of node 1."""
    backends = [pod.at(8080, family) for pod in _pods(lab)[1:]]
    port = Exposure("node_port", node.address if family == 4 else node.address6, 30080)
    return Service(VIPS[family], 80, backends=backends, exposed=[port])


def _pods(lab: Lab) -> list[Pod]:
    return [node.pods[0] for node in lab.nodes]


def _url(address: object, port: int = 8080) -> str:
    return f"http://[{address}]:{port}/" if ":" in str(address) else f"http://{address}:{port}/"


def _asker(answer: Response) -> str:
    """Whom the server has seen."""
    return answer.headers["x-peer"].rpartition(":")[0].strip("[]")


def _dropped(node: LabNode, reason: str) -> int:
    counter = node.datapath.counters().get(reason)
    return counter.packets if counter else 0


def test_nodes_reach_pods_of_other_nodes_under_an_address_that_leads_back(lab: Lab) -> None:
    for other in _pods(lab)[1:]:
        for address, own in zip(other.addresses, ("10.244.1.1", "fd00:10:244:1::1"), strict=True):
            answer = lab.node.get(_url(address))
            assert (answer.text, _asker(answer)) == (other.name, own)


def test_no_pod_is_seen_on_the_wire(lab: Lab) -> None:
    one, _, three = _pods(lab)
    with lab.nodes[2].popen(
        ["tcpdump", "-nli", "eth0", "-c", "1", "net", "10.244.0.0/16"], stdout=-1, stderr=-1, text=True
    ) as sniffer:
        assert sniffer.stderr is not None
        while "listening" not in sniffer.stderr.readline():
            pass
        assert one.get(_url(three.address)).text == three.name
        for _ in range(10):
            one.get(_url(VIPS[4], 80))
        sniffer.terminate()
        assert sniffer.communicate()[0].strip() == ""


def test_a_long_transfer_fits(lab: Lab) -> None:
    """What a pod sends in large pieces is cut so that it fits with the tunnel's headers."""
    one, two, _ = _pods(lab)
    data = "0123456789abcdef" * 640_000
    two.serve_http(8090, data)
    for address in two.addresses:
        assert one.get(_url(address, 8090), timeout=20).text == data


def test_a_pod_that_thinks_the_way_is_wider_learns_better(lab: Lab) -> None:
    narrow = lab.pod("wide", lab.nodes[0])
    two = _pods(lab)[1]
    narrow.exec(["ip", "link", "set", "eth0", "mtu", "1500"], check=True)
    with narrow.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: nobody may cut it
        sock.settimeout(5)
        sock.connect((str(two.address), 5353))
        deadline = time.monotonic() + 10
        while sock.getsockopt(socket.IPPROTO_IP, 14) != 1450:  # IP_MTU
            assert time.monotonic() < deadline
            with suppress(OSError):  # too long: told for the one before, by ICMP, or for this one
                sock.send(bytes(1460))
    assert narrow.udp(two.address, 5353, bytes(1400)).data == bytes(1400)


@contextmanager
def seen(nodes: Sequence[LabNode]) -> Iterator[Callable[[], list[int]]]:
    """Which identity the last packet had that came to each node through its tunnel."""
    see = compile(Path(__file__).parents[1] / "data" / "tunnel.bpf.c")
    with ExitStack() as own:
        found = []
        for node in nodes:
            loaded = own.enter_context(see.load())
            program = loaded.program("see", programs.TC)
            own.enter_context(program.attach(DEVICE, Direction.INGRESS, netns=node.netns, anchor=First()))
            found.append(loaded.map("seen", maps.Array[u32]))
        yield lambda: [each[0] for each in found]


def test_identities_arrive_in_both_directions(lab: Lab) -> None:
    one, two, _ = _pods(lab)
    for pod, identity in (one, 0x123456), (two, 0xFEDCBA):
        pod.node.datapath.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac, identity=identity)
    with seen(lab.nodes[:2]) as identities:
        for address in two.addresses:
            one.get(_url(address))
            assert identities() == [0xFEDCBA, 0x123456]
        lab.node.get(_url(two.address))
        assert identities()[1] == 1  # the node itself


def _vxlan(inner: bytes, identity: int) -> bytes:
    """What a node sends to another one, for whoever would like to be one."""
    return bytes([8, 0, 0, 0]) + identity.to_bytes(3) + b"\0" + inner


FORGERS = {
    "a host outside": ("outside", "itself", "DROP_UNKNOWN_PEER"),
    "a pod of another node": ("pod3", "itself", "DROP_MEDDLING"),
    "a pod of another node as a node": ("pod3", "node1", "DROP_MEDDLING"),
    "a pod of that node as another node": ("pod2", "node1", "DROP_MEDDLING"),
    "a host outside through a service": ("outside", "service", "DROP_MEDDLING"),
}


@pytest.mark.parametrize("forger", FORGERS)
def test_nobody_but_a_node_says_who_somebody_is(lab: Lab, forger: str) -> None:
    name, way, reason = FORGERS[forger]
    one, two, three = _pods(lab)
    node, end = lab.node, (str(two.node.address), 8472)
    hosts: dict[str, Host] = {"outside": lab.externals[0], "pod2": two, "pod3": three}
    where = {"outside": two.node, "pod2": two.node, "pod3": three.node}[name]
    payload = _vxlan(udp(one.address, two.address, 40000, 6000, b"forged"), 0x123456)
    with two.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.bind(("", 6000))
        victim.settimeout(5)
        with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(payload, end)
        assert victim.recv(100) == b"forged"  # as nodes may
        if way == "service":
            exposed = [Exposure("node_port", node.address, 30999)]
            forward = Service("10.96.0.99", 99, "UDP", backends=[Backend(*end)], exposed=exposed)
            node.services.upsert(forward)
            where, end = node, (str(node.address), 30999)
        before = _dropped(where, reason)
        if way == "node1":
            with hosts[name].socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                raw.sendto(udp(node.address, end[0], 40000, end[1], payload)[14:], (end[0], 0))
        else:
            with hosts[name].socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(payload, end)
        deadline = time.monotonic() + 10
        while _dropped(where, reason) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        victim.setblocking(False)
        with pytest.raises(BlockingIOError):
            victim.recv(100)
    if way == "service":
        node.services.remove(forward.frontend)


@pytest.mark.parametrize("family", [4, 6])
def test_the_tunnel_is_explained(lab: Lab, family: int) -> None:
    one, two, _ = _pods(lab)
    one.node.datapath.attach_pod(one.device, one.addresses, pod_mac=one.mac, identity=0x123456)
    source, target = (each.address if family == 4 else each.address6 for each in (one, two))
    index = one.node.netns.call(socket.if_nametoindex, DEVICE)
    for dialled in Frontend(target, 8080), Frontend(VIPS[family], 81):
        one.node.services.upsert(Service(VIPS[family], 81, backends=[two.at(8080, family)]))
        told = one.node.datapath.explain(dialled, source)
        said = (
            f"Its destination is a pod of node {two.node.address}: "
            f"into the tunnel, device {index}, as a packet of identity {0x123456}."
        )
        assert said in str(told)
        assert told.outcome.name == "TO_DEVICE"
        peer = next(step for step in told.steps if step.name == "peer")
        assert str(peer.dst).rpartition(":")[0].strip("[]") == str(two.node.address)


def test_what_no_known_node_sends_is_not_believed(lab: Lab) -> None:
    one, two, three = _pods(lab)
    overlay = two.node.datapath.overlay
    assert overlay is not None
    peers = overlay.dump()
    try:
        report = overlay.plan([peer for peer in peers if peer.address != one.node.address]).apply()
        assert (report.added, report.changed, report.removed) == (0, 0, 2)
        before = _dropped(two.node, "DROP_UNKNOWN_PEER")
        with pytest.raises(TimeoutError):
            one.get(_url(two.address), timeout=0.5)
        assert _dropped(two.node, "DROP_UNKNOWN_PEER") > before
        assert three.get(_url(two.address)).text == two.name
    finally:
        overlay.plan(peers).apply()
    assert one.get(_url(two.address)).text == two.name
    assert overlay.plan(peers).empty


def test_what_leads_to_no_node_is_dropped_with_a_reason(lab: Lab) -> None:
    before = _dropped(lab.node, "DROP_NO_PEER")
    lab.node.exec(["ip", "route", "add", "10.250.0.0/16", "dev", DEVICE], check=True)
    with pytest.raises(TimeoutError):
        _pods(lab)[0].get(_url("10.250.1.1"), timeout=0.5)
    assert _dropped(lab.node, "DROP_NO_PEER") > before


def test_plans_say_what_they_do_and_refuse_what_cannot_be(lab: Lab) -> None:
    overlay = lab.node.datapath.overlay
    assert overlay is not None
    peers = overlay.dump()
    moved = [Peer("192.0.2.77", peers[0].networks), *peers[1:]]
    plan = overlay.plan(moved)
    assert str(plan).splitlines() == ["10.244.2.0/24 -> 192.0.2.77", "fd00:10:244:2::/64 -> 192.0.2.77"]
    assert str(overlay.plan(peers)) == "nothing to change"
    with pytest.raises(ModelError, match=r"several peers have the pods 10\.244\.2\.0/24"):
        overlay.plan([*peers, Peer("192.0.2.77", ["10.244.2.0/24"])])
    with pytest.raises(ModelError, match="the tunnel is IPv4"):
        overlay.plan([Peer("2001:db8::12", ["10.244.2.0/24"])])
    with pytest.raises(CapacityError, match=r"kd_peers needed.*fewer, wider networks do"):
        overlay.plan([Peer("192.0.2.77", ip_network("10.0.0.0/8").subnets(new_prefix=23))])
    overlay.plan([*peers, Peer("192.0.2.78", ["10.251.0.0/16"])]).apply()
    with pytest.raises(StalePlanError):
        plan.apply()
    overlay.plan(peers).apply()


def test_the_tunnel_outlives_its_process(lab: Lab) -> None:
    """With pins: what another process opens leads on, and knows the peers."""
    with ExitStack() as own:
        netns = own.enter_context(NetNs.create(f"{lab.name}-pinned"))
        pins = PinDir(f"/sys/fs/bpf/kdtest-{lab.name}")
        own.callback(pins.remove)
        tunnel = Tunnel(addresses=["10.244.9.1"])
        config = NodeConfig(netns=netns, pins=pins, tunnel=tunnel, capacity=SMALL)
        peers = (Peer("192.0.2.12", ["10.244.2.0/24"]),)
        with Node.open(config) as node:
            assert node.overlay is not None
            node.overlay.plan(peers).apply()
            index = netns.call(socket.if_nametoindex, DEVICE)
            asked = ["explain", "--from", "10.244.9.2", "--to", "10.244.2.5:80", "--pins", str(pins)]
            shown = netns.call(CliRunner().invoke, app, [*asked, "--tunnel-device", DEVICE])
            assert "Its destination is a pod of node 192.0.2.12: into the tunnel" in shown.output
        with Node.open(config) as node:
            assert node.overlay is not None
            assert node.overlay.dump() == peers
            assert netns.call(socket.if_nametoindex, DEVICE) == index


def test_nodes_may_reach_each_other_by_ipv6() -> None:
    with Lab.start(nodes=2, datapath=False) as lab, ExitStack() as own:
        for node, other in zip(lab.nodes, lab.nodes[::-1], strict=True):
            config = NodeConfig(
                netns=node.netns,
                uplinks="eth0",
                tunnel=Tunnel(ipv6=True, addresses=[pod_networks(node.number)[0][1]]),
                capacity=SMALL,
                socket_lb=False,
            )
            opened = own.enter_context(Node.open(config))
            assert opened.overlay is not None
            opened.overlay.plan([Peer(other.address6, pod_networks(other.number))]).apply()
            assert "mtu 1430" in node.exec(["ip", "link", "show", DEVICE]).stdout
            pod = lab.pod(f"pod{node.number}", node)
            identity = 0xABCD00 + node.number
            opened.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac, identity=identity)
            pod.serve_http(8080, pod.name)
        one, two = _pods(lab)
        with seen(lab.nodes) as identities:
            for address in two.addresses:
                assert one.get(_url(address)).text == "pod2"
                assert identities() == [0xABCD02, 0xABCD01]
        two.serve_http(8090, data := "0123456789abcdef" * 50_000)
        for node in lab.nodes:  # narrower than the pods were told
            node.exec(["ip", "link", "set", "eth0", "mtu", "1400"], check=True)
            node.exec(["ip", "link", "set", DEVICE, "mtu", "1330"], check=True)
        for address in two.addresses:
            assert one.get(_url(address, 8090), timeout=20).text == data


def test_a_kernel_without_geneve_says_so() -> None:
    with ExitStack() as own:
        netns = own.enter_context(NetNs.create("kdtest-geneve"))
        if features.probe("geneve").supported:
            own.enter_context(Node.open(NodeConfig(netns=netns, tunnel="geneve", capacity=SMALL)))
        else:
            with pytest.raises(NotSupportedError, match=r"geneve devices.*CONFIG_GENEVE is not set"):
                Node.open(NodeConfig(netns=netns, tunnel="geneve", capacity=SMALL))
            assert "CONFIG_GENEVE is not set" in features.probe("geneve").detail
            assert DEVICE not in dict(netns.call(socket.if_nameindex)).values()
    assert features.probe("vxlan").supported


def test_a_device_of_another_kind_is_not_taken_over() -> None:
    with NetNs.create("kdtest-taken") as netns:
        netns.call(_make_bridge)
        with pytest.raises(KernelError, match="it is a bridge device"):
            Node.open(NodeConfig(netns=netns, tunnel="vxlan", capacity=SMALL))


def _make_bridge() -> None:
    from k8sdatapath.net.netlink import Netlink

    with Netlink() as net:
        net.create_bridge(DEVICE)


@pytest.mark.parametrize("routing", ["ipip", 4, None])
def test_a_lab_has_routing_that_there_is(routing: object) -> None:
    with pytest.raises(ModelError, match="routing is one of native, vxlan"):
        Lab.start(routing=routing)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="native routing"):
        Lab.start(routing="vxlan", datapath=False)
