"""Connecting through a ClusterIP while the number of services grows from 10 to 100,000.

Client, node and server are namespaces; the service that is dialled is the last of its node's. Every variant
is there for the whole run, and all are measured in turn, a slice each, in every round.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

from attrs import frozen

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, median, ratios, rounds_of, say
from benchmarks.ours import open_node
from benchmarks.topology import PORT, SERVERS, Slice, Wire, wires

BENCH = "svc_scale"
ROUNDS = 15
CONNECTS = 2000  # a slice; with all rounds fewer than the client has ports, so none is ever searched for
REQUESTS = 5000
WARM_UP = 200


@frozen
class Variant:
    """One way to reach the server."""

    kind: str
    services: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.services}" if self.services else self.kind

    @property
    def target(self) -> tuple[str, int]:
        if not self.services:
            return SERVERS[0], PORT
        return kubeproxy.vip_of_last(self.services), kubeproxy.SERVICE_PORT


NONE = Variant("none")
VARIANTS = (
    NONE,
    *(Variant("legacy", count) for count in (10, 1000, 10_000)),
    Variant("bare", 10_000),
    *(Variant("nftables", count) for count in (10, 1000, 10_000)),
    *(Variant("ours", count) for count in (10, 1000, 10_000, 100_000)),
)
TITLES = {
    "none": "no load balancing",
    "legacy": "iptables-legacy",
    "bare": "iptables-legacy, no comments",
    "nftables": "nftables",
    "ours": "k8sdatapath",
}


@frozen
class Series:
    """What one variant showed, a value per round."""

    crr: list[Slice]
    rr: list[Slice]

    @property
    def connect(self) -> list[float]:
        return [part.connect[0] for part in self.crr]


def main() -> None:
    print(f"{BENCH}: connecting through a ClusterIP, {ROUNDS} rounds, medians, microseconds\n")
    names = tuple(variant.name for variant in VARIANTS)
    with (
        harness.compiled("rr") as program,
        wires(names, program("rr")) as made,
        ExitStack() as nodes,
    ):
        for variant in VARIANTS:
            set_up(variant, made[variant.name], nodes)
        series = measure(made)
    harness.table(
        ["", "services", "connect p50", "p90", "p99", "whole p50", "connects/s", "keep-alive p50"],
        [row(variant, series[variant]) for variant in VARIANTS],
    )
    harness.report(BENCH, ROUNDS, figures(series))


def set_up(variant: Variant, wire: Wire, nodes: ExitStack) -> None:
    """Fill the variant's node with its services."""
    if not variant.services:
        return
    tested = [(ip, PORT) for ip in SERVERS]
    wanted = list(kubeproxy.services(variant.services, tested))
    match variant.kind:
        case "legacy":
            seconds = kubeproxy.IPTables.load(wire.node, wanted)
        case "bare":
            seconds = kubeproxy.IPTables.load(wire.node, wanted, comments=False)
        case "nftables":
            seconds = kubeproxy.NFTables.load(wire.node, wanted)
        case _:
            seconds = open_node(nodes, wire, wanted)
    say(f"{TITLES[variant.kind]}: {variant.services} services loaded in {seconds:.2f} s")


def measure(made: dict[str, Wire]) -> dict[Variant, Series]:
    """Slices of all variants in turn."""
    series: dict[Variant, Series] = defaultdict(lambda: Series([], []))
    for variant in VARIANTS:
        made[variant.name].slice("crr", *variant.target, WARM_UP)
    say("measuring")
    for _, variant in rounds_of(VARIANTS, ROUNDS):
        wire = made[variant.name]
        series[variant].crr.append(wire.slice("crr", *variant.target, CONNECTS))
        series[variant].rr.append(wire.slice("rr", *variant.target, REQUESTS))
        wire.forget()
    print()
    return series


def row(variant: Variant, series: Series) -> list[object]:
    connect = [median(part.connect[i] for part in series.crr) for i in range(3)]
    whole = median(part.whole[0] for part in series.crr)
    rate = median(part.per_second for part in series.crr)
    alive = median(part.whole[0] for part in series.rr)
    return [
        TITLES[variant.kind],
        f"{variant.services:,}" if variant.services else "",
        *connect,
        whole,
        rate,
        alive,
    ]


def figures(series: dict[Variant, Series]) -> dict[str, Figure]:
    none, ours = series[NONE].connect, series[Variant("ours", 10_000)].connect
    legacy, nftables = (series[Variant(kind, 10_000)].connect for kind in ("legacy", "nftables"))
    smallest, largest = (series[Variant("ours", count)].connect for count in (10, 100_000))

    def us(samples: list[float]) -> str:
        return f"{median(samples):.2f} us"

    return {
        "connect_legacy_over_ours_10k": Figure(
            ratios(legacy, ours),
            "ratio of connect p50",
            us(ours),
            f"iptables-legacy {us(legacy)}",
            at_least=3,
        ),
        "connect_nftables_over_ours_10k": Figure(
            ratios(nftables, ours), "ratio of connect p50", us(ours), f"nftables {us(nftables)}", at_least=1
        ),
        "connect_ours_100k_over_10": Figure(
            ratios(largest, smallest),
            "ratio of connect p50",
            f"100,000 services {us(largest)}",
            f"10 services {us(smallest)}",
            at_most=1.10,
        ),
        "connect_added_us_over_none": Figure(
            tuple(a - b for a, b in zip(ours, none, strict=True)),
            "us of connect p50, 10,000 services",
            us(ours),
            f"no load balancing {us(none)}",
            at_most=1.0,
        ),
    }


if __name__ == "__main__":
    main()
