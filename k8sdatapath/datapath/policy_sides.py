"""The two ends of a connection, as policies are asked about them."""

from __future__ import annotations

from typing import TypeAlias

from k8sdatapath.model import IPAddress
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.policy import Toward
from k8sdatapath.model.workload import Workload

__all__ = ["RESERVED", "Side", "addresses_of", "at_home", "family_of", "is_outside", "seen_from", "world"]

Side: TypeAlias = Workload | IPAddress
"""Somebody who is known, or an address of the world."""


def world(version: int) -> tuple[str, ...]:
    """The labels of addresses outside of the cluster."""
    return "reserved:world", f"reserved:world-ipv{version}"


def _word(reserved: Reserved) -> str:
    return reserved.name.lower().replace("_", "-")


_WORLDS = {_word(which): which for which in (Reserved.WORLD_IPV4, Reserved.WORLD_IPV6)}
RESERVED = {
    **{_word(each): Workload(_word(each), each.labels) for each in Reserved if each is not Reserved.UNKNOWN},
    **{word: Workload(word, world(int(word[-1]))) for word in _WORLDS},
}
"""Those who are known by a word, as ``fromEntities`` has it. ``world`` is that of the family in question."""


def is_outside(side: Workload) -> bool:
    """Whether it is of the world, of whatever family is asked for."""
    return RESERVED["world"].labels[0] in side.labels and side.name not in _WORLDS


def addresses_of(side: Side) -> tuple[IPAddress, ...]:
    """Those that are known."""
    return side.addresses if isinstance(side, Workload) else (side,)


def family_of(sides: tuple[Side, Side]) -> int:
    """The version of IP that a connection between two is taken to be of."""
    asked: list[int] = [each.version for each in sides if not isinstance(each, Workload)]
    asked += [int(each.name[-1]) for each in sides if isinstance(each, Workload) and each.name in _WORLDS]
    return next(iter([*asked, *(each.version for side in sides for each in addresses_of(side))]), 4)


def seen_from(sides: tuple[Side, Side], toward: Toward) -> tuple[Side, Side]:
    """One side as it is by itself, and the other as it is seen from there."""
    own, peer = sides if toward is Toward.EGRESS else sides[::-1]
    if isinstance(own, Workload) and own.is_node:
        own = own.at_home
    if isinstance(own, Workload) and isinstance(peer, Workload) and peer.is_node and own.on == peer.name:
        peer = peer.at_home
    return own, peer


def at_home(own: Side, peer: Side) -> bool:
    """Whether this is a node and one of its pods."""
    if not isinstance(own, Workload) or not isinstance(peer, Workload):
        return False
    return own.is_node and (peer.on == own.name or (peer.is_pod and own == RESERVED["host"]))
