"""Events of the kernel as flows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from secrets import randbits
from typing import Any, NamedTuple

from attrs import evolve

from k8sdatapath.datapath.flow_names import Names, Ruling
from k8sdatapath.layout import layout_of
from k8sdatapath.layout.codecs import MAPPED, address_bytes
from k8sdatapath.model import IPAddress
from k8sdatapath.model.flow import (
    ACCELERATED,
    IP,
    SCTP,
    TCP,
    UDP,
    DropReason,
    Emitter,
    Endpoint,
    EventType,
    FileInfo,
    Flow,
    FlowType,
    ICMPv4,
    ICMPv6,
    Interface,
    IPVersion,
    Layer4,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    PolicyMatch,
    PolicyRef,
    ServiceRef,
    SocketTranslationPoint,
    TraceObservationPoint,
    TraceReason,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.model.flow_words import summary
from k8sdatapath.tables.events import (
    EventFlags,
    EventState,
    PackedEvent,
    Point,
    reason_of,
    source_line,
)

__all__ = ["LOST", "MADE", "Decoder", "lost_record"]

LOST, MADE = 0xFF, 0xFE
"""In place of a point: that events were lost; and that a flow was made elsewhere."""

_EVENT = layout_of(PackedEvent)
_NONE = bytes(16)
_MOST_MADE = 16384
_SET = 10**8
"""Nanoseconds of difference by which a clock was set: a flow has one time, whenever it is read."""

#: What Hubble's clients call our reasons.
REASONS = {
    "DROP_MALFORMED": DropReason.INVALID_PACKET_DROPPED,
    "DROP_FRAGMENT": DropReason.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND,
    "DROP_NOT_LOCAL": DropReason.SERVICE_BACKEND_NOT_FOUND,
    "DROP_NO_FLOW": DropReason.UNKNOWN_CONNECTION_TRACKING_STATE,
    "DROP_STALE_SLOT": DropReason.SERVICE_BACKEND_NOT_FOUND,
    "DROP_NO_SOURCE": DropReason.DROP_NO_EGRESS_IP,
    "DROP_NO_PORT": DropReason.NO_MAPPING_FOR_NAT_MASQUERADE,
    "DROP_NO_MEMORY": DropReason.CT_MAP_INSERTION_FAILED,
    "DROP_REWRITE": DropReason.ERROR_WRITING_TO_PACKET,
    "DROP_SOURCE": DropReason.DENIED_BY_LB_SRC_RANGE_CHECK,
    "DROP_NO_SERVICE": DropReason.SERVICE_BACKEND_NOT_FOUND,
    "DROP_REJECT": DropReason.DROP_RATE_LIMITED,
    "DROP_NODE_PORT": DropReason.SOCKET_ASSIGN_FAILED,
    "DROP_SCTP_PORT": DropReason.UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE,
    "DROP_LEFT_ALONE": DropReason.UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE,
    "DROP_NO_PEER": DropReason.NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT,
    "DROP_UNKNOWN_PEER": DropReason.UNKNOWN_SENDER,
    "DROP_MEDDLING": DropReason.ENCAPSULATION_TRAFFIC_IS_PROHIBITED,
    "DROP_POLICY_DENIED": DropReason.POLICY_DENIED,
    "DROP_INVALID_SOURCE_IP": DropReason.INVALID_SOURCE_IP,
    "DROP_NAME": DropReason.POLICY_DENIED,
    "REJECT_DENIED": DropReason.POLICY_DENIED,
    "REJECT_NAME": DropReason.POLICY_DENIED,
    "REJECT_NO_BACKEND": DropReason.SERVICE_BACKEND_NOT_FOUND,
    "REJECT_NO_SERVICE": DropReason.SERVICE_BACKEND_NOT_FOUND,
}
_TO = {
    "TO_POD": TraceObservationPoint.TO_ENDPOINT,
    "TO_DEVICE": TraceObservationPoint.TO_NETWORK,
    "TO_PEER": TraceObservationPoint.TO_OVERLAY,
    "ECHO": TraceObservationPoint.TO_ENDPOINT,
}
_AT: Mapping[int, TraceObservationPoint] = {
    Point.TO_POD: TraceObservationPoint.TO_ENDPOINT,
    Point.TO_UPLINK: TraceObservationPoint.TO_NETWORK,
    Point.TO_OVERLAY: TraceObservationPoint.TO_OVERLAY,
}
_IN = frozenset({Point.TO_POD, Point.FROM_UPLINK, Point.FROM_OVERLAY, Point.DRIVER})
_TURNED = {
    TrafficDirection.INGRESS: TrafficDirection.EGRESS,
    TrafficDirection.EGRESS: TrafficDirection.INGRESS,
}
# Plain numbers: those of an enum take ten times as long to be compared, and each event is asked ten times.
_IPV6, _AUDITED = int(EventFlags.IPV6), int(EventFlags.AUDITED)
_DENIED_BY_SOURCE, _DENIED_BY_DESTINATION = (
    int(EventFlags.DENIED_BY_SOURCE),
    int(EventFlags.DENIED_BY_DESTINATION),
)
_ASKED = int(EventFlags.SOURCE_ASKED | EventFlags.DESTINATION_ASKED)
_DENIED = _DENIED_BY_SOURCE | _DENIED_BY_DESTINATION
_REASON_VALUES = {int(each): each for each in TraceReason}


@lru_cache(maxsize=1 << 14)
def _address(data: bytes) -> IPAddress:
    return IPv4Address(data[12:]) if data.startswith(MAPPED) else IPv6Address(data)


@lru_cache(maxsize=1 << 14)
def _text(data: bytes) -> str:
    return str(_address(data))


def lost_record(cpu: int, number: int, first: int, last: int) -> bytes:
    """An event that says that so many were lost, between two points in time of CLOCK_MONOTONIC."""
    return _record(time=last, packets=number, bytes=first, cpu=cpu, point=LOST)


def _record(**said: int) -> bytes:
    nothing = _EVENT.unpack(bytes(_EVENT.size))
    known: dict[str, Any] = {each.name: getattr(nothing, each.name, 0) for each in _EVENT.fields}
    del known["pad"]
    return _EVENT.pack(PackedEvent(**(known | said)))


def _clock(before: int) -> int:
    """What CLOCK_MONOTONIC is behind the time of day: what it was before, unless that was set since."""
    now = min(_reading() for _ in range(3))[1]
    return before if abs(now - before) < _SET else now


def _reading() -> tuple[int, int]:
    """How long a look at both clocks has taken, and the difference: wrong by no more than that."""
    began = time.monotonic_ns()
    now = time.time_ns()
    took = time.monotonic_ns() - began
    return took, now - began - took // 2


class Decoder:
    """Makes flows of events.

    :param outcomes: what the programs call what becomes of packets, by number.
    :param node: ``cluster/node``.
    """

    def __init__(self, names: Names, outcomes: Mapping[int, str], node: str, version: str) -> None:
        self._names = names
        self.outcomes = outcomes
        self.node = node
        self._made: dict[int, Flow] = {}
        self._numbers = count()
        self.emitter = Emitter("k8sdatapath", version)
        self._clock = _clock(0)
        self._series = f"{randbits(32):08x}-{randbits(16):04x}"

    @property
    def clock(self) -> int:
        """Nanoseconds that CLOCK_MONOTONIC is behind the time of day."""
        self._clock = _clock(self._clock)
        return self._clock

    def text(self, where: bytes) -> str:
        """An address in words, empty of none."""
        return _text(where) if where != _NONE else ""

    def endpoint(self, where: bytes, identity: int, at: int) -> Endpoint:
        """Who was at an address at a time of CLOCK_MONOTONIC."""
        return self._names.endpoint(_address(where), identity, at)

    def decode(self, data: bytes, number: int) -> list[Flow | LostEvent]:
        """The flows of records that lie one after the other, the first of which has a number."""
        clock = self.clock
        return [self._flow(row, number + index, clock) for index, row in enumerate(_EVENT.unpack_many(data))]

    def keep(self, flow: Flow, at: int) -> bytes:
        """Remember a flow that is no event of a packet; returns one that stands for it.

        Of too many the oldest is forgotten.

        :param at: when, of CLOCK_MONOTONIC.
        """
        number = next(self._numbers)
        uuid = flow.uuid or f"{self._series}-4000-9000-{number:012x}"  # no event of a packet has it
        self._made[number] = evolve(flow, uuid=uuid)
        self._made.pop(number - _MOST_MADE, None)
        return _record(time=at, cookie=number, point=MADE)

    def _flow(self, row: PackedEvent, number: int, clock: int) -> Flow | LostEvent:
        at = clock + row.time
        if row.point == LOST:
            where = LostEventSource.PERF_EVENT_RING_BUFFER
            return LostEvent(where, row.packets, row.cpu, clock + row.bytes, at)
        if row.point == MADE:
            made = self._made.get(row.cookie)
            if made is None:
                return LostEvent(LostEventSource.HUBBLE_RING_BUFFER, 1, None, at, at)
            return made if made.time == at else evolve(made, time=at)
        names = self._names
        origin = self._from(row)
        source, destination = _address(origin), _address(row.destination)
        outcome = self.outcomes.get(reason_of(row.result), "")
        reason = DropReason.DROP_REASON_UNKNOWN
        verdict, event, point = self._became(row, outcome)
        by_source = self._ruling(row.source_rule, row.time)
        by_destination = self._ruling(row.destination_rule, row.time)
        if verdict is Verdict.DROPPED:
            reason = REASONS.get(outcome, reason)
            decisive = by_destination if row.flags & _DENIED_BY_DESTINATION else by_source
            if row.flags & _DENIED and decisive is not None and decisive.rule:
                reason = DropReason.POLICY_DENY
            event = EventType(MonitorEvent.DROP, int(reason))
        l4 = _layer4(row)
        decider = _decider(row, by_source, by_destination)
        direction = _direction(row, outcome, decider)
        match = {"source": by_source, "destination": by_destination}.get(decider)
        reply = row.state == EventState.REPLY
        asked = None if reply else self._asked(row)
        answers = self._answering(row) if reply else None
        place = source_line(row.result)
        policies = _deciders(row, reply, by_source, by_destination) if row.flags & _ASKED else _NOBODY
        return Flow(
            time=at,
            verdict=verdict,
            ip=IP(
                self.text(origin),
                _text(row.destination),
                IPVersion.IPv6 if row.flags & _IPV6 else IPVersion.IPv4,
                False,
                _text(row.seen_source) if row.seen_source != _NONE and not reply else "",
            ),
            l4=l4,
            source=self._source(row),
            destination=names.endpoint(destination, row.destination_identity, row.time),
            type=FlowType.SOCK if row.point >= Point.CONNECT else FlowType.L3_L4,
            node_name=self.node,
            source_names=names.domains(source, destination),
            destination_names=names.domains(destination, source),
            event_type=event,
            source_service=answers,
            destination_service=asked,
            traffic_direction=direction,
            policy_match_type=match.match if match is not None else PolicyMatch.NONE,
            trace_observation_point=point,
            drop_reason=reason,
            is_reply=_is_reply(row, verdict),
            interface=Interface(row.ifindex, names.device(row.ifindex)) if row.ifindex else None,
            sock_xlate_point=_translation(row),
            socket_cookie=row.cookie,
            cgroup_id=row.cgroup,
            uuid=f"{self._series}-4000-8000-{number & (1 << 48) - 1:012x}",
            trace_reason=_REASON_VALUES.get(row.state, TraceReason.TRACE_REASON_UNKNOWN),
            file=FileInfo(place.file, place.line) if place is not None else None,
            emitter=self.emitter,
            egress_allowed_by=policies.egress_allowed_by,
            ingress_allowed_by=policies.ingress_allowed_by,
            egress_denied_by=policies.egress_denied_by,
            ingress_denied_by=policies.ingress_denied_by,
            summary=_summary(row, l4),
        )

    def _became(self, row: PackedEvent, outcome: str) -> tuple[Verdict, EventType, TraceObservationPoint]:
        """The verdict, the kind of event, and where the packet goes."""
        nowhere = TraceObservationPoint.UNKNOWN_POINT
        if row.result < 0 or outcome.startswith("REJECT_"):
            return Verdict.DROPPED, EventType(MonitorEvent.DROP, 0), nowhere
        if Point.CONNECT <= row.point < Point.PAIRED:
            point = _translation(row)
            return Verdict.TRANSLATED, EventType(MonitorEvent.TRACE_SOCK, int(point)), nowhere
        if outcome == "TOO_BIG":
            return Verdict.ERROR, EventType(MonitorEvent.TRACE, 0), nowhere
        to = _AT.get(row.point) or _TO.get(outcome, TraceObservationPoint.TO_STACK)
        if row.flags & _AUDITED:
            return Verdict.AUDIT, EventType(MonitorEvent.POLICY_VERDICT, 0), to
        if row.flags & _ASKED:
            return Verdict.FORWARDED, EventType(MonitorEvent.POLICY_VERDICT, 0), to
        return Verdict.FORWARDED, EventType(MonitorEvent.TRACE, int(to) if to < 100 else 0), to

    def _ruling(self, counter: int, at: int) -> Ruling | None:
        return self._names.ruling(counter, at) if counter else None

    def _from(self, row: PackedEvent) -> bytes:
        """Where a packet is from. A socket that has no address yet will have its namespace's."""
        if row.source != _NONE:
            return row.source
        version = 6 if row.flags & _IPV6 else 4
        known = self._names.addresses(row.netns)
        return next((address_bytes(each) for each in known if each.version == version), _NONE)

    def _source(self, row: PackedEvent) -> Endpoint:
        """Of a socket that has no address yet, its namespace is known."""
        if row.source == _NONE:
            return self._names.namespace(row.netns) or Endpoint()
        return self._names.endpoint(_address(row.source), row.source_identity, row.time)

    def _asked(self, row: PackedEvent) -> ServiceRef | None:
        """The service that a packet is for."""
        if row.dialled != _NONE:
            where, port = row.dialled, row.dialled_port
        else:
            where, port = row.destination, row.destination_port
        return self._names.service(_address(where), port, row.protocol, row.time)

    def _answering(self, row: PackedEvent) -> ServiceRef | None:
        """The service that a packet is an answer of."""
        if row.seen_source != _NONE:
            where, port = row.seen_source, row.seen_source_port
        else:
            where, port = row.source, row.source_port
        return self._names.service(_address(where), port, row.protocol, row.time)


