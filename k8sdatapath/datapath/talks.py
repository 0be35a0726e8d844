"""What pods have begun with each other, as the programs note it: kd_talks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.layout import addr, layout_of
from k8sdatapath.model import IPAddress
from k8sdatapath.model.policy import Toward
from k8sdatapath.tables.conntrack import FlowFlags, Tuple
from k8sdatapath.tables.policy import TalkRow

__all__ = ["Talk", "ask_again", "forget_talks", "live_ends", "live_talks"]

_TCP, _SCTP = 6, 132
_ENDED = FlowFlags.FIN | FlowFlags.RST
_SECOND = 1
_IDLE, _IDLE_STREAM = 120, 8000
"""Seconds after which a talk is over, as the programs have it (``kd/talks.h``)."""
_ECHO = {1: 8, 58: 128}


@frozen
class Talk:
    """What somebody has begun, with the addresses that policies are asked for.

    :ivar source: who has begun it; ``destination`` after a service was translated.
    :ivar port: of the destination; of ICMP the type.
    :ivar revisions: of the policies that have allowed it, by the way it is to them; 0: no policy was asked.
    :ivar closing: one of the two has ended it.
    """

    source: IPAddress
    source_port: int
    destination: IPAddress
    port: int
    protocol: int
    revisions: Mapping[Toward, int]
    closing: bool


def live_talks(talks: Mapping[Tuple, TalkRow]) -> Iterator[Talk]:
    """All that goes on."""
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    for key, row in talks.items():
        stream = key.protocol in (_TCP, _SCTP) and not row.flags & _ENDED
        if now - row.last_seen <= (_IDLE_STREAM if stream else _IDLE):
            second = bool(row.flags & _SECOND)
            ends = (key.src, key.sport), (key.dst, key.dport)
            (source, source_port), (destination, port) = ends[::-1] if second else ends
            revisions = {Toward.EGRESS: row.revision[second], Toward.INGRESS: row.revision[not second]}
            port = _ECHO.get(key.protocol, port)
            closing = bool(row.flags & _ENDED)
            yield Talk(source, source_port, destination, port, key.protocol, revisions, closing)


def live_ends(talks: Mapping[Tuple, TalkRow]) -> set[IPAddress]:
    """The addresses at both ends of all that goes on."""
    return {end for each in live_talks(talks) for end in (each.source, each.destination)}


def forget_talks(talks: maps.LRUHash[Tuple, TalkRow], addresses: Iterable[IPAddress]) -> int:
    """Forget what was begun by pods at some addresses, or with them: who comes there next has no part in it.

    :returns: how many talks there were.
    """
    return talks.delete_packed(_with(talks, addresses)[0])


def ask_again(talks: maps.LRUHash[Tuple, TalkRow], addresses: Iterable[IPAddress]) -> None:
    """Have policies asked at the next packet with one of some addresses; who had begun stays known."""
    keys, rows, count = _with(talks, addresses)
    size = len(rows) // max(count, 1)
    for at in range(0, len(rows), max(size, 1)):
        rows[at : at + 8] = bytes(8)  # both revisions: nobody has asked
    if count:
        talks.update_packed(keys, rows, count)


def _with(
    talks: maps.LRUHash[Tuple, TalkRow], addresses: Iterable[IPAddress]
) -> tuple[bytearray, bytearray, int]:
    """The talks of which some addresses are an end, packed."""
    wanted = {layout_of(addr).pack(each) for each in addresses}
    keys, rows, count = talks.items_packed()
    size, long = len(keys) // max(count, 1), len(rows) // max(count, 1)
    found, their = bytearray(), bytearray()
    for index in range(count):
        at = index * size
        if bytes(keys[at : at + 16]) in wanted or bytes(keys[at + 16 : at + 32]) in wanted:
            found += keys[at : at + size]
            their += rows[index * long : (index + 1) * long]
    return found, their, len(found) // max(size, 1)
