"""Packets between two pods of a node under policy, in the programs of their devices, by test run.

A packet that is allowed meets two of them, as it leaves one pod and as it enters the other; the first marks
it for the second. A small program stands before each which restores the packet, gives it its flow, and the
mark (csrc/again.bpf.c). What is given is the sum of both, which has the restoring once, over an empty program
behind the same.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network

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
from k8sdatapath.tables.pod_networks import PodNetworkRow

PACKETS, NEW = 32_768, 1_000  # a slice
CLIENT, SERVER = "10.244.1.2", "10.244.1.3"
HERE = IPv4Network("10.244.1.0/24")  # the addresses of its pods
PORT, STOPPED, STAYS = 8080, 9090, 9091  # allowed, denied by the receiver, denied by the sender
MAC = "02:00:00:00:00:01"
PASSES, DROPPED = 0xFFFFFFFF, 2
_HERE, _THERE, _ELSEWHERE = 1, 2, 3  # devices
_JUDGED = 0x8000 + _HERE  # the mark of a packet for the device that the test runs on


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
        return {"from_pod": PASSES, "to_pod": PASSES} if self.port == PORT else {"from_pod": DROPPED}


ESTABLISHED = Case("pod to pod, established")
BEGINS = Case("pod to pod, new", new=True)
DENIED = Case("denied by its receiver", port=STOPPED)
DENIED_AT_ONCE = Case("denied to its sender", port=STAYS)
MANY_PEERS = Case(
    "pod to pod, new, 100,000 peers, 10,000 rules", World(rules=10_000, others=100_000), new=True
)


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
        loaded.map("kd_pod_networks", maps.Array[PodNetworkRow])[0] = PodNetworkRow.of(HERE)
        yield loaded


def _pod(name: str, app: str, address: IPv4Address) -> Workload:
    return Workload.pod(f"bench/{name}", {"app": app}, addresses=[address])


class Bench:
    """A case, ready to run: the programs that judge it, and the empty one."""

    def __init__(self, case: Case, loaded: Object, own: ExitStack) -> None:
        self.case = case
        spec = compiler.compile(CSRC / "again.bpf.c", flags=["-Werror"])
        self._runs = {}
        for entry, device, came_through in (
            ("from_pod", _HERE, 0),
            ("to_pod", 0, _ELSEWHERE),
            ("empty", _HERE, 0),
        ):
            mark = _JUDGED if entry == "to_pod" else 0
            before = own.enter_context(spec.with_config(flows=0 if case.new else 1, mark=mark).load())
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
        restoring = took["empty"] * (len(self.case.answers) - 1)
        return sum(took[entry] for entry in self.case.answers) - restoring, took["empty"]

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


Taken = dict[Case, list[float]]
"""Nanoseconds per packet of each round."""


def measure(cases: Sequence[Case], rounds: int) -> tuple[Taken, Taken]:
    """Ours, and the empty program's, of all cases in turn."""
    ours: Taken = defaultdict(list)
    empty: Taken = defaultdict(list)
    with ExitStack() as own:
        nodes: dict[World, Object] = {}
        for case in cases:
            if case.world not in nodes:
                say(f"a node with {case.world}")
                nodes[case.world] = own.enter_context(node(case.world))
        benches = [Bench(case, nodes[case.world], own) for case in cases]
        for _, bench in rounds_of(benches, rounds):
            a, b = bench.best()
            ours[bench.case].append(a)
            empty[bench.case].append(b)
    return ours, empty


def table(ours: Taken, empty: Taken) -> None:
    harness.table(
        ["packet", "ours ns", "empty ns", "ours / empty"],
        [(case.title, median(ours[case]), median(empty[case]), median(ratios(ours[case], empty[case])))
         for case in ours],
    )  # fmt: skip


def figure(above: list[float], below: list[float], what: str, gate: float) -> Figure:
    said = f"{what} {median(below):.0f} ns"
    return Figure(
        ratios(above, below), "ratio of time per packet", f"{median(above):.0f} ns", said, at_most=gate
    )
