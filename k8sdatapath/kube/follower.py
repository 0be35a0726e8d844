"""Follows one resource of an API server: lists it, watches it, and starts anew where that is called for."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf

from attrs import define, evolve, field, frozen

from k8sdatapath.kube.connection import Answer, ApiServer, RefusedError, UnreachableError
from k8sdatapath.kube.events import ObjectEvent
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.resources import Resource
from k8sdatapath.kube.wire import GarbledError, Item, Notice, Page, Reader

__all__ = ["Follower", "ResourceStatus"]

_log = logging.getLogger(__name__)


@define
class ResourceStatus:
    """How it goes with one resource.

    :ivar synced: it has been listed completely at least once.
    :ivar connected: a watch is open.
    :ivar objects: how many there are, also those in which there is nothing for a datapath.
    :ivar heard: when the server last said something, by ``time.monotonic()``; 0: never.
    :ivar events: how many changes have been told.
    :ivar lists: how often it was listed; likewise ``watches``.
    :ivar errors: how many lists and watches have failed.
    :ivar garbled: how much came that could not be read at all.
    :ivar error: what failed last; empty again once it works.
    """

    synced: bool = False
    connected: bool = False
    objects: int = 0
    heard: float = 0.0
    events: int = 0
    lists: int = 0
    watches: int = 0
    errors: int = 0
    garbled: int = 0
    error: str = ""


class _StaleError(Exception):
    """The server's history and what is known do not join: list anew."""


@frozen
class _Known:
    """An object as it was last seen."""

    uid: str
    version: str
    shown: bool
    """Whether there was anything in it to tell."""