def _layer4(row: PackedEvent) -> Layer4 | None:
    ports = row.source_port, row.destination_port
    match row.protocol:
        case 6:
            return TCP(*ports, row.tcp_flags)
        case 17:
            return UDP(*ports)
        case 132:
            return SCTP(*ports)
        case 1:
            return ICMPv4(row.icmp_type, row.icmp_code)
        case 58:
            return ICMPv6(row.icmp_type, row.icmp_code)
    return None


def _summary(row: PackedEvent, l4: Layer4 | None) -> str:
    if row.point == Point.PAIRED:
        return ACCELERATED
    return summary(l4) if row.point < Point.CONNECT else type(l4).__name__


def _decider(row: PackedEvent, by_source: Ruling | None, by_destination: Ruling | None) -> str:
    """The end of a packet whose policy denies it, or has a rule that allows it; empty: neither."""
    if row.flags & _DENIED_BY_DESTINATION:
        return "destination"
    if row.flags & _DENIED_BY_SOURCE:
        return "source"
    if not row.flags & _ASKED or row.result < 0:
        return ""
    if by_destination is not None and by_destination.rule:
        return "destination"
    return "source" if by_source is not None and by_source.rule else ""


def _direction(row: PackedEvent, outcome: str, decider: str) -> TrafficDirection:
    """As the pod sees it whose policy decides, or else the one at the point of observation."""
    inward = row.point in _IN or (outcome == "TO_POD" and row.result >= 0)
    if decider:
        inward = decider == "destination"
    direction = TrafficDirection.INGRESS if inward else TrafficDirection.EGRESS
    return _TURNED[direction] if row.state == EventState.REPLY and row.result >= 0 else direction


