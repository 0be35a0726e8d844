"""An agent whose pods leave under the node's addresses: what it is told by a file, and what outlives it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from k8sdatapath.net.netns import NetNs
from tests.support.agents import SMALL, Callers, NodeUnderTest, Server, ask, seen_by, service, slices, write

pytestmark = pytest.mark.timeout(300)

NODE, OUTSIDE, POD = "192.0.2.11", "192.0.2.101", "10.1.1.2"
OPTIONS = {
    "bpf": {"masquerade": True},
    "capacity": {**SMALL, "flows": 65536},
}  # room for all: none is evicted


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(directory, "web", [service("web", "10.96.0.10", "fd00:96::10"), *slices("web", [(1, 3)])])
    return directory


@pytest.fixture
def masq_config(tmp_path: Path) -> Path:
    path = tmp_path / "masq.yaml"
    path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']")
    return path


@pytest.fixture
def node(manifests: Path, masq_config: Path) -> Iterator[NodeUnderTest]:
    with NodeUnderTest([f"--source={manifests}", f"--masq-config={masq_config}"], **OPTIONS) as node:
        yield node


def test_the_file_is_read_again_when_it_changes(node: NodeUnderTest, masq_config: Path) -> None:
    client = node.pod("client", 2)
    node.start()
    assert seen_by(node.outside, client, OUTSIDE) == NODE
    with ExitStack() as held:
        ours, theirs = connection(held, client, node.outside)
        masq_config.write_text('{"nonMasqueradeCIDRs": ["10.0.0.0/8", "192.0.2.0/24"]}')
        node.until(lambda: seen_by(node.outside, client, OUTSIDE) == POD)
        ours.sendall(b"as before")
        assert theirs.recv(99) == b"as before"
        assert theirs.getpeername()[0] == NODE
        assert node.probe("healthz")[0] == 200

        masq_config.write_text("nonMasqueradeCIDRs: [10.0.0.0/8, 192.0.2.101/24]")
        node.until(lambda: node.probe("healthz")[0] == 503)
        assert "'192.0.2.101/24' begins in the middle of a network" in node.probe("healthz")[1]
        assert seen_by(node.outside, client, OUTSIDE) == POD

        masq_config.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]")
        node.until(lambda: seen_by(node.outside, client, OUTSIDE) == NODE)
        assert node.probe("healthz")[0] == 200
        masq_config.unlink()  # among the networks that are reserved is the one outside
        node.until(lambda: seen_by(node.outside, client, OUTSIDE) == POD)


def test_a_file_that_is_wrong_keeps_it_from_starting(node: NodeUnderTest, masq_config: Path) -> None:
    masq_config.write_text("nonMasqueradeCIDR: []")
    node.launch()
    assert node.process is not None
    assert node.process.wait(60) == 1
    node.until(lambda: any("did you mean 'nonMasqueradeCIDRs'?" in each for each in node.messages()))


EGRESS = "192.0.2.50", "2001:db8:2::50"
RULE = {
    "namespaces": ["billing"],
    "podSelector": {"matchLabels": {"app": "mail"}},
    "addresses": list(EGRESS),
}
OUTSIDES = OUTSIDE, "2001:db8:2::101"


def workload(name: str, last: int, namespace: str = "billing", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": f"10.1.1.{last}"}, {"ip": f"fd00:1:1::{last}"}]},
    }


def test_pods_leave_under_the_addresses_that_their_namespace_and_labels_say(
    node: NodeUnderTest, manifests: Path
) -> None:
    node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "egress": [RULE]}))
    add_addresses(node)
    mail, web = node.pod("mail", 2), node.pod("web", 3)

    def seen(pod: NetNs) -> tuple[str, ...]:
        return tuple(seen_by(node.outside, pod, each) for each in OUTSIDES)

    write(manifests, "pods", [workload("mail", 2, app="mail"), workload("web", 3, app="web")])
    node.start()
    assert (seen(mail), seen(web)) == (EGRESS, node.addresses)

    write(manifests, "pods", [workload("mail", 2, app="web"), workload("web", 3, app="mail")])
    node.until(lambda: (seen(mail), seen(web)) == (node.addresses, EGRESS))
    write(manifests, "pods", [workload("mail", 2, app="mail"), workload("web", 3, "shop", app="mail")])
    node.until(lambda: (seen(mail), seen(web)) == (EGRESS, node.addresses))
    write(manifests, "pods", [workload("successor", 2, "shop")])  # to the address of one that has gone
    node.until(lambda: (seen(mail), seen(web)) == (node.addresses, node.addresses))

    write(manifests, "pods", [workload("mail", 2, app="mail")])
    node.until(lambda: seen(mail) == EGRESS)
    for _ in range(2):
        node.stop(signal.SIGKILL)
        assert seen(mail) == EGRESS
        node.launch()
        while node.probe("readyz")[0] != 200:
            assert seen(mail) == EGRESS
        assert seen(mail) == EGRESS
    node.tell_again(egress=[{"nodes": ["node-2"], "addresses": [EGRESS[0]]}])
    node.until(lambda: seen(mail) == node.addresses)
    node.tell_again(egress=[{"nodes": ["node-1"], "addresses": [EGRESS[0]]}])
    node.until(lambda: seen(mail) == (EGRESS[0], node.addresses[1]))


def add_addresses(node: NodeUnderTest) -> None:
    """Those to leave under are the node's as well, but nothing leaves under them by itself."""
    for each, length in zip(EGRESS, (32, 128), strict=True):
        add = ["address", "add", f"{each}/{length}", "dev", "eth0", "nodad", "preferred_lft", "0"]
        subprocess.run(["ip", "-n", node.wires.node.name, *add], check=True)


