"""The consumer's side of a ring buffer: its memory, and records out of it by the bufferful."""

from __future__ import annotations

import errno
import mmap
import threading

from attrs import frozen

from k8sdatapath.errors import ClosedError
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib

__all__ = ["Queues", "Ring"]

_HEADER = 8  # bytes before each record


@frozen
class Queues:
    """Queues of records in memory that programs share: ``struct kd_queue`` in turn, and their rows.

    :ivar ends: as many as there are queues.
    :ivar rows: for each queue after the other, as many records as it has room for.
    :ivar count: how many queues.
    :ivar size: of a record, a multiple of 8.
    :ivar time_at: where in a record its time is, by which they are merged.
    """

    ends: memoryview
    rows: memoryview
    count: int
    size: int
    time_at: int


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

    def drain_merged(self, queues: Queues, into: bytearray, written: int) -> int:
        """Move all records that are ready, here and in queues, into a ring, by their time.

        :param queues: those beside it. What is here and has another size is passed over.
        :param into: room for a number of records, of which the oldest are forgotten. Record n, counted from
            the first ever, is at n modulo it.
        :param written: how many records have been moved there before.
        :returns: the same afterwards.
        """
        with self._lock:
            consumer, producer = map(ffi.from_buffer, self._mapped())
            cursors = ffi.new("struct kd_cursor[]", queues.count)
            ends, rows = ffi.from_buffer("struct kd_queue[]", queues.ends), ffi.from_buffer(queues.rows)
            data = producer + mmap.PAGESIZE
            sizes = (self._size, queues.size, queues.time_at, queues.count)
            of = ffi.new("struct kd_merged *", (consumer, producer, data, *sizes, ends, rows, cursors))
            return int(lib.kd_merged_drain(of, ffi.from_buffer(into), len(into) // queues.size, written))

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
