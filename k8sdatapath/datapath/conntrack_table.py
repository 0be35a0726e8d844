"""ConntrackTable: the flows that are translated per packet, to be looked at, flushed and collected.

The programs make flows and keep them; the table would only ever grow to its capacity, and then drop
the flow that was silent longest. Collecting takes away earlier what is over, so that this stays rare.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.contract import Bindable, bind_maps, names_of
from k8sdatapath.datapath.flow import (
    ConntrackStats,
    Flow,
    FlowFilter,
    FlowLosses,
    FlowState,
    Peer,
    Timeouts,
    state_of,
)
from k8sdatapath.datapath.flow_collector import FlowCollector
from k8sdatapath.errors import ContractError, KeyExistsError
from k8sdatapath.layout import Layout, layout_of, u64
from k8sdatapath.markup import table
from k8sdatapath.resource import Resource
from k8sdatapath.tables.begun import BegunPair, held
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Loss, Tuple
from k8sdatapath.tables.halves import Columns, Pair, alone, gather, joined, opposites, says_answered
from k8sdatapath.tables.halves import pair as join

__all__ = ["CONTRACT", "ConntrackTable", "Sweep"]

#: The maps that a conntrack table is made of.
CONTRACT = {"kd_conntrack": maps.LRUHash[Tuple, ConntrackRow]}

# Of a table that programs write.
_WRITTEN: dict[str, Any] = {"kd_losses": maps.PerCpuArray[u64], "kd_begun": maps.Array[BegunPair]}

_KEY, _ROW = layout_of(Tuple), layout_of(ConntrackRow)
_REPLY = int(FlowFlags.REPLY)
_ROWS = 20  # flows in a notebook
_BATCH = 1024  # flows between asking how they are and taking them away: the shorter, the surer


@frozen
class Sweep:
    """What a collection found and took away.

    :ivar entries: directions of flows that were there.
    :ivar capacity: for how many there is room.
    :ivar flows: those that were over and are gone.
    :ivar seconds: how long it took.
    """

    entries: int
    capacity: int
    flows: int
    seconds: float

    @property
    def left(self) -> int:
        """Entries that remained, if no flow had lost a half."""
        return max(self.entries - 2 * self.flows, 0)


class ConntrackTable(Resource):
    """The flows of a node, in the kernel. Make one with :meth:`bind`."""

    def __init__(
        self, flows: maps.LRUHash[Tuple, ConntrackRow], timeouts: Timeouts, owned: ExitStack
    ) -> None:
        self.timeouts = timeouts
        self._flows = flows
        self._owned = owned
        self._losses: maps.PerCpuArray[int] | None = None
        self._begun: maps.Array[BegunPair] | None = None
        self._collector: FlowCollector | None = None

    @classmethod
    def bind(cls, source: Bindable, *, timeouts: Timeouts | None = None) -> ConntrackTable:
        """A conntrack table over the maps of an object, a pin directory, or a mapping of name to map.

        :param timeouts: when flows are forgotten.
        :raises ContractError: a map is missing.
        :raises LayoutError: a map holds something else.
        """
        written = {name: kind for name, kind in _WRITTEN.items() if name in names_of(source)[1]}
        bound, owned = bind_maps(source, {**CONTRACT, **written}, "a conntrack table")
        table = cls(bound["kd_conntrack"], timeouts or Timeouts(), owned)
        table._losses, table._begun = bound.get("kd_losses"), bound.get("kd_begun")
        return table

    # -- reading --

    def flows(self, only: FlowFilter | None = None, *, now: int | None = None) -> Iterator[Flow]:
        """The flows, each once.

        :param only: those that are meant; default all.
        :param now: seconds of ``CLOCK_MONOTONIC`` that ages are counted to; default this moment.
        """
        return (flow for pair, flow in self._meant(only, now) if not pair.ended)

    def stats(self) -> ConntrackStats:
        """How full the table is, and with what."""
        keys, rows = self._read()
        entries = len(keys) // _KEY.size
        states = Counter(_state(pair) for pair in joined(keys, rows) if not pair.ended)
        return ConntrackStats(entries, self._flows.info.max_entries, states, self.losses())

    def losses(self) -> FlowLosses:
        """What the table has forgotten for lack of room, since it was made. It costs no look at the flows."""
        if self._losses is None:
            return FlowLosses()
        return FlowLosses(halves=sum(self._losses[Loss.HALF]), flows=sum(self._losses[Loss.FLOW]))

    def _meant(self, only: FlowFilter | None, now: int | None) -> Iterator[tuple[Pair, Flow]]:
        moment = _moment(now)
        for pair in joined(*self._read()):
            flow = _flow(pair, moment)
            if only is None or only.matches(flow):
                yield pair, flow

    def _read(self) -> tuple[bytearray, bytearray]:
        """The entries, with those that flows which have only begun will have."""
        begun = [row.entry for row in held(self._begun.view())] if self._begun is not None else []
        keys, rows, _ = self._flows.items_packed()
        keys += b"".join([_KEY.pack(key) for key, _ in begun])
        rows += b"".join([_ROW.pack(row) for _, row in begun])
        return keys, rows

    # -- changing --

    def _settle(self) -> None:
        """Have all flows be entries of the table, also those that have only begun."""
        if self._begun is not None and any(held(self._begun.view())):
            self._taker()
            assert self._collector is not None
            self._collector.settle()

    def flush(self, only: FlowFilter | None = None) -> int:
        """Forget flows; returns how many. What comes after begins new flows, maybe to other backends.

        :param only: those that are meant; default all.
        """
        self._settle()
        doomed = [pair for pair, _ in self._meant(only, None)]
        self._remove(doomed)
        return sum(not pair.ended for pair in doomed)

    def complete(self) -> None:
        """Make the halves that flows to the world lack until they are answered.

        Their next packets follow them then, whatever is decided for new ones.
        """
        self._settle()
        keys, rows, _ = self._flows.items_packed()
        for index in alone(rows):
            half = join(_cut(keys, _KEY, index), _cut(rows, _ROW, index), b"", None)
            with suppress(KeyExistsError):
                self._flows.insert(*half.question())

    def collect(self, now: int | None = None) -> int:
        """Forget flows that have been silent for longer than their state allows; returns how many.

        Both directions of a flow go together, and only after another look at both.

        :param now: seconds of ``CLOCK_MONOTONIC``; default this moment.
        """
        return self.sweep(now).flows

    def sweep(self, now: int | None = None) -> Sweep:
        """The same, and tell what was found on the way.

        :param now: as with :meth:`collect`.
        """
        take = self._taker()
        started, moment = time.perf_counter(), _moment(now)
        self._settle()
        keys, rows, count = self._flows.items_packed()
        entries = Columns.of(keys, rows)
        suspects = self._suspects(entries, moment)
        if suspects:
            from k8sdatapath.pybpf.memory import wait_for_programs

            wait_for_programs()  # one of them may have made but one half of a flow when that was read
        # Originals first: with them go most replies that are suspected, and are not looked at any more.
        suspects.sort(key=lambda index: entries.flags[index] & _REPLY)
        batches = (suspects[at : at + _BATCH] for at in range(0, len(suspects), _BATCH))
        flows = sum(self._collect(gather(keys, batch), moment, take) for batch in batches)
        return Sweep(count, self._flows.info.max_entries, flows, time.perf_counter() - started)

    def _suspects(self, entries: Columns, now: int) -> list[int]:
        """Which entries say of themselves that their flow may be over: the other half may know better."""
        oldest = {protocol: self._oldest(protocol, now) for protocol in set(entries.protocols)}
        columns = zip(entries.protocols, entries.flags, entries.last_seen, strict=True)
        return [
            index for index, (protocol, flags, seen) in enumerate(columns) if seen < oldest[protocol][flags]
        ]

    def _oldest(self, protocol: int, now: int) -> list[int]:
        """By flags of an entry: what it must have seen last not to be suspected.

        A half that is still open is not suspected for what the other one may have sent: that one is.
        """
        limits = []
        for flags in range(1 << len(FlowFlags)):
            ended = flags & FlowFlags.FIN
            answered = bool(flags & FlowFlags.SEEN_REPLY) or says_answered(flags)
            limits.append(now - self.timeouts.of(state_of(protocol, flags, ended, answered=answered)))
        return limits

    def _collect(self, keys: bytes, now: int, take: Callable[[Collection[Pair]], int]) -> int:
        """Look at the flows of some entries, and take away those that are over."""
        rows, found = self._flows.lookup_packed(keys)
        if not any(found):
            return 0
        other_keys = opposites(rows)
        others, found_others = self._flows.lookup_packed(other_keys)
        doomed = {}
        for at, there in enumerate(found):
            if there:
                key, row = _cut(keys, _KEY, at), _cut(rows, _ROW, at)
                pair = join(
                    key, row, _cut(other_keys, _KEY, at), _cut(others, _ROW, at) if found_others[at] else b""
                )
                if now - pair.last_seen > self.timeouts.of(_state(pair)):
                    doomed[pair.original_key or pair.reply_key] = pair
        return take(doomed.values())

    def _taker(self) -> Callable[[Collection[Pair]], int]:
        """What removes those flows that are still as they were looked at, and says how many."""
        if self._collector is None:
            try:
                self._collector = self._owned.enter_context(FlowCollector.bind(self._flows, self._begun))
            except ContractError:  # a table in memory, which no program writes to
                return self._remove
        return self._collector.remove

    def _remove(self, doomed: Collection[Pair]) -> int:
        originals = b"".join([pair.original_key for pair in doomed])
        self._flows.delete_packed(originals)
        self._flows.delete_packed(b"".join([pair.reply_key for pair in doomed]))
        # A packet that came in between has begun its flow anew, and may have lost the reply it had made.
        rows, found = self._flows.lookup_packed(originals)
        for at, there in enumerate(found):
            if there:
                again = join(_cut(originals, _KEY, at), _cut(rows, _ROW, at), b"", b"")
                with suppress(KeyExistsError):
                    self._flows.insert(*again.answer())
        return len(doomed)

    def close(self) -> None:
        """Let go of the maps; idempotent."""
        self._owned.close()

    def _repr_html_(self) -> str:
        """A table of the first flows, for notebooks."""
        shown = () if self._flows.closed else islice(self.flows(), _ROWS)
        rows = ((each, each.seen_as, each.packets) for each in shown)
        return table(repr(self), ("flow", "seen as", "packets"), rows)

    def __repr__(self) -> str:
        return f"<ConntrackTable {self._flows!r}>"


def _moment(now: int | None) -> int:
    """The programs' clock, in whole seconds."""
    return int(time.monotonic()) if now is None else now


def _state(pair: Pair) -> FlowState:
    return state_of(pair.protocol, *pair.flags, answered=pair.answered)


def _flow(pair: Pair, now: int) -> Flow:
    dialled, translated = pair.dialled, pair.translated
    return Flow(
        Peer(dialled.src, dialled.sport),
        Peer(dialled.dst, dialled.dport),
        Peer(translated.dst, translated.dport),
        pair.protocol,
        _state(pair),
        max(now - pair.last_seen, 0),
        pair.packets,
        Peer(translated.src, translated.sport),
    )


def _cut(packed: bytes | bytearray, layout: Layout[Any], index: int) -> bytes:
    return bytes(packed[index * layout.size : (index + 1) * layout.size])
