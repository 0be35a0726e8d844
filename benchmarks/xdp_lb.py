"""What a node takes per packet to a service whose backend is elsewhere: at XDP, at TC, by nftables.

Packets are made at the node's own uplink, where a small XDP program sends on one frame again and again as if
it had just arrived (``BPF_F_TEST_XDP_LIVE_FRAMES``); they leave through the same device, and its other end
counts and drops them. So there is no sender and no receiver in the figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import if_nametoindex

from attrs import evolve

from benchmarks import harness, kubeproxy, live
from benchmarks.harness import Figure, median, ratios, rounds_of, say
from benchmarks.live import NODE_MAC, PEER_MAC, Path, Source
from benchmarks.packet_cost import xdp_entry
from benchmarks.topology import PORT, inside, lone_node, run
from k8sdatapath import maps
from k8sdatapath.layout import u64
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import parse, udp
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import XDP, XdpAction

BENCH = "xdp_lb"
ROUNDS = 15
PARTS = 5  # slices in a round, of which the best counts: a vCPU may share its core with the other one
PACKETS = 30_000  # a slice
HOT = 1_000_000  # runs of the program alone

CLIENT, ROUTER, BACKEND = "192.0.2.9", "192.0.2.2", "10.244.9.16"
VIP = kubeproxy.vip_of_last(1)
PATHS = {
    "xdp": "k8sdatapath, XDP",
    "tc": "k8sdatapath, TC",
    "nftables": "nftables DNAT",
    "route": "no load balancing",
}

_UP = (
    "link set lo up",
    *live.device("up0", "peer0"),
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
        index, entry = (
            netns.call(xdp_entry, "up0") if name == "xdp" else (netns.call(if_nametoindex, "up0"), None)
        )
        source = Source(netns, own.enter_context(generator.load()), index, frame).begin(frame).give()
        path = Path(name, source, end.map("arrived", maps.Array[u64]))
        path.send(1)  # begins the flow, in the stack
        if entry is not None:
            source.give(own.enter_context(entry))
        yield path


def main() -> None:
    print(f"{BENCH}: a packet to a backend elsewhere, {ROUNDS} rounds, medians, nanoseconds\n")
    generator, sink = live.generator(), live.sink()
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
    nothing = evolve(path.source, loaded=idle).begin(path.source.frame).give()
    taken = []
    for _ in range(ROUNDS):
        ours, empty = (each.test_run(HOT // ROUNDS) for each in (path.source, nothing))
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
