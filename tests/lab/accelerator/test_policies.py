"""Policies decide over what is handed over as over what is sent, also later ones and those of requests."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from k8sdatapath.datapath.l7_policy import L7Port
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab.lab import LabNode
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.workload import Workload
from tests.support.acceleration import pair, pod, since
from tests.support.connections import connected, dial, listen, read

pytestmark = pytest.mark.lab

DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}}
"""


MUTE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: default}
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}
"""
PORT = 8080
REQUESTS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: POST, path: /charge}]}
"""
CHARGE = b"POST /charge HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n"
ALLOW = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""


def test_a_policy_that_comes_later_holds(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    with connected(client, web) as made:
        made.say(b"allowed")
        handed = pair(node).client.messages
        node.policy.upsert(*parse_policies(DENY))
        before = node.accelerator.stats()
        made.client.sendall(b"denied")
        made.server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            made.server.recv(10)
        assert since(node, before) == {"policy": 1}
        node.policy.upsert(*parse_policies(ALLOW))  # the kernel sends it again, and then the way is free
        made.server.settimeout(10)
        assert read(made.server, 6) == b"denied"
        made.say(b"allowed")
        assert pair(node).client.messages > handed


def until_silent(sock: socket.socket) -> bytes:
    """What there is, and comes until nothing does for a moment."""
    got, patience = bytearray(), sock.gettimeout()
    sock.settimeout(0.3)
    with suppress(TimeoutError):
        while piece := sock.recv(1 << 20):
            got += piece
    sock.settimeout(patience)
    return bytes(got)


def test_a_stream_is_cut_where_its_client_may_not_send_and_goes_on_whole(node: LabNode) -> None:
    """By a policy of the client's: nothing comes while that holds, and nothing is lost."""
    data = random.Random(7).randbytes(40 << 20)
    with connected(pod(node, "client"), pod(node, "web")) as made:
        writer = threading.Thread(target=made.client.sendall, args=(data,))
        writer.start()
        got = read(made.server, 1 << 20)
        assert pair(node).client.messages > 0
        node.policy.upsert(*parse_policies(MUTE))
        got += until_silent(made.server)
        denied = pair(node).client.messages
        assert len(got) < len(data)
        node.policy.remove(*node.policy.policies)
        got += read(made.server, len(data) - len(got))
        writer.join()
        made.say(b"!")
        assert pair(node).client.messages > denied
    assert got == data


def test_a_pod_that_becomes_another_goes_through_the_stack(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    with connected(client, web) as made, connected(client, pod(node, "other")) as beside:
        made.say(b"as before")
        beside.say(b"as before")
        for labels in ({"app": "renamed"}, {"app": "web"}):
            renamed = Workload.pod("default/web", labels, addresses=web.addresses)
            node.datapath.attach_pod(
                web.device, web.addresses, pod_mac=web.mac, identity=1000, workload=renamed
            )
            made.say(b"as another")
            assert pair(node).server.peer.address == pod(node, "other").address


def test_who_is_not_allowed_does_not_even_connect(node: LabNode) -> None:
    node.policy.upsert(*parse_policies(ALLOW))
    with listen(pod(node, "web")) as listener:
        address, port = pod(node, "web").address, listener.getsockname()[1]
        with pytest.raises(TimeoutError):
            pod(node, "other").tcp(address, port, timeout=0.5)
        made = dial(pod(node, "client"), listener, address)
        with made:
            made.say(b"hello")
            assert pair(node).client.messages == 1


def by_policy(node: LabNode) -> Callable[[], object]:
    """Whoever asks for /charge may, between these pods."""
    node.policy.upsert(*parse_policies(REQUESTS))
    return lambda: node.policy.remove(*node.policy.policies)


def by_port(node: LabNode) -> Callable[[], object]:
    """The same at a port, whoever it is."""
    l7 = node.datapath.l7
    assert l7 is not None
    web = pod(node, "web")
    l7.upsert(*(L7Port(each, PORT, [HTTPRule(method="POST", path="/charge")]) for each in web.addresses))
    return lambda: l7.remove(*(port.end for port in l7.ports))


@pytest.mark.parametrize("lab", [True], ids=["at-the-socket"], indirect=True)
@pytest.mark.parametrize("hold", [by_policy, by_port])
def test_requests_that_are_held_to_rules_are_read(
    node: LabNode, hold: Callable[[LabNode], Callable[[], object]]
) -> None:
    """They are not handed over; older connections are ended, as those are that never were handed over."""
    client, web = pod(node, "client"), pod(node, "web")
    with listen(web, PORT) as listener, dial(client, listener, web.address) as old:
        old.say(b"GET /secret")
        assert pair(node).client.messages == 1
        let_go = hold(node)
        try:
            with pytest.raises(ConnectionResetError):
                old.client.recv(1)
            for address in web.addresses:
                with dial(client, listener, address) as made:
                    assert not list(node.accelerator.pairs())
                    made.client.sendall(CHARGE)
                    assert read(made.server, len(CHARGE)) == CHARGE
                    made.server.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    assert made.client.recv(100).startswith(b"HTTP/1.1 200")
                    made.client.sendall(CHARGE.replace(b"POST", b"GET"))
                    assert made.client.recv(100).startswith(b"HTTP/1.1 403")
        finally:
            let_go()
        with dial(client, listener, web.address) as free:
            free.say(b"GET /secret")
            assert pair(node).client.messages == 1


def test_a_pod_that_goes_takes_its_pairs_along(node: LabNode) -> None:
    """Its addresses may be another's a moment later."""
    client, web = pod(node, "client"), pod(node, "web")
    with connected(client, web) as made:
        made.say(b"hello")
        node.datapath.detach_pod(web.device, web.addresses)
        assert not list(node.accelerator.pairs())
        before = node.accelerator.stats()
        made.client.sendall(b"is anybody there?")
        assert since(node, before) == {"alone": 1}
        again = Workload.pod("default/web", {"app": "web"}, addresses=web.addresses)
        node.datapath.attach_pod(web.device, web.addresses, pod_mac=web.mac, identity=1000, workload=again)
