"""kd_peers and kd_peer_nodes: the other nodes, and the pods that are on them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from k8sdatapath.layout import addr, struct, u32

__all__ = ["PeerKey", "PeerRow"]

_MAPPED_BITS = 96


@struct
class PeerKey:
    """``struct kd_peer_key``: a network of pods; the prefix counts the bits of the mapped address."""

    prefixlen: u32
    addr: addr

    @classmethod
    def of(cls, network: IPv4Network | IPv6Network) -> PeerKey:
        """The key of a network."""
        mapped = _MAPPED_BITS if network.version == 4 else 0
        return cls(mapped + network.prefixlen, network.network_address)

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The network that this key is for."""
        if isinstance(self.addr, IPv4Address):
            return IPv4Network((self.addr, self.prefixlen - _MAPPED_BITS))
        return IPv6Network((self.addr, self.prefixlen))


@struct
class PeerRow:
    """``struct kd_peer``: the node whose pods they are."""

    node: addr
