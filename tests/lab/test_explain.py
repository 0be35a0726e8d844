"""What is explained happens on the wire."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.datapath.explanation import Place
from k8sdatapath.errors import ModelError
from k8sdatapath.lab import Lab, Pod
from k8sdatapath.model import Backend, Exposure, Frontend, Service
from k8sdatapath.node import Capacity
from k8sdatapath.pins import PinDir

SMALL = Capacity(services=256, backends=1024, slots=8192, flows=16384, pods=64)
NODE_PORT = 30080


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(capacity=SMALL, socket_lb=False) as lab:
        for name in ("one", "two"):
            lab.pod(name).serve_http(8080, name)
        lab.pod("client")
        lab.external("outside")
        yield lab


def pods(lab: Lab) -> dict[str, Pod]:
    return {pod.name: pod for pod in lab.node.pods}


def expose(lab: Lab, *names: str, family: int = 4, **options: object) -> Service:
    backends = [Backend(pods(lab)[name].addresses[family == 6], 8080) for name in names]
    exposed = [Exposure("node_port", lab.node.addresses[family == 6], NODE_PORT)]
    address = "10.96.0.10" if family == 4 else "fd00:10:96::10"
    service = Service(address, 80, backends=backends, exposed=exposed, **options)  # type: ignore[arg-type]
    lab.node.services.plan([service]).apply()
    return service


@pytest.mark.parametrize("family", [4, 6])
def test_the_backend_that_is_explained_answers(lab: Lab, family: int) -> None:
    service = expose(lab, "one", "two", family=family, selection="maglev")
    client, outside = pods(lab)["client"], lab.externals[0]
    names = {pods(lab)[name].addresses[family == 6]: name for name in ("one", "two")}
    node_port = Frontend(lab.node.addresses[family == 6], NODE_PORT)
    said = set()
    for sport in range(20000, 20012):
        for host, dialled, at in (
            (client, service.frontend, Place.POD),
            (outside, node_port, Place.UPLINK),
        ):
            source = host.addresses[family == 6]
            explanation = lab.node.datapath.explain(dialled, source, at, port=sport)
            assert explanation.outcome.name == "TO_POD", str(explanation)
            assert explanation.backend is not None
            with host.socket(2 if family == 4 else 10) as sock:
                sock.settimeout(10)
                sock.bind((str(source), sport))
                sock.connect((str(dialled.address), dialled.port))
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while chunk := sock.recv(4096):
                    answer += chunk
            assert answer.endswith(names[explanation.backend.address].encode())
            said.add(explanation.backend)
    assert len(said) == 2


def test_refusals_and_drops_that_are_explained_happen(lab: Lab) -> None:
    client, outside = pods(lab)["client"], lab.externals[0]
    explain = lab.node.datapath.explain
    service = expose(lab)
    assert explain(service.frontend, client.address).outcome.name == "REJECT_NO_BACKEND"
    with pytest.raises(ConnectionRefusedError):
        client.tcp("10.96.0.10", 80)
    unknown = Frontend("10.96.0.10", 81)
    assert explain(unknown, client.address).outcome.name == "REJECT_NO_SERVICE"
    with pytest.raises(ConnectionRefusedError):
        client.tcp("10.96.0.10", 81)
    expose(lab, "one", external_local=True)  # which no backend is on this node for
    node_port = Frontend(lab.node.address, NODE_PORT)
    explanation = explain(node_port, outside.address, Place.UPLINK)
    assert explanation.outcome.name == "DROP_NOT_LOCAL"
    assert "backends on this node only" in str(explanation)
    with pytest.raises(TimeoutError):
        outside.tcp(lab.node.address, NODE_PORT, timeout=0.5)


def test_sockets_of_the_node_are_explained(lab: Lab) -> None:
    service = expose(lab, "one")
    explanation = lab.node.datapath.explain(service.frontend, lab.node.address, Place.SOCKET)
    assert explanation.outcome.name == "AT_SOCKET"
    assert explanation.backend is not None
    assert explanation.backend.address == pods(lab)["one"].address


MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: a, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {nodeName: n1, containers: [{name: cart, image: cart}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {app: web}, ports: [{name: http, port: 80}]}
"""


def test_the_command_explains_beside_a_running_datapath(tmp_path: Path) -> None:
    from k8sdatapath.node import Node, NodeConfig

    pins = PinDir(f"/sys/fs/bpf/kdtest-explain-{os.getpid()}")
    try:
        with Node.open(NodeConfig(pins=pins, capacity=SMALL, redirect=False)) as node:
            node.services.upsert(Service("10.96.0.10", 80, backends=[Backend("10.244.1.3", 8080)]))
            counted = node.counters()
            arguments = [
                "--from",
                "10.244.1.2",
                "--to",
                "10.96.0.10:80",
                "--pins",
                str(pins),
                "--no-redirect",
            ]
            shown = CliRunner().invoke(app, ["explain", *arguments])
            assert shown.exit_code == 0, shown.output
            assert "The backend is 10.244.1.3:8080." in shown.stdout
            assert shown.stdout.endswith("TO_STACK: translated, then left to the node's stack.\n")
            (tmp_path / "shop.yaml").write_text(MANIFESTS)
            named = ["--from", "shop/cart", "--to", "svc/web:http", "--source", str(tmp_path), *arguments[4:]]
            by_name = CliRunner().invoke(app, ["explain", *named])
            assert by_name.stdout == shown.stdout, by_name.output
            shown = CliRunner().invoke(app, ["explain", *arguments, "--protocol", "udp", "-o", "json"])
            said = json.loads(shown.stdout)
            assert (said["outcome"], said["backend"]) == ("REJECT_NO_SERVICE", None)
            shown = CliRunner().invoke(app, ["explain", *arguments, "--at", "socket", "-o", "json"])
            assert json.loads(shown.stdout)["outcome"] == "AT_SOCKET"
            assert node.counters() == counted
            assert not list(node.flows.flows())
    finally:
        pins.remove()


def test_the_command_knows_what_the_programs_were_told() -> None:
    """Whose address a port is of that nobody serves is no row of a map, but a constant."""
    pins = PinDir(f"/sys/fs/bpf/kdtest-told-{os.getpid()}")
    try:
        with Lab.start(pins=pins) as lab:
            client, one = lab.pod("client"), lab.pod("one")
            lab.node.services.upsert(Service("10.96.0.10", 80, backends=[one.at(8080)]))
            with pytest.raises(ConnectionRefusedError):
                client.tcp("10.96.0.10", 81)
            command = ["explain", "--from", str(client.address), "--to", "10.96.0.10:81", "--pins", str(pins)]
            shown = lab.node.netns.call(CliRunner().invoke, app, command)
            assert "REJECT_NO_SERVICE" in shown.stdout, shown.output
            other = lab.node.netns.call(
                CliRunner().invoke, app, [*command, "--service-network", "10.97.0.0/16", "--no-redirect"]
            )
            assert "REJECT_NO_SERVICE" not in other.stdout, other.output
    finally:
        pins.remove()


def test_what_is_dialled_is_a_frontend(lab: Lab) -> None:
    with pytest.raises(ModelError, match=r"'10\.96\.0\.10:80' is not a Frontend"):
        lab.node.datapath.explain("10.96.0.10:80", pods(lab)["client"].address)
