"""Policies by DNS name: what was answered may be dialled, for as long as it holds, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from k8sdatapath.datapath.policy_dns import live_ends
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import tcp
from tests.packets.checkpoint import Checkpoint, checkpoint

pytestmark = pytest.mark.packets

WEB = Workload.pod("shop/web", {"app": "web"}, addresses=["10.244.1.2", "fd00:10:244:1::2"])
FAR = Workload.pod("shop/far", {"app": "far"}, addresses=["10.244.2.2", "fd00:10:244:2::2"])
BANK = {4: ("198.51.100.7", "198.51.100.8"), 6: ("2001:db8:7::7", "2001:db8:7::8")}
FAMILIES = pytest.mark.parametrize("family", [4, 6])

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toFQDNs: [{matchName: bank.example}, {matchPattern: "*.shop.example"}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
"""


@pytest.fixture
def node() -> Iterator[Checkpoint]:
    with checkpoint(WEB) as made:
        made.learn(FAR)
        made.policy.upsert(*parse_policies(POLICY, names=True))
        yield made


def begins(node: Checkpoint, where: str, port: int = 443, sport: int = 40000) -> bool:
    source = str(WEB.addresses[":" in where])
    return node.leave(tcp(source, where, sport, port, "S"), source).outcome != "DROP_POLICY_DENIED"


def goes_on(node: Checkpoint, where: str) -> bool:
    source = str(WEB.addresses[":" in where])
    return node.leave(tcp(source, where, 40000, 443, "A"), source).outcome != "DROP_POLICY_DENIED"


@FAMILIES
def test_only_what_was_answered_may_be_dialled(node: Checkpoint, family: int) -> None:
    bank, other = BANK[family]
    assert not begins(node, bank)
    node.policy.learn_name("Bank.Example.", [bank], 60)
    assert begins(node, bank)
    assert not begins(node, bank, 80)
    assert not begins(node, other)
    node.policy.learn_name("api.shop.example", [other], 60)
    assert begins(node, other)
    node.policy.learn_name("else.example", [str(ip_address(other) + 1)], 60)
    assert not begins(node, str(ip_address(other) + 1))


@FAMILIES
def test_an_answer_is_forgotten_but_not_under_who_talks(node: Checkpoint, family: int) -> None:
    bank, other = BANK[family]
    node.policy.learn_name("bank.example", [bank, other], 0)
    assert begins(node, bank)
    live = live_ends(node.talks)
    assert ip_address(bank) in live
    node.policy.expire_names(lambda: live)
    assert goes_on(node, bank)
    assert begins(node, bank, sport=40001)  # it still has its name
    assert not begins(node, other)
    node.policy.expire_names()
    assert not goes_on(node, bank)
    assert not begins(node, bank, sport=40002)


def test_the_longest_answer_counts(node: Checkpoint) -> None:
    bank, _ = BANK[4]
    node.policy.learn_name("bank.example", [bank], 60)
    node.policy.learn_name("bank.example", [bank], 0)
    node.policy.expire_names()
    assert begins(node, bank)


@FAMILIES
def test_a_pod_is_not_dialled_by_a_name_that_somebody_gave_it(node: Checkpoint, family: int) -> None:
    pod = str(FAR.addresses[family == 6])
    node.policy.learn_name("bank.example", [pod], 60)
    assert not begins(node, pod)
    node.policy.forget(FAR.name)
    assert begins(node, pod)
    node.learn(FAR)
    assert not begins(node, pod)


@FAMILIES
def test_a_policy_that_comes_later_knows_what_was_answered(node: Checkpoint, family: int) -> None:
    bank, other = BANK[family]
    node.policy.learn_name("bank.example", [bank], 60)
    node.policy.learn_name("late.example", [other], 60)
    late = parse_policies(POLICY.replace("bank.example", "late.example"), names=True)
    node.policy.upsert(*late)
    assert (begins(node, bank), begins(node, other)) == (False, True)
    node.policy.remove("CiliumNetworkPolicy shop/web")
    assert node.policy.identity_of(ip_address(other)) is None
    assert begins(node, bank, sport=40003)


def test_an_answer_is_in_force_at_once(node: Checkpoint) -> None:
    addresses = [str(ip_address("203.0.113.0") + at) for at in range(200)]
    began = time.perf_counter()
    for each in addresses:
        node.policy.learn_name("bank.example", [each], 60)
    assert (time.perf_counter() - began) / len(addresses) < 0.05
    assert begins(node, addresses[-1])
