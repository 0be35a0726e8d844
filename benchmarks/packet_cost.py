"""What a packet costs in the programs of a stock node, over an empty program, by test run.

The programs are taken off the hooks of a running node. A small program stands before them which restores
the packet and gives it its flow every time (csrc/again.bpf.c); the empty program stands behind the same.
Packets under policy are those of benchmarks/policed.py.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from socket import if_nametoindex

from attrs import evolve, frozen

from benchmarks import harness, kubeproxy, policed
from benchmarks.harness import CSRC, Figure, median, ratios, rounds_of, say
from benchmarks.ours import capacity
from benchmarks.policed import BEGINS, DENIED, DENIED_AT_ONCE, MANY_PEERS
from benchmarks.policed import ESTABLISHED as TALKS
from benchmarks.topology import CLIENT, PORT, lone_node, run
from k8sdatapath import compiler, maps
from k8sdatapath.layout import u64
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import parse, tcp
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.objects import Object
from k8sdatapath.programs import TC, XDP, Program, RunResult, TcAction, XdpAction
from k8sdatapath.pybpf import progs
from k8sdatapath.pybpf.fd import Fd

BENCH = "packet_cost"
ROUNDS = 9
PARTS = 5  # slices in a round
PACKETS = 65_536  # a slice
NEW = 4_000  # a slice of new flows
MANY = 1 << 15  # flows
ROOM = 1 << 20  # entries of the flow table: all new flows of a run find a free one
_TCX_INGRESS = 46

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
    xdp: bool = False
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

    @property
    def hook(self) -> type[Program]:
        return XDP if self.xdp else TC

    @property
    def answers(self) -> tuple[int, int]:
        """Of the tested program, and of the empty one."""
        return (XdpAction.TX, XdpAction.PASS) if self.xdp else (TcAction.REDIRECT, TcAction.UNSPEC)


def local(title: str, flows: int) -> tuple[Case, ...]:
    return tuple(Case(f"ClusterIP local, {title}", services, flows) for services in (10, 10_000, 50_000))


def remote(title: str, flows: int, *, xdp: bool = False) -> Case:
    where = "XDP" if xdp else "TC"
    return Case(f"VIP at {where}, remote, {title}", 10, flows, "up0", xdp, OUTSIDE, tuple(REMOTE))


ESTABLISHED = local("established", 1)
MANY_FLOWS = local("32k flows", MANY)
NEW_FLOWS = local("new", 0)
FULL = Case("ClusterIP local, new, table full", 10, 0, room=1 << 16)
LB_ESTABLISHED, LB_NEW = remote("established", 1), remote("new", 0)
XDP_ESTABLISHED = remote("established", 1, xdp=True)  # the flow that TC has begun
CASES = (*ESTABLISHED, *MANY_FLOWS, *NEW_FLOWS, FULL, LB_ESTABLISHED, LB_NEW, XDP_ESTABLISHED)


class Bench:
    """A case, ready to run: the tested program and the empty one, each behind its own restorer."""

    def __init__(self, case: Case, netns: NetNs, own: ExitStack) -> None:
        self.case = case
        self._netns = netns
        flags = ["-Werror", *(["-DAT_XDP"] if case.xdp else [])]
        spec = compiler.compile(CSRC / "again.bpf.c", flags=flags)
        spec = spec.with_config(flows=case.flows, services=case.services)
        index, entry = netns.call(xdp_entry if case.xdp else _tc_entry, case.device)
        own.enter_context(entry)
        self._ctx = xdp_context(index, len(self._packet("A"))) if case.xdp else _tc_context(index)
        self._ours, self._empty = (own.enter_context(spec.load()) for _ in range(2))
        self._ours.map("tested", maps.ProgArray)[0] = entry
        self._empty.map("tested", maps.ProgArray)[0] = self._empty.program("empty", case.hook)
        for flags in ("S", "A"):  # begin all flows, then be one of their packets
            for loaded in (self._ours, self._empty):
                self._start(loaded, flags if case.flows else "S")
            self.run(case.flows or 1)
        if case == FULL:
            self.run(case.room)

    def run(self, packets: int) -> tuple[int, int]:
        """Mean nanoseconds of a packet, ours and empty."""
        ours, empty = self._run(self._ours, packets), self._run(self._empty, packets)
        if (ours.retval, empty.retval) != self.case.answers:
            raise RuntimeError(f"{self.case.title}: answered {ours.retval}, last packet {parse(ours.data)}")
        if str(parse(ours.data).dst) not in self.case.backends:
            raise RuntimeError(f"{self.case.title}: not translated: {parse(ours.data)}")
        return ours.duration_ns, empty.duration_ns

    def best(self) -> tuple[int, int]:
        """The same, the best of several short slices of each: the other CPU may be the same core's."""
        self.run(self.case.flows or 1)  # what the others drove out of the caches comes back
        slices = [self.run(self.case.packets) for _ in range(PARTS)]
        return min(ours for ours, _ in slices), min(empty for _, empty in slices)

    def _run(self, loaded: Object, packets: int) -> RunResult:
        program = loaded.program("again", self.case.hook)
        return self._netns.call(program.run, self._packet("A"), ctx=self._ctx, repeat=packets)

    def _start(self, loaded: Object, flags: str) -> None:
        headers = self._packet(flags)[:54]
        loaded.map("start", maps.Array)[0] = headers.ljust(64, b"\0")
        if self.case.flows:
            loaded.map("count", maps.Array[u64])[0] = 0

    def _packet(self, flags: str) -> bytes:
        vip, port = kubeproxy.vip_of_last(1), kubeproxy.SERVICE_PORT
        return tcp(self.case.client, vip, 1024, port, flags, bytes(6), src_mac=PEER_MAC, dst_mac=NODE_MAC)


