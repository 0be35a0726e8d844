"""Questions to name servers, and their answers, as flows."""

from __future__ import annotations

from k8sdatapath.datapath.dns_event import DnsEvent
from k8sdatapath.datapath.flow_names import Names
from k8sdatapath.model import Protocol
from k8sdatapath.model.flow import (
    DNS,
    IP,
    TCP,
    UDP,
    DropReason,
    Emitter,
    EventType,
    Flow,
    FlowType,
    IPVersion,
    L7FlowType,
    Layer7,
    MonitorEvent,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.model.flow_words import summary

__all__ = ["question_flow"]

_VERDICTS = {"denied": Verdict.DROPPED, "audited": Verdict.AUDIT}
_TYPES = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    35: "NAPTR",
    43: "DS",
    46: "RRSIG",
    48: "DNSKEY",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
    257: "CAA",
}


def question_flow(event: DnsEvent, names: Names, *, clock: int, node: str, emitter: Emitter) -> Flow:
    """The flow of what a name server was asked, or has answered.

    :param clock: nanoseconds that the monotonic clock is behind the time of day.
    """
    answer, message = event.verdict == "answer", event.message
    ends = (event.server, event.client) if answer else (event.client, event.server)
    (source, source_port), (destination, destination_port) = ends
    service = names.service(*event.server, event.protocol)
    l4 = (TCP if event.protocol is Protocol.TCP else UDP)(source_port, destination_port)
    types = (_type(message.type),)
    record = DNS(_full(message.name), observation_source="datapath", qtypes=types)
    if answer:
        record = DNS(
            record.query,
            tuple(map(str, message.addresses)),
            message.ttl,
            tuple(map(_full, message.aliases)),
            "datapath",
            message.rcode,
            types,
            tuple(map(_type, message.types)),
        )
    l7 = Layer7(
        L7FlowType.RESPONSE if answer else L7FlowType.REQUEST,
        round(event.latency * 1e9),
        record,
    )
    return Flow(
        time=clock + round(event.time * 1e9),
        verdict=_VERDICTS.get(event.verdict, Verdict.FORWARDED),
        ip=IP(str(source), str(destination), IPVersion.IPv6 if source.version == 6 else IPVersion.IPv4),
        l4=l4,
        source=names.endpoint(source, 0),
        destination=names.endpoint(destination, 0),
        type=FlowType.L7,
        node_name=node,
        source_names=names.domains(source, destination),
        destination_names=names.domains(destination, source),
        l7=l7,
        event_type=EventType(MonitorEvent.L7, 0),
        source_service=service if answer else None,
        destination_service=None if answer else service,
        traffic_direction=TrafficDirection.EGRESS,
        drop_reason=DropReason.POLICY_DENIED if event.verdict == "denied" else DropReason.DROP_REASON_UNKNOWN,
        is_reply=answer,
        emitter=emitter,
        summary=summary(l4, l7),
    )


def _full(name: str) -> str:
    """With the dot at its end."""
    return name if name.endswith(".") else f"{name}."


def _type(number: int) -> str:
    return _TYPES.get(number, f"TYPE{number}")
