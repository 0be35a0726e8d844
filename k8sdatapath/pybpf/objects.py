"""A BPF object file as libbpf sees it: opened, inspected, adjusted, loaded.

:class:`OpenObject` wraps one ``struct bpf_object`` and lives only for the length of a load: what it leaves
behind are duplicated descriptors, so that nobody but their owner decides when a map or program goes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import Any

from attrs import frozen

from k8sdatapath.errors import (
    ClosedError,
    DatapathError,
    KernelError,
    ObjectError,
    PermissionDeniedError,
    VerifierError,
    near_misses,
)
from k8sdatapath.pybpf import logs
from k8sdatapath.pybpf.calls import check, kernel_error
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib
from k8sdatapath.resource import Resource

_LIBBPF_ERRORS = 4000  # numbers above are libbpf's own, not errno

#: Sections that libbpf 1.1 does not know: section -> (program type, expected attach type).
_NEWER_SECTIONS = {"netfilter": (32, 45), "sk_skb/verdict": (14, 38)}


@frozen
class MapDef:
    """A map as the object declares it."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    @property
    def internal(self) -> bool:
        """Whether it holds a data section (``.rodata``, ``.bss``) and not a map of the source."""
        return "." in self.name


@frozen
class ProgramDef:
    """A program as the object declares it."""

    name: str
    section: str
    type: int
    expected_attach_type: int


class OpenObject(Resource):
    """An object file, opened but not yet loaded. Use as a context manager.

    :raises ObjectError: the bytes are no BPF object.
    """

    def __init__(self, image: bytes, name: str) -> None:
        self.name = name
        self._image = ffi.from_buffer(image)  # libbpf reads from it until close
        logs.start()
        self._handle: Any = lib.kd_object_open(self._image, len(image), name.encode())
        said = logs.take()
        if self._handle == ffi.NULL:
            number = ffi.errno
            why = logs.last_line(said) or logs.error_text(number)
            raise ObjectError(f"{name} is not a usable BPF object: {why}")
        self._maps = {
            _text(lib.bpf_map__name(handle)): handle for handle in self._each(lib.bpf_object__next_map)
        }
        self._programs = {
            _text(lib.bpf_program__name(handle)): handle
            for handle in self._each(lib.bpf_object__next_program)
        }
        for handle in self._programs.values():
            kind = _NEWER_SECTIONS.get(_text(lib.bpf_program__section_name(handle)))
            if kind is not None and lib.bpf_program__type(handle) == 0:
                lib.bpf_program__set_type(handle, kind[0])
                lib.bpf_program__set_expected_attach_type(handle, kind[1])

    def _each(self, following: Any) -> list[Any]:
        found, handle = [], following(self._open, ffi.NULL)
        while handle != ffi.NULL:
            found.append(handle)
            handle = following(self._open, handle)
        return found

    @property
    def _open(self) -> Any:
        if self._handle == ffi.NULL:
            raise ClosedError(f"object {self.name} is closed")
        return self._handle

    @property
    def maps(self) -> dict[str, MapDef]:
        """The maps by name, data sections included."""
        return {
            name: MapDef(
                name,
                lib.bpf_map__type(handle),
                lib.bpf_map__key_size(handle),
                lib.bpf_map__value_size(handle),
                lib.bpf_map__max_entries(handle),
                lib.bpf_map__map_flags(handle),
            )
            for name, handle in self._maps.items()
        }

    @property
    def programs(self) -> dict[str, ProgramDef]:
        """The programs by name."""
        return {
            name: ProgramDef(
                name,
                _text(lib.bpf_program__section_name(handle)),
                lib.bpf_program__type(handle),
                lib.bpf_program__expected_attach_type(handle),
            )
            for name, handle in self._programs.items()
        }

    @property
    def btf(self) -> bytes:
        """The raw BTF of the object; empty if it was compiled without ``-g``."""
        btf = lib.bpf_object__btf(self._open)
        if btf == ffi.NULL:
            return b""
        size = ffi.new("uint32_t *")
        data = lib.btf__raw_data(btf, size)
        return bytes(ffi.buffer(data, size[0]))

    def section(self, name: str) -> bytes:
        """The initial bytes of a data section such as ``.rodata.config``."""
        size = ffi.new("size_t *")
        data = lib.bpf_map__initial_value(self._maps[name], size)
        return bytes(ffi.buffer(data, size[0])) if data != ffi.NULL else b""

    def set_section(self, name: str, data: bytes) -> None:
        """Replace the initial bytes of a data section; the length must stay."""
        check(lib.bpf_map__set_initial_value(self._maps[name], data, len(data)), "set data section", name)

    def set_max_entries(self, name: str, count: int) -> None:
        """Change a map's size before it is created."""
        check(lib.bpf_map__set_max_entries(self._maps[name], count), "size map", name)

    def reuse(self, name: str, fd: int) -> None:
        """Use an existing map instead of creating one."""
        check(lib.bpf_map__reuse_fd(self._maps[name], fd), "reuse map", name)

    def load(self, programs: Collection[str] | None = None) -> None:
        """Create the maps and load the programs.

        :param programs: these alone.
        :raises ObjectError: there is none of such a name.
        :raises VerifierError: a program was rejected; carries the whole log.
        :raises PermissionDeniedError: the process may not use BPF.
        """
        if programs is not None:
            self._load_only(programs)
        logs.start()
        result = lib.bpf_object__load(self._open)
        said = logs.take()
        if result < 0:
            raise _load_error(self.name, -result, said)

    def _load_only(self, wanted: Collection[str]) -> None:
        for name in wanted:
            if name not in self._programs:
                raise ObjectError(f"{self.name} has no program {name!r}: {near_misses(name, self._programs)}")
        for name in self._programs.keys() - wanted:
            handle = self._programs.pop(name)
            check(lib.bpf_program__set_autoload(handle, False), "leave out program", name)

    def map_fd(self, name: str) -> Fd:
        """A descriptor of a loaded map, owned by the caller."""
        return self._dup(lib.bpf_map__fd(self._maps[name]), f"map {name}")

    def program_fd(self, name: str) -> Fd:
        """A descriptor of a loaded program, owned by the caller."""
        return self._dup(lib.bpf_program__fd(self._programs[name]), f"program {name}")

    def _dup(self, number: int, what: str) -> Fd:
        return Fd(os.dup(check(number, f"take {what} of {self.name}")), what)

    def close(self) -> None:
        """Release what libbpf holds; descriptors taken before live on."""
        handle, self._handle = self._handle, ffi.NULL
        if handle != ffi.NULL:
            lib.bpf_object__close(handle)


def _text(chars: Any) -> str:
    return ffi.string(chars).decode()  # type: ignore[no-any-return]


def _load_error(name: str, number: int, said: str) -> DatapathError:
    rejected = logs.rejected_program(said)
    if rejected is not None and rejected[1].strip():
        return VerifierError(*rejected, number)
    if number > _LIBBPF_ERRORS:
        return ObjectError(f"{name} cannot be loaded: {logs.last_line(said) or logs.error_text(number)}")
    error = kernel_error(number, "load object", name)
    if isinstance(error, PermissionDeniedError) or not said:
        return error
    if number in (errno.ESRCH, errno.ENOENT, errno.EINVAL):
        return KernelError("load object", name, number, logs.last_line(said))
    return error
