"""The maps of a service table: what stands in them, and how that is changed under live traffic.

The order of writing is what makes every instant valid for live traffic, and every crash harmless:

1. rows of new backends and slots of new sets, in places that nothing names yet;
2. the sets, each by one 8-byte store: from here on new flows go to the new backends;
3. frontends: those that go, then those that come or change; one that moves is replaced in place. Rows of
   whole addresses (see :mod:`~k8sdatapath.datapath.service_addresses`) go before and come after them;
4. rows of backends that left are marked free: flows that remember them choose anew (UDP at once, TCP with
   its next connection); established TCP goes on, its conntrack entry holds all it needs.

Most changes replace some backends and nothing else. They cost what they replace: the rest of a service is
passed over without a look at each of its backends.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from k8sdatapath import maps
from k8sdatapath.component import Pressure
from k8sdatapath.datapath.service_addresses import Addresses, AddressRows
from k8sdatapath.datapath.service_plan import Change, Needs
from k8sdatapath.datapath.service_rows import (
    frontend_rows,
    members_of_sets,
    only_backends_differ,
    read_service,
    source_keys,
)
from k8sdatapath.datapath.service_steps import Entry, Step
from k8sdatapath.errors import ContractError
from k8sdatapath.layout import u8
from k8sdatapath.model import Frontend, FrontendKind, IPAddress, IPNetwork, Service
from k8sdatapath.tables.backends import BackendRow, BackendRows
from k8sdatapath.tables.frontends import NO_SERVICE, FrontendKey, FrontendRow
from k8sdatapath.tables.grace import Numbers
from k8sdatapath.tables.sets import NO_RUN, SetKind, SetRow, Sets, SlotsBlock
from k8sdatapath.tables.sources import NODE, SourceKey

__all__ = ["CONTRACT", "ServiceMaps"]

#: The maps that a service table is made of.
CONTRACT: Mapping[str, Any] = {
    "kd_frontends": maps.Hash[FrontendKey, FrontendRow],
    "kd_sets": maps.Array[SetRow],
    "kd_slots": maps.Array[SlotsBlock],
    "kd_backends": maps.Array[BackendRow],
    "kd_sources": maps.LPMTrie[SourceKey, u8],
}


class ServiceMaps:
    """The maps, and what stands in them; not for several threads at once.

    :param bound: those of the contract. What is in them is taken over as it is.
    :param networks: of cluster IPs.
    :ivar entries: services by main frontend.
    :ivar owners: the main frontend of the service that has a frontend.
    :ivar epoch: another one after every change.
    :raises ContractError: they hold what no service table writes.
    """

    def __init__(self, bound: Mapping[str, Any], networks: Iterable[IPNetwork]) -> None:
        self.bound = bound
        self.addresses = Addresses(tuple(networks))
        self.epoch = 0
        self.adopt()

    # -- what there is --

    def pressure(self) -> dict[str, Pressure]:
        """How full each map is."""
        numbers, sets, rows = self._numbers, self.sets, self.rows
        return {
            "kd_frontends": Pressure(len(self.frontends), self.frontends.info.max_entries),
            "kd_sets": Pressure(numbers.size - numbers.available, numbers.size),
            "kd_slots": Pressure(sets.size - sets.available, sets.size),
            "kd_backends": Pressure(rows.size - rows.available, rows.size),
            "kd_sources": Pressure(len(self._sources), self._sources.info.max_entries),
        }

    def room(self, need: Needs) -> Needs:
        """What can still be taken; source ranges are counted only if one is needed."""
        used = len(self._sources) if need.sources else 0
        return Needs(
            frontends=self.frontends.info.max_entries - self.used("frontends"),
            services=self._numbers.available,
            backends=self.rows.available + len(self._garbage),
            slots=self.sets.available,
            sources=self._sources.info.max_entries - used,
        )

    def used(self, resource: str) -> int:
        """How much of a resource of :class:`Needs` is taken, where that is known by its name."""
        match resource:
            case "frontends":  # when all rows of whole addresses are as they should be
                return len(self.owners) + self.addresses.count
            case "services":
                return len(self.entries)
            case "source ranges":
                return len(self._sources)
        return 0

    def stands(self, entry: Entry, rows: dict[FrontendKey, FrontendRow], ranges: set[SourceKey]) -> bool:
        """Whether a service is in the maps as it was written; takes its own out of the rows of frontends.

        :param rows: all that there are, likewise ``ranges``.
        """
        service, ids = entry.service, entry.ids
        wanted = frontend_rows(service, entry.number)
        found = {key: rows.pop(key, None) for key in wanted}
        return (
            found == wanted
            and ranges.issuperset(source_keys(service, entry.number, node=self._lets_node_in(service)))
            and all(self.rows.holds(id, each) for id, each in zip(ids, service.backends, strict=True))
            and all(
                list(members) == self.sets.ids(entry.number, kind)
                for kind, members in members_of_sets(service, ids).items()
            )
        )

    def differing(self) -> tuple[list[Frontend], bool]:
        """Main frontends of services that the maps hold otherwise than they were written; whether there is
        anything else that was not."""
        rows = {key: row for key, row in self.frontends.items() if row.service != NO_SERVICE}
        ranges = set(self._sources)
        wrong = [f for f, entry in self.entries.items() if not self.stands(entry, rows, ranges)]
        strange = {row.service for row in rows.values()}
        wrong += [f for f, entry in self.entries.items() if entry.number in strange and f not in wrong]
        return wrong, bool(rows)

    # -- changing it --

    def write(self, changes: Sequence[Change]) -> list[Step]:
        """Carry changes out: all of them, or nothing and an error. They have been looked at: they may be.

        :returns: what was done for each.
        :raises CapacityError: it does not fit; nothing was changed.
        """
        while self._garbage:
            self.rows.remove(self._garbage.pop())
        steps = self._prepare(changes)
        self.epoch += 1
        try:
            self._commit(steps)
        except BaseException:  # whatever got through is in the kernel: start again from what it says
            self.adopt()
            raise
        return steps

    def own_are(self, addresses: Collection[IPAddress]) -> None:
        """The node itself has these addresses now."""
        moved = self.addresses.own != set(addresses)
        self.addresses.own_are(addresses)
        if moved:
            self._let_node_in()
        self._write_frontends((), self.addresses.plan(()))

    def _let_node_in(self) -> None:
        """Bring the entries for the node itself to what its addresses are now."""
        limited = [entry for entry in self.entries.values() if entry.service.source_ranges]
        keys = {entry.number: SourceKey.of(entry.number, NODE) for entry in limited}
        may = {keys[entry.number] for entry in limited if self._lets_node_in(entry.service)}
        self._sources.update_many((key, 1) for key in may)
        self._sources.delete_many(key for key in keys.values() if key not in may)

    def _lets_node_in(self, service: Service) -> bool:
        return any(own in network for network in service.source_ranges for own in self.addresses.own)

    def _prepare(self, changes: Iterable[Change]) -> list[Step]:
        """Write what nothing names yet: rows of new backends, slots of new sets; or nothing, and an error."""
        steps = [self._step(change) for change in changes]
        made = self.rows.add(
            [
                (step.after.service.backends[place], step.after.service.protocol)
                for step in steps
                if step.after is not None
                for place in step.new
            ]
        )
        try:
            unused = iter(made)
            for step in steps:
                if step.after is not None:
                    for place in step.new:
                        step.after.ids[place] = next(unused)
                    for kind, members in members_of_sets(step.after.service, step.after.ids).items():
                        step.runs[kind] = self.sets.prepare(members) if members else NO_RUN
            numbers = iter(self._numbers.take_many(sum(step.before is None for step in steps)))
        except BaseException:
            self.rows.put_back(made)
            for step in steps:
                for run in step.runs.values():
                    self.sets.put_back(run)
            raise
        for step in steps:
            if step.before is None and step.after is not None:
                step.after.number = next(numbers)
        return steps

    def _step(self, change: Change) -> Step:
        """What becomes of each backend: it keeps its row, which may change, or is new."""
        before, service = self.entries.get(change.frontend), change.after
        if service is None:
            return Step(change, before, None)
        if before is None:
            after = Entry(service, -1, array("I", [0] * len(service.backends)))
            return Step(change, None, after, new=change.fresh)
        had = before.ids
        ids = array("I", [0 if place is None else had[place] for place in change.places])
        step = Step(change, before, Entry(service, before.number, ids))
        step.inner = only_backends_differ(before.service, service)
        step.new = [at for at in change.fresh if change.places[at] is None]
        step.altered = [
            (ids[at], service.backends[at]) for at in change.fresh if change.places[at] is not None
        ]
        return step

    def _commit(self, steps: Sequence[Step]) -> None:
        outer = [step for step in steps if not step.inner]
        for step in steps:
            for row, backend in step.altered:
                self.rows.update(row, backend)
        wider = [
            key
            for after in (step.after for step in outer if step.after is not None)
            for key in source_keys(after.service, after.number, node=self._lets_node_in(after.service))
        ]
        narrower = [
            key
            for before in (step.before for step in outer if step.before is not None)
            for key in source_keys(before.service, before.number, node=True)
        ]
        if wider:
            self._sources.update_many((key, 1) for key in wider)
        self.sets.commit((step.after.number, step.runs) for step in steps if step.after is not None)
        if outer or self.addresses.amiss:
            self._write_frontends(outer, self.addresses.plan([step.change for step in outer]))
        if narrower:
            self._sources.delete_many(set(narrower).difference(wider))
        gone = [step.before for step in steps if step.after is None and step.before is not None]
        if gone:
            self.sets.commit((before.number, dict.fromkeys(SetKind, NO_RUN)) for before in gone)
        for step in steps:
            for row in step.retired:
                self.rows.remove(row)
            if step.after is not None:
                self.entries[step.change.frontend] = step.after
            else:
                del self.entries[step.change.frontend]
        for before in gone:
            self._numbers.give(before.number)
        self._set_owners(outer)

    def _write_frontends(self, steps: Iterable[Step], whole: AddressRows) -> None:
        """Take away what no service has any more, then add and change; what moves is replaced in place."""
        had: dict[FrontendKey, FrontendRow] = {}
        have: dict[FrontendKey, FrontendRow] = {}
        for step in steps:
            if step.before is not None:
                had |= frontend_rows(step.before.service, step.before.number)
            if step.after is not None:
                have |= frontend_rows(step.after.service, step.after.number)
        if gone := [*whole.keys_gone, *(had.keys() - have.keys())]:
            self.frontends.delete_many(gone)
        if come := [*((key, row) for key, row in have.items() if had.get(key) != row), *whole.rows_come]:
            self.frontends.update_many(come)
        self.addresses.done(whole)

    def _set_owners(self, steps: Sequence[Step]) -> None:
        for step in steps:
            for frontend in step.before.service.frontends if step.before is not None else ():
                self.owners.pop(frontend, None)
        for step in steps:
            for frontend in step.after.service.frontends if step.after is not None else ():
                self.owners[frontend] = step.change.frontend

    # -- taking over what is there --

    def go_on_in(self, bound: Mapping[str, Any]) -> None:
        """The same stands in other maps now, under the same numbers."""
        self.bound, self.epoch = bound, self.epoch + 1
        self._open([entry.number for entry in self.entries.values()])

    def adopt(self) -> None:
        """Start again from what the maps hold."""
        try:
            self._read()
        except (IndexError, KeyError, ValueError, MemoryError) as error:
            raise ContractError(f"the maps hold what no service table has written: {error}") from error

    def let_go(self) -> None:
        """See the memory of the maps no more, which would stay with them."""
        del self.sets, self.rows

    def _open(self, numbers: Collection[int]) -> None:
        """Ready to write to the bound maps, where services of these numbers are."""
        from k8sdatapath.pybpf.memory import wait_for_programs

        self.frontends: maps.Hash[FrontendKey, FrontendRow] = self.bound["kd_frontends"]
        self._sources: maps.LPMTrie[SourceKey, int] = self.bound["kd_sources"]
        self.sets = Sets(self.bound["kd_sets"], self.bound["kd_slots"], wait_for_programs, numbers)
        self.rows = BackendRows(self.bound["kd_backends"], wait_for_programs)
        self._numbers = Numbers("services", self.sets.services, wait_for_programs, numbers)

    def _read(self) -> None:
        found: dict[int, list[tuple[FrontendKey, FrontendRow]]] = {}
        whole: dict[IPAddress, FrontendKind] = {}
        for key, row in self.bound["kd_frontends"].items():
            if row.service == NO_SERVICE:
                whole[key.addr] = FrontendKind(row.kind)
            else:
                found.setdefault(row.service, []).append((key, row))
        self._open(found)
        sources: dict[int, list[IPNetwork]] = {}
        for source in self._sources:
            if source.network != NODE:
                sources.setdefault(source.service, []).append(source.network)
        rows = {row.id: row for row in self.rows.all()}
        self.entries: dict[Frontend, Entry] = {}
        self.owners: dict[Frontend, Frontend] = {}
        for number, frontends in found.items():
            sets = {kind: self.sets.ids(number, kind) for kind in SetKind}
            service, ids = read_service(frontends, sets, rows, sources.get(number, ()))
            self.entries[service.frontend] = Entry(service, number, array("I", ids))
            self.owners |= dict.fromkeys(service.frontends, service.frontend)
        self.addresses.adopt((entry.service for entry in self.entries.values()), whole)
        named = {id for entry in self.entries.values() for id in entry.ids}
        # Rows that no set names are left by a crash between two steps. The first change frees them.
        self._garbage = [id for id in rows if id not in named]
