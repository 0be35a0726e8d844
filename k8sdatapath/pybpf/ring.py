"""The consumer's side of a ring buffer: its memory, and records out of it by the bufferful."""

from __future__ import annotations

import errno
import mmap
import threading

from k8sdatapath.errors import ClosedError
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib

__all__ = ["Ring"]

_HEADER = 8  # bytes before each record


class Ring:
    """A ring buffer's memory, mapped at the first use. Threads may share it.

    :param size: bytes of data, the map's ``max_entries``.
    """

    def __init__(self, fd: Fd, size: int) -> None:
        self._fd = fd
        self._size = size
        self._lock = threading.Lock()
        self._memory: tuple[mmap.mmap, mmap.mmap] | None = None
        self._closed = False

    def drain(self) -> tuple[bytes, list[int]]:
        """All records that are ready: their bytes one after the other, and the size of each."""
        with self._lock:
            consumer, producer = map(ffi.from_buffer, self._mapped())
            most = self._size // _HEADER
            out, sizes = _allocate("char[]", self._size), _allocate("uint32_t[]", most)
            data = producer + mmap.PAGESIZE
            count = lib.kd_ring_drain(consumer, producer, data, self._size, out, self._size, sizes, most)
            lengths = ffi.unpack(sizes, count)
            return bytes(ffi.buffer(out, sum(lengths))), lengths

    def drain_records(self, into: bytearray, size: int, written: int) -> int:
        """Move all records that are ready, and have this size, into a ring; the oldest are forgotten.

        :param into: room for a number of records. Record n, counted from the first ever, is at n modulo it.
        :param written: how many records have been moved there before.
        :returns: the same afterwards.
        """
        with self._lock:
            consumer, producer = map(ffi.from_buffer, self._mapped())
            count = ffi.new("uint64_t *", written)
            data, room = producer + mmap.PAGESIZE, ffi.from_buffer(into)
            lib.kd_ring_drain_records(
                consumer, producer, data, self._size, room, size, len(into) // size, count
            )
            return int(count[0])

    def close(self) -> None:
        """Unmap; idempotent."""
        with self._lock:
            self._closed = True
            memory, self._memory = self._memory, None
        for each in memory or ():
            each.close()

    def _mapped(self) -> tuple[mmap.mmap, mmap.mmap]:
        if self._closed:
            raise ClosedError(f"{self._fd.what} is closed")
        if self._memory is None:
            self._memory = self._map()
        return self._memory

    def _map(self) -> tuple[mmap.mmap, mmap.mmap]:
        """The consumer's page; the producer's page and after it the data, twice in a row."""
        page, number = mmap.PAGESIZE, self._fd.number
        try:
            consumer = mmap.mmap(number, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            size = page + 2 * self._size
            return consumer, mmap.mmap(number, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError as error:
            raise kernel_error(
                error.errno or errno.EIO, "map ring buffer into memory", self._fd.what
            ) from error


_allocate = ffi.new_allocator(should_clear_after_alloc=False)
