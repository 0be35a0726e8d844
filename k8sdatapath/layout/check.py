"""A Python layout beside the C type it stands for: equal, or an error that shows both."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.errors import LayoutError
from k8sdatapath.layout.codecs import Address, Codec, Mac, Network, Raw, Scalar, Text, Wire, Zeros
from k8sdatapath.layout.structs import Array, Field, Struct
from k8sdatapath.pybpf.btf import Btf, Kind, Member

__all__ = ["check"]

_WIRE_TYPES = frozenset({"__be16", "__be32", "__be64", "__sum16"})
_PADDING_WORDS = ("pad", "reserved", "unused")


@frozen
class _Row:
    """What either side has at one offset."""

    offset: int
    c: str
    python: str
    same: bool


def check(codec: Codec, btf: Btf, type_id: int, where: str) -> None:
    """Raise LayoutError unless ``codec`` lies in memory as the C type does."""
    if _fits(codec, btf, type_id):
        return
    if isinstance(codec, Struct) and _is_struct(btf, type_id):
        for member, twin in _nested(codec, btf, type_id):  # the deepest difference says most
            check(member.codec, btf, twin.type_id, f"{where}, member {member.name!r}")
        rows = _compare(codec, btf, type_id)
    else:
        rows = [_Row(0, btf.describe(type_id), codec.name, False)]
    c = f"C: {btf.describe(type_id)} ({btf.size_of(type_id)} bytes)"
    width = max(len(c), *(len(row.c) for row in rows)) + 3
    lines = [f"    byte  {c:{width}}Python: {codec.name} ({codec.size} bytes)"]
    lines += [f"  {' ' if row.same else '!'} {row.offset:4}  {row.c:{width}}{row.python}" for row in rows]
    raise LayoutError(f"{where}: C and Python differ\n" + "\n".join(line.rstrip() for line in lines))


def _compare(codec: Struct, btf: Btf, type_id: int) -> list[_Row]:
    mine = {each.offset: each for each in codec.fields}
    theirs: dict[int, list[Member]] = {}
    for member in btf.members(type_id):
        theirs.setdefault(member.offset, []).append(member)
    rows = []
    for offset in sorted(mine.keys() | theirs.keys()):
        each, members = mine.get(offset), theirs.get(offset, [])
        c = "; ".join(_declare(btf, member) for member in members)
        python = f"{each.name}: {each.codec.name}" if each else ""
        same = (
            _is_same(each, members, btf)
            if each
            else all(map(_is_padding, members)) and _is_zeros(codec, offset)
        )
        rows.append(_Row(offset, c, python, same))
    return rows


def _is_same(mine: Field, theirs: list[Member], btf: Btf) -> bool:
    if isinstance(mine.codec, Zeros):  # beside padding of C, or beside a hole
        return all(_is_padding(each) and each.size <= mine.size for each in theirs)
    if len(theirs) != 1 or theirs[0].bits:
        return False
    named = theirs[0].name in ("", mine.name, mine.name.rstrip("_"))
    return named and _fits(mine.codec, btf, theirs[0].type_id)


def _is_zeros(codec: Struct, offset: int) -> bool:
    return any(
        isinstance(each.codec, Zeros) and each.offset <= offset < each.offset + each.size
        for each in codec.fields
    )


def _fits(codec: Codec, btf: Btf, type_id: int) -> bool:
    found = btf.resolve(type_id)
    if found.kind in (Kind.VOID, Kind.FUNC, Kind.FUNC_PROTO, Kind.FWD) or btf.size_of(type_id) != codec.size:
        return False
    match codec:
        case Scalar():
            return _fits_scalar(codec, btf, type_id)
        case Struct():
            return _is_struct(btf, type_id) and all(row.same for row in _compare(codec, btf, type_id))
        case Array():
            if found.kind != Kind.ARRAY:
                return False
            element, length = btf.array(type_id)
            return length == codec.length and _fits(codec.element, btf, element)
        case Text() | Mac():
            return _is_run_of_ints(btf, type_id, 1)
        case Address():
            return _is_run_of_ints(btf, type_id, 8)
        case Network():
            return _is_prefix(btf, type_id)
        case _:
            return isinstance(codec, Raw)


def _fits_scalar(codec: Scalar, btf: Btf, type_id: int) -> bool:
    kind = btf.resolve(type_id).kind
    if kind == Kind.INT:
        # C code may keep wire order in a plain integer, but a type that says wire order means it.
        wire = not _WIRE_TYPES.isdisjoint(btf.names(type_id))
        return isinstance(codec, Wire) if wire else (codec.bounds[0] < 0) == btf.is_signed(type_id)
    return kind in (Kind.ENUM, Kind.ENUM64, Kind.PTR)


def _is_run_of_ints(btf: Btf, type_id: int, widest: int) -> bool:
    """An array of integers, or a struct or union of nothing but such arrays of its own size."""
    found = btf.resolve(type_id)
    if found.kind == Kind.ARRAY:
        element, _ = btf.array(type_id)
        return btf.resolve(element).kind == Kind.INT and btf.size_of(element) <= widest
    if found.kind not in (Kind.STRUCT, Kind.UNION):
        return False
    members = btf.members(type_id)
    whole = [
        each for each in members if each.size == found.ref and _is_run_of_ints(btf, each.type_id, widest)
    ]
    return bool(whole) and (found.kind == Kind.UNION or len(members) == 1)


def _is_prefix(btf: Btf, type_id: int) -> bool:
    """A struct of a 4-byte length and an address."""
    if not _is_struct(btf, type_id) or len(btf.members(type_id)) != 2:
        return False
    length, address = btf.members(type_id)
    plain = btf.resolve(address.type_id).kind == Kind.INT
    return length.size == address.offset == 4 and (plain or _is_run_of_ints(btf, address.type_id, 8))


def _nested(codec: Struct, btf: Btf, type_id: int) -> list[tuple[Field, Member]]:
    """The members of struct type that both sides have in the same place under the same name."""
    theirs = {(each.offset, each.name): each for each in btf.members(type_id)}
    pairs = [
        (each, theirs.get((each.offset, each.name)))
        for each in codec.fields
        if isinstance(each.codec, Struct)
    ]
    return [(mine, twin) for mine, twin in pairs if twin and _is_struct(btf, twin.type_id)]


def _is_struct(btf: Btf, type_id: int) -> bool:
    return btf.resolve(type_id).kind == Kind.STRUCT


def _is_padding(member: Member) -> bool:
    return any(word in member.name for word in _PADDING_WORDS)


def _declare(btf: Btf, member: Member) -> str:
    kind, bracket, length = btf.describe(member.type_id).partition("[")
    bits = f":{member.bits}" if member.bits else ""
    return f"{kind} {member.name}{bracket}{length}{bits}".replace("* ", "*")
