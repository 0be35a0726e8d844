"""What could be wrong with allocators and collectors, and be seen only once in a while: to try out tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from k8sdatapath.component import Record
from k8sdatapath.errors import StoreConflictError
from k8sdatapath.identity.allocator import StoreAllocator, _Held
from k8sdatapath.identity.collector import Collector
from k8sdatapath.identity.records import IDENTITIES, NUMBERS, USES, Registry, number_of
from k8sdatapath.model.identity import Identity
from k8sdatapath.model.labels import Labels

__all__ = ["BUGS"]


def unfenced_update(patch: pytest.MonkeyPatch) -> None:
    """A number is written into an identity, whatever it is by now."""

    def give(self: Registry, identity: Record, labels: Labels) -> int:
        number = int(self._take(identity).name)
        current = self.store.get(IDENTITIES, identity.name) or identity
        self.store.update(current, {"labels": labels.text, "number": number})
        return number

    patch.setattr(Registry, "_give", give)


def collector_not_told(patch: pytest.MonkeyPatch) -> None:
    """Who comes to need an identity that is about to go does not say so."""
    settle = Registry.settle

    def quietly(self: Registry, labels: Labels) -> int:
        found = self.store.get(IDENTITIES, labels.hash)
        number = found and number_of(found)
        return number if number is not None else settle(self, labels)

    patch.setattr(Registry, "settle", quietly)


def use_after_number(patch: pytest.MonkeyPatch) -> None:
    """A use is told once there is a number, and not before."""

    def obtain(self: StoreAllocator, labels: Labels) -> Identity:
        found = Identity(self._registry.settle(labels), labels)
        self._tell(labels.hash)
        with self._state:
            self._held[labels.hash] = _Held(found, 1)
        return found

    patch.setattr(StoreAllocator, "_obtain", obtain)


def no_quarantine(patch: pytest.MonkeyPatch) -> None:
    """A number that is free is given again at once."""
    still = Collector._still
    patch.setattr(
        Collector, "_still", lambda self, record, time: record.kind == NUMBERS or still(self, record, time)
    )


def not_shut_out(patch: pytest.MonkeyPatch) -> None:
    """A silent node is taken for gone, and its record stays."""

    def nodes(self: Collector) -> tuple[int, set[str]]:
        used: set[str] = set()
        for record in self._list(USES):
            if not self._still(record, self._timing.timeout):
                used.update(record.value["uses"])
        return 0, used

    patch.setattr(Collector, "_nodes", nodes)


def numbers_listed_last(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes to a number between two looks of the collector loses it."""

    def numbers(self: Collector) -> int:
        identities = {each.name: each for each in self._store.list(IDENTITIES)}
        return freed(self, self._list(NUMBERS), identities, at_once=True)

    patch.setattr(Collector, "_numbers", numbers)


def in_the_making_is_free(patch: pytest.MonkeyPatch) -> None:
    """A number that was taken, and is not yet written, counts as free."""

    def numbers(self: Collector) -> int:
        records = self._list(NUMBERS)
        identities = {each.name: each for each in self._store.list(IDENTITIES)}
        return freed(self, records, identities, making=False)

    patch.setattr(Collector, "_numbers", numbers)


def freed(
    self: Collector,
    records: Sequence[Record],
    identities: dict[str, Record],
    *,
    making: bool = True,
    at_once: bool = False,
) -> int:
    for record in records:
        owner = identities.get(str(record.value["owner"]))
        if owner and str(number_of(owner)) == record.name:
            continue
        if owner and making and owner.version == record.value["version"]:
            continue
        with suppress(StoreConflictError):
            if "freed" not in record.value and not at_once:
                self._mark(record, "freed")
            elif at_once or self._still(record, self._timing.quarantine):
                self._store.delete(record)
    return 0


def not_confirmed(patch: pytest.MonkeyPatch) -> None:
    """A node that was taken for gone goes on with the numbers that it had."""
    patch.setattr(StoreAllocator, "_confirm", lambda self, name: self._doubtful.discard(name))


def late_create_believed(patch: pytest.MonkeyPatch) -> None:
    """A request of long ago that makes the record of a node anew hides that it was gone."""

    reread = StoreAllocator._reread

    def believing(self: StoreAllocator) -> None:
        current = self._store.get(USES, self.node)
        if current is not None and current.value.get("run") == self._run:
            self._record = current
        else:
            reread(self)

    patch.setattr(StoreAllocator, "_reread", believing)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    each.__name__: each
    for each in (
        unfenced_update,
        collector_not_told,
        use_after_number,
        no_quarantine,
        not_shut_out,
        numbers_listed_last,
        in_the_making_is_free,
        not_confirmed,
        late_create_believed,
    )
}
