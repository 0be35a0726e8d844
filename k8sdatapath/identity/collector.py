"""Takes back identities that nobody uses, and their numbers when nobody remembers them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from attrs import define, frozen

from k8sdatapath.component import Record, RecordStore
from k8sdatapath.errors import DatapathError, StoreConflictError
from k8sdatapath.identity.records import IDENTITIES, NUMBERS, USES, number_of
from k8sdatapath.identity.timing import Timing, clock
from k8sdatapath.resource import Resource

__all__ = ["Collected", "Collecting", "Collector"]

_log = logging.getLogger("k8sdatapath.identity")


@frozen
class Collected:
    """What a pass did.

    :ivar nodes: how many were taken for gone.
    :ivar identities: how many were deleted.
    :ivar numbers: how many may be given again.
    """

    nodes: int = 0
    identities: int = 0
    numbers: int = 0

    def __str__(self) -> str:
        return f"{self.nodes} nodes gone, {self.identities} identities deleted, {self.numbers} numbers free"


@define
class _Seen:
    version: str
    since: float


class Collector:
    """Call :meth:`collect` now and then, in one place of the cluster or in several.

    It trusts no clock but its own: what it waits for is that a record stays as it is for so long, from when
    it first saw it so. A collector that was restarted waits anew. All that it does, it does to records as it
    saw them: who has come to need one meanwhile has changed it.

    :param timing: that of the allocators.
    """

    def __init__(
        self, store: RecordStore, *, timing: Timing | None = None, clock: Callable[[], float] = clock
    ) -> None:
        self._store, self._timing, self._clock = store, timing or Timing(), clock
        self._seen: dict[tuple[str, str], _Seen] = {}
        self.nodes: frozenset[str] = frozenset()
        """Names of the nodes that were there at the last pass."""

    def collect(self) -> Collected:
        """One pass. What could not be done is done by a later one.

        :raises StoreError: the store does not answer.
        """
        nodes, used = self._nodes()
        return Collected(nodes, self._identities(used), self._numbers())

    def _nodes(self) -> tuple[int, set[str]]:
        """A node that is gone is shut out before what it used counts as unused: if it lives, it finds out."""
        gone, used = 0, set[str]()
        records = self._list(USES)
        self.nodes = frozenset(each.name for each in records)
        for record in records:
            if self._still(record, self._timing.timeout):
                try:
                    self._store.delete(record)
                    gone += 1
                    continue
                except StoreConflictError:
                    current = self._store.get(record.kind, record.name)
                    used.update(current.value.get("uses", ()) if current else ())
            used.update(record.value.get("uses", ()))
        return gone, used

    def _identities(self, used: set[str]) -> int:
        deleted = 0
        for record in self._list(IDENTITIES):
            retiring = "retiring" in record.value
            with suppress(StoreConflictError):
                if record.name in used:
                    if retiring:
                        value = {name: each for name, each in record.value.items() if name != "retiring"}
                        self._store.update(record, value)
                elif not retiring:
                    self._mark(record, "retiring")
                elif self._still(record, self._timing.grace):
                    self._store.delete(record)
                    deleted += 1
        return deleted

    def _numbers(self) -> int:
        """Numbers are listed first: whom one was taken for was there by then, and if not now, never again."""
        freed = 0
        numbers = self._list(NUMBERS)
        identities = {each.name: each for each in self._store.list(IDENTITIES)}
        for record in numbers:
            owner = identities.get(str(record.value.get("owner")))
            if owner and (
                owner.version == record.value.get("version") or str(number_of(owner)) == record.name
            ):
                continue
            with suppress(StoreConflictError):
                if "freed" not in record.value:
                    self._mark(record, "freed")
                elif self._still(record, self._timing.quarantine):
                    self._store.delete(record)
                    freed += 1
        return freed

    def _list(self, kind: str) -> list[Record]:
        """All of a kind; since when each is as it is."""
        records, now = list(self._store.list(kind)), self._clock()
        before = self._seen
        self._seen = {key: seen for key, seen in before.items() if key[0] != kind}
        for each in records:
            seen = before.get((kind, each.name))
            fresh = seen is None or seen.version != each.version
            self._seen[kind, each.name] = _Seen(each.version, now) if seen is None or fresh else seen
        return records

    def _mark(self, record: Record, name: str) -> None:
        marked = self._store.update(record, {**record.value, name: True})
        self._seen[record.kind, record.name] = _Seen(marked.version, self._clock())

    def _still(self, record: Record, seconds: float) -> bool:
        return self._clock() - self._seen[record.kind, record.name].since >= seconds


class Collecting(Resource):
    """Has a collector collect, in a thread of its own, until it is closed.

    It may run on every node: the later in the alphabet its name comes, the less often a node does it. So all
    of them together ask the store some times in ``every`` seconds, and whoever is the first may go.

    :param node: whose thread this is.
    :param every: seconds between two passes of the first node.
    """

    def __init__(self, collector: Collector, node: str, *, every: float = 60.0) -> None:
        self._collector, self._node, self._every = collector, node, every
        self.collected = Collected()
        """What all passes so far have done."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kd-collector", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; a pass that runs is brought to its end."""
        self._over.set()
        self._thread.join()

    def __repr__(self) -> str:
        return f"<Collecting {self._node}: {self.collected}>"

    def _run(self) -> None:
        while not self._over.wait(self._pause()):
            try:
                done = self._collector.collect()
            except DatapathError as error:
                _log.info("identities are collected later: %s", error)
                continue
            if done != Collected():
                _log.info("%s", done)
            before = self.collected
            self.collected = Collected(
                before.nodes + done.nodes,
                before.identities + done.identities,
                before.numbers + done.numbers,
            )

    def _pause(self) -> float:
        return self._every * (1 + sum(each < self._node for each in self._collector.nodes))
