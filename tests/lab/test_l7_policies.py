"""Policies that ask for requests, between pods: at the server, at the client, and for older connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from k8sdatapath import Lab, Service
from k8sdatapath.datapath.l7_policy import L7Policy
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model import IPAddress

pytestmark = pytest.mark.lab

PORT = 8080
SEED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: payments, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payments-api}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: checkout-service, io.kubernetes.pod.namespace: frontend}
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: POST, path: /charge}]}
"""
EGRESS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: calls, namespace: frontend}
spec:
  endpointSelector: {matchLabels: {app: caller}}
  egress:
  - toEndpoints: [{matchLabels: {app: billing, io.kubernetes.pod.namespace: payments}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: GET, path: "/bills/[0-9]+"}]}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(policy=True, l7=True) as lab:
        lab.pod("checkout", labels={"app": "checkout-service"}, namespace="frontend")
        lab.pod("cart", labels={"app": "cart"}, namespace="frontend")
        lab.pod("caller", labels={"app": "caller"}, namespace="frontend")
        for name, app in (("api", "payments-api"), ("billing", "billing")):
            lab.pod(name, labels={"app": app}, namespace="payments").serve_http(PORT, "paid")
        yield lab


@pytest.fixture
def l7(lab: Lab) -> Iterator[L7Policy]:
    found = lab.node.datapath.l7
    assert found is not None
    found.events()
    yield found
    lab.node.policy.apply(())


def pod(lab: Lab, name: str) -> Pod:
    return next(each for each in lab.node.pods if each.name == name)


def status(client: Pod, method: str, address: IPAddress, path: str = "/charge") -> str:
    """What curl says of a request: the status, 000 if there is none."""
    host = f"[{address}]" if address.version == 6 else str(address)
    url = f"http://{host}:{PORT}{path}"
    command = ["curl", "-s", "-m", "1", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, url]
    return client.exec(command).stdout


def say(sock: socket.socket, line: str) -> bytes:
    """Send a request, and read until something has come."""
    sock.sendall(f"{line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return sock.recv(4096)


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_the_seed_scenario(lab: Lab, l7: L7Policy, family: int) -> None:
    lab.apply(SEED)
    address = pod(lab, "api").addresses[family]
    checkout, cart = pod(lab, "checkout"), pod(lab, "cart")
    assert status(checkout, "POST", address) == "200"
    assert status(checkout, "GET", address) == "403"
    assert status(cart, "POST", address) == "000"
    (denied, *_) = l7.events()
    assert (denied.verdict, denied.reason, denied.method, denied.path) == (
        "denied",
        "NO_RULE",
        "GET",
        "/charge",
    )
    assert denied.client[0] == checkout.addresses[family]
    assert denied.identity == lab.node.policy.identity_of(checkout.address)


def test_a_change_holds_from_the_next_request_on(lab: Lab, l7: L7Policy) -> None:
    lab.apply(SEED)
    with pod(lab, "checkout").tcp(pod(lab, "api").address, PORT) as kept:
        assert say(kept, "POST /charge").startswith(b"HTTP/1.1 200")
        lab.apply(SEED.replace("/charge", "/pay"))
        assert say(kept, "POST /charge").startswith(b"HTTP/1.1 403")
        assert kept.recv(4096) == b""


def test_a_connection_older_than_the_policy_is_ended(lab: Lab, l7: L7Policy) -> None:
    with pod(lab, "checkout").tcp(pod(lab, "api").address, PORT, timeout=10) as kept:
        assert say(kept, "GET /secret").startswith(b"HTTP/1.1 200")
        lab.apply(SEED)
        with pytest.raises(ConnectionResetError):
            kept.recv(4096)


def test_a_client_is_refused_what_its_own_policy_denies(lab: Lab, l7: L7Policy) -> None:
    lab.apply(EGRESS)
    caller, billing = pod(lab, "caller"), pod(lab, "billing")
    for address in billing.addresses:
        with caller.tcp(address, PORT) as kept:
            assert say(kept, "GET /bills/17").startswith(b"HTTP/1.1 200")
            for _ in range(2):  # and nothing after it
                with pytest.raises(PermissionError):  # EACCES
                    kept.send(b"GET /bills HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize("at_socket", [True, False], ids=["at its socket", "per packet"])
def test_a_client_that_dials_a_service_is_asked_about_the_backend(at_socket: bool) -> None:
    with Lab.start(policy=True, l7=True, pod_sockets=at_socket) as lab:
        caller = lab.pod("caller", labels={"app": "caller"}, namespace="frontend")
        other = lab.pod("other", labels={"app": "other"}, namespace="payments")
        billing = lab.pod("billing", labels={"app": "billing"}, namespace="payments")
        for each in (billing, other):
            each.serve_http(PORT, "paid")
        lab.node.services.upsert(Service("10.96.0.30", 80, backends=[billing.at(PORT)]))
        lab.apply(EGRESS)
        with caller.tcp("10.96.0.30", 80) as kept:
            assert say(kept, "GET /bills/17").startswith(b"HTTP/1.1 200")
            with pytest.raises(PermissionError):
                kept.send(b"GET /bills HTTP/1.1\r\nHost: a\r\n\r\n")
        with billing.tcp(other.address, PORT) as free:
            assert say(free, "GET /bills").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_MPTCP], ids=["TCP", "MPTCP"])
def test_what_cannot_be_read_is_not_let_in(lab: Lab, l7: L7Policy, protocol: int) -> None:
    """Sockets of MPTCP are not among those whose bytes our programs can see."""
    lab.apply(SEED.replace("8080", "9090"))
    api, checkout = pod(lab, "api"), pod(lab, "checkout")
    with (
        api.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as listening,
        checkout.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client,
    ):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(api.address), 9090))
        listening.listen()
        client.settimeout(5)
        client.connect((str(api.address), 9090))
        served, _ = listening.accept()
        with served:
            client.sendall(b"POST /charge HTTP/1.1\r\n")
            if protocol == socket.IPPROTO_TCP:
                assert served.recv(100) == b"POST /charge HTTP/1.1\r\n"
                return
            deadline = time.monotonic() + 10
            while "NOT_READ" not in l7.stats():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            served.setblocking(False)
            with pytest.raises(BlockingIOError):
                served.recv(100)
