"""Nodes of the cluster as peers of one of them."""

from __future__ import annotations

from collections.abc import Iterable

from k8sdatapath.kube.objects import KubeNode
from k8sdatapath.model import Peer

__all__ = ["peers_of"]


def peers_of(nodes: Iterable[KubeNode], own: str, *, ipv6: bool = False) -> tuple[Peer, ...]:
    """Where the pods of other nodes are: a peer for each node that has said both what it is to be reached
    under and which networks its pods have.

    :param own: the name of the node that asks.
    :param ipv6: nodes reach each other by IPv6. Of several addresses the first of the family counts.
    """
    family = 6 if ipv6 else 4
    found = []
    for node in nodes:
        addresses = [each for each in node.addresses if each.version == family]
        if node.name != own and addresses and node.pod_networks:
            found.append(Peer(addresses[0], node.pod_networks, node.name))
    return tuple(sorted(found, key=lambda peer: peer.name))
