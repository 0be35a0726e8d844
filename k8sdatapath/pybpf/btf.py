"""BTF, the type information inside BPF objects and the kernel, read in pure Python.

Enough of it to compare a Python struct with the C struct it stands for, to find configuration
variables by name, and to ask the running kernel whether it has a type or a function. Nothing here
needs libbpf: the bytes may come from an object file, a loaded map, or ``/sys/kernel/btf/vmlinux``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from k8sdatapath.errors import ObjectError

__all__ = ["Btf", "Kind", "Member", "Type", "Var"]

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")


class Kind(IntEnum):
    """What a type is; the kernel's BTF_KIND_* numbers."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class Type(NamedTuple):
    """One BTF type. ``ref`` is the type it points or refers to, or its size, as the kind has it."""

    id: int
    kind: Kind
    name: str
    ref: int
    entries: int
    flag: bool
    offset: int  # of what follows the common header, in the type section


class Member(NamedTuple):
    """A member of a struct or union; offset and size in bytes. ``bits`` is nonzero for a bit field."""

    name: str
    offset: int
    size: int
    type_id: int
    bits: int = 0


class Var(NamedTuple):
    """A variable of a section. ``id`` is the variable's own type id, which carries its tags."""

    name: str
    offset: int
    size: int
    type_id: int
    id: int


# bytes after the common header: fixed part, and part per entry
_FIXED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_PER_ENTRY = {
    Kind.STRUCT: 12,
    Kind.UNION: 12,
    Kind.ENUM: 8,
    Kind.ENUM64: 12,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
}
_SIZED = {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT, Kind.DATASEC}
_QUALIFIERS = {Kind.CONST: "const", Kind.VOLATILE: "volatile", Kind.RESTRICT: "restrict"}
_TRANSPARENT = {Kind.TYPEDEF, Kind.TYPE_TAG, Kind.DECL_TAG, Kind.VAR, *_QUALIFIERS}
_DEEPEST = 32  # the kernel's own limit on chains of modifiers


