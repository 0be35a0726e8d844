"""What all kinds of maps share: a kind with types, a descriptor, one owner."""

from __future__ import annotations

import errno
import operator
import re
from functools import cache
from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from attrs import evolve

from k8sdatapath.errors import ClosedError, ContractError, KernelError, LayoutError
from k8sdatapath.layout import Layout, layout_of
from k8sdatapath.layout.codecs import Codec
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.maps import KernelMap, MapInfo, MapType, create, info, kernel_btf
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.maps.memory import MemoryMap

__all__ = ["HasFileno", "Map", "handle"]

_NAME = re.compile(r"[A-Za-z0-9_.]*")  # the kernel's rule, and no NUL that would cut the name


class HasFileno(Protocol):
    """A socket, a program, a map: anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor's number."""


def handle(what: str, size: int) -> Layout[Any]:
    """Values that go in as things with a descriptor, and come out as the kernel's number for them."""
    return Layout(Codec(what, size, size, "I" if size == 4 else "Q", operator.methodcaller("fileno")))


class Map(Resource):
    """A map of any kind. ``Hash[FrontendKey, u32]`` is a kind with types: create one, or bind one to a map.

    Not typed, keys and values are bytes.
    """

    #: The kernel's kind of map; None fits any.
    TYPE: ClassVar[MapType | None] = None
    #: Flags that every map of the kind is created with.
    FLAGS: ClassVar[int] = 0
    #: What the parameters in brackets are, in order.
    PARAMETERS: ClassVar[tuple[str, ...]] = ("key_type", "value_type")

    key_type: ClassVar[Any] = bytes
    value_type: ClassVar[Any] = bytes

    def __class_getitem__(cls, types: Any) -> Any:
        types = types if isinstance(types, tuple) else (types,)
        if any(_is_generic(each) for each in types):  # in the definition of a generic class
            return GenericAlias(cls, types)
        if len(types) != len(cls.PARAMETERS):
            raise TypeError(f"{cls.__name__} takes {len(cls.PARAMETERS)} types, not {len(types)}")
        kind: Any = cls
        return _specialised(kind, types)

    def __init__(self, store: KernelMap | MemoryMap, *, owned: Fd | None = None) -> None:
        self._store = store
        self._owned = owned
        self._key = self._key_layout(store.info)
        self._value = self._value_layout(store.info)

    @classmethod
    def create(cls, name: str, max_entries: int, *, flags: int = 0) -> Self:
        """Create a map in the kernel; the caller owns it.

        :param name: letters, digits, ``_`` and ``.``; at most 15 characters are kept.
        :param flags: ``BPF_F_*`` beside those of the kind.
        :raises KernelError: a name or size that no map can have, or the kernel refuses.
        """
        return cls._create(cls._blank(name, max_entries, flags))

    @classmethod
    def _create(cls, plan: MapInfo, inner: Fd | None = None) -> Self:
        sizes = plan.key_size, plan.value_size
        fd = create(plan.type, plan.name, *sizes, plan.max_entries, flags=plan.flags, inner=inner)
        return cls(KernelMap(fd, info(fd)), owned=fd)

    @classmethod
    def _blank(cls, name: str, max_entries: int, flags: int) -> MapInfo:
        """The description of a map of this kind that is yet to be made."""
        unsized = cls._unsized(name, max_entries, flags)
        sizes = cls._key_layout(unsized).size, cls._item_layout(unsized).size
        if 0 in sizes:
            raise LayoutError(
                f"{cls.__name__} has no sizes: say what it holds, as in Hash[u32, u64], "
                "and for bytes as they are Annotated[bytes, raw(8)]"
            )
        return evolve(unsized, key_size=sizes[0], value_size=sizes[1])

    @classmethod
    def _unsized(cls, name: str, max_entries: int, flags: int) -> MapInfo:
        """The same without the sizes of its elements."""
        if cls.TYPE is None:
            raise LayoutError("a map of no kind cannot be created")
        if not _NAME.fullmatch(name):
            hint = "a map's name is made of ASCII letters, digits, '_' and '.'"
            raise KernelError("create map", repr(name), errno.EINVAL, hint)
        if not (isinstance(max_entries, int) and 0 <= max_entries < 1 << 32):
            raise KernelError("create map", name, errno.EINVAL, f"it cannot have {max_entries} entries")
        return MapInfo(cls.TYPE, 0, name[:15], 0, 0, max_entries, cls.FLAGS | flags)

    @classmethod
    def check(cls, about: MapInfo) -> None:
        """Compare this kind and its types with a map of the kernel.

        :raises LayoutError: they differ; the message shows how.
        """
        if cls.TYPE not in (None, about.type):
            kind = MapType(about.type).name if about.type in set(MapType) else about.type
            raise LayoutError(f"map {about.name!r} is of type {kind}, {cls.__name__} needs {cls.TYPE.name}")
        for what, layout, size, type_id in (
            ("key", cls._key_layout(about), about.key_size, about.btf_key_type_id),
            ("value", cls._item_layout(about), about.value_size, about.btf_value_type_id),
        ):
            if about.btf_id and type_id and f"{what}_type" in cls.PARAMETERS:
                layout.check(kernel_btf(about.btf_id), type_id, f"map {about.name!r}, {what}")
            if size and layout.size != size:
                raise LayoutError(
                    f"map {about.name!r}, {what}: {size} bytes in the kernel, {layout.size} in {layout.name}"
                )

    @classmethod
    def _key_layout(cls, about: MapInfo) -> Layout[Any]:
        return layout_of(cls.key_type, size=about.key_size)

    @classmethod
    def _item_layout(cls, about: MapInfo) -> Layout[Any]:
        """The layout of what the kernel calls a value; one item of it where there is one per CPU."""
        return layout_of(cls.value_type, size=about.value_size)

    @classmethod
    def _value_layout(cls, about: MapInfo) -> Layout[Any]:
        return cls._item_layout(about)

    @property
    def fd(self) -> Fd:
        """The descriptor.

        :raises ContractError: the map is kept in this process, no program can use it.
        """
        if not isinstance(self._store, KernelMap):
            raise ContractError(f"map {self.name!r} is in memory, the kernel does not know it")
        return self._store.fd

    def fileno(self) -> int:
        """The descriptor's number."""
        return self.fd.number

    @property
    def info(self) -> MapInfo:
        """Kind, sizes and flags."""
        return self._store.info

    @property
    def name(self) -> str:
        """The kernel's name of it, at most 15 characters."""
        return self._store.info.name

    @property
    def closed(self) -> bool:
        """Whether it was given up."""
        return self._store.closed

    def _capacity(self) -> int:
        if self.closed:
            raise ClosedError(f"map {self.name} is closed")
        return self.info.max_entries

    def close(self) -> None:
        """Give up the map, if it is one's own (created, or opened for one), and what was mapped of it."""
        self._store.close()
        if self._owned is not None:
            self._owned.close()

    def _summary(self) -> str:
        """What it holds and how much of it, for ``repr``."""
        return f"{self._key.name}->{self._value.name} {self.info.max_entries} entries"

    def __repr__(self) -> str:
        kind = next(each for each in type(self).__mro__ if "TYPE" in vars(each))
        state = "closed" if self.closed else self._summary()
        return f"<{kind.__name__} {self.name} {state}>"


def _is_generic(tp: Any) -> bool:
    return isinstance(tp, TypeVar) or bool(not isinstance(tp, type) and getattr(tp, "__parameters__", ()))


@cache
def _specialised(cls: Any, types: tuple[Any, ...]) -> type[Map]:
    """The subclass of a kind that knows the types of its elements."""
    names = ", ".join(each.__name__ if isinstance(each, type) else layout_of(each).name for each in types)
    members = dict(zip(cls.PARAMETERS, types, strict=True))
    return type(f"{cls.__name__}[{names}]", (cls,), {**members, "__module__": cls.__module__})
