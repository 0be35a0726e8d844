"""DnsStreams: messages of DNS out of the bytes of TCP connections, as the kernel tells them."""

from __future__ import annotations

from collections import OrderedDict

from attrs import Factory, define

from k8sdatapath.net.dns_message import unframed
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.dns import DnsFlags, DnsHeadRow

__all__ = ["DnsStreams"]

_MOST = 512
"""Connections that are followed at once; of more the oldest are forgotten."""
_MOST_AHEAD = 1 << 16
"""Bytes that may come before those in front of them."""
_NUMBERS = 1 << 32


@define
class _Half:
    """One direction.

    :ivar origin: sequence number of the first byte; likewise ``next``, of what is to come next.
    :ivar data: that is no whole message yet.
    :ivar ahead: what has overtaken others, by sequence number.
    """

    origin: int
    next: int
    data: bytes = b""
    ahead: dict[int, bytes] = Factory(dict)

    def take(self, seq: int, data: bytes) -> list[bytes]:
        """The messages that are complete with this."""
        self._put(seq, data)
        while (seq := next((each for each in self.ahead if self._past(each) >= 0), -1)) >= 0:
            self._put(seq, self.ahead.pop(seq))
        found, self.data = unframed(self.data)
        return found

    def _put(self, seq: int, data: bytes) -> None:
        past = self._past(seq)
        if past >= 0:
            self.data += data[past:]
            self.next = (self.next + max(0, len(data) - past)) % _NUMBERS
        elif past + _MOST_AHEAD > 0 and sum(map(len, self.ahead.values())) + len(data) <= _MOST_AHEAD:
            self.ahead[seq] = data

    def _past(self, seq: int) -> int:
        """How far a sequence number is behind what comes next; negative: it is ahead of it."""
        return (self.next - seq + _NUMBERS // 2) % _NUMBERS - _NUMBERS // 2


class DnsStreams:
    """Connections from their beginning on, each from who asks to who answers; of others nothing is known."""

    def __init__(self) -> None:
        self._halves: OrderedDict[Tuple, _Half] = OrderedDict()

    def take(self, head: DnsHeadRow, data: bytes) -> list[bytes]:
        """The messages that are complete with a record."""
        if head.flags & DnsFlags.OPENS:
            back = Tuple(head.way.dst, head.way.src, head.way.dport, head.way.sport, head.way.protocol)
            self._open(head.way, head.seq)
            self._open(back, head.ack)
        elif (half := self._halves.get(head.way)) is not None:
            return half.take(head.seq, data)
        return []

    def _open(self, way: Tuple, seq: int) -> None:
        known = self._halves.pop(way, None)
        self._halves[way] = known if known is not None and known.origin == seq else _Half(seq, seq)
        while len(self._halves) > 2 * _MOST:
            self._halves.popitem(last=False)
