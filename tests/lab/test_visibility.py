"""Requests and questions that are seen, of pods that are to be seen, and held to nothing for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from k8sdatapath import Lab
from k8sdatapath.datapath.l7_policy import L7Policy
from k8sdatapath.errors import CapacityError, LabError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.flow import DNS, HTTP, Flow, FlowType, TrafficDirection, Verdict
from k8sdatapath.model.policy import Toward
from k8sdatapath.model.workload import Workload
from tests.lab.test_dns import eventually
from tests.lab.test_l7_policies import SEED, response, say
from tests.support.name_server import NameServer, resolve

pytestmark = pytest.mark.lab

PORT = 8080
#: Nobody but tests serves 8081 and 9091.
VISIBLE = (
    "<Ingress/8080/TCP/HTTP>,<Ingress/8081/TCP/HTTP>, "
    "<Egress/9090/TCP/HTTP>,<Egress/9091/TCP/HTTP>,<Egress/53/UDP/DNS>"
)
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
FREE = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: free, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payments-api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: other}}]
"""


class Shop:
    """A pod of which all is seen that can be, one of which nothing is, and a client of both."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = lab.pod("client", labels={"app": "checkout-service"}, namespace="frontend")
        self.seen = lab.pod("seen", labels={"app": "payments-api"}, namespace="payments", visible=VISIBLE)
        self.unseen = lab.pod("unseen", labels={"app": "other"}, namespace="payments")
        for each in self.seen, self.unseen:
            each.serve_http(PORT, "hello")
            each.serve_http(9090, "hello")
        assert lab.node.datapath.l7 is not None
        self.l7: L7Policy = lab.node.datapath.l7
        self.cursor = lab.node.flows.follow()

    def told(self) -> list[Flow]:
        """Flows of requests and questions since the last call."""
        found = [each for each in self.cursor.take(0) if isinstance(each, Flow)]
        return [each for each in found if each.type is FlowType.L7]

    def until_told(self, count: int) -> list[Flow]:
        found: list[Flow] = []
        eventually(lambda: found.extend(self.told()) or len(found) >= count)
        return found


@pytest.fixture(scope="module")
def opened() -> Iterator[Shop]:
    with Lab.start(policy=True, l7=True, dns=True, flows="aggregated") as lab:
        yield Shop(lab)


@pytest.fixture
def shop(opened: Shop) -> Iterator[Shop]:
    opened.told()
    yield opened
    opened.lab.node.policy.apply(())


def asked(flow: Flow) -> tuple[str, str, int, Verdict]:
    """What a flow of HTTP says: method, path, status and verdict."""
    assert flow.l7 is not None
    assert isinstance(flow.l7.record, HTTP)
    path = "/" + flow.l7.record.url.split("/", 3)[3]
    return flow.l7.record.method, path, flow.l7.record.code, flow.verdict


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_requests_to_a_visible_port_and_their_responses_are_flows(shop: Shop, family: int) -> None:
    with shop.client.tcp(shop.seen.addresses[family], PORT) as kept:
        for line in "GET /one?by=all", "DELETE /two":
            assert say(kept, line).startswith(b"HTTP/1.1 ")
    for pod, port in (shop.unseen, PORT), (shop.seen, 9090):  # nobody is told of these
        with shop.client.tcp(pod.addresses[family], port) as kept:
            assert say(kept, "GET /secret").startswith(b"HTTP/1.1 200")
    told = shop.until_told(4)
    passed = Verdict.FORWARDED
    assert [asked(each) for each in told[:2]] == [
        ("GET", "/one?by=all", 0, passed),
        ("GET", "/one?by=all", 200, passed),
    ]
    assert [(*asked(each)[:2], each.verdict) for each in told[2:]] == [("DELETE", "/two", passed)] * 2
    request, response, *_ = told
    assert (request.source.pod_name, request.destination.pod_name) == ("client", "seen")
    assert request.traffic_direction is TrafficDirection.INGRESS
    assert response.is_reply
    assert response.l7 is not None
    assert response.l7.latency_ns > 0
    assert shop.told() == []


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_what_a_visible_pod_asks_of_others_is_a_flow(shop: Shop, family: int) -> None:
    with shop.seen.tcp(shop.unseen.addresses[family], 9090) as kept:
        assert say(kept, "GET /bills").startswith(b"HTTP/1.1 200")
        assert say(kept, "GET /bills/1").startswith(b"HTTP/1.1 200")
    told = shop.until_told(2)
    assert [asked(each)[:2] for each in told] == [("GET", "/bills"), ("GET", "/bills/1")]
    assert {each.traffic_direction for each in told} == {TrafficDirection.EGRESS}
    assert (told[0].source.pod_name, told[0].destination.pod_name) == ("seen", "unseen")
    assert told[0].source.identity == shop.lab.node.policy.identity_of(shop.seen.address)
    assert told[0].destination.identity == shop.lab.node.policy.identity_of(shop.unseen.address)


STRANGE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "smuggling": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n0",
    "an upgrade": b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "bare line ends": b"GET / HTTP/1.0\n\n",
    "a long head": b"GET / HTTP/1.1\r\nX: " + 9000 * b"a" + b"\r\n\r\n",
    "a path that policies deny": b"GET /a/../b//c%2f HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("end", ["server", "client"])
def test_what_is_no_request_passes_all_the_same(shop: Shop, end: str, data: bytes) -> None:
    """It is told that it is none, once, and the rest of the connection is not read."""
    with connected(shop, end) as (one, other):
        for sent in data, b"and more, of whatever kind\r\n\r\n":
            one.sendall(sent)
            assert read(other, len(sent)) == sent
            other.sendall(sent)
            assert read(one, len(sent)) == sent
    (told,) = shop.until_told(1)
    assert told.verdict is Verdict.AUDIT
    assert shop.told() == []


@contextmanager
def connected(
    shop: Shop, end: str, protocol: int = socket.IPPROTO_TCP
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Client and server of a new connection, one end of which is seen."""
    if end == "server":
        client, server, port = shop.client, shop.seen, 8081
    else:
        client, server, port = shop.seen, shop.unseen, 9091
    with (
        server.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listening,
        client.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as one,
    ):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(server.address), port))
        listening.listen()
        one.settimeout(10)
        one.connect((str(server.address), port))
        other, _ = listening.accept()
        with other:
            other.settimeout(10)
            yield one, other


