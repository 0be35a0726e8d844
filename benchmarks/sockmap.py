"""Requests between two pods of a node whose sockets hand over what they send, or send it through the node."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks import harness
from benchmarks.harness import CPU, CSRC, Figure, Helper, median, ratios, rounds_of, sure
from benchmarks.topology import MESSAGE, Slice, inside, sliced
from k8sdatapath import Accelerated, Capacity, Lab, Service, compiler, maps
from k8sdatapath.lab.lab import Pod
from k8sdatapath.layout import u32
from k8sdatapath.programs import SkMsg, SkSkb, SockOps

BENCH = "sockmap"
ROUNDS = 61
WARM_UP = 500
CONNECTS = 150  # all of them together have ports, without waiting for those that are closed
OTHER_CPU = min(os.sched_getaffinity(0))
SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
VIP = "10.96.0.10"
TITLES = {
    "tcp": "TCP, routed by the kernel",
    "node": "TCP, by a node's programs",
    "ours": "k8sdatapath, past the stack",
    "service": "the same, through a ClusterIP",
    "least": "a program that asks nothing",
    "bound": "one that runs once",
    "unix": "a unix socket",
}


@frozen
class Style:
    """How servers wait, and their ports: not chosen, chosen, and those of programs that know nothing else."""

    server: str
    options: tuple[str, ...]
    plain: int
    chosen: int
    least: int
    bound: int

    def path(self, directory: str) -> str:
        return f"{directory}/{self.chosen}"


STYLES = {
    "recv": Style("answer", ("ordinary",), 8081, 9081, 7081, 6081),
    "epoll": Style("serve", ("ordinary",), 8080, 9080, 7080, 6080),
    "fifo": Style("serve", (), 8082, 9082, 7082, 6082),
}


@frozen
class Case:
    """What is measured of all ways.

    :ivar requests: some 10 ms: most slices are not disturbed.
    """

    title: str
    style: str = "recv"
    size: int = MESSAGE
    requests: int = 1500
    cpu: int = CPU


CASES = {
    "": Case("64 bytes, both wait in recv"),
    "epoll": Case("64 bytes, the server waits in epoll_wait", style="epoll"),
    "4k": Case("4 KiB, both wait in recv", size=4096),
    "64k": Case("64 KiB, both wait in recv", size=65536, requests=500),
    "two_cpus": Case("64 bytes, both wait in recv, each on a CPU of its own", requests=500, cpu=OTHER_CPU),
}
Way = tuple[Helper, str, int]
Found = dict[str, list[Slice]]


def main() -> None:
    print(f"{BENCH}: requests and answers, {ROUNDS} rounds, medians, microseconds\n")
    with (
        harness.compiled("rr") as program,
        tempfile.TemporaryDirectory(prefix="kdbench-") as directory,
        Lab.start(datapath=False) as plain,
        Lab.start(capacity=SMALL, accelerate=True, policy=True, flows="aggregated") as lab,
        ExitStack() as running,
    ):
        client, server = lab.pod("client"), lab.pod("server")
        caller, callee = plain.pod("client"), plain.pod("server")
        ways: dict[tuple[str, int], dict[str, Way]] = {}
        for name, style in STYLES.items():
            lab.node.services.upsert(Service(VIP, style.plain, backends=[server.at(style.chosen)]))
            path = style.path(directory)
            for port, once in ((style.least, False), (style.bound, True)):
                running.enter_context(handing_over(caller, callee, port=port, once=once))
            for pod, places in (
                (server, (style.plain, style.chosen, path)),
                (callee, (style.plain, style.least, style.bound)),
            ):
                running.enter_context(serving(pod, program("rr"), style, *map(str, places)))
            for cpu in {each.cpu for each in CASES.values() if each.style == name} or {CPU}:
                here, there = (
                    running.enter_context(helper(pod, program("rr"), "client", str(cpu), *style.options))
                    for pod in (client, caller)
                )
                ways[name, cpu] = {
                    "tcp": (there, str(callee.address), style.plain),
                    "node": (here, str(server.address), style.plain),
                    "ours": (here, str(server.address), style.chosen),
                    "service": (here, VIP, style.plain),
                    "least": (there, str(callee.address), style.least),
                    "bound": (there, str(callee.address), style.bound),
                    "unix": (here, path, 0),
                }
        chosen = [Accelerated(server.address, style.chosen) for style in STYLES.values()]
        lab.node.accelerator.plan(chosen).apply()
        found = {
            name: measure(ways[case.style, case.cpu], "rr", case.requests, case.size)
            for name, case in CASES.items()
        }
        connects = measure(ways["fifo", CPU], "crr", CONNECTS, MESSAGE)
        stats = lab.node.accelerator.stats()
    harness.say(f"{stats.handed:,} messages were handed over, {stats.others:,} others went through the stack")
    for name, case in CASES.items():
        print(f"\n{case.title}")
        show(found[name])
    print("\nconnect, 64 bytes, close")
    show(connects)
    harness.report(BENCH, ROUNDS, figures(found))


def show(found: Found) -> None:
    harness.table(
        ["", "connect p50", "p50", "p90", "p99", "a second", "over TCP"],
        [
            (
                TITLES[name],
                median(part.connect[0] for part in slices),
                *(median(part.whole[i] for part in slices) for i in range(3)),
                median(part.per_second for part in slices),
                median(rates(found, name, "tcp")),
            )
            for name, slices in found.items()
        ],
    )


@contextmanager
def handing_over(*pods: Pod, port: int, once: bool) -> Iterator[None]:
    """The least that programs can do for these pods' connections to a port.

    :param once: and less than that: only the first message is looked at, and FIONREAD is forgotten.
    """
    spec = compiler.compile(CSRC / "handover.bpf.c", flags=["-Werror"]).with_config(port=port, once=once)
    with spec.load() as loaded, ExitStack() as links:
        sockets = loaded.map("sockets", maps.SockHash[u32])
        links.enter_context(loaded.program("sends", SkMsg).attach(sockets))
        if not once:
            links.enter_context(loaded.program("receives", SkSkb).attach(sockets))
        for pod in pods:
            links.enter_context(loaded.program("connects", SockOps).attach(pod.cgroup.path))
        yield


@contextmanager
def serving(server: Pod, program: Path, style: Style, *places: str) -> Iterator[None]:
    """Answer at each port and path meanwhile."""
    with ExitStack() as servers:
        for place in places:
            order = (style.server, place, str(CPU), *style.options)
            servers.enter_context(helper(server, program, *order)).answer()
        yield


def helper(pod: Pod, program: Path, *arguments: str) -> Helper:
    """In the pod's namespace and cgroup."""
    enter = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', str(pod.cgroup.path / "cgroup.procs")]
    return Helper(*inside(pod.netns.name or "", *enter, str(program), *arguments))


