"""Stores that go wrong, and a scheduler that decides who comes next: for tests of allocators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from k8sdatapath.component import Record, RecordStore
from k8sdatapath.errors import StoreError
from k8sdatapath.identity import MemoryStore
from k8sdatapath.model.labels import Labels, pod_labels

T = TypeVar("T")


def app(number: int) -> Labels:
    return pod_labels({"app": f"app-{number}"}, namespace="shop")


class Fate(Enum):
    """What becomes of a request."""

    DONE = 0
    LOST = 1
    """It never arrives."""
    UNANSWERED = 2
    """It is carried out, the answer is lost."""
    LATE = 3
    """It is carried out after who sent it has given up."""
    CRASH = 4
    """Who sent it dies; it is carried out."""


class CrashedError(BaseException):
    """Of an actor that is no more."""


class Actor:
    """A thread that runs only when it is told to, from one request to the next."""

    def __init__(self, stage: Stage, task: Callable[[], None]) -> None:
        self._stage, self._task = stage, task
        self.fate: Fate | None = None
        self.waiting = self.done = self.dead = False
        self.error: BaseException | None = None
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._came.acquire()

    def _run(self) -> None:
        self._stage.actors[threading.current_thread()] = self
        try:
            self._task()
        except CrashedError:
            self.dead = True
        except BaseException as error:
            self.error = error
        self.done = True
        self._came.release()

    def request(self) -> Fate:
        """Of the thread itself: wait for what becomes of a request."""
        self._came.release()
        self._go.acquire()
        assert self.fate is not None
        return self.fate

    def step(self, fate: Fate) -> None:
        """Let it go on to its next request, or its end."""
        self.fate = fate
        self._go.release()
        self._came.acquire()
        if self.done:
            self._thread.join()
            if self.error is not None:
                raise self.error


class Relay:
    """A store on the way to another one: what becomes of a request is for ``_ask`` to say."""

    inner: RecordStore

    def get(self, kind: str, name: str) -> Record | None:
        return self._ask(lambda: self.inner.get(kind, name))

    def list(self, kind: str) -> Sequence[Record]:
        return self._ask(lambda: self.inner.list(kind))

    def create(self, kind: str, name: str, value: Mapping[str, Any]) -> Record:
        return self._ask(lambda: self.inner.create(kind, name, value))

    def update(self, record: Record, value: Mapping[str, Any]) -> Record:
        return self._ask(lambda: self.inner.update(record, value))

    def delete(self, record: Record) -> None:
        self._ask(lambda: self.inner.delete(record))

    def _ask(self, request: Callable[[], T]) -> T:
        raise NotImplementedError


class Stage(Relay):
    """A store whose requests wait for the scheduler, and the actors that make them."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.actors: dict[threading.Thread, Actor] = {}
        self.late: list[Callable[[], object]] = []

    def _ask(self, request: Callable[[], Any]) -> Any:
        actor = self.actors.get(threading.current_thread())
        if actor is None:
            return request()
        match actor.request():
            case Fate.DONE:
                return request()
            case Fate.LOST:
                raise StoreError("lost")
            case Fate.UNANSWERED:
                self._carry_out(request)
                raise StoreError("not answered")
            case Fate.LATE:
                self.late.append(request)
                raise StoreError("late")
            case Fate.CRASH:
                self._carry_out(request)
                raise CrashedError

    def deliver(self) -> None:
        """The oldest late request arrives."""
        self._carry_out(self.late.pop(0))

    def _carry_out(self, request: Callable[[], object]) -> None:
        try:
            request()
        except StoreError:
            return
