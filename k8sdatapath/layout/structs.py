"""Structs and arrays of values, and the functions that pack and unpack them."""

from __future__ import annotations

import struct as _struct
import sys
import typing
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, dataclass_transform, overload

from attrs import field, frozen

from k8sdatapath.errors import LayoutError
from k8sdatapath.layout.codecs import Codec, Scalar, Zeros, raw

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from k8sdatapath.pybpf.btf import Btf

__all__ = ["Array", "Field", "Layout", "Struct", "array", "codec_of", "layout_of", "struct"]

T = TypeVar("T")


@frozen
class Field:
    """A member of a struct: where it lies and what it is."""

    name: str
    offset: int
    codec: Codec

    @property
    def size(self) -> int:
        """In bytes."""
        return self.codec.size


@frozen
class Struct(Codec):
    """The members of a :func:`struct` class; ``fields`` has the padding too."""

    type: type = field(kw_only=True)
    fields: tuple[Field, ...] = field(kw_only=True)


@frozen
class Array(Codec):
    """A fixed number of elements, a tuple in Python."""

    element: Codec = field(kw_only=True)
    length: int = field(kw_only=True)


def array(element: object, length: int) -> Codec:
    """``length`` elements in a row: ``Annotated[tuple[int, ...], array(u32, 16)]``."""
    inner = codec_of(element)
    if isinstance(inner, Scalar) and inner.encode is None:
        machine = _struct.Struct(f"={length}{inner.form}")
        encode, decode = partial(_pack_all, machine.pack), machine.unpack
    else:
        layout = _layout(inner)
        encode, decode = partial(_pack_each, layout, length), partial(_unpack_each, layout)
    name, size = f"array({inner.name}, {length})", inner.size * length
    return Array(name, size, inner.align, f"{size}s", encode, decode, element=inner, length=length)


def _pack_all(pack: Callable[..., bytes], values: Iterable[int]) -> bytes:
    return pack(*values)


def _pack_each(layout: Layout[Any], length: int, values: Iterable[Any]) -> bytes:
    elements = tuple(values)
    if len(elements) != length:
        raise ValueError(f"exactly {length} elements are needed, not {len(elements)}")
    return layout.pack_many(elements)


def _unpack_each(layout: Layout[Any], data: bytes) -> tuple[Any, ...]:
    return tuple(layout.unpack_many(data))


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def struct(cls: type[T]) -> type[T]:
    """Make a class the twin of a C struct: a frozen attrs class whose fields have places in memory.

    :raises LayoutError: a field has no layout, or C would leave a hole before it.
    """
    hints = typing.get_type_hints(cls, localns=sys._getframe(1).f_locals, include_extras=True)
    made = frozen(cls)
    members: list[Field] = []
    offset = 0
    for name, hint in hints.items():
        codec = vars(cls).get(name)
        if not isinstance(codec, Zeros):
            if typing.get_origin(hint) is typing.ClassVar:
                continue
            codec = codec_of(hint, f"{cls.__name__}.{name}: ")
        if hole := -offset % codec.align:
            raise LayoutError(
                f"{cls.__name__}.{name} ({codec.name}) cannot begin at byte {offset}, C would leave a hole: "
                f"write `pad: ClassVar = zeros({hole})` before it"
            )
        members.append(Field(name, offset, codec))
        offset += codec.size
    align = max((member.codec.align for member in members), default=1)
    if hole := -offset % align:
        raise LayoutError(
            f"{cls.__name__} ends at byte {offset}, C would make it {offset + hole} bytes: "
            f"write `pad: ClassVar = zeros({hole})` at its end"
        )
    form = "".join(member.codec.form for member in members)
    made.__codec__ = Struct(  # type: ignore[attr-defined]
        cls.__name__, offset, align, form, type=made, fields=tuple(members)
    )
    return made


def codec_of(tp: object, where: str = "") -> Codec:
    """The codec that a type or annotation carries.

    :raises LayoutError: it carries none.
    """
    for extra in getattr(tp, "__metadata__", ()):
        if isinstance(extra, Codec):
            return extra
    if isinstance(tp, type):
        if isinstance(codec := vars(tp).get("__codec__"), Codec):
            return codec
        if tp is bytes:
            return raw(0)
    label = tp.__name__ if isinstance(tp, type) else repr(tp)
    hint = "say which: u8, u32, be16..." if tp is int else "@struct classes have, and types like u32 and addr"
    raise LayoutError(f"{where}{label} has no layout in memory ({hint})")


