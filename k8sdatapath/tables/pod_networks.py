"""kd_pod_networks: which addresses pods of this node get."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from k8sdatapath import layout
from k8sdatapath.model import IPNetwork, network

__all__ = ["PodNetworkRow"]

_MAPPED_BITS = 96


@layout.struct
class PodNetworkRow:
    """``struct kd_network``: an address is in it that has its bits where the mask has ones."""

    addr: layout.addr
    mask: layout.addr

    @classmethod
    def of(cls, which: IPNetwork | None) -> PodNetworkRow:
        """The row of a network, or that of none."""
        if which is None:
            return cls(IPv6Address(0), IPv6Address(0))
        bits = which.prefixlen + (_MAPPED_BITS if which.version == 4 else 0)
        return cls(which.network_address, IPv6Address((1 << 128) - (1 << 128 - bits)))

    @property
    def network(self) -> IPNetwork | None:
        """The network, if there is one."""
        bits = int(self.mask).bit_count()
        if not bits:
            return None
        return network(f"{self.addr}/{bits - _MAPPED_BITS if isinstance(self.addr, IPv4Address) else bits}")
