"""Node ports from the node itself: at its addresses, at loopback, and kept from being bound by others."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Backend, Exposure, FrontendKind, Service
from k8sdatapath.node import Capacity

pytestmark = pytest.mark.lab

VIP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ANY = {4: "0.0.0.0", 6: "::"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
NODE_PORT = 30080
SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
KINDS = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with a pod each."""
    with Lab.start(nodes=2, capacity=SMALL) as lab:
        for name, node in (("here", lab.nodes[0]), ("there", lab.nodes[1])):
            pod = lab.pod(name, node)
            pod.serve_http(8080, name)
            pod.serve_udp(5353)
        yield lab


@pytest.fixture(autouse=True)
def empty(lab: Lab) -> Iterator[None]:
    yield
    for node in lab.nodes:
        node.services.plan([]).apply()


def expose(lab: Lab, family: int, protocol: str = "TCP", *, loopback: bool = True, **policy: object) -> None:
    """A node port on both nodes, with a backend on each unless told otherwise."""
    port = 8080 if protocol == "TCP" else 5353
    pods = [pod.at(port, family) for node in lab.nodes for pod in node.pods]
    for node in lab.nodes:
        places = [str(node.addresses[family == 6]), *([LOOPBACK[family]] if loopback else [])]
        exposed = [Exposure(FrontendKind.NODE_PORT, place, NODE_PORT) for place in places]
        service = Service(VIP[family], 80, protocol, **{"backends": pods, "exposed": exposed} | policy)  # type: ignore[arg-type]
        node.services.upsert(service)


def answer(host: Host, address: str, *, timeout: float = 5) -> str:
    place = f"[{address}]" if ":" in address else address
    return host.get(f"http://{place}:{NODE_PORT}/", timeout=timeout).text


def refused(host: Host, kind: int, family: int, address: str, port: int = NODE_PORT) -> bool:
    """Whether it is told that the place is taken."""
    with host.socket(FAMILY[family], kind) as sock:
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


@FAMILIES
def test_the_node_reaches_them_at_loopback_and_at_its_address(lab: Lab, family: int) -> None:
    expose(lab, family)
    for place in (LOOPBACK[family], str(lab.node.addresses[family == 6])):
        assert {answer(lab.node, place) for _ in range(30)} == {"here", "there"}
        with lab.node.tcp(place, NODE_PORT) as sock:
            assert sock.getpeername()[:2] == (place, NODE_PORT)


@FAMILIES
@pytest.mark.parametrize("connected", [False, True], ids=["sendto", "connected"])
def test_datagrams_too(lab: Lab, family: int, connected: bool) -> None:
    expose(lab, family, "UDP")
    for place in (LOOPBACK[family], str(lab.node.addresses[family == 6])):
        got = lab.node.udp(place, NODE_PORT, b"?", connected=connected)
        assert (got.data, got.source) == (b"?", (place, NODE_PORT))


@KINDS
def test_an_ipv6_socket_may_say_loopback_in_ipv4(lab: Lab, kind: int) -> None:
    expose(lab, 4, "TCP" if kind == socket.SOCK_STREAM else "UDP")
    with lab.node.socket(socket.AF_INET6, kind) as sock:
        sock.settimeout(5)
        sock.connect(("::ffff:127.0.0.1", NODE_PORT))
        assert sock.getpeername()[:2] == ("::ffff:127.0.0.1", NODE_PORT)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert sock.recv(100)


@FAMILIES
def test_the_loopback_of_a_pod_is_its_own(lab: Lab, family: int) -> None:
    pod = lab.node.pods[0]
    expose(lab, family)
    with pytest.raises(ConnectionRefusedError):
        answer(pod, LOOPBACK[family])
    expose(lab, family, "UDP")
    with pytest.raises(ConnectionRefusedError):
        pod.udp(LOOPBACK[family], NODE_PORT, b"?", connected=True)
    with pytest.raises(TimeoutError):
        pod.udp(LOOPBACK[family], NODE_PORT, b"?", timeout=0.2)
    pod.serve_http(NODE_PORT + family, "own")  # and the pod may serve there
    assert pod.get(f"http://{'127.0.0.1' if family == 4 else '[::1]'}:{NODE_PORT + family}/").text == "own"


