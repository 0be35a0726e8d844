"""What the numbers in policy maps are called, for who looks at pins and knows nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from k8sdatapath import maps
from k8sdatapath.errors import MapFullError
from k8sdatapath.layout import layout_of
from k8sdatapath.model.identity import LOCAL_NUMBERS
from k8sdatapath.tables.policy import Named, NameKey, NameRow

__all__ = ["Names", "fitting", "inherited_numbers", "numbers_in_use"]

_ROOM = layout_of(NameRow).size - 1
_MORE = "…"


class Names:
    """kd_names. Where it is full, or a name too long, who looks there sees less.

    What the next process needs is kept for it, in place of what is for people only: who has the numbers that
    every process gives by itself, and what DNS has answered.
    """

    def __init__(self, table: maps.Hash[NameKey, NameRow]) -> None:
        self._table = table
        self._given: set[NameKey] = set()

    def call(self, kind: Named, names: Mapping[int, str]) -> None:
        """Give numbers names, or other ones."""
        rows = {NameKey(kind, number): NameRow(fitting(name)) for number, name in names.items()}
        self._given.update(rows)
        try:
            self._table.update_many(rows)
        except MapFullError:
            self._make_room({key: row for key, row in rows.items() if _is_needed(key)})

    def _make_room(self, rows: Mapping[NameKey, NameRow]) -> None:
        missing = {key: row for key, row in rows.items() if self._table.get(key) != row}
        spare = (key for key in self._table if not _is_needed(key))
        self._table.delete_many(list(islice(spare, len(missing))))
        with suppress(MapFullError):
            self._table.update_many(missing)

    def read(self) -> Mapping[int, dict[int, str]]:
        """What there is of each kind, of an earlier process as well."""
        found: dict[int, dict[int, str]] = defaultdict(dict)
        for key, row in self._table.items():
            found[key.kind][key.number] = row.text
        return found

    @property
    def full(self) -> bool:
        """Whether there may be more than is there."""
        return len(self._table) >= self._table.info.max_entries

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


def inherited_numbers(parties: Mapping[int, str]) -> dict[str, int]:
    """Whom an earlier process has given which numbers, of those that every process gives by itself.

    While its rules are asked, they are to find who they were made for, and nobody else.

    :param parties: what there is of :attr:`Named.PARTY`.
    """
    often = Counter(parties.values())
    return {text: number for number, text in parties.items() if often[text] == 1}


def numbers_in_use(tables: Mapping[str, Any]) -> Iterator[int]:
    """The numbers that an earlier process has given by itself, by where they lead and by their rules."""
    for name in "kd_ipcache", "kd_networks":
        yield from (row.number for row in tables[name].values() if row.number in LOCAL_NUMBERS)
    yield from (key.number for key in tables["kd_rules"] if key.number in LOCAL_NUMBERS)


def _is_needed(key: NameKey) -> bool:
    return key.kind == Named.ANSWER or (key.kind == Named.PARTY and key.number in LOCAL_NUMBERS)


def fitting(name: str) -> str:
    """As much of a name as there is room for, whole characters."""
    data = name.replace("\0", " ").encode(errors="replace")
    if len(data) > _ROOM:
        data = data[: _ROOM - len(_MORE.encode())]
        return data.decode(errors="ignore") + _MORE
    return data.decode()
