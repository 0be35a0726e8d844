"""kd_begun: flows of datagrams to the world of which one has left, and at most one has come."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

from k8sdatapath.layout import addr, be16, layout_of, struct, u32, u64
from k8sdatapath.model import Protocol
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Tuple
from k8sdatapath.tables.frontends import NO_SERVICE

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BEGUN_PAIRS", "BegunPair", "BegunRow", "BegunUse", "find", "held"]

BEGUN_PAIRS = 1 << 15
"""``KD_BEGUN_PAIRS``: how many elements the map has where it is used; 128 bytes each."""


class BegunUse(IntEnum):
    """``enum kd_begun_use``."""

    FREE = 0
    WRITTEN = 1
    HELD = 2
    ANSWERED = 3
    LEAVING = 4


@struct
class BegunRow:
    """``struct kd_begun``: a flow with hardly a packet, in short. Its time is in seconds of CLOCK_MONOTONIC.

    :ivar state: ``union kd_begun_state``, on machines that write the lowest byte first.
    """

    state: u64
    remote: addr
    leaves_as: addr
    pod: addr
    remote_port: be16
    port: be16
    since: u32

    @property
    def use(self) -> BegunUse:
        """Whether there is a flow."""
        return BegunUse(self.state >> 48 & 0xFF)

    @property
    def entry(self) -> tuple[Tuple, ConntrackRow]:
        """The reply that it is in kd_conntrack once it is settled (``kd_begun_settle_row()``)."""
        answered = self.use == BegunUse.ANSWERED
        flags = FlowFlags.REPLY | FlowFlags.SOURCE | FlowFlags.ALONE
        row = ConntrackRow(
            Tuple(self.remote, self.pod, self.remote_port, self.port, Protocol.UDP),
            packets=1 + answered,
            bytes=self.state >> 32 & 0xFFFF,
            backend=0,
            last_seen=self.since,
            flags=flags | FlowFlags.SEEN_REPLY if answered else flags,
            service=NO_SERVICE,
            told=self.since if self.state >> 56 else 0,
        )
        return Tuple(self.remote, self.leaves_as, self.remote_port, self.port, Protocol.UDP), row


@struct
class BegunPair:
    """``struct kd_begun_pair``: two of them."""

    first: BegunRow
    second: BegunRow


_ROW, _KEY = layout_of(BegunRow), layout_of(Tuple)
_WORDS = _ROW.size // 8
_ENDS = 32  # bytes of both addresses, which a reply begins with, and a row has in this order as well


def held(rows: Buffer) -> Iterator[BegunRow]:
    """Those rows of the map's memory in which there is a flow, as long as it stays there."""
    memory = memoryview(rows).cast("B")
    before = memory.cast("Q")[::_WORDS].tolist()
    copied = bytes(memory)
    after = memory.cast("Q")[::_WORDS].tolist()
    for index, state in enumerate(before):
        if state >> 48 & 0xFF >= BegunUse.HELD and after[index] == state:
            yield _ROW.unpack(copied[index * _ROW.size : (index + 1) * _ROW.size])


def find(rows: Buffer, reply: Tuple) -> ConntrackRow | None:
    """What kd_conntrack would say of a reply, if its flow has only begun."""
    if _KEY.pack(reply)[:_ENDS] not in (copied := bytes(rows)):
        return None
    entries = (row.entry for row in held(copied))
    return next((entry for key, entry in entries if key == reply), None)
