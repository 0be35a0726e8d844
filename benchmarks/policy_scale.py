"""How the cost of policies grows with rules and pods, and what 1,000 rules of iptables cost beside it.

The growth is measured by test run, see benchmarks/policed.py. For the comparison packets are made at a pod's
device of a node, and those that have passed are counted behind another pod's, see benchmarks/live.py: packets
of flows that are established, and the first ones of new flows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from socket import if_nametoindex

from attrs import evolve, frozen

from benchmarks import harness, live, policed
from benchmarks.harness import Figure, median, ratios, rounds_of, say
from benchmarks.live import NODE_MAC, PEER_MAC, Path, Source
from benchmarks.policed import BEGINS, DENIED, Case, World
from benchmarks.topology import PORT, inside, lone_node, run
from k8sdatapath import maps
from k8sdatapath.layout import u64
from k8sdatapath.model.policy import Operator, Policy, PortMatch, Requirement, Rule, Selector, Toward
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import udp
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import XDP

BENCH = "policy_scale"
ROUNDS = 9

LARGE = World(rules=64_000)
MANY_RULES = Case("pod to pod, new, 64,000 rules", LARGE, new=True)
DENIED_MANY = Case("denied by its receiver, 64,000 rules", LARGE, port=policed.STOPPED)
MANY_PODS = Case("pod to pod, new, 10,000 pods", World(pods=10_000), new=True)
CASES = (BEGINS, DENIED, MANY_RULES, DENIED_MANY, MANY_PODS)
PARTS = 5  # slices in a round, of which the best counts: a vCPU may share its core with the other one
FLOWS = 1024  # that take turns
PACKETS = 20_000  # a slice of them
NEW = 4_096  # a slice of new ones, each to a server of its own: nobody has to forget flows
RULES = 1_000

POD = "10.244.0.2"
SERVERS = [str(IPv4Address("10.244.1.2") + number) for number in range(2 + ROUNDS * PARTS)]  # one pod's
PATHS = {
    "route": "no policy",
    "ours": f"k8sdatapath, {RULES:,} rules",
    "iptables": f"iptables, {RULES:,} rules",
}

_DEVICES = (
    "link set lo up",
    *live.device("pod0", "peer0"),
    *live.device("pod1", "peer1"),
    "address add 10.244.0.1/24 dev pod0",
    "address add 10.244.1.1/24 dev pod1",
    *(f"neigh replace {server} lladdr {PEER_MAC} dev pod1 nud permanent" for server in SERVERS),
)
_SYSCTLS = ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")


@frozen
class Way:
    """A node that lets packets through one way.

    :ivar again: flows that take turns; ``new``: one of its own for each packet.
    """

    again: Path
    new: Path

    def established(self) -> float:
        return min(self.again.send(PACKETS) for _ in range(PARTS))

    def begun(self, turn: int) -> float:
        servers = SERVERS[1 + turn * PARTS :][:PARTS]
        parts = (evolve(self.new, source=self.new.source.begin(frame(server))) for server in servers)
        return min(part.send(NEW) for part in parts)


def frame(server: str = SERVERS[0]) -> bytes:
    return udp(POD, server, 0, PORT, bytes(18), checksum=0, src_mac=PEER_MAC, dst_mac=NODE_MAC)


@contextmanager
def open_way(name: str, generator: ObjectSpec, sink: ObjectSpec) -> Iterator[Way]:
    with ExitStack() as own:
        space = own.enter_context(lone_node(f"policy-{name}"))
        netns = own.enter_context(NetNs.open(space))
        run("ip", "-n", space, "-batch", "-", stdin="\n".join(_DEVICES))
        run(*inside(space, "sysctl", "-qw", *_SYSCTLS))
        end = own.enter_context(sink.with_config(port=PORT).load())
        own.enter_context(end.program("sink", XDP).attach("peer1", netns=netns))
        if name == "iptables":
            run(*inside(space, "iptables-legacy-restore"), stdin="\n".join(rules_of_iptables()))
        elif name == "ours":
            node = own.enter_context(Node.open(NodeConfig(netns=netns, socket_lb=False, policy=True)))
            enforce(node)
        index = netns.call(if_nametoindex, "pod0")
        paths = []
        for flows in (FLOWS, 0):
            loaded = own.enter_context(generator.with_config(flows=flows).load())
            source = Source(netns, loaded, index, frame()).begin(frame()).give()
            paths.append(Path(name, source, end.map("arrived", maps.Array[u64])))
        yield Way(*paths)


def rules_of_iptables() -> Iterator[str]:
    """One rule for each peer, of which the last is the one that sends."""
    peers = [str(IPv4Address("10.60.0.0") + number) for number in range(RULES - 1)]
    yield from ("*filter", ":FORWARD ACCEPT [0:0]")
    for peer in (*peers, POD):
        yield f"-A FORWARD -s {peer} -d 10.244.1.0/24 -p udp --dport {PORT} -j ACCEPT"
    yield from ("-A FORWARD -d 10.244.1.0/24 -j DROP", "COMMIT\n")


def enforce(node: Node) -> None:
    """The same: as many peers that a policy names, one identity each."""
    assert node.policy is not None
    peers = [Workload.pod(f"bench/peer{n}", {"app": f"peer{n}"}, addresses=[IPv4Address("10.60.0.0") + n])
             for n in range(RULES - 1)]  # fmt: skip
    node.policy.learn({peer: 1000 + number for number, peer in enumerate(peers)})
    named = [Selector([Requirement("k8s:app", Operator.IN, [f"peer{n}"])]) for n in range(RULES)]
    port = PortMatch(17, PORT, PORT)
    allow = [Rule(f"{n}", Toward.INGRESS, [peer], [port]) for n, peer in enumerate(named)]
    server = Selector([Requirement("k8s:app", Operator.IN, ["server"])])
    node.policy.upsert(Policy("server", server, allow, [Toward.INGRESS]))
    for identity, device, app, addresses in (
        (400, "pod0", f"peer{RULES - 1}", [POD]),
        (401, "pod1", "server", SERVERS),
    ):
        where = [IPv4Address(each) for each in addresses]
        pod = Workload.pod(f"bench/{device}", {"app": app}, addresses=where)
        node.attach_pod(device, where, pod_mac=PEER_MAC, identity=identity, workload=pod)


def compare() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Nanoseconds of a packet by way, of flows that go on and of those that begin."""
    again, new = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    turns = dict.fromkeys(PATHS, 0)
    with ExitStack() as own:
        generator, sink = live.generator(), live.sink()
        ways = {name: own.enter_context(open_way(name, generator, sink)) for name in PATHS}
        for way in ways.values():
            way.again.send(PACKETS)
        for _, name in rounds_of(tuple(PATHS), ROUNDS):
            ways[name].again.send(FLOWS)
            again[name].append(ways[name].established())
            new[name].append(ways[name].begun(turns[name]))
            turns[name] += 1
    return again, new


