"""Manifests in files as a source of objects, like an API server but for the server."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ClosedError, ManifestError
from k8sdatapath.kube.decode import decode
from k8sdatapath.kube.events import Batch, ObjectEvent, key_of
from k8sdatapath.kube.objects import KubeObject, KubeRaw
from k8sdatapath.kube.policy.objects import flattened, named_in
from k8sdatapath.kube.static import STILL, StaticYaml
from k8sdatapath.resource import Resource

__all__ = ["StaticSource"]

_FILE = "File"
"""The kind under which it is told that a file is wrong."""


class StaticSource(Resource):
    """What :class:`StaticYaml` reads, object by object::

        Reconciler(node_local(StaticSource("manifests/"), node="n1"), node.services).run()

    Of a file that is wrong, what it last said right holds, and its error is told under the kind ``File``.
    Until every file was right once, the source is not synced: what is missing may be in the wrong one.

    :param paths: files and directories.
    :param interval: seconds between looks at them.
    :param raw: tell objects of every kind as they are, for a :class:`PolicyTranslator`, rather than what a
        datapath wants to know of some kinds.
    """

    def __init__(self, *paths: str | os.PathLike[str], interval: float = 0.5, raw: bool = False) -> None:
        self._static = StaticYaml(*paths, read=_raw if raw else decode)
        self._interval = interval
        self._over = threading.Event()
        self._known: dict[ObjectKey, KubeObject] = {}
        self._good: dict[Path, tuple[KubeObject, ...]] = {}
        self._wrong: dict[str, ManifestError] = {}
        self._synced = False

    def __repr__(self) -> str:
        return f"<StaticSource {' '.join(map(str, self._static.paths))}>"

    @property
    def synced(self) -> bool:
        """Whether every file was right once."""
        return self._synced

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """What the files say, then what changes in them, until :meth:`close`."""
        if self._over.is_set():
            raise ClosedError(f"{self!r} was closed")
        seen: object = None
        told = time.monotonic()
        while not self._over.is_set():
            before, seen = seen, self._look(seen)
            events = self._events() if seen != before else ()
            if events or seen != before or (timeout is not None and time.monotonic() >= told + timeout):
                told = time.monotonic()
                yield Batch(tuple(events), self._synced)
            wait = self._interval if timeout is None else min(self._interval, timeout)
            self._over.wait(wait)

    def close(self) -> None:
        """End the iteration; from any thread, more than once."""
        self._over.set()

    def _look(self, taken: object) -> object:
        """How the files are, once they are still."""
        seen = self._static.look()
        while taken is not None and seen != taken and not self._over.wait(STILL):
            before, seen = seen, self._static.look()
            if seen == before:
                break
        return seen

    def _events(self) -> list[ObjectEvent]:
        now = time.monotonic()
        wrong = dict(self._read())
        events = [ObjectEvent(_FILE, "", path, None, now, error) for path, error in wrong.items()]
        events += [ObjectEvent(_FILE, "", path, None, now) for path in self._wrong if path not in wrong]
        self._wrong = wrong
        self._synced = self._synced or not wrong
        found: dict[ObjectKey, KubeObject] = {}
        for objects in self._good.values():
            for each in objects:
                found.setdefault(key_of(each), each)
        for key, each in found.items():
            if self._known.get(key) != each:
                events.append(ObjectEvent(*key, each, now))
        events += [ObjectEvent(*key, None, now) for key in self._known if key not in found]
        self._known = found
        return events

    def _read(self) -> Iterator[tuple[str, ManifestError]]:
        """Take what is right, and tell of what is not."""
        if self._static.unreadable is not None:
            yield str(self._static.paths[0]), ManifestError(str(self._static.unreadable), "", "")
            return
        good: dict[Path, tuple[KubeObject, ...]] = {}
        first: dict[ObjectKey, KubeObject] = {}
        for path, file in self._static.files.items():
            if file.error is not None:
                yield str(path), file.error
            good[path] = objects = self._good.get(path, ()) if file.error is not None else file.objects
            for each in objects:
                one = first.setdefault(key_of(each), each)
                if one is not each:
                    reason = f"there is one already: {one.where}"
                    yield str(path), ManifestError(each.where, "metadata.name", reason)
        self._good = good


def _raw(document: Any, where: str, ignored: Counter[str]) -> Iterator[KubeObject]:
    """The objects of a document as they are."""
    for each in flattened(document, where):
        space, name = named_in(each)
        yield KubeRaw(each.kind, space, name, each.value, each.where)
