"""kd_counters: what the programs did with packets, and why they dropped some."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.layout import struct, u64
from k8sdatapath.maps import PerCpuArray
from k8sdatapath.pybpf.btf import Btf

__all__ = ["Counter", "CounterRow", "Outcome", "outcomes", "read_counters"]


@struct
class CounterRow:
    """``struct kd_counter``."""

    packets: u64
    bytes: u64


@frozen
class Outcome:
    """One thing that can become of a packet: a verdict, or (``drop``) a reason not to let it pass."""

    name: str
    number: int
    meaning: str

    @property
    def drop(self) -> bool:
        """Whether packets end here."""
        return self.number < 0


@frozen
class Counter:
    """How many packets had an outcome."""

    outcome: Outcome
    packets: int
    bytes: int


def outcomes(btf: Btf) -> tuple[Outcome, ...]:
    """All verdicts and drop reasons of an object; the one list of them is in C (``kd/verdict.h``)."""
    found = []
    for var in btf.datasec(".kd.reasons"):
        said = dict(tag.split(": ", 1) for tag in btf.decl_tags(var.id))
        for name, number in btf.enumerators(var.type_id):
            found.append(Outcome(name.removeprefix("KD_"), number, said[name]))
    return tuple(sorted(found, key=lambda outcome: outcome.number))


def read_counters(table: PerCpuArray[CounterRow], known: tuple[Outcome, ...]) -> dict[str, Counter]:
    """The counts summed over all CPUs, by outcome; those that never happened are left out."""
    counts = {}
    for outcome in known:
        # the upper half of the table is for drops, see kd/maps/counters.h
        rows = table[outcome.number if outcome.number >= 0 else len(table) // 2 - outcome.number]
        packets = sum(row.packets for row in rows)
        if packets:
            counts[outcome.name] = Counter(outcome, packets, sum(row.bytes for row in rows))
    return counts
