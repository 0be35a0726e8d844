"""Services as the world outside and pods meet them: real packets between two nodes and a host of neither."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from k8sdatapath.lab import Lab, Pod
from k8sdatapath.model import Backend, Exposure, FrontendKind, Service
from k8sdatapath.node import Capacity
from tests.support.connections import sent_again

SMALL = Capacity(services=256, backends=1024, slots=8192, flows=16384, pods=64)
CLUSTER_IP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
NODE_PORT = 30080


class Cluster:
    """Two nodes, one web server on each and a client on the first, and a client outside."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.one, self.two = lab.nodes
        self.client = lab.pod("client")
        self.near = lab.pod("near")
        self.far = lab.pod("far", self.two)
        self.outside = lab.external("outside")
        for pod in (self.near, self.far):
            pod.serve_http(8080, pod.name)
            pod.serve_udp(5353, pod.name)

    def address(self, family: int) -> str:
        """Where the first node is dialled from outside."""
        return str(self.one.addresses[family == 6])

    def expose(self, *pods: Pod, family: int = 4, protocol: str = "TCP", **options: object) -> Service:
        """A node port of the first node, and the same service on the second."""
        port = 8080 if protocol == "TCP" else 5353
        for node in self.lab.nodes:
            address = str(node.addresses[family == 6])
            backends = [Backend(pod.addresses[family == 6], port, local=pod.node is node) for pod in pods]
            service = Service(
                CLUSTER_IP[family],
                80,
                protocol,
                backends=backends,
                exposed=[Exposure(FrontendKind.NODE_PORT, address, NODE_PORT)],
                **options,  # type: ignore[arg-type]
            )
            node.services.plan([service]).apply()
        return service

    def url(self, family: int) -> str:
        address = self.address(family)
        return f"http://{address}:{NODE_PORT}/" if family == 4 else f"http://[{address}]:{NODE_PORT}/"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab.start(nodes=2, capacity=SMALL, socket_lb=False) as lab:
        yield Cluster(lab)


@pytest.fixture(autouse=True)
def empty(cluster: Cluster) -> Iterator[None]:
    yield
    for node in cluster.lab.nodes:
        node.services.plan([]).apply()


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_port_leads_to_a_pod_of_the_node_which_sees_its_client(cluster: Cluster, family: int) -> None:
    cluster.expose(cluster.near, family=family)
    answer = cluster.outside.get(cluster.url(family))
    assert (answer.text, answer.peer) == ("near", (cluster.address(family), NODE_PORT))
    assert str(cluster.outside.addresses[family == 6]) in answer.headers["x-peer"]


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_port_leads_to_a_pod_elsewhere_in_the_node_s_name(cluster: Cluster, family: int) -> None:
    cluster.expose(cluster.far, family=family)
    for _ in range(20):
        answer = cluster.outside.get(cluster.url(family))
        assert (answer.text, answer.peer) == ("far", (cluster.address(family), NODE_PORT))
        assert str(cluster.one.addresses[family == 6]) in answer.headers["x-peer"]


@pytest.mark.parametrize("family", [4, 6])
def test_udp_through_a_node_port(cluster: Cluster, family: int) -> None:
    cluster.expose(cluster.near, cluster.far, family=family, protocol="UDP")
    answers = [cluster.outside.udp(cluster.address(family), NODE_PORT, "who") for _ in range(20)]
    assert {answer.data for answer in answers} == {b"near", b"far"}
    assert {answer.source for answer in answers} == {(cluster.address(family), NODE_PORT)}


def test_two_clients_with_one_port_are_told_apart_behind_the_node(cluster: Cluster) -> None:
    """Both become the node to the backend: the second must be given another port."""
    cluster.expose(cluster.far)
    other = cluster.lab.external("other")
    held = []
    for host in (cluster.outside, other):
        sock = host.socket()
        held.append(sock)
        sock.settimeout(5)
        sock.bind(("0.0.0.0", 43210))
        sock.connect((cluster.address(4), NODE_PORT))
    for sock in held:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
        assert answer.endswith(b"far")
        sock.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("first", ["outside", "node"])
def test_a_socket_of_the_node_and_a_client_outside_with_one_port_reach_one_backend(
    cluster: Cluster, family: int, protocol: str, first: str
) -> None:
    """Both would be the same to the backend. Nobody has to ask for a connection again."""
    cluster.expose(cluster.far, family=family, protocol=protocol)
    tcp, port = protocol == "TCP", 43217
    backend = (str(cluster.far.addresses[family == 6]), 8080 if tcp else 5353)
    dialled = (cluster.address(family), NODE_PORT)
    hosts = {"outside": (cluster.outside, dialled), "node": (cluster.one, backend)}
    order = sorted(hosts, key=lambda name: name != first)
    with ExitStack() as held:
        socks = {}
        for name in order:
            host, peer = hosts[name]
            kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
            sock = held.enter_context(host.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind))
            sock.settimeout(5)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(host.addresses[family == 6]), port))
            sock.connect(peer)
            if tcp:
                assert not sent_again(sock)
            else:
                sock.send(b"first")
                assert sock.recv(100).startswith(b"far")
            socks[name] = sock
        for name in reversed(order):
            sock = socks[name]
            sock.send(b"GET / HTTP/1.0\r\n\r\n" if tcp else b"second")
            answer = sock.recv(4096)
            while tcp and (chunk := sock.recv(4096)):
                answer += chunk
            assert answer.endswith(b"far") if tcp else answer.startswith(b"far")
            assert sock.getpeername()[:2] == hosts[name][1]


