"""What a change of policies changes: who may begin what, that could not before, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

from k8sdatapath.datapath.policy_compiler import PolicyCompiler, PolicyTable, networks_of
from k8sdatapath.datapath.policy_networks import Networks
from k8sdatapath.datapath.policy_rows import Row
from k8sdatapath.datapath.policy_set import Decision, Verdict, world
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.identity import LOCAL_NUMBERS
from k8sdatapath.model.names import name_labels, name_patterns
from k8sdatapath.model.policy import Action, Policy, PortMatch, Toward
from k8sdatapath.model.workload import Party, Workload

__all__ = ["Flip", "Parties", "PolicyPlan", "plan_policies", "port_ranges"]


@frozen
class Flip:
    """What may be begun after a change, and could not before; or the other way round.

    :ivar source: who begins it: all that policies cannot tell apart; likewise ``destination``.
    :ivar protocol: of IP, 0: all that no rule names.
    :ivar first: of the destination's ports; likewise ``last``.
    :ivar allowed: whether it may be begun after the change.
    :ivar why: what decides then; ``before``: what decided before.
    :ivar audited: it may be begun as before, and policies that only look on would deny it.
    """

    source: tuple[str, ...]
    destination: tuple[str, ...]
    protocol: int
    first: int
    last: int
    allowed: bool
    why: str
    before: str
    audited: bool = False

    @property
    def ports(self) -> str:
        """Protocol and ports, for people."""
        return str(PortMatch(self.protocol or None, self.first, self.last))

    def __str__(self) -> str:
        word = "may reach" if self.allowed else "may no more reach"
        if self.audited:
            word = "may still reach"
        return f"{_some(self.source)} {word} {_some(self.destination)} at {self.ports}: {self.why}"


@frozen
class PolicyPlan:
    """What a change comes to.

    :ivar flips: what may be begun then and not before, or the other way round, or would be denied then if
        policies did not only look on.
    :ivar entries: how many entries the policies of all pods have, before and after; pods of one identity
        share them.
    """

    flips: tuple[Flip, ...]
    entries: tuple[int, int]

    @property
    def opened(self) -> tuple[Flip, ...]:
        """What may be begun then."""
        return tuple(each for each in self.flips if each.allowed and not each.audited)

    @property
    def audited(self) -> tuple[Flip, ...]:
        """What policies would deny then that only look on, and did not before."""
        return tuple(each for each in self.flips if each.audited)

    @property
    def cut(self) -> tuple[Flip, ...]:
        """What may not be begun any more, and is cut if it is there."""
        return tuple(each for each in self.flips if not each.allowed)

    def __str__(self) -> str:
        before, after = self.entries
        return "\n".join([*map(str, self.flips), f"{before} entries before, {after} after"])


class Parties:
    """All whom some policies can tell apart among some workloads and in the world, by number.

    :param names: the addresses of DNS names.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        workloads: Iterable[Workload],
        names: Mapping[str, Iterable[Any]] = {},
    ) -> None:
        known = list(policies)
        networks = Networks(each for policy in known for each in networks_of(policy))
        self.names: dict[Party, list[str]] = {}
        self.versions: dict[Party, set[int]] = {}
        self.subjects: set[Party] = set()
        for each in workloads:
            for ip in each.addresses or (None,):
                network = None if ip is None else networks.narrowest(ip)
                party = self._add(Party(each.labels, network, each.ports), each.name, ip)
                if each.is_pod:
                    self.subjects.add(party)
        told: dict[IPAddress, list[str]] = {}
        for name, addresses in names.items():
            for ip in map(address, addresses):
                told.setdefault(ip, []).append(name)
        patterns = tuple(name_patterns(known))
        for ip, its in told.items():
            labels = (*world(ip.version), *name_labels(patterns, its))
            self._add(Party(labels, networks.narrowest(ip)), f"{its[0]} ({ip})", ip)
        for network in networks:
            party = self._add(Party(world(network.version), network), f"the world in {network}", None)
            self.versions[party] = {network.version}
        for version in (4, 6):
            party = self._add(Party(world(version)), f"the world (IPv{version})", None)
            self.versions[party] = {version}
        self.numbers = dict(zip(self.names, LOCAL_NUMBERS, strict=False))

    def _add(self, party: Party, name: str, ip: IPAddress | None) -> Party:
        given = self.names.setdefault(party, [])
        if name not in given:
            given.append(name)
        self.versions.setdefault(party, set()).update({4, 6} if ip is None else {ip.version})
        return party

    def compiled(self, policies: Iterable[Policy]) -> PolicyCompiler:
        """Policies for all of them."""
        compiler = PolicyCompiler()
        compiler.update(
            policies,
            identities={number: party for party, number in self.numbers.items()},
            subjects=[self.numbers[each] for each in self.subjects],
        )
        return compiler