class Layout(Generic[T]):
    """Packs and unpacks one type; :func:`layout_of` makes it.

    ``pack``, ``unpack``, ``pack_many`` and ``unpack_many`` are functions made for the type: one call into
    the :mod:`struct` module per value, and no loop over fields. They raise :class:`LayoutError` for a
    value that the type cannot hold and for bytes of another size.
    """

    __slots__ = ("codec", "name", "pack", "pack_many", "size", "unpack", "unpack_many")

    pack: Callable[[T], bytes]
    unpack: Callable[[Buffer], T]
    pack_many: Callable[[Iterable[T]], bytes]
    unpack_many: Callable[[Buffer], list[T]]

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.name = codec.name
        self.size = codec.size

    def __getattr__(self, name: str) -> Any:
        """The functions are made when the first is asked for: of most maps only the sizes are."""
        made = _generate(self.codec) if name in Layout.__annotations__ else {}
        if name not in made:
            raise AttributeError(f"a layout has no {name!r}")
        for each in Layout.__annotations__:
            setattr(self, each, made[each])
        return made[name]

    @property
    def fields(self) -> tuple[Field, ...]:
        """The members and the padding of a struct, in order; nothing for other types."""
        return self.codec.fields if isinstance(self.codec, Struct) else ()

    def check(self, btf: Btf, type_id: int, where: str) -> None:
        """Compare with a C type.

        :param where: what the type is of (``"map 'kd_frontends', key"``).
        :raises LayoutError: they differ; the message shows both, side by side.
        """
        from k8sdatapath.layout.check import check

        check(self.codec, btf, type_id, where)

    def __repr__(self) -> str:
        return f"<Layout {self.name} {self.size} bytes>"


@overload
def layout_of(tp: type[T], *, size: int = ...) -> Layout[T]: ...
@overload
def layout_of(tp: object, *, size: int = ...) -> Layout[Any]: ...
def layout_of(tp: object, *, size: int = 0) -> Layout[Any]:
    """The layout of a @struct class, of a type like ``u32`` or ``addr``, or of ``bytes``.

    :param size: bytes per element of a map, for the types that can be of any size.
    """
    codec = codec_of(tp)
    return _layout(codec.sized(size) if size else codec)


@cache
def _layout(codec: Codec) -> Layout[Any]:
    return Layout(codec)


_SOURCE = """
def pack(value):
    try:
        return do_pack({put})
    except refusals as error:
        raise refuse(value, error) from None

def unpack(data):
    try:
        {items} = do_unpack(data)
    except struct_error:
        raise wrong_size(data) from None
    return {get}

def pack_many(values):
    values = values if isinstance(values, (list, tuple)) else list(values)
    try:
        return join([do_pack({put}) for value in values])
    except refusals:
        for value in values:
            pack(value)
        raise

def unpack_many(data):
    try:
        rows = iter_unpack(data)
    except struct_error:
        raise wrong_size(data) from None
    return [{get} for {items} in rows]
"""

# What packing raises for a value of the wrong type or size, before it is explained.
_REFUSALS = (_struct.error, AttributeError, OverflowError, TypeError, ValueError)


def _generate(codec: Codec) -> dict[str, Any]:
    """The functions of a layout, compiled for it."""
    names: dict[str, Any] = {}
    items: list[str] = []

    def call(function: object, arguments: str) -> str:
        names[f"f{len(names)}"] = function
        return f"f{len(names) - 1}({arguments})"

    def put(codec: Codec, value: str) -> list[str]:
        """The expressions that make the items of the format from what the expression ``value`` stands for."""
        if isinstance(codec, Zeros):
            return []
        if isinstance(codec, Struct):
            return [item for each in codec.fields for item in put(each.codec, f"{value}.{each.name}")]
        return [call(codec.encode, value) if codec.encode else value]

    def get(codec: Codec) -> str:
        """The expression that makes the value from the next items."""
        if isinstance(codec, Struct):
            members = [get(each.codec) for each in codec.fields if not isinstance(each.codec, Zeros)]
            return call(codec.type, ", ".join(members))
        items.append(f"i{len(items)}")
        return call(codec.decode, items[-1]) if codec.decode else items[-1]

    source = _SOURCE.format(put=", ".join(put(codec, "value")), get=get(codec), items=", ".join(items) + ",")
    machine = _struct.Struct("=" + codec.form)
    names.update(
        do_pack=machine.pack,
        do_unpack=machine.unpack,
        iter_unpack=machine.iter_unpack,
        join=b"".join,
        refusals=_REFUSALS,
        struct_error=_struct.error,
        refuse=partial(_refuse, codec),
        wrong_size=partial(_wrong_size, codec),
    )
    exec(source, names)
    return names


def _refuse(codec: Codec, value: object, error: Exception) -> LayoutError:
    """Which part of ``value`` does not fit, and why."""
    if isinstance(codec, Struct):
        if not isinstance(value, codec.type):
            return LayoutError(f"{value!r} is no {codec.name}")
        for member in codec.fields:
            if isinstance(member.codec, Zeros):
                continue
            try:
                _layout(member.codec).pack(getattr(value, member.name))
            except LayoutError as why:
                return LayoutError(f"{codec.name}.{member.name}: {why}")
    if isinstance(codec, Scalar):
        low, high = codec.bounds
        return LayoutError(f"{codec.name} holds whole numbers from {low} to {high}, not {value!r}")
    return LayoutError(f"{codec.name} cannot hold {value!r}: {error}")


def _wrong_size(codec: Codec, data: Buffer) -> LayoutError:
    return LayoutError(f"{codec.name} has {codec.size} bytes, not {memoryview(data).nbytes}")
