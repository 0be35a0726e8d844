"""Connecting to a service picked by chance from 100,000, against one that is dialled all the time.

All services lead to the same three backends, so that the server's side is equally warm for both. The client's
own kernel takes longer for an address that it has not dialled lately; how much, the same without any load
balancing tells, and the figure is what we add to that.
"""

from __future__ import annotations

from contextlib import ExitStack

from attrs import evolve

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, median, ratios, rounds_of, say
from benchmarks.ours import open_node
from benchmarks.topology import PORT, SERVERS, Slice, Wire, run, wires

BENCH = "svc_cold"
ROUNDS = 21
SERVICES = 100_000
CONNECTS = 1500
WARM_UP = 200
PATHS = {"direct": "no load balancing", "ours": "k8sdatapath"}


def main() -> None:
    print(f"{BENCH}: connecting to one of {SERVICES:,} addresses, {ROUNDS} rounds, medians, microseconds\n")
    with (
        harness.compiled("rr") as program,
        wires(tuple(PATHS), program("rr")) as made,
        ExitStack() as nodes,
    ):
        answer_everything(made["direct"])
        wire = made["ours"]
        tested = tuple((ip, PORT) for ip in SERVERS)
        wanted = [evolve(service, endpoints=tested) for service in kubeproxy.services(SERVICES)]
        say(f"{SERVICES} services loaded in {open_node(nodes, wire, wanted):.2f} s")
        series = measure(made)
    harness.table(
        ["path", "address", "connect p50", "p90", "p99", "whole p50", "connects/s"],
        [
            (PATHS[path], "by chance" if spread > 1 else "the same",
             *(median(part.connect[i] for part in slices) for i in range(3)),
             median(part.whole[0] for part in slices), median(part.per_second for part in slices))
            for (path, spread), slices in series.items()
        ],
    )  # fmt: skip
    harness.report(BENCH, ROUNDS, figures(series))


def answer_everything(wire: Wire) -> None:
    """Let the server have all the addresses that are services elsewhere, for connections without any."""
    run("ip", "-n", wire.node, "route", "add", kubeproxy.SERVICE_CIDR, "via", SERVERS[0])
    run("ip", "-n", wire.server, "route", "add", "local", kubeproxy.SERVICE_CIDR, "dev", "lo")


def measure(made: dict[str, Wire]) -> dict[tuple[str, int], list[Slice]]:
    variants = [(path, spread) for path in PATHS for spread in (1, SERVICES)]
    series: dict[tuple[str, int], list[Slice]] = {variant: [] for variant in variants}
    for variant in variants:
        dial(made, *variant, WARM_UP)
    for _, variant in rounds_of(variants, ROUNDS):
        series[variant].append(dial(made, *variant, CONNECTS))
        made[variant[0]].forget()
    return series


def dial(made: dict[str, Wire], path: str, spread: int, count: int) -> Slice:
    port = PORT if path == "direct" else kubeproxy.SERVICE_PORT
    return made[path].slice("crr", kubeproxy.vip_of_last(1), port, count, spread=spread)


def figures(series: dict[tuple[str, int], list[Slice]]) -> dict[str, Figure]:
    p50 = {variant: [part.connect[0] for part in slices] for variant, slices in series.items()}
    hot, cold = p50["ours", 1], p50["ours", SERVICES]
    ours, without = ratios(cold, hot), ratios(p50["direct", SERVICES], p50["direct", 1])
    return {
        "connect_cold_over_hot_100k": Figure(
            ratios(ours, without),
            "ratio of connect p50, over the same ratio without load balancing",
            f"by chance {median(cold):.2f} us, always the same {median(hot):.2f} us: {median(ours):.2f}",
            f"no load balancing: {median(without):.2f}",
            at_most=1.15,
        )
    }


if __name__ == "__main__":
    main()