@FAMILIES
def test_ranges_of_a_load_balancer_that_name_the_node_let_it_in(lab: Lab, family: int) -> None:
    balancer = {4: "203.0.113.1", 6: "2001:db8:ff::1"}[family]
    own = lab.node.addresses[family == 6]
    elsewhere, everybody = {4: ("198.51.100.0/24", "0.0.0.0/0"), 6: ("2001:db8:fe::/64", "::/0")}[family]

    def limit(*ranges: str) -> None:
        exposed = [Exposure(FrontendKind.LOAD_BALANCER, balancer, NODE_PORT)]
        expose(lab, family, exposed=exposed, source_ranges=ranges)
        expose(lab, family, "UDP", exposed=exposed, source_ranges=ranges)

    def dropped() -> int:
        counter = lab.node.datapath.counters().get("DROP_SOURCE")
        return counter.packets if counter is not None else 0

    for ranges in ((everybody,), (elsewhere, f"{own}/{own.max_prefixlen}")):
        limit(*ranges)
        assert answer(lab.node, balancer) in {"here", "there"}
        for connected in (False, True):
            got = lab.node.udp(balancer, NODE_PORT, b"?", connected=connected)
            assert (got.data, got.source) == (b"?", (balancer, NODE_PORT))
    before = dropped()
    limit(elsewhere)
    with pytest.raises(OSError, match="No route to host"):  # at once, and no packet of it has left the node
        answer(lab.node, balancer)
    assert dropped() == before + 1


@FAMILIES
def test_without_loopback_there_is_nothing(lab: Lab, family: int) -> None:
    expose(lab, family, loopback=False)
    with pytest.raises(ConnectionRefusedError):
        answer(lab.node, LOOPBACK[family])


@FAMILIES
def test_without_backends_the_node_is_refused(lab: Lab, family: int) -> None:
    expose(lab, family, backends=[])
    with pytest.raises(ConnectionRefusedError):
        answer(lab.node, LOOPBACK[family])


@FAMILIES
def test_a_local_policy_is_for_others(lab: Lab, family: int) -> None:
    """Dialled from this node its own node port leads anywhere; another node's obeys that one's policy."""
    there = lab.nodes[1].pods[0].at(8080, family)
    expose(lab, family, external_local=True, backends=[Backend(there.address, there.port, local=False)])
    for place in (LOOPBACK[family], str(lab.node.addresses[family == 6])):
        assert answer(lab.node, place) == "there"
        with pytest.raises(TimeoutError):
            answer(lab.node, str(lab.nodes[1].addresses[family == 6]), timeout=0.3)


@FAMILIES
@KINDS
def test_a_process_of_the_node_cannot_bind_a_node_port(lab: Lab, family: int, kind: int) -> None:
    address = str(lab.node.addresses[family == 6])
    assert not refused(lab.node, kind, family, ANY[family])
    expose(lab, family, "TCP" if kind == socket.SOCK_STREAM else "UDP")
    before = lab.node.datapath.counters()
    for place in (address, LOOPBACK[family], ANY[family]):
        assert refused(lab.node, kind, family, place)
    counted = lab.node.datapath.counters()["DROP_NODE_PORT"].packets
    assert counted - (before["DROP_NODE_PORT"].packets if "DROP_NODE_PORT" in before else 0) == 3


