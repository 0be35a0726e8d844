"""Balancing a connection at its socket, against dialling the backend, and against balancing its packets."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, median, ratios, rounds_of, say
from benchmarks.ours import capacity, model, open_node
from benchmarks.topology import PORT, PREFIX, SERVERS, Slice, Wire, wires
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node, NodeConfig

BENCH = "socket_lb"
ROUNDS = 21
SERVICES = 10_000
CONNECTS = 1500
REQUESTS = 5000
WARM_UP = 200
TITLES = {
    "direct": "no load balancing",
    "socket": "k8sdatapath at the socket",
    "packet": "k8sdatapath at TC",
    "nftables": "nftables",
}


def main() -> None:
    print(f"{BENCH}: a ClusterIP among {SERVICES:,}, {ROUNDS} rounds, medians, microseconds\n")
    wanted = list(kubeproxy.services(SERVICES, [(ip, PORT) for ip in SERVERS]))
    with (
        harness.compiled("rr") as program,
        Cgroup.create(f"{PREFIX}-{os.getpid()}") as cgroup,
        wires(tuple(TITLES), program("rr")) as made,
        ExitStack() as nodes,
    ):
        balance_sockets(nodes, made["socket"], cgroup, wanted)
        open_node(nodes, made["packet"], wanted)
        seconds = kubeproxy.NFTables.load(made["nftables"].node, wanted)
        say(f"nftables: {SERVICES} services loaded in {seconds:.2f} s")
        connects, requests = measure(made)
    harness.table(
        ["", "connect p50", "p90", "p99", "whole p50", "connects/s", "keep-alive p50", "p99"],
        [
            (TITLES[name], *(median(part.connect[i] for part in slices) for i in range(3)),
             median(part.whole[0] for part in slices), median(part.per_second for part in slices),
             *(median(part.whole[i] for part in requests[name]) for i in (0, 2)))
            for name, slices in connects.items()
        ],
    )  # fmt: skip
    harness.report(BENCH, ROUNDS, figures(connects, requests))


def balance_sockets(nodes: ExitStack, wire: Wire, cgroup: Cgroup, wanted: list[kubeproxy.Service]) -> None:
    """Put the wire's client into the cgroup, whose sockets a node balances."""
    netns = nodes.enter_context(NetNs.open(wire.node))
    config = NodeConfig(
        name=wire.name,
        netns=netns,
        cgroup=cgroup.path,
        tc_lb=False,
        service_networks=[kubeproxy.SERVICE_NETWORK],
        capacity=capacity(len(wanted), 3),
    )
    nodes.enter_context(Node.open(config)).services.plan(map(model, wanted)).apply()
    cgroup.add(wire.client_pid)


def measure(made: dict[str, Wire]) -> tuple[dict[str, list[Slice]], dict[str, list[Slice]]]:
    """Slices of all variants in turn: of connections, and of requests on one."""
    connects: dict[str, list[Slice]] = defaultdict(list)
    requests: dict[str, list[Slice]] = defaultdict(list)
    for name in TITLES:
        dial(made[name], "crr", WARM_UP)
    for _, name in rounds_of(tuple(TITLES), ROUNDS):
        connects[name].append(dial(made[name], "crr", CONNECTS))
        made[name].forget()
    for _, name in rounds_of(tuple(TITLES), ROUNDS):
        requests[name].append(dial(made[name], "rr", REQUESTS))
    return dict(connects), dict(requests)


def dial(wire: Wire, kind: str, count: int) -> Slice:
    if wire.name == "direct":
        return wire.slice(kind, SERVERS[0], PORT, count)
    return wire.slice(kind, kubeproxy.vip_of_last(SERVICES), kubeproxy.SERVICE_PORT, count)


def figures(connects: dict[str, list[Slice]], requests: dict[str, list[Slice]]) -> dict[str, Figure]:
    ours, direct = ([part.connect[0] for part in connects[name]] for name in ("socket", "direct"))
    ours_rr, direct_rr = ([part.whole[0] for part in requests[name]] for name in ("socket", "direct"))
    return {
        "connect_added_us": Figure(
            tuple(a - b for a, b in zip(ours, direct, strict=True)),
            "us of connect p50",
            f"{median(ours):.2f} us",
            f"the backend's own address {median(direct):.2f} us",
            at_most=1,
        ),
        "rr_ours_over_direct": Figure(
            ratios(ours_rr, direct_rr),
            "ratio of request p50",
            f"{median(ours_rr):.2f} us",
            f"the backend's own address {median(direct_rr):.2f} us",
            at_most=1.02,
        ),
    }


if __name__ == "__main__":
    main()
