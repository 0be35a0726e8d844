"""Policies and identities into the entries of policy maps, and every change of either into what it changes.

Pods that the same policies select share one computation, and identities that the same rules select share
one row in it. See ``policy_rows`` for what a row is, and for how a packet finds its entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple, TypeAlias

from attrs import field, frozen

from k8sdatapath.datapath.policy_index import PeerIndex
from k8sdatapath.datapath.policy_rows import ANY, HOST, Entry, Row, Stages, in_force
from k8sdatapath.errors import ModelError
from k8sdatapath.model import IPNetwork
from k8sdatapath.model.address import shown
from k8sdatapath.model.policy import EVERYBODY, Block, NetworkPeer, Policy, Rule, Toward
from k8sdatapath.model.workload import NamedPort, Party

__all__ = ["EntryKey", "MapChange", "PolicyCompiler", "PolicyTable", "networks_of"]


class EntryKey(NamedTuple):
    """Key of an entry: identity 0 is everybody, protocol 0 any; ``bits`` of the port count."""

    identity: int
    toward: Toward
    protocol: int
    port: int
    bits: int


@frozen
class MapChange:
    """What a change does to one policy map: all of ``upserts``, then ``removed``, makes no hole."""

    upserts: Mapping[EntryKey, Entry] = field(factory=dict)
    removed: tuple[EntryKey, ...] = ()

    def then(self, later: MapChange) -> MapChange:
        """Both in one."""
        upserts = {**self.upserts, **later.upserts}
        for key in later.removed:
            upserts.pop(key, None)
        removed = dict.fromkeys((*(key for key in self.removed if key not in later.upserts), *later.removed))
        return MapChange(upserts, tuple(removed))


_HalfKey: TypeAlias = tuple[Toward, frozenset[str], tuple[NamedPort, ...]]
"""Policies in force, by name, and the ports of the pod, if their names make a difference."""


_MANY = 32
"""Identities, from which on policies are asked for those that they select, and not the other way round."""

_HalfKeys: TypeAlias = tuple[_HalfKey, _HalfKey]
"""Those of a subject, which tell its table from others."""


class _Half:
    """One direction of some policies: the rows of all identities that their rules select.

    :param ports: those of the pod that have names; none for egress, where it is not the destination.
    """

    def __init__(self, stages: Stages, index: PeerIndex, ports: tuple[NamedPort, ...]) -> None:
        self.stages = stages
        self._index = index
        self._ports = ports
        self._made: dict[tuple[tuple[int, ...], tuple[NamedPort, ...]], Row] = {}
        matching: dict[int, set[int]] = {}
        for peer in stages.peers - {EVERYBODY}:
            rules = stages.of_peer(peer)
            for number in index.selected(peer):
                matching.setdefault(number, set()).update(rules)
        if stages.naming and stages.toward is Toward.EGRESS:
            for number, party in index.parties.items():
                if party.ports:
                    matching.setdefault(number, set())
        self.rows: dict[int, Row] = {
            0: stages.row(stages.of_everybody, ports if stages.toward is Toward.INGRESS else ())
        }
        for number, own in matching.items():
            self._put(number, own)

    def learn(self, number: int, peers: Iterable[NetworkPeer]) -> Row | None:
        """Take in an identity, which some peers select; returns its row, if it needs one."""
        rules = {at for peer in peers if peer != EVERYBODY for at in self.stages.of_peer(peer)}
        if rules or (self.stages.toward is Toward.EGRESS and self._named(number)):
            self._put(number, rules)
        return self.rows.get(number)

    def _named(self, number: int) -> tuple[NamedPort, ...]:
        if self.stages.toward is Toward.INGRESS:
            return self._ports
        return self._index.parties[number].ports if self.stages.naming else ()

    def _put(self, number: int, own: set[int]) -> None:
        key = tuple(sorted(own.union(self.stages.of_everybody))), self._named(number)
        if key not in self._made:
            self._made[key] = self.stages.row(*key, self.rows[0])
        if self._made[key]:
            self.rows[number] = self._made[key]


class PolicyTable:
    """The policy map of one identity's pods, as it is to be."""

    def __init__(self, halves: tuple[Mapping[int, Row], Mapping[int, Row]]) -> None:
        self._halves = halves

    @property
    def halves(self) -> tuple[Mapping[int, Row], Mapping[int, Row]]:
        """The rows of each direction, by number of the peer; what tables have in common is one object."""
        return self._halves

    def audits(self, toward: Toward) -> bool:
        """Whether policies only look on in this direction: what they deny passes."""
        return self._halves[toward][0][ANY].audited

    def __len__(self) -> int:
        return sum(len(row) for half in self._halves for row in half.values())

    def items(self) -> Iterator[tuple[EntryKey, Entry]]:
        """All entries."""
        for toward in Toward:
            for number, row in self._halves[toward].items():
                yield from _keyed(number, toward, row)

    def find(self, toward: Toward, identity: int, protocol: int, port: int) -> tuple[EntryKey, Entry]:
        """The entry that decides, found as a policy map is asked: the two lookups."""
        found: list[tuple[EntryKey, Entry]] = []
        for number in (identity, 0):
            row = self._halves[toward].get(number, {})
            for bits in range(16, -1, -1):
                key = protocol, port >> 16 - bits << 16 - bits, bits
                if key in row:
                    found.append((EntryKey(number, toward, *key), row[key]))
                    break
            else:
                if (0, 0, 0) in row:
                    found.append((EntryKey(number, toward, 0, 0, 0), row[0, 0, 0]))
        return max(found, key=lambda each: each[1].precedence)

    def change_from(self, before: PolicyTable | None) -> MapChange:
        """What leads from another table to this one; cheap where they have rows in common."""
        upserts: dict[EntryKey, Entry] = {}
        removed: list[EntryKey] = []
        for toward in Toward:
            old = before._halves[toward] if before else {}
            new = self._halves[toward]
            if old is new:
                continue
            for number, row in new.items():
                known = old.get(number)
                if known is None:
                    upserts.update(_keyed(number, toward, row))
                elif known is not row:
                    upserts |= {k: v for k, v in _keyed(number, toward, row) if known.get(k[2:]) != v}
                    removed += (k for k, _ in _keyed(number, toward, known) if k[2:] not in row)
            for number in old.keys() - new.keys():
                removed += (key for key, _ in _keyed(number, toward, old[number]))
        return MapChange(upserts, tuple(removed))


