"""Copying what is in one map into another of its kind and another size."""

from __future__ import annotations

from typing import Any

from k8sdatapath import maps
from k8sdatapath.errors import CapacityError
from k8sdatapath.maps import MMAPABLE

__all__ = ["copy_map"]

_HINT = "the size that was asked for is too small"


def copy_map(old: Any, new: Any) -> None:
    """Copy a map into an empty one of its kind.

    :raises CapacityError: there is not enough room.
    """
    if isinstance(old, maps.Array) and not old.info.flags & MMAPABLE:
        empty = new[0]
        rows = {at: row for at, row in enumerate(old) if row != empty}
        if rows and max(rows) >= len(new):
            raise CapacityError(f"elements of {old.name}", max(rows) + 1, len(new), hint=_HINT)
        new.update_many(rows)
        return
    if isinstance(old, maps.Array):
        source, into = old.view(), new.view()
        kept = len(source) if len(into) >= len(source) else len(bytes(source).rstrip(b"\0"))
        if kept > len(into):
            size = old.info.value_size
            needed, room = -(-kept // size), len(into) // size
            raise CapacityError(f"elements of {old.name}", needed, room, hint=_HINT)
        into[:kept] = source[:kept]
        return
    elements = dict(old.items())
    if len(elements) > new.info.max_entries:
        raise CapacityError(f"elements of {old.name}", len(elements), new.info.max_entries, hint=_HINT)
    new.update_many(elements)
