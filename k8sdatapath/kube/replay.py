"""Sources recorded and played back: for bug reports, tests and trying things without a cluster.

A recording has a line of JSON for each batch, after one that says what it is. It is only ever appended to;
each start begins with such a first line again. What was half written when the writer died is passed over.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from io import FileIO
from pathlib import Path
from typing import IO, Any, get_args, get_origin, get_type_hints

import attrs

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ClosedError, ManifestError, ModelError, SourceError
from k8sdatapath.kube.events import Batch, ObjectEvent, ObjectSource
from k8sdatapath.kube.objects import EndpointSlice, KubeNode, KubeObject, KubePod, KubeRaw, KubeService
from k8sdatapath.model.address import address, network, shown
from k8sdatapath.resource import Resource

__all__ = ["Recorder", "Replay"]

_log = logging.getLogger(__name__)

_FORMAT = "k8sdatapath recording"
_VERSION = 1
_CLASSES = {each.__name__: each for each in (EndpointSlice, KubeNode, KubePod, KubeRaw, KubeService)}


class Recorder(Resource):
    """Passes on what a source tells, and writes it down::

        with Recorder(KubeWatch.in_cluster(), "cluster.jsonl") as source:
            ...  # use it as the source itself

    If it can be written no more, that is logged, and the source goes on. Recordings hold addresses and names
    of a cluster, of raw objects all that is in them: they are readable by their owner only.

    :param source: closed together with the recorder.
    :param file: is appended to.
    :raises SourceError: the file cannot be opened.
    """

    def __init__(self, source: ObjectSource, file: str | os.PathLike[str]) -> None:
        self.source = source
        self.path = Path(file)
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        try:
            # unbuffered: what is written is there, and what cannot be written is not tried again at the end
            self._file = FileIO(self.path, "a+", opener=lambda path, flags: os.open(path, flags, 0o600))
            _cut(self._file)
        except OSError as error:
            if self._file is not None:
                self._file.close()
            raise SourceError(f"{self.path}: {error.strerror}") from error
        self._start = time.monotonic()
        self._write({"format": _FORMAT, "version": _VERSION, "started": datetime.now(UTC).isoformat()})

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """What the source tells."""
        synced = False
        for batch in self.source.batches(timeout):
            if batch.events or batch.synced != synced:
                synced = batch.synced
                events = [_line(each, self._start) for each in batch.events]
                at = round(time.monotonic() - self._start, 6)
                self._write({"at": at, "synced": synced, "events": events})
            yield batch

    def close(self) -> None:
        """Close the source, and the file."""
        self.source.close()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __repr__(self) -> str:
        return f"<Recorder {self.path} of {self.source!r}>"

    def _write(self, value: object) -> None:
        with self._lock:
            if self._file is None:
                return
            line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
            try:
                if (self._file.write(line) or 0) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                _log.warning("%s: %s: nothing more is recorded", self.path, error.strerror)
                self._file.close()
                self._file = None


class Replay(Resource):
    """Tells what was recorded, at the pace of then or another::

        Reconciler(node_local(Replay("cluster.jsonl", speed=inf), "n1"), services)

    Where the recorder was started anew, what was not told again had vanished in between.

    :param file: made by a :class:`Recorder`.
    :param speed: times as fast; ``inf``: without waiting.
    :param ends: whether the batches end after the last, rather than go on as a cluster where nothing happens.
    :raises SourceError: it cannot be opened, or is no recording.
    """

    def __init__(self, file: str | os.PathLike[str], *, speed: float = 1.0, ends: bool = False) -> None:
        if not speed > 0:
            raise SourceError(f"{shown(speed)} is no speed: it is above 0")
        self.path = Path(file)
        self.speed = speed
        self.ends = ends
        self._closed = threading.Event()
        with self._open() as opened:
            self._header(opened.readline(), 1)

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """What was told then. Each call starts from the beginning.

        :param timeout: seconds after which an empty batch comes, if it takes longer to the next.
        :raises SourceError: the file is damaged there.
        """
        if self._closed.is_set():
            raise ClosedError(f"{self!r} was closed")
        synced = False
        start = time.monotonic()
        for at, batch in self._recorded():
            while not self._closed.is_set() and (wait := start + at / self.speed - time.monotonic()) > 0:
                if timeout is None or wait <= timeout:
                    self._closed.wait(wait)
                elif not self._closed.wait(timeout):
                    yield Batch((), synced)
            if self._closed.is_set():
                return
            synced = batch.synced
            now = time.monotonic()
            yield Batch(tuple(attrs.evolve(each, received=now) for each in batch.events), synced)
        while not self.ends and not self._closed.wait(timeout):
            yield Batch((), synced)

    def close(self) -> None:
        """End the batches; from any thread."""
        self._closed.set()

    def __repr__(self) -> str:
        return f"<Replay {self.path} at {self.speed:g}x>"

    def _open(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error

    def _header(self, line: bytes, number: int) -> None:
        header = self._parsed(line, number)
        if header.get("format") != _FORMAT:
            raise SourceError(f"{self.path}, line {number}: this is no recording")
        if header.get("version") != _VERSION:
            told = shown(header.get("version"))
            raise SourceError(f"{self.path}, line {number}: a recording of version {told}, not {_VERSION}")

    def _recorded(self) -> Iterator[tuple[float, Batch]]:
        """Seconds since the beginning, and what came then."""
        known: set[ObjectKey] = set()
        seen: set[ObjectKey] | None = None
        """Since the recorder was started anew, and until it was synced."""
        synced, before, at = False, 0.0, 0.0
        with self._open() as opened:
            for number, line in enumerate(opened, 1):
                if not line.endswith(b"\n"):
                    return
                value = self._parsed(line, number)
                if "format" in value:
                    self._header(line, number)
                    before, seen = at, set() if number > 1 else None
                    continue
                try:
                    at = before + float(value["at"])
                    events = tuple(map(_event, value["events"]))
                    now_synced = bool(value["synced"])
                except (ModelError, LookupError, TypeError, ValueError, AttributeError) as error:
                    raise SourceError(
                        f"{self.path}, line {number}: {type(error).__name__}: {error}"
                    ) from None
                if seen is not None:
                    seen.update(each.key for each in events)
                    if now_synced:
                        events += tuple(ObjectEvent(*key, None, 0.0) for key in sorted(known - seen))
                        seen = None
                for each in events:
                    (known.discard if each.object is None and each.error is None else known.add)(each.key)
                synced = synced or now_synced
                yield at, Batch(events, synced)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if type(value) is not dict:
            raise SourceError(f"{self.path}, line {number}: this is no recording")
        return value


def _cut(file: FileIO) -> None:
    """Drop a last line that has no end."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        if (found := (file.read(end - start) or b"").rfind(b"\n")) >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        file.truncate(end)


