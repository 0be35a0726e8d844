"""What a change of policies changes: who may begin what, that could not before, and the other way round."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from attrs import evolve, frozen

from k8sdatapath.datapath.http_tables import http_tables
from k8sdatapath.datapath.policy_compiler import EntryKey, PolicyTable
from k8sdatapath.datapath.policy_cuts import CutConnection
from k8sdatapath.datapath.policy_parties import Parties
from k8sdatapath.datapath.policy_rows import Entry, Row
from k8sdatapath.datapath.policy_set import Decision, Verdict
from k8sdatapath.datapath.request_changes import RequestChange, Sides, request_changes
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.policy import Action, Policy, PortMatch, Toward
from k8sdatapath.model.workload import Party, Workload

__all__ = ["Flip", "PolicyPlan", "RequestCost", "plan_policies", "port_ranges"]


@frozen
class Flip:
    """What may be begun after a change, and could not before; or the other way round.

    :ivar source: who begins it: all that policies cannot tell apart; likewise ``destination``.
    :ivar protocol: of IP, 0: all that no rule names.
    :ivar first: of the destination's ports; likewise ``last``.
    :ivar allowed: whether it may be begun after the change.
    :ivar why: what decides then; ``before``: what decided before.
    :ivar audited: it may be begun as before, and policies that only look on would deny it.
    :ivar requests: it may be begun as before, and this is about the requests that these rules are of: of
        HTTP, or names that a name server is asked for.
    :ivar others: or about all but these.
    :ivar example: one of these requests.
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
    requests: tuple[str, ...] = ()
    others: bool = False
    example: str = ""

    @property
    def asked(self) -> str:
        """What requests it is about, for people; empty: all that is sent."""
        rules = f"{'all but ' if self.others else ''}{' or '.join(self.requests)}"
        line, *headers = self.example.splitlines() or [""]
        return f"{rules}, such as {line!r}{' with ' * bool(headers)}{', '.join(headers)}" if line else rules

    @property
    def ports(self) -> str:
        """Protocol and ports, for people."""
        return str(PortMatch(self.protocol or None, self.first, self.last))

    def __str__(self) -> str:
        word = "may reach" if self.allowed else "may no more reach"
        if self.audited:
            word = "may still reach"
        asked = f" with requests for {self.asked}" if self.requests else ""
        return f"{_some(self.source)} {word} {_some(self.destination)} at {self.ports}{asked}: {self.why}"


@frozen
class RequestCost:
    """What rules about requests take.

    :ivar sets: how many different sets of rules there are, of HTTP and of names.
    :ivar cells: of the automata of HTTP rules, of 4 bytes each; ``kd_l7_table`` has room for so many.
    """

    sets: int
    cells: int


@frozen
class PolicyPlan:
    """What a change comes to.

    :ivar flips: what may be begun then and not before, or the other way round, or would be denied then if
        policies did not only look on.
    :ivar entries: how many entries the policies of all pods have, before and after; pods of one identity
        share them.
    :ivar requests: what rules about requests take, before and after.
    :ivar connections: those that there are, and that would be ended; none where nobody has looked for them,
        as for policies in files.
    """

    flips: tuple[Flip, ...]
    entries: tuple[int, int]
    requests: tuple[RequestCost, RequestCost] = (RequestCost(0, 0), RequestCost(0, 0))
    connections: tuple[CutConnection, ...] = ()

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
        ended = [f"ends {each}" for each in self.connections]
        return "\n".join([*dict.fromkeys(map(str, self.flips)), *ended, self.cost])

    @property
    def cost(self) -> str:
        """How much room it takes, for people."""
        text = f"{self.entries[0]} entries before, {self.entries[1]} after"
        was, now = self.requests
        if not (was.sets or now.sets):
            return text
        sets = f"{was.sets} sets of rules about requests before, {now.sets} after"
        return f"{text}; {sets}; {was.cells} cells of automata before, {now.cells} after"


def plan_policies(
    before: Iterable[Policy],
    after: Iterable[Policy],
    workloads: Iterable[Workload],
    *,
    names: Mapping[str, Iterable[Any]] = {},
    host_firewall: HostFirewall | bool | None = None,
) -> PolicyPlan:
    """What it changes among workloads, and between them and the world, that some policies are replaced.

    :param names: the addresses of DNS names, for policies by name.
    :param host_firewall: policies are for nodes as well, as for :class:`PolicySet`.
    :raises CapacityError: rules about requests take more than any node has room for.
    """
    old, new = list(before), list(after)
    parties = Parties([*old, *new], workloads, names, host_firewall)
    tables = [_tables(parties, policies) for policies in (old, new)]
    flips = [flip for ends in parties.pairs() for flip in _flips(parties, tables, *ends)]
    sizes = [_size(each.values()) for each in tables]
    costs = [_cost(each.values()) for each in tables]
    return PolicyPlan(tuple(flips), (sizes[0], sizes[1]), (costs[0], costs[1]))


