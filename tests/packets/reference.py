"""What a node does with packets to services, in plain Python: what kube-proxy does, and our own choices.

It follows from the documents (docs/design.md, docs/reference/semantics.md) and knows no maps, rows or
slots. Where chance decides it names all that may happen; who runs it then says what did, with
:meth:`Reference.settle`, and the model goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from attrs import define, evolve, field, frozen

from k8sdatapath.datapath.maglev import maglev_slots
from k8sdatapath.datapath.service_rows import frontend_rows, slots
from k8sdatapath.model import (
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    Protocol,
    Scope,
    Selection,
    Service,
)
from k8sdatapath.tables.conntrack import Tuple
from tests.packets.oracle import maglev_slot

Address = IPv4Address | IPv6Address
FROM_POD, FROM_UPLINK, TO_POD, XDP_IN = "from_pod", "from_uplink", "to_pod", "xdp_in"
SILENCE = 30
"""Seconds after which a datagram flow gives up its ports to another."""
CLIENTS_END = 61000
"""Below are the ports that clients choose by themselves."""


def turned(flow: Tuple) -> Tuple:
    """The other direction."""
    return Tuple(flow.dst, flow.src, flow.dport, flow.sport, flow.protocol)


@define(eq=False)
class Member:
    """A backend in a service, from when it joins to when it leaves; who comes again is somebody else.

    :ivar flows: how many it has been given.
    """

    home: Served
    backend: Backend
    present: bool = True
    flows: int = 0

    def serves(self, scope: Scope) -> bool:
        """Whether it is one of those that this scope is about."""
        return bool(self.backend.weight) and (
            self.backend.local if scope is Scope.LOCAL else self.backend.cluster
        )


@define
class Pin:
    """A client's stay with a backend. :ivar age: seconds since it last opened a connection."""

    member: Member
    age: int = 0


@define(eq=False)
class Served:
    """A service as long as it exists.

    :ivar pins: by client.
    """

    service: Service
    members: dict[tuple[Address, int], Member] = field(factory=dict)
    pins: dict[Address, Pin] = field(factory=dict)

    def become(self, service: Service) -> None:
        wanted = {(backend.address, backend.port): backend for backend in service.backends}
        for place in self.members.keys() - wanted.keys():
            self.members.pop(place).present = False
        for place, backend in wanted.items():
            self.members.setdefault(place, Member(self, backend)).backend = backend
        self.service = service

    def end(self) -> None:
        for member in self.members.values():
            member.present = False

    def candidates(self, scope: Scope) -> list[Member]:
        """Active ones; if there are none, those that still serve while they leave."""
        able = [member for member in self.members.values() if member.serves(scope)]
        return [m for m in able if m.backend.state is BackendState.ACTIVE] or able


@define(eq=False)
class Entry:
    """One direction of a flow.

    :ivar silent: it has had no packet for longer than :data:`SILENCE`, or ever.
    :ivar ended: the flow is over, and this is left for answers on their way.
    :ivar late: they have had their time.
    """

    to: Tuple
    member: Member
    reply: bool
    packets: int = 0
    fin: bool = False
    rst: bool = False
    answered: bool = False
    silent: bool = True
    ended: bool = False
    late: bool = False

    @property
    def closed(self) -> bool:
        return self.fin or self.rst


@frozen
class Arrival:
    """A packet that comes in.

    :ivar flags: of TCP, by initials.
    """

    entry: str
    flow: Tuple
    flags: str = ""
    ttl: int = 64

    @property
    def is_syn(self) -> bool:
        return "S" in self.flags and "A" not in self.flags

    @property
    def begins(self) -> bool:
        """Whether a flow may begin with it: a connection may be taken up in the middle, but not by a RST."""
        return (
            self.flow.protocol == Protocol.UDP
            or self.is_syn
            or ("A" in self.flags and not set(self.flags) & set("SR"))
        )


@frozen
class Fate:
    """One thing that may become of a packet.

    :ivar outcome: the verdict's or drop's name.
    :ivar becomes: its addresses and ports afterwards, None if it stays as it is.
    :ivar least_port: if not 0, the source port is another one, from here up.
    :ivar member: who was chosen.
    """

    outcome: str
    becomes: Tuple | None = None
    least_port: int = 0
    member: Member | None = None
    then: Callable[[Tuple], None] = lambda to: None

    def allows(self, outcome: str, becomes: Tuple | None) -> bool:
        if outcome != self.outcome or (becomes is None) != (self.becomes is None):
            return False
        if self.becomes is None or becomes is None:
            return True
        if not self.least_port:
            return becomes == self.becomes
        fair = becomes.sport != self.becomes.sport and becomes.sport >= self.least_port
        return fair and becomes == evolve(self.becomes, sport=becomes.sport)


