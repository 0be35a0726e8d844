"""What a service table works with while it changes the kernel."""

from __future__ import annotations

from attrs import define

from k8sdatapath.model import Frontend, Protocol, Service
from k8sdatapath.tables.sets import SetKind

__all__ = ["Entry", "Step"]


@define
class Entry:
    """A service as it stands in the kernel: its number, and a row id for each of its backends, in order."""

    service: Service
    number: int
    ids: list[int]


@define
class Step:
    """One change, prepared: what it leads from and to.

    :ivar known: rows that the backends of ``after`` had before, None for the new ones.
    :ivar runs: the slots that wait to be committed, by set.
    """

    frontend: Frontend
    before: Entry | None
    after: Entry | None
    known: list[int | None]
    runs: dict[SetKind, tuple[int, int]]

    @property
    def ends_datagrams(self) -> bool:
        """Whether it takes a backend or a frontend from a service of UDP."""
        before, after = self.before, self.after
        if before is None or before.service.protocol is not Protocol.UDP:
            return False
        if after is None:
            return True
        return not (
            set(before.ids).issubset(after.ids)
            and set(before.service.frontends).issubset(after.service.frontends)
        )
