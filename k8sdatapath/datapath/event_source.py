"""What programs have told and nobody has taken yet."""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock

from k8sdatapath import maps
from k8sdatapath.errors import ClosedError
from k8sdatapath.layout import layout_of
from k8sdatapath.pybpf import cpus
from k8sdatapath.pybpf.memory import wait_for_programs
from k8sdatapath.pybpf.ring import Queues
from k8sdatapath.tables.events import EVENT_SIZE, EVENT_TIME, EventRow, QueueRow

__all__ = ["EventSource"]

_ENDS = layout_of(QueueRow)
_WORDS = _ENDS.size // 8
_PLACE = {each.name: each.offset // 8 for each in _ENDS.fields}


class EventSource:
    """Events of all CPUs, by their time: of packets from a queue for each, of sockets from a ring buffer.

    The rows of the queues are dealt out to the CPUs that are online, and once more when another one has
    something to tell: all queues are emptied for that, and what is told meanwhile finds no room.

    There is one reader of the maps at a time.

    :ivar room: how many events the queue of a CPU holds.

    :param ring: ``kd_events``.
    :param queues: ``kd_event_queues``.
    :param rows: ``kd_event_rows``.
    """

    def __init__(
        self, ring: maps.RingBuffer[EventRow], queues: maps.Array[QueueRow], rows: maps.Array[EventRow]
    ) -> None:
        self._ring = ring
        self._lock = Lock()
        self._ends, self._rows = queues.view(), rows.view()
        numbers = self._ends.cast("Q")
        self._written, self._taken, self._shares, self._wanted = (
            numbers[_PLACE[name] :: _WORDS] for name in ("written", "taken", "share", "wanted")
        )
        self._size = len(rows)
        self._queues: Queues | None = self._over(self._ends)
        self._known = {cpu for cpu, share in enumerate(self._shares) if share}
        if self._are_apart():
            self.room = min(share & 0xFFFFFFFF for share in self._shares if share)
        else:  # nobody has read yet, or there were other rows: what is in those is lost
            self._take_back()
            self.room = self._deal(cpus.online())

    def fileno(self) -> int:
        """Readable when somebody should look."""
        return self._ring.fileno()

    def drain_into(self, room: bytearray, written: int) -> int:
        """Move all events into a ring of packed ones, see :meth:`~k8sdatapath.maps.RingBuffer.drain_into`."""
        with self._lock:
            if self._queues is None:
                raise ClosedError("the source of events is closed")
            written = self._ring.drain_into(room, written, self._queues)
            wanting = {cpu for cpu, wanted in enumerate(self._wanted) if wanted} - self._known
            if wanting:
                written = self._ring.drain_into(room, written, self._take_back())
                self.room = self._deal({*cpus.online(), *self._known, *wanting})
            return written

    def close(self) -> None:
        """Look at the maps' memory no more; does nothing the second time."""
        with self._lock:
            self._queues = None
            for each in (self._written, self._taken, self._shares, self._wanted, self._ends, self._rows):
                each.release()

    def _over(self, ends: memoryview) -> Queues:
        return Queues(ends, self._rows, len(ends) // _ENDS.size, EVENT_SIZE, EVENT_TIME)

    def _are_apart(self) -> bool:
        """Whether there are shares, and each row is in one at most."""
        ends = sorted((share >> 32, (share >> 32) + (share & 0xFFFFFFFF)) for share in self._shares if share)
        firsts = [first for first, _ in ends[1:]] + [self._size]
        return bool(ends) and all(end <= after for (_, end), after in zip(ends, firsts, strict=True))

    def _take_back(self) -> Queues:
        """All shares, from programs that may be writing; returns what is in them."""
        shares = self._shares.tolist()
        for cpu in range(len(shares)):
            self._shares[cpu] = 0
        if any(shares):
            wait_for_programs()
        left = memoryview(bytearray(self._ends))
        for cpu, share in enumerate(shares):
            left.cast("Q")[cpu * _WORDS + _PLACE["share"]] = share
        return self._over(left)

    def _deal(self, known: Collection[int]) -> int:
        """Give the rows to CPUs, the same share to each; returns how large it is."""
        self._known = {cpu for cpu in known if cpu < len(self._shares)}
        room = 1 << max(0, (self._size // max(1, len(self._known))).bit_length() - 1)
        firsts = range(0, self._size - room + 1, room)
        for cpu, first in zip(sorted(self._known), firsts, strict=False):
            self._taken[cpu] = self._written[cpu]
            self._wanted[cpu] = 0
            self._shares[cpu] = first << 32 | room
        return room
