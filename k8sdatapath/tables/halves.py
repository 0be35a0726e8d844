"""The two halves of a flow in kd_conntrack, as packed bytes: which belong together, and what both say.

Half a million entries are looked through in columns, one field of all of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from k8sdatapath.layout import layout_of
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Tuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Columns", "Pair", "alone", "gather", "gone", "joined", "opposites", "pair", "says_answered"]

_KEY, _ROW = layout_of(Tuple), layout_of(ConntrackRow)
_PROTOCOL = next(field.offset for field in _KEY.fields if field.name == "protocol")
_AT = {field.name: field.offset for field in _ROW.fields}
_FLAGS, _LAST_SEEN = _AT["flags"] // 4, _AT["last_seen"] // 4  # in words
_REPLY, _SEEN_REPLY = int(FlowFlags.REPLY), int(FlowFlags.SEEN_REPLY)  # as bare numbers many times as fast
_ENDED, _ALONE = int(FlowFlags.ENDED), int(FlowFlags.ALONE)
_SEEN = slice(_AT["last_seen"], _AT["last_seen"] + 4)
_TO = slice(_AT["to"], _AT["to"] + _KEY.size)


@frozen
class Columns:
    """What tells how long entries may be silent: a sequence for each field, in the order of the entries."""

    protocols: bytearray
    flags: list[int]
    last_seen: list[int]

    @classmethod
    def of(cls, keys: bytearray, rows: bytearray) -> Columns:
        """Cut packed entries into columns."""
        words, size = memoryview(rows).cast("I"), _ROW.size // 4
        return cls(
            keys[_PROTOCOL :: _KEY.size],
            words[_FLAGS::size].tolist(),
            words[_LAST_SEEN::size].tolist(),
        )


@frozen
class Pair:
    """A flow: the key and the row of its original half and of its reply. A half that is lost is empty."""

    original_key: bytes
    original: bytes
    reply_key: bytes
    reply: bytes

    @property
    def protocol(self) -> int:
        """The number of the protocol."""
        return (self.original_key or self.reply_key)[_PROTOCOL]

    @property
    def flags(self) -> tuple[int, int]:
        """The flags of the halves (:class:`~k8sdatapath.tables.conntrack.FlowFlags`)."""
        return (
            _word(self.original, _FLAGS) if self.original else 0,
            _word(self.reply, _FLAGS) if self.reply else _REPLY,
        )

    @property
    def answered(self) -> bool:
        """Whether the backend has sent anything."""
        return bool(self.flags[0] & _SEEN_REPLY or (_last_seen(self.reply) and says_answered(self.flags[1])))

    @property
    def ended(self) -> bool:
        """Whether the flow is over already, and what is left is for answers on their way."""
        return bool(self.reply) and not self.original and bool(_word(self.reply, _FLAGS) & _ENDED)

    @property
    def last_seen(self) -> int:
        """When the last packet of either direction came; 0 if that is not known."""
        return max(_last_seen(self.original), _last_seen(self.reply))

    @property
    def silent(self) -> bytes:
        """``struct kd_silent``: which flow it is, and when each half has spoken."""
        keys = (key.ljust(_KEY.size, b"\0") for key in (self.original_key, self.reply_key))
        seen = (row[_SEEN].ljust(4, b"\0") for row in (self.original, self.reply))
        return b"".join((*keys, *seen))

    @property
    def packets(self) -> int:
        """Of both directions."""
        return sum(_ROW.unpack(row).packets for row in (self.original, self.reply) if row)

    @property
    def dialled(self) -> Tuple:
        """What the client sends."""
        return _KEY.unpack(self.original_key or _reversed(self.reply[_TO]))

    @property
    def translated(self) -> Tuple:
        """What becomes of it."""
        return _KEY.unpack(self.original[_TO] if self.original else _reversed(self.reply_key))

    def answer(self) -> tuple[Tuple, ConntrackRow]:
        """The reply that belongs to the original half, as it is when new (``kd_ct_answer()``)."""
        original = _ROW.unpack(self.original)
        flags = FlowFlags.REPLY | original.flags & FlowFlags.SOURCE
        row = ConntrackRow(
            _KEY.unpack(_reversed(self.original_key)), 0, 0, original.backend, 0, flags, original.service
        )
        return _KEY.unpack(_reversed(self.original[_TO])), row

    def question(self) -> tuple[Tuple, ConntrackRow]:
        """The original that belongs to a reply that was made alone (``kd_ct_complete()``)."""
        reply = _ROW.unpack(self.reply)
        to = _KEY.unpack(_reversed(self.reply_key))
        row = ConntrackRow(to, 0, 0, reply.backend, reply.last_seen, FlowFlags.SOURCE, reply.service)
        return _KEY.unpack(_reversed(self.reply[_TO])), row


def alone(rows: bytearray) -> list[int]:
    """Which rows are of replies that nobody has completed yet, as far as they say themselves."""
    flags = memoryview(rows).cast("I")[_FLAGS :: _ROW.size // 4].tolist()
    mask = _ALONE | _SEEN_REPLY | int(FlowFlags.GONE)
    return [index for index, each in enumerate(flags) if each & mask == _ALONE]


def says_answered(flags: int) -> bool:
    """Whether a half that has been seen is a reply that was given: one made alone was seen when asked."""
    return bool(flags & _REPLY) and flags & (_ALONE | _SEEN_REPLY) != _ALONE


def pair(key: bytes, row: bytes, other_key: bytes, other: bytes | None) -> Pair:
    """Join an entry with the one that stands where its other half should be (``kd_ct_same()``)."""
    is_reply = _word(row, _FLAGS) & _REPLY
    if not other or _reversed(other[_TO]) != key or (_word(other, _FLAGS) & _REPLY) == is_reply:
        other_key = other = b""
    return Pair(other_key, other, key, row) if is_reply else Pair(key, row, other_key, other)


def joined(keys: Buffer, rows: Buffer) -> Iterator[Pair]:
    """Every flow of a packed table, once."""
    packed_keys, packed_rows = bytes(keys), bytes(rows)
    table = {
        packed_keys[at * _KEY.size : (at + 1) * _KEY.size]: packed_rows[at * _ROW.size : (at + 1) * _ROW.size]
        for at in range(len(packed_keys) // _KEY.size)
    }
    claimed = set()
    for key, row in table.items():
        if not _word(row, _FLAGS) & _REPLY:
            other_key = _reversed(row[_TO])
            found = pair(key, row, other_key, table.get(other_key))
            claimed.add(found.reply_key)
            yield found
    for key, row in table.items():
        if _word(row, _FLAGS) & _REPLY and key not in claimed:
            yield pair(key, row, b"", None)


def gather(packed: Buffer, indexes: Iterable[int], size: int = _KEY.size) -> bytes:
    """Some of the packed keys, or of what else there is of a size."""
    view = memoryview(packed)
    return b"".join([view[index * size : (index + 1) * size] for index in indexes])


def gone(rows: bytearray) -> list[int]:
    """Which rows only say that there is none any more."""
    mark = int(FlowFlags.GONE)
    return [index for index, flags in enumerate(rows[_AT["flags"] :: _ROW.size]) if flags & mark]


def opposites(rows: Buffer) -> bytes:
    """The keys of the other halves of packed rows."""
    packed = bytes(rows)
    starts = range(_TO.start, len(packed), _ROW.size)
    return b"".join([_reversed(packed[at : at + _KEY.size]) for at in starts])


def _reversed(packed: bytes) -> bytes:
    """``kd_reversed()``: source and destination exchanged, addresses and ports."""
    return packed[16:32] + packed[:16] + packed[34:36] + packed[32:34] + packed[36:]


def _last_seen(row: bytes) -> int:
    return _word(row, _LAST_SEEN) if row else 0


def _word(row: bytes, index: int) -> int:
    return memoryview(row).cast("I")[index]
