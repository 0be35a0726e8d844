"""What it costs that pods leave under the node's address: ours, iptables, nftables, over plain routing.

Packets are made at a pod's device of a node and leave by its uplink, see benchmarks/live.py: of flows that
are established, the first ones of new flows, by themselves and beside flows that live, and those for which
there is no port.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address, ip_address
from socket import if_nametoindex

from attrs import evolve, frozen
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from benchmarks import harness, live
from benchmarks.harness import Figure, median, rounds_of, say, sure
from benchmarks.live import NODE_MAC, PEER_MAC, Path, Source
from benchmarks.topology import PORT, inside, lone_node, run
from k8sdatapath import maps
from k8sdatapath.layout import u64
from k8sdatapath.model import Masquerade
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import tcp, udp
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import XDP

BENCH = "masq"
ROUNDS = 11
PARTS = 5  # slices in a round, of which the best counts: a vCPU may share its core with somebody else's
FLOWS = 1024  # that take turns
PACKETS = 20_000  # a slice of them
NEW = 8_192  # a slice of new ones
HELD = 65_536  # on a node with many flows
PORTS = 64_512  # that there are, from 1024 on
FULL_ROUNDS = 3
WITHOUT = {"ours": 3_000_000, "iptables": 4_000, "nftables": 4_000}  # a slice of packets without a port

PODS = [str(IPv4Address("10.244.0.2") + number) for number in range(4)]
ROUTER = "192.0.2.2"
PATHS = {
    "route": "no masquerade",
    "ours": "k8sdatapath",
    "iptables": "iptables MASQUERADE",
    "random": "the same, --random-fully",
    "agent": "iptables as ip-masq-agent writes it",
    "nftables": "nftables masquerade",
}

OTHERS = ("iptables", "random", "agent", "nftables")

_DEVICES = (
    "link set lo up",
    *live.device("pod0", "peer0"),
    *live.device("up0", "peer1"),
    "address add 10.244.0.1/24 dev pod0",
    "address add 192.0.2.1/24 dev up0",
    f"neigh replace {ROUTER} lladdr {PEER_MAC} dev up0 nud permanent",
    f"route add default via {ROUTER}",
)
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.netfilter.nf_conntrack_checksum=0",  # which a device would have looked at
    "net.netfilter.nf_conntrack_udp_timeout=600",
)
_RULE = "-A POSTROUTING -s 10.244.0.0/16 ! -d 10.0.0.0/8 -o up0 -j MASQUERADE"
_SPARED = (
    "169.254.0.0/16",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
)  # what that agent spares by itself
_RULES = {
    "iptables": (_RULE,),
    "random": (f"{_RULE} --random-fully",),
    "agent": (
        "-N IP-MASQ-AGENT",
        "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT",
        *(f"-A IP-MASQ-AGENT -d {network} -j RETURN" for network in _SPARED),
        "-A IP-MASQ-AGENT -p udp -j MASQUERADE --to-ports 32768-65535 --random-fully",
    ),
}
_NFTABLES = """table ip nat {
    chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 10.244.0.0/16 ip daddr != 10.0.0.0/8 oifname up0 masquerade
    }
}
"""


@frozen
class Case:
    """A node that does it one way.

    :ivar again: what a pod sends, of flows that take turns; ``new``: of a flow of its own each;
        ``dialled``: of a TCP connection of its own each.
    :ivar forget: all flows.
    """

    again: Path
    new: Path
    dialled: Path
    forget: Callable[[], object]

    def established(self) -> float:
        self.again.send(FLOWS)
        return self.again.send(PACKETS)

    def begun(self) -> float:
        """None is left behind, here and below: netfilter has one table for all namespaces."""
        self.forget()
        begin(self.new, world=1).send(FLOWS)  # whoever had the CPU before has its caches
        taken = begin(self.new).send(NEW)
        self.forget()
        return taken

    def connected(self) -> float:
        self.forget()
        evolve(self.dialled, source=self.dialled.source.begin(syn(1))).send(FLOWS)
        taken = evolve(self.dialled, source=self.dialled.source.begin(syn())).send(NEW)
        self.forget()
        return taken

    def beside(self) -> float:
        """The best of several: others are there already, which takes longer than what is timed."""
        self.forget()
        for number in range(HELD // NEW):
            for _ in range(2):  # as flows that live have two entries here, and are known to netfilter
                begin(self.new, world=PARTS + number).send(NEW)
        taken = min(begin(self.new, world=part).send(NEW) for part in range(PARTS))
        self.forget()
        return taken

    def exhausted(self, packets: int) -> tuple[float, float]:
        """Nanoseconds of the first packet that finds no port, and of each of many that follow it."""
        self.forget()
        for pod in range(
            2 if self.new.name == "ours" else 3
        ):  # netfilter gives up while there still are some
            begin(self.new, pod).source.send(PORTS // 2)
        before = self.new.arrived[0]
        first, then = (begin(self.new, 3).source.send(count) for count in (1, packets))
        if self.new.arrived[0] - before > packets / 100:
            raise RuntimeError(f"{self.new.name}: there were ports left")
        self.forget()
        return first, then


def begin(path: Path, pod: int = 0, world: int = 0) -> Path:
    """The same from the first packet on, of a pod to somebody."""
    return evolve(path, source=path.source.begin(frame(pod, world)))


def frame(pod: int = 0, world: int = 0) -> bytes:
    to = f"198.51.100.{1 + world}"
    return udp(PODS[pod], to, 0, PORT, bytes(18), checksum=0, src_mac=PEER_MAC, dst_mac=NODE_MAC)


def syn(world: int = 0) -> bytes:
    return tcp(PODS[0], f"198.51.100.{1 + world}", 0, PORT, "S", src_mac=PEER_MAC, dst_mac=NODE_MAC)


@contextmanager
def open_case(name: str, generator: ObjectSpec, sink: ObjectSpec) -> Iterator[Case]:
    with ExitStack() as own:
        space = own.enter_context(lone_node(f"masq-{name}"))
        netns = own.enter_context(NetNs.open(space))
        run("ip", "-n", space, "-batch", "-", stdin="\n".join(_DEVICES))
        run(*inside(space, "sysctl", "-qw", *_SYSCTLS))
        end = own.enter_context(sink.with_config(port=PORT).load())
        own.enter_context(end.program("sink", XDP).attach("peer1", netns=netns))
        arrived = end.map("arrived", maps.Array[u64])
        forget = masquerade(name, space, netns, own)
        index = netns.call(if_nametoindex, "pod0")
        paths = []
        for flows, first in (FLOWS, frame()), (0, frame()), (0, syn()):
            loaded = own.enter_context(generator.with_config(flows=flows).load())
            source = Source(netns, loaded, index, first).begin(first).give()
            paths.append(Path(name, source, arrived))
        yield Case(paths[0], paths[1], paths[2], forget)


def masquerade(name: str, space: str, netns: NetNs, own: ExitStack) -> Callable[[], object]:
    """Set up a way to do it; returns how to forget its flows."""
    if name == "route":
        return lambda: None
    if name == "ours":
        config = NodeConfig(
            netns=netns, uplinks=["up0"], socket_lb=False, masquerade=Masquerade(exclude=["10.0.0.0/8"])
        )
        node = own.enter_context(Node.open(config))
        node.attach_pod("pod0", map(ip_address, PODS), pod_mac=PEER_MAC)
        return partial(forget_ours, node)
    if name == "nftables":
        run(*inside(space, "nft", "-f", "-"), stdin=_NFTABLES)
    else:
        for rule in _RULES[name]:
            run(*inside(space, "iptables-legacy", "-t", "nat", *rule.split()))
    return partial(netns.call, forget_netfilters)


def forget_ours(node: Node) -> None:
    node.flows.flush()
    assert node.masquerade is not None
    node.masquerade.forget_exhausted()


def forget_netfilters() -> None:
    with NFCTSocket() as kernel:
        kernel.flush()


def main() -> None:
    print(f"{BENCH}: a packet from a pod to the world, {ROUNDS} rounds, medians, nanoseconds\n")
    generator, sink = live.generator(), live.sink()
    with ExitStack() as own, harness.pinned():
        cases = {name: own.enter_context(open_case(name, generator, sink)) for name in PATHS}
        for case in cases.values():
            case.again.send(PACKETS)
        say("measuring")
        again, new, dialled = (
            in_turns(cases, measure) for measure in (Case.established, Case.begun, Case.connected)
        )
        beside = in_turns(cases, Case.beside, parts=1)
        first, without = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
        say("measuring where no port is left")
        for _, name in rounds_of(tuple(WITHOUT), FULL_ROUNDS):
            one, each = cases[name].exhausted(WITHOUT[name])
            first[name].append(one)
            without[name].append(each)
    harness.table(
        [
            "path",
            "established",
            "over routing",
            "new",
            "over routing",
            f"beside {HELD:,}, over routing",
            "of TCP, over routing",
            "no port",
            "the first of these",
        ],
        [
            (
                title,
                median(again[name]),
                median(over(again, name)),
                median(new[name]),
                median(over(new, name)),
                median(over(beside, name)),
                median(over(dialled, name)),
                *(median(taken[name]) if taken[name] else "" for taken in (without, first)),
            )
            for name, title in PATHS.items()
        ],
    )
    harness.report(BENCH, ROUNDS, figures(again, new, beside, dialled, without))


Taken = dict[str, list[float]]


def in_turns(cases: dict[str, Case], measure: Callable[[Case], float], parts: int = PARTS) -> Taken:
    """Of each the best slice of every round, whose slices take turns: what disturbs one disturbs all."""
    slices = defaultdict[str, list[float]](list)
    for _, name in rounds_of(tuple(cases), ROUNDS * parts):
        slices[name].append(measure(cases[name]))
    return {
        name: [min(taken[at : at + parts]) for at in range(0, len(taken), parts)]
        for name, taken in slices.items()
    }


def over(taken: Taken, name: str) -> Sequence[float]:
    """What it adds to routing, round by round."""
    return [mine - plain for mine, plain in zip(taken[name], taken["route"], strict=True)]


def figures(again: Taken, new: Taken, beside: Taken, dialled: Taken, without: Taken) -> dict[str, Figure]:
    return {
        "new_overhead_iptables_over_ours": overhead(new, at_least=2),
        "new_beside_living_overhead_iptables_over_ours": overhead(beside, at_least=2),
        "new_tcp_overhead_iptables_over_ours": overhead(dialled, at_least=1.25),
        "established_overhead_iptables_over_ours": overhead(again, at_least=1.5),
        "exhausted_us": Figure(
            tuple(each / 1000 for each in without["ours"]),
            "microseconds a packet",
            f"{median(without['ours']):.0f} ns, with the searches through all ports that come in between",
            f"iptables {median(without['iptables']):,.0f} ns, nftables {median(without['nftables']):,.0f} ns",
            at_most=2,
        ),
    }


def overhead(taken: Taken, at_least: float) -> Figure:
    ours, others = over(taken, "ours"), over(taken, "iptables")
    # A round in which plain routing was disturbed most says nothing of what is over it.
    told = [each for each in zip(others, ours, strict=True) if min(each) > 0]
    samples = tuple(theirs / mine for theirs, mine in told)
    return Figure(
        samples,
        "ratio of time per packet over plain routing",
        f"{median(ours):.0f} ns over {median(taken['route']):.0f} ns of routing",
        ", ".join(
            f"{PATHS[name]} {median(over(taken, name)):.0f} ns"
            for name in PATHS
            if name not in ("route", "ours")
        ),
        at_least=at_least,
        sure=sure([samples]),
    )


if __name__ == "__main__":
    main()