@frozen
class Complaint:
    """An ICMP error as it is passed on. :ivar quoted: the packet that it is about then."""

    outcome: str
    src: Address
    dst: Address
    quoted: Tuple


@define
class Reference:
    """A node.

    :ivar pods: addresses of its pods.
    :ivar own: its addresses towards other nodes, by family.
    :ivar entries: its flows, each direction by its own tuple.
    :ivar turns: flows that were given out in turn at each frontend, since something about it changed.
    """

    pods: set[Address]
    own: dict[int, Address]
    services: dict[Frontend, Served] = field(factory=dict)
    entries: dict[Tuple, Entry] = field(factory=dict)
    turns: dict[Frontend, int] = field(factory=dict)

    # -- changes --

    def upsert(self, service: Service) -> None:
        before = self._rules()
        if service.frontend not in self.services:
            self.services[service.frontend] = Served(service)
        self.services[service.frontend].become(service)
        after = self._rules()
        self.turns = {at: turn for at, turn in self.turns.items() if before.get(at) == after.get(at)}

    def remove(self, frontend: Frontend) -> None:
        served = self.services.pop(frontend)
        served.end()
        for each in served.service.frontends:
            self.turns.pop(each, None)

    def _rules(self) -> dict[Frontend, object]:
        """All that is said at each frontend, but for who the backends are: a change begins its turns anew."""
        return {
            Frontend(key.addr, key.port, Protocol(key.protocol)): (main, row)
            for main, served in self.services.items()
            for key, row in frontend_rows(served.service, 0).items()
        }

    def let_time_pass(self) -> None:
        """Long enough for datagram flows to be silent."""
        for entry in self.entries.values():
            entry.silent = True
            entry.late = entry.ended

    def age_pins(self, seconds: int) -> None:
        for served in self.services.values():
            for pin in served.pins.values():
                pin.age += seconds

    # -- packets --

    def fates(self, arrival: Arrival) -> list[Fate]:
        """What may become of a packet."""
        flow = arrival.flow
        entry = self.entries.get(flow)
        if arrival.entry == TO_POD:
            if entry is None or not entry.reply or self._is_over(arrival, entry):
                return [Fate("PASS")]
            return [Fate("TO_STACK", entry.to, then=lambda to: self._follow(arrival, entry))]
        if entry is not None and self._is_over(arrival, entry):
            self._forget(flow, entry)
            entry = None
        if entry is not None:
            kept = entry
            return [
                Fate(self._way(kept.to.dst, arrival), kept.to, then=lambda to: self._follow(arrival, kept))
            ]
        return self._begin(arrival)

    def is_early(self, arrival: Arrival) -> bool:
        """Whether the program at XDP sends the packet on: of a flow between others than pods of this node."""
        entry = self.entries.get(arrival.flow)
        if entry is None or arrival.flow.protocol == Protocol.SCTP or self._is_over(arrival, entry):
            return False
        return self._way(entry.to.dst, arrival) == "TO_DEVICE"

    def settle(self, fates: list[Fate], outcome: str, becomes: Tuple | None) -> list[Fate]:
        """Those that fit what happened; if it is one, or they are alike, the model goes on from there."""
        fitting = [fate for fate in fates if fate.allows(outcome, becomes)]
        if len(fitting) == 1:
            fitting[0].then(becomes or fitting[0].becomes)  # type: ignore[arg-type]
        return fitting

    def _way(self, dst: Address, arrival: Arrival) -> str:
        if arrival.ttl <= 1 or dst in self.own.values():
            return "TO_STACK"
        return "TO_POD" if dst in self.pods else "TO_DEVICE"

    # -- flows --

    def _other(self, flow: Tuple, entry: Entry) -> Entry | None:
        """The other direction of the very same flow."""
        other = self.entries.get(turned(entry.to))
        same = other is not None and other.to == turned(flow) and other.reply is not entry.reply
        return other if same else None

    def _is_over(self, arrival: Arrival, entry: Entry) -> bool:
        """Whether the packet is not of this flow any more, but of another with the same ports."""
        if entry.ended:
            return entry.late
        left = not entry.reply and self._has_left(arrival.flow, entry.member)
        if arrival.flow.protocol == Protocol.UDP:
            return left
        opens = ("S" in arrival.flags and "A" in arrival.flags) if entry.reply else arrival.is_syn
        if not opens:
            return False
        other = self.entries.get(turned(entry.to))
        if other is None:
            return not entry.reply
        return entry.closed or other.closed or left

    def _has_left(self, dialled: Tuple, member: Member) -> bool:
        """Whether the backend, or the frontend, has left the service that once brought them together."""
        found = self._frontend(dialled)
        return not member.present or found is None or found[0] is not member.home

    def _forget(self, flow: Tuple, entry: Entry) -> None:
        other = self._other(flow, entry)
        if other is not None and other.reply and flow.protocol == Protocol.UDP:
            other.ended, other.late = True, False
        elif other is not None:
            del self.entries[turned(entry.to)]
        del self.entries[flow]

    def _follow(self, arrival: Arrival, entry: Entry) -> None:
        entry.packets += 1
        if entry.ended:
            return
        entry.silent = False
        entry.fin |= "F" in arrival.flags
        entry.rst |= "R" in arrival.flags
        opposite = turned(entry.to)
        if opposite not in self.entries:  # it was lost: it is made again
            self.entries[opposite] = Entry(
                turned(arrival.flow), entry.member, not entry.reply, answered=entry.reply
            )
        other = self._other(arrival.flow, entry)
        if other is not None and entry.reply:
            other.answered = True

    # -- new flows --

    def _frontend(self, flow: Tuple) -> tuple[Served, FrontendKind] | None:
        wanted = Frontend(flow.dst, flow.dport, Protocol(flow.protocol))
        for served in self.services.values():
            for frontend, kind in zip(served.service.frontends, served.service.kinds, strict=True):
                if frontend == wanted:
                    return served, kind
        return None

    def _begin(self, arrival: Arrival) -> list[Fate]:
        found = self._frontend(arrival.flow)
        if found is None:
            return [Fate(self._elsewhere(arrival))]
        served, kind = found
        service, client = served.service, arrival.flow.src
        if kind is FrontendKind.LOAD_BALANCER and service.source_ranges:  # noqa: SIM102
            if not any(client in network for network in service.source_ranges):
                return [Fate("DROP_SOURCE")]
        if not arrival.begins:
            return [Fate("DROP_NO_FLOW")]
        outside = arrival.entry == FROM_UPLINK
        local = (
            service.internal_local if kind is FrontendKind.CLUSTER_IP else service.external_local and outside
        )
        scope = Scope.LOCAL if local else Scope.CLUSTER
        pin = served.pins.get(client) if service.affinity_timeout else None
        if pin is not None and self._holds(served, pin, scope):
            return [self._give(arrival, served, pin.member)]
        candidates = served.candidates(scope)
        if not candidates:
            anybody = any(m.serves(each) for m in served.members.values() for each in Scope)
            return [Fate("DROP_NOT_LOCAL" if anybody else "REJECT_NO_BACKEND")]
        if service.selection is Selection.MAGLEV:
            candidates = [self._by_hash(arrival.flow, service, candidates)]
        if service.selection is Selection.ROUND_ROBIN:
            return [self._in_turn(arrival, served, scope)]
        return [self._give(arrival, served, member) for member in candidates]

    def _in_turn(self, arrival: Arrival, served: Served, scope: Scope) -> Fate:
        """The next of the backends, in their order; those that weigh more come oftener, spread out."""
        service, flow = served.service, arrival.flow
        frontend = Frontend(flow.dst, flow.dport, Protocol(flow.protocol))
        order = slots(service, range(len(service.backends)), scope)
        turn = self.turns.get(frontend, 0)
        chosen = service.backends[order[turn % len(order)]]
        fate = self._give(arrival, served, served.members[chosen.address, chosen.port])

        def begin(to: Tuple) -> None:
            self.turns[frontend] = turn + 1
            fate.then(to)

        return evolve(fate, then=begin)

    def is_of_services(self, address: Address) -> bool:
        """Whether an address belongs to services, and to nobody else."""
        shared = {FrontendKind.NODE_PORT, FrontendKind.HOST_PORT}
        kinds = self._kinds_at(address)
        return bool(kinds) and address not in self.own.values() and not kinds & shared

    def _kinds_at(self, address: Address) -> set[FrontendKind]:
        return {
            kind
            for served in self.services.values()
            for frontend, kind in zip(served.service.frontends, served.service.kinds, strict=True)
            if frontend.address == address
        }

    def _elsewhere(self, arrival: Arrival) -> str:
        """At an address where no service is dialled with this port and protocol: whose is it?"""
        address = arrival.flow.dst
        if not self.is_of_services(address):
            return "PASS"
        if FrontendKind.CLUSTER_IP not in self._kinds_at(address):
            return "DROP_NO_SERVICE"
        reset = arrival.flow.protocol == Protocol.TCP and "R" in arrival.flags
        return "DROP_REJECT" if reset else "REJECT_NO_SERVICE"  # no RST answers a RST

    # -- ICMP --

    def error_about(self, quoted: Tuple, sender: Address) -> Complaint | None:
        """What becomes of an error about a packet as it was when it met the error; None: it stays as it is.

        It goes to whom an answer would go, and quotes what that one has sent.
        """
        answer = self.entries.get(turned(quoted))
        if answer is None:
            return None
        src = answer.to.src if sender == quoted.dst else sender
        way = self._way(answer.to.dst, Arrival(FROM_UPLINK, quoted))
        return Complaint(way, src, answer.to.dst, turned(answer.to))

    @staticmethod
    def _holds(served: Served, pin: Pin, scope: Scope) -> bool:
        """Whether a client may have its backend again."""
        member = pin.member
        return (
            pin.age <= served.service.affinity_timeout
            and member.present
            and member.serves(scope)
            and member.backend.state is BackendState.ACTIVE
        )

    @staticmethod
    def _by_hash(flow: Tuple, service: Service, candidates: list[Member]) -> Member:
        backends = [member.backend for member in candidates]
        table = maglev_slots(backends, range(len(backends)), service.protocol)
        if service.affinity_timeout:
            flow = evolve(flow, sport=0)
        return candidates[table[maglev_slot(flow, len(table))]]

    def _give(self, arrival: Arrival, served: Served, member: Member) -> Fate:
        """The fate of a packet whose flow is given to a backend."""
        flow, backend = arrival.flow, member.backend
        outside = arrival.entry == FROM_UPLINK
        to = Tuple(flow.src, backend.address, flow.sport, backend.port, flow.protocol)
        if backend.address == flow.src:
            to = evolve(to, src=flow.dst)
        elif outside and backend.address not in self.pods:
            to = evolve(to, src=self.own[flow.src.version])
        least = CLIENTS_END if to.src == flow.src else 1024
        if self._is_free(flow, to):
            least = 0

        if least and flow.protocol == Protocol.SCTP:  # which keeps its port
            return Fate("DROP_NO_PORT", member=member)

        def begin(to: Tuple) -> None:
            self._pin(served, flow, member)
            self._make(flow, to, member)

        return Fate(self._way(to.dst, arrival), to, least_port=least, member=member, then=begin)

    @staticmethod
    def _pin(served: Served, flow: Tuple, member: Member) -> None:
        if served.service.affinity_timeout:
            served.pins[flow.src] = Pin(member)

    def _is_free(self, flow: Tuple, to: Tuple) -> bool:
        """Whether answers would be of this flow and no other that is alive."""
        held = self.entries.get(turned(to))
        if held is None or (held.to == turned(flow) and held.reply):
            return True
        other = self._other(turned(to), held)
        if other is None:
            return True
        if flow.protocol == Protocol.UDP:
            return held.silent and other.silent
        return held.closed or other.closed

    def _make(self, flow: Tuple, to: Tuple, member: Member) -> None:
        held = self.entries.get(turned(to))
        if held is not None and held.to != turned(flow) and self._other(turned(to), held) is not None:
            del self.entries[turned(held.to)]
        self.entries[turned(to)] = Entry(turned(flow), member, True)
        self.entries[flow] = Entry(to, member, False, packets=1, silent=False)
        member.flows += 1


def served_twice(services: Iterable[Service]) -> bool:
    """Whether two services have one frontend."""
    frontends = [frontend for service in services for frontend in service.frontends]
    return len(frontends) != len(set(frontends))
