"""Policies by DNS name: what was answered may be dialled, for as long as it holds, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from k8sdatapath import maps
from k8sdatapath.datapath.talks import live_ends
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.net.packet import tcp
from k8sdatapath.tables.policy import Named, NameKey, NameRow
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.shop import FAMILIES, FAR, WEB, at

pytestmark = pytest.mark.packets

BANK = {4: ("198.51.100.7", "198.51.100.8"), 6: ("2001:db8:7::7", "2001:db8:7::8")}

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
NETWORK = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toCIDR: [NETWORK]}]
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
    pod = at(FAR, family)
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


def again(node: Checkpoint) -> Checkpoint:
    """Another process takes over what the one before it has left, and knows no pods yet."""
    node.policy.close()
    return Checkpoint(node.rig, identities=node.identities)


def fill_names(node: Checkpoint, kind: Named, text: str) -> maps.Hash[NameKey, NameRow]:
    """There is no room for another text."""
    names = node.rig.loaded.map("kd_names", maps.Hash[NameKey, NameRow])
    left = range(names.info.max_entries - len(names))
    names.update_many({NameKey(kind, 1_000_000 + at): NameRow(text) for at in left})
    return names


CROWDED = pytest.mark.parametrize("crowded", [False, True], ids=["", "crowded"])


@FAMILIES
@CROWDED
def test_what_was_answered_before_a_new_start_holds(node: Checkpoint, family: int, crowded: bool) -> None:
    bank, other = BANK[family]
    if crowded:
        fill_names(node, Named.COUNTER, "some rule")
    node.policy.learn_name("bank.example", [bank], 0)
    node.policy.learn_name("api.shop.example", [other], 60)
    assert begins(node, bank)
    new = again(node)
    with new.policy:
        steps = (
            lambda: new.policy.upsert(*parse_policies(POLICY, names=True)),
            lambda: new.attach(WEB),
            new.policy.forget_strangers,
        )
        for sport, step in enumerate(steps, 40010):
            step()
            assert goes_on(new, bank)
            assert begins(new, bank, sport=sport)
            assert begins(new, other, sport=sport)
        new.policy.expire_names(lambda: live_ends(new.talks))
        assert goes_on(new, bank)
        new.policy.expire_names()
        assert not goes_on(new, bank)
    newer = again(new)
    with newer.policy:
        newer.policy.upsert(*parse_policies(POLICY, names=True))
        newer.attach(WEB)
        assert begins(newer, other, sport=40020)
        assert not begins(newer, bank, sport=40020)


@FAMILIES
@CROWDED
def test_rules_of_an_earlier_process_are_for_whom_they_were(
    node: Checkpoint, family: int, crowded: bool
) -> None:
    """Also while that is not so any more: pods keep them until they are attached again."""
    bank, other = BANK[family]
    if crowded:
        fill_names(node, Named.COUNTER, "some rule")
    allowed, elsewhere = (
        parse_policies(NETWORK.replace("web", name).replace("NETWORK", f"{to}/{32 if family == 4 else 128}"))
        for name, to in (("web", bank), ("far", other))
    )
    node.policy.apply(allowed)
    assert begins(node, bank)
    new = again(node)
    with new.policy:
        new.policy.apply(elsewhere)
        assert not begins(new, other, sport=40010)
        new.policy.apply([*elsewhere, *allowed])
        assert (begins(new, bank, sport=40011), begins(new, other, sport=40011)) == (True, False)
        new.attach(WEB)
        assert (begins(new, bank, sport=40012), begins(new, other, sport=40012)) == (True, False)


@FAMILIES
def test_a_number_whose_text_had_no_room_is_given_to_nobody_else(node: Checkpoint, family: int) -> None:
    bank, other = BANK[family]
    bits = 32 if family == 4 else 128
    node.policy.apply(parse_policies(NETWORK.replace("NETWORK", f"{bank}/{bits}")))
    names = node.rig.loaded.map("kd_names", maps.Hash[NameKey, NameRow])
    mine = [key for key, row in names.items() if row.text.endswith(f"in {bank}/{bits}")]
    assert len(mine) == 1
    names.delete_many(mine)
    fill_names(node, Named.ANSWER, f"0 {other} old.example")
    new = again(node)
    with new.policy:
        new.policy.apply(parse_policies(NETWORK.replace("web", "far").replace("NETWORK", f"{other}/{bits}")))
        assert not begins(new, other, sport=40010)
        new.attach(WEB)
        new.policy.apply(parse_policies(NETWORK.replace("NETWORK", f"{bank}/{bits}")))
        assert (begins(new, bank, sport=40011), begins(new, other, sport=40011)) == (True, False)


def test_an_answer_is_in_force_at_once(node: Checkpoint) -> None:
    addresses = [str(ip_address("203.0.113.0") + at) for at in range(200)]
    began = time.thread_time()
    for each in addresses:
        node.policy.learn_name("bank.example", [each], 60)
    assert (time.thread_time() - began) / len(addresses) < 0.05
    assert begins(node, addresses[-1])
