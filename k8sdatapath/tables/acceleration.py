"""kd_accel_*: connections within a node whose sockets hand each other what they send."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address
from typing import Annotated, ClassVar

from k8sdatapath.layout import addr, array, be16, struct, u8, u16, u32, u64, zeros
from k8sdatapath.model import Accelerated, network
from k8sdatapath.tables.conntrack import Tuple

__all__ = ["AccelRuleKey", "AccelWay", "EndRow", "HeldRow", "PairRow"]

_MAPPED_BITS = 96
_PORT_BITS = 32


class AccelWay(IntEnum):
    """``enum kd_accel_way``: what becomes of messages and, if paired or refused, of connections."""

    HANDED = 0
    ALONE = 1
    POLICY = 2
    BEHIND = 3
    FULL = 4
    SHUT = 5
    PAIRED = 6
    REFUSED = 7
    SPECIAL = 8


@struct
class AccelRuleKey:
    """``struct kd_accel_rule_key``: the prefix counts bits of port and family, then of the mapped address."""

    prefixlen: u32
    port: be16
    ipv6: u16
    addr: addr

    @classmethod
    def of(cls, wanted: Accelerated) -> AccelRuleKey:
        """The key of a rule."""
        at = wanted.network
        mapped = _MAPPED_BITS if at.version == 4 else 0
        bits = _PORT_BITS + mapped + at.prefixlen
        return cls(bits, wanted.port or 0, at.version == 6, at.network_address)

    @property
    def wanted(self) -> Accelerated:
        """What the rule says."""
        mapped = _MAPPED_BITS if isinstance(self.addr, IPv4Address) else 0
        at = network(f"{self.addr}/{self.prefixlen - _PORT_BITS - mapped}")
        return Accelerated(at, self.port or None)


@struct
class HeldRow:
    """``struct kd_held``: which policies have allowed a connection, by which revisions."""

    policy: Annotated[tuple[int, ...], array(u32, 2)]
    revision: Annotated[tuple[int, ...], array(u32, 2)]


@struct
class EndRow:
    """``struct kd_accel_end``: one socket of a pair, and what it has sent."""

    cookie: u64
    netns: u64
    sock: u64
    messages: u64
    bytes: u64
    others: u64
    held: HeldRow
    asked: u32
    read: u32


@struct
class PairRow:
    """``struct kd_accel_pair``: the client's end, then the server's."""

    end: Annotated[tuple[EndRow, ...], array(EndRow, 2)]
    talk: Tuple
    dialled: addr
    dialled_port: be16
    translated: u8
    within: u8
    second: u8
    pad: ClassVar = zeros(3)
