"""Nodes, and who is known by a word, on either side of what policies are asked about without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.datapath.policy_lint import lint
from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.datapath.policy_plan import plan_policies
from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.errors import ModelError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.model.policy import Policy, Toward
from k8sdatapath.model.workload import Workload
from k8sdatapath.testing import PolicyWorld
from tests.support.policies import pods, policy_lists

MANIFESTS = """
apiVersion: v1
kind: Node
metadata: {name: one, labels: {role: edge}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: two}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: one}
status: {podIP: 10.0.1.2}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: two}
status: {podIP: 10.0.2.2}
---
"""
EDGE = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: edge}
spec:
  nodeSelector: {matchLabels: {role: edge}}
  ingress:
  - fromEntities: [remote-node]
  - fromEndpoints: [{matchLabels: {app: api}}]
    toPorts: [{ports: [{port: "9100"}]}]
  - fromCIDR: [198.51.100.0/24]
---
"""
API = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEntities: [world]
  - fromNodes: [{matchLabels: {role: edge}}]
  egress:
  - toEntities: [host]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("nodes") / "all.yaml"
    file.write_text(MANIFESTS + EDGE + API)
    return file


@pytest.fixture(scope="module")
def world(files: Path) -> PolicyWorld:
    return PolicyWorld.read(files)


@pytest.mark.parametrize(
    ("source", "destination", "port", "allowed", "because"),
    [
        ("two", "one", 80, True, "spec.ingress[0]"),
        ("one", "two", 80, True, "no policy isolates"),
        ("world", "one", 80, False, "CiliumClusterwideNetworkPolicy edge isolates"),
        ("world", "one", 22, True, "HostFirewall failsafe"),
        ("198.51.100.0/24", "one", 80, True, "spec.ingress[2]"),
        ("198.51.100.7", "one", 80, True, "spec.ingress[2]"),
        ("world-ipv6", "one", 80, False, "edge isolates"),
        ("shop/web", "one", 80, True, "between a node and its pod"),
        ("shop/api", "one", 9100, False, "egress denied by default"),
        ("shop/api", "two", 80, True, "CiliumNetworkPolicy shop/api spec.egress[0]"),
        ("shop/api", "host", 80, True, "CiliumNetworkPolicy shop/api spec.egress[0]"),
        ("one", "shop/api", 80, True, "spec.ingress[1]"),
        ("two", "shop/api", 80, True, "from the pod's own node"),
        ("host", "shop/api", 80, True, "from the pod's own node"),
        ("remote-node", "shop/api", 80, False, "shop/api isolates"),
        ("world", "shop/api", 80, True, "spec.ingress[0]"),
        ("192.0.2.1", "shop/api", 80, True, "spec.ingress[1]"),
        ("ingress", "shop/api", 80, False, "shop/api isolates"),
        ("one", "one", 80, True, "to itself"),
    ],
)
def test_nodes_and_words_on_either_side(
    world: PolicyWorld, source: str, destination: str, port: int, allowed: bool, because: str
) -> None:
    verdict = world.verdict(source, destination, port)
    assert verdict.allowed is allowed, str(verdict)
    assert because in str(verdict)


def test_a_rule_that_nearly_allows_a_node_is_named(world: PolicyWorld) -> None:
    why = world.why("remote-node", "shop/api", 80)
    assert "not by CiliumNetworkPolicy shop/api spec.ingress[1]: asks for node:role=edge" in str(why)
    why = world.why("world", "one", 9100)
    assert "CiliumClusterwideNetworkPolicy edge spec.ingress[2]: asks for 198.51.100.0/24" in str(why)


def test_a_network_that_policies_tell_apart_is_asked_for_in_parts(world: PolicyWorld) -> None:
    with pytest.raises(ModelError, match=r"not all one to these policies: ask for 198.51.100.0/24"):
        world.verdict("198.51.0.0/16", "one", 80)
    with pytest.raises(ModelError, match="did you mean 'shop/api'"):
        world.verdict("shop/ap", "one", 80)


def test_without_a_policy_for_nodes_nobody_asks_them() -> None:
    policies = PolicySet(parse_policies(API), [Workload.node("one")])
    assert not policies.verdict("world", "one", 80).decisions
    assert "HostFirewall failsafe" not in policies.policies