@define(eq=False)
class Follower:
    """What one thread does: :meth:`run` until :meth:`close`.

    :param page_size: objects in one answer to a list; 0: all.
    :param tell: is given events, in the order in which they come.
    :param synced: is called whenever the resource has been listed completely.
    """

    resource: Resource
    _server: ApiServer
    _reader: Reader
    _patience: Patience
    _page_size: int
    _tell: Callable[[list[ObjectEvent]], None]
    _synced: Callable[[], None]
    status: ResourceStatus = field(factory=ResourceStatus, init=False)
    _stop: threading.Event = field(factory=threading.Event, init=False)
    _known: dict[tuple[str, str], _Known] = field(factory=dict, init=False)
    _version: str = field(default="", init=False)
    """The latest of the server that is known of."""
    _joined: bool = field(default=False, init=False)
    """Whether a watch from this version tells all that happens."""
    _opened: float = field(default=inf, init=False)
    """When the watch began."""

    def run(self) -> None:
        """List and watch until closed."""
        failures = 0
        status, patience = self.status, self._patience
        while not self._stop.is_set():
            failure, told = None, status.events
            try:
                if not self._joined:
                    self._list()
                    told = status.events
                self._watch()
            except Exception as error:
                failure = error
            steady = time.monotonic() - self._opened >= patience.steady
            status.connected, self._opened = False, inf
            wait = self._failed(failure) if failure is not None and not self._stop.is_set() else 0.0
            if steady or (self._joined and told != status.events):
                failures = 0
            if steady and failure is None:
                continue  # as it is meant to be: the server ends a watch from time to time
            own = min(patience.most, patience.first * 2 ** min(failures, 30)) * random.uniform(0.5, 1.0)
            failures += 1
            self._stop.wait(max(wait * random.uniform(1.0, 1.25), own))
        self._server.clear()

    def close(self) -> None:
        """End :meth:`run`, wherever it is; from any thread."""
        self._stop.set()
        self._server.close()

    def _failed(self, error: Exception) -> float:
        """Take note of it; seconds that the server asks to wait."""
        status, name = self.status, self.resource.plural
        status.errors += 1
        status.error = str(error) or type(error).__name__
        wait = 0.0
        match error:
            case UnreachableError():
                _log.info("%s: %s", name, error)
            case RefusedError():
                _log.warning("%s: refused: %s", name, error)
                wait = min(error.notice.retry_after, self._patience.most)
            case _StaleError():
                _log.info("%s: %s: listing anew", name, error)
                self._joined = False
            case GarbledError():  # what it was about is not known, so only a list tells how things are
                _log.warning("%s: %s: listing anew", name, error)
                self._joined = False
                status.garbled += 1
            case _:
                _log.error("%s: a fault: listing anew", name, exc_info=error)
                self._joined = False
        return wait

    # list

    def _list(self) -> None:
        self.status.lists += 1
        try:
            self._take(self._pages(self._page_size))
        except _StaleError:  # while the pages were turned; a single page cannot get stale
            self._take(self._pages(0))

    def _pages(self, size: int) -> Iterator[Page]:
        query = self.resource.selectors | ({"limit": str(size)} if size else {})
        while True:
            with self._answer(query) as answer:
                page = self._reader.page(answer.body())
            self.status.heard = time.monotonic()
            yield page
            if not page.following:
                return
            query["continue"] = page.following

    def _take(self, pages: Iterator[Page]) -> None:
        """Nothing is told gone before the list is complete; what is as it was is not told again."""
        seen: set[tuple[str, str]] = set()
        version, garbled = "", 0
        for page in pages:
            if not version and _older(page.version, self._version):
                # a history of its own, as of a restored backup: the same version may be of something else
                self._known = {key: evolve(known, version="") for key, known in self._known.items()}
            version = self._version = page.version
            garbled += page.garbled
            now = time.monotonic()
            seen.update((item.namespace, item.name) for item in page.items)
            self._tell_all(self._news(item, now) for item in page.items)
        if not version:
            raise GarbledError("a list without a resourceVersion")
        if garbled:  # any object may be behind it, so none is known to have gone
            self.status.garbled += garbled
            _log.warning("%s: %d objects of a list have no names", self.resource.plural, garbled)
        else:
            now = time.monotonic()
            self._tell_all(self._gone(key, now) for key in self._known.keys() - seen)
        self._joined = self.status.synced = True
        self.status.error = ""
        self._synced()

    # watch

    def _watch(self) -> None:
        seconds = self._patience.watch * random.uniform(1.0, 2.0)
        query = self.resource.selectors | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        status = self.status
        status.watches += 1
        with self._answer(query, seconds + self._patience.silence) as answer:
            self._opened = status.heard = time.monotonic()
            status.connected, status.error = True, ""
            for lines in answer.lines():
                status.heard = now = time.monotonic()
                self._tell_all(self._line(line, now) for line in lines)

    def _line(self, line: bytes, now: float) -> ObjectEvent | None:
        kind, told = self._reader.event(line)
        if kind == "ERROR" and isinstance(told, Notice):
            raise _StaleError(told.message or "gone") if told.expired else RefusedError(told)
        if _older(told.version, self._version):
            raise _StaleError(f"version {told.version} after {self._version}")
        self._version = told.version or self._version
        if isinstance(told, Notice):
            return None
        return self._gone((told.namespace, told.name), now) if kind == "DELETED" else self._news(told, now)

    def _answer(self, query: dict[str, str], silence: float | None = None) -> Answer:
        try:
            return self._server.get(self.resource.path, query, silence)
        except RefusedError as error:
            if error.notice.expired:
                raise _StaleError(str(error)) from None
            raise

    # what is known

    def _news(self, item: Item, now: float) -> ObjectEvent | None:
        key = item.namespace, item.name
        before = self._known.get(key)
        if before is not None and item.version and (before.version, before.uid) == (item.version, item.uid):
            return None
        shown = item.object is not None or item.error is not None
        self._known[key] = _Known(item.uid, item.version, shown)
        if not shown and (before is None or not before.shown):
            return None
        return ObjectEvent(self.resource.kind, *key, item.object, now, item.error)

    def _gone(self, key: tuple[str, str], now: float) -> ObjectEvent | None:
        before = self._known.pop(key, None)
        if before is None or not before.shown:
            return None
        return ObjectEvent(self.resource.kind, *key, None, now)

    def _tell_all(self, events: Iterable[ObjectEvent | None]) -> None:
        """What comes before an error is told all the same."""
        found: list[ObjectEvent] = []
        try:
            found.extend(each for each in events if each is not None)
        finally:
            if found:
                self._tell(found)
            self.status.events += len(found)
            self.status.objects = len(self._known)


def _older(version: str, than: str) -> bool:
    """Whether both are numbers, as they are of every server so far, and one is the lesser."""
    if len(version) == len(than) and version >= than:  # as nearly always
        return False
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