def _is_reply(row: PackedEvent, verdict: Verdict) -> bool | None:
    if verdict is Verdict.DROPPED or row.state in (EventState.UNKNOWN, EventState.RELATED):
        return None
    return row.state == EventState.REPLY


def _translation(row: PackedEvent) -> SocketTranslationPoint:
    if row.point in (Point.CONNECT, Point.SENDMSG):
        return SocketTranslationPoint.SOCK_XLATE_POINT_POST_DIRECTION_FWD
    if row.point == Point.RECVMSG:
        return SocketTranslationPoint.SOCK_XLATE_POINT_POST_DIRECTION_REV
    return SocketTranslationPoint.SOCK_XLATE_POINT_UNKNOWN


class _Deciders(NamedTuple):
    """Whose rules decided."""

    egress_allowed_by: tuple[PolicyRef, ...] = ()
    ingress_allowed_by: tuple[PolicyRef, ...] = ()
    egress_denied_by: tuple[PolicyRef, ...] = ()
    ingress_denied_by: tuple[PolicyRef, ...] = ()


def _deciders(
    row: PackedEvent, reply: bool, by_source: Ruling | None, by_destination: Ruling | None
) -> _Deciders:
    """Of each end as its own pod sees it: out of who began, and into the other."""
    found = {}
    denied = {"source": _DENIED_BY_SOURCE, "destination": _DENIED_BY_DESTINATION}
    for end, ruling in (("source", by_source), ("destination", by_destination)):
        if ruling is None or not ruling.policies:
            continue
        way = "egress" if (end == "source") != reply else "ingress"
        what = "denied" if row.flags & denied[end] else "allowed"
        found[f"{way}_{what}_by"] = ruling.policies
    return _Deciders(**found)


_NOBODY = _Deciders()
