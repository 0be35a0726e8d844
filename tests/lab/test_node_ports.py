"""What packets alone can do, as sockets see it: refusals, a pod that meets itself, clients from outside."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.model import Backend, Exposure, FrontendKind, Service
from k8sdatapath.node import Capacity

pytestmark = pytest.mark.lab

VIP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
NODE_PORT = 30080
BIG = bytes(range(256)) * 20
SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with a pod each, and a client outside of them; sockets are left alone."""
    with Lab.start(nodes=2, capacity=SMALL, socket_lb=False) as lab:
        for name, node in (("here", lab.nodes[0]), ("there", lab.nodes[1])):
            pod = lab.pod(name, node)
            pod.serve_http(8080, name)
            pod.serve_udp(5353)
        lab.external("visitor")
        yield lab


@pytest.fixture(autouse=True)
def empty(lab: Lab) -> Iterator[None]:
    yield
    for node in lab.nodes:
        node.services.plan([]).apply()


def url(lab: Lab, family: int) -> str:
    address = lab.nodes[0].addresses[family == 6]
    return f"http://[{address}]:{NODE_PORT}/" if family == 6 else f"http://{address}:{NODE_PORT}/"


def node_port(lab: Lab, family: int, backends: list[Backend], port: int = 80, **policy: object) -> Service:
    where = Exposure(FrontendKind.NODE_PORT, lab.nodes[0].addresses[family == 6], NODE_PORT)
    protocol = "TCP" if port == 80 else "UDP"
    return Service(VIP[family], port, protocol, backends=backends, exposed=[where], **policy)  # type: ignore[arg-type]


@FAMILIES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_pod_is_refused_at_once_where_nobody_serves(lab: Lab, family: int, kind: int) -> None:
    lab.node.services.upsert(*(Service(VIP[family], 80, protocol) for protocol in ("TCP", "UDP")))
    began = time.monotonic()
    with lab.nodes[0].pods[0].socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind) as client:
        client.settimeout(5)
        with pytest.raises(ConnectionRefusedError):  # noqa: PT012 - UDP is told at the next call
            client.connect((VIP[family], 80))
            client.send(b"?")
            client.recv(1)
    assert time.monotonic() - began < 1


@FAMILIES
def test_a_pod_meets_itself_behind_its_service(lab: Lab, family: int) -> None:
    pod = lab.nodes[0].pods[0]
    lab.node.services.upsert(Service(VIP[family], 80, backends=[pod.at(8080, family)]))
    for _ in range(3):
        answer = pod.get(f"http://{VIP[4]}/" if family == 4 else f"http://[{VIP[6]}]/")
        assert (answer.status, answer.peer) == (200, (VIP[family], 80))


@FAMILIES
@pytest.mark.parametrize("where", [0, 1], ids=["on the node", "on another node"])
def test_from_outside_through_a_node_port(lab: Lab, family: int, where: int) -> None:
    pod = lab.nodes[where].pods[0]
    lab.node.services.upsert(node_port(lab, family, [pod.at(8080, family)]))
    visitor = lab.externals[0]
    for _ in range(3):
        assert visitor.get(url(lab, family)).text == ("here", "there")[where]


@FAMILIES
@pytest.mark.parametrize("where", [0, 1], ids=["on the node", "on another node"])
def test_long_datagrams_from_outside_and_their_answers(lab: Lab, family: int, where: int) -> None:
    pod = lab.nodes[where].pods[0]
    lab.node.services.upsert(node_port(lab, family, [pod.at(5353, family)], 53))
    with lab.externals[0].socket(
        socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM
    ) as client:
        client.settimeout(5)
        client.connect((str(lab.nodes[0].addresses[family == 6]), NODE_PORT))
        client.send(BIG)
        assert client.recv(65536) == BIG


@FAMILIES
def test_traffic_that_is_to_stay_on_a_node_without_a_backend_is_not_answered(lab: Lab, family: int) -> None:
    pod = lab.nodes[1].pods[0]
    lab.node.services.upsert(node_port(lab, family, [pod.at(8080, family)], external_local=True))
    with pytest.raises(TimeoutError):
        lab.externals[0].tcp(str(lab.nodes[0].addresses[family == 6]), NODE_PORT, timeout=1.5)
