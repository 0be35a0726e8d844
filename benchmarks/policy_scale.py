"""What policies cost a packet, and how that grows: the programs of a pod's device by test run.

A packet between two pods of a node is judged twice, as it leaves one and as it enters the other: what is
given is the sum of both programs, over one empty program. A small program stands before each which restores
the packet and gives it its flow (csrc/again.bpf.c).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address

from attrs import field, frozen

from benchmarks import harness
from benchmarks.harness import CSRC, Figure, median, ratios, rounds_of, say
from k8sdatapath import compiler, maps
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.layout import addr, u64
from k8sdatapath.model.policy import (
    EVERYBODY,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Toward,
)
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import tcp
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.tables.endpoints import EndpointRow

BENCH = "policy_scale"
ROUNDS = 9
PACKETS, NEW = 32_768, 1_000  # a slice
CLIENT, SERVER = "10.244.1.2", "10.244.1.3"
PORT, STOPPED, STAYS = 8080, 9090, 9091  # allowed, denied by the receiver, denied by the sender
MAC = "02:00:00:00:00:01"
PASSES, DROPPED = 0xFFFFFFFF, 2
_HERE, _THERE, _ELSEWHERE = 1, 2, 3  # devices


@frozen
class World:
    """What a node is filled with.

    :ivar rules: of the server's policy.
    :ivar pods: of this node.
    :ivar others: addresses of other nodes' pods.
    """

    rules: int = 1
    pods: int = 10
    others: int = 10


@frozen
class Case:
    """One kind of packet: a flow that goes on, flows that begin, or packets to a port that is not allowed."""

    title: str
    world: World = field(factory=World)
    new: bool = False
    port: int = PORT

    @property
    def answers(self) -> dict[str, int]:
        """Of the programs that see it."""
        if self.port == STAYS:
            return {"from_pod": DROPPED}
        return {"from_pod": PASSES, "to_pod": DROPPED if self.port == STOPPED else PASSES}


SMALL, LARGE = World(), World(rules=64_000)
ESTABLISHED = Case("established, 1 rule")
BEGINS = Case("new, 1 rule", new=True)
DENIED = Case("denied to its sender, 1 rule", port=STAYS)
STOPPED_ONE = Case("denied by its receiver, 1 rule", port=STOPPED)
MANY_RULES = Case("new, 64,000 rules", LARGE, new=True)
STOPPED_MANY = Case("denied by its receiver, 64,000 rules", LARGE, port=STOPPED)
MANY_PODS = Case("new, 10,000 pods", World(pods=10_000), new=True)
MANY_PEERS = Case("new, 100,000 peers, 10,000 rules", World(rules=10_000, others=100_000), new=True)
CASES = (ESTABLISHED, BEGINS, DENIED, STOPPED_ONE, MANY_RULES, STOPPED_MANY, MANY_PODS, MANY_PEERS)


@contextmanager
def node(world: World) -> Iterator[Object]:
    """The programs of pods, with such a world in their maps."""
    spec = (
        ObjectSpec.from_file("pod").with_config(enforce=True).with_maps(kd_endpoints=16_384, kd_talks=262_144)
    )
    with spec.load() as loaded, IdentityPolicy.bind(loaded) as policy:
        groups = max(1, world.rules // 100)
        far = {_pod(f"far{n}", f"group{n % groups}", IPv4Address("10.0.0.0") + n): 1000 + n % groups
               for n in range(max(world.others, groups))}  # fmt: skip
        policy.learn(far)
        ports = [PortMatch(6, port, port) for port in range(1, min(world.rules, 100) * 2, 2)]
        peers = [Selector([Requirement("k8s:app", Operator.IN, [f"group{n}"])]) for n in range(groups)]
        named = Selector([Requirement("k8s:app", Operator.IN, ["client"])])
        rules = [Rule("groups", Toward.INGRESS, peers, ports)] if world.rules > 1 else []
        rules.append(Rule("client", Toward.INGRESS, [named], [PortMatch(6, PORT, PORT)]))
        server = Selector([Requirement("k8s:app", Operator.IN, ["server"])])
        policy.upsert(Policy("server", server, rules, [Toward.INGRESS]))
        out = [PortMatch(6, port, port) for port in (PORT, STOPPED)]
        policy.upsert(
            Policy("client", named, [Rule("out", Toward.EGRESS, [EVERYBODY], out)], [Toward.EGRESS])
        )
        rows = {}
        here = [("client", CLIENT, _HERE), ("server", SERVER, _THERE)]
        here += [
            (f"near{n % 10}", str(IPv4Address("10.245.0.0") + n), _ELSEWHERE) for n in range(world.pods - 2)
        ]
        for number, (app, address, device) in enumerate(here):
            identity = 500 + hash(app) % 400 if app.startswith("near") else 400 + number
            policy_number = policy.attach(_pod(f"pod{number}", app, IPv4Address(address)), identity)
            rows[IPv4Address(address)] = EndpointRow(device, identity, MAC, MAC, policy_number)
        loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow]).update_many(rows)
        yield loaded


def _pod(name: str, app: str, address: IPv4Address) -> Workload:
    return Workload.pod(f"bench/{name}", {"app": app}, addresses=[address])


class Bench:
    """A case, ready to run: the programs that judge it, and the empty one."""

    def __init__(self, case: Case, loaded: Object, own: ExitStack) -> None:
        self.case = case
        spec = compiler.compile(CSRC / "again.bpf.c", flags=["-Werror"]).with_config(
            flows=0 if case.new else 1
        )
        self._runs = {}
        for entry, device, came_through in (
            ("from_pod", _HERE, 0),
            ("to_pod", 0, _ELSEWHERE),
            ("empty", _HERE, 0),
        ):
            before = own.enter_context(spec.load())
            tested = before.program_fds["empty"] if entry == "empty" else loaded.program_fds[entry]
            before.map("tested", maps.ProgArray)[0] = tested
            self._runs[entry] = before, struct.pack("=36xII148x", came_through, device)
        self._start("S")
        self.run()
        self._start("A" if case == ESTABLISHED else "S")

    def run(self) -> tuple[int, int]:
        """Mean nanoseconds of a packet, ours and empty."""
        took = {}
        for entry in (*self.case.answers, "empty"):
            before, context = self._runs[entry]
            result = before.program("again", TC).run(
                self._packet("S"), ctx=context, repeat=NEW if self.case.new else PACKETS
            )
            if result.retval != self.case.answers.get(entry, PASSES):
                raise RuntimeError(f"{self.case.title}: {entry} answered {result.retval}")
            took[entry] = result.duration_ns
        return sum(took[entry] for entry in self.case.answers), took["empty"]

    def best(self) -> tuple[int, int]:
        slices = [self.run() for _ in range(3)]
        return min(ours for ours, _ in slices), min(empty for _, empty in slices)

    def _start(self, flags: str) -> None:
        for before, _ in self._runs.values():
            before.map("start", maps.Array)[0] = self._packet(flags)[:54].ljust(64, b"\0")
            if not self.case.new:
                before.map("count", maps.Array[u64])[0] = 0

    def _packet(self, flags: str) -> bytes:
        return tcp(CLIENT, SERVER, 1024, self.case.port, flags, bytes(6), src_mac=MAC, dst_mac=MAC)


def main() -> None:
    print(f"{BENCH}: a packet between two pods under policy, {ROUNDS} rounds, medians, nanoseconds\n")
    ours: dict[Case, list[float]] = defaultdict(list)
    empty: dict[Case, list[float]] = defaultdict(list)
    with ExitStack() as own, harness.pinned():
        nodes: dict[World, Object] = {}
        for case in CASES:
            if case.world not in nodes:
                say(f"a node with {case.world}")
                nodes[case.world] = own.enter_context(node(case.world))
        benches = [Bench(case, nodes[case.world], own) for case in CASES]
        for _, bench in rounds_of(benches, ROUNDS):
            a, b = bench.best()
            ours[bench.case].append(a)
            empty[bench.case].append(b)
    harness.table(
        ["packet", "ours ns", "empty ns", "ours / empty"],
        [(case.title, median(ours[case]), median(empty[case]), median(ratios(ours[case], empty[case])))
         for case in CASES],
    )  # fmt: skip

    def over_empty(case: Case, gate: float) -> Figure:
        return _figure(ours[case], empty[case], "empty program", gate)

    harness.report(
        BENCH,
        ROUNDS,
        {
            "pod_to_pod_established_over_empty": over_empty(ESTABLISHED, 8.0),
            "pod_to_pod_new_over_empty": over_empty(BEGINS, 27.0),
            "policy_denied_over_empty": over_empty(DENIED, 9.6),
            "cost_64k_over_1": _figure(ours[MANY_RULES], ours[BEGINS], "1 rule", 1.25),
            "denied_64k_over_1": _figure(ours[STOPPED_MANY], ours[STOPPED_ONE], "1 rule", 1.25),
            "cost_10k_pods_over_10": _figure(ours[MANY_PODS], ours[BEGINS], "10 pods", 1.25),
            "with_100k_ipcache_10k_policy_over_small": _figure(ours[MANY_PEERS], ours[BEGINS], "small", 1.22),
        },
    )


def _figure(above: list[float], below: list[float], what: str, gate: float) -> Figure:
    said = f"{what} {median(below):.0f} ns"
    return Figure(
        ratios(above, below), "ratio of time per packet", f"{median(above):.0f} ns", said, at_most=gate
    )


if __name__ == "__main__":
    main()
