"""SocketAccelerator: two sockets of one node hand each other what they send, past the stack."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.component import Report
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.flow import Peer
from k8sdatapath.errors import CapacityError, ModelError, StalePlanError
from k8sdatapath.layout import u32, u64
from k8sdatapath.model import Accelerated, IPAddress
from k8sdatapath.model.address import shown
from k8sdatapath.resource import Resource
from k8sdatapath.tables.acceleration import AccelRuleKey, AccelWay, EndRow, PairRow
from k8sdatapath.tables.counters import CounterRow

__all__ = ["AccelerationPlan", "AccelerationStats", "PairEnd", "SocketAccelerator", "SocketPair"]

CONTRACT = {
    "kd_accel_rules": maps.LPMTrie[AccelRuleKey, u32],
    "kd_accel_pairs": maps.Hash[u64, PairRow],
    "kd_accel_count": maps.PerCpuArray[CounterRow],
}
_SWITCH = "accelerate=True, of an agent with socketAcceleration"


@frozen
class PairEnd:
    """One socket of a pair: where it is, and what it has sent.

    :ivar netns: the cookie of its network namespace.
    :ivar messages: calls of ``send`` that were handed over; ``bytes`` were in them.
    :ivar others: those that went through the stack.
    """

    peer: Peer
    netns: int
    messages: int
    bytes: int
    others: int


@frozen
class SocketPair:
    """A connection within this node: ``10.244.1.2:40000 -> 10.244.1.3:8080 as 10.96.0.10:80``.

    :ivar dialled: what the client has connected to; a service's address, or the server's own.
    """

    client: PairEnd
    server: PairEnd
    dialled: Peer

    def __str__(self) -> str:
        dialled = "" if self.dialled == self.server.peer else f" as {self.dialled}"
        return f"{self.client.peer} -> {self.server.peer}{dialled}"


@frozen(kw_only=True)
class AccelerationStats:
    """What has become of connections and of messages, since the maps were made.

    :ivar open: pairs that there are now.
    :ivar pairs: connections that were paired.
    :ivar refused: those that could not be: a socket is in another program's hands, or there was no room.
    :ivar handed: messages that were handed over; likewise ``bytes``.
    :ivar alone: messages that went through the stack because their peer was not there, not yet or no more.
    :ivar policy: likewise because policies have not allowed the pair, or have more to say, or changed.
    :ivar behind: because the peer had not read what went through the stack before.
    :ivar full: because its queue was half full, or had 256 messages.
    :ivar shut: because one of them had closed.
    :ivar special: because one of them has an option that only the stack knows: ``SO_RCVLOWAT``, kernel TLS.
    """

    open: int
    pairs: int
    refused: int
    handed: int
    bytes: int
    alone: int
    policy: int
    behind: int
    full: int
    shut: int
    special: int

    @property
    def others(self) -> int:
        """All messages that went through the stack."""
        return self.alone + self.policy + self.behind + self.full + self.shut + self.special


@frozen
class AccelerationPlan:
    """What would change."""

    accelerator: SocketAccelerator
    added: tuple[Accelerated, ...]
    removed: tuple[Accelerated, ...]
    revision: int

    @property
    def empty(self) -> bool:
        """Whether everything is as wanted already."""
        return not (self.added or self.removed)

    def __str__(self) -> str:
        if self.empty:
            return "nothing to change"
        return "\n".join([*map("+ {}".format, self.added), *map("- {}".format, self.removed)])

    def apply(self) -> Report:
        """Carry it out. It holds for connections that begin from now on; pairs that there are stay.

        :raises StalePlanError: something has changed since; nothing was changed.
        """
        return self.accelerator._apply(self)


class SocketAccelerator(Resource):
    """Two sockets of one node hand each other what they send. Minimum kernel: 6.18.14, or 6.12.75.

    ::

        accelerator.plan([Accelerated("10.96.0.10", 80)]).apply()
        for pair in accelerator.pairs():
            print(pair)

    For the object ``accelerator`` over the maps of a node, see :attr:`k8sdatapath.Node.accelerator`. What
    policies forbid goes on through the stack and ends there.
    """

    def __init__(self, tables: dict[str, Any], own: ExitStack) -> None:
        self._own = own
        self._rules: maps.LPMTrie[AccelRuleKey, int] = tables["kd_accel_rules"]
        self._pairs: maps.Hash[int, PairRow] = tables["kd_accel_pairs"]
        self._count: maps.PerCpuArray[CounterRow] = tables["kd_accel_count"]
        self._revision = 0

    @classmethod
    def bind(cls, source: Bindable) -> SocketAccelerator:
        """Take over what a loaded object, pins or maps hold. The object may be closed before it.

        :raises ContractError: the maps are not there.
        """
        tables, own = bind_maps(source, CONTRACT, cls.__name__, keep=True, switch=_SWITCH)
        return cls(tables, own)

    @property
    def accelerated(self) -> frozenset[Accelerated]:
        """What is chosen now."""
        return frozenset(key.wanted for key in self._rules)

    def plan(self, wanted: Iterable[Accelerated]) -> AccelerationPlan:
        """What to do so that exactly these are accelerated.

        :raises CapacityError: there is not enough room.
        :raises ModelError: that is no ``Accelerated``.
        """
        if isinstance(wanted, Accelerated):
            raise ModelError("a list of Accelerated is wanted; this is a single one")
        desired, there = frozenset(wanted), self.accelerated
        for each in desired:
            if not isinstance(each, Accelerated):
                raise ModelError(f"{shown(each)} is not an Accelerated")
        if len(desired | there) > self._rules.info.max_entries:
            raise CapacityError(self._rules.name, len(desired | there), self._rules.info.max_entries)
        added, removed = (tuple(sorted(each, key=str)) for each in (desired - there, there - desired))
        return AccelerationPlan(self, added, removed, self._revision)

    def _apply(self, plan: AccelerationPlan) -> Report:
        if plan.revision != self._revision:
            raise StalePlanError("what is accelerated has changed since this was planned: plan again")
        self._revision += 1
        started = time.perf_counter()
        self._rules.update_many({AccelRuleKey.of(each): 1 for each in plan.added})
        self._rules.delete_many([AccelRuleKey.of(each) for each in plan.removed])
        return Report(len(plan.added), 0, len(plan.removed), time.perf_counter() - started)

    def pairs(self) -> Iterator[SocketPair]:
        """The connections that are accelerated, each once."""
        for row in self._pairs.values():
            ends = [Peer(row.talk.src, row.talk.sport), Peer(row.talk.dst, row.talk.dport)]
            client, server = reversed(ends) if row.second else ends
            yield SocketPair(
                _end(client, row.end[0]), _end(server, row.end[1]), Peer(row.dialled, row.dialled_port)
            )

    def stats(self) -> AccelerationStats:
        """What has become of connections and messages."""
        sums = {
            way: (sum(row.packets for row in rows), sum(row.bytes for row in rows))
            for way, rows in zip(AccelWay, self._count, strict=True)
        }
        return AccelerationStats(
            open=len(self._pairs),
            pairs=sums[AccelWay.PAIRED][0],
            refused=sums[AccelWay.REFUSED][0],
            handed=sums[AccelWay.HANDED][0],
            bytes=sums[AccelWay.HANDED][1],
            alone=sums[AccelWay.ALONE][0],
            policy=sums[AccelWay.POLICY][0],
            behind=sums[AccelWay.BEHIND][0],
            full=sums[AccelWay.FULL][0],
            shut=sums[AccelWay.SHUT][0],
            special=sums[AccelWay.SPECIAL][0],
        )

    def release(self, *addresses: IPAddress) -> int:
        """Have pairs that there are go on through the stack; returns how many. Nothing is lost.

        :param addresses: those with an end at one of these; none: all of them.
        """
        there = frozenset(addresses)
        pairs = [
            key
            for key, row in self._pairs.items()
            if not there or not there.isdisjoint((row.talk.src, row.talk.dst))
        ]
        self._pairs.delete_many(pairs)
        return len(pairs)

    def close(self) -> None:
        """Let go of the maps; what is accelerated stays so."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<SocketAccelerator {len(self._rules)} rules, {len(self._pairs)} pairs>"


def _end(peer: Peer, row: EndRow) -> PairEnd:
    return PairEnd(peer, row.netns, row.messages, row.bytes, row.others)
