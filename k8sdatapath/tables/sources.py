"""kd_sources: who may use a service, where not everybody may."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final

from k8sdatapath.layout import addr, struct, u32

__all__ = ["NODE", "SourceKey"]

#: Stands for the node itself, whose sockets have no source yet when they ask: all nodes on a link, an address
#: that nothing is sent from. With ``::/0`` among the sources the trie finds it by itself.
NODE: Final = IPv6Network("ff02::1/128")

_SERVICE_BITS = 32
_MAPPED_BITS = 96


@struct
class SourceKey:
    """``struct kd_source_key``: the prefix counts the service's bits and those of the mapped address."""

    prefixlen: u32
    service: u32
    addr: addr

    @classmethod
    def of(cls, service: int, sources: IPv4Network | IPv6Network) -> SourceKey:
        """The key that lets these sources use a service."""
        mapped = _MAPPED_BITS if sources.version == 4 else 0
        return cls(_SERVICE_BITS + mapped + sources.prefixlen, service, sources.network_address)

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The sources that this key is for."""
        length = self.prefixlen - _SERVICE_BITS
        if isinstance(self.addr, IPv4Address):
            return IPv4Network((self.addr, length - _MAPPED_BITS))
        return IPv6Network((self.addr, length))
