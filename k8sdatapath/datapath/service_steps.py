"""What a service table works with while it changes the kernel."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from attrs import define, field

from k8sdatapath.datapath.service_plan import Change
from k8sdatapath.model import Backend, Protocol, Service
from k8sdatapath.tables.sets import SetKind

__all__ = ["Entry", "Step"]


@define
class Entry:
    """A service as it stands in the kernel: its number, and a row id for each of its backends, in order."""

    service: Service
    number: int
    ids: array[int]


@define
class Step:
    """One change, prepared: what it leads from and to.

    :ivar inner: only backends differ.
    :ivar new: the places of those backends of ``after`` that have no row yet.
    :ivar altered: backends that are treated otherwise now, with their rows.
    :ivar runs: the slots that wait to be committed, by set.
    """

    change: Change
    before: Entry | None
    after: Entry | None
    inner: bool = False
    new: Sequence[int] = ()
    altered: list[tuple[int, Backend]] = field(factory=list)
    runs: dict[SetKind, tuple[int, int]] = field(factory=dict)

    @property
    def retired(self) -> Collection[int]:
        """Rows of backends that the service has no more."""
        if self.before is None:
            return ()
        return set(self.before.ids).difference(self.after.ids if self.after is not None else ())

    @property
    def ends_datagrams(self) -> bool:
        """Whether it takes a backend or a frontend from a service of UDP."""
        before, after = self.before, self.after
        if before is None or before.service.protocol is not Protocol.UDP:
            return False
        if after is None or self.retired:
            return True
        return not self.inner and not set(before.service.frontends).issubset(after.service.frontends)
