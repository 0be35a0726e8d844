"""A directory of manifests as a source of services."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from attrs import Factory, evolve, frozen

from k8sdatapath.errors import ManifestError, SourceError
from k8sdatapath.kube.decode import decode
from k8sdatapath.kube.documents import parse_json, parse_yaml
from k8sdatapath.kube.objects import KubeObject
from k8sdatapath.kube.translate import HealthCheck, translate
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Service

__all__ = ["StaticFile", "StaticYaml"]

Decode: TypeAlias = Callable[[Any, str, "Counter[str]"], Iterator[KubeObject]]

_SUFFIXES = (".yaml", ".yml", ".json")
STILL = 0.05
"""Seconds without a change before a change is taken: what is being written is not read half."""
_FRESH_NS = 2_000_000_000
"""For so long after a change, another one may leave the same time stamp behind."""


@frozen
class StaticFile:
    """What a file held when it was last read."""

    signature: tuple[int, ...]
    settled: bool
    """Whether an unchanged signature proves unchanged content."""
    digest: bytes
    objects: tuple[KubeObject, ...] = ()
    ignored: Counter[str] = Factory(Counter)
    error: ManifestError | None = None


class StaticYaml:
    """Services from ordinary ``Service`` and ``EndpointSlice`` manifests, in files and directories.

    Of a directory, ``*.yaml``, ``*.yml`` and ``*.json`` are read, without hidden files and subdirectories.
    Objects of other kinds are passed over::

        source = StaticYaml("manifests/")
        services.plan(source.read()).apply()

    :param paths: files and directories. A Service may be in one and its slices in another.
    :param node: the node that they are read for. Without it there are only cluster IPs: node ports, load
        balancers, external IPs, host ports and policies need to know where they are.
    :param max_bytes: a larger file is refused before it is read.
    :param read: makes objects of a document, as :func:`~k8sdatapath.kube.decode.decode` does.
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        node: NodeView | None = None,
        max_bytes: int = 16 << 20,
        read: Decode = decode,
    ) -> None:
        if not paths:
            raise SourceError("no manifests: name at least one file or directory")
        self.paths = tuple(Path(path) for path in paths)
        self.node = node
        self.max_bytes = max_bytes
        self._decode = read
        self.ignored: Counter[str] = Counter()
        """What the manifests hold that is not load-balanced, counted by what it is; of the last good read."""
        self.notes: tuple[str, ...] = ()
        """What is otherwise than the manifests may make one think, in sentences; of the last good read."""
        self.health_checks: tuple[HealthCheck, ...] = ()
        """What load balancers ask this node about Services; of the last good read."""
        self.files: dict[Path, StaticFile] = {}
        """What each file held when it was last looked at."""
        self.unreadable: SourceError | None = None
        """Why the last look failed; ``files`` are then of an earlier one."""

    def __repr__(self) -> str:
        return f"<StaticYaml {' '.join(map(str, self.paths))}>"

    def read(self) -> tuple[Service, ...]:
        """All services that the manifests ask for now.

        :raises ManifestError: a file says something that cannot be; the error names the field.
        :raises SourceError: a path cannot be read.
        """
        self.look()
        return self._services()

    def watch(
        self,
        interval: float = 0.5,
        stop: threading.Event | None = None,
        on_error: Callable[[SourceError], object] | None = None,
    ) -> Iterator[tuple[Service, ...]]:
        """All services at once, and again after every change of the files.

        Files are looked at, not listened to: that also follows a ConfigMap mount, which changes by a swap of
        symbolic links, and a network file system. While the files are wrong nothing is yielded, so what was
        yielded last stays in force.

        :param interval: seconds between looks.
        :param stop: set it to end the iteration.
        :param on_error: told once of each state of the files that is wrong. Without it the error is raised.
        """
        stop = stop or threading.Event()
        taken: object = None
        while not stop.is_set():
            seen = self.look()
            while taken is not None and seen != taken and not stop.wait(STILL):
                before, seen = seen, self.look()
                if seen == before:
                    break
            if stop.is_set():
                return
            if seen != taken:
                taken = seen
                try:
                    wanted = self._services()
                except SourceError as error:
                    if on_error is None:
                        raise
                    on_error(error)
                else:
                    yield wanted
            stop.wait(interval)

    def look(self) -> object:
        """Read what has changed; returns something that differs whenever the content does."""
        try:
            self.files = {path: self._file(path) for path in self._list()}
            self.unreadable = None
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            reason = error.strerror if isinstance(error, OSError) else str(error)
            name = getattr(error, "filename", None)
            self.unreadable = SourceError(f"{name}: {reason}" if name else str(reason))
            return str(self.unreadable)
        return {path: file.digest for path, file in self.files.items()}

    def _services(self) -> tuple[Service, ...]:
        if self.unreadable:
            raise self.unreadable
        for file in self.files.values():
            if file.error:
                raise file.error
        found = translate((each for file in self.files.values() for each in file.objects), self.node)
        self.ignored = sum((file.ignored for file in self.files.values()), found.ignored)
        self.notes, self.health_checks = found.notes, found.health_checks
        return found.services

    def _list(self) -> list[Path]:
        found: dict[str, Path] = {}
        for path in self.paths:
            inside = sorted(path.iterdir()) if path.is_dir() else None
            for each in [path] if inside is None else inside:
                wanted = each.suffix in _SUFFIXES and not each.name.startswith(".") and not each.is_dir()
                if inside is None or wanted:
                    found.setdefault(os.path.abspath(each), each)
        return list(found.values())

    def _file(self, path: Path) -> StaticFile:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "neither a file nor a directory", str(path))
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        settled = time.time_ns() - changed > _FRESH_NS
        known = self.files.get(path)
        if known and known.settled and known.signature == signature:
            return known
        data = b""
        if status.st_size <= self.max_bytes:
            with path.open("rb") as file:
                data = file.read(self.max_bytes + 1)
        size = max(status.st_size, len(data))
        if size > self.max_bytes:
            reason = f"{size} bytes, at most {self.max_bytes} are read of one file"
            return StaticFile(signature, settled, b"%d" % size, error=ManifestError(str(path), "", reason))
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if known and known.digest == digest:
            return evolve(known, signature=signature, settled=settled)
        ignored: Counter[str] = Counter()
        try:
            objects = tuple(_objects(data, str(path), ignored, self._decode))
        except ManifestError as error:
            return StaticFile(signature, settled, digest, error=error)
        return StaticFile(signature, settled, digest, objects, ignored)


def _objects(data: bytes, where: str, ignored: Counter[str], read: Decode) -> Iterator[KubeObject]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(where, f"byte {error.start}", "this is not UTF-8 text") from None
    parse = parse_json if where.endswith(".json") else parse_yaml
    for number, document in enumerate(parse(text, where), 1):
        if document is not None:
            yield from read(document, f"{where}: document {number}", ignored)
