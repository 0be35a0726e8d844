"""What is wanted, what still has to be done for it, and what could not be done. No kernel, no threads."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from attrs import evolve, frozen

from k8sdatapath.component import Delta, ObjectKey, Told
from k8sdatapath.model import Frontend, Service
from k8sdatapath.reconcile.status import State, Status

__all__ = ["Failed", "Ledger", "Work"]


@frozen
class Work:
    """What is to be done now.

    :ivar services: wanted, by main frontend; None: not wanted.
    :ivar full: nothing else is wanted, whatever is there; but for those ``kept`` for later.
    :ivar retried: how many of them have failed before.
    """

    services: Mapping[Frontend, Service | None]
    full: bool = False
    kept: Collection[Frontend] = ()
    retried: int = 0


@frozen
class Failed:
    """That something could not be done.

    :ivar tries: how often it was tried.
    :ivar at: when to try again, by ``time.monotonic()``.
    :ivar refused: it was left as it was: for want of room, or of a frontend that another one has.
    """

    error: Exception
    tries: int
    at: float
    refused: bool = False


class Ledger:
    """The books of a reconciler.

    Changes are kept by what they are about, not one after the other: of many changes of a service only the
    last is done.
    """

    def __init__(self) -> None:
        self.wanted: dict[Frontend, Service] = {}
        self.invalid: dict[ObjectKey, Exception] = {}
        """Objects that say what cannot be."""
        self.full = True
        """Whether everything is to be compared, not only what has changed."""
        self.blocked: Failed | None = None
        """Why nothing at all can be done, and until when."""
        self._due: dict[Frontend, None] = {}
        self._failures: dict[Frontend, Failed] = {}
        self._causes: dict[Frontend, set[ObjectKey]] = {}
        """Objects that wait for what is not done."""
        self._waiting: dict[ObjectKey, set[Frontend]] = {}
        """The same the other way round."""
        self._news: dict[ObjectKey, Told] = {}
        self._held: dict[ObjectKey, Told] = {}
        """What was told last of objects in ``invalid``: they may become right by what others say."""
        self._since: dict[ObjectKey, float] = {}
        self._objects: dict[ObjectKey, object] = {}
        """What is programmed, as far as sources tell it."""

    # -- what has changed --

    def take(self, delta: Delta) -> None:
        """Enter a delta."""
        for service in delta.upserts:
            self.wanted[service.frontend] = service
        for frontend in delta.removed:
            self.wanted.pop(frontend, None)
        for frontend, keys in delta.causes.items():
            self._due[frontend] = None
            self._failures.pop(frontend, None)  # it is another one now
            self._causes.setdefault(frontend, set()).update(keys)
            for key in keys:
                self._waiting.setdefault(key, set()).add(frontend)
        for told in delta.told:
            self._news[told.key] = told
        for key, error in delta.errors.items():
            self.invalid.pop(key, None)
            if error is not None:
                self.invalid[key] = error
            elif key in self._held and key not in self._news:  # it waits for the kernel since now
                self._news[key] = evolve(self._held[key], received=time.monotonic())

    # -- what to do --

    def work(self, now: float) -> Work | None:
        """What has to be done by now; None if that is nothing."""
        if self.blocked is not None and self.blocked.at > now:
            return None
        if self.full:  # but for what has failed: its turn comes by itself
            kept = set(self._failures)
            return Work({f: s for f, s in self.wanted.items() if f not in kept}, full=True, kept=kept)
        overdue = [frontend for frontend, failed in self._failures.items() if failed.at <= now]
        if not (self._due or overdue or self._news):
            return None
        due = dict.fromkeys((*self._due, *overdue))
        return Work({frontend: self.wanted.get(frontend) for frontend in due}, retried=len(overdue))

    # -- what was done --

    def done(self, work: Work, failed: Mapping[Frontend, Failed]) -> list[Told]:
        """Enter what came of some work. Returns the news that are in the kernel with it.

        :param failed: what was not done.
        """
        self.blocked = None
        finished = [each for each in self._due | dict.fromkeys(work.services) if each not in failed]
        self._due.clear()
        for frontend in finished:
            if frontend not in work.kept:
                self._failures.pop(frontend, None)
                self._acquit(frontend)
        self._failures.update(failed)
        stamp = time.time()
        settled = [told for key, told in self._news.items() if key not in self._waiting]
        for told in settled:
            key = told.key
            del self._news[key]
            self._held.pop(key, None)
            if told.gone:
                self._since.pop(key, None)
                self._objects.pop(key, None)
            elif key not in self.invalid:
                self._since[key] = stamp
                if told.object is not None:
                    self._objects[key] = told.object
            else:
                self._held[key] = told
        return [told for told in settled if not told.gone and told.key not in self.invalid]

    def _acquit(self, frontend: Frontend) -> None:
        for key in self._causes.pop(frontend, ()):
            rest = self._waiting[key]
            rest.discard(frontend)
            if not rest:
                del self._waiting[key]

    def tries(self, frontend: Frontend) -> int:
        """How often a service was tried in vain."""
        failed = self._failures.get(frontend)
        return failed.tries if failed is not None else 0

    def hurry(self, now: float) -> None:
        """There is room again, maybe: try at once what was refused."""
        for frontend, failed in self._failures.items():
            if failed.refused:
                self._failures[frontend] = evolve(failed, at=min(failed.at, now))

    # -- how far it is --

    @property
    def failures(self) -> dict[Frontend, Exception]:
        """What is not in the kernel as it is wanted, by main frontend, and why."""
        return {frontend: failed.error for frontend, failed in self._failures.items()}

    def is_programmed(self, key: ObjectKey, object: object | None = None) -> bool:
        """Whether the kernel does what an object says; in this very form of it, if one is given."""
        done = self.status(key).state is State.PROGRAMMED
        return done and (object is None or self._objects.get(key) == object)

    def is_done(self, service: Service) -> bool:
        """Whether a service is wanted like that, and in the kernel."""
        frontend = service.frontend
        idle = frontend not in self._due and frontend not in self._failures and not self.full
        return idle and self.wanted.get(frontend) == service

    def status(self, key: ObjectKey) -> Status:
        """Of one object."""
        since = self._since.get(key, 0.0)
        if key in self.invalid:
            return Status(State.ERROR, str(self.invalid[key]), since)
        failures = [self._failures[f] for f in self._waiting.get(key, ()) if f in self._failures]
        if self.blocked is not None and (key in self._news or key in self._waiting):
            failures.append(self.blocked)
        if failures:
            first = min(failures, key=lambda failed: failed.at)
            wait = first.at - time.monotonic()
            return Status(State.ERROR, str(first.error), since, time.time() + wait)
        if key in self._news or key in self._waiting:
            return Status(State.PENDING, "", since)
        return Status(State.PROGRAMMED, "", since) if since else Status(State.UNKNOWN)

    @property
    def keys(self) -> Iterable[ObjectKey]:
        """All objects that there is something to say of."""
        return dict.fromkeys((*self._since, *self._news, *self._waiting, *self.invalid))

    @property
    def troubled(self) -> set[ObjectKey]:
        """Those with an error."""
        stuck = (*self._news, *self._waiting) if self.blocked is not None else ()
        return {*self.invalid, *stuck, *(key for f in self._failures for key in self._causes.get(f, ()))}