def test_killed_and_started_again_mappings_survive(node: NodeUnderTest) -> None:
    """Two pods have one port towards one end, so what tells their flows apart is nowhere but in the table."""
    pods = [node.pod("client", 2), node.pod("other", 4)]
    node.start()
    with ExitStack() as held:
        held.enter_context(closing(Server(node.outside, "outside")))
        callers = held.enter_context(Callers(pods[0], OUTSIDE, 8080, pause=0.005))
        streams = [connection(held, pod, node.outside, bound=40001) for pod in pods]
        asked = held.enter_context(datagrams(node.outside))
        asking = [held.enter_context(datagrams(pod, 40002)) for pod in pods]
        for sock in asking:
            sock.connect((OUTSIDE, asked.getsockname()[1]))
        ports = exchange(streams, asking, asked)
        assert len(ports) == 4
        for _ in range(3):
            node.stop(signal.SIGKILL)
            assert exchange(streams, asking, asked) == ports
            made = callers.made
            node.until(lambda made=made: callers.made > made + 20)  # nobody runs, and it goes on
            node.start()
            assert exchange(streams, asking, asked) == ports
            made = callers.made
            node.until(lambda made=made: callers.made > made + 20)
        assert callers.failures == []
        assert node.stop() == 0
        assert exchange(streams, asking, asked) == ports
        assert ask(pods[1], OUTSIDE, 8080) == "outside"


Stream = tuple[socket.socket, socket.socket]


def exchange(
    streams: list[Stream], asking: list[socket.socket], asked: socket.socket
) -> set[tuple[str, int]]:
    """Something there and back on all flows; returns as whom each is seen, of which none may be another's."""
    seen = []
    for number, (ours, theirs) in enumerate(streams):
        for here, there in (ours, theirs), (theirs, ours):
            here.sendall(b"stream %d" % number)
            assert there.recv(99) == b"stream %d" % number
        seen.append(("TCP", theirs.getpeername()[1]))
    for number, sock in enumerate(asking):
        sock.send(b"datagram %d" % number)
        data, source = asked.recvfrom(99)
        assert source[0] == NODE
        asked.sendto(data, source)
        assert sock.recv(99) == b"datagram %d" % number
        seen.append(("UDP", source[1]))
    assert len(set(seen)) == len(seen)
    return set(seen)


def connection(held: ExitStack, client: NetNs, server: NetNs, *, bound: int = 0) -> Stream:
    """Both ends of a connection from a pod to one address and port outside."""
    listener = server.call(socket.create_server, (OUTSIDE, 7000))
    with listener:
        listener.settimeout(10)
        source = (POD if bound == 0 else "", bound)
        ours = held.enter_context(client.call(socket.create_connection, (OUTSIDE, 7000), 10, source))
        theirs, _ = listener.accept()
    held.enter_context(theirs)
    theirs.settimeout(10)
    return ours, theirs


def datagrams(netns: NetNs, port: int = 0) -> socket.socket:
    sock = netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.bind(("", port))
    return sock
