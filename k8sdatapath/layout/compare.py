"""Two C types side by side: that of a map in the kernel, and that of an object which would use it."""

from __future__ import annotations

from collections.abc import Iterator
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


def types_of_map(btf: Btf, name: str) -> dict[str, int]:
    """``key`` and ``value`` -> their types, as far as an object declares them for a map."""
    found = {}
    for var in btf.datasec(".maps"):
        if var.name == name:
            for member in btf.members(var.type_id):
                pointer = btf.resolve(member.type_id)
                if member.name in ("key", "value") and pointer.kind is Kind.PTR:
                    found[member.name] = pointer.ref
    return found


def compare(there: Btf, its: int, here: Btf, ours: int) -> str:
    """Both types, line by line, if they lie in memory differently or have other names; else nothing."""
    left, right = list(map(str, leaves(there, its))), list(map(str, leaves(here, ours)))
    if left == right:
        return ""
    head = [f"{there.describe(its)} ({there.size_of(its)} bytes)", f"{here.describe(ours)}"]
    head[1] += f" ({here.size_of(ours)} bytes)"
    width = max(len(line) for line in [f"pinned: {head[0]}", *left]) + 3
    lines = [f"    {'pinned: ' + head[0]:{width}}object: {head[1]}"]
    for one, other in zip_longest(left, right, fillvalue=""):
        lines.append(f"  {' ' if one == other else '!'} {one:{width}}{other}".rstrip())
    return "\n".join(lines)


def leaves(btf: Btf, type_id: int, offset: int = 0, path: str = "", bits: int = 0) -> Iterator[Leaf]:
    """What a type consists of: members of members are told one by one."""
    found = btf.resolve(type_id)
    if found.kind in (Kind.STRUCT, Kind.UNION):
        for member in btf.members(type_id):
            name = f"{path}.{member.name}" if path and member.name else path or member.name
            yield from leaves(btf, member.type_id, offset + member.offset, name, member.bits)
    else:
        yield Leaf(offset, path, btf.describe(type_id), btf.size_of(type_id), bits)
