"""The programs beside the model: random services, packets, changes and silences, compared after every step.

KD_MACHINE_STEPS makes it longer, KD_MACHINE_SEED another one; a failure prints the steps that lead to it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from typing import ClassVar

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import Protocol, Service
from k8sdatapath.net.packet import fragment, icmp_echo, icmp_error, parse, quoted, sctp, tcp, udp
from k8sdatapath.tables.conntrack import FlowFlags, Tuple
from tests.packets.anatomy import dissect, residues, without
from tests.packets.drawn import (
    PODS,
    SCTP,
    TIMEOUT,
    backends,
    place,
    services,
)
from tests.packets.reference import (
    FROM_POD,
    FROM_UPLINK,
    TO_POD,
    XDP_IN,
    Arrival,
    Fate,
    Member,
    Reference,
    served_twice,
    turned,
)
from tests.packets.station import NEXT_HOP, OURS, UPLINK, Station, station
from tests.packets.world import PROTOCOLS, TCP, V4, WORLDS

pytestmark = pytest.mark.packets

STEPS = int(os.environ.get("KD_MACHINE_STEPS", "10000"))
SEED = int(os.environ.get("KD_MACHINE_SEED", "1"))
STEPS_EACH = 100
PORTS = (40000, 40001)
CLIENTS = ("client", "one", "stranger", "visitor")
LINK = bytes.fromhex((OURS + NEXT_HOP).replace(":", ""))
KINDS_OF_ERRORS = {
    V4.name: [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)],
    "IPv6": [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)],
}
WHICH = st.integers(0, 255)
#: What must have happened at least once.
REACHED = {
    *("PASS", "TO_STACK", "TO_POD", "TO_DEVICE", "REJECT_NO_BACKEND", "REJECT_NO_SERVICE"),
    *("DROP_NO_SERVICE", "DROP_NOT_LOCAL", "DROP_NO_FLOW", "DROP_SOURCE"),
    *("DROP_FRAGMENT", "DROP_NO_PORT", "ECHO"),
}
CHUNKS = {"S": 1, "SA": 2, "A": 0, "R": 6}
FLAGS = ("S", "S", "S", "A", "PA", "A", "FA", "R", "RA", "SA", "F")


def flags_of(flow: Tuple, flags: str) -> str:
    """What of these flags the protocol can say; in SCTP it is the chunk that says it."""
    if flow.protocol == SCTP:
        return "R" if "R" in flags else flags if "S" in flags else "A"
    return flags if flow.protocol == TCP else ""


class Machine(RuleBasedStateMachine):
    """The kernel and the model, step by step."""

    node: ClassVar[Station]
    steps: ClassVar[int] = 0
    seen: ClassVar[Counter[str]] = Counter()
    ident: ClassVar[int] = 0  # of datagrams in fragments, whose first one the kernel remembers

    def __init__(self) -> None:
        super().__init__()
        self.model = Reference(
            {ip_address(place(world, pod)[0]) for world in WORLDS for pod in PODS},
            {family: ip_address(address) for family, address in UPLINK.items()},
        )
        self.ids: dict[int, Member] = {}
        self.table = ServiceTable.bind(self.node.host)
        self.table.plan(()).apply()
        self.node.flows.clear()
        self.node.pins.clear()
        self.counted = self.node.read_counters()

    def teardown(self) -> None:
        self.table.close()

    # -- changes --

    @initialize(wanted=st.lists(services(), min_size=1, max_size=3))
    def begin(self, wanted: list[Service]) -> None:
        for service in {service.frontend: service for service in wanted}.values():
            self.upsert(service)

    @rule(data=st.data(), what=st.sampled_from(("backends", "backends", "all", "remove", "take over")))
    def change(self, data: st.DataObject, what: str) -> None:
        """Backends of a service, or all about it; it goes; another process takes over what there is."""
        Machine.steps += 1
        known = list(self.model.services)
        if what == "take over":
            self.table.close()
            self.table = ServiceTable.bind(self.node.host)
        elif what == "all" or not known:
            self.upsert(data.draw(services()))
        else:
            frontend = data.draw(st.sampled_from(known), label="of")
            if what == "remove":
                self.table.remove(frontend)
                self.model.remove(frontend)
            else:
                members = data.draw(backends(WORLDS[frontend.address.version == 6], frontend.protocol))
                self.upsert(evolve(self.model.services[frontend].service, backends=members))

        self.let_pass(1)

    def upsert(self, service: Service) -> None:
        others = [
            served.service for front, served in self.model.services.items() if front != service.frontend
        ]
        if not served_twice([*others, service]):
            self.table.upsert(service)
            self.model.upsert(service)

    # -- time --

    def let_pass(self, seconds: int) -> None:
        """Flows ask once a second whether what they dialled is still there."""
        flows = self.node.flows
        flows.update_many(
            {
                key: evolve(row, last_seen=max(0, row.last_seen - seconds))
                for key, row in flows.items()
                if not row.flags & FlowFlags.ENDED
            }
        )

    def wait_for_answers(self) -> None:
        """However long a step takes, answers on their way are late only when the model says so."""
        flows, now = self.node.flows, int(time.monotonic())
        flows.update_many(
            {
                key: evolve(row, last_seen=now)
                for key, row in flows.items()
                if row.flags & FlowFlags.ENDED and not self.model.entries[key].late
            }
        )

    @rule(which=WHICH, seconds=st.sampled_from((0, 40, TIMEOUT + 10)), full=st.booleans())
    def wait(self, which: int, seconds: int, full: bool) -> None:
        """Flows are silent, clients with affinity do not come back; one half of a flow had to make room."""
        Machine.steps += 1
        if full and self.model.entries:
            flow = self.one_of_the_flows(which)
            del self.node.flows[flow], self.model.entries[flow]
        flows, pins = self.node.flows, self.node.pins
        flows.update_many({key: evolve(row, last_seen=1) for key, row in flows.items()})
        pins.update_many({key: evolve(pin, last_seen=pin.last_seen - seconds) for key, pin in pins.items()})
        self.model.let_time_pass()
        self.model.age_pins(seconds)

    # -- packets --

    @rule(
        data=st.data(),
        flags=st.sampled_from(FLAGS),
        ttl=st.sampled_from((64, 64, 64, 1)),
        early=st.booleans(),
    )
    def dial(self, data: st.DataObject, flags: str, ttl: int, early: bool) -> None:
        self.send(self.draw_flow(data), flags, ttl, early=early)

    @rule(data=st.data(), says=st.lists(st.tuples(st.booleans(), st.sampled_from(FLAGS)), max_size=6))
    def converse(self, data: st.DataObject, says: list[tuple[bool, str]]) -> None:
        """A client begins; then it and its backend speak in turns, or in none."""
        flow = self.draw_flow(data)
        self.send(flow, "S", 64, early=False)
        for answers, flags in says:
            entry = self.model.entries.get(flow)
            if entry is not None:
                self.send(turned(entry.to) if answers else flow, flags, 64, early=True)

    def draw_flow(self, data: st.DataObject) -> Tuple:
        """From somebody to a service, or now and then to nobody's address."""
        fronts = [
            (front.address, front.port, front.protocol)
            for served in self.model.services.values()
            for front in served.service.frontends
        ]
        fronts += [
            (ip_address(address), port, protocol)
            for world in WORLDS
            for protocol in PROTOCOLS
            for address, port in (
                place(world, "two"),
                (world.address("balancer"), 7),
                (world.address("service"), 7),
            )
        ][::5]
        address, port, protocol = data.draw(st.sampled_from(fronts), label="dials")
        world = WORLDS[address.version == 6]
        client = place(world, data.draw(st.sampled_from(CLIENTS), label="client"))[0]
        sport = data.draw(st.sampled_from(PORTS), label="port")
        return Tuple(ip_address(client), address, sport, port, protocol)

    @rule(which=WHICH, flags=st.sampled_from(FLAGS), early=st.booleans(), last=st.booleans())
    def go_on(self, which: int, flags: str, early: bool, last: bool) -> None:
        """A packet of a flow that there is, or seems to be."""
        if not self.model.entries:
            return
        flow = self.one_of_the_flows(which)
        entry = self.model.entries[flow]
        if last and entry.reply and entry.to.dst in self.model.pods:
            self.step(Arrival(TO_POD, flow, flags_of(flow, flags)))
        else:
            self.send(flow, flags, 64, early=early)

    def one_of_the_flows(self, which: int) -> Tuple:
        """Not drawn: how many there are is chance, which hypothesis must not see."""
        flows = list(self.model.entries)
        return flows[which % len(flows)]

    def send(self, flow: Tuple, flags: str, ttl: int, *, early: bool) -> None:
        entry = FROM_POD if flow.src in self.model.pods else FROM_UPLINK
        arrival = Arrival(entry, flow, flags_of(flow, flags), ttl)
        if early and entry == FROM_UPLINK:
            if self.model.is_early(arrival):
                self.step(arrival, by=XDP_IN)
                return
            frame = self.frame(arrival)
            ((answer, out),) = self.node.run_many(XDP_IN, [frame])
            assert (answer, out) == (2, frame), "XDP has touched what is not for it"
        self.step(arrival)

    @staticmethod
    def frame(arrival: Arrival) -> bytes:
        flow, macs = arrival.flow, {"dst_mac": OURS, "src_mac": NEXT_HOP}
        ends = flow.src, flow.dst, flow.sport, flow.dport
        if flow.protocol == TCP:
            return tcp(*ends, arrival.flags, b"payload", ttl=arrival.ttl, **macs)
        if flow.protocol == SCTP:
            return LINK + sctp(*ends, CHUNKS[arrival.flags], b"payload.", ttl=arrival.ttl)[12:]
        return udp(*ends, b"payload", ttl=arrival.ttl, **macs)

    def step(self, arrival: Arrival, *, by: str = "") -> None:
        frame = self.frame(arrival)
        fates = self.model.fates(arrival)
        outcome, out = self.run(by or arrival.entry, frame)
        becomes = self.read(arrival, frame, outcome, out)
        self.follow(arrival, fates, outcome, becomes)

    @rule(data=st.data(), which=WHICH, old=st.booleans())
    def send_in_pieces(self, data: st.DataObject, which: int, old: bool) -> None:
        """A datagram in fragments: the first is as any, and those that follow go where it went."""
        flow = self.one_of_the_flows(which) if old and self.model.entries else self.draw_flow(data)
        if flow.protocol != Protocol.UDP:
            return
        Machine.ident += 1
        entry = FROM_POD if flow.src in self.model.pods else FROM_UPLINK
        arrival = Arrival(entry, flow)
        whole = self.frame(arrival)
        first, *later = fragment(whole, 8, ident=self.ident)
        fates = self.model.fates(arrival)
        outcome, out = self.run(entry, first, " of a fragment")
        self.follow(arrival, fates, outcome, self.read(arrival, first, outcome, out))
        for piece in later:
            known = outcome.startswith("TO")
            (fate,) = self.model.fates(arrival) if known else [None]
            said, out = self.run(entry, piece, " of a fragment")
            if fate is None or fate.becomes is None:
                assert said == ("DROP_FRAGMENT" if self.model.is_of_services(flow.dst) else "PASS")
                assert out == piece
                continue
            after, to = parse(out), fate.becomes
            assert (said, after.src, after.dst) == (fate.outcome, to.src, to.dst)
            was, is_now = dissect(piece), dissect(out)
            assert was is not None
            assert is_now is not None
            sent = said in ("TO_POD", "TO_DEVICE")
            assert without(out, is_now, macs=sent) == without(piece, was, macs=sent)
            assert residues(out, is_now) == (0, 0)
            fate.then(to)

    def run(self, entry: str, frame: bytes, what: str = "") -> tuple[str, bytes]:
        """What a program has made of a packet, by its own word and as it is."""
        Machine.steps += 1
        ((_, out),) = self.node.run_many(entry, [frame])
        now = self.node.read_counters()
        (outcome,) = (name for name, count in now.items() if count != self.counted.get(name, 0))
        assert now[outcome] == self.counted.get(outcome, 0) + 1
        self.counted = now
        self.seen[f"{entry} {outcome}{what}"] += 1
        return outcome, out

    @rule(
        data=st.data(),
        which=WHICH,
        way=st.sampled_from((FROM_POD, FROM_UPLINK, TO_POD)),
        kind=st.integers(-1, 4),
        own=st.booleans(),
        strange=st.sampled_from((False, False, True)),
    )
    def complain(
        self, data: st.DataObject, which: int, way: str, kind: int, own: bool, strange: bool
    ) -> None:
        """A router or the other end sends an error, about a flow or about none; or somebody pings."""
        if kind < 0 and way != TO_POD:
            self.ping(self.draw_flow(data), way)
        if kind < 0 or not self.model.entries:
            return
        flow = self.one_of_the_flows(which)
        about = self.model.entries[flow].to
        if strange:
            about = evolve(about, sport=about.sport ^ 1)
        world = WORLDS[about.src.version == 6]
        sender = about.dst if own else ip_address(place(world, "visitor")[0])
        quoting = self.frame(Arrival(way, about, "A"))
        error = LINK + icmp_error(sender, about.src, quoting, KINDS_OF_ERRORS[world.name][kind], 1300)[12:]
        expected = self.model.error_about(about, sender)
        outcome, out = self.run(way, error, " of an error")
        if expected is None:
            assert (outcome, out) == ("PASS", error)
            return
        assert outcome == (expected.outcome if way != TO_POD else "TO_STACK")
        after = parse(out)
        assert after.checksums_ok
        assert (after.src, after.dst, after.icmp) == (expected.src, expected.dst, parse(error).icmp)
        told = quoted(after)
        ends = expected.quoted
        assert (told.src, told.sport, told.dst, told.dport) == (ends.src, ends.sport, ends.dst, ends.dport)

    def ping(self, flow: Tuple, way: str) -> None:
        """An echo request: addresses that belong to services only answer it themselves."""
        request = LINK + icmp_echo(flow.src, flow.dst)[12:]
        outcome, out = self.run(way, request, " of a ping")
        if not self.model.is_of_services(flow.dst):
            assert (outcome, out) == ("PASS", request)
            return
        reply, asked = parse(out), parse(request)
        assert outcome == "ECHO"
        assert reply.checksums_ok
        assert (reply.src, reply.dst, reply.payload) == (flow.dst, flow.src, asked.payload)

    def read(self, arrival: Arrival, frame: bytes, outcome: str, out: bytes) -> Tuple | None:
        """What the packet has become, after a look at all of it."""
        if outcome.startswith("REJECT"):
            answer = parse(out)
            assert answer.checksums_ok
            assert (answer.src, answer.dst) == (arrival.flow.dst, arrival.flow.src)
            return None
        if not outcome.startswith("TO"):
            assert out == frame
            return None
        was, is_now = dissect(frame), dissect(out)
        assert was is not None
        assert is_now is not None
        sent = outcome in ("TO_POD", "TO_DEVICE")
        assert without(out, is_now, macs=sent) == without(frame, was, macs=sent)
        assert residues(out, is_now) == residues(frame, was)
        assert was.fragment or residues(out, is_now) == (0, 0)
        after = parse(out)
        assert after.ttl == arrival.ttl - sent
        assert after.sport is not None
        assert after.dport is not None
        return Tuple(after.src, after.dst, after.sport, after.dport, after.protocol)

    def follow(self, arrival: Arrival, fates: list[Fate], outcome: str, becomes: Tuple | None) -> None:
        fitting = self.model.settle(fates, outcome, becomes)
        if not fitting:
            client = arrival.flow.src
            rows = {key: row for key, row in self.node.flows.items() if client in (key.src, key.dst)}
            known = {flow: self.model.entries.get(flow) for flow in rows}
            raise AssertionError(
                f"{arrival}: {outcome} {becomes}, where the model has {fates}; "
                f"at {time.monotonic()} the kernel has {rows}, the model {known}"
            )
        if len(fitting) > 1:  # alike but for whom the client stays with: the kernel knows
            row = next((pin for key, pin in self.node.pins.items() if key.client == arrival.flow.src), None)
            known = self.ids.get(row.backend) if row is not None else None
            (fate,) = [fate for fate in fitting if fate.member is known] or fitting[:1]
            fate.then(becomes)  # type: ignore[arg-type]

    # -- what must be alike --

    @invariant()
    def flows_are_alike(self) -> None:
        rows = dict(self.node.flows.items())
        assert rows.keys() == self.model.entries.keys()
        for flow, entry in self.model.entries.items():
            row, flags = rows[flow], FlowFlags(rows[flow].flags)
            assert row.to == entry.to
            assert row.packets == entry.packets
            assert self.ids.setdefault(row.backend, entry.member) is entry.member, "one id for two backends"
            told = {
                FlowFlags.REPLY: entry.reply,
                FlowFlags.FIN: entry.fin,
                FlowFlags.RST: entry.rst,
                FlowFlags.SEEN_REPLY: entry.answered,
                FlowFlags.ENDED: entry.ended,
            }
            assert {flag: flag in flags for flag in told} == told, f"{flow}: {flags}, {entry}"
            assert entry.reply or not entry.answered or turned(entry.to) != flow
        self.wait_for_answers()

    @invariant()
    def services_are_alike(self) -> None:
        services = {service.frontend: service for service in self.table.dump()}
        assert services.keys() == self.model.services.keys()
        for frontend, served in self.model.services.items():
            counted = {(b.address, b.port): count for b, count in self.table.flows(frontend).items()}
            assert counted == {where: member.flows for where, member in served.members.items()}

    @invariant()
    def pins_are_alike(self) -> None:
        held = [pin for served in self.model.services.values() for pin in served.pins.values()]
        ids = {pin.backend for pin in self.node.pins.values()}
        rows = self.node.backends
        alive = {rows[id & 0x3FFFFF].addr for id in ids if rows[id & 0x3FFFFF].id == id}
        assert {pin.member.backend.address for pin in held if pin.member.present} <= alive