# -- objects and JSON --


def _line(event: ObjectEvent, start: float) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": event.kind, "namespace": event.namespace, "name": event.name}
    found["at"] = round(event.received - start, 6)
    if event.object is not None:
        found["object"] = {"type": type(event.object).__name__, **_plain(event.object)}
    if event.error is not None:
        found["error"] = list(event.error.args)
    return found


def _event(line: dict[str, Any]) -> ObjectEvent:
    value, error = line.get("object"), line.get("error")
    made: KubeObject | None = None if value is None else _made(_CLASSES[value["type"]], value)
    refused = None if error is None else ManifestError(*map(str, error))
    return ObjectEvent(line["kind"], line["namespace"], line["name"], made, 0.0, refused)


def _plain(value: Any) -> Any:
    """As JSON has it; what is as it is by default is left out."""
    if attrs.has(type(value)):
        fields = [each for each in attrs.fields(type(value)) if each.init]
        given = {each.name: getattr(value, each.name) for each in fields}
        return {each.name: _plain(given[each.name]) for each in fields if given[each.name] != each.default}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | dict) else str(value)


def _made(kind: Any, value: Any) -> Any:
    """The reverse, for where a value of some type is expected."""
    given = get_args(kind)
    if value is None:
        return None
    if attrs.has(kind):
        hints = _hints(kind)
        return kind(**{name: _made(hints[name], each) for name, each in value.items() if name in hints})
    if get_origin(kind) is tuple:
        kinds: Iterable[Any] = given[:1] * len(value) if given[-1] is ... else given
        return tuple(_made(*each) for each in zip(kinds, value, strict=True))
    if get_origin(kind) is frozenset:
        return frozenset(value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[value]
    for each in given:  # of a union: addresses and networks, or None
        if each.__name__.endswith("Address"):
            return address(value)
        if each.__name__.endswith("Network"):
            return network(value)
    return value


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    names = {each.name for each in attrs.fields(kind) if each.init}
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}
