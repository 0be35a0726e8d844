"""Pods, labels and policies change without pause under traffic: who is let through is who may be.

Every datagram is held against the oracle's timeline: what each end's node had been told, at some moment
between the sending of the datagram and the arrival of its answer. While a call runs that changes something,
either end may judge by what was before or by what is after; at no other time is there any grace. An answer
that nobody may have got is a false allow, a datagram that nothing forbids and nobody answers is a wrong drop.
An answer that is on its way when its question is forbidden may begin a talk of its own, if that is allowed:
of UDP nothing tells them apart. What follows over that flow is part of it: also a question is an answer then,
and its own answer is lost if just then the server may begin no more (docs/policies.md says so). That excuses
a datagram only if its flow has been forbidden since both ends were there, so that the server may have begun,
and if the server might begin when it was sent, and then no more. Two nodes judge each for itself.

Through a tunnel a packet says who sent it, and whoever is not known by that number, any more or yet, is
denied: what is sent while one end gets other labels may be lost.

Pods go, and others come under their addresses, behind other devices. ``KD_CHURN_SECONDS`` says for how long,
in all; the default is for every day.
"""

from __future__ import annotations

import itertools
import os
import random
import selectors
import socket
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from attrs import define, evolve, field, frozen

from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.lab import Host, Lab
from k8sdatapath.lab.addressing import POD_GATEWAY_MAC, POD_GATEWAYS
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.model import IPAddress
from k8sdatapath.model.policy import (
    ALL_PORTS,
    POD_NAMESPACE,
    Action,
    Block,
    NetworkPeer,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Toward,
)
from k8sdatapath.model.workload import Workload

pytestmark = pytest.mark.lab

SECONDS = float(os.environ.get("KD_CHURN_SECONDS", "20"))
SEED = int(os.environ.get("KD_CHURN_SEED", "1"))
PORT, ANY_PORT, UDP = 5353, 40000, 17
LOST = 1.0
"""Seconds after which a datagram is lost that nobody has answered."""
FRESH = 80
"""Sockets with one datagram each that a client still listens at: for longer than that."""
HOSTS, PLACES = 4, 3
"""Of each node: pods that can be there, and addresses that they share."""
SHOWN = 2.0
"""Seconds before a wrong datagram whose changes are shown."""
PORTS = {node: itertools.cycle([port for port in range(1024, 32768) if port != PORT]) for node in (1, 2)}
"""By node, those of new sockets: none comes again at an address before the talks that it had are over."""


FLUSH = "address flush dev eth0 scope global"


def batch(host: Host, *lines: str) -> None:
    """Change addresses and routes."""
    host.exec(["ip", "-batch", "-"], input="".join(f"{line}\n" for line in lines), check=True)


@frozen(eq=False)
class World:
    """What every node is told.

    :ivar here: who is at an address, and as what.
    """

    policies: tuple[Policy, ...]
    here: dict[IPAddress, tuple[Pod, Workload]]

    def side(self, toward: Toward) -> tuple[Policy, ...]:
        """What the policies say in one direction, for the oracle to be asked about one end alone."""
        return tuple(
            evolve(
                each,
                rules=[rule for rule in each.rules if rule.toward is toward],
                isolates=each.isolates & {toward},
            )
            for each in self.policies
        )


@define
class Timeline:
    """What was in force: each world from when the call that made it began until the next one has ended.

    :ivar changes: what has made each world.
    """

    worlds: list[World] = field(factory=list)
    changes: list[str] = field(factory=list)
    since: list[float] = field(factory=list)
    done: list[float] = field(factory=list)

    def during(self, began: float, ended: float) -> range:
        """All that may have been in force at some moment of a time."""
        first = max(bisect_right(self.done, began) - 1, 0)
        return range(first, bisect_right(self.since, ended))


@frozen
class Sent:
    """One datagram. ``answered`` is when its answer came, 0 if none has."""

    client: Pod
    port: int
    address: IPAddress
    steady: bool
    sent: float
    answered: float = 0.0


