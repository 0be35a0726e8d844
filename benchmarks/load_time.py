"""Reading, loading and binding a shipped object from Python, against libbpf alone in C."""

from __future__ import annotations

import time
from collections import defaultdict
from importlib.resources import as_file, files

from benchmarks import harness
from benchmarks.harness import CPU, Figure, Helper, median, ratios, rounds_of
from k8sdatapath.objects import ObjectSpec, shipped_objects

BENCH = "load_time"
ROUNDS = 9


def main() -> None:
    names = tuple(shipped_objects())
    print(f"{BENCH}: loading {', '.join(names)}, {ROUNDS} rounds, medians\n")
    with (
        harness.compiled("loader") as program,
        Helper(str(program("loader")), str(CPU)) as c,
        as_file(files("k8sdatapath") / "_objects") as directory,
        harness.pinned(),
    ):
        ours: dict[str, list[float]] = defaultdict(list)
        alone: dict[str, list[float]] = defaultdict(list)
        for _, name in rounds_of(names, ROUNDS):
            alone[name].append(int(c.ask(directory / f"{name}.bpf.o")) / 1e6)
            ours[name].append(load(name))
    harness.table(
        ["object", "programs", "k8sdatapath ms", "libbpf in C ms", "ratio"],
        [
            (name, len(ObjectSpec.from_file(name).programs), median(ours[name]), median(alone[name]),
             median(ratios(ours[name], alone[name])))
            for name in names
        ],
    )  # fmt: skip
    harness.report(
        BENCH, ROUNDS, {f"{name}_load_over_libbpf": figure(ours[name], alone[name]) for name in names}
    )


def load(name: str) -> float:
    """Milliseconds from the name to programs in the kernel."""
    start = time.perf_counter()
    with ObjectSpec.from_file(name).load():
        return (time.perf_counter() - start) * 1000


def figure(ours: list[float], alone: list[float]) -> Figure:
    return Figure(
        ratios(ours, alone),
        "ratio of time",
        f"ObjectSpec.from_file().load(): {median(ours):.1f} ms",
        f"bpf_object__open() and __load() in C: {median(alone):.1f} ms",
        at_most=1.5,
    )


if __name__ == "__main__":
    main()
