"""A store in this process: for one node, for tests, and as the plainest example of what a store is."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from typing import Any

from k8sdatapath.component import Record
from k8sdatapath.errors import StoreConflictError

__all__ = ["MemoryStore"]


class MemoryStore:
    """Records in a dict. Allocators that share one are as nodes that share an etcd."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}
        self._versions = itertools.count(1)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._records)} records>"

    def get(self, kind: str, name: str) -> Record | None:
        """What is there now."""
        return self._records.get((kind, name))

    def list(self, kind: str) -> tuple[Record, ...]:
        """All of a kind, as they were at one moment."""
        with self._lock:
            return tuple(each for each in self._records.values() if each.kind == kind)

    def create(self, kind: str, name: str, value: Mapping[str, Any]) -> Record:
        """Make one."""
        with self._lock:
            if (kind, name) in self._records:
                raise StoreConflictError(f"{kind} {name}")
            return self._put(kind, name, value)

    def update(self, record: Record, value: Mapping[str, Any]) -> Record:
        """Give a record another value."""
        with self._lock:
            self._check(record)
            return self._put(record.kind, record.name, value)

    def delete(self, record: Record) -> None:
        """Remove a record."""
        with self._lock:
            self._check(record)
            del self._records[record.kind, record.name]

    def _check(self, record: Record) -> None:
        known = self._records.get((record.kind, record.name))
        if known is None or known.version != record.version:
            raise StoreConflictError(f"{record.kind} {record.name}")

    def _put(self, kind: str, name: str, value: Mapping[str, Any]) -> Record:
        made = Record(kind, name, dict(value), str(next(self._versions)))
        self._records[kind, name] = made
        return made
