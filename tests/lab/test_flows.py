"""What becomes of real connections, as flows."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from k8sdatapath.errors import LabError, ModelError
from k8sdatapath.lab import Lab, Pod
from k8sdatapath.model import Exposure, FrontendKind, Service
from k8sdatapath.model.flow import (
    IP,
    TCP,
    DropReason,
    EventType,
    Flow,
    FlowType,
    IPVersion,
    MonitorEvent,
    PolicyMatch,
    PolicyRef,
    ServiceRef,
    SocketTranslationPoint,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.node import NodeConfig
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run

pytestmark = pytest.mark.lab

ONLY_CHECKOUT = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend, namespace: my-app}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: checkout}}}]
    ports: [{port: 8080}]
"""
ONLY_GET = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: my-app}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: GET}]}
"""
VIP = "10.96.0.10"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(policy=True, flows="aggregated", flows_kept=5000) as made:
        for name, app in (
            ("frontend-v1-abcde", "frontend"),
            ("checkout", "checkout"),
            ("backend", "backend"),
        ):
            made.pod(name, namespace="my-app", labels={"app": app})
        backend = pod(made, "backend")
        backend.serve_http(8080, "hello")
        made.node.services.upsert(
            Service(VIP, 80, backends=[backend.at(8080)], name="my-app/backend-api:http")
        )
        made.apply(ONLY_CHECKOUT)
        yield made


def pod(lab: Lab, name: str) -> Pod:
    return next(each for each in lab.node.pods if each.name == name)


def told(lab: Lab) -> list[Flow]:
    """All flows: what is told late of connections before, as their ends, is among them."""
    return [each for each in lab.node.flows.last() if isinstance(each, Flow)]


def of(lab: Lab, source: str, destination: str) -> list[Flow]:
    """The flows from one pod to another."""
    return [
        each
        for each in told(lab)
        if each.source is not None
        and each.destination is not None
        and (each.source.pod_name, each.destination.pod_name) == (source, destination)
    ]


def test_a_pod_that_is_denied(lab: Lab) -> None:
    frontend = pod(lab, "frontend-v1-abcde")
    with pytest.raises(OSError, match=r"timed out|refused"):
        frontend.get(f"http://{VIP}", timeout=0.5)
    seen = of(lab, "frontend-v1-abcde", "backend")
    flow = next(each for each in seen if each.verdict is Verdict.DROPPED)
    said = flow.to_dict()
    assert said["verdict"] == "DROPPED"
    assert said["drop_reason_desc"] == "POLICY_DENIED"
    assert said["Type"] == "L3_L4"
    assert said["Summary"] == "TCP Flags: SYN"
    assert said["l4"]["TCP"]["destination_port"] == 8080
    assert said["destination_service"] == {"name": "backend-api", "namespace": "my-app"}
    assert said["traffic_direction"] == "INGRESS"
    for end, app in (("source", "frontend"), ("destination", "backend")):
        assert said[end]["namespace"] == "my-app"
        assert f"k8s:app={app}" in said[end]["labels"]
        assert said[end]["identity"] >= 256
    assert flow.source.identity != flow.destination.identity
    assert flow.ingress_denied_by == (PolicyRef("backend", "my-app", kind="NetworkPolicy"),)
    assert flow.file is not None
    assert flow.file.name == "policy.h"
    assert "is_reply" not in said


def test_a_policy_that_only_looks_on_is_told_and_denies_once_its_annotation_is_gone(lab: Lab) -> None:
    frontend = pod(lab, "frontend-v1-abcde")
    lab.apply(ONLY_CHECKOUT.replace("my-app}", 'my-app, annotations: {k8sdatapath.io/audit: "true"}}'))
    try:
        assert frontend.get(f"http://{VIP}").text == "hello"
        told = [each for each in of(lab, "frontend-v1-abcde", "backend") if each.verdict is Verdict.AUDIT]
        named = {(*each.ingress_allowed_by, *each.ingress_denied_by) for each in told}
        assert named == {(PolicyRef("backend", "my-app", kind="NetworkPolicy"),)}
    finally:
        lab.apply(ONLY_CHECKOUT)
    with pytest.raises(TimeoutError):
        frontend.get(f"http://{VIP}", timeout=0.5)


def test_a_pod_that_is_allowed(lab: Lab) -> None:
    checkout = pod(lab, "checkout")
    assert checkout.get(f"http://{VIP}").text == "hello"
    there, back = of(lab, "checkout", "backend"), of(lab, "backend", "checkout")
    verdicts = [each for each in there if each.event_type.type == MonitorEvent.POLICY_VERDICT]
    ways = {(each.traffic_direction, each.policy_match_type) for each in verdicts}
    assert ways == {(TrafficDirection.INGRESS, PolicyMatch.L3_L4)}
    verdict = verdicts[0]
    assert verdict.verdict is Verdict.FORWARDED
    assert verdict.ingress_allowed_by == (PolicyRef("backend", "my-app", kind="NetworkPolicy"),)
    assert {each.is_reply for each in there} == {False}
    assert {each.is_reply for each in back} == {True}
    assert there[0].destination_service == back[0].source_service == ServiceRef("backend-api", "my-app")
    words = [each.summary for each in (*there, *back)]
    assert "TCP Flags: SYN" in words
    assert "TCP Flags: SYN, ACK" in words
    assert any("FIN" in each for each in words)
    assert len(words) <= 12  # of some 20 packets, each seen twice


def test_a_port_that_nobody_serves_is_refused_and_told(lab: Lab) -> None:
    checkout = pod(lab, "checkout")
    with pytest.raises(OSError, match="refused"):
        checkout.get(f"http://{VIP}:81")
    (flow,) = (each for each in told(lab) if each.l4 == TCP(0, 81))
    assert (flow.verdict, flow.type) == (Verdict.DROPPED, FlowType.SOCK)
    assert flow.drop_reason is DropReason.SERVICE_BACKEND_NOT_FOUND
    assert flow.source is not None
    assert flow.source.pod_name == "checkout"
    assert flow.ip == IP(str(checkout.address), VIP, IPVersion.IPv4)


def test_a_socket_is_translated(lab: Lab) -> None:
    checkout = pod(lab, "checkout")
    assert checkout.get(f"http://{VIP}").text == "hello"
    flow = next(each for each in of(lab, "checkout", "backend")[::-1] if each.type is FlowType.SOCK)
    assert flow.verdict is Verdict.TRANSLATED
    assert flow.event_type == EventType(MonitorEvent.TRACE_SOCK, 2)
    assert flow.sock_xlate_point is SocketTranslationPoint.SOCK_XLATE_POINT_POST_DIRECTION_FWD
    assert flow.destination_service == ServiceRef("backend-api", "my-app")
    assert flow.ip == IP(str(checkout.address), str(pod(lab, "backend").address), IPVersion.IPv4)
    assert flow.summary == "TCP"
    assert flow.socket_cookie
    assert flow.cgroup_id


def test_a_process_that_wants_a_node_port(lab: Lab) -> None:
    exposed = [Exposure(FrontendKind.NODE_PORT, str(lab.node.address), 30080)]
    backend = pod(lab, "backend").at(8080)
    service = Service("10.96.0.11", 80, backends=[backend], exposed=exposed, name="my-app/exposed:http")
    lab.node.services.upsert(service)
    with lab.node.socket() as sock, pytest.raises(OSError, match="in use"):
        sock.bind((str(lab.node.address), 30080))
    (flow,) = (each for each in told(lab) if each.drop_reason is DropReason.SOCKET_ASSIGN_FAILED)
    assert flow.verdict is Verdict.DROPPED
    assert flow.file is not None
    assert flow.file.name == "socket.h"


def test_so_many_flows_are_kept_as_the_node_is_told(lab: Lab) -> None:
    assert lab.node.flows.capacity == 5000
    with pytest.raises(ModelError, match="room for 0 flows_kept cannot be"):
        NodeConfig(flows="all", flows_kept=0)


def test_a_lab_that_tells_nothing_says_so() -> None:
    with Lab.start() as silent, pytest.raises(LabError, match='flows="aggregated"'):
        _ = silent.node.flows


def test_datagrams_are_aggregated_too(lab: Lab) -> None:
    checkout, backend = pod(lab, "checkout"), pod(lab, "backend")
    checkout.serve_udp(9999, "answer")
    with backend.socket(type=socket.SOCK_DGRAM) as sender:
        sender.settimeout(5)
        for _ in range(20):
            sender.sendto(b"x", (str(checkout.address), 9999))
            assert sender.recv(100) == b"answer"
    for there, back in (("backend", "checkout"), ("checkout", "backend")):
        assert 1 <= len([each for each in of(lab, there, back) if each.summary == "UDP"]) <= 4


def test_how_to(lab: Lab) -> None:
    (code, output), (filters, _) = blocks(ROOT / "docs/how-to/flows.md")
    assert run(code, {}) == output
    run(filters, {"observer": lab.node.flows})
    lab.node.flows.watch("aggregated")


def test_a_request_that_is_denied() -> None:
    with Lab.start(policy=True, l7=True, flows="all") as guarded:
        client = guarded.pod("client", namespace="my-app", labels={"app": "client"})
        server = guarded.pod("server", namespace="my-app", labels={"app": "server"})
        server.serve_http(8080, "hello")
        guarded.apply(ONLY_GET)
        url = f"http://{server.address}:8080"
        status = client.exec(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", f"{url}/a"]
        )
        assert status.stdout == "403"
        cursor = guarded.node.flows.follow(last=10, matches=lambda flow: flow.type is FlowType.L7)
        flow = cursor.take(10)[0]
    assert isinstance(flow, Flow)
    assert (flow.verdict, flow.drop_reason) == (Verdict.DROPPED, DropReason.POLICY_DENIED)
    assert flow.summary == f"HTTP/1.1 POST {url}/a"
    assert flow.source is not None
    assert flow.source.pod_name == "client"
    assert flow.l7 is not None


def test_requests_are_told_between_the_packets_of_their_connections() -> None:
    with Lab.start(policy=True, l7=True, flows="all") as guarded:
        client = guarded.pod("client", namespace="my-app", labels={"app": "client"})
        server = guarded.pod("server", namespace="my-app", labels={"app": "server"})
        server.serve_http(8080, "hello")
        guarded.apply(ONLY_GET)
        url = f"http://{server.address}:8080/a"
        asked = client.exec(["curl", "-s", "-w", "%{http_code} ", "-X", "POST", *[url] * 20])
        assert asked.stdout.count("403 ") == 20
        cursor = guarded.node.flows.follow(last=5000)
        flows: list[Flow] = []
        deadline = time.monotonic() + 10
        while sum(each.type is FlowType.L7 for each in flows) < 20 and time.monotonic() < deadline:
            flows += [each for each in cursor.take() if isinstance(each, Flow)]
    ports = [each.l4.source_port for each in flows if each.type is FlowType.L7 and isinstance(each.l4, TCP)]
    assert len(ports) == 20
    for port in ports:
        told = [
            each
            for each in flows
            if isinstance(each.l4, TCP) and port in (each.l4.source_port, each.l4.destination_port)
        ]
        (place,) = (number for number, each in enumerate(told) if each.type is FlowType.L7)
        assert any("SYN" in each.summary for each in told[:place])
        assert not any("SYN" in each.summary for each in told[place:])
        assert not any("FIN" in each.summary for each in told[:place])
