"""Files that nobody would write in good faith are refused, soon, and in few words."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.documents import parse_json
from k8sdatapath.kube.policy import parse_policies, read_policies
from tests.support.policy_documents import CNP, NP, ingress, rule


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"a": [found]}
    return found


def expression(**fields: Any) -> dict[str, Any]:
    return NP | {"spec": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"} | fields]}}}


BLOCKS = [f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}/32" for at in range(100_000)]


HOSTILE = {
    "100k networks": (
        NP | {"spec": ingress(**{"from": [{"ipBlock": {"cidr": each}} for each in BLOCKS]})},
        "spec.ingress[0].from: 100000 values here: a policy has at most 50000 in all",
    ),
    "100k exceptions": (
        NP | {"spec": ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": BLOCKS}}]})},
        "spec.ingress[0].from[0].ipBlock.except: 100000 values here: a policy has at most 50000 in all",
    ),
    "100k values": (
        expression(values=[f"v{at}" for at in range(100_000)]),
        "spec.podSelector.matchExpressions[0].values: 100000 values here: a policy has at most 50000 in all",
    ),
    "100k labels": (
        NP | {"spec": {"podSelector": {"matchLabels": {f"k{at}": "v" for at in range(100_000)}}}},
        "spec.podSelector.matchLabels: 100000 values here: a policy has at most 50000 in all",
    ),
    "30k rules": (
        NP | {"spec": {"podSelector": {}, "ingress": [{"ports": [{}]}] * 30_000}},
        "spec.ingress[",
    ),
    "a million characters": (expression(values=["x" * 1_000_000]), "spec.podSelector.matchExpressions[0].va"),
    "a key that is hard to match": (
        expression(key="a-" * 500_000, values=["b"]),
        "spec.podSelector.matchExpressions[0].key: 'a-a-",
    ),
    "nesting": (NP | {"spec": nested(300)}, "spec.a[0].a[0]"),
    "networks times ports": (
        CNP
        | {
            "spec": rule(
                fromCIDR=[each.removesuffix("/32") for each in BLOCKS[:5000]],
                toPorts=[{"ports": [{"port": str(port), "protocol": "TCP"} for port in range(1, 41)]}],
            )
        },
        "spec.ingress[0]: 5000 networks with 40 prefixes of ports are 200000 entries: at most 65536",
    ),
    "a pattern of stars": (
        CNP | {"spec": rule("egress", toFQDNs=[{"matchPattern": "*a" * 100 + "!"}])},
        "spec.egress[0].toFQDNs[0].matchPattern: ",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_policies_are_refused_in_not_much_more_time_than_parsing_takes(name):
    document, said = HOSTILE[name]
    text = json.dumps(document)

    def seconds(call: Callable[[], object]) -> float:
        began = process_time()
        call()
        return process_time() - began

    def refused() -> None:
        with pytest.raises(ManifestError) as caught:
            parse_policies(text, "p.json", names=True)
        told = f"{caught.value.path}: {caught.value.reason}"
        assert told.startswith(said)
        assert len(told) < 1000

    parsing = min(seconds(lambda: parse_json(text, "p.json")) for _ in range(3))
    assert min(seconds(refused) for _ in range(3)) < 10 * parsing + 0.5


def test_a_bomb_of_aliases_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 9)]
    bomb = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n" + "\n".join(lines)
    with pytest.raises(ManifestError, match="4000000 values, what aliases stand for included"):
        parse_policies(bomb)
    smaller = "\n".join(bomb.splitlines()[:7]) + "\nmetadata: {name: p}\nspec: {podSelector: *a4}"
    with pytest.raises(ManifestError, match="a policy has at most 50000 in all"):
        parse_policies(smaller)


def test_a_file_that_is_no_manifest_is_refused_by_its_size(tmp_path):
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(ManifestError, match="17825792 bytes, at most 16777216 are read of one file"):
        read_policies(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"kind: \xff")
    with pytest.raises(ManifestError, match=r"policy\.yaml: byte 6: this is not UTF-8 text"):
        read_policies(path)
