"""What a node takes per packet to a service whose backend is elsewhere: at XDP, at TC, by nftables.

Packets are made at the node's own uplink, where a small XDP program sends on one frame again and again as if
it had just arrived (``BPF_F_TEST_XDP_LIVE_FRAMES``); they leave through the same device, and its other end
counts and drops them. So there is no sender and no receiver in the figures.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import if_nametoindex

from attrs import field, frozen

from benchmarks import harness, kubeproxy
from benchmarks.harness import CSRC, Figure, median, ratios, rounds_of, say
from benchmarks.packet_cost import xdp_context, xdp_entry
from benchmarks.topology import PORT, inside, lone_node, run
from k8sdatapath import compiler, maps
from k8sdatapath.layout import u64
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import parse, udp
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import XDP, XdpAction
from k8sdatapath.pybpf import progs

BENCH = "xdp_lb"
ROUNDS = 15
PARTS = 5  # slices in a round, of which the best counts: a vCPU may share its core with the other one
PACKETS = 30_000  # a slice
HOT = 1_000_000  # runs of the program alone
LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
BATCH = 64

CLIENT, ROUTER, BACKEND = "192.0.2.9", "192.0.2.2", "10.244.9.16"
VIP = kubeproxy.vip_of_last(1)
NODE_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
PATHS = {
    "xdp": "k8sdatapath, XDP",
    "tc": "k8sdatapath, TC",
    "nftables": "nftables DNAT",
    "route": "no load balancing",
}

_UP = (
    f"link add up0 address {NODE_MAC} type veth peer name peer0 address {PEER_MAC}",
    *(f"link set {device} up" for device in ("lo", "up0", "peer0")),
    "address add 192.0.2.1/24 dev up0",
    f"neigh replace {ROUTER} lladdr {PEER_MAC} dev up0 nud permanent",
    f"route add 10.244.0.0/16 via {ROUTER}",
)
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.up0.send_redirects=0",
)
_DNAT = f"""table ip lb {{
    chain prerouting {{
        type nat hook prerouting priority -100;
        ip daddr {VIP} udp dport {kubeproxy.SERVICE_PORT} dnat to {BACKEND}:{PORT}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100;
        ip daddr {BACKEND} udp dport {PORT} masquerade
    }}
}}
"""


@frozen
class Path:
    """A node, and a source of packets at its uplink."""

    name: str
    netns: NetNs
    arrived: maps.Array[int]
    source: Object
    index: int
    frame: bytes = field(repr=False)

    def send(self, packets: int) -> int:
        """Nanoseconds a packet, all of which arrived where the service leads."""
        before = self.arrived[0]
        taken = self.netns.call(self._send, packets)
        if (came := self.arrived[0] - before) < packets:
            raise RuntimeError(f"{self.name}: of {packets} packets {came} arrived")
        return taken

    def _send(self, packets: int) -> int:
        """In a thread of its own, which nothing else on this CPU interrupts."""
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        fd = self.source.program("again", XDP).fd
        ctx = xdp_context(self.index, len(self.frame))
        done = progs.run(fd, self.frame, ctx=ctx, repeat=packets, flags=LIVE_FRAMES, batch_size=BATCH)
        return done[3]  # as the kernel measured it: without making and freeing the frames


@contextmanager
def open_path(name: str, generator: ObjectSpec, sink: ObjectSpec) -> Iterator[Path]:
    with ExitStack() as own:
        space = own.enter_context(lone_node(f"xdp-{name}"))
        netns = own.enter_context(NetNs.open(space))
        run("ip", "-n", space, "-batch", "-", stdin="\n".join(_UP))
        run(*inside(space, "sysctl", "-qw", *_SYSCTLS))
        end = own.enter_context(sink.with_config(port=PORT).load())
        own.enter_context(end.program("sink", XDP).attach("peer0", netns=netns))
        if name == "nftables":
            run(*inside(space, "nft", "-f", "-"), stdin=_DNAT)
        elif name != "route":
            node = own.enter_context(Node.open(NodeConfig(netns=netns, uplinks=["up0"], xdp=name == "xdp")))
            backends = [Backend(BACKEND, PORT)]
            node.services.upsert(Service(VIP, kubeproxy.SERVICE_PORT, "UDP", backends=backends))
        target = (BACKEND, PORT) if name == "route" else (VIP, kubeproxy.SERVICE_PORT)
        frame = udp(CLIENT, target[0], 1024, target[1], bytes(18), src_mac=PEER_MAC, dst_mac=NODE_MAC)
        source = own.enter_context(generator.load())
        source.map("start", maps.Array)[0] = frame[:54].ljust(64, b"\0")
        source.map("tested", maps.ProgArray)[0] = source.program("empty", XDP)
        index, entry = (
            netns.call(xdp_entry, "up0") if name == "xdp" else (netns.call(if_nametoindex, "up0"), None)
        )
        path = Path(name, netns, end.map("arrived", maps.Array[u64]), source, index, frame)
        path.send(1)  # begins the flow, in the stack
        if entry is not None:
            source.map("tested", maps.ProgArray)[0] = own.enter_context(entry)
        yield path


def main() -> None:
    print(f"{BENCH}: a packet to a backend elsewhere, {ROUNDS} rounds, medians, nanoseconds\n")
    generator = compiler.compile(CSRC / "again.bpf.c", flags=["-Werror", "-DAT_XDP"])
    sink = compiler.compile(CSRC / "sink.bpf.c", flags=["-Werror"])
    with ExitStack() as own, harness.pinned():
        paths = [own.enter_context(open_path(name, generator, sink)) for name in PATHS]
        for path in paths:
            path.send(PACKETS)
        say("measuring")
        ns: dict[str, list[float]] = defaultdict(list)
        for _, path in rounds_of(paths, ROUNDS):
            ns[path.name].append(min(path.send(PACKETS) for _ in range(PARTS)))
        alone = program_ns(paths[0], own.enter_context(generator.load()))
    harness.table(
        ["path", "ns a packet", "lowest", "packets/s", "over XDP"],
        [
            (PATHS[name], median(taken), min(taken), 1e9 / median(taken), median(ratios(taken, ns["xdp"])))
            for name, taken in ns.items()
        ],
    )
    harness.report(BENCH, ROUNDS, figures(ns, alone))


def program_ns(path: Path, idle: Object) -> tuple[float, ...]:
    """The program alone, hot, less an empty one, in test runs that send nothing."""
    idle.map("start", maps.Array)[0] = path.frame[:54].ljust(64, b"\0")
    idle.map("tested", maps.ProgArray)[0] = idle.program("empty", XDP)
    ctx = xdp_context(path.index, len(path.frame))
    taken = []
    for _ in range(ROUNDS):
        ours, empty = (
            path.netns.call(loaded.program("again", XDP).run, path.frame, ctx=ctx, repeat=HOT // ROUNDS)
            for loaded in (path.source, idle)
        )
        if ours.retval != XdpAction.TX or str(parse(ours.data).dst) != BACKEND:
            raise RuntimeError(f"answered {ours.retval}, last packet {parse(ours.data)}")
        taken.append(ours.duration_ns - empty.duration_ns)
    return tuple(taken)


def figures(ns: dict[str, list[float]], alone: tuple[float, ...]) -> dict[str, Figure]:
    return {
        "nft_dnat_over_ours_ns": Figure(
            ratios(ns["nftables"], ns["xdp"]),
            "ratio of time per packet",
            f"XDP {median(ns['xdp']):.0f} ns",
            f"nftables DNAT {median(ns['nftables']):.0f} ns, plain routing {median(ns['route']):.0f} ns",
            at_least=2,
        ),
        "program_ns": Figure(
            alone,
            "ns a packet, hot, less an empty program",
            f"{median(alone):.0f} ns",
            "an empty program behind the same preparation",
            at_most=250,
        ),
    }


if __name__ == "__main__":
    main()