def _tc_entry(device: str) -> tuple[int, Fd]:
    """The device's index, and the program at its ingress; of the calling thread's namespace."""
    index = if_nametoindex(device)
    (number,) = progs.query(index, _TCX_INGRESS)
    return index, progs.open_by_id(number)


def xdp_entry(device: str) -> tuple[int, Fd]:
    """The device's index, and the program in its driver; of the calling thread's namespace."""
    told = subprocess.run(["ip", "-j", "link", "show", device], capture_output=True, check=True).stdout
    return if_nametoindex(device), progs.open_by_id(json.loads(told)[0]["xdp"]["prog"]["id"])


def _tc_context(index: int) -> bytes:
    """A ``struct __sk_buff`` of a packet that came in through a device."""
    return struct.pack("=40xI148x", index)


def xdp_context(index: int, length: int) -> bytes:
    """A ``struct xdp_md`` of the same."""
    return struct.pack("=6I", 0, length, 0, index, 0, 0)


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
            name=name,
            netns=netns,
            uplinks=["up0"],
            xdp=True,
            service_networks=[kubeproxy.SERVICE_NETWORK],
            capacity=evolve(capacity(count, 3), flows=room),
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
        judged, unjudged = policed.measure(UNDER_POLICY, ROUNDS)
    harness.table(
        ["packet", "services", "ours ns", "empty ns", "net ns", "ours / empty"],
        [
            (case.title, f"{case.services:,}", median(ours[case]), median(empty[case]),
             median(a - b for a, b in zip(ours[case], empty[case], strict=True)),
             median(ratios(ours[case], empty[case])))
            for case in CASES
        ],
    )  # fmt: skip
    policed.table(judged, unjudged)
    figures = {name: figure(ours[case], empty[case], gate) for name, (case, gate) in FIGURES.items()}
    figures |= {
        name: figure(judged[case], unjudged[case], gate) for name, (case, gate) in POLICY_FIGURES.items()
    }
    figures["with_100k_ipcache_10k_policy_over_small"] = policed.figure(
        judged[MANY_PEERS], judged[BEGINS], "10 peers, 1 rule", 1.22
    )
    harness.report(BENCH, ROUNDS, figures)


def measure(benches: list[Bench]) -> tuple[dict[Case, list[float]], dict[Case, list[float]]]:
    """Nanoseconds per round of all cases in turn: ours, and the empty program's."""
    ours: dict[Case, list[float]] = defaultdict(list)
    empty: dict[Case, list[float]] = defaultdict(list)
    for _, bench in rounds_of(benches, ROUNDS):
        a, b = bench.best()
        ours[bench.case].append(a)
        empty[bench.case].append(b)
    return ours, empty


# Half of what Cilium's programs took in the same measurement.
FIGURES = {
    "clusterip_established_over_empty": (ESTABLISHED[-1], 12.0),
    "clusterip_new_over_empty": (NEW_FLOWS[0], 35.5),
    "clusterip_32k_flows_over_empty": (MANY_FLOWS[-1], 30.0),
    "lb_tc_remote_established_over_empty": (LB_ESTABLISHED, 10.0),
    "xdp_established_over_empty": (XDP_ESTABLISHED, 9.5),
}


UNDER_POLICY = (TALKS, BEGINS, DENIED, DENIED_AT_ONCE, MANY_PEERS)
POLICY_FIGURES = {
    "pod_to_pod_established_over_empty": (TALKS, 8.0),
    "pod_to_pod_new_over_empty": (BEGINS, 27.5),
    "policy_denied_over_empty": (DENIED, 9.6),  # all of what they took
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