class Churn:
    """Who is where, and what is allowed; changed by chance."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.chance = random.Random(seed)
        self.timeline = Timeline()
        self.numbers: dict[tuple[str, ...], int] = {}
        self.names = map("pod-{}".format, itertools.count())
        self.idle: dict[int, list[Pod]] = {}
        self.policies: dict[str, Policy] = {}
        self.here: dict[IPAddress, tuple[Pod, Workload]] = {}
        self.changes: Counter[str] = Counter()
        for node in lab.nodes:
            pods = list(node.pods)
            for pod in pods:
                node.datapath.detach_pod(pod.device, pod.addresses)
            places = [pod.addresses for pod in pods[:PLACES]]
            self.idle[node.number] = pods
            for pod in pods:
                batch(pod, FLUSH)
            for place in places:
                self.come(node, place)
        self.told(time.monotonic(), "all begins")

    def told(self, since: float, what: str) -> None:
        """All nodes have been told how it is now."""
        timeline = self.timeline
        timeline.changes.append(what)
        timeline.worlds.append(World(tuple(self.policies.values()), dict(self.here)))
        timeline.since.append(since)
        timeline.done.append(time.monotonic())

    def step(self) -> None:
        """One change."""
        what = self.chance.choice([self.replace, self.relabel, *[self.flip] * 4, self.withdraw])
        since = time.monotonic()
        self.changes[what.__name__] += 1
        self.told(since, f"{what.__name__} {what()}")

    # -- pods --

    def workload(self, name: str, addresses: Sequence[IPAddress]) -> Workload:
        space, app, tier = (self.chance.choice(each) for each in (("shop", "bank"), "xyz", "ab"))
        return Workload.pod(f"{space}/{name}", {"app": app, "tier": tier}, addresses=addresses)

    def number(self, workload: Workload) -> int:
        return self.numbers.setdefault(workload.labels, 256 + len(self.numbers))

    def others(self, node: LabNode) -> list[LabNode]:
        return [each for each in self.lab.nodes if each is not node]

    def come(self, node: LabNode, place: Sequence[IPAddress]) -> Workload:
        """A pod that was not there takes these addresses."""
        idle = self.idle[node.number]
        pod = idle.pop(self.chance.randrange(len(idle)))
        four, six = place
        batch(
            pod,
            f"address add {four}/32 dev eth0",
            f"address add {six}/128 dev eth0 nodad",
            *(f"neighbour replace {gateway} lladdr {POD_GATEWAY_MAC} dev eth0" for gateway in POD_GATEWAYS),
            *(f"route replace default via {gateway} dev eth0 onlink" for gateway in POD_GATEWAYS),
        )
        while not pod.exec(["ip", "-6", "route", "show", "table", "local", str(six)], check=True).stdout:
            time.sleep(0.001)  # a worker of the kernel makes the address one that packets are taken for
        batch(node, *(f"route replace {ip} dev {pod.device}" for ip in place))
        batch(node, *(f"neighbour replace {ip} lladdr {pod.mac} dev {pod.device}" for ip in place))
        workload = self.workload(next(self.names), place)
        self.attach(node, pod, workload)
        return workload

    def attach(self, node: LabNode, pod: Pod, workload: Workload) -> None:
        number = self.number(workload)
        for each in self.others(node):
            each.policy.learn({workload: number})
        node.datapath.attach_pod(
            pod.device, workload.addresses, pod_mac=pod.mac, identity=number, workload=workload
        )
        for ip in workload.addresses:
            self.here[ip] = pod, workload

    def replace(self) -> str:
        """A pod goes, and another comes to its addresses; other nodes may hear of the new one first."""
        pod, workload = self.chance.choice(list(self.here.values()))
        node = pod.node
        node.datapath.detach_pod(pod.device, workload.addresses)
        batch(pod, FLUSH)
        late = self.chance.random() < 0.5
        for each in self.others(node) if not late else ():
            each.policy.forget(workload.name)
        self.come(node, workload.addresses)
        self.idle[node.number].append(pod)
        for each in self.others(node) if late else ():
            each.policy.forget(workload.name)
        return f"{workload.name} at {workload.addresses[0]}, {'late' if late else 'at once'}"

    def relabel(self) -> str:
        """A pod gets other labels."""
        pod, before = self.chance.choice(list(self.here.values()))
        labels = self.workload(before.name.partition("/")[2], before.addresses).labels
        self.attach(pod.node, pod, evolve(before, labels=labels))
        return f"{before.name} at {before.addresses[0]}: {before.labels} -> {labels}"

    # -- policies --

    def selector(self) -> Selector:
        key, values = self.chance.choice((("k8s:app", "xyz"), ("k8s:tier", "ab")))
        asked = [Requirement(key, Operator.IN, [self.chance.choice(values)])]
        if self.chance.random() < 0.3:
            asked.append(Requirement(POD_NAMESPACE, Operator.IN, ["shop"]))
        return Selector(asked)

    def peer(self) -> NetworkPeer:
        if self.chance.random() < 0.2:
            return Block(self.chance.choice(("10.244.1.0/24", "fd00:10:244::/48", "10.244.2.2/32")))
        return self.selector()

    def flip(self) -> str:
        """A policy comes, or says something else."""
        name = f"NetworkPolicy shop/{self.chance.randrange(4)}"
        toward = self.chance.choice(list(Toward))
        ports = [ALL_PORTS] if self.chance.random() < 0.5 else [PortMatch(UDP, 5300, 5399)]
        rules = [
            Rule(
                f"{at}",
                toward,
                [self.peer()],
                ports,
                Action.DENY if self.chance.random() < 0.2 else Action.ALLOW,
            )
            for at in range(self.chance.randint(1, 3))
        ]
        policy = Policy(name, self.selector(), rules, {toward})
        for node in self.lab.nodes:
            node.policy.upsert(policy)
        before, self.policies[name] = self.policies.get(name), policy
        return f"{before} -> {policy}"

    def withdraw(self) -> str:
        """A policy goes."""
        if not self.policies:
            return "nothing"
        name = self.chance.choice(list(self.policies))
        for node in self.lab.nodes:
            node.policy.remove(name)
        return str(self.policies.pop(name))


class Client:
    """A pod that asks all addresses, from a socket that it keeps and from new ones."""

    def __init__(self, pod: Pod, places: Sequence[IPAddress], over: threading.Event) -> None:
        self.pod, self.places, self.over = pod, places, over
        self.said: list[Sent] = []
        self.sockets = selectors.DefaultSelector()  # each with itself as its data
        self.waiting: dict[int, Sent] = {}
        self.numbers = itertools.count()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        steady = {family: self.open(family) for family in (socket.AF_INET, socket.AF_INET6)}
        fresh: list[socket.socket] = []
        chance = random.Random(self.pod.name)
        while not self.over.is_set():
            address = chance.choice(self.places)
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            if chance.random() < 0.5:
                self.ask(steady[family], address, True)
            else:
                fresh.append(self.open(family, next(PORTS[self.pod.node.number])))
                self.ask(fresh[-1], address, False)
            self.hear(0.01)
            while len(fresh) > FRESH:
                self.end(fresh.pop(0))
        until = time.monotonic() + LOST
        while (left := until - time.monotonic()) > 0:
            self.hear(left)
        for each in (*steady.values(), *fresh):
            self.end(each)
        self.sockets.close()
        self.said += self.waiting.values()

    def open(self, family: int, port: int = 0) -> socket.socket:
        made = self.pod.socket(family, socket.SOCK_DGRAM)
        made.bind(("", port))
        made.setblocking(False)
        self.sockets.register(made, selectors.EVENT_READ, made)
        return made

    def end(self, sock: socket.socket) -> None:
        self.sockets.unregister(sock)
        sock.close()

    def ask(self, sock: socket.socket, address: IPAddress, steady: bool) -> None:
        number = next(self.numbers)
        sent = Sent(self.pod, sock.getsockname()[1], address, steady, time.monotonic())
        try:
            sock.sendto(str(number).encode(), (str(address), PORT))
        except OSError:  # it has no address now
            return
        self.waiting[number] = sent

    def hear(self, timeout: float) -> None:
        """Take answers until none comes for a moment."""
        until = time.monotonic() + timeout
        while True:
            ready = self.sockets.select(max(until - time.monotonic(), 0))
            for key, _ in ready:
                try:
                    number = int(key.data.recv(100))
                except OSError:  # somebody has answered that nobody is there
                    continue
                if (sent := self.waiting.pop(number, None)) is not None:
                    self.said.append(evolve(sent, answered=time.monotonic()))
            if not ready and time.monotonic() >= until:
                return


class Judge:
    """The oracle over time."""

    def __init__(self, timeline: Timeline, *, told: bool) -> None:
        self.timeline, self.told = timeline, told
        self.sides = [{toward: world.side(toward) for toward in Toward} for world in timeline.worlds]
        self.known: dict[tuple[int, Toward, str, str, int, int], bool] = {}
        self.judged: Counter[str] = Counter()

    def wrong(self, sent: Sent) -> str:
        """What is wrong with a datagram, if anything."""
        during = self.timeline.during(sent.sent, sent.answered or sent.sent + LOST)
        found: dict[Toward, set[bool]] = {toward: set() for toward in Toward}
        back: dict[Toward, list[bool]] = {toward: [] for toward in Toward}
        ends: set[tuple[object, ...]] = set()
        server = sent.client
        for at in during:
            here = self.timeline.worlds[at].here
            source = next((each for each in here.values() if each[0] is sent.client), None)
            destination = here.get(sent.address)
            if source is None or destination is None or source[0] is destination[0]:
                return self.count("to itself, or nobody")
            server = destination[0]
            both = source[1], destination[1]
            told = tuple(each.labels for each in both if self.told and not sent.answered)
            ends.add((*(each.name for each in both), *told))
            version = sent.address.version
            for toward in Toward:
                found[toward].add(self.allows(at, toward, source[1], destination[1], PORT, version))
                back[toward].append(self.allows(at, toward, destination[1], source[1], ANY_PORT, version))
        if len(ends) > 1:
            return self.count("not judged")
        if not sent.answered and all(said == {True} for said in found.values()):
            cut = self.is_cut(sent, server, back) and self.was_forbidden(sent, during[0])
            return self.count("cut with its talk") if cut else self.count("wrong drops", sent)
        if sent.answered and not self.may(sent, server, found, back):
            return self.count("false allows", sent)
        if sent.answered:
            return self.count("answered")
        return self.count("denied" if False in found[Toward.INGRESS] | found[Toward.EGRESS] else "not judged")

    @staticmethod
    def is_cut(sent: Sent, server: Pod, back: dict[Toward, list[bool]]) -> bool:
        """Whether one end might have been answered over a talk of the server's, and then no more."""
        ends = list(back.values())
        if sent.client.node is server.node:
            ends = [[all(said) for said in zip(*ends, strict=True)]]
        return sent.steady and any(True in said and False in said[said.index(True) :] for said in ends)

    def was_forbidden(self, sent: Sent, last: int) -> bool:
        """Whether it was at some time since both ends are who they are."""
        worlds, version = self.timeline.worlds, sent.address.version
        names = set()
        for at in range(last, -1, -1):
            here = worlds[at].here
            source = next((each[1] for each in here.values() if each[0] is sent.client), None)
            if source is None or sent.address not in here:
                return False
            destination = here[sent.address][1]
            names.add((source.name, destination.name))
            if len(names) > 1:
                return False
            if not all(self.allows(at, toward, source, destination, PORT, version) for toward in Toward):
                return True
        return False

    @staticmethod
    def may(sent: Sent, server: Pod, there: dict[Toward, set[bool]], back: dict[Toward, list[bool]]) -> bool:
        """Whether both ends may have let a datagram pass, as a question or as an answer to an answer."""
        question = {toward: True in said for toward, said in there.items()}
        answer = {toward: sent.steady and True in said for toward, said in back.items()}
        if sent.client.node is server.node:
            return all(question.values()) or all(answer.values())
        client = question[Toward.EGRESS] or answer[Toward.INGRESS]
        return client and (question[Toward.INGRESS] or answer[Toward.EGRESS])

    def story(self, sent: Sent) -> str:
        """What was going on: changes until it was answered or lost, and what each world says of both ends."""
        timeline, until = self.timeline, sent.answered or sent.sent + LOST
        lines = [f"{sent}, answered after {sent.answered - sent.sent:.6f}"]
        for at in timeline.during(sent.sent - SHOWN, until):
            here = timeline.worlds[at].here
            ends = [next((each[1] for each in here.values() if each[0] is sent.client), None)]
            ends.append(here[sent.address][1] if sent.address in here else None)
            source, destination = ends
            said = [
                (way, toward.name, self.allows(at, toward, *each, port, sent.address.version))
                for way, each, port in (("asks", ends, PORT), ("answers", ends[::-1], ANY_PORT))
                for toward in Toward
                if source and destination
            ]
            times = (f"{each[at] - sent.sent:+.6f}" for each in (timeline.since, timeline.done))
            lines.append(f"{' to '.join(times)}: {timeline.changes[at]}\n    {ends}\n    {said}")
        return "\n".join(lines)

    def allows(
        self, at: int, toward: Toward, source: Workload, destination: Workload, port: int, version: int
    ) -> bool:
        key = at, toward, source.name, destination.name, port, version
        if key not in self.known:
            policies = self.sides[at][toward]
            self.known[key] = allows(policies, source, destination, port, UDP, version=version)
        return self.known[key]

    def count(self, what: str, sent: Sent | None = None) -> str:
        self.judged[what] += 1
        return f"{what}: {self.story(sent)}" if sent is not None else ""


