"""Requests between two pods of a node whose sockets hand over what they send, or send it through the node."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import CPU, Figure, Helper, median, ratios, rounds_of
from benchmarks.topology import Slice, inside, sliced
from k8sdatapath import Accelerated, Capacity, Lab, Service
from k8sdatapath.lab.lab import Pod

BENCH = "sockmap"
ROUNDS = 21
REQUESTS = 5000
WARM_UP = 500
CONNECTS = 400  # all of them together have ports, without waiting for those that are closed
SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
VIP = "10.96.0.10"
PLAIN, CHOSEN = 8080, 8081
TITLES = {
    "tcp": "TCP, routed by the kernel",
    "node": "TCP, by a node's programs",
    "ours": "k8sdatapath, past the stack",
    "service": "the same, through a ClusterIP",
    "unix": "a unix socket",
}


def main() -> None:
    print(f"{BENCH}: requests and answers of 64 bytes, {ROUNDS} rounds, medians, microseconds\n")
    with (
        harness.compiled("rr") as program,
        tempfile.TemporaryDirectory(prefix="kdbench-") as directory,
        Lab.start(datapath=False) as plain,
        Lab.start(capacity=SMALL, accelerate=True, policy=True) as lab,
    ):
        client, server = lab.pod("client"), lab.pod("server")
        caller, callee = plain.pod("client"), plain.pod("server")
        lab.node.services.upsert(Service(VIP, 80, backends=[server.at(CHOSEN)]))
        lab.node.accelerator.plan([Accelerated(server.address, CHOSEN)]).apply()
        path, rr, cpu = f"{directory}/unix", program("rr"), str(CPU)
        with (
            serving(server, rr, str(PLAIN), str(CHOSEN), path),
            serving(callee, rr, str(PLAIN)),
            helper(client, rr, "client", cpu) as here,
            helper(caller, rr, "client", cpu) as there,
        ):
            ways = {
                "tcp": (there, str(callee.address), PLAIN),
                "node": (here, str(server.address), PLAIN),
                "ours": (here, str(server.address), CHOSEN),
                "service": (here, VIP, 80),
                "unix": (here, path, 0),
            }
            requests = measure(ways, "rr", REQUESTS)
            connects = measure(ways, "crr", CONNECTS)
        stats = lab.node.accelerator.stats()
    harness.say(f"{stats.handed:,} messages were handed over, {stats.others:,} others went through the stack")
    harness.table(
        ["", "request p50", "p90", "p99", "requests/s", "connect p50", "whole p50"],
        [
            (TITLES[name], *(median(part.whole[i] for part in slices) for i in range(3)),
             median(part.per_second for part in slices),
             median(part.connect[0] for part in connects[name]),
             median(part.whole[0] for part in connects[name]))
            for name, slices in requests.items()
        ],
    )  # fmt: skip
    harness.report(BENCH, ROUNDS, figures(requests))


@contextmanager
def serving(server: Pod, program: Path, *places: str) -> Iterator[None]:
    """Answer at each port and path meanwhile."""
    with ExitStack() as servers:
        for place in places:
            servers.enter_context(helper(server, program, "serve", place, str(CPU))).answer()
        yield


def helper(pod: Pod, program: Path, *arguments: str) -> Helper:
    """In the pod's namespace and cgroup."""
    enter = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', str(pod.cgroup.path / "cgroup.procs")]
    return Helper(*inside(pod.netns.name or "", *enter, str(program), *arguments))


def measure(ways: dict[str, tuple[Helper, str, int]], kind: str, count: int) -> dict[str, list[Slice]]:
    """Slices of all ways in turn."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for asker, address, port in ways.values():
        sliced(asker, kind, address, port, WARM_UP)
    for _, name in rounds_of(tuple(ways), ROUNDS):
        asker, address, port = ways[name]
        found[name].append(sliced(asker, kind, address, port, count))
    return dict(found)


def figures(requests: dict[str, list[Slice]]) -> dict[str, Figure]:
    rate = {name: [part.per_second for part in slices] for name, slices in requests.items()}
    took = {name: [part.whole[0] for part in slices] for name, slices in requests.items()}
    return {
        "ours_over_tcp_tps": Figure(
            ratios(rate["ours"], rate["node"]),
            "ratio of requests per second",
            f"{median(rate['ours']):,.0f}/s",
            f"TCP by the node's programs {median(rate['node']):,.0f}/s, "
            f"by the kernel's routes {median(rate['tcp']):,.0f}/s",
            at_least=1.8,
        ),
        "latency_ours_over_unix": Figure(
            ratios(took["ours"], took["unix"]),
            "ratio of request p50",
            f"{median(took['ours']):.2f} us",
            f"a unix socket {median(took['unix']):.2f} us",
            at_most=1.0,
        ),
    }


if __name__ == "__main__":
    main()
