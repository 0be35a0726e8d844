"""What would change in a service table: worked out without touching the kernel, and printable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from k8sdatapath.component import Report
from k8sdatapath.model import Frontend, Service

if TYPE_CHECKING:
    from k8sdatapath.datapath.service_table import ServiceTable

__all__ = ["Change", "ServicePlan"]


@frozen
class Change:
    """One service before and after; ``before`` is None for a new one, ``after`` for one that goes."""

    frontend: Frontend
    before: Service | None
    after: Service | None

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
        return sorted(said)


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


def _count(service: Service | None) -> str:
    count = len(service.backends) if service is not None else 0
    return f"{count} backend{'' if count == 1 else 's'}"
