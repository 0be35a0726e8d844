"""The consumer's side of a ring buffer: its memory, and records out of it by the bufferful."""

from __future__ import annotations

import mmap
import threading

from k8sdatapath.errors import ClosedError
from k8sdatapath.pybpf.calls import check
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib

__all__ = ["Ring"]

_HEADER = 8  # bytes before each record


class Ring:
    """A mapped ring buffer. One consumer takes records; several threads may share it.

    :param size: bytes of data, the map's ``max_entries``.
    """

    def __init__(self, fd: Fd, size: int) -> None:
        self._what = fd.what
        self._size = size
        self._lock = threading.Lock()
        self._memory: tuple[mmap.mmap, mmap.mmap] | None = None
        page = mmap.PAGESIZE
        consumer = self._map(fd, page, mmap.PROT_READ | mmap.PROT_WRITE, 0)
        try:
            # One page of the producer's, then the data, twice in a row.
            producer = self._map(fd, page + 2 * size, mmap.PROT_READ, page)
        except BaseException:
            consumer.close()
            raise
        self._memory = consumer, producer

    def drain(self) -> tuple[bytes, list[int]]:
        """All records that are ready: their bytes one after the other, and the size of each."""
        with self._lock:
            if self._memory is None:
                raise ClosedError(f"{self._what} is closed")
            consumer, producer = map(ffi.from_buffer, self._memory)
            most = self._size // _HEADER
            out, sizes = _allocate("char[]", self._size), _allocate("uint32_t[]", most)
            data = producer + mmap.PAGESIZE
            count = lib.kd_ring_drain(consumer, producer, data, self._size, out, self._size, sizes, most)
            check(count, "drain", self._what)
            lengths = ffi.unpack(sizes, count)
            return bytes(ffi.buffer(out, sum(lengths))), lengths

    def close(self) -> None:
        """Unmap; idempotent."""
        with self._lock:
            memory, self._memory = self._memory, None
        for each in memory or ():
            each.close()

    @staticmethod
    def _map(fd: Fd, size: int, access: int, offset: int) -> mmap.mmap:
        try:
            return mmap.mmap(fd.number, size, mmap.MAP_SHARED, access, offset=offset)
        except OSError as error:
            check(-(error.errno or 1), "map ring buffer into memory", fd.what)
            raise


_allocate = ffi.new_allocator(should_clear_after_alloc=False)