def over(taken: dict[str, list[float]], name: str) -> Sequence[float]:
    """What it adds to no policy at all, round by round."""
    return [mine - plain for mine, plain in zip(taken[name], taken["route"], strict=True)]


def main() -> None:
    print(f"{BENCH}: a packet between two pods under policy, {ROUNDS} rounds, medians, nanoseconds\n")
    with harness.pinned():
        ours, empty = policed.measure(CASES, ROUNDS)
        say("measuring beside iptables")
        again, new = compare()
    policed.table(ours, empty)
    harness.table(
        ["path", "established", "over no policy", "new", "over no policy"],
        [
            (
                title,
                median(again[name]),
                median(over(again, name)),
                median(new[name]),
                median(over(new, name)),
            )
            for name, title in PATHS.items()
        ],
    )
    harness.report(
        BENCH,
        ROUNDS,
        {
            "cost_64k_over_1": policed.figure(ours[MANY_RULES], ours[BEGINS], "1 rule", 1.25),
            "denied_64k_over_1": policed.figure(ours[DENIED_MANY], ours[DENIED], "1 rule", 1.25),
            "cost_10k_pods_over_10": policed.figure(ours[MANY_PODS], ours[BEGINS], "10 pods", 1.25),
            "iptables_1000_over_ours": beside_iptables(again),
            "iptables_1000_over_ours_new": beside_iptables(new),
        },
    )


def beside_iptables(taken: dict[str, list[float]]) -> Figure:
    ours, theirs = over(taken, "ours"), over(taken, "iptables")
    plain = median(taken["route"])
    return Figure(
        ratios(theirs, ours),
        "ratio of time per packet over no policy",
        f"{median(ours):.0f} ns over {plain:.0f} ns without policy",
        f"iptables {median(theirs):.0f} ns",
        at_least=5,
    )


if __name__ == "__main__":
    main()
