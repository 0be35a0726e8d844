"""From the list of a cluster's Services to the kernel, and from one event to the kernel: the whole way.

The API server is a process of its own (``api_server.py``), and so is what is measured: the watch, the
translation and the reconciler over the maps of a loaded object, as the agent composes them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from threading import Event

from attrs import asdict, frozen

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, Helper, median, say
from benchmarks.ours import service_table
from benchmarks.topology import lone_node
from k8sdatapath.kube import KubeWatch, node_local
from k8sdatapath.reconcile import Applied, Reconciler, ShortPauses

BENCH = "kube_sync"
ROUNDS = 3
SERVICES, ENDPOINTS = 10_000, 10
FEW = 10
CHANGES, GAP_US = 2000, 1500  # one after the other
FLOODS = 4  # all slices change, one endpoint each, as fast as they come


@frozen
class Round:
    """What one process measured: seconds, MB, and microseconds of each change; and of many at once."""

    cpu: float
    wall: float
    rss: float
    changes: tuple[float, ...]
    per_second: float
    flood_cpu: float

    def quantile(self, share: float) -> float:
        every = sorted(self.changes)
        return every[int(len(every) * share)]


def main() -> None:
    print(f"{BENCH}: {SERVICES:,} Services of {ENDPOINTS} endpoints from an API server, {ROUNDS} rounds\n")
    rules = load_rules()
    many, few = [], []
    for number in range(ROUNDS):
        few.append(measure(FEW))
        many.append(measure(SERVICES))
        last = many[-1]
        say(f"round {number + 1}: {last.cpu:.2f} s CPU, {last.rss:.0f} MB, p50 {last.quantile(0.5):.0f} us")
    harness.table(
        ["one slice changed", "services", "p50 us", "p99 us", "slowest us"],
        [
            (
                "k8sdatapath",
                f"{size:,}",
                median(each.quantile(0.5) for each in rounds),
                median(each.quantile(0.99) for each in rounds),
                max(max(each.changes) for each in rounds),
            )
            for size, rounds in ((FEW, few), (SERVICES, many))
        ],
    )
    harness.report(BENCH, ROUNDS, figures(many, few, rules))


def load_rules() -> dict[str, float]:
    """Seconds to load the same set by the tools that kube-proxy calls."""
    seconds = {}
    wanted = list(kubeproxy.services(SERVICES, endpoints=ENDPOINTS))
    for name, mode in (("iptables-restore", kubeproxy.IPTables), ("nft -f", kubeproxy.NFTables)):
        with lone_node("rules") as netns:
            seconds[name] = mode.load(netns, wanted)  # type: ignore[attr-defined]
        say(f"{name}: {seconds[name]:.1f} s")
    return seconds


def measure(services: int) -> Round:
    """In a process of its own."""
    command = [sys.executable, "-m", "benchmarks.kube_sync", str(services)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Round(**json.loads(done.stdout))


def agent(services: int) -> None:
    """Be that process."""
    from kubernetes.client import ApiClient, Configuration

    latencies: list[float] = []
    flooded, goal = Event(), 0

    def follow(applied: Applied) -> None:
        if not goal:
            now = time.monotonic()
            latencies.extend((now - each.received) * 1e6 for each in applied.delta.told)
        elif reconciler.metrics.changed >= goal:
            flooded.set()

    server = [sys.executable, "-m", "benchmarks.api_server", str(services), str(ENDPOINTS)]
    with Helper(*server) as api, service_table(services, ENDPOINTS) as table:
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{int(api.answer())}"
        watch = KubeWatch(ApiClient(configuration), ["services", "endpointslices"])
        cpu, wall = time.process_time(), time.perf_counter()
        with Reconciler(
            node_local(watch, "n1"), table, follow, ShortPauses()
        ).start() as reconciler:  # as the agent has
            assert reconciler.wait_synced(60)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            assert len(table) == services
            api.ask("prepare", CHANGES)
            latencies.clear()
            api.ask("send", GAP_US)
            time.sleep(0.2)
            changes = latencies[:]
            flood_cpu, flood = 0.0, 0.0
            for _ in range(FLOODS if services == SERVICES else 0):
                api.ask("prepare", services)
                flooded.clear()
                goal = reconciler.metrics.changed + services  # none is one with another
                cpu_before, start = time.process_time(), time.monotonic()
                api.ask("send", 0)
                assert flooded.wait(60)
                flood_cpu += time.process_time() - cpu_before
                flood += time.monotonic() - start
            assert not reconciler.errors()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    total = FLOODS * services
    per_second = total / flood if flood else 0.0
    result = Round(cpu, wall, rss, tuple(changes), per_second, flood_cpu / total * 1e6)
    print(json.dumps(asdict(result)))


def figures(many: list[Round], few: list[Round], rules: dict[str, float]) -> dict[str, Figure]:
    beside = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in rules.items())
    cpu, p50 = tuple(each.cpu for each in many), tuple(each.quantile(0.5) for each in many)
    p99 = tuple(each.quantile(0.99) for each in many)
    growth = harness.ratios(p99, [each.quantile(0.99) for each in few])
    ours = "KubeWatch, node_local and Reconciler, from the first byte of the list to the kernel"
    change = "from the bytes of an event to the kernel"
    none = "a proxy that writes rules starts a process for each change (see svc_change)"
    return {
        "cpu_s_10k_x10": Figure(cpu, "s CPU", ours, f"rules alone: {beside}", at_most=2.0),
        "wall_s_10k_x10": Figure(
            tuple(each.wall for each in many), "s", ours, f"rules alone: {beside}", at_most=5.0
        ),
        "rss_mb": Figure(
            tuple(each.rss for each in many), "MB", "the process at its largest", "", at_most=250
        ),
        "change_p50_us": Figure(p50, "us", change, none, at_most=1000),
        "change_p99_us": Figure(p99, "us", change, none, at_most=2000),
        "change_p99_10k_over_10": Figure(
            growth, "ratio", f"{SERVICES:,} services over {FEW}", "", at_most=2.0
        ),
        "change_cpu_us": Figure(
            tuple(each.flood_cpu for each in many),
            "us CPU",
            "of all threads, for each of many changes that come as fast as they can",
            none,
            at_most=100,
        ),
        "changes_per_s": Figure(
            tuple(each.per_second for each in many),
            "changes/s",
            f"{SERVICES:,} slices change as fast as they come, until the last is in the kernel, "
            f"{FLOODS} times: each is written for itself",
            none,
            at_least=10_000,
        ),
    }


if __name__ == "__main__":
    agent(int(sys.argv[1])) if sys.argv[1:] else main()
