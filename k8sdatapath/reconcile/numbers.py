"""The numbers of label sets, for who must not wait for a store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from k8sdatapath.errors import ClosedError, DatapathError, KeyNotFoundError, StoreError
from k8sdatapath.identity import IdentityChange, StoreAllocator
from k8sdatapath.model.identity import Identity
from k8sdatapath.model.labels import Labels
from k8sdatapath.resource import Resource

__all__ = ["Numbers"]

_log = logging.getLogger(__name__)
_RETRY = 0.5
"""Seconds until what could not be acquired is tried again."""

Key = tuple[str, ...]


class Numbers(Resource):
    """What an allocator knows, at once: what is wanted here is acquired by a thread, what others have
    acquired is looked up by another.

    :param identities: is closed with it.
    :param news: called, from these threads, when a number has become known or another.
    :param alone: nobody else acquires anything, so there is nothing to look up.
    """

    def __init__(self, identities: StoreAllocator, news: Callable[[], object], *, alone: bool) -> None:
        self._identities, self._news = identities, news
        self._changed = threading.Condition()
        self._wanted: set[Key] = set()
        self._held: dict[Key, Identity] = {}
        self._renumbered: dict[Identity, Identity] = {}  # while their numbers were on the way from the store
        self._others: dict[Key, int] = {}
        self._asked = self._settled = self._closed = False
        self._moved = False
        self.ready = alone
        """Whether the numbers of others were looked up once."""
        self.problem = ""
        """Why the last attempt to acquire something failed; empty if it did not."""
        works = [self._acquire] if alone else [self._acquire, self._look]
        self._threads = [threading.Thread(target=each, name="kd-numbers", daemon=True) for each in works]
        for thread in self._threads:
            thread.start()

    def want(self, wanted: Iterable[Key]) -> None:
        """Acquire just these; what else was acquired is released."""
        with self._changed:
            self._wanted, self._asked = set(wanted), True
            self._changed.notify_all()

    def get(self, labels: Key) -> int | None:
        """The number of a set of labels, if it is known by now."""
        held = self._held.get(labels)
        return self._others.get(labels) if held is None else held.number

    def moved(self) -> bool:
        """Whether labels have got another number than they had, since this was asked last."""
        with self._changed:
            moved, self._moved = self._moved, False
        return moved

    def renumber(self, old: Identity, new: Identity) -> None:
        """For ``renumbered`` of the allocator."""
        key = tuple(map(str, old.labels))
        with self._changed:
            if key in self._held:
                self._held[key] = new
            else:
                self._renumbered[old] = new
            self._moved = True
        self._news()

    def close(self) -> None:
        """Close the allocator, and end the threads. Nothing is released: what is programmed goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._identities.close()
        for thread in self._threads:
            thread.join()

    # -- the thread that acquires --

    def _acquire(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._busy, _RETRY)
                if self._closed:
                    return
                missing = [each for each in self._wanted if each not in self._held]
                unused = [each for each in self._held if each not in self._wanted]
                settling = self._asked and not self._settled
            try:
                for key in missing:
                    self._renumbered.clear()
                    found = self._identities.acquire(Labels(key), timeout=0)
                    with self._changed:
                        self._held[key] = self._renumbered.get(found, found)
                    self._news()
                for key in unused:
                    self._release(key)
                if settling:
                    self._identities.settle()
                    self._settled = True
            except ClosedError:
                return
            except DatapathError as error:
                self._note(str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _RETRY)
            else:
                self._note("")

    def _busy(self) -> bool:
        return self._closed or self._wanted != self._held.keys()

    def _release(self, key: Key) -> None:
        with self._changed:
            held = self._held.pop(key)
        try:
            self._identities.release(held)
        except KeyNotFoundError:  # it was somebody else's by then
            _log.info("identity %s was given back already", held)

    def _note(self, problem: str) -> None:
        if problem and not self.problem:
            _log.warning("new identities wait: %s", problem)
        self.problem = problem

    # -- the thread that looks --

    def _look(self) -> None:
        try:
            for change in self._identities.watch():
                with self._changed:
                    self._take(change)
                self.ready = True
                self._news()
        except (ClosedError, StoreError) as error:
            if not self._closed:
                _log.error("identities of other nodes are not followed any more: %s", error)

    def _take(self, change: IdentityChange) -> None:
        for each in change.added:
            key = tuple(map(str, each.labels))
            self._moved = self._moved or self._others.get(key, each.number) != each.number
            self._others[key] = each.number
        for each in change.removed:
            key = tuple(map(str, each.labels))
            if self._others.get(key) == each.number:
                del self._others[key]
                self._moved = True  # it may come back under another