@pytest.fixture(params=["native", "vxlan"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab.start(nodes=2, routing=request.param, policy=True) as lab:
        for node in lab.nodes:
            for number in range(HOSTS):
                lab.pod(f"host-{node.number}-{number}", node).serve_udp(PORT)
        yield lab


@pytest.mark.timeout(int(SECONDS) + 180)
def test_nobody_is_let_through_who_may_not_and_nobody_dropped_who_may(lab: Lab) -> None:
    churn = Churn(lab, SEED)
    places = list(churn.here)
    over = threading.Event()
    clients = [Client(pod, places, over) for node in lab.nodes for pod in node.pods]
    try:
        ends = time.monotonic() + SECONDS / 2
        while time.monotonic() < ends or churn.changes.total() <= SECONDS:  # a busy machine takes its time
            churn.step()
            time.sleep(churn.chance.uniform(0, 0.15))
    finally:
        over.set()
        for each in clients:
            each.thread.join()
    judge = Judge(churn.timeline, told=lab.routing == "vxlan")
    said = [each for client in clients for each in client.said]
    wrong = [why for each in said if (why := judge.wrong(each))]
    print(f"\n{dict(churn.changes)} changes, {len(said)} datagrams: {dict(judge.judged)}")
    print(f"{sum(each.steady for each in said)} of them over flows that went on")
    print(*wrong[:5], sep="\n\n")
    assert not wrong, len(wrong)
    assert churn.changes.total() > SECONDS
    assert min(judge.judged["answered"], judge.judged["denied"]) > 5 * SECONDS
