"""Two C types side by side: that of a map in the kernel, and that of an object which would use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import zip_longest

from attrs import frozen

from k8sdatapath.pybpf.btf import Btf, Kind

__all__ = ["Leaf", "compare", "leaves", "types_of_map"]


@frozen
class Leaf:
    """A member that has no members itself.

    :ivar path: its name, with those of the members that it is in.
    :ivar bits: of a bit field; else 0.
    """

    offset: int
    path: str
    type: str
    size: int
    bits: int = 0

    def __str__(self) -> str:
        bits = f":{self.bits}" if self.bits else ""
        return f"{self.offset:4} {self.type} {self.path}{bits}".rstrip()


def types_of_map(btf: Btf, name: str) -> Mapping[str, int]:
    """``key`` and ``value`` -> their types, as far as an object declares them for a map."""
    return _types_of_maps(btf).get(name, {})


@lru_cache(maxsize=64)
def _types_of_maps(btf: Btf) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for var in btf.datasec(".maps"):
        pointers = {each.name: btf.resolve(each.type_id) for each in btf.members(var.type_id)}
        found[var.name] = {
            what: pointers[what].ref
            for what in ("key", "value")
            if what in pointers and pointers[what].kind is Kind.PTR
        }
    return found


def compare(there: Btf, its: int, here: Btf, ours: int) -> str:
    """Both types, line by line, if they lie in memory differently or have other names; else nothing."""
    left, right = _lines(there, its), _lines(here, ours)
    if left == right:
        return ""
    head = [f"{there.describe(its)} ({there.size_of(its)} bytes)", f"{here.describe(ours)}"]
    head[1] += f" ({here.size_of(ours)} bytes)"
    width = max(len(line) for line in [f"pinned: {head[0]}", *left]) + 3
    lines = [f"    {'pinned: ' + head[0]:{width}}object: {head[1]}"]
    for one, other in zip_longest(left, right, fillvalue=""):
        lines.append(f"  {' ' if one == other else '!'} {one:{width}}{other}".rstrip())
    return "\n".join(lines)


@lru_cache(maxsize=1024)  # an object's maps are met by each object that shares them
def _lines(btf: Btf, type_id: int) -> tuple[str, ...]:
    return tuple(map(str, leaves(btf, type_id)))


def leaves(btf: Btf, type_id: int, offset: int = 0, path: str = "", bits: int = 0) -> Iterator[Leaf]:
    """What a type consists of: members of members are told one by one."""
    found = btf.resolve(type_id)
    if found.kind in (Kind.STRUCT, Kind.UNION):
        for member in btf.members(type_id):
            name = f"{path}.{member.name}" if path and member.name else path or member.name
            yield from leaves(btf, member.type_id, offset + member.offset, name, member.bits)
    else:
        yield Leaf(offset, path, btf.describe(type_id), btf.size_of(type_id), bits)
