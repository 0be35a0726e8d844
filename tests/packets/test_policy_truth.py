"""The truth tables of the conformance suite, as the programs of the shipped objects decide them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import icmp_echo, sctp, tcp, udp
from tests.conformance.test_policy import CASES, OTHERS, PODS, WORLD, expected
from tests.packets.checkpoint import Checkpoint, checkpoint

pytestmark = pytest.mark.packets

BY_NAME = ("toFQDNs", "domainNames")
"""Who has a DNS name, nobody tells the kernel yet; such policies are refused there."""
ENFORCED = [case for case in CASES if not any(each in json.dumps(case.values[0]) for each in BY_NAME)]
PAIRS = [
    (source, destination)
    for source in WORLD
    for destination in WORLD
    if source != destination and {source, destination} & {each.name for each in PODS}
]
numbers = itertools.cycle(range(20_000, 65_000))


@pytest.fixture(scope="module")
def node() -> Iterator[Checkpoint]:
    with checkpoint(*PODS) as made:
        made.policy.learn({OTHERS["node"]: Reserved.HOST, OTHERS["node2"]: Reserved.REMOTE_NODE})
        yield made


def address(name: str) -> str:
    found = WORLD[name]
    return str(found.addresses[0] if isinstance(found, Workload) else IPv4Address(found))


def frame(source: str, destination: str, port: int, protocol: str) -> bytes:
    """The first packet of a connection that has not been before."""
    one, other, number = address(source), address(destination), next(numbers)
    match protocol:
        case "TCP":
            return tcp(one, other, number, port, "S")
        case "UDP":
            return udp(one, other, number, port, b"x")
        case "SCTP":
            return sctp(one, other, number, port)
    return icmp_echo(one, other, number)


def passes(node: Checkpoint, source: str, destination: str, packet: bytes) -> bool:
    if source == "node":  # it sends itself
        return node.enter(packet, came_through=0).outcome == "PASS"
    return node.passes(packet, address(source), address(destination))


@pytest.mark.parametrize(("documents", "truth"), ENFORCED)
def test_truth(node: Checkpoint, documents: list[object], truth: dict[str, dict[str, list[str]]]) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    node.policy.apply(parse_policies(text, "case.json"))
    wrong = []
    for port, table in truth.items():
        number, _, protocol = port.partition("/")
        if protocol == "ICMP" and number != "8":
            continue  # an answer: it begins nothing, whatever policies say of its type
        for source, destination in PAIRS:
            told = passes(node, source, destination, frame(source, destination, int(number), protocol))
            if told is not expected(table, source, destination):
                wrong.append(f"{source} > {destination} {port}: {'passed' if told else 'dropped'}")
    assert not wrong, "\n".join(wrong)


def test_there_are_many() -> None:
    assert len(ENFORCED) >= 120
