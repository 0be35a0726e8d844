"""What another version of this library has pinned is turned into what this one needs, while packets flow.

Rows move by the names of their members, see :class:`~k8sdatapath.layout.growth.Growth`; members that are new
begin as zero. Where something would be lost, everything stays as it is, and is refused.

1. Programs of this version are loaded over new maps, and over those pinned ones that they can use.
2. What is in the old maps is copied.
3. The new maps are pinned in place of the old ones: whoever comes after a kill finds them whole.
4. Every pinned link gets the new program, in one step each.
5. What the old programs have written since is copied.

No program can write to tables of two layouts. So a flow that begins in the few milliseconds of step 4 is half
in the one and half in the other until step 5: its client may have to connect again. All other flows go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.errors import DeviceGoneError, LayoutError, MapFullError
from k8sdatapath.layout.compare import types_of_map
from k8sdatapath.layout.growth import Growth
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.pins import PinDir
from k8sdatapath.pybpf import links
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.maps import KernelMap, MapInfo, MapType, info, kernel_btf, padded
from k8sdatapath.pybpf.progs import open_by_id

__all__ = ["upgrade"]

_log = logging.getLogger(__name__)
_WALKED = frozenset(
    {
        MapType.HASH,
        MapType.LRU_HASH,
        MapType.LPM_TRIE,
        MapType.ARRAY,
        MapType.PERCPU_ARRAY,
        MapType.PERCPU_HASH,
        MapType.LRU_PERCPU_HASH,
    }
)
"""Whose elements can be listed."""
_LRU = frozenset({MapType.LRU_HASH, MapType.LRU_PERCPU_HASH})
"""Which programs write to, as packets come."""


@frozen
class _Outdated:
    """A pinned map that this version cannot use as it is, and how its rows become rows of this one."""

    fd: Fd
    info: MapInfo
    growth: Growth


def upgrade(
    pins: PinDir,
    specs: Mapping[str, ObjectSpec],
    sized: Collection[str],
    *,
    before: Callable[[PinDir], object] = lambda pins: None,
) -> tuple[str, ...]:
    """Bring what is pinned to the layouts of some objects; by the owner of the directory.

    :param sized: names of maps whose size is nobody's business here.
    :param before: called before anything is done, if there is something to do.
    :returns: the maps that were another version's.
    :raises LayoutError: one of them holds what this version would lose; nothing was changed.
    """
    with ExitStack() as own, ExitStack() as undo:
        outdated = _find(pins, specs, sized, own)
        if not outdated:
            return ()
        before(pins)
        kept = {name: own.enter_context(pins.open_map(name)) for name in pins.maps if name not in outdated}
        shared = {name: maps.bind_untyped(fd) for name, fd in kept.items()}
        loaded: list[Object] = []
        for spec in specs.values():
            sizes = {name: old.info.max_entries for name, old in outdated.items() if name in sized}
            spec = spec.with_maps(**{name: size for name, size in sizes.items() if name in spec.maps})
            loaded.append(own.enter_context(spec.load(reuse=shared)))
            shared |= loaded[-1].maps
        new = {name: next(each.map_fds[name] for each in loaded if name in each.map_fds) for name in outdated}
        for name, old in outdated.items():
            _copy(old, new[name])
        for name, old in outdated.items():
            undo.callback(pins.replace, old.fd, pins.map_path(name))
            pins.replace(new[name], pins.map_path(name))
        late = [name for name, old in outdated.items() if old.info.type in _LRU]
        for name in late:  # what has come while all else was copied: the next moment is to be short
            _copy(outdated[name], new[name], missing=True)
        _switch(pins, loaded, own, undo)
        for name in late:
            _copy(outdated[name], new[name], missing=True)
        undo.pop_all()
    _log.info("maps of another version were taken over: %s", ", ".join(sorted(outdated)))
    return tuple(sorted(outdated))


def _find(
    pins: PinDir, specs: Mapping[str, ObjectSpec], sized: Collection[str], own: ExitStack
) -> dict[str, _Outdated]:
    """Each pinned map that differs from what the first object declares that has it."""
    declaring = {name: spec for spec in reversed(list(specs.values())) for name in spec.maps}
    found = {}
    for name in declaring.keys() & set(pins.maps):
        spec = declaring[name]
        fd = own.enter_context(pins.open_map(name))
        about, declared = info(fd), spec.maps[name]
        try:
            spec.check_map(name, fd)
        except LayoutError:
            growth = _growth(spec, name, about)
            if growth is None:
                raise
            found[name] = _Outdated(fd, about, growth)
        else:
            if name not in sized and about.max_entries < declared.max_entries:
                found[name] = _Outdated(fd, about, Growth.none(about.value_size))
    return found


def _growth(spec: ObjectSpec, name: str, about: MapInfo) -> Growth | None:
    declared, ours = spec.maps[name], types_of_map(spec.btf, name)
    same = (declared.type, declared.key_size, declared.flags) == (about.type, about.key_size, about.flags)
    if not same or about.type not in _WALKED or not about.btf_id or ours.keys() != {"key", "value"}:
        return None
    there = kernel_btf(about.btf_id)
    keys = Growth.between(there, about.btf_key_type_id, spec.btf, ours["key"])
    if keys is None or any(place != to for place, to, _ in keys.runs):
        return None
    return Growth.between(there, about.btf_value_type_id, spec.btf, ours["value"])


def _copy(old: _Outdated, into: Fd, *, missing: bool = False) -> None:
    """Copy all rows, or those whose keys are not there yet."""
    if old.info.type not in _WALKED:  # a ring buffer: events that nobody has read are not missed
        return
    source, target = KernelMap(old.fd, old.info), KernelMap(into, info(into))
    size, grown = old.growth.size, old.growth.grown
    strides = (padded(size), padded(grown)) if old.info.per_cpu else (size, grown)
    for keys, values, count in source.dump():
        rows = old.growth.convert(bytes(values), *strides)
        if missing:
            _add(target, bytes(keys), rows, count)
            continue
        result, _ = target.update_many(keys, rows, count)
        if result:
            raise MapFullError("copy into map", target.info.name, target.info.max_entries)


def _add(target: KernelMap, keys: bytes, rows: bytearray, count: int) -> None:
    _, found = target.lookup_many(keys, count)
    key, row = target.info.key_size, target.info.stride
    for at in (at for at in range(count) if not found[at]):
        target.update(keys[at * key : (at + 1) * key], bytes(rows[at * row : (at + 1) * row]))


def _switch(pins: PinDir, loaded: Collection[Object], own: ExitStack, undo: ExitStack) -> None:
    """Put the new programs into the pinned links, whose names begin with those of their programs."""
    programs = {name: fd for each in loaded for name, fd in each.program_fds.items()}
    for link_name in pins.links:
        entry = link_name.partition("-")[0]
        if entry not in programs:  # what is not used any more; its hooks are taken off later
            continue
        link = own.enter_context(pins.open_link(link_name))
        before = own.enter_context(open_by_id(links.info(link).program_id))
        if _put(link, programs[entry]):
            undo.callback(_put, link, before)


def _put(link: Fd, program: Fd) -> bool:
    """Swap the program of a link; False if its device is gone."""
    try:
        links.update(link, program)
    except DeviceGoneError:
        return False
    return True
