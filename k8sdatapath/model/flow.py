"""Flows: what was seen of a packet, a request or a socket, and what became of it.

A :class:`Flow` says what Hubble's ``flow.Flow`` says, under the same names in lower case, and has the same
JSON. :class:`FlowEvent` is a line of what ``hubble observe -o json`` prints and ``--input-file`` reads.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from attrs import frozen

from k8sdatapath.model.flow_ends import Endpoint, PolicyRef, ServiceRef, WorkloadRef
from k8sdatapath.model.flow_enums import (
    AuthType,
    DebugCapturePoint,
    DropReason,
    FlowType,
    IPVersion,
    L7FlowType,
    LostEventSource,
    MonitorEvent,
    NodeState,
    PolicyMatch,
    SocketTranslationPoint,
    TCPFlags,
    TraceObservationPoint,
    TraceReason,
    TrafficDirection,
    TunnelProtocol,
    Verdict,
)
from k8sdatapath.model.message import Kind, Message, part

__all__ = [
    "ACCELERATED",
    "DNS",
    "HTTP",
    "IGMP",
    "IP",
    "SCTP",
    "TCP",
    "UDP",
    "VRRP",
    "Aggregate",
    "AuthType",
    "DebugCapturePoint",
    "DropReason",
    "Emitter",
    "Endpoint",
    "Ethernet",
    "EventType",
    "FileInfo",
    "Flow",
    "FlowEvent",
    "FlowType",
    "Header",
    "ICMPv4",
    "ICMPv6",
    "IPTraceID",
    "IPVersion",
    "Interface",
    "Kafka",
    "L7FlowType",
    "Layer4",
    "Layer7",
    "LostEvent",
    "LostEventSource",
    "MonitorEvent",
    "NodeState",
    "NodeStatus",
    "PolicyMatch",
    "PolicyRef",
    "ServiceRef",
    "SocketTranslationPoint",
    "TCPFlags",
    "TraceContext",
    "TraceObservationPoint",
    "TraceParent",
    "TraceReason",
    "TrafficDirection",
    "Tunnel",
    "TunnelProtocol",
    "Verdict",
    "WorkloadRef",
]


@frozen
class Ethernet(Message):
    """The addresses of a frame."""

    source: str = part(Kind.PLAIN, str)
    destination: str = part(Kind.PLAIN, str)


@frozen
class IP(Message):
    """The addresses of a packet, as text.

    :ivar source_xlated: the source it was given, if it was masqueraded; ``source`` is that before.
    """

    source: str = part(Kind.PLAIN, str)
    destination: str = part(Kind.PLAIN, str)
    version: IPVersion | int = part(Kind.ENUM, IPVersion, name="ipVersion")
    encrypted: bool = part(Kind.PLAIN, bool)
    source_xlated: str = part(Kind.PLAIN, str)


@frozen
class TCP(Message):
    """A segment."""

    source_port: int = part(Kind.PLAIN, int)
    destination_port: int = part(Kind.PLAIN, int)
    flags: TCPFlags | int = part(Kind.BITS, TCPFlags)


@frozen
class UDP(Message):
    """A datagram."""

    source_port: int = part(Kind.PLAIN, int)
    destination_port: int = part(Kind.PLAIN, int)


@frozen
class SCTP(Message):
    """A packet of SCTP."""

    source_port: int = part(Kind.PLAIN, int)
    destination_port: int = part(Kind.PLAIN, int)


@frozen
class ICMPv4(Message):
    """A message of ICMP."""

    type: int = part(Kind.PLAIN, int)
    code: int = part(Kind.PLAIN, int)


@frozen
class ICMPv6(Message):
    """A message of ICMPv6."""

    type: int = part(Kind.PLAIN, int)
    code: int = part(Kind.PLAIN, int)


@frozen
class VRRP(Message):
    """An advertisement of VRRP."""

    type: int = part(Kind.PLAIN, int)
    vrid: int = part(Kind.PLAIN, int)
    priority: int = part(Kind.PLAIN, int)


@frozen
class IGMP(Message):
    """A message of IGMP."""

    type: int = part(Kind.PLAIN, int)
    group_address: str = part(Kind.PLAIN, str)


Layer4: TypeAlias = TCP | UDP | ICMPv4 | ICMPv6 | SCTP | VRRP | IGMP
_LAYER4 = {of.__name__: of for of in (TCP, UDP, ICMPv4, ICMPv6, SCTP, VRRP, IGMP)}


@frozen
class DNS(Message):
    """A question to a name server, or its answer."""

    query: str = part(Kind.PLAIN, str)
    ips: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    ttl: int = part(Kind.PLAIN, int)
    cnames: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    observation_source: str = part(Kind.PLAIN, str)
    rcode: int = part(Kind.PLAIN, int)
    qtypes: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    rrtypes: tuple[str, ...] = part(Kind.PLAIN, str, many=True)


@frozen
class Header(Message):
    """A field of an HTTP head."""

    key: str = part(Kind.PLAIN, str)
    value: str = part(Kind.PLAIN, str)


@frozen
class HTTP(Message):
    """A request, or with a code its response."""

    code: int = part(Kind.PLAIN, int)
    method: str = part(Kind.PLAIN, str)
    url: str = part(Kind.PLAIN, str)
    protocol: str = part(Kind.PLAIN, str)
    headers: tuple[Header, ...] = part(Kind.ONE, Header, many=True)


@frozen
class Kafka(Message):
    """A request to Kafka: only read, from what others have written."""

    error_code: int = part(Kind.PLAIN, int)
    api_version: int = part(Kind.PLAIN, int)
    api_key: str = part(Kind.PLAIN, str)
    correlation_id: int = part(Kind.PLAIN, int)
    topic: str = part(Kind.PLAIN, str)


@frozen
class Layer7(Message):
    """What was said over a connection.

    :ivar latency_ns: from the request to its response.
    """

    type: L7FlowType | int = part(Kind.ENUM, L7FlowType)
    latency_ns: int = part(Kind.LONG)
    record: DNS | HTTP | Kafka | None = part(Kind.CHOICE, {"dns": DNS, "http": HTTP, "kafka": Kafka})


@frozen
class EventType(Message):
    """The kind of an event, and which of its kind: for a drop its reason, for a trace the raw point."""

    type: MonitorEvent | int = part(Kind.PLAIN, int)
    sub_type: int = part(Kind.PLAIN, int)


@frozen
class Interface(Message):
    """A network device."""

    index: int = part(Kind.PLAIN, int)
    name: str = part(Kind.PLAIN, str)


@frozen
class TraceParent(Message):
    """The trace that a request belongs to."""

    trace_id: str = part(Kind.PLAIN, str)


@frozen
class TraceContext(Message):
    """What a request says of the trace it belongs to."""

    parent: TraceParent | None = part(Kind.ONE, TraceParent)


@frozen
class FileInfo(Message):
    """Where in the sources a packet was dropped."""

    name: str = part(Kind.PLAIN, str)
    line: int = part(Kind.PLAIN, int)


@frozen
class Tunnel(Message):
    """The outer headers of a packet."""

    protocol: TunnelProtocol | int = part(Kind.ENUM, TunnelProtocol)
    ip: IP | None = part(Kind.ONE, IP, name="IP")
    l4: Layer4 | None = part(Kind.WRAPPED, _LAYER4)
    vni: int = part(Kind.PLAIN, int)


@frozen
class IPTraceID(Message):
    """The number that an option of the IP header carries."""

    trace_id: int = part(Kind.LONG)
    ip_option_type: int = part(Kind.PLAIN, int)


@frozen
class Emitter(Message):
    """Who has written a flow."""

    name: str = part(Kind.PLAIN, str)
    version: str = part(Kind.PLAIN, str)


@frozen
class Aggregate(Message):
    """How many flows one stands for."""

    ingress_flow_count: int = part(Kind.PLAIN, int)
    egress_flow_count: int = part(Kind.PLAIN, int)
    unknown_direction_flow_count: int = part(Kind.PLAIN, int)


#: The summary of a flow that is no packet: from here on a connection has none.
ACCELERATED = "Accelerated"


@frozen(kw_only=True)
class Flow(Message):
    """One thing that was seen.

    :ivar time: nanoseconds since 1970.
    :ivar drop_reason: of what was dropped, also of a policy's verdict.
    :ivar type: whether it is a packet, a request or a socket.
    :ivar source_names: what the other end has asked name servers for to find its address.
    :ivar source_service: the service whose frontend its address and port are.
    :ivar is_reply: None where nobody knows, as of what was dropped.
    :ivar policy_match_type: what of the policy's rule decided.
    :ivar summary: a few words, see :mod:`k8sdatapath.model.flow_words`.
    """

    time: int = part(Kind.TIME)
    verdict: Verdict | int = part(Kind.ENUM, Verdict)
    ethernet: Ethernet | None = part(Kind.ONE, Ethernet)
    ip: IP | None = part(Kind.ONE, IP, name="IP")
    l4: Layer4 | None = part(Kind.WRAPPED, _LAYER4)
    source: Endpoint | None = part(Kind.ONE, Endpoint)
    destination: Endpoint | None = part(Kind.ONE, Endpoint)
    type: FlowType | int = part(Kind.ENUM, FlowType, name="Type")
    node_name: str = part(Kind.PLAIN, str)
    source_names: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_names: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    l7: Layer7 | None = part(Kind.ONE, Layer7)
    event_type: EventType | None = part(Kind.ONE, EventType)
    source_service: ServiceRef | None = part(Kind.ONE, ServiceRef)
    destination_service: ServiceRef | None = part(Kind.ONE, ServiceRef)
    traffic_direction: TrafficDirection | int = part(Kind.ENUM, TrafficDirection)
    policy_match_type: PolicyMatch | int = part(Kind.PLAIN, int)
    trace_observation_point: TraceObservationPoint | int = part(Kind.ENUM, TraceObservationPoint)
    drop_reason: DropReason | int = part(Kind.ENUM, DropReason, name="drop_reason_desc")
    is_reply: bool | None = part(Kind.PLAIN, bool, optional=True)
    debug_capture_point: DebugCapturePoint | int = part(Kind.ENUM, DebugCapturePoint)
    interface: Interface | None = part(Kind.ONE, Interface)
    proxy_port: int = part(Kind.PLAIN, int)
    trace_context: TraceContext | None = part(Kind.ONE, TraceContext)
    sock_xlate_point: SocketTranslationPoint | int = part(Kind.ENUM, SocketTranslationPoint)
    socket_cookie: int = part(Kind.LONG)
    cgroup_id: int = part(Kind.LONG)
    uuid: str = part(Kind.PLAIN, str)
    auth_type: AuthType | int = part(Kind.ENUM, AuthType)
    trace_reason: TraceReason | int = part(Kind.ENUM, TraceReason)
    node_labels: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    file: FileInfo | None = part(Kind.ONE, FileInfo)
    tunnel: Tunnel | None = part(Kind.ONE, Tunnel)
    ip_trace_id: IPTraceID | None = part(Kind.ONE, IPTraceID)
    emitter: Emitter | None = part(Kind.ONE, Emitter)
    egress_allowed_by: tuple[PolicyRef, ...] = part(Kind.ONE, PolicyRef, many=True)
    ingress_allowed_by: tuple[PolicyRef, ...] = part(Kind.ONE, PolicyRef, many=True)
    egress_denied_by: tuple[PolicyRef, ...] = part(Kind.ONE, PolicyRef, many=True)
    ingress_denied_by: tuple[PolicyRef, ...] = part(Kind.ONE, PolicyRef, many=True)
    policy_log: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    aggregate: Aggregate | None = part(Kind.ONE, Aggregate)
    summary: str = part(Kind.PLAIN, str, name="Summary")

    @property
    def accelerated(self) -> bool:
        """Whether it tells that a connection's two sockets hand each other what they send from now on."""
        return self.summary == ACCELERATED

    def to_dict(self) -> dict[str, Any]:
        """What its JSON says, with the two fields that Hubble keeps for old clients."""
        found = super().to_dict()
        if self.drop_reason:
            found["drop_reason"] = int(self.drop_reason)
        if self.is_reply:
            found["reply"] = True
        return found


@frozen
class LostEvent(Message):
    """That events were lost: where, how many, and when.

    :ivar cpu: the one that had no room, where it is known.
    """

    source: LostEventSource | int = part(Kind.ENUM, LostEventSource)
    num_events_lost: int = part(Kind.LONG)
    cpu: int | None = part(Kind.PLAIN, int, optional=True)
    first: int = part(Kind.TIME)
    last: int = part(Kind.TIME)


@frozen
class NodeStatus(Message):
    """That nodes have come or gone, as a relay of several servers tells."""

    state_change: NodeState | int = part(Kind.ENUM, NodeState)
    node_names: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    message: str = part(Kind.PLAIN, str)


@frozen
class FlowEvent(Message):
    """A line of what is observed: mostly a flow."""

    response: Flow | NodeStatus | LostEvent | None = part(
        Kind.CHOICE, {"flow": Flow, "node_status": NodeStatus, "lost_events": LostEvent}
    )
    node_name: str = part(Kind.PLAIN, str)
    time: int = part(Kind.TIME)

    @classmethod
    def of(cls, flow: Flow) -> FlowEvent:
        """The line of a flow."""
        return cls(flow, flow.node_name, flow.time)
