"""Which identities a peer of a rule selects, and which peers select an identity.

Both are kept while either side changes: a new peer costs a few operations on bitsets, one bit per identity;
a new identity is shown only to those peers that ask for a label it has.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from k8sdatapath.model import IPNetwork
from k8sdatapath.model.policy import (
    Block,
    NetworkPeer,
    Operator,
    Requirement,
    attributes,
)
from k8sdatapath.model.workload import Party

__all__ = ["PeerIndex"]

_Label: TypeAlias = tuple[str, str | None]
"""Key and value; None for the key alone."""
_Prefix: TypeAlias = tuple[int, int, int]
"""A network: version of IP, length, and address."""


class PeerIndex:
    """The selections of all peers in use."""

    def __init__(self) -> None:
        self.parties: dict[int, Party] = {}
        """The identities, by number."""
        self._places: dict[int, int] = {}  # the bit of each
        self._numbers: dict[int, int] = {}
        self._free: list[int] = []
        self._all = 0
        self._postings: dict[_Label, int] = {}
        self._addressed: dict[int, list[tuple[int, int, int]]] = {4: [], 6: []}
        # ... version -> address, length and place of those that have a network, sorted
        self._uses: Counter[NetworkPeer] = Counter()
        self._selected: dict[NetworkPeer, int] = {}
        self._filed: dict[_Label | _Prefix | None, dict[NetworkPeer, None]] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()  # of the networks of peers, by version

    def use(self, peer: NetworkPeer) -> None:
        """Keep the selection of a peer, until as many calls of :meth:`drop` as of this."""
        self._uses[peer] += 1
        if peer not in self._selected:
            self._selected[peer] = self._evaluate(peer)
            if isinstance(peer, Block):
                self._lengths[peer.network.version, peer.network.prefixlen] += 1
            for label in _filed_under(peer):
                self._filed.setdefault(label, {})[peer] = None

    def drop(self, peer: NetworkPeer) -> None:
        """Undo one :meth:`use`."""
        self._uses[peer] -= 1
        if not self._uses[peer]:
            del self._uses[peer], self._selected[peer]
            if isinstance(peer, Block):
                self._lengths[peer.network.version, peer.network.prefixlen] -= 1
            for label in _filed_under(peer):
                del self._filed[label][peer]
                if not self._filed[label]:
                    del self._filed[label]

    def selected(self, peer: NetworkPeer) -> Iterator[int]:
        """The numbers of the identities that a peer in use selects."""
        bits = self._selected[peer]
        while bits:
            lowest = bits & -bits
            yield self._numbers[lowest.bit_length() - 1]
            bits ^= lowest

    def selecting(self, number: int) -> list[NetworkPeer]:
        """The peers in use that select an identity."""
        bit = 1 << self._places[number]
        party = self.parties[number]
        candidates = self._candidates(party, list(_labels(party)))
        return [peer for peer in candidates if self._selected[peer] & bit]

    def add(self, number: int, party: Party) -> list[NetworkPeer]:
        """Take in an identity; returns the peers that select it."""
        place = self._free.pop() if self._free else len(self._places)
        self.parties[number], self._places[number], self._numbers[place] = party, place, number
        bit = 1 << place
        self._all |= bit
        if party.network is not None:
            version, length, ip = _prefix(party.network)
            insort(self._addressed[version], (ip, length, place))
        labels, postings = list(_labels(party)), self._postings
        for label in labels:
            postings[label] = postings.get(label, 0) | bit
        found = [peer for peer in self._candidates(party, labels) if _matches(peer, party)]
        for peer in found:
            self._selected[peer] |= bit
        return found

    def remove(self, number: int) -> list[NetworkPeer]:
        """Forget an identity; returns the peers that selected it."""
        party, place = self.parties.pop(number), self._places.pop(number)
        del self._numbers[place]
        self._free.append(place)
        bit = 1 << place
        self._all ^= bit
        if party.network is not None:
            version, length, ip = _prefix(party.network)
            there = self._addressed[version]
            del there[bisect_left(there, (ip, length, place))]
        labels = list(_labels(party))
        for label in labels:
            self._postings[label] ^= bit
            if not self._postings[label]:
                del self._postings[label]
        found = [peer for peer in self._candidates(party, labels) if self._selected[peer] & bit]
        for peer in found:
            self._selected[peer] ^= bit
        return found

    def _candidates(self, party: Party, labels: list[_Label]) -> Iterator[NetworkPeer]:
        """Each once, as each is filed under labels of which a party has at most one."""
        yield from self._filed.get(None, ())
        for label in labels:
            if label in self._filed:
                yield from self._filed[label]
        if party.network is not None:
            version, own, ip = _prefix(party.network)
            for (of, length), count in self._lengths.items():
                if count and of == version and length <= own:
                    shift = party.network.max_prefixlen - length
                    yield from self._filed.get((version, length, ip >> shift << shift), ())

    def _evaluate(self, peer: NetworkPeer) -> int:
        if isinstance(peer, Block):
            found = self._inside(peer.network)
            for network in peer.excepts:
                found &= ~self._inside(network)
            return found if peer.pods else found & self._of_world()
        found = self._all
        for each in sorted(peer.requirements, key=lambda each: each.operator in _NEGATIVE):
            found &= self._meeting(each)
            if not found:
                break
        return found

    def _inside(self, network: IPNetwork) -> int:
        """Those whose network is a part of another."""
        version, length, first = _prefix(network)
        there = self._addressed[version]
        end = first + (1 << network.max_prefixlen - length)
        found = 0
        for at in range(bisect_left(there, (first,)), bisect_left(there, (end,))):
            _, own, place = there[at]
            if own >= length:
                found |= 1 << place
        return found

    def _of_world(self) -> int:
        found = 0
        for name in ("world", "world-ipv4", "world-ipv6"):
            found |= self._postings.get((f"reserved:{name}", None), 0)
        return found

    def _meeting(self, requirement: Requirement) -> int:
        values: set[str | None] = {None} if not requirement.values else set(requirement.values)
        found = 0
        for value in values:
            found |= self._postings.get((requirement.key, value), 0)
        return self._all & ~found if requirement.operator in _NEGATIVE else found


_NEGATIVE = (Operator.NOT_IN, Operator.ABSENT)


def _labels(party: Party) -> Iterator[_Label]:
    for key, values in attributes(party.labels).items():
        yield key, None
        for value in values:
            yield key, value


def _prefix(network: IPNetwork) -> _Prefix:
    return network.version, network.prefixlen, int(network.network_address)


def _filed_under(peer: NetworkPeer) -> list[_Label | _Prefix | None]:
    """Labels of which it asks for one, so that whoever has none of them is not selected."""
    if isinstance(peer, Block):
        return [_prefix(peer.network)]
    asked = [each for each in peer.requirements if each.operator is Operator.IN]
    if asked:
        rarest = min(asked, key=lambda each: (len(each.values), "namespace" in each.key))
        if not rarest.key.startswith("any:") or len(rarest.values) == 1:
            return [(rarest.key, value) for value in rarest.values]
    present = [each for each in peer.requirements if each.operator is Operator.EXISTS]
    return [(present[0].key, None)] if present else [None]


def _matches(peer: NetworkPeer, party: Party) -> bool:
    if isinstance(peer, Block):
        return peer.matches(party.labels, party.network)
    return peer.matches(party.labels)
