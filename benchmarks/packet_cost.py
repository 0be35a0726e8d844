"""What a packet costs in the programs of a stock node, over an empty program, by test run.

The programs are taken off the hooks of a running node. A small program stands before them which restores
the packet and gives it its flow every time (csrc/again.bpf.c); the empty program stands behind the same.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from socket import if_nametoindex

from attrs import evolve, frozen

from benchmarks import harness, kubeproxy
from benchmarks.harness import CSRC, Figure, median, ratios, rounds_of, say
from benchmarks.ours import capacity
from benchmarks.topology import CLIENT, PORT, lone_node, run
from k8sdatapath import compiler, maps
from k8sdatapath.layout import u64
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import parse, tcp
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.objects import Object
from k8sdatapath.programs import TC, TcAction
from k8sdatapath.pybpf import progs
from k8sdatapath.pybpf.fd import Fd

BENCH = "packet_cost"
ROUNDS = 9
PACKETS = 200_000  # a slice
NEW = 20_000  # a slice of new flows
MANY = 1 << 15  # flows
ROOM = 1 << 20  # entries of the flow table: all new flows of a run find a free one
_TCX_INGRESS = 46
_CTX = 192  # bytes of struct __sk_buff, at least
_CTX_IFINDEX = 40

NODE_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
OUTSIDE = "192.0.2.2"  # a client, and the next hop to the other nodes
PODS = [str(IPv4Address("10.244.1.16") + number) for number in range(64)]  # of this node
REMOTE = [str(IPv4Address("10.244.9.16") + number) for number in range(64)]  # of another


@frozen
class Case:
    """One kind of packet at one hook.

    :ivar flows: that take turns; 0: each packet is the first of its own.
    :ivar room: entries of the flow table.
    """

    title: str
    services: int
    flows: int
    device: str = "pod0"
    client: str = CLIENT
    backends: tuple[str, ...] = tuple(PODS)
    room: int = ROOM

    @property
    def node(self) -> tuple[int, tuple[str, ...], int]:
        """What its node is filled with: equal cases share one."""
        return self.services, self.backends, self.room

    @property
    def packets(self) -> int:
        return PACKETS if self.flows else NEW


def local(title: str, flows: int) -> tuple[Case, ...]:
    return tuple(Case(f"ClusterIP local, {title}", services, flows) for services in (10, 10_000, 50_000))


def remote(title: str, flows: int) -> Case:
    return Case(f"VIP at the uplink, remote, {title}", 10, flows, "up0", OUTSIDE, tuple(REMOTE))


ESTABLISHED = local("established", 1)
MANY_FLOWS = local("32k flows", MANY)
NEW_FLOWS = local("new", 0)
FULL = Case("ClusterIP local, new, table full", 10, 0, room=1 << 16)
LB_ESTABLISHED, LB_NEW = remote("established", 1), remote("new", 0)
CASES = (*ESTABLISHED, *MANY_FLOWS, *NEW_FLOWS, FULL, LB_ESTABLISHED, LB_NEW)


class Bench:
    """A case, ready to run: the tested program and the empty one, each behind its own restorer."""

    def __init__(self, case: Case, netns: NetNs, own: ExitStack) -> None:
        self.case = case
        self._netns = netns
        spec = compiler.compile(CSRC / "again.bpf.c", flags=["-Werror"])
        spec = spec.with_config(flows=case.flows, services=case.services)
        index, entry = netns.call(_entry, case.device)
        own.enter_context(entry)
        self._ctx = bytearray(_CTX)
        struct.pack_into("=I", self._ctx, _CTX_IFINDEX, index)
        self._ours, self._empty = (own.enter_context(spec.load()) for _ in range(2))
        self._ours.map("tested", maps.ProgArray)[0] = entry
        self._empty.map("tested", maps.ProgArray)[0] = self._empty.program("tc_empty", TC)
        for flags in ("S", "A"):  # begin all flows, then be one of their packets
            for loaded in (self._ours, self._empty):
                self._start(loaded, flags if case.flows else "S")
            self.run(case.flows or 1)
        if case == FULL:
            self.run(case.room)

    def run(self, packets: int) -> tuple[int, int]:
        """Mean nanoseconds of a packet, ours and empty."""
        return self._run(self._ours, packets, TcAction.REDIRECT), self._run(
            self._empty, packets, TcAction.UNSPEC
        )

    def _run(self, loaded: Object, packets: int, action: TcAction) -> int:
        program = loaded.program("tc_again", TC)
        packet, ctx = self._packet("A"), bytes(self._ctx)
        done = self._netns.call(program.run, packet, ctx=ctx, repeat=packets)
        if done.retval != action:
            raise RuntimeError(f"{self.case.title}: answered {done.retval}, last packet {parse(done.data)}")
        if action == TcAction.REDIRECT and str(parse(done.data).dst) not in self.case.backends:
            raise RuntimeError(f"{self.case.title}: not translated: {parse(done.data)}")
        return done.duration_ns

    def _start(self, loaded: Object, flags: str) -> None:
        headers = self._packet(flags)[:54]
        loaded.map("start", maps.Array)[0] = headers.ljust(64, b"\0")
        if self.case.flows:
            loaded.map("count", maps.Array[u64])[0] = 0

    def _packet(self, flags: str) -> bytes:
        vip, port = kubeproxy.vip_of_last(1), kubeproxy.SERVICE_PORT
        return tcp(self.case.client, vip, 1024, port, flags, bytes(6), src_mac=PEER_MAC, dst_mac=NODE_MAC)


def _entry(device: str) -> tuple[int, Fd]:
    """The device's index, and the program at its ingress; of the calling thread's namespace."""
    index = if_nametoindex(device)
    (number,) = progs.query(index, _TCX_INGRESS)
    return index, progs.open_by_id(number)


def services(count: int, backends: tuple[str, ...]) -> Iterator[Service]:
    """Services with three backends each; together they use all."""
    for service in kubeproxy.services(count):
        chosen = [backends[(3 * service.number + i) % len(backends)] for i in range(3)]
        yield Service(
            service.vip,
            kubeproxy.SERVICE_PORT,
            backends=[Backend(ip, PORT) for ip in chosen],
            name=service.name,
        )


@contextmanager
def open_node(number: int, count: int, backends: tuple[str, ...], room: int) -> Iterator[NetNs]:
    """A stock node with a pod and an uplink, in a namespace of its own."""
    with lone_node(f"cost{number}") as name, NetNs.open(name) as netns:
        run("ip", "-n", name, "-batch", "-", stdin="\n".join(_DEVICES))
        netns.call(_forward)
        config = NodeConfig(
            name=name, netns=netns, uplinks=["up0"], capacity=evolve(capacity(count, 3), flows=room)
        )
        with Node.open(config) as node:
            node.attach_pod("pod0", map(IPv4Address, [CLIENT, *PODS]), pod_mac=PEER_MAC)
            node.services.plan(services(count, backends)).apply()
            yield netns


_DEVICES = (
    *(
        f"link add {device} address {NODE_MAC} type veth peer name {peer} address {PEER_MAC}"
        for device, peer in (("pod0", "peer0"), ("up0", "peer1"))
    ),
    *(f"link set {device} up" for device in ("lo", "pod0", "peer0", "up0", "peer1")),
    "address add 10.244.0.1/23 dev pod0",
    "address add 192.0.2.1/24 dev up0",
    f"neigh replace {OUTSIDE} lladdr {PEER_MAC} dev up0 nud permanent",
    f"route add 10.244.9.0/24 via {OUTSIDE}",
)


def _forward() -> None:
    with open("/proc/sys/net/ipv4/ip_forward", "w") as setting:
        setting.write("1")


def main() -> None:
    print(f"{BENCH}: a packet in the programs of a node, {ROUNDS} rounds, medians, nanoseconds\n")
    with ExitStack() as own, harness.pinned():
        nodes = {}
        for case in CASES:
            if case.node not in nodes:
                nodes[case.node] = own.enter_context(open_node(len(nodes), *case.node))
                say(f"a node with {case.services} services, of backends such as {case.backends[0]}")
        benches = [Bench(case, nodes[case.node], own) for case in CASES]
        ours, empty = measure(benches)
    harness.table(
        ["packet", "services", "ours ns", "empty ns", "net ns", "ours / empty"],
        [
            (case.title, f"{case.services:,}", median(ours[case]), median(empty[case]),
             median(a - b for a, b in zip(ours[case], empty[case], strict=True)),
             median(ratios(ours[case], empty[case])))
            for case in CASES
        ],
    )  # fmt: skip
    harness.report(
        BENCH,
        ROUNDS,
        {name: figure(ours[case], empty[case], gate) for name, (case, gate) in FIGURES.items()},
    )


def measure(benches: list[Bench]) -> tuple[dict[Case, list[float]], dict[Case, list[float]]]:
    """Nanoseconds per round of all cases in turn: ours, and the empty program's."""
    ours: dict[Case, list[float]] = defaultdict(list)
    empty: dict[Case, list[float]] = defaultdict(list)
    for _, bench in rounds_of(benches, ROUNDS):
        bench.run(bench.case.flows or 1)  # what the others drove out of the caches comes back
        a, b = bench.run(bench.case.packets)
        ours[bench.case].append(a)
        empty[bench.case].append(b)
    return ours, empty


# Half of what Cilium's programs took in the same measurement.
FIGURES = {
    "clusterip_established_over_empty": (ESTABLISHED[-1], 12.0),
    "clusterip_new_over_empty": (NEW_FLOWS[0], 35.5),
    "clusterip_32k_flows_over_empty": (MANY_FLOWS[-1], 30.0),
    "lb_tc_remote_established_over_empty": (LB_ESTABLISHED, 10.0),
}


def figure(ours: list[float], empty: list[float], gate: float) -> Figure:
    return Figure(
        ratios(ours, empty),
        "ratio of time per packet",
        f"{median(ours):.0f} ns",
        f"empty program {median(empty):.0f} ns",
        at_most=gate,
    )


if __name__ == "__main__":
    main()
