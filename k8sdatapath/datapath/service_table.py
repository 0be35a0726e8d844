"""ServiceTable: services in, the kernel's service maps out.

The order of writing is what makes every instant valid for live traffic, and every crash harmless:

1. rows of new backends and slots of new sets, in places that nothing names yet;
2. the sets, each by one 8-byte store: from here on new flows go to the new backends;
3. frontends: those that go, then those that come or change; one that moves is replaced in place. Rows of
   whole addresses (see :mod:`~k8sdatapath.datapath.service_addresses`) go before and come after them;
4. rows of backends that left are marked free: flows that remember them choose anew (UDP at once, TCP with
   its next connection); established TCP goes on, its conntrack entry holds all it needs.

Nothing is kept outside the kernel. :meth:`ServiceTable.bind` reads the maps back, takes over the numbers that
are in use and frees what a crash left half-made, so the next plan goes on where the last process stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.component import Pressure, Report
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.copying import copy_map
from k8sdatapath.datapath.resolution import Resolution
from k8sdatapath.datapath.service_addresses import Addresses, AddressRows
from k8sdatapath.datapath.service_fit import conflicts, possible
from k8sdatapath.datapath.service_plan import (
    Change,
    Needs,
    ServicePlan,
    by_frontend,
    claimed_twice,
    frontends_only,
)
from k8sdatapath.datapath.service_rows import (
    frontend_key,
    frontend_rows,
    members_of_sets,
    read_service,
    same_rows,
    scope_of,
    source_keys,
)
from k8sdatapath.datapath.service_steps import Entry, Step
from k8sdatapath.errors import (
    CapacityError,
    ClosedError,
    ContractError,
    DatapathError,
    ServiceNotFoundError,
    StalePlanError,
)
from k8sdatapath.layout import u8
from k8sdatapath.model import (
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    IPAddress,
    IPNetwork,
    Selection,
    Service,
)
from k8sdatapath.pins import PinDir
from k8sdatapath.resource import Resource
from k8sdatapath.tables.backends import BackendRow, BackendRows
from k8sdatapath.tables.frontends import NO_SERVICE, FrontendKey, FrontendRow
from k8sdatapath.tables.grace import Numbers
from k8sdatapath.tables.sets import SetKind, SetRow, Sets, SlotsBlock
from k8sdatapath.tables.sources import NODE, SourceKey

__all__ = ["CONTRACT", "ServiceTable"]

#: The maps that a service table is made of.
CONTRACT: Mapping[str, Any] = {
    "kd_frontends": maps.Hash[FrontendKey, FrontendRow],
    "kd_sets": maps.Array[SetRow],
    "kd_slots": maps.Array[SlotsBlock],
    "kd_backends": maps.Array[BackendRow],
    "kd_sources": maps.LPMTrie[SourceKey, u8],
}

_SHOWN = 8  # frontends in the message about one that is not there


class ServiceTable(Resource):
    """The services of a node, in the kernel.

    Make one with :meth:`bind`; all methods may be called from any thread.

    :ivar on_leave: called after each change that took a backend or a frontend from a service of UDP, and may
        have ended flows: see :class:`~k8sdatapath.datapath.flow_reaper.FlowReaper`. It must not wait.
    """

    def __init__(
        self, bound: Mapping[str, Any], owned: ExitStack, pins: PinDir | None, networks: Iterable[IPNetwork]
    ) -> None:
        self._bound = bound
        self._addresses = Addresses(tuple(networks))
        self._owned = owned
        self._pins = pins  # to be locked before the first change
        self._closed = False
        self._lock = RLock()
        self._epoch = 0
        self.on_leave: Callable[[], object] | None = None
        self._adopt()

    @classmethod
    def bind(cls, source: Bindable, *, service_networks: Iterable[IPNetwork] = ()) -> ServiceTable:
        """A service table over the maps of an object, a pin directory, or a mapping of name to map.

        What is in the maps is taken over as it is. Maps have one writer at a time: with its first change the
        table locks the pin directory until it is closed. Who shares maps in another way has to see to it.

        :param service_networks: those that the programs were told (``service_ipv4``, ``service_ipv6``):
            cluster IPs in them need no row to be known as such.
        :raises ContractError: a map is missing, or holds what no service table writes.
        :raises LayoutError: a map holds something else.
        """
        bound, owned = bind_maps(source, CONTRACT, "a service table")
        with ExitStack() as undo:
            undo.push(owned)
            table = cls(bound, owned, source if isinstance(source, PinDir) else None, service_networks)
            undo.pop_all()
            return table

    # -- reading --

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Service]:
        return iter(self.dump())

    def __contains__(self, frontend: Frontend) -> bool:
        return frontend in self._owners

    @property
    def frontends(self) -> frozenset[Frontend]:
        """The main frontends of all services."""
        with self._in_use():
            return frozenset(self._entries)

    def dump(self) -> tuple[Service, ...]:
        """Every service, in order of address and port. Names are known of those applied by this process."""
        with self._in_use():
            services = [entry.service for entry in self._entries.values()]
        return tuple(sorted(services, key=lambda s: (s.address.version, s.address, s.port, s.protocol)))

    def get(self, frontend: Frontend) -> Service:
        """The service behind a frontend.

        :raises ServiceNotFoundError: there is none.
        :raises ModelError: this is no frontend.
        """
        with self._in_use():
            return self._entry(frontend).service

    def flows(self, frontend: Frontend) -> dict[Backend, int]:
        """How many connections (for UDP: flows) each backend has been given, as the programs count them."""
        with self._in_use():
            entry = self._entry(frontend)
            rows = [self._rows.get(id) for id in entry.ids]
        return {
            backend: row.flows
            for backend, row in zip(entry.service.backends, rows, strict=True)
            if row is not None
        }

    def resolve(self, frontend: Frontend, *, outside: bool = False) -> Resolution:
        """Who would answer a new connection to ``frontend``, by the same lookups that a program makes.

        :param outside: whether the connection comes from outside of the node.
        :raises ServiceNotFoundError: no service has this frontend.
        """
        frontends_only([frontend])
        with self._in_use():
            row = self._frontends.get(frontend_key(frontend))
            if row is None:
                raise self._not_found(frontend)
            ids = self._sets.ids(row.service, SetKind(scope_of(row, outside=outside)))
            rows = [found for found in map(self._rows.get, ids) if found is not None]
        shares: dict[Backend, float] = {}
        for found in rows:
            backend = Backend(found.addr, found.port, state=BackendState(found.state))
            shares[backend] = shares.get(backend, 0.0) + 1 / len(ids)
        return Resolution(frontend, Selection(row.selection), shares)

    def pressure(self) -> dict[str, Pressure]:
        """How full the maps are, by name; for kd_sets and kd_slots in services and in slots.

        What was freed counts as free, also while it waits for programs that may still read it.
        """
        with self._in_use():
            sets, slots, rows = self._numbers, self._sets, self._rows
            return {
                "kd_frontends": Pressure(len(self._frontends), self._frontends.info.max_entries),
                "kd_sets": Pressure(sets.size - sets.available, sets.size),
                "kd_slots": Pressure(slots.size - slots.available, slots.size),
                "kd_backends": Pressure(rows.size - rows.available, rows.size),
                "kd_sources": Pressure(len(self._sources), self._sources.info.max_entries),
            }

    # -- changing --

    def plan(self, wanted: Iterable[Service]) -> ServicePlan:
        """What to do so that exactly ``wanted`` is in the kernel.

        :raises CapacityError: it would not fit.
        :raises ModelError: two services have one frontend.
        """
        desired = by_frontend(wanted)
        with self._in_use():
            return self._plan(desired, self._removals(f for f in self._entries if f not in desired))

    def upsert(self, *services: Service) -> Report:
        """Add these or replace what stands at their frontends; all others stay. All or nothing.

        :raises CapacityError: they would not fit; nothing was changed.
        :raises PinsBusyError: somebody else is writing here.
        """
        with self._in_use():
            self._become_writer()
            return self._plan(by_frontend(services), []).apply()

    def remove(self, *frontends: Frontend) -> Report:
        """Remove the services that have these frontends; one that is not there is no error.

        :raises ModelError: one is no frontend.
        """
        given = frontends_only(frontends)
        with self._in_use():
            self._become_writer()
            owners = (self._owners[frontend] for frontend in given if frontend in self._owners)
            return self._plan({}, self._removals(owners)).apply()

    def change(self, upserts: Iterable[Service] = (), removed: Iterable[Frontend] = ()) -> Report:
        """Add or replace some services and remove others, in one step: an address may go over between them.

        A service that does not fit, or wants a frontend that another one keeps, is left as it is while the
        rest is done: see :attr:`~k8sdatapath.component.Report.refused`. Should that make room, it is tried
        again.

        :param removed: main frontends. One that nobody has is no error, nor is one of ``upserts``.
        :raises ModelError: two of ``upserts`` have one frontend, or something is no service or frontend.
        :raises PinsBusyError: somebody else is writing here.
        """
        desired, given = by_frontend(upserts), frontends_only(removed)
        total = Report()
        with self._in_use():
            self._become_writer()
            gone = [frontend for frontend in given if frontend not in desired]
            while True:
                refused: dict[Frontend, DatapathError] = {}
                report = self._change(desired, gone, refused)
                total = total.plus(report)
                if not refused or not (report.changed or report.removed):
                    return evolve(total, refused=refused)
                desired, gone = {frontend: desired[frontend] for frontend in refused}, []

    def _change(
        self,
        desired: Mapping[Frontend, Service],
        gone: Iterable[Frontend],
        refused: dict[Frontend, DatapathError],
    ) -> Report:
        """Make those of the changes that can be made."""
        changes = self._differences(desired) + self._removals(gone)
        while True:
            need = self._addresses.needs(changes)
            room = self._room(need)
            if need.over(room) or any(conflicts(changes, self._owners)):
                needs = self._addresses.trial()
                changes = possible(changes, room, needs, self._owners, self._stands, refused)
            try:
                return self._apply(changes, self._epoch) if changes else Report()
            except CapacityError as error:  # slots enough, but not in a row: leave out the longest
                longest = max(changes, key=lambda change: Needs.of([change]).slots)
                refused[longest.frontend] = error
                changes.remove(longest)

    def set_node_addresses(self, addresses: Collection[IPAddress]) -> None:
        """Say which addresses the node itself has, each time they change: their other ports are its own.

        An address that services are dialled at, and nobody else, is shut at all other ports. Where only some
        sources may use a service, the node may if one of its addresses is among them.
        """
        with self._in_use():
            self._become_writer()
            moved = self._addresses.own != set(addresses)
            self._addresses.own_are(addresses)
            if moved:
                self._let_node_in()
            self._write_frontends((), self._addresses.plan(()))

    def _let_node_in(self) -> None:
        """Bring the entries for the node itself to what its addresses are now."""
        limited = [entry for entry in self._entries.values() if entry.service.source_ranges]
        keys = {entry.number: SourceKey.of(entry.number, NODE) for entry in limited}
        may = {keys[entry.number] for entry in limited if self._lets_node_in(entry.service)}
        self._sources.update_many((key, 1) for key in may)
        self._sources.delete_many(key for key in keys.values() if key not in may)

    def _lets_node_in(self, service: Service) -> bool:
        return any(own in network for network in service.source_ranges for own in self._addresses.own)

    def _plan(self, desired: Mapping[Frontend, Service], gone: list[Change]) -> ServicePlan:
        changes = self._differences(desired)
        unchanged = len(desired) - len(changes)
        changes += gone
        for change, frontend, owner in conflicts(changes, self._owners):
            raise claimed_twice(frontend, self._stands(owner), change.after)
        need = self._addresses.needs(changes)
        if over := need.over(self._room(need)):
            resource, needed, free = over
            in_all = {"frontends": self._frontend_rows, "services": len(self._entries)}
            used = len(self._sources) if resource == "source ranges" else in_all.get(resource, 0)
            raise CapacityError(resource, used + needed, used + free)
        return ServicePlan(tuple(changes), unchanged, self, self._epoch)

    def _stands(self, frontend: Frontend) -> Service:
        return self._entries[frontend].service

    def _differences(self, desired: Mapping[Frontend, Service]) -> list[Change]:
        changes = []
        for frontend, service in desired.items():
            entry = self._entries.get(frontend)
            if entry is None:
                changes.append(Change(frontend, None, service))
            elif entry.service != service:
                changes.append(Change(frontend, entry.service, service))
            else:
                entry.service = service  # the kernel knows no names: learn this one
        return changes

    def _removals(self, frontends: Iterable[Frontend]) -> list[Change]:
        """Of the services that have these as main frontends."""
        there = dict.fromkeys(frontend for frontend in frontends if frontend in self._entries)
        return [Change(frontend, self._entries[frontend].service, None) for frontend in there]

    @property
    def _frontend_rows(self) -> int:
        """How many there are when all rows of whole addresses are as they should be."""
        return len(self._owners) + self._addresses.count

    def _room(self, need: Needs) -> Needs:
        """What can still be taken; source ranges are counted only if one is needed."""
        used = len(self._sources) if need.sources else 0
        return Needs(
            frontends=self._frontends.info.max_entries - self._frontend_rows,
            services=self._numbers.available,
            backends=self._rows.available + len(self._garbage),
            slots=self._sets.available,
            sources=self._sources.info.max_entries - used,
        )

    def _become_writer(self) -> None:
        """Lock the pin directory, and look again: somebody may have written since the table was bound."""
        if self._pins is not None:
            self._owned.enter_context(self._pins.lock())
            self._pins = None
            before = {entry.service for entry in self._entries.values()}
            self._adopt()
            if before != {entry.service for entry in self._entries.values()}:
                self._epoch += 1

    def _apply(self, changes: Sequence[Change], epoch: int) -> Report:
        with self._in_use():
            self._become_writer()
            if epoch != self._epoch:
                raise StalePlanError("the service table has changed since this plan was made: plan again")
            started = time.perf_counter()
            while self._garbage:
                self._rows.remove(self._garbage.pop())
            steps = self._prepare(changes)
            self._epoch += 1
            try:
                report = self._commit(steps, changes)
            except BaseException:  # whatever got through is in the kernel: start again from what it says
                self._adopt()
                raise
            return Report(*report, seconds=time.perf_counter() - started)

    def _prepare(self, changes: Sequence[Change]) -> list[Step]:
        """Write what nothing names yet: rows of new backends, slots of new sets; or nothing, and an error."""
        steps: list[Step] = []
        known = [self._known_ids(change) for change in changes]
        new = [
            (backend, change.after.protocol)
            for change, ids in zip(changes, known, strict=True)
            if change.after is not None
            for backend, id in zip(change.after.backends, ids, strict=True)
            if id is None
        ]
        made = self._rows.add(new)
        try:
            unused = iter(made)
            for change, ids in zip(changes, known, strict=True):
                entry = self._entries.get(change.frontend)
                step = Step(change.frontend, entry, None, ids, {})
                steps.append(step)
                if change.after is not None:
                    rows = [next(unused) if id is None else id for id in ids]
                    step.after = Entry(change.after, -1 if entry is None else entry.number, rows)
                    for kind, members in members_of_sets(change.after, rows).items():
                        step.runs[kind] = self._sets.prepare(members)
            numbers = iter(self._numbers.take_many(sum(change.before is None for change in changes)))
        except BaseException:
            self._rows.put_back(made)
            for step in steps:
                for run in step.runs.values():
                    self._sets.put_back(run)
            raise
        for step in steps:
            if step.before is None and step.after is not None:
                step.after.number = next(numbers)
        return steps

    def _known_ids(self, change: Change) -> list[int | None]:
        """Row ids of the backends that have a row already, in the order of the service as it will be."""
        if change.after is None:
            return []
        entry = self._entries.get(change.frontend)
        if entry is None:
            return [None] * len(change.after.backends)
        have = zip(entry.service.backends, entry.ids, strict=True)
        rows = {backend.key: id for backend, id in have}
        return [rows.get(backend.key) for backend in change.after.backends]

    def _commit(self, steps: list[Step], changes: Sequence[Change]) -> tuple[int, int, int]:
        kept = [(step, step.after) for step in steps if step.after is not None]
        gone = [(step, step.before) for step in steps if step.after is None and step.before is not None]
        for step, after in kept:
            for backend, id in zip(after.service.backends, step.known, strict=True):
                if id is not None:
                    self._rows.update(id, backend)
        wider = [
            key
            for _, after in kept
            for key in source_keys(after.service, after.number, node=self._lets_node_in(after.service))
        ]
        narrower = [
            key
            for step in steps
            if step.before
            for key in source_keys(step.before.service, step.before.number, node=True)
        ]
        self._sources.update_many((key, 1) for key in wider)
        self._sets.commit(
            (after.number, scope, run) for step, after in kept for scope, run in step.runs.items()
        )
        self._write_frontends(steps, self._addresses.plan(changes))
        self._sources.delete_many(set(narrower).difference(wider))
        self._sets.commit((before.number, kind, (0, 0)) for _, before in gone for kind in SetKind)
        for step in steps:
            self._retire(step)
        for step, before in gone:
            self._numbers.give(before.number)
            del self._entries[step.frontend]
        for step, after in kept:
            self._entries[step.frontend] = after
        self._set_owners(steps)
        if self.on_leave is not None and any(step.ends_datagrams for step in steps):
            self.on_leave()
        added = sum(step.before is None for step, _ in kept)
        return added, len(kept) - added, len(gone)

    def _write_frontends(self, steps: Sequence[Step], whole: AddressRows) -> None:
        """Take away what no service has any more, then add and change; what moves is replaced in place."""
        had: dict[FrontendKey, FrontendRow] = {}
        have: dict[FrontendKey, FrontendRow] = {}
        for step in steps:
            if step.before is not None and step.after is not None and same_rows(step.before, step.after):
                continue
            if step.before is not None:
                had |= frontend_rows(step.before.service, step.before.number)
            if step.after is not None:
                have |= frontend_rows(step.after.service, step.after.number)
        self._frontends.delete_many([*whole.keys_gone, *(had.keys() - have.keys())])
        changed = [(key, row) for key, row in have.items() if had.get(key) != row]
        self._frontends.update_many([*changed, *whole.rows_come])
        self._addresses.done(whole)

    def _set_owners(self, steps: Sequence[Step]) -> None:
        for step in steps:
            for frontend in step.before.service.frontends if step.before is not None else ():
                self._owners.pop(frontend, None)
        for step in steps:
            for frontend in step.after.service.frontends if step.after is not None else ():
                self._owners[frontend] = step.frontend

    def _retire(self, step: Step) -> None:
        """Free the rows of backends that this step took out of their service."""
        if step.before is not None:
            stay = set(step.after.ids) if step.after is not None else set()
            for id in step.before.ids:
                if id not in stay:
                    self._rows.remove(id)

    def verify(self) -> tuple[Frontend, ...]:
        """Compare the maps with what was written to them; where they differ, go on from what they hold.

        For maps that somebody else may write to. To repair them, :meth:`plan` or :meth:`change` again.

        :returns: main frontends of the services that are otherwise, or should not be there.
        :raises ContractError: they hold what no service table writes.
        """
        with self._in_use():
            before = self._entries
            rows = {key: row for key, row in self._frontends.items() if row.service != NO_SERVICE}
            ranges = set(self._sources)
            wrong = [f for f, entry in before.items() if not self._stands_as(entry, rows, ranges)]
            strange = {row.service for row in rows.values()}
            wrong += [f for f, entry in before.items() if entry.number in strange and f not in wrong]
            if not wrong and not rows:
                return ()
            self._adopt()
            self._epoch += 1
            for frontend in before.keys() & self._entries.keys() - set(wrong):
                self._entries[frontend] = before[frontend]  # they know names
            return tuple(dict.fromkeys([*wrong, *(f for f in self._entries if f not in before)]))

    def _stands_as(self, entry: Entry, rows: dict[FrontendKey, FrontendRow], ranges: set[SourceKey]) -> bool:
        """Whether a service is in the maps as it was written; takes its own out of the rows of frontends."""
        service, ids = entry.service, entry.ids
        wanted = frontend_rows(service, entry.number)
        found = {key: rows.pop(key, None) for key in wanted}
        return (
            found == wanted
            and ranges.issuperset(source_keys(service, entry.number, node=self._lets_node_in(service)))
            and all(self._rows.holds(id, each) for id, each in zip(ids, service.backends, strict=True))
            and all(
                list(members) == self._sets.ids(entry.number, kind)
                for kind, members in members_of_sets(service, ids).items()
            )
        )

    # -- going to other maps --

    def move(self, target: Bindable, switch: Callable[[], object]) -> None:
        """Go on in other maps, which may be of other sizes. Everything is copied and keeps its number.

        Connections that programs over the old maps count while this runs are missing in the new counts.

        :param switch: puts programs over the new maps in place of those over the old. Until it is done both
            answer alike.
        :raises CapacityError: what is here does not fit there; ``switch`` was not called.
        """
        bound, owned = bind_maps(target, CONTRACT, "a service table")
        with ExitStack() as undo, self._in_use():
            undo.push(owned)
            for name, new in bound.items():
                copy_map(self._bound[name], new)
            switch()
            undo.pop_all()
            self._owned.close()
            self._owned, self._bound, self._epoch = owned, bound, self._epoch + 1
            self._open_maps([entry.number for entry in self._entries.values()])

    # -- taking over what is in the kernel --

    def _open_maps(self, numbers: Collection[int]) -> None:
        """Ready to write to the bound maps, where services of these numbers are."""
        from k8sdatapath.pybpf.memory import wait_for_programs

        self._frontends: maps.Hash[FrontendKey, FrontendRow] = self._bound["kd_frontends"]
        self._sources: maps.LPMTrie[SourceKey, int] = self._bound["kd_sources"]
        self._sets = Sets(self._bound["kd_sets"], self._bound["kd_slots"], wait_for_programs, numbers)
        self._rows = BackendRows(self._bound["kd_backends"], wait_for_programs)
        self._numbers = Numbers("services", self._sets.services, wait_for_programs, numbers)

    def _adopt(self) -> None:
        try:
            self._read()
        except (IndexError, KeyError, ValueError, MemoryError) as error:
            raise ContractError(f"the maps hold what no service table has written: {error}") from error

    def _read(self) -> None:
        found: dict[int, list[tuple[FrontendKey, FrontendRow]]] = {}
        whole: dict[IPAddress, FrontendKind] = {}
        for key, row in self._bound["kd_frontends"].items():
            if row.service == NO_SERVICE:
                whole[key.addr] = FrontendKind(row.kind)
            else:
                found.setdefault(row.service, []).append((key, row))
        self._open_maps(found)
        sources: dict[int, list[IPNetwork]] = {}
        for source in self._sources:
            if source.network != NODE:
                sources.setdefault(source.service, []).append(source.network)
        rows = {row.id: row for row in self._rows.all()}
        self._entries: dict[Frontend, Entry] = {}
        self._owners: dict[Frontend, Frontend] = {}
        for number, frontends in found.items():
            sets = {kind: self._sets.ids(number, kind) for kind in SetKind}
            service, ids = read_service(frontends, sets, rows, sources.get(number, ()))
            self._entries[service.frontend] = Entry(service, number, ids)
            self._owners |= dict.fromkeys(service.frontends, service.frontend)
        self._addresses.adopt((entry.service for entry in self._entries.values()), whole)
        named = {id for entry in self._entries.values() for id in entry.ids}
        # Rows that no set names are left by a crash between two steps. The first change frees them.
        self._garbage = [id for id in rows if id not in named]

    # -- life --

    def _entry(self, frontend: Frontend) -> Entry:
        try:
            return self._entries[self._owners[frontend]]
        except (KeyError, TypeError):  # TypeError: it has no hash
            frontends_only([frontend])
            raise self._not_found(frontend) from None

    def _not_found(self, frontend: Frontend) -> ServiceNotFoundError:
        there = (each for each in self._owners if each.address == frontend.address)
        others = sorted(there, key=lambda each: (each.port, each.protocol))
        return ServiceNotFoundError(str(frontend), tuple(map(str, others[:_SHOWN])))

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ClosedError("the service table is closed")
            yield

    def close(self) -> None:
        """Let go of the maps; what is in the kernel stays."""
        with self._lock:
            if not self._closed:
                self._closed = True
                del self._sets, self._rows  # they see the maps' memory, which would stay with them
                self._owned.close()

    def __repr__(self) -> str:
        return f"<ServiceTable {len(self._entries)}/{self._frontends.info.max_entries} services>"
