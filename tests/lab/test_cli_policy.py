"""What the command line tells of policies that some process has put in force: it knows the pins only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab import Lab
from k8sdatapath.model.workload import Workload
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.pins import PinDir

pytestmark = pytest.mark.lab

API = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 8080, endPort: 8081}]
  - from: [{ipBlock: {cidr: 198.51.100.0/24}}]
"""
RULE, DEFAULT = "NetworkPolicy shop/api spec.ingress[0]", "default deny: NetworkPolicy shop/api"
FAR = Workload.pod("shop/far", {"app": "far", "long": "x" * 63, "more": "y" * 63, "yet": "z" * 63})


class Place:
    def __init__(self, lab: Lab, node: Node, pins: Path) -> None:
        self.lab, self.node, self.pins = lab, node, pins
        self.web, self.other, self.api = (lab.pod(name) for name in ("web", "other", "api"))
        for number, pod in enumerate((self.web, self.other, self.api), 300):
            workload = Workload.pod(f"shop/{pod.name}", {"app": pod.name}, addresses=pod.addresses)
            node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac, identity=number, workload=workload)

    def ask(self, *command: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(app, [*command, "--pins", str(self.pins), "-o", "json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab.start(datapath=False) as lab:
        pins = Path(f"/sys/fs/bpf/kdtest-view-{lab.name}")
        try:
            config = NodeConfig(netns=lab.node.netns, pins=pins, policy=True, collect=False)
            with Node.open(config) as node:  # without upkeep, which learns addresses as the kernel makes them
                found = Place(lab, node, pins)
                assert node.policy is not None
                found.node.policy.upsert(*parse_policies(API))
                found.api.serve_http(8080, "api")
                yield found
        finally:
            PinDir(pins).remove()


def test_each_rule_is_listed_with_the_packets_it_was_decisive_for(place: Place) -> None:
    def packets() -> dict[str, int]:
        return {row["rule"]: row["packets"] for row in place.ask("policy", "list")}

    before = packets()
    assert place.web.get(f"http://{place.api.address}:8080").text == "api"
    with pytest.raises(TimeoutError):
        place.other.get(f"http://{place.api.address}:8080", timeout=0.5)
    after = packets()
    assert after[RULE] >= before[RULE] + 3
    assert after[DEFAULT] > before[DEFAULT]
    rows = {row["rule"]: row for row in place.ask("policy", "list")}
    assert (rows[RULE]["direction"], rows[RULE]["verdict"]) == ("ingress", "allow")
    assert (rows[DEFAULT]["direction"], rows[DEFAULT]["verdict"]) == ("ingress", "deny")
    assert rows[RULE]["bytes"] >= 20 * rows[RULE]["packets"]
    assert "the pod's own node" in rows
    assert "no policy isolates" in rows
    assert place.node.policy is not None
    place.node.policy.audit = True
    try:
        assert {row["rule"]: row["verdict"] for row in place.ask("policy", "list")}[DEFAULT] == "audit"
    finally:
        place.node.policy.audit = False


def test_the_rules_of_a_pod_are_shown_with_who_they_are_for(place: Place) -> None:
    rows = place.ask("policy", "get", str(place.api.addresses[1]))
    (rule,) = (row for row in rows if row["rule"] == RULE)
    assert (rule["direction"], rule["verdict"], rule["ports"]) == ("ingress", "allow", "8080-8081 of TCP")
    assert "k8s:app=web" in rule["peer_labels"]
    (block,) = (row for row in rows if row["rule"].endswith("ingress[1]"))
    assert block["peer_labels"].endswith("in 198.51.100.0/24")
    assert [row["rule"] for row in rows if row["direction"] == "egress"] == ["no policy isolates"]
    assert not any(row["rule"] == RULE for row in place.ask("policy", "get", str(place.web.address)))
    result = CliRunner().invoke(app, ["policy", "get", "192.0.2.7", "--pins", str(place.pins)])
    assert result.exit_code == 1
    assert "192.0.2.7 is no pod of this node" in result.output


def test_identities_are_listed_with_what_restricts_them(place: Place) -> None:
    rows = {row["identity"]: row for row in place.ask("identity", "list")}
    api = rows[302]
    assert (api["addresses"], api["addresses_here"], api["restricted"]) == (2, 2, ["ingress"])
    assert api["rules"] == len(place.ask("policy", "get", str(place.api.address)))
    assert api["labels"].startswith("k8s:app=api;")
    assert rows[300]["restricted"] == []
    assert rows[1]["labels"] == "reserved:host="


def test_addresses_are_those_of_whom_packets_are_judged_as(place: Place) -> None:
    assert place.node.policy is not None
    far = Workload(FAR.name, FAR.labels, addresses=["10.244.9.9"])
    place.node.policy.learn({far: 400})
    rows = {row["where"]: row for row in place.ask("ipcache", "list")}
    assert rows["10.244.9.9/32"]["identity"] == 400
    assert rows["10.244.9.9/32"]["labels"].startswith("k8s:app=far;")
    assert "198.51.100.0/24" in rows
    assert rows == {row["where"]: row for row in place.ask("ipcache", "list")}
    for address in (*place.web.addresses, ip_address("10.244.9.9")):
        (row,) = place.ask("ipcache", "get", str(address))
        assert row == rows[f"{address}/{address.max_prefixlen}"]
    (row,) = place.ask("ipcache", "get", "198.51.100.77")
    assert row["where"] == "198.51.100.0/24"
    assert place.ask("ipcache", "get", "192.0.2.7")[0]["where"] == "0.0.0.0/0"
    assert place.ask("ipcache", "get", "2001:db8::7")[0]["labels"].startswith("reserved:world")
    place.node.policy.forget(far.name)
    assert "10.244.9.9/32" not in {row["where"] for row in place.ask("ipcache", "list")}


def test_what_a_name_has_no_room_for_is_cut_and_names_go_with_what_they_are_for(place: Place) -> None:
    assert place.node.policy is not None
    labels = {f"label-{number:02}": "ü" * 40 for number in range(20)}
    long = Workload(
        "shop/long", [f"k8s:{key}={value}" for key, value in labels.items()], addresses=["10.9.9.9"]
    )
    place.node.policy.learn({long: 401})
    (row,) = place.ask("ipcache", "get", "10.9.9.9")
    assert row["labels"].endswith("…")
    assert len(row["labels"].encode()) <= 495
    names = place.node.pressure()["kd_names"].used
    place.node.policy.forget("shop/long")
    assert place.node.pressure()["kd_names"].used == names - 1