def test_a_matrix_has_nodes_and_who_else_is_asked_for(files: Path, world: PolicyWorld) -> None:
    found = world.matrix(80, "TCP", "world", world.node("three", {"role": "edge"}))
    assert found.names == ("one", "shop/api", "shop/web", "two", "world", "three")
    assert found.reached["world"] == {"shop/api", "shop/web", "two", "world"}
    assert found.reached["three"] == {"one", "shop/api", "shop/web", "two", "world", "three"}
    command = ["policy", "matrix", "-f", str(files), "--port", "80", "-o", "json"]
    also = ["--also", "world", "--also", "three:role=edge", "--also", "2001:db8::1"]
    rows = json.loads(CliRunner().invoke(app, [*command, *also]).stdout)
    reaches = {row["from"]: row["reaches"] for row in rows}
    assert {"one", "shop/api", "shop/web", "two", "world"} <= set(reaches["three"])
    assert "one" not in reaches["2001:db8::1"]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (("--from", "two", "--to", "one"), 0),
        (("--from", "world", "--to", "one"), 1),
        (("--from", "shop/new:app=api", "--to", "one"), 1),
        (("--from", "four:role=edge", "--to", "shop/api"), 0),
        (("--from", "fd00::1", "--to", "shop/api"), 0),
    ],
)
def test_the_command_takes_them(files: Path, ends: tuple[str, ...], code: int) -> None:
    result = CliRunner().invoke(app, ["policy", "why", "-f", str(files), *ends, "--port", "80"])
    assert result.exit_code == code, result.output


def test_policies_for_nodes_are_checked_listed_linted_and_planned(files: Path, tmp_path: Path) -> None:
    def asked(*words: str, code: int = 0) -> list[dict[str, Any]]:
        result = CliRunner().invoke(app, ["policy", *words, "-o", "json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    assert asked("check", str(files))[0]["for"] == "node:role=edge, reserved:host"
    assert len(asked("list", str(files))) == 6
    assert asked("lint", str(files)) == []
    nobody = tmp_path / "nobody.yaml"
    nobody.write_text(MANIFESTS + EDGE.replace("role: edge", "role: core") + API)
    (finding,) = asked("lint", str(nobody), code=1)
    assert finding["because"] == "it is for node:role=core, reserved:host, and no node is that"
    rows = asked("plan", "-f", str(files), "--instead-of", str(nobody))
    cut = {(*row["from"], *row["to"]) for row in rows if row["then"] == "denied"}
    assert ("the world (IPv4)", "one") in cut
    assert ("shop/api", "a pod's own node, two") not in cut
    assert not any(ends[1] == "two" for ends in cut)


def test_rules_for_a_pods_own_node_do_something() -> None:
    pod = Workload.pod("shop/api", {"app": "api"})
    assert (
        lint(parse_policies(API.split("  - fromNodes")[0] + "  egress: [{toEntities: [host]}]"), [pod]) == ()
    )
    plan = plan_policies([], parse_policies(API.replace("[host]", "[world]")), [pod])
    cut = {(each.source, each.destination) for each in plan.cut}
    assert (("shop/api",), ("a pod's own node",)) in cut
    assert (("another node",), ("shop/api",)) in cut
    assert (("a pod's own node",), ("shop/api",)) not in cut


def one_way(policies: list[Policy], toward: Toward) -> list[Policy]:
    return [
        evolve(
            each,
            rules=[rule for rule in each.rules if rule.toward is toward],
            isolates=each.isolates & {toward},
        )
        for each in policies
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pod=pods(0), policies=policy_lists, roles=st.tuples(*[st.sampled_from(("", "x"))] * 2), on=st.booleans()
)
def test_nodes_are_judged_as_the_oracle_says(
    pod: Workload, policies: list[Policy], roles: tuple[str, str], on: bool
) -> None:
    one, two = (
        Workload.node(f"node {at}", {"app": role} if role else {}, addresses=[f"10.9.9.{at}"])
        for at, role in enumerate(roles)
    )
    pod = evolve(pod, on=one.name if on else "")
    asked = PolicySet(policies, [one, two, pod], host_firewall=True)
    everything = [*policies, HostFirewall().failsafe]

    def seen(own: Workload, peer: Workload) -> tuple[Workload, Workload]:
        return own.at_home, peer.at_home if own.on == peer.name else peer

    for source, destination in ((one, two), (one, pod), (pod, one), (two, pod), (pod, two)):
        for port in (22, 80, 8080):
            sides = seen(source, destination), seen(destination, source)[::-1]
            wanted = [
                allows(one_way(everything, toward), *ends, port, 6, version=4, nodes=True)
                for toward, ends in zip((Toward.EGRESS, Toward.INGRESS), sides, strict=True)
            ]
            if on and {source, destination} == {one, pod}:  # a node's policies are not for its own pods
                wanted[source is pod] = True
            assert asked.verdict(source, destination, port, version=4).allowed is all(wanted)