@FAMILIES
@KINDS
def test_all_else_may_be_bound(lab: Lab, family: int, kind: int) -> None:
    expose(lab, family, "TCP" if kind == socket.SOCK_STREAM else "UDP")
    other = socket.SOCK_DGRAM if kind == socket.SOCK_STREAM else socket.SOCK_STREAM
    assert not refused(lab.node, kind, family, ANY[family], NODE_PORT + 1)
    assert not refused(lab.node, kind, family, ANY[family], 0)
    assert not refused(lab.node, other, family, ANY[family])
    for place in (ANY[family], LOOPBACK[family], str(lab.node.pods[0].addresses[family == 6])):
        assert not refused(lab.node.pods[0], kind, family, place)
    lab.node.services.plan([]).apply()
    assert not refused(lab.node, kind, family, ANY[family])


@KINDS
def test_ipv6_for_all_addresses_means_ipv4_too(lab: Lab, kind: int) -> None:
    expose(lab, 4, "TCP" if kind == socket.SOCK_STREAM else "UDP")
    assert refused(lab.node, kind, 6, "::")
    assert refused(lab.node, kind, 6, "::ffff:0.0.0.0")
    assert refused(lab.node, kind, 6, "::ffff:127.0.0.1")
    assert not refused(lab.node, kind, 6, "::1")


@FAMILIES
def test_at_some_addresses_only_those_are_kept(lab: Lab, family: int) -> None:
    """Who binds all addresses is still reached at the others."""
    expose(lab, family, loopback=False)
    assert refused(lab.node, socket.SOCK_STREAM, family, str(lab.node.addresses[family == 6]))
    assert not refused(lab.node, socket.SOCK_STREAM, family, ANY[family])


def test_protection_can_be_left_out() -> None:
    with Lab.start(capacity=SMALL, protect_node_ports=False) as lab:
        exposed = [Exposure(FrontendKind.NODE_PORT, LOOPBACK[4], NODE_PORT)]
        lab.node.services.upsert(Service(VIP[4], 80, exposed=exposed))
        assert not refused(lab.node, socket.SOCK_STREAM, 4, ANY[4])


@FAMILIES
def test_sockets_of_pods_can_be_left_to_the_packets(family: int) -> None:
    """A proxy that takes a pod's connections then finds the service at their other end, not a backend."""
    with Lab.start(capacity=SMALL, pod_sockets=False) as lab:
        client, web = lab.pod("client"), lab.pod("web")
        web.serve_http(8080, "web")
        web.serve_udp(5353)
        services = (
            Service(VIP[family], 80, backends=[web.at(8080, family)]),
            Service(VIP[family], 53, "UDP", backends=[web.at(5353, family)]),
        )
        lab.node.services.upsert(*services)
        for host, is_pod in (client, True), (lab.node, False):
            before = at_socket(lab)
            with host.tcp(VIP[family], 80) as sock:
                assert sock.getpeername()[:2] == (VIP[family], 80)
                assert ends_at(host, family, VIP[family], 80) is is_pod
                assert ends_at(host, family, str(web.addresses[family == 6]), 8080) is not is_pod
            for connected in (False, True):
                got = host.udp(VIP[family], 53, b"?", connected=connected)
                assert (got.data, got.source) == (b"?", (VIP[family], 53))
            with pytest.raises(ConnectionRefusedError):
                host.tcp(VIP[family], 81)
            assert at_socket(lab) - before == (0 if is_pod else 3)


def at_socket(lab: Lab) -> int:
    counter = lab.node.datapath.counters().get("AT_SOCKET")
    return counter.packets if counter is not None else 0


def ends_at(host: Host, family: int, address: str, port: int) -> bool:
    """Whether the kernel has a connection of the host's to this place."""
    packed = socket.inet_pton(FAMILY[family], address)
    words = [packed[at : at + 4][::-1].hex() for at in range(0, len(packed), 4)]
    table = host.exec(["cat", "/proc/net/tcp6" if family == 6 else "/proc/net/tcp"], check=True).stdout
    return f" {''.join(words)}:{port:04x} 01 " in table.lower()
