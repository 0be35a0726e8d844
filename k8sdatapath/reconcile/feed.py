"""Desired services from a program of one's own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from threading import Condition

from k8sdatapath.component import Delta, ObjectKey, Told
from k8sdatapath.datapath.service_plan import by_frontend
from k8sdatapath.errors import ClosedError
from k8sdatapath.model import Frontend, Service
from k8sdatapath.resource import Resource

__all__ = ["Feed"]


class Feed(Resource):
    """What is wanted, told by calls: the source for who has services from somewhere else.

    ::

        feed = Feed()
        with Reconciler(feed, node.services).start():
            for listing in catalogue:
                feed.replace(services_of(listing))

    Methods return at once and may be called from any thread. The key of a service, for its status, is
    ``("Service", "", its name)``, or its frontend where it has no name.
    """

    def __init__(self) -> None:
        self._news = Condition()
        self._wanted: dict[Frontend, Service] = {}
        self._named: Counter[ObjectKey] = Counter()
        self._changed: dict[Frontend, tuple[ObjectKey, ...]] = {}
        self._told: dict[ObjectKey, float] = {}
        self._synced = False
        self._closed = False

    def replace(self, services: Iterable[Service]) -> None:
        """Want exactly these. Until the first call, nothing is taken to be known, and nothing is changed.

        :raises ModelError: two of them have one frontend.
        """
        wanted = by_frontend(services)
        with self._news:
            self._put(wanted, [frontend for frontend in self._wanted if frontend not in wanted])
            self._synced = True

    def upsert(self, *services: Service) -> None:
        """Want these, and what else was wanted before. They wait for the first :meth:`replace`."""
        wanted = by_frontend(services)
        with self._news:
            self._put(wanted, [])

    def remove(self, *frontends: Frontend) -> None:
        """Want the services with these main frontends no more."""
        with self._news:
            self._put({}, [frontend for frontend in frontends if frontend in self._wanted])

    def _put(self, wanted: dict[Frontend, Service], gone: list[Frontend]) -> None:
        if self._closed:
            raise ClosedError("the feed is closed")
        for frontend, service in wanted.items():
            before = self._wanted.get(frontend)
            if before is None or before != service or before.name != service.name:
                self._swap(frontend, before, service)
        for frontend in gone:
            self._swap(frontend, self._wanted.pop(frontend), None)
        self._wanted.update(wanted)
        self._news.notify_all()

    def _swap(self, frontend: Frontend, before: Service | None, after: Service | None) -> None:
        keys = [key_of(service) for service in (before, after) if service is not None]
        self._named.subtract(keys[:1] if before is not None else ())
        self._named.update(keys[-1:] if after is not None else ())
        self._changed[frontend] = tuple(dict.fromkeys((*self._changed.get(frontend, ()), *keys)))
        self._told |= dict.fromkeys(keys, time.monotonic())

    def deltas(self, timeout: float | None = None) -> Iterator[Delta]:
        """What is wanted, then what changes, until the feed is closed."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or (self._synced and bool(self._changed)), timeout)
                if self._closed:
                    return
                delta = self._delta() if self._synced else Delta(synced=False)
            yield delta

    def _delta(self) -> Delta:
        changed, self._changed = self._changed, {}
        told, self._told = self._told, {}
        return Delta(
            upserts=tuple(self._wanted[frontend] for frontend in changed if frontend in self._wanted),
            removed=tuple(frontend for frontend in changed if frontend not in self._wanted),
            told=tuple(Told(key, when, gone=not self._named[key]) for key, when in told.items()),
            causes=changed,
        )

    def close(self) -> None:
        """End the iteration of whoever listens."""
        with self._news:
            self._closed = True
            self._news.notify_all()


def key_of(service: Service) -> ObjectKey:
    """By which a service of a feed has its status."""
    return "Service", "", service.name or str(service.frontend)
