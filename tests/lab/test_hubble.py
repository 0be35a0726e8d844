"""Flows of real packets, asked for in Hubble's protocol."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from k8sdatapath import Frontend, Lab, Service
from k8sdatapath.cli.app import app
from k8sdatapath.hubble import HubbleServer, ServerOptions
from k8sdatapath.model.workload import Workload
from tests.support.agents import NodeUnderTest, ask, service, slices, write
from tests.support.hubble_client import HubbleClient

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-billing, namespace: my-app}
spec:
  podSelector: {matchLabels: {app: backend}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: billing}}}]}]
"""
SYNS = re.compile(r'^hubble_tcp_flags_total\{family="IPv4",flag="SYN"\} [1-9]', re.MULTILINE)
SEED = "observe --namespace my-app --pod frontend-v1-abcde --to-service backend-api --verdict DROPPED -o json"


def observed(command: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_frontend_that_policy_denies_is_seen_as_hubble_shows_it() -> None:
    with Lab.start(policy=True, flows="aggregated") as lab:
        backend = lab.pod("backend-0", namespace="my-app", labels={"app": "backend"})
        frontend = lab.pod("frontend-v1-abcde", namespace="my-app", labels={"app": "frontend"})
        backend.serve_http(8080, "backend")
        lab.node.services.upsert(
            Service("10.96.0.10", 80, name="my-app/backend-api", backends=[backend.at(8080)])
        )
        lab.apply(POLICY)
        with pytest.raises(OSError, match="timed out"):
            frontend.get("http://10.96.0.10", timeout=1)
        options = ServerOptions(listen=("127.0.0.1:0",))
        with HubbleServer(lab.node.flows, options) as server:
            lines = observed(f"{SEED} --server {server.addresses[0]}")
            # who was there, which service and which policy it was, is told of the time of the flow
            lab.node.datapath.detach_pod(frontend.device, frontend.addresses)
            other = Workload.pod("other/next", {"app": "next"}, addresses=frontend.addresses)
            lab.node.datapath.names.learn(other, 999)
            lab.apply(POLICY.replace("only-billing", "only-others"))
            lab.node.datapath.policy.remove("NetworkPolicy my-app/only-billing")
            lab.node.services.remove(Frontend("10.96.0.10", 80))
            lab.node.services.upsert(Service("10.96.0.10", 80, name="other/next"))
            assert observed(f"{SEED} --server {server.addresses[0]}")[: len(lines)] == lines
    flow = lines[0]["flow"]
    assert flow["ingress_denied_by"] == [
        {"name": "only-billing", "namespace": "my-app", "kind": "NetworkPolicy"}
    ]
    assert flow["verdict"] == "DROPPED"
    assert flow["drop_reason_desc"] == "POLICY_DENIED"
    assert flow["Type"] == "L3_L4"
    assert flow["Summary"] == "TCP Flags: SYN"
    assert flow["l4"]["TCP"]["destination_port"] == 8080
    assert flow["source"]["pod_name"] == "frontend-v1-abcde"
    assert flow["destination"]["pod_name"] == "backend-0"
    assert flow["destination_service"] == {"name": "backend-api", "namespace": "my-app"}
    assert "k8s:app=frontend" in flow["source"]["labels"]
    assert flow["source"]["identity"] != flow["destination"]["identity"] != 0


def test_an_agent_serves_flows_and_counts_them(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(directory, "web", [service("web", "10.96.0.10", "fd00:96::10"), *slices("web", [(1, 3)])])
    socket = tmp_path / "hubble.sock"
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}}
    manifest["status"] = {"addresses": [{"type": "InternalIP", "address": "192.0.2.12"}]}
    write(directory, "node", [manifest])
    write(
        directory, "pods", [pod("web-5c-x", 3, "node-1"), pod("far", 9, "node-2"), pod("client", 2, "node-1")]
    )
    hubble = {"enabled": True, "socketPath": str(socket), "metrics": {"enabled": ["flow", "tcp"]}}
    hubble["listenAddress"] = ":0"
    with NodeUnderTest([f"--source={directory}"], hubble=hubble) as node:
        client = node.pod("client", 2)
        node.pod("web", 3)
        node.start()
        assert ask(client, "10.96.0.10") == "web"
        flows: list[dict[str, Any]] = []

        def seen() -> bool:
            told = observed(f"observe --last 100 --port 8080 -o json --server unix://{socket}")
            flows[:] = [each for each in told if "flow" in each]
            return bool(flows)

        node.until(seen)
        assert {each["node_name"] for each in flows} == {"default/node-1"}
        assert {each["flow"]["verdict"] for each in flows} <= {"FORWARDED", "TRANSLATED"}
        requests = [each["flow"] for each in flows if is_request(each)]
        assert {each["destination_service"]["name"] for each in requests} == {"web"}
        (web,) = (each["destination"] for each in requests[-1:])
        assert (web["pod_name"], web["workloads"]) == ("web-5c-x", [{"name": "web", "kind": "Deployment"}])
        (asker,) = (each["source"] for each in requests[-1:])
        assert len({web["identity"], asker["identity"], 0}) == 3

        node.until(lambda: SYNS.search(node.probe("metrics")[1]))
        with HubbleClient(f"unix:{socket}") as client_of_peers:
            peer = next(client_of_peers.notify())
            assert (peer.name, peer.address) == ("default/node-2", "192.0.2.12:0")
        assert "hubble_flows_processed_total{" in node.probe("metrics")[1]
        assert node.stop() == 0


def pod(name: str, last: int, node: str) -> dict[str, Any]:
    labels = {"app": name.partition("-")[0], "pod-template-hash": "5c"}
    owner = {"kind": "ReplicaSet", "name": "web-5c", "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels, "ownerReferences": [owner]},
        "spec": {"nodeName": node},
        "status": {"podIP": f"10.1.1.{last}"},
    }


def is_request(event: dict[str, Any]) -> bool:
    return bool(event["flow"]["l4"]["TCP"].get("destination_port") == 8080)
