"""The chained plugin behind real ones: pods that ptp and bridge make are in the datapath."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from k8sdatapath import Backend, NetNs, Node, NodeConfig, Service
from k8sdatapath.cni.attachment import AttachmentKey
from k8sdatapath.cni.server import CniServer
from k8sdatapath.net.netlink import Netlink
from tests.support.cni import config, environment

pytestmark = pytest.mark.lab

VIP = "10.96.0.10"
NAMES = f"kdcni{os.getpid()}"
PLUGINS = Path("/usr/lib/cni")


class Runtime:
    """Runs a chain of plugins, as a container runtime does."""

    def __init__(self, node: NetNs, kind: str, ours: Path, data: Path) -> None:
        self.node = node
        ipam: dict[str, Any] = {
            "type": "host-local",
            "dataDir": str(data),
            "ranges": [[{"subnet": "10.244.7.0/24"}], [{"subnet": "fd00:244:7::/64"}]],
        }
        made_by: dict[str, Any] = {"type": kind, "ipam": ipam}
        if kind == "bridge":
            made_by |= {"bridge": "cni0", "isDefaultGateway": True}
        else:
            ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        self.chain = [made_by, {"type": "k8sdatapath-cni", "socket": str(ours)}]

    def run(self, command: str, pod: NetNs, chain: list[dict[str, Any]], result: Any = None) -> Any:
        for plugin in chain:
            asked = config(**plugin, cniVersion="1.0.0")
            if result is not None:
                asked["prevResult"] = result
            path: list[str | Path] = [PLUGINS / plugin["type"]]
            if plugin["type"] == "k8sdatapath-cni":
                path = [sys.executable, "-m", "k8sdatapath.cni"]
            answer = self.node.call(
                subprocess.run,
                path,
                input=json.dumps(asked),
                env=os.environ | environment(command, container=pod.name, netns=str(pod.path)),
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if answer.returncode:
                raise RuntimeError(json.loads(answer.stdout)["msg"])
            result = json.loads(answer.stdout) if answer.stdout else result
        return result

    def add(self, pod: NetNs) -> Any:
        return self.run("ADD", pod, self.chain)

    def check(self, pod: NetNs, result: Any) -> None:
        self.run("CHECK", pod, self.chain, result)

    def delete(self, pod: NetNs, result: Any) -> None:
        self.run("DEL", pod, self.chain[::-1], result)


@pytest.fixture
def own() -> Iterator[ExitStack]:
    with ExitStack() as own:
        yield own


@pytest.fixture
def pods(own: ExitStack) -> list[NetNs]:
    return [own.enter_context(NetNs.create(f"{NAMES}{which}")) for which in ("a", "b")]


@pytest.fixture
def node(own: ExitStack) -> Node:
    netns = own.enter_context(NetNs.create(NAMES))

    def loopback() -> None:
        with Netlink() as net:
            net.set_up("lo")

    netns.call(loopback)
    return own.enter_context(Node.open(NodeConfig(name="n1", netns=netns, socket_lb=False)))


def addresses(result: Any) -> list[str]:
    return [each["address"].split("/")[0] for each in result["ips"]]


def serve(own: ExitStack, pod: NetNs, family: socket.AddressFamily, port: int) -> None:
    """Says its name to whoever connects, until the test ends."""
    listener = pod.call(socket.create_server, ("", port), family=family)
    own.callback(listener.close)
    own.callback(listener.shutdown, socket.SHUT_RDWR)

    def greet() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.sendall(pod.name.encode())

    threading.Thread(target=greet, daemon=True).start()


def ask(pod: NetNs, address: str, port: int) -> str:
    with closing(pod.call(socket.create_connection, (address, port), timeout=10)) as connection:
        return connection.recv(100).decode()


@pytest.mark.parametrize("kind", ["ptp", "bridge"])
def test_pods_of_real_plugins_reach_services(
    kind: str, own: ExitStack, node: Node, pods: list[NetNs], tmp_path: Path
) -> None:
    places = {"socket": tmp_path / "run" / "cni.sock", "state": tmp_path / "pods"}
    assert node.config.netns is not None
    runtime = Runtime(node.config.netns, kind, places["socket"], tmp_path / "ipam")
    with CniServer(node, netns=node.config.netns, **places) as server:
        results = [runtime.add(pod) for pod in pods]
        assert {key.container for key in server.attachments} == {pod.name for pod in pods}
        for pod, result in zip(pods, results, strict=True):
            runtime.check(pod, result)
        v4, v6 = addresses(results[1])
        node.services.upsert(
            Service(VIP, 80, backends=[Backend(v4, 8080)]),
            Service("fd00:96::10", 80, backends=[Backend(v6, 8081)]),
        )
        serve(own, pods[1], socket.AF_INET, 8080)
        serve(own, pods[1], socket.AF_INET6, 8081)
        assert ask(pods[0], VIP, 80) == pods[1].name
        assert ask(pods[0], "fd00:96::10", 80) == pods[1].name
        assert node.counters()["TO_POD"].packets > 0  # straight into the pod, past the node's stack

    with CniServer(node, netns=node.config.netns, **places) as server:  # another agent
        runtime.delete(pods[0], results[0])
        assert [key.container for key in server.attachments] == [pods[1].name]
        with pytest.raises(RuntimeError):
            runtime.check(pods[0], results[0])
        runtime.delete(pods[1], results[1])
        assert server.attachments == {}


def test_a_pod_that_went_while_no_agent_ran_is_let_go(
    own: ExitStack, node: Node, pods: list[NetNs], tmp_path: Path
) -> None:
    places = {"socket": tmp_path / "cni.sock", "state": tmp_path / "pods"}
    assert node.config.netns is not None
    runtime = Runtime(node.config.netns, "ptp", places["socket"], tmp_path / "ipam")
    with CniServer(node, netns=node.config.netns, **places):
        results = [runtime.add(pod) for pod in pods]
    runtime.delete(pods[0], results[0])
    with CniServer(node, netns=node.config.netns, **places) as server:
        assert list(server.attachments) == [AttachmentKey("pods", pods[1].name, "eth0")]