def _tables(parties: Parties, policies: Iterable[Policy]) -> dict[Party, PolicyTable]:
    compiler = parties.compiled(policies)
    return {each: compiler.table(parties.numbers[each]) for each in parties.subjects}


def _size(tables: Iterable[PolicyTable]) -> int:
    """Entries; what tables have in common is counted once, as in the kernel."""
    halves = {id(half): half for table in tables for half in table.halves}
    return sum(len(row) for half in halves.values() for row in half.values())


def _cost(tables: Iterable[PolicyTable]) -> RequestCost:
    sets = {entry.l7 for table in tables for _, entry in table.items() if entry.l7}
    held = ([each for each in those if isinstance(each, HTTPRule)] for those in sets)
    made = (http_tables(each) for each in held if each)
    cells = (len(part.cells) for tables in made for group in tables.groups for part in group.tables)
    return RequestCost(len(sets), sum(cells))


def _flips(
    parties: Parties, tables: list[dict[Party, PolicyTable]], source: Party, destination: Party
) -> Iterator[Flip]:
    sides = [
        (parties.judged[own], toward, parties.numbers[peer])
        for own, toward, peer in (
            (source, Toward.EGRESS, destination),
            (destination, Toward.INGRESS, source),
        )
        if own in parties.judged
    ]
    rows = [[_rows(each[own], toward, peer) for own, toward, peer in sides] for each in tables]
    if rows[0] == rows[1]:
        return
    ends = tuple(parties.names[source]), tuple(parties.names[destination])
    found: list[Flip] = []
    for protocol, first, last in port_ranges(row for each in rows for side in each for row in side):
        was, now = (
            [(toward, *each[own].find(toward, peer, protocol, first)) for own, toward, peer in sides]
            for each in tables
        )
        here = [Flip(*ends, protocol, first, last, *each) for each in _changes(was, now)]
        going_on = [_goes_on(each, here) for each in found]
        yield from (each for each, on in zip(found, going_on, strict=True) if on is None)
        since = {id(on): each for each, on in zip(found, going_on, strict=True) if on is not None}
        found = [evolve(each, first=since[id(each)].first) if id(each) in since else each for each in here]
    yield from found


def _goes_on(flip: Flip, others: Iterable[Flip]) -> Flip | None:
    """Which of some says the same of the ports that come next."""
    for each in others:
        if flip.last + 1 == each.first and evolve(each, first=flip.first, last=flip.last) == flip:
            return each
    return None


_Found: TypeAlias = tuple[Toward, EntryKey, Entry]
"""What one side finds of the other."""


def _changes(was: list[_Found], now: list[_Found]) -> Iterator[tuple[Any, ...]]:
    """What a flip says beside whom, and which ports, it is about."""
    decisions = [[_decision(*each) for each in found] for found in (was, now)]
    before, after = (Verdict(tuple(each)) for each in decisions)
    audited = before.allowed and after.audited and not before.audited
    if before.allowed is not after.allowed or audited:
        yield after.allowed, _deciding(decisions[1]), _deciding(decisions[0]), audited
    elif after.allowed:
        why = "; ".join(map(str, decisions[1])), "; ".join(map(str, decisions[0]))
        for each in request_changes(_held(was), _held(now)):
            yield each.allowed, *why, False, each.requests, each.others, each.example
        for each in _looked_on(was, now):
            yield True, *why, True, each.requests, each.others, each.example


def _held(found: Iterable[_Found]) -> Sides:
    """What requests are held to by each side."""
    return tuple(frozenset() if entry.audited else entry.l7 for _, _, entry in found)


def _looked_on(was: list[_Found], now: list[_Found]) -> Iterator[RequestChange]:
    """The requests that would be denied then if policies did not only look on."""
    for at, ((_, _, before), (_, _, after)) in enumerate(zip(was, now, strict=True)):
        if after.audited and after.l7:
            held = list(_held(now))
            sides = ((*held[:at], l7, *held[at + 1 :]) for l7 in (before.l7, after.l7))
            yield from (each for each in request_changes(*sides) if not each.allowed)


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


def _decision(toward: Toward, key: EntryKey, entry: Entry) -> Decision:
    denied = entry.action is not Action.ALLOW
    audited = denied and entry.audited
    l7 = frozenset[Hashable]() if entry.audited else entry.l7
    return Decision(audited or not denied, toward, entry.because, entry.causes, key, l7, audited=audited)


def _deciding(decisions: list[Decision]) -> str:
    """Of a denial what denies, or would deny; else all."""
    denying = [each for each in decisions if not each.allowed]
    denying = denying or [each for each in decisions if each.audited]
    return "; ".join(map(str, denying or decisions))


def _some(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
