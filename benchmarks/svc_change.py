"""One backend of one service replaced, and a whole table filled, against rewriting rules."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import count

from attrs import frozen

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, median, rounds_of, say
from benchmarks.ours import model, service_table
from benchmarks.topology import lone_node
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import Service

BENCH = "svc_change"
ROUNDS = 9
CHANGES = 200  # a round
SIZES = (10, 1000, 10_000, 100_000)
RULES = 10_000
RULE_CHANGES = 5
SYNC_SERVICES, SYNC_BACKENDS = 10_000, 10
MODES: dict[str, type[kubeproxy.IPTables] | type[kubeproxy.NFTables]] = {
    "iptables-legacy": kubeproxy.IPTables,
    "nftables": kubeproxy.NFTables,
}


@frozen
class Fill:
    """Seconds to fill an empty table: in all, and of that in the kernel."""

    wall: float
    kernel: float


def main() -> None:
    print(f"{BENCH}: one backend of one service replaced, {ROUNDS} rounds of {CHANGES} changes\n")
    rules = {name: change_rules(name) for name in MODES}
    filled_rules = fill_rules()
    with harness.pinned():
        ours = change_ours()
        fills = fill_ours()
    harness.table(
        ["one service changed", "services", "p50 us", "p99 us", "slowest us"],
        [
            *change_rows("k8sdatapath", ours),
            *(row for name, times in rules.items() for row in change_rows(name, {RULES: times})),
        ],
    )
    wall, kernel = median(fill.wall for fill in fills), median(fill.kernel for fill in fills)
    harness.table(
        [f"{SYNC_SERVICES:,} services x {SYNC_BACKENDS} backends", "s", "of that in the kernel"],
        [("k8sdatapath", wall, f"{kernel / wall:.0%}"), ("iptables-legacy", filled_rules, "")],
    )
    harness.report(BENCH, ROUNDS, figures(ours, rules, fills, filled_rules))


def change_rules(name: str) -> list[list[float]]:
    """Microseconds per change of one service among many, by the tool that kube-proxy calls."""
    mode = MODES[name]
    wanted = list(kubeproxy.services(RULES))
    now = wanted[RULES // 2]
    times = []
    with lone_node(name) as netns:
        say(f"{name}: {RULES:,} services loaded in {mode.load(netns, wanted):.1f} s")
        for generation in range(RULE_CHANGES):
            after = kubeproxy.with_other_endpoint(now, generation)
            times.append([mode.change(netns, now, after) * 1e6])
            now = after
    return times


def change_ours() -> dict[int, list[list[float]]]:
    """Microseconds per change, for every size and round; the tables are there at the same time."""
    times: dict[int, list[list[float]]] = defaultdict(list)
    generations = count()
    with ExitStack() as tables:
        made = {}
        for size in SIZES:
            wanted = list(kubeproxy.services(size))
            made[size] = tables.enter_context(service_table(size, 3)), wanted[size // 2]
            made[size][0].plan(map(model, wanted)).apply()
        say("k8sdatapath: tables filled")
        for _, size in rounds_of(SIZES, ROUNDS):
            table, service = made[size]
            steps = [kubeproxy.with_other_endpoint(service, next(generations)) for _ in range(CHANGES)]
            times[size].append([timed_upsert(table, model(step)) for step in steps])
    return times


def timed_upsert(table: ServiceTable, service: Service) -> float:
    start = time.perf_counter()
    report = table.upsert(service)
    taken = time.perf_counter() - start
    assert report.changed == 1
    return taken * 1e6


def fill_ours() -> list[Fill]:
    """From a list of services to the kernel's maps; each round a new table."""
    wanted = [model(service) for service in kubeproxy.services(SYNC_SERVICES, endpoints=SYNC_BACKENDS)]
    fills = []
    for _ in range(ROUNDS):
        with service_table(SYNC_SERVICES, SYNC_BACKENDS) as table:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_stime, time.perf_counter()
            report = table.plan(wanted).apply()
            wall = time.perf_counter() - start
            fills.append(Fill(wall, resource.getrusage(resource.RUSAGE_SELF).ru_stime - before))
            assert report.added == SYNC_SERVICES
    return fills


def fill_rules() -> float:
    """Seconds for iptables to load the same; once, and only iptables: nftables takes minutes."""
    with lone_node("fill") as netns:
        wanted = list(kubeproxy.services(SYNC_SERVICES, endpoints=SYNC_BACKENDS))
        return kubeproxy.IPTables.load(netns, wanted)


def change_rows(name: str, times: dict[int, list[list[float]]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for size, rounds in times.items():
        every = sorted(one for samples in rounds for one in samples)
        rows.append((name, f"{size:,}", median(every), every[len(every) * 99 // 100], every[-1]))
    return rows


def figures(
    ours: dict[int, list[list[float]]],
    rules: dict[str, list[list[float]]],
    fills: list[Fill],
    filled_rules: float,
) -> dict[str, Figure]:
    beside = ", ".join(
        f"{name} {median(one for samples in rounds for one in samples) / 1000:,.0f} ms"
        for name, rounds in rules.items()
    )
    made = {}
    for name, size in (("change_us_10", 10), ("change_us_100k", 100_000)):
        samples = tuple(median(one) for one in ours[size])
        made[name] = Figure(
            samples,
            "us, p50 of a round",
            f"ServiceTable.upsert() among {size:,}: {median(samples):.0f} us",
            f"among {RULES:,}: {beside}",
            at_most=1000,
        )
    wall, kernel = median(fill.wall for fill in fills), median(fill.kernel for fill in fills)
    made["sync_s_10k_x10"] = Figure(
        tuple(fill.wall for fill in fills),
        "s",
        f"plan and apply: {wall:.2f} s, of that {wall - kernel:.2f} s Python and {kernel:.2f} s kernel",
        f"iptables-legacy-restore of the same: {filled_rules:.1f} s",
        at_most=1.0,
    )
    return made


if __name__ == "__main__":
    main()