def measure(ways: dict[str, Way], kind: str, count: int, size: int) -> Found:
    """Slices of all ways in turn."""
    found: Found = defaultdict(list)
    for asker, address, port in ways.values():
        sliced(asker, kind, address, port, WARM_UP, size=size)
    for _, name in rounds_of(tuple(ways), ROUNDS):
        asker, address, port = ways[name]
        found[name].append(sliced(asker, kind, address, port, count, size=size))
    return dict(found)


def figures(found: dict[str, Found]) -> dict[str, Figure]:
    made = {}
    for name, case in found.items():
        suffix = f"_{name}" if name else ""
        made[f"ours_over_tcp_tps{suffix}"] = rate(case, "tcp", at_least=1.3 if name == "two_cpus" else 1.8)
        if name != "two_cpus":
            made[f"latency_ours_over_unix{suffix}"] = latency(case)
    made["ours_over_node_tps"] = rate(found[""], "node", at_least=1.8)
    made["ours_over_least_tps"] = rate(found[""], "least", at_least=0.95)
    return made


def rates(found: Found, above: str, below: str) -> tuple[float, ...]:
    per_second = {name: [part.per_second for part in found[name]] for name in (above, below)}
    return ratios(per_second[above], per_second[below])


def rate(found: Found, base: str, *, at_least: float) -> Figure:
    ours, theirs = (median(part.per_second for part in found[name]) for name in ("ours", base))
    samples = rates(found, "ours", base)
    return Figure(
        samples,
        "ratio of requests per second",
        f"{ours:,.0f}/s",
        f"{TITLES[base]} {theirs:,.0f}/s",
        at_least=at_least,
        sure=sure([samples]),
    )


def latency(found: Found) -> Figure:
    took = {name: [part.whole[0] for part in found[name]] for name in ("ours", "unix")}
    samples = ratios(took["ours"], took["unix"])
    return Figure(
        samples,
        "ratio of request p50",
        f"{median(took['ours']):.2f} us",
        f"a unix socket {median(took['unix']):.2f} us",
        at_most=1.0,
        sure=sure([samples]),
    )


if __name__ == "__main__":
    main()
