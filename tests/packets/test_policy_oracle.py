"""The programs and the oracle in Python say the same of any policies, and the comparison would see if not."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.datapath.identity_policy import CONTRACT
from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model import IPAddress
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import icmp_echo, sctp, tcp, udp
from k8sdatapath.tables.policy import LENGTHS_TABLE, PolicyRow
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.shop import API, ONLY_WEB, STRANGERS, WEB
from tests.support.policies import ADDRESSES, PORTS, pods, policy_lists

pytestmark = pytest.mark.packets

ASKED = (*((port, 6) for port in PORTS), (80, 17), (53, 17), (8, 1), (80, 132))


@pytest.fixture(scope="module")
def crossing() -> Iterator[Checkpoint]:
    with checkpoint() as made:
        yield made


def frame(source: IPAddress, destination: IPAddress, port: int, protocol: int, number: int) -> bytes:
    ends = str(source), str(destination), 10000 + number, port
    if protocol == 1:
        return icmp_echo(str(source), str(destination), number)
    return {6: tcp, 17: udp, 132: sctp}[protocol](*ends)


def disagreements(
    node: Checkpoint, policies: list[Policy], around: list[Workload | IPAddress]
) -> Iterator[str]:
    number = 0
    for source in around:
        for destination in around:
            for version in 4, 6:
                ends = [_address(each, version) for each in (source, destination)]
                if source is destination or None in ends or ends[0] == ends[1]:
                    continue
                for port, protocol in ASKED:
                    if protocol == 1 and version == 6:
                        continue
                    number += 1
                    told = allows(policies, source, destination, port, protocol, version=version)
                    if node.passes(frame(*ends, port, protocol, number), *ends) is not told:
                        yield f"{ends[0]} -> {ends[1]} {port}/{protocol}: {told}"


def _address(side: Workload | IPAddress, version: int) -> IPAddress | None:
    addresses = side.addresses if isinstance(side, Workload) else (side,)
    return next((each for each in addresses if each.version == version), None)


@settings(max_examples=60)
@given(
    policy_lists,
    st.sets(st.integers(0, 3), min_size=1, max_size=3).flatmap(lambda n: st.tuples(*map(pods, sorted(n)))),
    st.booleans(),
    st.sets(st.sampled_from(ADDRESSES[1:]), max_size=2),
)
def test_the_programs_say_what_the_rules_say(crossing, found, workloads, one_is_elsewhere, outside):
    taken = {address for each in workloads for address in each.addresses}
    here, there = workloads[one_is_elsewhere:], workloads[:one_is_elsewhere]
    policies_first = len(outside) == 1
    crossing.talks.clear()
    if policies_first:
        crossing.policy.apply(found)
    crossing.learn(*there)
    crossing.attach(*here)
    crossing.policy.apply(found)
    try:
        around = [*workloads, *(each for each in outside if each not in taken)]
        kept = [*here, *around[len(workloads) :]]  # what happens at other nodes is not seen here
        assert not list(disagreements(crossing, found, kept))
    finally:
        for each in here:
            crossing.drop(each)
        crossing.policy.forget(*(each.name for each in workloads))
        crossing.policy.apply([])
        assert len(crossing.policy.dump()) == 0


def with_lengths(row: PolicyRow, lengths: int) -> PolicyRow:
    return evolve(row, lengths=row.lengths >> LENGTHS_TABLE << LENGTHS_TABLE | lengths)


BUGS = {
    "an allow that denies": ("kd_rules", lambda key, row: evolve(row, deny=1) if key.port == 8080 else None),
    "a default that allows": ("kd_rules", lambda key, row: evolve(row, deny=0) if row.deny else None),
    "a default above all": ("kd_rules", lambda key, row: evolve(row, precedence=99) if row.deny else None),
    "another identity": ("kd_ipcache", lambda key, row: evolve(row, number=row.number + 1)),
    "everybody a peer": ("kd_networks", lambda key, row: evolve(row, number=300)),
    "prefixes forgotten": ("kd_policies", lambda key, row: with_lengths(row, 0) if row.lengths else None),
    "a wrong prefix": ("kd_policies", lambda key, row: with_lengths(row, 1 << 15) if row.lengths else None),
    "all open": ("kd_policies", lambda key, row: evolve(row, flags=2) if row.table else None),
    "another table": (
        "kd_policies",
        lambda key, row: evolve(row, table=row.table ^ 1) if row.table else None,
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_comparison_finds_seeded_bugs(bug):
    policies = list(parse_policies(ONLY_WEB))
    around = [WEB, API, ip_address(STRANGERS[4]), ip_address(STRANGERS[6])]
    with checkpoint(WEB, API) as node:
        node.policy.upsert(*policies)
        assert not list(disagreements(node, policies, around))
        name, change = BUGS[bug]
        rows = node.rig.loaded.map(name, CONTRACT[name])
        elements = enumerate(rows) if isinstance(rows, maps.Array) else rows.items()
        changed = {key: new for key, row in list(elements) if (new := change(key, row)) is not None}
        assert changed
        rows.update_many(changed)
        node.talks.clear()
        assert list(disagreements(node, policies, around))