@pytest.fixture(scope="module")
def node() -> Iterator[Station]:
    with station(reject_rate=0) as made:
        for world in WORLDS:
            for pod in PODS:
                made.add_pod(place(world, pod)[0])
        yield made


def run() -> None:
    run_state_machine_as_test(
        seed(SEED + Machine.steps)(Machine),  # what follows is not what was before
        settings=settings(
            max_examples=max(5, (STEPS - Machine.steps) // STEPS_EACH),
            stateful_step_count=STEPS_EACH,
            phases=[Phase.generate],  # the kernel's chance is not hypothesis', so there is no shrinking
            suppress_health_check=list(HealthCheck),
        ),
    )


def missed() -> set[str]:
    return REACHED.difference(outcome.split()[1] for outcome in Machine.seen)


@pytest.mark.timeout(600 + STEPS // 10)
def test_the_programs_do_what_the_model_says(node: Station) -> None:
    Machine.node, Machine.steps, Machine.seen = node, 0, Counter()
    started = time.monotonic()
    while Machine.steps < STEPS or (missed() and STEPS >= 10_000 and Machine.steps < 3 * STEPS):
        node.call(run)  # what is rare may want some more steps
    seconds = time.monotonic() - started
    print(f"\n{Machine.steps} steps in {seconds:.1f} s, {Machine.steps / seconds:.0f} a second")
    for what, count in sorted(Machine.seen.items()):
        print(f"  {what:36} {count}")
    assert not missed() or STEPS < 10_000