class Btf:
    """The types in one blob of BTF; type ids are indices into ``types``, 0 is void.

    :raises ObjectError: the blob is not BTF of this machine's byte order, or contradicts itself.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = bytes(raw)
        if len(self._raw) < _HEADER.size:
            raise ObjectError(f"BTF is cut short: {len(self._raw)} bytes")
        magic, version, _, header, type_at, type_size, text_at, text_size = _HEADER.unpack_from(self._raw)
        if magic != _MAGIC:
            swapped = magic == int.from_bytes(_MAGIC.to_bytes(2, "little"), "big")
            raise ObjectError(f"BTF is not of this {sys.byteorder}-endian machine" if swapped else "not BTF")
        if version != 1:
            raise ObjectError(f"BTF version {version} is not known, only version 1")
        self._data = self._raw[header + type_at : header + type_at + type_size]
        self._text = self._raw[header + text_at : header + text_at + text_size]
        if len(self._data) != type_size or len(self._text) != text_size:
            raise ObjectError("BTF is cut short: its sections reach past its end")
        self.types: tuple[Type, ...] = tuple(self._scan())

    def __repr__(self) -> str:
        return f"<Btf {len(self.types)} types>"

    def type(self, type_id: int) -> Type:
        """The type of that number.

        :raises ObjectError: there is none.
        """
        if not 0 <= type_id < len(self.types):
            raise ObjectError(f"BTF has {len(self.types)} types, none has number {type_id}")
        return self.types[type_id]

    def find(self, name: str, kind: Kind) -> Type | None:
        """The first type of that name and kind; None if there is none."""
        return self._by_name.get((name, kind))

    def resolve(self, type_id: int) -> Type:
        """What a type is once typedefs, const, volatile and tags are taken off."""
        for _ in range(_DEEPEST):
            found = self.type(type_id)
            if found.kind not in _TRANSPARENT:
                return found
            type_id = found.ref
        raise ObjectError(f"BTF type {type_id} refers to itself")

    def size_of(self, type_id: int) -> int:
        """``sizeof`` the type, in bytes.

        :raises ObjectError: the type has no size, like a function or an undefined struct.
        """
        count = 1
        for _ in range(_DEEPEST):
            found = self.resolve(type_id)
            if found.kind in _SIZED:
                return count * found.ref
            if found.kind == Kind.PTR:
                return count * 8
            if found.kind != Kind.ARRAY:
                break
            type_id, length = self.array(found.id)
            count *= length
        raise ObjectError(f"C type {self.describe(type_id)!r} has no size")

    def array(self, type_id: int) -> tuple[int, int]:
        """The element type and the length of an array type."""
        element, _, length = _TYPE.unpack_from(self._data, self._expect(type_id, Kind.ARRAY).offset)
        return element, length

    def members(self, type_id: int) -> tuple[Member, ...]:
        """The members of a struct or union, in order. Anonymous members have an empty name."""
        owner = self._expect(type_id, Kind.STRUCT, Kind.UNION)
        return tuple(self._members(owner))

    def datasec(self, name: str) -> tuple[Var, ...]:
        """The variables of an ELF section such as ``.rodata.config``, by offset; empty if there is none.

        Compilers leave offsets at zero for the loader to fill in: ask a BTF that libbpf has opened.
        """
        section = self.find(name, Kind.DATASEC)
        if section is None:
            return ()
        found = []
        for i in range(section.entries):
            var_id, offset, size = _TYPE.unpack_from(self._data, section.offset + 12 * i)
            var = self.type(var_id)
            found.append(Var(var.name, offset, size, var.ref, var_id))
        return tuple(sorted(found, key=lambda var: var.offset))

    def decl_tags(self, type_id: int) -> tuple[str, ...]:
        """The texts attached to a declaration by ``__attribute__((btf_decl_tag("...")))``."""
        return self._tags.get(type_id, ())

    def enumerators(self, type_id: int) -> tuple[tuple[str, int], ...]:
        """Names and numbers of an enum, in the order of the source.

        Numbers are read as signed: compilers before LLVM 16 do not mark enums with negative ones.
        """
        found = self._expect(type_id, Kind.ENUM)
        each = struct.Struct("=Ii")
        rows = each.iter_unpack(self._data[found.offset : found.offset + each.size * found.entries])
        return tuple((self._string(name), number) for name, number in rows)

    def is_signed(self, type_id: int) -> bool:
        """Whether an integer or enum type is signed."""
        found = self._expect(type_id, Kind.INT, Kind.ENUM, Kind.ENUM64)
        if found.kind != Kind.INT:
            return found.flag
        return bool(int.from_bytes(self._data[found.offset : found.offset + 4], sys.byteorder) >> 24 & 1)

    def names(self, type_id: int) -> tuple[str, ...]:
        """The typedef names met on the way to what the type is: ``("__be16", "__u16")``."""
        met = []
        for _ in range(_DEEPEST):
            found = self.type(type_id)
            if found.kind not in _TRANSPARENT:
                break
            if found.kind == Kind.TYPEDEF:
                met.append(found.name)
            type_id = found.ref
        return tuple(met)

    def describe(self, type_id: int) -> str:
        """The type as C writes it: ``struct kd_addr``, ``__u32[16]``, ``const char *``."""
        return self._describe(type_id, _DEEPEST)

    def _describe(self, type_id: int, depth: int) -> str:
        found = self.type(type_id)
        if depth == 0:
            return "..."
        match found.kind:
            case Kind.VOID:
                return "void"
            case Kind.STRUCT | Kind.UNION | Kind.ENUM | Kind.ENUM64 | Kind.FWD:
                word = "enum" if found.kind in (Kind.ENUM, Kind.ENUM64) else found.kind.name.lower()
                if found.kind == Kind.FWD:
                    word = "union" if found.flag else "struct"
                return f"{word} {found.name or '{...}'}"
            case Kind.PTR:
                return f"{self._describe(found.ref, depth - 1)} *".replace("* *", "**")
            case Kind.ARRAY:
                element, length = self.array(type_id)
                inner, bracket, rest = self._describe(element, depth - 1).partition("[")
                return f"{inner}[{length}]{bracket}{rest}"
            case Kind.CONST | Kind.VOLATILE | Kind.RESTRICT:
                return f"{_QUALIFIERS[found.kind]} {self._describe(found.ref, depth - 1)}"
            case Kind.TYPE_TAG | Kind.DECL_TAG | Kind.VAR:
                return self._describe(found.ref, depth - 1)
            case Kind.FUNC_PROTO:
                return f"{self._describe(found.ref, depth - 1)} (...)"
            case _:
                return found.name

    def _scan(self) -> Iterator[Type]:
        yield Type(0, Kind.VOID, "void", 0, 0, False, 0)
        at, number, end = 0, 0, len(self._data)
        try:
            while at < end:
                number += 1
                name, info, ref = _TYPE.unpack_from(self._data, at)
                at += _TYPE.size
                kind, entries = Kind(info >> 24 & 0x1F), info & 0xFFFF
                text_end = self._text.index(b"\0", name)
                yield Type(
                    number, kind, self._text[name:text_end].decode(), ref, entries, bool(info >> 31), at
                )
                at += _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * entries
        except (struct.error, ValueError) as broken:
            raise ObjectError(f"BTF type {number} is malformed: {broken}") from broken
        if at != end:
            raise ObjectError(f"BTF type {number} reaches past the end of the type section")

    def _members(self, owner: Type) -> Iterator[Member]:
        for i in range(owner.entries):
            name, type_id, at = _TYPE.unpack_from(self._data, owner.offset + 12 * i)
            bits, at = (at >> 24, at & 0xFFFFFF) if owner.flag else (0, at)
            yield Member(self._string(name), at // 8, self.size_of(type_id), type_id, bits)

    def _expect(self, type_id: int, *kinds: Kind) -> Type:
        found = self.resolve(type_id)
        if found.kind not in kinds:
            wanted = " or ".join(kind.name.lower() for kind in kinds)
            raise ObjectError(f"C type {self.describe(type_id)!r} is no {wanted}")
        return found

    def _string(self, at: int) -> str:
        end = self._text.find(b"\0", at)
        if end < 0:
            raise ObjectError(f"BTF has a name that begins at {at}, past its names")
        return self._text[at:end].decode(errors="replace")

    @cached_property
    def _by_name(self) -> dict[tuple[str, Kind], Type]:
        return {(found.name, found.kind): found for found in reversed(self.types)}

    @cached_property
    def _tags(self) -> dict[int, tuple[str, ...]]:
        tags: dict[int, tuple[str, ...]] = {}
        for found in self.types:
            index = self._data[found.offset : found.offset + 4]
            if found.kind == Kind.DECL_TAG and index == b"\xff\xff\xff\xff":  # of the whole, not of a member
                tags[found.ref] = (*tags.get(found.ref, ()), found.name)
        return tags
