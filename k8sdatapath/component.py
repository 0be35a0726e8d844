"""The protocols that sources and components meet on.

A source tells what is wanted; a component makes it so. Between them stands a plan: what would be done,
printable, worked out without touching the kernel, checked for room, and applied as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from attrs import field, frozen

from k8sdatapath.errors import DatapathError
from k8sdatapath.model import Frontend, Service

T_contra = TypeVar("T_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)

__all__ = [
    "Component",
    "Delta",
    "DeltaSource",
    "ObjectKey",
    "Plan",
    "Pressure",
    "Record",
    "RecordStore",
    "Report",
    "Services",
    "Source",
    "Told",
]

ObjectKey: TypeAlias = tuple[str, str, str]
"""Kind, namespace and name of an object."""


@frozen
class Report:
    """What applying a plan did.

    :ivar added: objects that are new in the kernel; likewise ``changed`` and ``removed``.
    :ivar seconds: how long it took, plan excluded.
    :ivar refused: what was left as it was while the rest was done, by main frontend, and why.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    seconds: float = 0.0
    refused: Mapping[Frontend, DatapathError] = field(factory=dict)

    def plus(self, other: Report) -> Report:
        """Both in one; what is refused is said by the other."""
        return Report(
            self.added + other.added,
            self.changed + other.changed,
            self.removed + other.removed,
            self.seconds + other.seconds,
            other.refused,
        )

    def __str__(self) -> str:
        counts = f"{self.added} added, {self.changed} changed, {self.removed} removed"
        left = f", {len(self.refused)} refused" if self.refused else ""
        return f"{counts}{left} in {self.seconds * 1000:.1f} ms"


@frozen
class Pressure:
    """How full something is.

    :ivar used: what cannot be given to anybody else now, counted.
    :ivar capacity: how much there is in all.
    """

    used: int
    capacity: int

    @property
    def ratio(self) -> float:
        """From 0, empty, to 1, full."""
        return self.used / self.capacity

    def __str__(self) -> str:
        return f"{self.used}/{self.capacity}"


class Plan(Protocol):
    """The difference between what is and what is wanted. ``str()`` shows it."""

    @property
    def empty(self) -> bool:
        """Whether everything is as wanted already."""
        ...

    def apply(self) -> Report:
        """Carry it out, in an order that is safe for live traffic.

        :raises CapacityError: it would not fit; nothing was changed.
        """
        ...


class Component(Protocol[T_contra]):
    """Something that holds one kind of desired state in the kernel, such as a ServiceTable."""

    def plan(self, wanted: Iterable[T_contra]) -> Plan:
        """What to do so that exactly ``wanted`` is there."""
        ...


class Services(Protocol):
    """Something that holds services in the kernel and changes some of them, such as a ServiceTable."""

    @property
    def frontends(self) -> Collection[Frontend]:
        """The main frontends of all services that it holds."""
        ...

    def change(self, upserts: Iterable[Service] = (), removed: Iterable[Frontend] = ()) -> Report:
        """Add or replace some and remove others, by their main frontends."""
        ...

    def verify(self) -> tuple[Frontend, ...]:
        """Read back what is in the kernel. Returns the main frontends of what is there otherwise."""
        ...


class Source(Protocol[T_co]):
    """Where desired state comes from, such as a directory of manifests."""

    def read(self) -> tuple[T_co, ...]:
        """All that is wanted now; raises rather than return a part.

        :raises SourceError: it cannot be read.
        """
        ...

    def watch(self) -> Iterator[tuple[T_co, ...]]:
        """The same at once and after every change."""
        ...


@frozen
class Told:
    """That a source has told of an object.

    :ivar received: when, by ``time.monotonic()``.
    :ivar triggered: when that came about which it tells, as Unix time; 0: not known.
    :ivar gone: it is not there any more.
    :ivar object: what it is like now, if the source knows it as a value.
    """

    key: ObjectKey
    received: float
    triggered: float = 0.0
    gone: bool = False
    object: Any = None


@frozen(kw_only=True)
class Delta:
    """How the services that are wanted have changed.

    :ivar upserts: those that are new or different.
    :ivar removed: main frontends of services that are wanted no more.
    :ivar told: the objects that were told of, whether that changes a service or not.
    :ivar causes: which objects the change at a main frontend is for.
    :ivar errors: objects that say what cannot be, and why; None: not any more. What was last known of them is
        what they are taken to say.
    :ivar synced: all deltas so far are together everything that is wanted.
    """

    upserts: tuple[Service, ...] = ()
    removed: tuple[Frontend, ...] = ()
    told: tuple[Told, ...] = ()
    causes: Mapping[Frontend, tuple[ObjectKey, ...]] = field(factory=dict)
    errors: Mapping[ObjectKey, Exception | None] = field(factory=dict)
    synced: bool = True


class DeltaSource(Protocol):
    """Where deltas come from. :meth:`close` may be called from any thread, and more than once."""

    def deltas(self, timeout: float | None = None) -> Iterator[Delta]:
        """What is wanted, then what changes, until the source is closed. To be iterated once.

        :param timeout: seconds after which an empty delta comes, if nothing has happened.
        """
        ...

    def close(self) -> None:
        """End the iteration."""
        ...


@frozen
class Record:
    """Something that a store holds, as it was when it was read.

    :ivar kind: what it is, a word.
    :ivar name: by which the store has one of this kind at most.
    :ivar value: plain values, as JSON has them.
    :ivar version: another after every change, and never the same again, not even once it was deleted.
    """

    kind: str
    name: str
    value: Mapping[str, Any]
    version: str


class RecordStore(Protocol):
    """A store that many write to at once, each change as a whole or not at all; from any thread.

    Every call may raise :class:`~k8sdatapath.errors.StoreError`: there is no answer, and no telling whether a
    change was made, or is yet to be made. Whoever reads sees all changes that were answered before.
    """

    def get(self, kind: str, name: str) -> Record | None:
        """What is there now."""
        ...

    def list(self, kind: str) -> Sequence[Record]:
        """All of a kind, as they were at one moment."""
        ...

    def create(self, kind: str, name: str, value: Mapping[str, Any]) -> Record:
        """Make one.

        :raises StoreConflictError: there is one already.
        """
        ...

    def update(self, record: Record, value: Mapping[str, Any]) -> Record:
        """Give a record another value.

        :raises StoreConflictError: it is not what it was, or not there.
        """
        ...

    def delete(self, record: Record) -> None:
        """Remove a record.

        :raises StoreConflictError: it is not what it was, or not there.
        """
        ...
