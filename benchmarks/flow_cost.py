"""What telling of packets costs their connections: a part of the benchmark ``flows``.

The levels differ by less than two neighbouring moments of a machine do. So slices are a few milliseconds, of
all levels in turn and then in the reverse order (ABBA); such blocks are compared. The same programs differ
by up to 1.5 % from one set-up to the next, by where their memory is: so there are many, and how sure a median
is follows from drawing set-ups, and blocks of each, again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import Factory, frozen

from benchmarks import kubeproxy
from benchmarks.harness import CPU, median
from benchmarks.ours import fill, node_on
from benchmarks.topology import PORT, SERVERS, Slice, Wire, wires
from k8sdatapath.datapath.flow_observer import FlowObserver
from k8sdatapath.tables.events import Level

__all__ = ["LEVELS", "SETUPS", "Costs", "Reading", "measure"]

SETUPS = 10
BLOCKS = 16  # of each
COUNTS = {"rr": 1000, "crr": 250}  # of a slice: some 8 ms
STEADY = 8000  # connections, while the reader's time is taken
WARM_UP = 300
FORGET = 4  # blocks, until a client's closed connections are dropped
LEVELS = {"off": None, "drops": Level.DROPS, "aggregated": Level.AGGREGATED, "all": Level.ALL}
SERVICES = 100


@frozen
class Block:
    """Two slices of one level with all others between them, or beside them."""

    slices: tuple[Slice, Slice]

    @property
    def p50(self) -> float:
        return sum(each.whole[0] for each in self.slices) / 2

    @property
    def per_second(self) -> float:
        return sum(each.count for each in self.slices) / sum(each.seconds for each in self.slices)


@frozen
class Reading:
    """What an observer does while connections are made one after the other."""

    events: float  # a connection
    cpu: float  # microseconds, for those of a connection


@frozen
class Costs:
    """Per kind of traffic and level the blocks of each set-up."""

    blocks: dict[str, dict[str, list[list[Block]]]] = Factory(
        lambda: {kind: {name: [] for name in LEVELS} for kind in COUNTS}
    )
    readings: list[Reading] = Factory(list)

    def p50(self, kind: str, name: str) -> float:
        return median(each.p50 for each in self._all(kind, name))

    def per_second(self, kind: str, name: str) -> float:
        return median(each.per_second for each in self._all(kind, name))

    def over_off(self, kind: str, name: str) -> list[list[float]]:
        """Per set-up and block, how much of what programs that tell nothing do: by p50."""
        return [[a.p50 / b.p50 for a, b in pairs] for pairs in self._beside_off(kind, name)]

    def added(self, kind: str, name: str) -> list[list[float]]:
        """The same in nanoseconds that are added."""
        return [[1000 * (b.p50 - a.p50) for a, b in pairs] for pairs in self._beside_off(kind, name)]

    def rate_over_off(self, kind: str, name: str) -> list[list[float]]:
        """As :meth:`over_off`, by what was done in a second."""
        return [[b.per_second / a.per_second for a, b in pairs] for pairs in self._beside_off(kind, name)]

    def _all(self, kind: str, name: str) -> Iterator[Block]:
        for blocks in self.blocks[kind][name]:
            yield from blocks

    def _beside_off(self, kind: str, name: str) -> Iterator[list[tuple[Block, Block]]]:
        for off, ours in zip(self.blocks[kind]["off"], self.blocks[kind][name], strict=True):
            yield list(zip(off, ours, strict=True))


def measure(program: Path) -> Costs:
    """Requests and connections through a ClusterIP of nodes that tell nothing, and at each level."""
    costs = Costs()
    with elsewhere():
        for number in range(SETUPS):
            names = list(LEVELS)
            measure_anew(program, [*names[number % len(names) :], *names[: number % len(names)]], costs)
    return costs


def measure_anew(program: Path, names: Sequence[str], costs: Costs) -> None:
    """Blocks of nodes that are made for it."""
    wanted = list(kubeproxy.services(SERVICES, [(ip, PORT) for ip in SERVERS]))
    with wires(tuple(names), program) as made, ExitStack() as running:
        nodes = {name: node_on(running, made[name], SERVICES, flows=LEVELS[name]) for name in names}
        for node in nodes.values():
            fill(node, wanted)
        for kind, count in COUNTS.items():
            for name in names:
                dial(made[name], kind, WARM_UP)
                costs.blocks[kind][name].append([])
            for number in range(BLOCKS):
                order = names if number % 2 == 0 else names[::-1]
                first = {name: dial(made[name], kind, count) for name in order}
                second = {name: dial(made[name], kind, count) for name in reversed(order)}
                for name in names:
                    costs.blocks[kind][name][-1].append(Block((first[name], second[name])))
                if number % FORGET == FORGET - 1:
                    for wire in made.values():
                        wire.forget()
        observer = nodes["aggregated"].observer
        assert observer is not None
        costs.readings.append(reading(made["aggregated"], observer))


def reading(wire: Wire, observer: FlowObserver) -> Reading:
    """What is read of connections, and for how long: nothing else happens in this process meanwhile."""
    told, spent = observer.telling.told, time.process_time()
    dial(wire, "crr", STEADY)
    time.sleep(0.1)  # the last of them are read
    spent = time.process_time() - spent
    wire.forget()
    return Reading((observer.telling.told - told) / STEADY, spent * 1e6 / STEADY)


def dial(wire: Wire, kind: str, count: int) -> Slice:
    return wire.slice(kind, kubeproxy.vip_of_last(SERVICES), kubeproxy.SERVICE_PORT, count)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Keep readers off the CPU where the traffic is, if there is another."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {CPU} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
