"""ServiceTable: services in, the kernel's service maps out.

How they are written so that every instant is valid for live traffic, and every crash harmless, is told in
:mod:`~k8sdatapath.datapath.service_maps`.

Nothing is kept outside the kernel. :meth:`ServiceTable.bind` reads the maps back, takes over the numbers that
are in use and frees what a crash left half-made, so the next plan goes on where the last process stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from threading import RLock

from attrs import evolve

from k8sdatapath.component import Pressure, Report
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.copying import copy_map
from k8sdatapath.datapath.formerly import Formerly
from k8sdatapath.datapath.resolution import Resolution
from k8sdatapath.datapath.service_fit import conflicts, possible
from k8sdatapath.datapath.service_maps import CONTRACT, ServiceMaps
from k8sdatapath.datapath.service_plan import (
    Change,
    Needs,
    ServicePlan,
    by_frontend,
    claimed_twice,
    frontends_only,
)
from k8sdatapath.datapath.service_rows import frontend_key, scope_of
from k8sdatapath.datapath.service_steps import Entry
from k8sdatapath.errors import CapacityError, ClosedError, DatapathError, ServiceNotFoundError, StalePlanError
from k8sdatapath.markup import table
from k8sdatapath.model import Backend, BackendState, Frontend, IPAddress, IPNetwork, Selection, Service
from k8sdatapath.pins import PinDir
from k8sdatapath.resource import Resource
from k8sdatapath.tables.sets import SetKind

__all__ = ["CONTRACT", "ServiceTable"]

_SHOWN = 8  # frontends in the message about one that is not there
_ROWS = 20  # services in a notebook


class ServiceTable(Resource):
    """The services of a node, in the kernel.

    Make one with :meth:`bind`; all methods may be called from any thread.

    :ivar on_leave: called after each change that took a backend or a frontend from a service of UDP, and may
        have ended flows: see :class:`~k8sdatapath.datapath.flow_reaper.FlowReaper`. It must not wait.
    """

    def __init__(self, content: ServiceMaps, owned: ExitStack, pins: PinDir | None) -> None:
        self._maps = content
        self._owned = owned
        self._pins = pins  # to be locked before the first change
        self._closed = False
        self._lock = RLock()
        self._former: Formerly[Frontend, Service] = Formerly()
        self.on_leave: Callable[[], object] | None = None

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
            content = ServiceMaps(bound, service_networks)
            table = cls(content, owned, source if isinstance(source, PinDir) else None)
            undo.pop_all()
            return table

    # -- reading --

    def __len__(self) -> int:
        return len(self._maps.entries)

    def __iter__(self) -> Iterator[Service]:
        return iter(self.dump())

    def __contains__(self, frontend: Frontend) -> bool:
        return frontend in self._maps.owners

    @property
    def frontends(self) -> frozenset[Frontend]:
        """The main frontends of all services."""
        with self._in_use():
            return frozenset(self._maps.entries)

    def dump(self) -> tuple[Service, ...]:
        """Every service, in order of address and port. Names are known of those applied by this process."""
        with self._in_use():
            services = [entry.service for entry in self._maps.entries.values()]
        return tuple(sorted(services, key=lambda s: (s.address.version, s.address, s.port, s.protocol)))

    def get(self, frontend: Frontend) -> Service:
        """The service behind a frontend.

        :raises ServiceNotFoundError: there is none.
        :raises ModelError: this is no frontend.
        """
        with self._in_use():
            return self._entry(frontend).service

    def formerly(self, frontend: Frontend, at: int) -> Service | None:
        """The service that a frontend was of then, without its backends, if that is of another or none now.

        :param at: nanoseconds of CLOCK_MONOTONIC.
        """
        return self._former.at(frontend, at)

    def flows(self, frontend: Frontend) -> dict[Backend, int]:
        """How many connections (for UDP: flows) each backend has been given, as the programs count them."""
        with self._in_use():
            entry = self._entry(frontend)
            rows = [self._maps.rows.get(id) for id in entry.ids]
        return {
            backend: row.flows
            for backend, row in zip(entry.service.backends, rows, strict=True)
            if row is not None
        }

    def resolve(self, frontend: Frontend, *, outside: bool = False) -> Resolution:
        """Who would answer a new connection to ``frontend``, by the same lookups that a program makes.

        All of them at once, which no single packet could tell; of one packet :meth:`Node.explain` tells, by
        running the programs. Tests hold the two together, slot by slot.

        :param outside: whether the connection comes from outside of the node.
        :raises ServiceNotFoundError: no service has this frontend.
        """
        frontends_only([frontend])
        with self._in_use():
            row = self._maps.frontends.get(frontend_key(frontend))
            if row is None:
                raise self._not_found(frontend)
            ids = self._maps.sets.ids(row.service, SetKind(scope_of(row, outside=outside)))
            rows = [found for found in map(self._maps.rows.get, ids) if found is not None]
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
            return self._maps.pressure()

    # -- changing --

    def plan(self, wanted: Iterable[Service]) -> ServicePlan:
        """What to do so that exactly ``wanted`` is in the kernel.

        :raises CapacityError: it would not fit.
        :raises ModelError: two services have one frontend.
        """
        desired = by_frontend(wanted)
        with self._in_use():
            return self._plan(desired, self._removals(f for f in self._maps.entries if f not in desired))

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
            owners = (self._maps.owners[frontend] for frontend in given if frontend in self._maps.owners)
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
            need = self._maps.addresses.needs(changes)
            room = self._maps.room(need)
            if need.over(room) or any(conflicts(changes, self._maps.owners)):
                needs = self._maps.addresses.trial()
                changes = possible(changes, room, needs, self._maps.owners, self._stands, refused)
            try:
                return self._apply(changes, self._maps.epoch) if changes else Report()
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
            self._maps.own_are(addresses)

    def _plan(self, desired: Mapping[Frontend, Service], gone: list[Change]) -> ServicePlan:
        changes = self._differences(desired)
        unchanged = len(desired) - len(changes)
        changes += gone
        for change, frontend, owner in conflicts(changes, self._maps.owners):
            raise claimed_twice(frontend, self._stands(owner), change.after)
        need = self._maps.addresses.needs(changes)
        if over := need.over(self._maps.room(need)):
            resource, needed, free = over
            used = self._maps.used(resource)
            raise CapacityError(resource, used + needed, used + free)
        return ServicePlan(tuple(changes), unchanged, self, self._maps.epoch)

    def _stands(self, frontend: Frontend) -> Service:
        return self._maps.entries[frontend].service

    def _differences(self, desired: Mapping[Frontend, Service]) -> list[Change]:
        changes = []
        for frontend, service in desired.items():
            entry = self._maps.entries.get(frontend)
            if entry is None:
                changes.append(Change(frontend, None, service))
            elif entry.service != service:
                changes.append(Change(frontend, entry.service, service))
            else:
                entry.service = service  # the kernel knows no names: learn this one
        return changes

    def _removals(self, frontends: Iterable[Frontend]) -> list[Change]:
        """Of the services that have these as main frontends."""
        there = dict.fromkeys(frontend for frontend in frontends if frontend in self._maps.entries)
        return [Change(frontend, self._maps.entries[frontend].service, None) for frontend in there]

    def _become_writer(self) -> None:
        """Lock the pin directory, and look again: somebody may have written since the table was bound."""
        if self._pins is not None:
            self._owned.enter_context(self._pins.lock())
            self._pins = None
            before = {entry.service for entry in self._maps.entries.values()}
            self._maps.adopt()
            if before != {entry.service for entry in self._maps.entries.values()}:
                self._maps.epoch += 1

    def _apply(self, changes: Sequence[Change], epoch: int) -> Report:
        with self._in_use():
            self._become_writer()
            if epoch != self._maps.epoch:
                raise StalePlanError("the service table has changed since this plan was made: plan again")
            started = time.perf_counter()
            steps = self._maps.write(changes)
            for step in steps:
                self._remember(step.change)
            if self.on_leave is not None and any(step.ends_datagrams for step in steps):
                self.on_leave()
            added = sum(step.before is None for step in steps)
            removed = sum(step.after is None for step in steps)
            seconds = time.perf_counter() - started
            return Report(added, len(steps) - added - removed, removed, seconds)

    def _remember(self, change: Change) -> None:
        """Whose the frontends were that are others' now, for flows that were seen before."""
        before, after = change.before, change.after
        if before is not None:
            same = after.frontends if after is not None and after.name == before.name else ()
            for frontend in before.frontends:
                if frontend not in same:
                    self._former.left(frontend, before.with_backends(()))

    def verify(self) -> tuple[Frontend, ...]:
        """Compare the maps with what was written to them; where they differ, go on from what they hold.

        For maps that somebody else may write to. To repair them, :meth:`plan` or :meth:`change` again.

        :returns: main frontends of the services that are otherwise, or should not be there.
        :raises ContractError: they hold what no service table writes.
        """
        with self._in_use():
            content = self._maps
            before = content.entries
            wrong, more = content.differing()
            if not wrong and not more:
                return ()
            content.adopt()
            content.epoch += 1
            for frontend in before.keys() & content.entries.keys() - set(wrong):
                content.entries[frontend] = before[frontend]  # they know names
            return tuple(dict.fromkeys([*wrong, *(f for f in content.entries if f not in before)]))

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
                copy_map(self._maps.bound[name], new)
            switch()
            undo.pop_all()
            self._owned.close()
            self._owned = owned
            self._maps.go_on_in(bound)

    # -- life --

    def _entry(self, frontend: Frontend) -> Entry:
        try:
            return self._maps.entries[self._maps.owners[frontend]]
        except (KeyError, TypeError):  # TypeError: it has no hash
            frontends_only([frontend])
            raise self._not_found(frontend) from None

    def _not_found(self, frontend: Frontend) -> ServiceNotFoundError:
        there = (each for each in self._maps.owners if each.address == frontend.address)
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
                self._maps.let_go()
                self._owned.close()

    def _repr_html_(self) -> str:
        """A table of the first services and what they have been given, for notebooks."""
        services = () if self._closed else tuple(islice(self, _ROWS))
        rows = (
            (service, backend, given)
            for service in services
            for backend, given in self.flows(service.frontend).items() or (("none", 0),)
        )
        return table(repr(self), ("service", "backend", "flows"), rows)

    def __repr__(self) -> str:
        return f"<ServiceTable {len(self._maps.entries)}/{self._maps.frontends.info.max_entries} services>"
