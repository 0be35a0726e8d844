"""Policies and their truth tables: from YAML to the verdict of every pair, compiled and by the oracle.

A case is some policies, then a ``Truth``: of each port which pairs are denied (``*`` is anybody), and which
of these are not (``but``). All other pairs are allowed, and everybody reaches itself.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.kube.documents import parse_yaml
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model import address
from k8sdatapath.model.workload import NamedPort, Workload

NAMED = {"a": [NamedPort("http", 80), NamedPort("dns", 53, "UDP")], "b": [NamedPort("http", 8080)]}
AROUND = {"x": {"team": "one"}, "y": {"team": "two"}}
PODS = [
    Workload.pod(
        f"{space}/{name}",
        {"app": name, "empty": ""} if name == "a" else {"app": name},
        namespace_labels=AROUND[space],
        addresses=[f"10.244.{space == 'y':d}.{10 if name == 'a' else 11}"],
        ports=NAMED[name],
    )
    for space in "xy"
    for name in "ab"
]
OTHERS = {
    "node": Workload("node", ["reserved:host"], addresses=["192.168.0.1"]),
    "node2": Workload.node("node2", {"role": "worker"}, addresses=["192.168.0.2"]),
    "out": address("192.0.2.7"),
    "far": address("203.0.113.9"),
}
NAMES = {"bank.example": ["192.0.2.7"], "www.eu.shop.example": ["203.0.113.9"]}
TOLD = {address(ip): [name] for name, ips in NAMES.items() for ip in ips}
WORLD = {pod.name: pod for pod in PODS} | OTHERS
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}


def cases():
    for path in sorted((Path(__file__).parent / "policy").glob("*.yaml")):
        policies: list[object] = []
        for document in parse_yaml(path.read_text(), path.name):
            if document["kind"] == "Truth":
                yield pytest.param(policies, document["ports"], id=f"{path.stem}: {document['title']}")
                policies = []
            else:
                policies.append(document)
        assert not policies, f"{path.name} ends without a Truth"


CASES = list(cases())


def expected(table, source, destination):
    """Whether a connection is allowed, by a table of one port."""
    pair = f"{source} > {destination}"
    denied = any(fnmatchcase(pair, each) for each in table.get("denied", ()))
    denied = denied and not any(fnmatchcase(pair, each) for each in table.get("but", ()))
    return source == destination or not denied


@pytest.mark.parametrize(("documents", "truth"), CASES)
def test_truth(documents, truth):
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    policies = parse_policies(text, "case.json", names=True)
    asked = PolicySet(policies, PODS, names=NAMES)
    for port, table in truth.items():
        number, _, name = port.partition("/")
        for source, one in WORLD.items():
            for destination, other in WORLD.items():
                pair = f"{source} > {destination}"
                wanted = expected(table, source, destination)
                verdict = asked.verdict(one, other, int(number), name)
                assert verdict.allowed is wanted, f"{pair} {port}: {verdict}"
                told = allows(policies, one, other, int(number), PROTOCOLS[name], names=TOLD)
                assert told is wanted, f"{pair} {port}"


def test_there_are_many():
    assert len(CASES) == len({case.id for case in CASES}) >= 120
