"""Addresses that belong to services only, and what is told at their other ports.

A client that dials a port of a cluster IP which no service has would wait for nobody: the packet leads
nowhere, or in circles. So each address of services has a row of its own, with port 0 and protocol 0, by which
programs know that nobody behind them could answer there. Cluster IPs in the networks of services have none:
programs know those networks.

An address that the node itself has never gets such a row, nor one with a node port or host port, which are
the node's too: whatever else listens there (SSH) must go on.

The row is taken away before the address's last frontend, and written after its first: at no time is an
address shut to others that no service is dialled at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import add
from typing import TypeAlias

from attrs import define, evolve, field, frozen

from k8sdatapath.datapath.service_plan import Change, Needs
from k8sdatapath.model import FrontendKind, IPAddress, IPNetwork, Service
from k8sdatapath.tables.frontends import NO_SERVICE, FrontendKey, FrontendRow

__all__ = ["AddressRows", "Addresses", "Trial", "address_key"]

#: How often each address is dialled, by number of the kind of frontend.
Places: TypeAlias = dict[IPAddress, tuple[int, ...]]

_NEVER = (0,) * len(FrontendKind)

_KINDS = tuple(FrontendKind)
_OF_NODE = {FrontendKind.NODE_PORT, FrontendKind.HOST_PORT}


def address_key(address: IPAddress) -> FrontendKey:
    """The key of the row for a whole address."""
    return FrontendKey(address, 0, 0)


@frozen
class AddressRows:
    """What changes of services do to the rows of whole addresses.

    :ivar gone: to be taken away before their frontends are.
    :ivar come: to be written when their frontends are there.
    :ivar count: how many rows there will be.
    """

    gone: tuple[IPAddress, ...]
    come: Mapping[IPAddress, FrontendKind]
    count: int
    moved: Places = field(repr=False)

    @property
    def keys_gone(self) -> list[FrontendKey]:
        """As keys."""
        return [address_key(address) for address in self.gone]

    @property
    def rows_come(self) -> list[tuple[FrontendKey, FrontendRow]]:
        """As rows."""
        return [(address_key(a), FrontendRow(NO_SERVICE, 0, 0, 0, 0, kind)) for a, kind in self.come.items()]


@define
class Addresses:
    """Where services are dialled, and which of those addresses have a row.

    :ivar networks: of cluster IPs.
    :ivar own: addresses of the node.
    """

    networks: tuple[IPNetwork, ...] = ()
    own: frozenset[IPAddress] = frozenset()
    _dialled: Places = field(factory=dict, init=False)
    _rows: dict[IPAddress, FrontendKind] = field(factory=dict, init=False)
    _amiss: set[IPAddress] = field(factory=set, init=False)

    def adopt(self, services: Iterable[Service], rows: Mapping[IPAddress, FrontendKind]) -> None:
        """Begin with these services and rows. What is amiss with the rows is for the first change to mend."""
        self._dialled = {}
        for service in services:
            self._count(self._dialled, service, 1)
        self._rows = dict(rows)
        self._look_again()

    def own_are(self, addresses: Collection[IPAddress]) -> None:
        """The node has these addresses now; the next change brings the rows to that."""
        if self.own != set(addresses):
            self.own = frozenset(addresses)
            self._look_again()

    def plan(self, changes: Iterable[Change]) -> AddressRows:
        """What to do about rows when services change."""
        moved: Places = {}
        for change in changes:
            self.move(moved, change)
        touched = self._amiss.union(address for address, by in moved.items() if any(by))
        wanted = {address: self.wanted(address, moved) for address in touched}
        gone = tuple(a for a, kind in wanted.items() if kind is None and a in self._rows)
        come = {a: kind for a, kind in wanted.items() if kind is not None and self._rows.get(a) != kind}
        new = sum(address not in self._rows for address in come)  # views would be compared as a whole
        count = len(self._rows) - len(gone) + new
        return AddressRows(gone, come, count, moved)

    @property
    def count(self) -> int:
        """How many rows there will be if no service changes."""
        return self.plan(()).count if self._amiss else len(self._rows)

    def needs(self, changes: Sequence[Change]) -> Needs:
        """What changes take, rows of whole addresses included."""
        need = Needs.of(changes)
        rows = self.plan(changes).count - self.count
        return evolve(need, frontends=need.frontends + rows)

    def trial(self) -> Trial:
        """The same, for one change after the other."""
        return Trial(self)

    def move(self, moved: Places, change: Change) -> set[IPAddress]:
        """Count what a change does to the places that are dialled; returns their addresses."""
        before, after = change.before, change.after
        if before and after and (before.kind, before.exposed) == (after.kind, after.exposed):
            return set()
        touched = set()
        for service, by in ((before, -1), (after, 1)):
            if service is not None:
                touched |= self._count(moved, service, by)
        return touched

    @property
    def amiss(self) -> bool:
        """Whether rows are otherwise than they should be, until the next change."""
        return bool(self._amiss)

    def done(self, plan: AddressRows) -> None:
        """It has been carried out."""
        for address, by in plan.moved.items():
            self._dialled[address] = counts = _sum(self._dialled.get(address, _NEVER), by)
            if not any(counts):
                del self._dialled[address]
        for address in plan.gone:
            del self._rows[address]
        self._rows |= plan.come
        self._amiss.clear()

    def _look_again(self) -> None:
        addresses = self._dialled.keys() | self._rows.keys()
        self._amiss = {a for a in addresses if self.wanted(a, {}) != self._rows.get(a)}

    def _count(self, places: Places, service: Service, by: int) -> set[IPAddress]:
        """Count where a service is dialled; returns the addresses."""
        touched = set()
        for frontend, kind in zip(service.frontends, service.kinds, strict=True):
            address = frontend.address
            if not any(address in network for network in self.networks):
                counts = list(places.get(address, _NEVER))
                counts[kind] += by
                places[address] = tuple(counts)
                touched.add(address)
        return touched

    def wanted(self, address: IPAddress, moved: Places) -> FrontendKind | None:
        """The kind of its row; the first of those dialled there, so a cluster IP is one before all."""
        counts = _sum(self._dialled.get(address, _NEVER), moved.get(address, _NEVER))
        kinds = [kind for kind, count in zip(_KINDS, counts, strict=True) if count]
        if not kinds or address in self.own or not _OF_NODE.isdisjoint(kinds):
            return None
        return kinds[0]


@frozen
class Trial:
    """What changes would take, one after the other."""

    _addresses: Addresses
    _moved: Places = field(factory=dict, init=False)

    def take(self, change: Change) -> Needs:
        """What this one takes when those before it are made."""
        need = Needs.of([change])
        return evolve(need, frontends=need.frontends + self._make(change, 1))

    def put_back(self, change: Change) -> None:
        """It will not be made."""
        self._make(change, -1)

    def _make(self, change: Change, times: int) -> int:
        moved: Places = {}
        touched = self._addresses.move(moved, change)
        before = self._rows(touched)
        for address, by in moved.items():
            self._moved[address] = _sum(self._moved.get(address, _NEVER), (times * each for each in by))
        return self._rows(touched) - before

    def _rows(self, touched: Iterable[IPAddress]) -> int:
        return sum(self._addresses.wanted(address, self._moved) is not None for address in touched)


def _sum(one: Iterable[int], other: Iterable[int]) -> tuple[int, ...]:
    return tuple(map(add, one, other))
