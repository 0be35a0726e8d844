"""Policies that cannot be, or cannot be enforced, are refused, and the error names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.policy import parse_policies, read_policies


def refusal(version: str, kind: str, spec: Any, **more: Any) -> str:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "p"}, "spec": spec} | more
    with pytest.raises(ManifestError) as caught:
        parse_policies(json.dumps(document), "p.json")
    assert caught.value.where.startswith("p.json: document 1")
    return f"{caught.value.path}: {caught.value.reason}"


def ingress(**rule: Any) -> dict[str, Any]:
    return {"podSelector": {}, "ingress": [rule]}


NETWORK_POLICY = [
    (None, "spec: missing"),
    ({"podSelector": {}, "Ingress": []}, "spec.Ingress: no such field: did you mean 'ingress' or 'egress'?"),
    (
        {"podSelector": {}, "policyTypes": ["ingress"]},
        "spec.policyTypes[0]: 'ingress' is none of Ingress, Egress",
    ),
    (ingress(to=[]), "spec.ingress[0].to: no such field: there is from, ports"),
    (
        ingress(**{"from": [{}]}),
        "spec.ingress[0].from[0]: one of podSelector, namespaceSelector, ipBlock is needed here, "
        "this has none",
    ),
    (
        ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
        "spec.ingress[0].from[0]: ipBlock stands alone: selectors belong into an item of their own",
    ),
    (
        ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}),
        "spec.ingress[0].from[0].ipBlock.cidr: '10.0.0.0' is not a network: write 10.0.0.0/8 or fd00::/8",
    ),
    (
        ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}),
        "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 is not a part of 10.0.0.0/8",
    ),
    (ingress(ports=[{"port": 99999}]), "spec.ingress[0].ports[0].port: 99999 is not a port (1 to 65535)"),
    (
        ingress(ports=[{"port": "http", "endPort": 90}]),
        "spec.ingress[0].ports[0].endPort: a range begins with a number, not with 'http'",
    ),
    (
        ingress(ports=[{"port": 80, "endPort": 79}]),
        "spec.ingress[0].ports[0].endPort: 79 is before the first port of the range, 80",
    ),
    (ingress(ports=[{"endPort": 79}]), "spec.ingress[0].ports[0].endPort: a range needs its first port"),
    (
        ingress(ports=[{"port": 80, "protocol": "ICMP"}]),
        "spec.ingress[0].ports[0].protocol: 'ICMP' is none of TCP, UDP, SCTP",
    ),
    (
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "spec.podSelector.matchExpressions[0].values: In needs some",
    ),
    (
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
        "spec.podSelector.matchExpressions[0].values: Exists needs none",
    ),
    (
        {"podSelector": {"matchLabels": {"not a key": "b"}}},
        "spec.podSelector.matchLabels.not a key: 'not a key' is not the key of a label",
    ),
    (
        {"podSelector": {"matchLabels": {"a": 1}}},
        "spec.podSelector.matchLabels.a: 1 is a number, not text",
    ),
]


@pytest.mark.parametrize(("spec", "said"), NETWORK_POLICY, ids=[said for _, said in NETWORK_POLICY])
def test_network_policy_is_refused(spec, said):
    assert refusal("networking.k8s.io/v1", "NetworkPolicy", spec) == said


def test_another_version_is_refused_rather_than_passed_over():
    said = refusal("networking.k8s.io/v1beta1", "NetworkPolicy", {})
    assert said == "apiVersion: NetworkPolicy is read as networking.k8s.io/v1"


def test_a_policy_has_one_place(tmp_path):
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(policy | {"spec": {"podSelector": {}}}))
    assert len(read_policies(tmp_path / "a.json")) == 1
    with pytest.raises(ManifestError, match=r"b\.json.*: it is in .*a\.json.* too"):
        read_policies(tmp_path / "a.json", tmp_path / "b.json")


def test_objects_of_other_kinds_are_passed_over():
    assert parse_policies("kind: Service\napiVersion: v1\nmetadata: {name: s}") == ()
