"""Three nodes, natively routed and through a tunnel: the same to pods, services and the world outside."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from k8sdatapath import Exposure, Lab, Service
from k8sdatapath.lab.addressing import tunnel_addresses
from k8sdatapath.lab.client import Response
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.node import Capacity
from tests.support.trace import hops

pytestmark = pytest.mark.lab

VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module", params=["native", "vxlan"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab.start(nodes=3, routing=request.param, capacity=SMALL) as lab:
        for number, node in enumerate(lab.nodes, 1):
            pod = lab.pod(f"pod{number}", node)
            pod.serve_http(8080, pod.name)
            pod.serve_udp(5353)
        lab.external("outside")
        for node in lab.nodes:
            for family in VIPS:
                node.services.upsert(*_services(lab, node, family))
        yield lab


def _services(lab: Lab, node: LabNode, family: int) -> Iterator[Service]:
    """All pods but those of node 1."""
    for port, target, protocol in (80, 8080, "TCP"), (53, 5353, "UDP"):
        backends = [pod.at(target, family) for pod in pods(lab)[1:]]
        exposed = [Exposure("node_port", _of(node, family), 30000 + port)]
        yield Service(VIPS[family], port, protocol, backends=backends, exposed=exposed)


def pods(lab: Lab) -> list[Pod]:
    return [node.pods[0] for node in lab.nodes]


def _of(host: LabNode | Pod, family: int) -> str:
    return str(host.address if family == 4 else host.address6)


def _url(address: object, port: int = 8080) -> str:
    return f"http://[{address}]:{port}/" if ":" in str(address) else f"http://{address}:{port}/"


def asker(answer: Response) -> str:
    """Whom the server has seen."""
    return answer.headers["x-peer"].rpartition(":")[0].strip("[]")


@FAMILIES
def test_pods_reach_pods_of_every_node(lab: Lab, family: int) -> None:
    for one in pods(lab):
        for other in pods(lab):
            answer = one.get(_url(_of(other, family)))
            assert answer.text == other.name
            if one is not other:  # and are seen as who they are
                assert asker(answer) == _of(one, family)
            assert one.udp(_of(other, family), 5353, b"hello").data == b"hello"


@FAMILIES
def test_protocols_that_no_service_knows_reach_pods_of_other_nodes(lab: Lab, family: int) -> None:
    one, two, _ = pods(lab)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with one.socket(kind, socket.SOCK_RAW, 253) as sender, two.socket(kind, socket.SOCK_RAW, 253) as receiver:
        receiver.settimeout(5)
        sender.sendto(b"an experiment", (_of(two, family), 0))
        assert receiver.recv(100).endswith(b"an experiment")


@FAMILIES
def test_services_lead_to_backends_of_other_nodes(lab: Lab, family: int) -> None:
    for client in pods(lab)[0], lab.node:
        counted = Counter(client.get(_url(VIPS[family], 80)).text for _ in range(40))
        assert set(counted) == {"pod2", "pod3"}
        assert client.udp(VIPS[family], 53, b"hello").source[0] == VIPS[family]


@FAMILIES
def test_a_node_port_of_any_node_leads_to_all(lab: Lab, family: int) -> None:
    (outside,) = lab.externals
    for node in lab.nodes:
        address = _of(node, family)
        assert {outside.get(_url(address, 30080)).text for _ in range(40)} == {"pod2", "pod3"}
        assert outside.udp(address, 30053, b"hello").data == b"hello"


@FAMILIES
@pytest.mark.parametrize("dialled", ["pod", "service"])
def test_routes_are_traced(lab: Lab, family: int, dialled: str) -> None:
    """Either node is one hop, whatever carries packets between them."""
    one, two, _ = pods(lab)
    one.node.services.upsert(
        Service(VIPS[family], 54, "UDP", backends=[two.at(5353, family)]),
    )
    target = (_of(two, family), 5353) if dialled == "pod" else (VIPS[family], 54)
    found = hops(one, ip_address(target[0]), target[1])
    assert len(found) == 2, found
    for hop, node in zip(found, lab.nodes, strict=False):
        assert hop in {*node.addresses, *tunnel_addresses(node.number)}, found
