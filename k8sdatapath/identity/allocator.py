"""Gives identities to whoever asks, the same ones on every node."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Protocol

from attrs import define, frozen

from k8sdatapath.component import Record, RecordStore
from k8sdatapath.errors import ClosedError, KeyNotFoundError, ModelError, StoreConflictError, StoreError
from k8sdatapath.identity.records import USES, Registry
from k8sdatapath.identity.timing import Timing, clock
from k8sdatapath.model.address import shown
from k8sdatapath.model.identity import CLUSTER_NUMBERS, Identity, Reserved
from k8sdatapath.model.labels import Labels
from k8sdatapath.resource import Resource

__all__ = ["Allocator", "IdentityChange", "StoreAllocator"]

_log = logging.getLogger(__name__)

_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_FIRST, _MOST = 0.05, 5.0  # seconds to wait for a store that does not answer


@frozen
class IdentityChange:
    """How the identities of the cluster have changed."""

    added: tuple[Identity, ...] = ()
    removed: tuple[Identity, ...] = ()


class Allocator(Protocol):
    """Gives numbers to sets of labels: to one set always the same, and to no two sets the same."""

    def acquire(self, labels: Labels, *, timeout: float | None = None) -> Identity:
        """The identity of a set of labels, which stays what it is until it was released as often.

        :param timeout: seconds to wait for the store; None: for ever. What is in use here needs no store.
        :raises StoreError: it did not answer in time.
        :raises CapacityError: there is no number left.
        """
        ...

    def release(self, identity: Identity) -> None:
        """Not used any more by who acquired it.

        :raises KeyNotFoundError: it is not in use here.
        """
        ...

    def lookup(self, number: int) -> Identity | None:
        """Whose number it is, whoever uses it.

        :raises StoreError: the store does not answer, and it is not known here.
        """
        ...

    def watch(self, timeout: float | None = None) -> Iterator[IdentityChange]:
        """All identities of the cluster, then every change, until it is closed.

        :param timeout: seconds after which an empty change comes, if nothing has happened.
        """
        ...


@define
class _Held:
    identity: Identity
    count: int = 0


class StoreAllocator(Resource):
    """Identities from a store that all nodes of a cluster share::

        with StoreAllocator(store, node="n1") as identities:
            web = identities.acquire(pod_labels({"app": "web"}, namespace="shop"))

    While the store is away, those in use stay what they are; whoever needs a new one waits. A thread tells
    the store that this node is there. Nothing is given back by closing it: what was programmed goes on under
    its numbers, the next run for the node finds them in use, and :meth:`settle` lets go of those that it did
    not acquire.

    :param node: by which the store knows whose use it is. One allocator at a time: a second one takes over.
    :param numbers: those to give, the same on all nodes.
    :param fixed: numbers that are known without any store, such as ``well_known()``.
    :param timing: the same on all nodes, and for the collector.
    :param renumbered: is told of an identity that has another number now, old and new. That happens to a node
        that was away for long enough to be taken for gone.
    :param beats: False: nothing tells the store but :meth:`beat`.
    :raises ModelError: no name of a node, or a fixed number that might be given to others.
    """

    def __init__(
        self,
        store: RecordStore,
        node: str,
        *,
        numbers: Sequence[int] = CLUSTER_NUMBERS,
        fixed: Mapping[Labels, int] | None = None,
        timing: Timing | None = None,
        renumbered: Callable[[Identity, Identity], None] = lambda old, new: None,
        beats: bool = True,
        clock: Callable[[], float] = clock,
    ) -> None:
        if not _NODE.fullmatch(node):
            raise ModelError(f"{shown(node)} is not the name of a node")
        self.node = node
        self._fixed = {labels: Identity(number, labels) for labels, number in (fixed or {}).items()}
        given = [each.number for each in self._fixed.values()]
        if len(set(given)) < len(given) or any(number in numbers for number in given):
            raise ModelError("a fixed number is given twice, or is one of those for others")
        known = (*self._fixed.values(), *map(Identity.reserved, Reserved))
        self._known = {each.number: each for each in known}
        self._store, self._registry = store, Registry(store, numbers)
        self._timing, self._clock, self._renumbered = timing or Timing(), clock, renumbered
        self._state = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._valid = -inf
        self._talk = threading.RLock()  # one at a time speaks with the store; all below is theirs
        self._run, self._beats = uuid.uuid4().hex, 0
        self._record: Record | None = None
        self._inherited: set[str] = set()
        self._doubtful: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if beats:
            self._thread = threading.Thread(target=self._keep, name="kd-identity", daemon=True)
            self._thread.start()

    def __repr__(self) -> str:
        state = "closed" if self._stop.is_set() else f"{len(self._held)} in use"
        return f"<StoreAllocator {self.node}, {state}>"

    @property
    def valid(self) -> bool:
        """Whether the numbers in use are sure to be nobody else's: the store was heard of recently enough."""
        return self._clock() < self._valid

    def in_use(self) -> tuple[Identity, ...]:
        """What was acquired here, and not yet released as often."""
        with self._state:
            return tuple(each.identity for each in self._held.values())

    def acquire(self, labels: Labels, *, timeout: float | None = None) -> Identity:
        """The identity of a set of labels."""
        if not isinstance(labels, Labels):
            raise ModelError(f"{shown(labels)} is no Labels: pod_labels makes those of a pod")
        deadline = inf if timeout is None else time.monotonic() + timeout
        wait = _FIRST
        while True:
            self._check()
            if found := self._fixed.get(labels) or self._again(labels):
                return found
            try:
                with self._talk:
                    return self._again(labels) or self._obtain(labels)
            except StoreError as error:
                if time.monotonic() + wait >= deadline:
                    raise
                _log.info("an identity waits: %s", error)
            self._stop.wait(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _MOST)

    def release(self, identity: Identity) -> None:
        """Not used any more by who acquired it."""
        if not isinstance(identity, Identity):
            raise ModelError(f"{shown(identity)} is no Identity: acquire returns one")
        if identity.labels in self._fixed:
            return
        with self._state:
            held = self._held.get(identity.labels.hash)
            if held is None:
                raise KeyNotFoundError(str(identity))
            held.count -= 1
            if not held.count:
                del self._held[identity.labels.hash]

    def lookup(self, number: int) -> Identity | None:
        """Whose number it is, whoever uses it."""
        self._check()
        if number in self._known:
            return self._known[number]
        if self.valid:
            for each in self.in_use():
                if each.number == number:
                    return each
        return self._registry.lookup(number)

    def watch(self, timeout: float | None = None, *, every: float = 1.0) -> Iterator[IdentityChange]:
        """All identities of the cluster, then every change, until it is closed.

        :param every: seconds between two looks at the store. While it is away, nothing changes.
        """
        known: dict[int, Identity] = {}
        told, first = time.monotonic(), True
        while not self._stop.is_set():
            try:
                found = self._registry.all()
            except StoreError as error:
                _log.info("identities are not read: %s", error)
            else:
                found |= {each.number: each for each in self._fixed.values()}
                added = [each for number, each in found.items() if known.get(number) != each]
                removed = [each for number, each in known.items() if found.get(number) != each]
                known = found
                if added or removed or first:
                    yield IdentityChange(tuple(added), tuple(removed))
                    told, first = time.monotonic(), False
            if timeout is not None and time.monotonic() - told >= timeout:
                yield IdentityChange()
                told = time.monotonic()
            self._stop.wait(every if timeout is None else min(every, timeout))

    def beat(self) -> None:
        """Tell the store that this node is there, and what it uses.

        :raises StoreError: it does not answer.
        :raises ClosedError: another allocator has taken over the name of the node.
        """
        with self._talk:
            self._check()
            self._tell()

    def settle(self) -> None:
        """Let go of what an earlier run used and this one has not acquired.

        :raises StoreError: the store does not answer.
        """
        with self._talk:
            self._check()
            if self._record is None:
                self._tell()
            self._inherited.clear()
            self._tell()

    def close(self) -> None:
        """End the thread, and all waiting. For the store, what is in use stays so."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # without the store

    def _check(self) -> None:
        if self._stop.is_set():
            raise ClosedError(f"{self!r}")

    def _again(self, labels: Labels) -> Identity | None:
        """One that is in use already, as long as its number is sure to be its own."""
        with self._state:
            held = self._held.get(labels.hash)
            if held is None or not self.valid:
                return None
            held.count += 1
            return held.identity

    # with it

    def _keep(self) -> None:
        while not self._stop.wait(self._timing.beat):
            try:
                self.beat()
            except StoreError as error:
                _log.warning("node %s is not heard of: %s", self.node, error)
            except ClosedError as error:
                _log.error("%s", error)
                return

    def _obtain(self, labels: Labels) -> Identity:
        """The use comes first: from then on the collector lets be what is found."""
        while True:
            self._tell(labels.hash)
            if found := self._again(labels):
                return found
            found = Identity(self._registry.settle(labels), labels)
            if self.valid:  # or it took so long that the node may have been taken for gone
                with self._state:
                    self._held[labels.hash] = _Held(found, 1)
                return found

    def _tell(self, *more: str) -> None:
        began = self._clock()
        while not self._write(more):
            began = self._clock()
        self._doubtful &= self._held.keys()
        for name in sorted(self._doubtful):
            self._confirm(name)
        self._valid = began + self._timing.validity

    def _write(self, more: Sequence[str]) -> bool:
        """Try to write what is used; False: it was not as it was thought to be, so try again."""
        with self._state:
            used = {*self._held, *more}
        used |= self._inherited
        value = {"run": self._run, "beat": self._beats + 1, "uses": sorted(used)}
        try:
            if self._record is None:
                self._record = self._store.create(USES, self.node, value)
            else:
                self._record = self._store.update(self._record, value)
        except StoreConflictError:
            self._reread()
            return False
        self._beats += 1
        return True

    def _reread(self) -> None:
        current = self._store.get(USES, self.node)
        run = current and current.value.get("run")
        late = current is not None and run == self._run and current.value.get("beat", 0) <= self._beats
        if current is None or late:  # taken for gone, even if a late request of ours has brought it back
            with self._state:
                self._doubtful |= self._held.keys()
        elif run != self._run and self._beats:
            self._stop.set()
            raise ClosedError(f"{self!r}: another allocator has taken over node {self.node}")
        elif run != self._run:
            self._inherited |= set(current.value.get("uses", ()))
        self._record = current

    def _confirm(self, name: str) -> None:
        """Settle anew what may have been given to others meanwhile."""
        held = self._held.get(name)
        if held is not None:
            old = held.identity
            new = Identity(self._registry.settle(old.labels), old.labels)
            with self._state:
                held.identity = new
            if new != old:
                _log.warning("identity %s is now %s: node %s was away too long", old, new.number, self.node)
                self._renumbered(old, new)
        self._doubtful.discard(name)
