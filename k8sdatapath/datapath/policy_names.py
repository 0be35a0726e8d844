"""What the numbers in policy maps are called, for who looks at pins and knows nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from k8sdatapath import maps
from k8sdatapath.errors import MapFullError
from k8sdatapath.layout import layout_of
from k8sdatapath.tables.policy import Named, NameKey, NameRow

__all__ = ["Names"]

_ROOM = layout_of(NameRow).size - 1
_MORE = "…"


class Names:
    """kd_names. No packet depends on it: where it is full, or a name too long, people see less."""

    def __init__(self, table: maps.Hash[NameKey, NameRow]) -> None:
        self._table = table
        self._given: set[NameKey] = set()

    def call(self, kind: Named, names: Mapping[int, str]) -> None:
        """Give numbers names, or other ones."""
        rows = {NameKey(kind, number): NameRow(_fitting(name)) for number, name in names.items()}
        self._given.update(rows)
        try:
            self._table.update_many(rows)
        except MapFullError:
            return

    def forget(self, kind: Named, numbers: Iterable[int]) -> None:
        """They stand for nothing any more."""
        keys = [NameKey(kind, number) for number in numbers]
        self._given.difference_update(keys)
        self._table.delete_many(keys)

    def go_on_in(self, table: maps.Hash[NameKey, NameRow]) -> None:
        """The same stands in another map now."""
        self._table = table

    def drop_strange(self) -> None:
        """Forget what an earlier process has left."""
        self._table.delete_many([key for key in self._table if key not in self._given])


def _fitting(name: str) -> str:
    """As much of it as there is room for, whole characters."""
    data = name.replace("\0", " ").encode(errors="replace")
    if len(data) > _ROOM:
        data = data[: _ROOM - len(_MORE.encode())]
        return data.decode(errors="ignore") + _MORE
    return data.decode()
