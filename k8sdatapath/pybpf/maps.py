"""Map calls: keys and values as bytes, one at a time or in bulk, all bulk in one crossing."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from attrs import frozen

from k8sdatapath.pybpf import cpus
from k8sdatapath.pybpf.btf import Btf
from k8sdatapath.pybpf.calls import check, kernel_error
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "ANY",
    "EXIST",
    "MMAPABLE",
    "NOEXIST",
    "NO_PREALLOC",
    "KernelMap",
    "MapInfo",
    "MapType",
    "create",
    "info",
    "kernel_btf",
    "open_by_id",
    "possible_cpus",
]

ANY, NOEXIST, EXIST = 0, 1, 2  # flags of an update
NO_PREALLOC, MMAPABLE = 1 << 0, 1 << 10  # flags of a map

_CHUNK = 4096  # elements per call of a dump


class MapType(IntEnum):
    """What a map is; the kernel's BPF_MAP_TYPE_* numbers."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33


_PER_CPU = frozenset(
    {
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    }
)


@frozen
class MapInfo:
    """What the kernel knows of a map. BTF ids are 0 where a map has none."""

    type: int
    id: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    btf_id: int = 0
    btf_key_type_id: int = 0
    btf_value_type_id: int = 0

    @property
    def per_cpu(self) -> bool:
        """Whether each element has one value per CPU."""
        return self.type in _PER_CPU

    @property
    def stride(self) -> int:
        """Bytes that system calls move per value: more than its size where there is one per CPU."""
        return padded(self.value_size) * possible_cpus() if self.per_cpu else self.value_size


def padded(size: int) -> int:
    """The room that a value takes in a row of values: a multiple of 8."""
    return (size + 7) & ~7


def possible_cpus() -> int:
    """How many CPUs this machine can ever have: the length of a per-CPU value."""
    return len(cpus.possible())


def create(
    type: int,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    inner: Fd | None = None,
) -> Fd:
    """Create a map.

    :param inner: for a map of maps, a map like those it will hold.
    """
    inner_fd = inner.number if inner is not None else -1
    number = lib.kd_map_create(type, name.encode(), key_size, value_size, max_entries, flags, inner_fd)
    return Fd(check(number, "create map", name), f"map {name}")


def info(fd: Fd) -> MapInfo:
    """Ask the kernel about a map."""
    out = ffi.new("struct kd_map_info *")
    check(lib.kd_map_info(fd.number, out), "describe", fd.what)
    return MapInfo(
        out.type,
        out.id,
        ffi.string(out.name).decode(),
        out.key_size,
        out.value_size,
        out.max_entries,
        out.flags,
        out.btf_id,
        out.btf_key_type_id,
        out.btf_value_type_id,
    )


def open_by_id(id: int) -> Fd:
    """Open a map by its number; the caller owns the descriptor."""
    return Fd(check(lib.bpf_map_get_fd_by_id(id), "open map by id", str(id)), f"map {id}")


@lru_cache(maxsize=16)
def kernel_btf(id: int) -> Btf:
    """The BTF that the kernel holds under an id; ids are never given twice."""
    size = check(lib.kd_btf_read(id, ffi.NULL, 0), "read BTF", str(id))
    raw = bytearray(size)
    check(lib.kd_btf_read(id, ffi.from_buffer(raw), size), "read BTF", str(id))
    return Btf(bytes(raw))


