"""Objects: a compiled BPF file as a value, and what it becomes when loaded.

An :class:`ObjectSpec` is bytes and a few overrides; it can be read, copied, printed and compared without a
kernel. :meth:`ObjectSpec.load` makes live things of it, as often as one likes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from functools import lru_cache
from importlib.resources import files
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, field, frozen

from k8sdatapath.errors import ClosedError, LayoutError, ObjectError, near_misses
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.maps import Map
    from k8sdatapath.pins import PinDir
    from k8sdatapath.programs import Program
    from k8sdatapath.pybpf.btf import Btf
    from k8sdatapath.pybpf.objects import MapDef, OpenObject, ProgramDef

M = TypeVar("M", bound="Map")
P = TypeVar("P", bound="Program")

ConfigValue = bool | int | bytes | IPv4Address | IPv6Address | IPv4Network | IPv6Network

_CONFIG_SECTION = ".rodata.config"
_SUFFIX = ".bpf.o"


@frozen
class ConfigDef:
    """A constant of the object that can be set before loading (``KD_CONFIG`` in C)."""

    name: str
    offset: int
    size: int
    type: str
    doc: str


@frozen
class ObjectSpec:
    """A BPF object and how it is to be loaded. A value: every ``with_...`` returns another one.

    :ivar name: for messages.
    :ivar image: the ELF file.
    """

    name: str
    image: bytes = field(repr=lambda image: f"<{len(image)} bytes>")
    _config: Mapping[str, ConfigValue] = field(factory=dict, alias="config_values")
    _max_entries: Mapping[str, int] = field(factory=dict, alias="max_entries")

    @classmethod
    def from_file(cls, file: str | Path) -> ObjectSpec:
        """Read an object: a path, or the bare name of one that this package ships (``"pod"``).

        Objects are trusted input, like any code to run in the kernel: a damaged one can crash libbpf, and
        with it the process, before it can be refused.

        :raises ObjectError: there is no such file or no such shipped object.
        """
        path = Path(file)
        if path.suffix or path.parent != Path():
            try:
                return cls(path.name.removesuffix(_SUFFIX), path.read_bytes())
            except OSError as error:
                raise ObjectError(f"cannot read BPF object {path}: {error.strerror}") from error
        shipped = shipped_objects()
        if str(file) not in shipped:
            raise ObjectError(f"no object {str(file)!r} is shipped: {near_misses(str(file), shipped)}")
        return cls(str(file), (files("k8sdatapath") / "_objects" / f"{file}{_SUFFIX}").read_bytes())

    @classmethod
    def from_bytes(cls, image: bytes, *, name: str = "object") -> ObjectSpec:
        """Take an object from memory; it has to be trusted, as in :meth:`from_file`."""
        return cls(name, bytes(image))

    @property
    def maps(self) -> dict[str, MapDef]:
        """The maps that the source declares, with the sizes they will get."""
        declared = _contents(self.name, self.image).maps
        sized = {name: evolve(declared[name], max_entries=size) for name, size in self._max_entries.items()}
        return {name: each for name, each in (declared | sized).items() if not each.internal}

    @property
    def programs(self) -> dict[str, ProgramDef]:
        """The programs by name."""
        return dict(_contents(self.name, self.image).programs)

    @property
    def config(self) -> dict[str, ConfigDef]:
        """What :meth:`with_config` can set."""
        return dict(_contents(self.name, self.image).config)

    @property
    def btf(self) -> Btf:
        """The types of the object.

        :raises ObjectError: it was compiled without ``-g``.
        """
        btf = _contents(self.name, self.image).btf
        if btf is None:
            raise ObjectError(f"{self.name} has no BTF: compile it with -g")
        return btf

    def with_config(self, **values: ConfigValue) -> ObjectSpec:
        """Set constants by name. The verifier sees them, so what is switched off costs nothing.

        :raises ObjectError: no such constant, or a value that does not fit it.
        """
        config = self.config
        for name, value in values.items():
            if name not in config:
                raise ObjectError(f"{self.name} has no config {name!r}: {near_misses(name, config)}")
            _pack(config[name], value)
        return evolve(self, config_values={**self._config, **values})

    def with_maps(self, **max_entries: int) -> ObjectSpec:
        """Set the sizes of maps that will be created.

        :raises ObjectError: no such map, or a size that cannot be.
        """
        maps = self.maps
        for name, count in max_entries.items():
            if name not in maps:
                raise ObjectError(f"{self.name} has no map {name!r}: {near_misses(name, maps)}")
            if not (isinstance(count, int) and 0 < count < 1 << 32):
                raise ObjectError(f"map {name!r} cannot have {count} entries")
        return evolve(self, max_entries={**self._max_entries, **max_entries})

    def load(
        self,
        *,
        reuse: Mapping[str, Map] | None = None,
        pins: PinDir | None = None,
        programs: Collection[str] | None = None,
    ) -> Object:
        """Create the maps and load the programs.

        :param reuse: maps to use instead of creating those of the same names; other names are ignored.
        :param programs: these alone; :meth:`Object.load_programs` loads others later.
        :param pins: use the maps pinned there, and pin there what had to be created.
        :raises VerifierError: a program was rejected.
        :raises LayoutError: a map to reuse has another type, key or value size.
        :raises PermissionDeniedError: the process may not use BPF.
        :raises BpffsError: the pins cannot be used or made. Those of a load that failed are taken back.
        """
        with pins.restored_on_error() if pins is not None else nullcontext():
            return self._load(reuse or {}, pins, programs)

    def _load(
        self, reuse: Mapping[str, Map], pins: PinDir | None, programs: Collection[str] | None
    ) -> Object:
        from k8sdatapath.pybpf.objects import OpenObject

        with ExitStack() as borrowed, OpenObject(self.image, self.name) as opened:
            self._configure(opened)
            shared = {name: entry.fd for name, entry in reuse.items()}
            if pins is not None:
                for name in pins.create().maps:
                    if name in opened.maps and name not in shared:
                        shared[name] = borrowed.enter_context(pins.open_map(name))
            for name in opened.maps:
                if name in shared:
                    self.check_map(name, shared[name])
                    opened.reuse(name, shared[name].number)
            opened.load(programs)
            loaded = _take(self, opened)
        if pins is not None:
            loaded.pin_maps(pins, loaded.map_fds.keys() - shared.keys())
        return loaded

    def _configure(self, opened: OpenObject) -> None:
        for name, count in self._max_entries.items():
            opened.set_max_entries(name, count)
        if self._config:
            section = bytearray(opened.section(_CONFIG_SECTION))
            for name, value in self._config.items():
                constant = self.config[name]
                section[constant.offset : constant.offset + constant.size] = _pack(constant, value)
            opened.set_section(_CONFIG_SECTION, bytes(section))

    def check_map(self, name: str, fd: Fd) -> None:
        """See whether a map is what the object declares, down to the members of keys and values.

        Its size does not count.

        :raises LayoutError: it is not; the message shows both.
        """
        from k8sdatapath.layout.compare import compare, types_of_map
        from k8sdatapath.pybpf import maps

        known = _contents(self.name, self.image)
        declared, info = known.maps[name], maps.info(fd)
        want = (declared.type, declared.key_size, declared.value_size, declared.flags)
        have = (info.type, info.key_size, info.value_size, info.flags)
        names = ("type", "key size", "value size", "flags")
        apart = [f"{n} {h} instead of {w}" for n, w, h in zip(names, want, have, strict=True) if w != h]
        tables = ""
        if info.btf_id and known.btf is not None:
            there, ours = maps.kernel_btf(info.btf_id), types_of_map(known.btf, name)
            for what, its in (("key", info.btf_key_type_id), ("value", info.btf_value_type_id)):
                if its and what in ours and (shown := compare(there, its, known.btf, ours[what])):
                    apart.append(f"another layout of its {what}")
                    tables += "\n" + shown
        if apart:
            raise LayoutError(
                f"{fd.what} cannot serve as {name!r} of {self.name}: {', '.join(apart)}. It was made "
                "by another version: remove its pin, or load into another pin directory. Until then what is "
                f"pinned runs on as it is.{tables}"
            )

    def __hash__(self) -> int:
        return hash((self.name, self.image))

    def __repr__(self) -> str:
        return f"<ObjectSpec {self.name} maps={len(self.maps)} programs={len(self.programs)}>"


class Object(Resource):
    """A loaded object: it owns its maps and programs until :meth:`close`.

    Programs that are attached, and maps that are pinned or in use, live on in the kernel.
    """

    def __init__(self, spec: ObjectSpec, map_fds: dict[str, Fd], program_fds: dict[str, Fd]) -> None:
        self.spec = spec
        self.map_fds = map_fds
        self.program_fds = program_fds
        self._closed = False

    def map(self, name: str, kind: type[M]) -> M:
        """A typed view of a map, e.g. ``obj.map("kd_backends", maps.Array[Backend])``.

        Sizes and, where the kernel has BTF for the map, every field are checked here, once.

        :raises ObjectError: no such map.
        :raises LayoutError: ``kind`` is not what the map holds.
        """
        from k8sdatapath import maps

        return maps.bind(kind, self._find(self.map_fds, name, "map"))

    def program(self, name: str, kind: type[P]) -> P:
        """A program as its kind, e.g. ``obj.program("from_pod", programs.TC)``.

        :raises ObjectError: no such program, or it is of another kind.
        """
        fd = self._find(self.program_fds, name, "program")
        return kind(fd, self.spec.programs[name])

    def load_programs(self, *names: str) -> None:
        """Load programs that were left out, over the same maps. Several threads may do so, each with others.

        :raises ObjectError: there is none of such a name, or the object has variables: they would be others'.
        :raises VerifierError: one was rejected; none of them is there then.
        """
        if self._closed:
            raise ClosedError(f"object {self.spec.name} is closed")
        for name, definition in _contents(self.spec.name, self.spec.image).maps.items():
            if definition.internal and "rodata" not in name:
                raise ObjectError(f"programs of {self.spec.name} are to be loaded at once: they share {name}")
        from k8sdatapath.pybpf.objects import OpenObject

        with OpenObject(self.spec.image, self.spec.name) as opened, ExitStack() as undo:
            self.spec._configure(opened)
            for name, fd in self.map_fds.items():
                opened.reuse(name, fd.number)
            opened.load(names)
            loaded = {name: undo.enter_context(opened.program_fd(name)) for name in opened.programs}
            undo.pop_all()
            self.program_fds |= loaded

    def pin_maps(self, pins: PinDir, names: Iterable[str]) -> None:
        """Pin maps by their names: all of them, or none and the object is closed.

        :raises BpffsError: one cannot be pinned.
        """
        with ExitStack() as undo:
            undo.callback(self.close)
            for name in names:
                path = pins.map_path(name)
                pins.pin(self.map_fds[name], path)
                undo.callback(path.unlink)
            undo.pop_all()

    def _find(self, fds: dict[str, Fd], name: str, what: str) -> Fd:
        if self._closed:
            raise ClosedError(f"object {self.spec.name} is closed")
        if name not in fds:
            raise ObjectError(f"{self.spec.name} has no {what} {name!r}: {near_misses(name, fds)}")
        return fds[name]

    @property
    def maps(self) -> dict[str, Map]:
        """All maps, each in its own kind, keys and values as bytes."""
        from k8sdatapath import maps

        return {name: maps.bind_untyped(fd) for name, fd in self.map_fds.items()}

    @property
    def programs(self) -> dict[str, Program]:
        """All programs, able to run but not to attach: ask :meth:`program` for a kind."""
        from k8sdatapath.programs import Program

        return {name: self.program(name, Program) for name in self.program_fds}

    def close(self) -> None:
        """Close every descriptor; idempotent."""
        self._closed = True
        for fd in (*self.map_fds.values(), *self.program_fds.values()):
            fd.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<Object {self.spec.name} maps={len(self.map_fds)} programs={len(self.program_fds)}{state}>"


def live_config(link: Fd) -> dict[str, bytes]:
    """The constants that the program of a link was loaded with, as the kernel has them."""
    from k8sdatapath.maps import Array, bind
    from k8sdatapath.pybpf import links, maps, progs

    with progs.open_by_id(links.info(link).program_id) as program:
        ids = progs.map_ids(program)
    for each in ids:
        with maps.open_by_id(each) as fd:
            about = maps.info(fd)
            if not (about.btf_id and about.btf_value_type_id):
                continue
            btf = maps.kernel_btf(about.btf_id)
            if btf.type(about.btf_value_type_id).name == _CONFIG_SECTION:
                data = bind(Array, fd)[0]
                found = btf.datasec(_CONFIG_SECTION)
                return {var.name: data[var.offset : var.offset + var.size] for var in found}
    return {}


def shipped_objects() -> list[str]:
    """Names of the objects in this package."""
    folder = files("k8sdatapath") / "_objects"
    if not folder.is_dir():
        return []
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)
    )


@frozen
class _Contents:
    maps: dict[str, MapDef]
    programs: dict[str, ProgramDef]
    config: dict[str, ConfigDef]
    btf: Btf | None


@lru_cache(maxsize=64)
def _contents(name: str, image: bytes) -> _Contents:
    from k8sdatapath.pybpf.btf import Btf
    from k8sdatapath.pybpf.objects import OpenObject

    with OpenObject(image, name) as opened:
        btf = Btf(opened.btf) if opened.btf else None
        return _Contents(opened.maps, opened.programs, dict(_config(btf)) if btf else {}, btf)


def _config(btf: Btf) -> Iterator[tuple[str, ConfigDef]]:
    for var in btf.datasec(_CONFIG_SECTION):
        doc = "; ".join(btf.decl_tags(var.id))
        yield (
            var.name,
            ConfigDef(
                var.name, var.offset, var.size, btf.describe(var.type_id).removeprefix("const volatile "), doc
            ),
        )


def _pack(constant: ConfigDef, value: Any) -> bytes:
    """A config value in the kernel's layout.

    An address takes 16 bytes, IPv4 mapped; a network is its address and its mask. Bytes are as they are.
    """
    import sys

    if isinstance(value, bytes) and len(value) == constant.size:
        return value
    if isinstance(value, IPv4Address | IPv6Address):
        packed = value.packed if value.version == 6 else bytes(10) + b"\xff\xff" + value.packed
        if len(packed) == constant.size:
            return packed
    elif isinstance(value, IPv4Network | IPv6Network):
        fill = bytes(10) + b"\xff\xff", b"\xff" * 12
        parts = value.network_address.packed, value.netmask.packed
        packed = b"".join(f + p if value.version == 4 else p for f, p in zip(fill, parts, strict=True))
        if len(packed) == constant.size:
            return packed
    elif isinstance(value, int):
        try:
            return int(value).to_bytes(constant.size, sys.byteorder, signed=value < 0)
        except OverflowError:
            pass
    raise ObjectError(
        f"config {constant.name!r} is a {constant.type} of {constant.size} bytes; {value!r} does not fit"
    )


def _take(spec: ObjectSpec, opened: OpenObject) -> Object:
    """Duplicate the descriptors of a loaded object, so that they outlive libbpf's handle; all or none."""
    with ExitStack() as undo:
        maps = {
            name: undo.enter_context(opened.map_fd(name))
            for name, definition in opened.maps.items()
            if not definition.internal
        }
        programs = {name: undo.enter_context(opened.program_fd(name)) for name in opened.programs}
        undo.pop_all()
        return Object(spec, maps, programs)


__all__ = ["ConfigDef", "Object", "ObjectSpec", "shipped_objects"]
