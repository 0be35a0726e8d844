"""What the first packet of a flow costs, against the kernel's own tracking, and how long collecting takes.

Every packet is a SYN of a flow of its own, sent as a frame by the client, through the node, to a service. The
server drops it as it comes in: nobody answers, so that nothing is in the figure but the way there.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, median, pinned, ratios, rounds_of, say
from benchmarks.ours import open_node
from benchmarks.topology import CLIENT, PORT, SERVERS, Wire, inside, run, wires
from k8sdatapath import maps
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.layout import layout_of
from k8sdatapath.net import packet
from k8sdatapath.net.netns import NetNs
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Tuple

BENCH = "conntrack"
ROUNDS = 11
FLOWS = 5000  # a slice: with all rounds fewer than the client has ports, and than netfilter's table has room
SERVICES = 10
ENTRIES = 1 << 19
GC_ROUNDS = 7

PATHS = {
    "none": "no tracking, no load balancing",
    "tracked": "nf_conntrack, no load balancing",
    "nftables": "nf_conntrack and nftables kube-proxy",
    "ours": "k8sdatapath",
}
TRACK = (
    "add table ip t; add chain ip t c { type filter hook forward priority 0; }; add rule ip t c ct state new"
)
DROP = (
    "add table netdev d; add counter netdev d seen; "
    "add chain netdev d c { type filter hook ingress device eth0 priority 0; }; "
    "add rule netdev d c ip protocol tcp counter name seen drop"
)


def main() -> None:
    print(f"{BENCH}: {FLOWS:,} new flows a slice, {ROUNDS} rounds; {ENTRIES:,} entries; medians\n")
    flows = new_flows()
    harness.table(
        ["path", "ns a packet", "over none"],
        [(PATHS[path], median(ns), median(ns) - median(flows["none"])) for path, ns in flows.items()],
    )
    collected = collecting()
    harness.table(["512k entries", "seconds"], [(what, median(took)) for what, took in collected.items()])
    harness.report(BENCH, ROUNDS, figures(flows, collected))


def new_flows() -> dict[str, list[float]]:
    """Nanoseconds for each packet, a value per round."""
    series: dict[str, list[float]] = defaultdict(list)
    with (
        harness.compiled("rr") as program,
        wires(tuple(PATHS), program("rr")) as made,
        ExitStack() as running,
    ):
        wanted = list(kubeproxy.services(SERVICES, [(ip, PORT) for ip in SERVERS]))
        kubeproxy.NFTables.load(made["nftables"].node, wanted)
        run(*inside(made["tracked"].node, "nft", TRACK))
        open_node(running, made["ours"], wanted)
        senders = {path: Sender(wire, path, running) for path, wire in made.items()}
        with pinned():
            for number, path in rounds_of(tuple(PATHS), ROUNDS + 1):
                took = senders[path].send(range(1024 + number * FLOWS, 1024 + (number + 1) * FLOWS))
                if number:  # the first warms up
                    series[path].append(took / FLOWS * 1e9)
    return {path: series[path] for path in PATHS}


class Sender:
    """The client of a wire, as a source of frames."""

    def __init__(self, wire: Wire, path: str, running: ExitStack) -> None:
        run(*inside(wire.server, "nft", DROP))
        self._wire = wire
        balanced = path in ("nftables", "ours")
        self._target = (
            (kubeproxy.vip_of_last(SERVICES), kubeproxy.SERVICE_PORT) if balanced else (SERVERS[0], PORT)
        )
        with NetNs.open(wire.client) as netns:
            self._socket = running.enter_context(
                netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
            )
        self._socket.bind(("eth0", 0))

    def send(self, ports: range) -> float:
        """A SYN from each port; seconds."""
        address, port = self._target
        macs = {"src_mac": self._wire.client_mac, "dst_mac": self._wire.node_mac}
        frames = [packet.tcp(CLIENT, address, sport, port, **macs) for sport in ports]
        before, send = self._seen(), self._socket.send
        start = time.perf_counter()
        for frame in frames:
            send(frame)
        took = time.perf_counter() - start
        if (arrived := self._seen() - before) != len(frames):
            raise RuntimeError(f"{self._wire.name}: {arrived} of {len(frames)} arrived")
        return took

    def _seen(self) -> int:
        command = inside(self._wire.server, "nft", "-j", "list", "counter", "netdev", "d", "seen")
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return next(each["counter"]["packets"] for each in told["nftables"] if "counter" in each)


def collecting() -> dict[str, list[float]]:
    """Seconds of a pass over a table, a value per round."""
    took: dict[str, list[float]] = defaultdict(list)
    with (
        maps.LRUHash[Tuple, ConntrackRow].create("kdbench", ENTRIES * 5 // 4) as table,
        ConntrackTable.bind({"kd_conntrack": table}) as flows,
        pinned(),
    ):
        now = int(time.monotonic())
        entries = packed(now)
        table.update_packed(*entries)
        found = len(table)
        say(f"{found:,} entries")
        for _ in range(GC_ROUNDS):
            took["read, in batches"].append(timed(table.items_packed))
            took["collect, all alive"].append(timed(lambda: flows.collect(now)))
        if len(table) != found:
            raise RuntimeError(f"of {found} live entries {len(table)} are left")
        for _ in range(2):
            took["collect, all over"].append(timed(lambda: flows.collect(now + 10_000)))
            table.update_packed(*entries)
    return took


def packed(now: int) -> tuple[bytes, bytes]:
    """Both halves of established flows, as a program leaves them."""
    keys, rows = [], []
    for tuple_, to in tuples():
        keys += [tuple_, reverse(to)]
        rows.append(ConntrackRow(to, 5, 320, 1, now, FlowFlags.SEEN_REPLY))
        rows.append(ConntrackRow(reverse(tuple_), 5, 320, 1, now, FlowFlags.REPLY))
    return layout_of(Tuple).pack_many(keys), layout_of(ConntrackRow).pack_many(rows)


def tuples() -> Iterator[tuple[Tuple, Tuple]]:
    vip, backend = ip_address(kubeproxy.vip_of_last(1)), ip_address(SERVERS[0])
    for number in range(ENTRIES // 2):
        client, port = ip_address(0x0A800000 + number // 50_000), 1024 + number % 50_000
        yield Tuple(client, vip, port, 80, 6), Tuple(client, backend, port, PORT, 6)


def reverse(tuple_: Tuple) -> Tuple:
    return Tuple(tuple_.dst, tuple_.src, tuple_.dport, tuple_.sport, tuple_.protocol)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def figures(flows: dict[str, list[float]], collected: dict[str, list[float]]) -> dict[str, Figure]:
    scan, read = collected["collect, all alive"], collected["read, in batches"]
    return {
        "kernel_nf_over_ours_new_flows": Figure(
            ratios(flows["nftables"], flows["ours"]),
            "ratio of time per packet",
            f"k8sdatapath: {median(flows['ours']):.0f} ns",
            f"nf_conntrack and nftables kube-proxy: {median(flows['nftables']):.0f} ns",
            at_least=1.5,
        ),
        "gc_s_512k": Figure(
            tuple(scan),
            "s",
            f"ConntrackTable.collect() over {ENTRIES:,} live entries",
            f"reading them in batches, nothing else: {median(read):.3f} s",
            at_most=0.5,
        ),
    }


if __name__ == "__main__":
    main()
