"""What stores hold for allocators, and the one way in which a number comes to a set of labels.

``identities``
    One for each set of labels, named by its hash: ``labels``, and once it is given, ``number``. ``retiring``:
    nobody seemed to use it.
``numbers``
    One for each number that must not be given, named by it: the ``owner``, an identity, and the ``version``
    of it that the number was taken for. ``freed``: it waits in quarantine.
``uses``
    One for each node, named by it: which identities it uses, and the ``run`` and ``beat`` of its allocator.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

from attrs import frozen

from k8sdatapath.component import Record, RecordStore
from k8sdatapath.errors import CapacityError, ModelError, StoreConflictError, StoreError
from k8sdatapath.model.identity import Identity
from k8sdatapath.model.labels import Labels

__all__ = ["IDENTITIES", "NUMBERS", "USES", "Registry", "number_of"]

IDENTITIES, NUMBERS, USES = "identities", "numbers", "uses"

_GUESSES = 16


def number_of(identity: Record) -> int | None:
    """The number of an identity; None: not yet.

    :raises StoreError: what somebody has written there is no number.
    """
    number = identity.value.get("number")
    if number is None or (type(number) is int and number > 0):
        return number
    raise StoreError(f"identity {identity.name}: its number is {number!r}")


@frozen
class Registry:
    """Identities in a store.

    :param numbers: those to give.
    """

    store: RecordStore
    numbers: Sequence[int]

    def settle(self, labels: Labels) -> int:
        """The number of a set of labels, given now if it has none.

        The identity comes first, without a number. Then a number is taken for this version of it, and written
        into it if it still is of this version. So whoever comes second finds that it is of another one, and a
        number that was taken for a version that is no more can never get into the identity, however late.

        :raises CapacityError: there is no number left.
        :raises StoreError: the store does not answer.
        """
        while True:
            with suppress(StoreConflictError):
                found = self.store.get(IDENTITIES, labels.hash)
                if found is None:
                    found = self.store.create(IDENTITIES, labels.hash, {"labels": labels.text})
                if found.value.get("labels") != labels.text:
                    raise StoreError(f"identity {labels.hash}: its labels are not those of its name")
                number = number_of(found)
                if number is None:
                    return self._give(found, labels)
                if "retiring" in found.value:  # tell the collector, and whatever it is about to do is off
                    self.store.update(found, {"labels": labels.text, "number": number})
                return number

    def _give(self, identity: Record, labels: Labels) -> int:
        taken = self._take(identity)
        number = int(taken.name)
        try:
            self.store.update(identity, {"labels": labels.text, "number": number})
        except StoreConflictError:
            current = self.store.get(IDENTITIES, identity.name)
            if current is not None and number_of(current) == number:  # it was us, and the answer was lost
                return number
            with suppress(StoreError):  # or the collector does it
                self.store.delete(taken)
            raise
        return number

    def _take(self, identity: Record) -> Record:
        """Take any number, at random: so allocators seldom want the same, and none is soon used again."""
        value = {"owner": identity.name, "version": identity.version}
        for _ in range(_GUESSES):
            with suppress(StoreConflictError):
                return self.store.create(NUMBERS, str(random.choice(self.numbers)), value)
        while True:
            taken = {each.name for each in self.store.list(NUMBERS)}
            free = [each for each in self.numbers if str(each) not in taken]
            if not free:
                raise CapacityError("numbers of identities", len(self.numbers) + 1, len(self.numbers))
            with suppress(StoreConflictError):
                return self.store.create(NUMBERS, str(random.choice(free)), value)

    def lookup(self, number: int) -> Identity | None:
        """Whose number it is."""
        taken = self.store.get(NUMBERS, str(number))
        owner = taken and self.store.get(IDENTITIES, str(taken.value.get("owner")))
        found = owner and self.read(owner)
        return found if found and found.number == number else None

    def all(self) -> dict[int, Identity]:
        """All that have a number."""
        found = filter(None, map(self.read, self.store.list(IDENTITIES)))
        return {each.number: each for each in found}

    def read(self, identity: Record) -> Identity | None:
        """The identity of a record; None: it has no number yet.

        :raises StoreError: what somebody has written there is none.
        """
        number = number_of(identity)
        if number is None:
            return None
        try:
            labels = Labels.parse(identity.value.get("labels", ""))
            if labels.hash == identity.name:
                return Identity(number, labels)
        except (ModelError, AttributeError) as error:
            raise StoreError(f"identity {identity.name}: {error}") from error
        raise StoreError(f"identity {identity.name}: its labels are not those of its name")
