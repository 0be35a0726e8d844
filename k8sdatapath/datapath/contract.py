"""Binding by contract: a table names maps and layouts, and takes any source that has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

from k8sdatapath import maps
from k8sdatapath.errors import ContractError
from k8sdatapath.maps import Map
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir

__all__ = ["Bindable", "bind_maps", "names_of"]

#: What a table can be bound to: a loaded object, a directory of pins, or maps by name (kernel or in-memory).
Bindable = Object | PinDir | Mapping[str, Map]


def bind_maps(
    source: Bindable, contract: Mapping[str, Any], who: str, *, keep: bool = False
) -> tuple[dict[str, Any], ExitStack]:
    """Typed views of the maps that ``contract`` asks for, and what to close when done with them.

    :param keep: views of an object's maps stay when the object is closed.
    :raises ContractError: ``source`` lacks one.
    :raises LayoutError: one holds something else than ``contract`` says.
    """
    where, have = names_of(source)
    missing = [name for name in contract if name not in have]
    if missing:
        present = ", ".join(sorted(have)) or "no maps"
        lost = " (is what you mean pinned elsewhere, or not running?)" if isinstance(source, PinDir) else ""
        raise ContractError(f"{who} needs {', '.join(missing)}; {where} has {present}{lost}")
    bound: dict[str, Any] = {}
    with ExitStack() as undo:
        for name, kind in contract.items():
            if isinstance(source, Object) and keep:
                bound[name] = undo.enter_context(maps.bind(kind, source.map_fds[name].dup(), owned=True))
            elif isinstance(source, Object):
                bound[name] = undo.enter_context(source.map(name, kind))
            elif isinstance(source, PinDir):
                bound[name] = undo.enter_context(maps.bind(kind, source.open_map(name), owned=True))
            else:
                bound[name] = source[name]
        return bound, undo.pop_all()


def names_of(source: Bindable) -> tuple[str, Collection[str]]:
    """What a source is called, and which maps it has."""
    if isinstance(source, Object):
        return f"object {source.spec.name}", list(source.map_fds)
    if isinstance(source, PinDir):
        return str(source), source.maps
    return "the mapping", list(source)