def _keyed(number: int, toward: Toward, row: Row) -> Iterator[tuple[EntryKey, Entry]]:
    for key, entry in row.items():
        yield EntryKey(number, toward, *key), entry


class PolicyCompiler:
    """Keeps the tables of some identities, the subjects, while policies and identities change.

    :param allow_host: a pod's own node may always reach it.
    """

    def __init__(self, *, allow_host: bool = True) -> None:
        self._allow_host = allow_host
        self._index = PeerIndex()
        self._index.use(HOST)
        self._policies: dict[str, Policy] = {}
        self._selecting: dict[NetworkPeer, set[str]] = {}  # subject -> names of its policies
        self._applied: dict[int, frozenset[str]] = {}  # of each subject
        self._halves: dict[_HalfKey, _Half] = {}
        self._using: dict[NetworkPeer, set[_HalfKey]] = {}  # the halves that have a rule for a peer
        self._naming: set[_HalfKey] = set()  # those of egress with rules that name ports
        self._keys: dict[int, _HalfKeys] = {}  # of each subject's halves

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The policies in force, by name."""
        return self._policies

    @property
    def networks(self) -> set[IPNetwork]:
        """The networks that policies tell apart: an address belongs to the narrowest that it is in."""
        return {network for policy in self._policies.values() for network in networks_of(policy)}

    def selected(self, rule: Rule) -> set[int]:
        """The identities that a rule of a policy in force is about."""
        return {number for peer in rule.peers for number in self._index.selected(peer)}

    def table(self, subject: int) -> PolicyTable:
        """The table of a subject, as it is now.

        :raises KeyError: it is none.
        """
        ingress, egress = self._keys[subject]
        return PolicyTable((self._halves[ingress].rows, self._halves[egress].rows))

    def update(
        self,
        policies: Iterable[Policy] = (),
        *,
        removed: Iterable[str] = (),
        identities: Mapping[int, Party] | None = None,
        gone: Iterable[int] = (),
        subjects: Iterable[int] = (),
        no_subjects: Iterable[int] = (),
    ) -> dict[int, MapChange]:
        """Change anything, and tell what that changes in which tables.

        :param policies: new ones, and new versions of those that there are.
        :param removed: names of policies.
        :param identities: new ones, by number; a number's meaning never changes while it is here.
        :param gone: identities that nobody has any more, and that are no subjects.
        :param subjects: identities whose pods are here, so that they need a table.
        :param no_subjects: those that need none any more.
        :raises ModelError: a policy is given twice, or is none; nothing is changed.
        """
        new: dict[str, Policy] = {}
        removed = tuple(removed)
        for policy in policies:
            if not isinstance(policy, Policy):
                raise ModelError(f"{shown(policy)} is no Policy: parse_policies makes some of a text")
            if new.setdefault(policy.name, policy) is not policy:
                raise ModelError(f"{policy.name} is given twice")
        for number in no_subjects:
            del self._applied[number], self._keys[number]
        changes = self._identities(identities or {}, gone)
        before = {number: self.table(number) for number in self._keys} if new or removed else {}
        keys_before = {number: self._keys[number] for number in before}
        touched = self._change(new, removed)
        new_subjects = set(subjects) - self._keys.keys()
        self._applied |= self._applying(new_subjects)
        touched |= new_subjects
        for number in touched:
            self._keys[number] = self._build(number)
        for key in self._halves.keys() - {key for keys in self._keys.values() for key in keys}:
            self._remove(key)
        shared: dict[tuple[_HalfKeys | None, _HalfKeys], MapChange] = {}
        for number in touched:
            pair = keys_before.get(number), self._keys[number]
            if pair not in shared:
                shared[pair] = self.table(number).change_from(before.get(number))
            change = shared[pair]
            changes[number] = changes[number].then(change) if number in changes else change
        return {number: change for number, change in changes.items() if change.upserts or change.removed}

    def _change(self, new: Mapping[str, Policy], removed: Iterable[str]) -> set[int]:
        """Returns the subjects that are concerned."""
        old = {name: self._policies[name] for name in {*removed, *(new.keys() & self._policies.keys())}}
        touched: set[int] = set()
        for policy in new.values():
            for peer in _peers(policy):
                self._index.use(peer)
        for name, policy in old.items():
            touched |= self._selects(policy, without={name})
            self._selecting[policy.subject].remove(name)
            if not self._selecting[policy.subject]:
                del self._selecting[policy.subject]
            for peer in _peers(policy):
                self._index.drop(peer)
            del self._policies[name]
        for name, policy in new.items():
            self._policies[name] = policy
            self._selecting.setdefault(policy.subject, set()).add(name)
            touched |= self._selects(policy, plus={name})
        for key in [key for key in self._halves if key[1] & old.keys()]:
            self._remove(key)
        return touched

    def _selects(
        self, policy: Policy, *, plus: Set[str] = frozenset(), without: Set[str] = frozenset()
    ) -> set[int]:
        """Change what applies to the subjects that a policy selects; returns them."""
        found = {number for number in self._index.selected(policy.subject) if number in self._applied}
        for number in found:
            self._applied[number] = (self._applied[number] - without) | plus
        return found

    def _applying(self, subjects: Set[int]) -> dict[int, frozenset[str]]:
        """The policies that select some identities: asked one way for a few of them, the other for many."""
        if len(subjects) < _MANY:
            peers = {number: self._index.selecting(number) for number in subjects}
            return {
                number: frozenset().union(*(self._selecting.get(peer, ()) for peer in found))
                for number, found in peers.items()
            }
        found: dict[int, list[str]] = {number: [] for number in subjects}
        for peer, names in self._selecting.items():
            for number in self._index.selected(peer):
                if number in found:
                    found[number] += names
        return {number: frozenset(names) for number, names in found.items()}

    def _identities(self, new: Mapping[int, Party], gone: Iterable[int]) -> dict[int, MapChange]:
        changed: dict[_HalfKey, MapChange] = {}
        for number in gone:
            party = self._index.parties[number]
            for key in self._concerned(self._index.remove(number), party):
                row = self._halves[key].rows.pop(number, None)
                if row:
                    keys = tuple(each for each, _ in _keyed(number, key[0], row))
                    changed[key] = changed.get(key, MapChange()).then(MapChange({}, keys))
        for number, party in new.items():
            peers = self._index.add(number, party)
            for key in self._concerned(peers, party):
                row = self._halves[key].learn(number, peers)
                if row:
                    learned = MapChange(dict(_keyed(number, key[0], row)))
                    changed[key] = changed.get(key, MapChange()).then(learned)
        found: dict[int, MapChange] = {}
        for number, halves in self._keys.items() if changed else ():
            for key in halves:
                if key in changed:
                    found[number] = found.get(number, MapChange()).then(changed[key])
        return found

    def _concerned(self, peers: Iterable[NetworkPeer], party: Party) -> set[_HalfKey]:
        """The halves that may have a row for an identity that some peers select."""
        found = {key for peer in peers if peer != EVERYBODY for key in self._using.get(peer, ())}
        return found | self._naming if party.ports else found

    def _add(self, key: _HalfKey, half: _Half) -> None:
        self._halves[key] = half
        for peer in half.stages.peers:
            self._using.setdefault(peer, set()).add(key)
        if half.stages.naming and key[0] is Toward.EGRESS:
            self._naming.add(key)

    def _remove(self, key: _HalfKey) -> None:
        for peer in self._halves.pop(key).stages.peers:
            self._using[peer].remove(key)
            if not self._using[peer]:
                del self._using[peer]
        self._naming.discard(key)

    def _build(self, number: int) -> _HalfKeys:
        """Make the halves of a subject that no other one has."""
        applied, ports = self._applied[number], self._index.parties[number].ports
        selecting = [self._policies[name] for name in applied]
        keys = []
        for toward in Toward:
            policies = in_force(selecting, toward)
            own = ports if toward is Toward.INGRESS and _naming(policies) else ()
            key = toward, frozenset(each.name for each in policies), own
            if key not in self._halves:
                stages = Stages(policies, toward, allow_host=self._allow_host)
                self._add(key, _Half(stages, self._index, own))
            keys.append(key)
        return keys[0], keys[1]


def networks_of(policy: Policy) -> Iterator[IPNetwork]:
    """The networks that a policy tells apart."""
    for rule in policy.rules:
        for peer in rule.peers:
            if isinstance(peer, Block):
                yield from peer.networks


def _peers(policy: Policy) -> Iterator[NetworkPeer]:
    yield policy.subject
    for rule in policy.rules:
        yield from rule.peers


def _naming(policies: Iterable[Policy]) -> bool:
    """Whether the ports that a pod names make a difference."""
    return any(port.name for policy in policies for rule in policy.rules for port in rule.ports)
