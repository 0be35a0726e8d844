"""kd_masq_devices, kd_masq_rules and kd_masq_empty: which flows of pods leave under another address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from k8sdatapath.layout import addr, struct, u16, u32, u64
from k8sdatapath.model import IPAddress, IPNetwork, network

__all__ = ["NONE", "ExhaustedRow", "MasqDeviceRow", "MasqKey", "MasqRule", "MasqSide"]

#: How the lack of an address is written.
NONE = IPv6Address(0)

_SIDE_BITS = 32
_MAPPED_BITS = 96


class MasqSide(IntEnum):
    """``enum kd_masq_side``: what a rule is about."""

    DESTINATION = 0
    SOURCE = 1
    PORT = 2


@struct
class MasqDeviceRow:
    """``struct kd_masq_device``: the addresses under which pods leave through a device."""

    ipv4: addr
    ipv6: addr

    @classmethod
    def of(cls, addresses: tuple[IPAddress, ...]) -> MasqDeviceRow:
        """The first address of each family."""
        first = {each.version: each for each in reversed(addresses)}
        return cls(first.get(4, NONE), first.get(6, NONE))

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Those that there are."""
        return tuple(each for each in (self.ipv4, self.ipv6) if each != NONE)


@struct
class MasqKey:
    """``struct kd_masq_key``: the prefix counts bits of side and family, then of the mapped address."""

    prefixlen: u32
    side: u16
    ipv6: u16
    addr: addr

    @classmethod
    def of(cls, side: MasqSide, about: IPNetwork) -> MasqKey:
        """The key of a rule about these addresses."""
        mapped = _MAPPED_BITS if about.version == 4 else 0
        return cls(_SIDE_BITS + mapped + about.prefixlen, side, about.version == 6, about.network_address)

    @classmethod
    def of_port(cls, protocol: int, port: int) -> MasqKey:
        """The key of a rule about what is dialled at a port."""
        return cls(_SIDE_BITS + 128, MasqSide.PORT, True, IPv6Address(protocol << 32 | port))

    @property
    def port(self) -> tuple[int, int]:
        """Protocol and port that this rule is about."""
        return int(self.addr) >> 32, int(self.addr) & 0xFFFF

    @property
    def network(self) -> IPNetwork:
        """The addresses that this rule is about."""
        mapped = _MAPPED_BITS if isinstance(self.addr, IPv4Address) else 0
        return network(f"{self.addr}/{self.prefixlen - _SIDE_BITS - mapped}")

    def wider(self, lengths: Iterable[int]) -> Iterator[MasqKey]:
        """The keys that have one of these prefixes, and hold all that this one does."""
        fixed = _SIDE_BITS + (_MAPPED_BITS if isinstance(self.addr, IPv4Address) else 0)
        for length in lengths:
            if fixed <= length < self.prefixlen:
                yield MasqKey.of(MasqSide(self.side), self.network.supernet(new_prefix=length - fixed))


@struct
class MasqRule:
    """``struct kd_masq_rule``: the address under which a source leaves.

    :ivar until: not 0: it was taken back, and until then connections that it has left as they were go on so.
    """

    leaves_as: addr
    until: u32 = 0


@struct
class ExhaustedRow:
    """``struct kd_exhausted``: how far the search for ports is, and how many packets found none."""

    until: u64
    packets: u64
    next: u32
    in_vain: u32
