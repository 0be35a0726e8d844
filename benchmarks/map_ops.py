"""Map operations from Python, per element and in batches, against a C loop over libbpf."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from attrs import frozen

from benchmarks import harness
from benchmarks.harness import CPU, Figure, Helper, median, ratios, rounds_of
from k8sdatapath import maps
from k8sdatapath.layout import layout_of, raw, struct, u64

BENCH = "map_ops"
ROUNDS = 9
COUNT = 100_000


@struct
class Value:
    """16 bytes, as a small BPF map value is."""

    first: u64
    second: u64


NUMBERS = range(COUNT)
VALUES = [Value(number, 0) for number in NUMBERS]
PAIRS = dict(zip(NUMBERS, VALUES, strict=True))
PACKED_KEYS = layout_of(u64).pack_many(NUMBERS)
PACKED_VALUES = layout_of(Value).pack_many(VALUES)
BYTES = {layout_of(u64).pack(number): layout_of(Value).pack(value) for number, value in PAIRS.items()}

TYPED = maps.Hash[u64, Value]
RAW = maps.Hash[Annotated[bytes, raw(8)], Annotated[bytes, raw(16)]]


def update(table: Any, pairs: Mapping[Any, Any]) -> None:
    for key, value in pairs.items():
        table[key] = value


def lookup(table: Any, pairs: Mapping[Any, Any]) -> None:
    for key in pairs:
        table[key]


@frozen
class Operation:
    """What is timed, on a fresh map of COUNT entries, and the C helper's order for the same work."""

    name: str
    order: str
    work: Callable[[Any], object]
    kind: Any = TYPED
    filled: bool = False


OPERATIONS = (
    Operation("update, typed", "update", lambda table: update(table, PAIRS)),
    Operation("update, bytes", "update", lambda table: update(table, BYTES), RAW),
    Operation("lookup, typed", "lookup", lambda table: lookup(table, PAIRS), filled=True),
    Operation("lookup, bytes", "lookup", lambda table: lookup(table, BYTES), RAW, filled=True),
    Operation(
        "batch update, packed", "batch", lambda table: table.update_packed(PACKED_KEYS, PACKED_VALUES, COUNT)
    ),
    Operation("batch update, typed", "batch", lambda table: table.update_many(PAIRS)),
    Operation("batch dump, packed", "dump", lambda table: table.items_packed(), filled=True),
    Operation("batch dump, typed", "dump", lambda table: list(table.items()), filled=True),
)
ORDERS = tuple(dict.fromkeys(operation.order for operation in OPERATIONS))


def main() -> None:
    print(f"{BENCH}: a hash of {COUNT:,} entries (8-byte keys, 16-byte values), {ROUNDS} rounds, medians\n")
    with (
        harness.compiled("mapops") as program,
        Helper(str(program("mapops")), str(CPU)) as c,
        harness.pinned(),
    ):
        seconds = measure(c)
    harness.table(
        ["operation", "Python ns", "C ns", "Python / C", "Python per s"],
        [row(operation.name, seconds[operation.name], seconds[operation.order]) for operation in OPERATIONS],
    )
    harness.report(BENCH, ROUNDS, figures(seconds))


def measure(c: Helper) -> dict[str, list[float]]:
    """Seconds per round, by operation of ours and by order of the C helper."""
    seconds: dict[str, list[float]] = defaultdict(list)
    jobs: list[Operation | str] = [*OPERATIONS, *ORDERS]
    for _, job in rounds_of(jobs, ROUNDS):
        if isinstance(job, str):
            seconds[job].append(int(c.ask(job, COUNT)) / 1e9)
        else:
            seconds[job.name].append(timed(job))
    return seconds


def timed(operation: Operation) -> float:
    """Seconds of processor time: other processes on this CPU do not count, here and in the helper."""
    with operation.kind.create("kdbench", COUNT) as table:
        if operation.filled:
            table.update_packed(PACKED_KEYS, PACKED_VALUES, COUNT)
        start = time.process_time()
        operation.work(table)
        return time.process_time() - start


def row(name: str, ours: list[float], c: list[float]) -> list[object]:
    a, b = median(ours), median(c)
    return [name, a / COUNT * 1e9, b / COUNT * 1e9, median(ratios(ours, c)), COUNT / a]


def figures(seconds: dict[str, list[float]]) -> dict[str, Figure]:
    packed, batch = seconds["batch update, packed"], seconds["batch"]
    single, loop = seconds["update, typed"], seconds["update"]
    return {
        "hash_batch_update_per_s": Figure(
            tuple(COUNT / taken for taken in packed),
            "entries/s",
            f"Python, packed buffers: {COUNT / median(packed):,.0f}/s",
            f"C, BPF_MAP_UPDATE_BATCH: {COUNT / median(batch):,.0f}/s",
            at_least=1.2e6,
        ),
        "hash_update_over_c_loop": Figure(
            ratios(single, loop),
            "ratio of time per element",
            f"table[key] = value, typed: {median(single) / COUNT * 1e9:.0f} ns",
            f"C loop: {median(loop) / COUNT * 1e9:.0f} ns",
            at_most=2,
        ),
    }


if __name__ == "__main__":
    main()