def plan_policies(
    before: Iterable[Policy],
    after: Iterable[Policy],
    workloads: Iterable[Workload],
    *,
    names: Mapping[str, Iterable[Any]] = {},
) -> PolicyPlan:
    """What it changes among workloads, and between them and the world, that some policies are replaced.

    :param names: the addresses of DNS names, for policies by name.
    """
    old, new = list(before), list(after)
    parties = Parties([*old, *new], workloads, names)
    tables = [_tables(parties, policies) for policies in (old, new)]
    flips = [
        flip
        for source in parties.names
        for destination in parties.names
        if source is not destination and parties.versions[source] & parties.versions[destination]
        for flip in _flips(parties, tables, source, destination)
    ]
    sizes = [_size(each.values()) for each in tables]
    return PolicyPlan(tuple(flips), (sizes[0], sizes[1]))


def _tables(parties: Parties, policies: Iterable[Policy]) -> dict[Party, PolicyTable]:
    compiler = parties.compiled(policies)
    return {each: compiler.table(parties.numbers[each]) for each in parties.subjects}


def _size(tables: Iterable[PolicyTable]) -> int:
    """Entries; what tables have in common is counted once, as in the kernel."""
    halves = {id(half): half for table in tables for half in table.halves}
    return sum(len(row) for half in halves.values() for row in half.values())


def _flips(
    parties: Parties, tables: list[dict[Party, PolicyTable]], source: Party, destination: Party
) -> Iterator[Flip]:
    sides = [
        (own, toward, parties.numbers[peer])
        for own, toward, peer in (
            (source, Toward.EGRESS, destination),
            (destination, Toward.INGRESS, source),
        )
        if own in parties.subjects
    ]
    rows = [[_rows(each[own], toward, peer) for own, toward, peer in sides] for each in tables]
    if rows[0] == rows[1]:
        return
    found: Flip | None = None
    for protocol, first, last in port_ranges(row for each in rows for side in each for row in side):
        decisions = [
            [_decision(each[own], toward, peer, protocol, first) for own, toward, peer in sides]
            for each in tables
        ]
        was, now = (Verdict(tuple(each)) for each in decisions)
        audited = was.allowed and now.audited and not was.audited
        if was.allowed is now.allowed and not audited:
            continue
        before, after = (_deciding(each) for each in decisions)
        ends = tuple(parties.names[source]), tuple(parties.names[destination])
        flip = Flip(*ends, protocol, first, last, now.allowed, after, before, audited)
        if found is not None and _joined(found, flip):
            found = evolve(flip, first=found.first)
            continue
        if found is not None:
            yield found
        found = flip
    if found is not None:
        yield found


def _joined(one: Flip, other: Flip) -> bool:
    """Whether one goes on as the other."""
    return one.last + 1 == other.first and evolve(other, first=one.first, last=one.last) == one


def _rows(table: PolicyTable, toward: Toward, peer: int) -> tuple[Row, Row]:
    half = table.halves[toward]
    return half.get(peer, {}), half[0]


def port_ranges(rows: Iterable[Row]) -> Iterator[tuple[int, int, int]]:
    """Protocol (0: all that no rule names) and ranges of ports, in each of which every row has one answer."""
    ends: dict[int, set[int]] = {0: set()}
    for row in rows:
        for protocol, port, bits in row:
            if protocol:
                ends.setdefault(protocol, set()).update((port, (port | (0xFFFF >> bits)) + 1))
    for protocol, points in sorted(ends.items()):
        starts = sorted({0, *points} - {65536})
        yield from zip([protocol] * len(starts), starts, [*(at - 1 for at in starts[1:]), 65535], strict=True)


def _decision(table: PolicyTable, toward: Toward, peer: int, protocol: int, port: int) -> Decision:
    key, entry = table.find(toward, peer, protocol, port)
    denied = entry.action is not Action.ALLOW
    audited = denied and entry.audited
    return Decision(audited or not denied, toward, entry.because, entry.causes, key, audited=audited)


def _deciding(decisions: list[Decision]) -> str:
    """Of a denial what denies, or would deny; else all."""
    denying = [each for each in decisions if not each.allowed]
    denying = denying or [each for each in decisions if each.audited]
    return "; ".join(map(str, denying or decisions))


def _some(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