def read(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := sock.recv(65536)):
        found += data
    return found


@pytest.mark.parametrize("end", ["server", "client"])
def test_what_cannot_be_read_passes_where_it_is_only_to_be_seen(shop: Shop, end: str) -> None:
    """Programs cannot read what goes over MPTCP: there it is not seen, and not denied."""
    with connected(shop, end, socket.IPPROTO_MPTCP) as (one, other):
        one.sendall(REQUEST)
        assert read(other, len(REQUEST)) == REQUEST
    assert shop.told() == []


def test_rules_hold_at_a_visible_port(shop: Shop) -> None:
    shop.lab.apply(SEED)
    shop.lab.node.policy.upsert(*parse_policies(FREE))
    with shop.client.tcp(shop.seen.address, PORT) as kept:
        assert say(kept, "POST /charge").startswith(b"HTTP/1.1 200")
        assert say(kept, "GET /charge").startswith(b"HTTP/1.1 403")
    with shop.unseen.tcp(shop.seen.address, PORT) as kept:  # who is held to nothing is seen
        assert say(kept, "GET /charge").startswith(b"HTTP/1.1 200")
    told = [asked(each) for each in shop.until_told(5)]
    assert told == [
        ("POST", "/charge", 0, Verdict.FORWARDED),
        ("POST", "/charge", 200, Verdict.FORWARDED),
        ("GET", "/charge", 0, Verdict.DROPPED),
        ("GET", "/charge", 0, Verdict.FORWARDED),
        ("GET", "/charge", 200, Verdict.FORWARDED),
    ]


def test_what_is_no_longer_visible_goes_on_unseen(shop: Shop) -> None:
    """In the middle of a request, and over connections that are open; and is seen again when it is to be."""
    seen = Workload.pod("payments/seen", addresses=shop.seen.addresses, visible=VISIBLE)
    unseen = Workload.pod("payments/seen", addresses=shop.seen.addresses)
    node = shop.lab.node.datapath
    with shop.client.tcp(shop.seen.address, PORT) as kept, shop.client.tcp(shop.seen.address, PORT) as half:
        assert say(kept, "GET /seen").startswith(b"HTTP/1.1 200")
        half.sendall(b"GET /half HTTP/1.1\r\nHo")
        eventually(lambda: shop.l7.connections == 2)
        try:
            node.show(unseen)
            half.sendall(b"st: a\r\n\r\n")
            assert response(half).startswith(b"HTTP/1.1 200")
            for each in kept, half:
                assert say(each, "GET /unseen").startswith(b"HTTP/1.1 200")
            with shop.client.tcp(shop.seen.address, PORT) as new:
                assert say(new, "GET /unseen").startswith(b"HTTP/1.1 200")
        finally:
            node.show(seen)
        with shop.client.tcp(shop.seen.address, PORT) as new:
            assert say(new, "GET /again").startswith(b"HTTP/1.1 200")
        assert say(kept, "GET /unseen").startswith(b"HTTP/1.1 200")
    paths = list[str]()
    eventually(lambda: paths.extend(asked(each)[1] for each in shop.told()) or paths.count("/again") == 2)
    assert {*paths} <= {"/seen", "/half", "/again"}
    assert paths.count("/seen") == 2


def test_ports_that_do_not_fit_are_refused(shop: Shop) -> None:
    ends = {(Toward.INGRESS, port) for port in range(1, 5000)}
    before = shop.l7.shown
    with pytest.raises(CapacityError, match="ports of HTTP policy"):
        shop.l7.show([shop.unseen.address], ends)
    assert shop.l7.shown == before


def test_questions_of_a_visible_pod_are_flows(shop: Shop) -> None:
    zone = {"bank.example": ["192.0.2.7"]}
    with NameServer(shop.client.netns, zone):
        for each in shop.seen, shop.unseen:
            resolve(each, str(shop.client.address), "bank.example")
    question, answer = shop.until_told(2)
    for each in question, answer:
        assert each.l7 is not None
        assert isinstance(each.l7.record, DNS)
        assert each.l7.record.query == "bank.example."
    assert (question.source.pod_name, answer.destination.pod_name) == ("seen", "seen")
    assert shop.told() == []


@pytest.mark.parametrize("wanted", ["HTTP", "DNS"])
def test_what_a_lab_cannot_see_is_refused(wanted: str) -> None:
    ways = {"HTTP": ("<Ingress/80/TCP/HTTP>", "l7=True"), "DNS": ("<Egress/53/TCP/DNS>", "dns=True")}
    visible, needed = ways[wanted]
    with Lab.start(datapath=False) as lab, pytest.raises(LabError, match=needed):
        lab.pod("web", visible=visible)
