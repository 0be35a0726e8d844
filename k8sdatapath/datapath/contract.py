"""Binding by contract: a table names maps and layouts, and takes any source that has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

from k8sdatapath import maps
from k8sdatapath.errors import ContractError, KernelError
from k8sdatapath.maps import Map
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.pins import PinDir

__all__ = ["Bindable", "bind_maps", "load_over", "names_of"]

#: What a table can be bound to: a loaded object, a directory of pins, or maps by name (kernel or in-memory).
Bindable = Object | PinDir | Mapping[str, Map]


def bind_maps(
    source: Bindable, contract: Mapping[str, Any], who: str, *, keep: bool = False, switch: str = ""
) -> tuple[dict[str, Any], ExitStack]:
    """Typed views of the maps that ``contract`` asks for, and what to close when done with them.

    :param keep: views of an object's maps stay when the object is closed.
    :param switch: with what a node has these maps, if not all nodes have.
    :raises ContractError: ``source`` lacks one.
    :raises LayoutError: one holds something else than ``contract`` says.
    """
    where, have = names_of(source)
    missing = [name for name in contract if name not in have]
    if missing:
        advice = f" (a node has them with {switch})" if have and switch else ""
        if isinstance(source, PinDir) and not advice:
            advice = " (is what you mean pinned elsewhere, or not running?)"
        raise ContractError(f"{who} needs {', '.join(missing)}; {where} has {_listed(have)}{advice}")
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


def _listed(names: Collection[str]) -> str:
    """Maps by name, if these are few enough to find one among them."""
    if len(names) > 8:
        return f"{len(names)} others"
    return ", ".join(sorted(names)) or "no maps"


def load_over(source: Bindable, name: str, who: str, *, needs: str = "") -> Object:
    """Our object of this name, loaded; all its maps are those of ``source``.

    :param needs: the feature of the kernel without which it does not load.
    :raises ContractError: ``source`` lacks a map.
    :raises NotSupportedError: the kernel lacks the feature.
    """
    spec = ObjectSpec.from_file(name)
    shared, borrowed = bind_maps(source, dict.fromkeys(spec.maps, maps.Map), who)
    with borrowed:
        try:
            return spec.load(reuse=shared)
        except KernelError:
            if needs:
                from k8sdatapath import features

                features.require(needs)
            raise


def names_of(source: Bindable) -> tuple[str, Collection[str]]:
    """What a source is called, and which maps it has."""
    if isinstance(source, Object):
        return f"object {source.spec.name}", list(source.map_fds)
    if isinstance(source, PinDir):
        return str(source), source.maps
    return "the mapping", list(source)