class KernelMap:
    """The elements of a kernel map as bytes. Key and value sizes are the caller's duty.

    What is normal in an answer comes as a value: a missing element as None or False, a full map, an
    existing or a missing key as a negative errno of :meth:`update`. Anything else raises.
    """

    def __init__(self, fd: Fd, about: MapInfo) -> None:
        self.fd = fd
        self.info = about
        self._value_size = about.stride
        self._memory: mmap.mmap | None = None

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed."""
        return self.fd.closed

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key."""
        out = _allocate(_CHARS, self._value_size)
        result = lib.bpf_map_lookup_elem(self.fd.number, key, out)
        if result == 0:
            value: bytes = ffi.unpack(out, self._value_size)
            return value
        self._expect_absence(result, "look up in map")
        return None

    def take(self, key: bytes) -> bytes | None:
        """Remove a key and return its value, in one step where the kernel can."""
        out = _allocate(_CHARS, self._value_size)
        result = lib.bpf_map_lookup_and_delete_elem(self.fd.number, key, out)
        if result in _UNSUPPORTED:
            held = self.lookup(key)
            return held if held is not None and self.delete(key) else None
        if result == 0:
            value: bytes = ffi.unpack(out, self._value_size)
            return value
        self._expect_absence(result, "take from map")
        return None

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> int:
        """Write an element; 0 or a negative errno."""
        result: int = _update_elem(self.fd.raw, key, value, flags)
        if result == -errno.EBADF:
            _ = self.fd.number  # which tells that it is closed
        return result

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        result = lib.bpf_map_delete_elem(self.fd.number, key)
        if result == -errno.ENOENT:
            return False
        check(result, "delete from map", self.info.name)
        return True

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after ``key``, or the first."""
        out = _allocate(_CHARS, self.info.key_size)
        result = lib.bpf_map_get_next_key(self.fd.number, ffi.NULL if key is None else key, out)
        if result == 0:
            value: bytes = ffi.unpack(out, self.info.key_size)
            return value
        self._expect_absence(result, "walk map")
        return None

    def update_many(self, keys: Buffer, values: Buffer, count: int, flags: int = ANY) -> tuple[int, int]:
        """Write elements; 0 or a negative errno, and how many were written."""
        done = ffi.new("uint32_t *")
        result = lib.kd_map_update_many(
            self.fd.number,
            ffi.from_buffer(keys),
            self.info.key_size,
            ffi.from_buffer(values),
            self._value_size,
            count,
            flags,
            done,
        )
        return result, done[0]

    def delete_many(self, keys: Buffer, count: int) -> int:
        """Remove keys; how many of them were there."""
        deleted = ffi.new("uint32_t *")
        result = lib.kd_map_delete_many(
            self.fd.number, ffi.from_buffer(keys), self.info.key_size, count, deleted
        )
        check(result, "delete from map", self.info.name)
        return int(deleted[0])

    def lookup_many(self, keys: Buffer, count: int) -> tuple[bytearray, bytearray]:
        """The values of keys, and for each whether it was there."""
        values, found = bytearray(count * self._value_size), bytearray(count)
        result = lib.kd_map_lookup_many(
            self.fd.number,
            ffi.from_buffer(keys),
            self.info.key_size,
            count,
            ffi.from_buffer(values),
            self._value_size,
            ffi.from_buffer(found),
        )
        check(result, "look up in map", self.info.name)
        return values, found

    def dump(self, *, values: bool = True) -> Iterator[tuple[memoryview, memoryview, int]]:
        """All elements in chunks of ``(keys, values, count)``; each chunk is valid until the next.

        Without ``values`` these are empty. Elements that come and go meanwhile may be missed or met.
        """
        key_size, value_size = self.info.key_size, self._value_size if values else 0
        room = min(_CHUNK, max(self.info.max_entries, 1))
        token, first, met = ffi.new("char[]", max(key_size, 4)), True, 0
        count = ffi.new("uint32_t *")
        key_room, value_room = bytearray(room * key_size), bytearray(room * value_size)
        # A walk begins anew when its key is deleted under it; the bound keeps it from going on for ever.
        while met <= 2 * self.info.max_entries:
            count[0] = room
            into = ffi.from_buffer(value_room) if values else ffi.NULL
            result = lib.kd_map_dump(
                self.fd.number, first, token, ffi.from_buffer(key_room), key_size, into, value_size, count
            )
            if result == -errno.ENOSPC:
                room *= 2
                key_room, value_room = bytearray(room * key_size), bytearray(room * value_size)
                continue
            check(result, "read map", self.info.name)
            first, met, got = False, met + count[0], count[0]
            if got:
                yield memoryview(key_room)[: got * key_size], memoryview(value_room)[: got * value_size], got
            if result:
                return

    def memory(self) -> memoryview:
        """The values of a :data:`MMAPABLE` array, writable, as programs see them."""
        size = padded(self.info.value_size) * self.info.max_entries
        if self._memory is None:
            try:
                self._memory = mmap.mmap(self.fd.number, size)
            except OSError as error:
                raise kernel_error(error.errno or errno.EIO, "map into memory", self.info.name) from error
        return memoryview(self._memory)[:size]

    def close(self) -> None:
        """Give the memory back, once nothing looks at it any more; the descriptor is its owner's."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with suppress(
                BufferError
            ):  # somebody still holds a view: the last one to go takes the mapping along
                memory.close()

    def _expect_absence(self, result: int, op: str) -> None:
        if result != -errno.ENOENT:
            check(result, op, self.info.name)


_CHARS = ffi.typeof("char[]")
_allocate = ffi.new_allocator(should_clear_after_alloc=False)
_update_elem = lib.bpf_map_update_elem  # found once: this call is what a single write consists of
_UNSUPPORTED = frozenset({-524, -errno.EOPNOTSUPP, -errno.EINVAL})
