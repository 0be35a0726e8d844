"""Copying what is in one map into another of its kind and another size."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.errors import CapacityError, KeyNotFoundError
from k8sdatapath.layout import layout_of
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.halves import ahead, differing, gather

__all__ = ["copy_ends", "copy_flows", "copy_map", "copy_missing"]

_ROUNDS = 10


def copy_map(old: Any, new: Any) -> None:
    """Copy a map into an empty one of its kind.

    :raises CapacityError: there is not enough room.
    """
    if isinstance(old, maps.Array):
        source, into = old.view(), new.view()
        kept = len(source) if len(into) >= len(source) else len(bytes(source).rstrip(b"\0"))
        if kept > len(into):
            size = old.info.value_size
            raise CapacityError(f"elements of {old.name}", -(-kept // size), len(into) // size)
        into[:kept] = source[:kept]
        return
    elements = dict(old.items())
    if len(elements) > new.info.max_entries:
        raise CapacityError(f"elements of {old.name}", len(elements), new.info.max_entries)
    new.update_many(elements)


def copy_missing(old: Any, new: Any) -> None:
    """Copy what has come into a map since it was copied, as far as the other lacks it."""
    elements = dict(old.items())
    known = new.lookup_many(elements)
    new.update_many({key: value for key, value in elements.items() if key not in known})


def copy_flows(old: maps.LRUHash[Tuple, ConntrackRow], new: maps.LRUHash[Tuple, ConntrackRow]) -> None:
    """Copy flows while programs write new ones into both tables: until these say the same.

    A flow that is made anew between our read and our write is as it was before in the new table. The next
    look finds that out.
    """
    for _ in range(_ROUNDS):
        keys, rows, _ = old.items_packed()
        wrong = differing(rows, *new.lookup_packed(keys))
        if not wrong:
            return
        new.update_packed(gather(keys, wrong), gather(rows, wrong, new.info.value_size))


def copy_ends(old: maps.LRUHash[Tuple, ConntrackRow], new: maps.LRUHash[Tuple, ConntrackRow]) -> None:
    """That a flow ended while both tables had it was written to the old one."""
    keys, rows, _ = old.items_packed()
    more = ahead(rows, *new.lookup_packed(keys))
    key_layout, row_layout = layout_of(Tuple), layout_of(ConntrackRow)
    late = zip(
        key_layout.unpack_many(gather(keys, more)),
        row_layout.unpack_many(gather(rows, more, row_layout.size)),
        strict=True,
    )
    for key, row in late:
        with suppress(KeyNotFoundError):
            now: Any = new[key]
            if now.to == row.to:
                new.replace(key, evolve(now, flags=now.flags | row.flags))