def test_local_traffic_stays_on_the_node_it_came_to(cluster: Cluster) -> None:
    cluster.expose(cluster.near, cluster.far, external_local=True)
    seen = Counter(cluster.outside.get(cluster.url(4)).text for _ in range(20))
    assert seen == {"near": 20}
    cluster.expose(cluster.far, external_local=True)
    with pytest.raises(TimeoutError):  # dropped, so that a balancer in front notices
        cluster.outside.tcp(cluster.address(4), NODE_PORT, timeout=0.5)


def test_pods_of_the_node_are_not_bound_by_its_external_policy(cluster: Cluster) -> None:
    cluster.expose(cluster.far, external_local=True)
    assert cluster.client.get(cluster.url(4)).text == "far"


def test_an_internal_policy_binds_the_cluster_ip_only(cluster: Cluster) -> None:
    cluster.expose(cluster.near, cluster.far, internal_local=True)
    assert {cluster.client.get("http://10.96.0.10").text for _ in range(20)} == {"near"}
    assert {cluster.outside.get(cluster.url(4)).text for _ in range(20)} == {"near", "far"}


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_may_meet_itself_behind_its_own_service(cluster: Cluster, family: int) -> None:
    cluster.expose(cluster.near, family=family)
    dialled = CLUSTER_IP[family] if family == 4 else f"[{CLUSTER_IP[family]}]"
    answer = cluster.near.get(f"http://{dialled}/")
    assert (answer.text, answer.peer) == ("near", (CLUSTER_IP[family], 80))


@pytest.mark.parametrize("family", [4, 6])
def test_a_service_that_has_no_endpoint_anywhere_refuses_at_once(cluster: Cluster, family: int) -> None:
    cluster.expose(family=family)
    for host, address, port in (
        (cluster.client, CLUSTER_IP[family], 80),
        (cluster.outside, cluster.address(family), NODE_PORT),
    ):
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            host.tcp(address, port, timeout=5)
        assert time.monotonic() - began < 2


def test_a_client_stays_with_its_backend(cluster: Cluster) -> None:
    cluster.expose(cluster.near, cluster.far, affinity_timeout=10800)
    for host in (cluster.outside, cluster.client):
        address, port = (cluster.address(4), NODE_PORT) if host is cluster.outside else (CLUSTER_IP[4], 80)
        assert len({host.get(f"http://{address}:{port}/").text for _ in range(20)}) == 1
    cluster.expose(cluster.near, cluster.far)
    assert len({cluster.outside.get(cluster.url(4)).text for _ in range(30)}) == 2


def test_a_backend_that_leaves_lets_its_clients_go(cluster: Cluster) -> None:
    cluster.expose(cluster.near, cluster.far, affinity_timeout=10800)
    first = cluster.outside.get(cluster.url(4)).text
    stays = cluster.far if first == "near" else cluster.near
    cluster.expose(stays, affinity_timeout=10800)
    assert cluster.outside.get(cluster.url(4)).text == stays.name


def test_source_ranges_bind_the_load_balancer_address(cluster: Cluster) -> None:
    address = "192.0.2.200"  # routed to the first node as a load balancer would
    cluster.outside.exec(["ip", "route", "add", f"{address}/32", "via", cluster.address(4)], check=True)

    def limited(*ranges: str) -> None:
        exposed = [
            Exposure("load_balancer", address, 80),
            Exposure("node_port", cluster.address(4), NODE_PORT),
        ]
        cluster.one.services.plan(
            [
                Service(
                    "10.96.0.10", 80, backends=[cluster.near.at(8080)], exposed=exposed, source_ranges=ranges
                )
            ]
        ).apply()

    limited(f"{cluster.outside.address}/32", "203.0.113.0/24")
    assert cluster.outside.get(f"http://{address}/").text == "near"
    limited("203.0.113.0/24")
    with pytest.raises(TimeoutError):
        cluster.outside.tcp(address, 80, timeout=0.5)
    assert cluster.outside.get(cluster.url(4)).text == "near"  # ranges do not rule node ports
    limited()
    assert cluster.outside.get(f"http://{address}/").text == "near"


def test_one_client_port_at_two_frontends_of_one_backend(cluster: Cluster) -> None:
    service = Service("10.96.0.11", 80, backends=[cluster.near.at(8080)])
    cluster.expose(cluster.near)
    cluster.one.services.upsert(service)
    with cluster.client.socket() as first, cluster.client.socket() as second:
        for sock, address in ((first, "10.96.0.10"), (second, "10.96.0.11")):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(5)
            sock.bind(("0.0.0.0", 43211))
            sock.connect((address, 80))
        for sock in (second, first):
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1")
