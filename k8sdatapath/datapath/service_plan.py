"""What would change in a service table: worked out without touching the kernel, and printable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from operator import add
from typing import TYPE_CHECKING, Any

from attrs import astuple, field, frozen

from k8sdatapath.component import Report
from k8sdatapath.datapath.service_rows import slot_count
from k8sdatapath.errors import ModelError
from k8sdatapath.model import Frontend, FrontendKind, Scope, Service
from k8sdatapath.model.address import shown
from k8sdatapath.tables.grace import room

if TYPE_CHECKING:
    from k8sdatapath.datapath.service_table import ServiceTable

__all__ = ["Change", "Needs", "ServicePlan", "by_frontend", "claimed_twice", "frontends_only"]


@frozen
class Change:
    """One service before and after; ``before`` is None for a new one, ``after`` for one that goes."""

    frontend: Frontend
    before: Service | None
    after: Service | None
    places: Sequence[int | None] = field(init=False, repr=False, eq=False)
    """Where each backend of ``after`` is among those of ``before``; None: it is new."""
    fresh: Sequence[int] = field(init=False, repr=False, eq=False)
    """The places of those in ``after`` that are new or other values. The rest are the very same."""

    def __attrs_post_init__(self) -> None:
        places, fresh = _compared(self.before, self.after)
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "fresh", fresh)

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.after}: {_count(self.after)}"
        if self.after is None:
            return f"- {self.before}"
        return f"~ {self.after}: {', '.join(self._differences(self.before, self.after))}"

    @staticmethod
    def _differences(before: Service, after: Service) -> list[str]:
        old = {(backend.address, backend.port): backend for backend in before.backends}
        new = {(backend.address, backend.port): backend for backend in after.backends}
        said = [f"+{new[place]}" for place in new.keys() - old.keys()]
        said += [f"-{old[place]}" for place in old.keys() - new.keys()]
        said += [f"~{new[place]}" for place in new.keys() & old.keys() if new[place] != old[place]]
        if before.selection != after.selection:
            said.append(f"selection {before.selection.name} -> {after.selection.name}")
        for what in ("kind", "affinity_timeout", "internal_local", "external_local"):
            one, other = getattr(before, what), getattr(after, what)
            if one != other:
                said.append(f"{what} {_word(one)} -> {_word(other)}")
        for what in ("exposed", "source_ranges"):
            gone, come = set(getattr(before, what)), set(getattr(after, what))
            said += [f"+{what} {each}" for each in come - gone] + [f"-{what} {each}" for each in gone - come]
        return sorted(said)


@frozen
class Needs:
    """What carrying out changes takes. New rows are made before old ones are freed: both must fit at once.

    :ivar frontends: how many more there will be; the others count what is made, freed or not.
    """

    frontends: int
    services: int
    backends: int
    slots: int
    sources: int

    @classmethod
    def of(cls, changes: Sequence[Change]) -> Needs:
        """Add them up."""
        frontends = services = backends = slots = sources = 0
        for change in changes:
            before, after = change.before, change.after
            if before is None:
                services += 1
            else:
                frontends -= 1 + len(before.exposed)
            if after is not None:
                frontends += 1 + len(after.exposed)
                backends += change.places.count(None)
                slots += sum([room(slot_count(after, scope)) for scope in _SCOPES])
                sources += len(after.source_ranges) + 1 if after.source_ranges else 0  # one for the node
        return cls(frontends, services, backends, slots, sources)

    def __add__(self, other: Needs) -> Needs:
        return Needs(*map(add, astuple(self), astuple(other)))

    def over(self, room: Needs) -> tuple[str, int, int] | None:
        """What there is too little of: its name, how much is needed, how much there is."""
        for name, attribute in _RESOURCES.items():
            needed, free = getattr(self, attribute), getattr(room, attribute)
            if needed > max(free, 0):
                return name, needed, free
        return None

    def of_resource(self, name: str) -> int:
        """How much of one resource, by the name that :meth:`over` gives it."""
        found: int = getattr(self, _RESOURCES[name])
        return found


_SCOPES = tuple(Scope)
_RESOURCES = {
    "frontends": "frontends",
    "services": "services",
    "new backends": "backends",
    "slots": "slots",
    "source ranges": "sources",
}


@frozen
class ServicePlan:
    """The changes that lead from what is in the kernel to what is wanted.

    :ivar unchanged: services that are as wanted already.
    """

    changes: tuple[Change, ...]
    unchanged: int
    _table: ServiceTable = field(repr=False, eq=False)
    _epoch: int = field(repr=False, eq=False)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.changes

    def apply(self) -> Report:
        """Carry it out: all of it, or nothing and an error.

        :raises CapacityError: it does not fit; nothing was changed.
        :raises StalePlanError: the table has been changed since; plan again.
        """
        return self._table._apply(self.changes, self._epoch)

    def __str__(self) -> str:
        lines = [str(change) for change in self.changes]
        return "\n".join([*lines, f"{len(lines)} to change, {self.unchanged} as wanted"])


def _word(value: Any) -> str:
    return value.name if isinstance(value, FrontendKind) else str(value)


def _count(service: Service | None) -> str:
    count = len(service.backends) if service is not None else 0
    return f"{count} backend{'' if count == 1 else 's'}"


def by_frontend(services: Iterable[Service]) -> dict[Frontend, Service]:
    """Services by their main frontends.

    :raises ModelError: one claims a frontend of another, or is no service.
    """
    if isinstance(services, Service):
        raise ModelError(f"an iterable of Service is wanted here; {services} is a single one")
    found: dict[Frontend, Service] = {}
    claims: dict[Frontend, Service] = {}
    for service in services:
        if not isinstance(service, Service):
            raise ModelError(f"{shown(service)} is not a Service")
        for frontend in service.frontends:
            if frontend in claims:
                raise claimed_twice(frontend, claims[frontend], service)
            claims[frontend] = service
        found[service.frontend] = service
    return found


def frontends_only(frontends: Iterable[Frontend]) -> tuple[Frontend, ...]:
    """What services are found by: at anything else there would be none, and nobody would be told.

    :raises ModelError: one is something else.
    """
    given = tuple(frontends)
    for each in given:
        if not isinstance(each, Frontend):
            hint = "" if not isinstance(each, Service) else ": give its .frontend"
            raise ModelError(f"{shown(each)} is not a Frontend{hint}")
    return given


def claimed_twice(frontend: Frontend, one: Service, other: Service | None) -> ModelError:
    """Two services want to be dialled at one place."""
    return ModelError(f"{frontend} is claimed by two services: {one} and {other}")


def _compared(before: Service | None, after: Service | None) -> tuple[Sequence[int | None], Sequence[int]]:
    if after is None:
        return (), ()
    if before is None:
        return (None,) * len(after.backends), range(len(after.backends))
    # those that stay are mostly the very same values: found without a look at any
    there = dict(zip(map(id, before.backends), count()))
    places = list(map(there.get, map(id, after.backends)))
    fresh, at = [], -1
    for _ in range(places.count(None)):
        at = places.index(None, at + 1)
        fresh.append(at)
        places[at] = before.place_of(after.backends[at].key)
    return places, fresh
