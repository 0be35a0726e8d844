"""The loop that keeps the kernel as it is wanted."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Self, TypeAlias

from attrs import define, field, frozen

from k8sdatapath.component import Delta, DeltaSource, ObjectKey, Report, Services, Told
from k8sdatapath.errors import BpffsError, ClosedError, NotProgrammedError, PermissionDeniedError
from k8sdatapath.kube.events import key_of
from k8sdatapath.kube.objects import KubeObject
from k8sdatapath.model import Frontend, Service
from k8sdatapath.reconcile.ledger import Failed, Ledger, Work
from k8sdatapath.reconcile.metrics import Metrics
from k8sdatapath.reconcile.status import Status
from k8sdatapath.resource import Resource

__all__ = ["Applied", "Follower", "Reconciler", "Retry"]

_TICK = 0.25
"""Seconds after which the loop looks for what is to be tried again."""
_ATTEMPTS = 16
"""Parts of a batch that may fail before the rest is taken to fail as well."""

_BLOCKING = (BpffsError, ClosedError, PermissionDeniedError)
"""With these it is no matter of what is written."""

_log = logging.getLogger("k8sdatapath.reconcile")


@frozen(kw_only=True)
class Retry:
    """When what failed is tried again: each time later, and not all nodes of a cluster at once.

    :ivar first: seconds after the first failure.
    :ivar most: seconds at most.
    """

    first: float = 0.5
    most: float = 60.0

    def after(self, tries: int) -> float:
        """How long to wait when it has failed so often."""
        return random.uniform(0.5, 1.0) * min(self.first * 2.0 ** min(tries - 1, 30), self.most)


@frozen
class Applied:
    """That the kernel has followed a change.

    :ivar delta: the latest that was taken in.
    :ivar report: what was done since the follower was last told.
    """

    delta: Delta
    report: Report


Follower: TypeAlias = Callable[[Applied], object]
"""What has to be done after changes, such as to answer health checks or to end sockets."""


@define(eq=False)
class _Following:
    follower: Follower
    due: bool = False
    report: Report = field(factory=Report)
    tries: int = 0
    at: float = 0.0


class Reconciler(Resource):
    """Keeps services in the kernel as a source wants them.

    ::

        source = node_local(KubeWatch.in_cluster(), node=config.name)
        Reconciler(source, node.services).run()

    Nothing is written before the source is synced; then the kernel is brought to exactly what is wanted, and
    from there on it follows the changes. Several changes of one service are one. What fails is tried again by
    itself, everything else goes on: see :meth:`status`.

    It runs in the calling thread (:meth:`run`), in one of its own (:meth:`start`) or beside an event loop
    (:meth:`run_async`), once.

    :param source: is closed with the reconciler.
    :param services: where they go, such as ``node.services``.
    :param followers: called after every change, in the thread that runs, one after the other. One that fails
        is called again later, with what has been done since.
    :param retry: when to try again what failed.
    :param verify_every: seconds after which the kernel is read back and repaired. None: never.
    :param on_status: told of objects that have an error, or have it no more.
    """

    def __init__(
        self,
        source: DeltaSource,
        services: Services,
        *followers: Follower,
        retry: Retry | None = None,
        verify_every: float | None = None,
        on_status: Callable[[ObjectKey, Status], object] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.error: BaseException | None = None
        """Why it has ended by itself, if it has."""
        self._source = source
        self._services = services
        self._followers = [_Following(each) for each in followers]
        self._retry = retry or Retry()
        self._verify_every = verify_every
        self._on_status = on_status
        self._ledger = Ledger()
        self._synced = False
        self._latest = Delta(synced=False)
        self._strangers: set[Frontend] = set()
        """In the kernel and not wanted, but of whom an object that cannot be read might speak."""
        self._said: dict[ObjectKey, str] = {}
        """Errors that were told."""
        self._changed = threading.Condition()  # guards the ledger; notified when it has changed
        self._closed = self._begun = self._ended = False
        self._thread: threading.Thread | None = None
        self._started = time.time()
        self._verified = time.monotonic()

    # -- life --

    def run(self) -> None:
        """Reconcile until it is closed from elsewhere, or interrupted; then the source is closed too.

        :raises SourceError: the source has ended and will not recover.
        :raises ClosedError: it runs already, or has.
        """
        self._begin()
        try:
            self._run()
        finally:
            self.close()
        if self.error is not None:
            raise self.error

    def start(self) -> Self:
        """Reconcile in a thread of its own, until :meth:`close`."""
        self._begin()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()
        return self

    async def run_async(self) -> None:
        """Reconcile until this task is cancelled or the reconciler closed; the event loop is not held up.

        :raises SourceError: the source has ended and will not recover.
        """
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def run() -> None:
            self._run()
            loop.call_soon_threadsafe(ended.set)

        self._begin()
        self._thread = threading.Thread(target=run, name="reconciler", daemon=True)
        self._thread.start()
        try:
            await ended.wait()
        finally:
            await asyncio.shield(asyncio.to_thread(self.close))
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Stop, and close the source. What is in the kernel stays. Returns when nothing runs any more."""
        self._closed = True
        self._source.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def synced(self) -> bool:
        """Whether the source has told everything, and it was written but for what failed."""
        return self._synced and not self._ledger.full

    @property
    def running(self) -> bool:
        """Whether it runs: it was begun, and has not ended."""
        return self._begun and not self._ended

    def _begin(self) -> None:
        with self._changed:
            if self._closed or self._begun:
                raise ClosedError("a reconciler runs once")
            self._begun = True

    # -- how far it is --

    def status(self, key: ObjectKey) -> Status:
        """How far an object is: ``status(("Service", "default", "web"))``."""
        with self._changed:
            return self._ledger.status(key)

    def statuses(self) -> dict[ObjectKey, Status]:
        """Of all objects."""
        with self._changed:
            return {key: self._ledger.status(key) for key in self._ledger.keys}

    def errors(self) -> dict[ObjectKey, Status]:
        """Of those that have one."""
        with self._changed:
            return {key: self._ledger.status(key) for key in self._ledger.troubled}

    def failures(self) -> dict[Frontend, Exception]:
        """Services that could not be written as they are wanted, by main frontend; they are tried again."""
        with self._changed:
            return self._ledger.failures

    def wait_programmed(self, what: ObjectKey | KubeObject | Service, timeout: float | None = None) -> None:
        """Wait until the kernel does what is wanted.

        :param what: an object by its key, as it was last told; an object as it is to be; or a service, as it
            is to be.
        :raises NotProgrammedError: not in time; it says why.
        :raises ClosedError: the reconciler has ended.
        """
        ledger = self._ledger
        if isinstance(what, Service):
            service, key = what, ("Service", "", what.name or str(what.frontend))
            if what.name.count("/") == 1:
                namespace, name = what.name.split("/")
                key = "Service", namespace, name.partition(":")[0]

            def there() -> bool:
                return ledger.is_done(service)
        else:
            key = what if isinstance(what, tuple) else key_of(what)
            form = None if isinstance(what, tuple) else what

            def there() -> bool:
                return ledger.is_programmed(key, form)

        with self._changed:
            self._changed.wait_for(lambda: there() or self._ended, timeout)
            if there():
                return
            if self._ended:
                raise ClosedError("the reconciler has ended")
            raise NotProgrammedError(key, ledger.status(key), timeout)

    def wait_synced(self, timeout: float | None = None) -> bool:
        """Wait until the source has told everything and it was written. Returns whether that is so."""
        with self._changed:
            self._changed.wait_for(lambda: self.synced or self._ended, timeout)
            return self.synced

    # -- the loop --

    def _run(self) -> None:
        try:
            for delta in self._source.deltas(_TICK):
                if self._closed:
                    break
                with self._changed:
                    self._ledger.take(delta)
                if delta.synced:
                    self._synced, self._latest = True, delta
                    self._step()
                else:  # it may be what is wrong that keeps the source from it
                    self._tell()
        except BaseException as error:
            if not self._closed:
                self.error = error
                if isinstance(error, Exception):
                    _log.exception("the reconciler has ended")
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _step(self) -> None:
        if self._strangers and not self._ledger.invalid:
            self._strangers, self._ledger.full = set(), True
        if self._verify_every is not None and time.monotonic() - self._verified >= self._verify_every:
            self._verify()
        while (work := self._ledger.work(time.monotonic())) is not None:
            report = self._program(work)
            if not (report.changed or report.removed):
                break
        self._follow()
        self._tell()

    def _program(self, work: Work) -> Report:
        """Do some work, and enter what came of it."""
        started = time.monotonic()
        failed: dict[Frontend, Failed] = {}
        try:
            report = self._write(work, failed)
        except _BLOCKING as error:
            before = self._ledger.blocked
            self._block(error, 1 if before is None else before.tries + 1)
            return Report()
        now = time.monotonic()
        with self._changed:
            # what an exception interrupted may have left something behind
            self._ledger.full = any(not each.refused for each in failed.values())
            news = self._ledger.done(work, failed)
            if report.changed or report.removed:
                self._ledger.hurry(now)
            self._count(work, report, now - started, now, news)
            self._changed.notify_all()
        for following in self._followers:
            following.due, following.report = True, following.report.plus(report)
        return report

    def _write(self, work: Work, failed: dict[Frontend, Failed]) -> Report:
        gone = {frontend for frontend, service in work.services.items() if service is None}
        if work.full:
            strange = set(self._services.frontends) - work.services.keys() - set(work.kept)
            if self._ledger.invalid:
                self._strangers = strange
            else:
                gone |= strange
        services = [service for service in work.services.values() if service is not None]
        return self._change([*gone, *services], failed, [_ATTEMPTS])

    def _change(
        self, items: Sequence[Frontend | Service], failed: dict[Frontend, Failed], attempts: list[int]
    ) -> Report:
        """Write all, or if that fails the halves, to find out whose fault it is."""
        if not items:
            return Report()
        services = [each for each in items if isinstance(each, Service)]
        try:
            report = self._services.change(services, [each for each in items if isinstance(each, Frontend)])
        except _BLOCKING:
            raise
        except Exception as error:
            _log.warning("%d services were not written: %s", len(items), error)
            self.metrics.failures += 1
            attempts[0] -= 1
            if len(items) > 1 and attempts[0] > 0:
                half = len(items) // 2
                first = self._change(items[:half], failed, attempts)
                return first.plus(self._change(items[half:], failed, attempts))
            for each in items:
                self._fail(each.frontend if isinstance(each, Service) else each, error, failed, refused=False)
            return Report()
        for frontend, refusal in report.refused.items():
            self._fail(frontend, refusal, failed, refused=True)
        return report

    def _fail(
        self, frontend: Frontend, error: Exception, failed: dict[Frontend, Failed], *, refused: bool
    ) -> None:
        tries = self._ledger.tries(frontend) + 1
        failed[frontend] = Failed(error, tries, time.monotonic() + self._retry.after(tries), refused)

    def _block(self, error: Exception, tries: int) -> None:
        _log.warning("nothing can be written: %s", error)
        with self._changed:
            self.metrics.failures += 1
            self._ledger.full = True
            self._ledger.blocked = Failed(error, tries, time.monotonic() + self._retry.after(tries))
            self._changed.notify_all()

    def _count(self, work: Work, report: Report, seconds: float, now: float, news: Iterable[Told]) -> None:
        metrics, wall = self.metrics, time.time()
        metrics.batches += 1
        metrics.added += report.added
        metrics.changed += report.changed
        metrics.removed += report.removed
        metrics.refused += len(report.refused)
        metrics.retries += work.retried
        metrics.last_change = wall
        metrics.change.observe([seconds])
        if not work.full:  # what was there before we came is no change
            metrics.event_to_kernel.observe(now - told.received for told in news)
        metrics.network_programming.observe(
            max(wall - told.triggered, 0.0) for told in news if told.triggered > self._started
        )

    def _verify(self) -> None:
        self._verified = time.monotonic()
        try:
            drifted = self._services.verify()
        except Exception as error:
            _log.warning("the kernel cannot be compared with what is wanted: %s", error)
            self.metrics.failures += 1
            return
        if drifted:
            _log.warning("%d services were changed by somebody else: %s", len(drifted), drifted[0])
            self.metrics.drifted += len(drifted)
            self._ledger.full = True

    def _follow(self) -> None:
        for following in self._followers:
            now = time.monotonic()
            if not following.due or following.at > now:
                continue
            try:
                following.follower(Applied(self._latest, following.report))
            except Exception as error:
                _log.warning("%r failed: %s", following.follower, error)
                self.metrics.follower_failures += 1
                following.tries += 1
                following.at = now + self._retry.after(following.tries)
            else:
                following.due, following.report, following.tries, following.at = False, Report(), 0, 0.0

    def _tell(self) -> None:
        """Say of which objects it has changed whether they have an error, and which."""
        if self._on_status is None or not (self._said or self._ledger.troubled):
            return
        with self._changed:
            now = {key: self._ledger.status(key) for key in self._ledger.troubled}
            over = {key: self._ledger.status(key) for key in self._said.keys() - now.keys()}
        news = {key: status for key, status in now.items() if self._said.get(key) != status.reason}
        self._said = {key: status.reason for key, status in now.items()}
        for key, status in (*news.items(), *over.items()):
            try:
                self._on_status(key, status)
            except Exception as error:
                _log.warning("%r failed: %s", self._on_status, error)
                self.metrics.follower_failures += 1

    def __repr__(self) -> str:
        state = "running" if self.running else "ended" if self._ended else "not begun"
        return f"<Reconciler {state} {len(self._ledger.wanted)} services>"
