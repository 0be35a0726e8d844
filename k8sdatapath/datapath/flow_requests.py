"""Requests and responses as flows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol as Interface

from k8sdatapath.datapath.flow_names import Names
from k8sdatapath.datapath.http_event import HTTPEvent
from k8sdatapath.model import Protocol
from k8sdatapath.model.flow import (
    HTTP,
    IP,
    TCP,
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
from k8sdatapath.model.frontend import place

__all__ = ["RequestSource", "request_flow"]

_REASONS = {"denied": DropReason.POLICY_DENIED}
_VERDICTS = {"denied": Verdict.DROPPED, "audited": Verdict.AUDIT}


class RequestSource(Interface):
    """Who sees requests: :class:`~k8sdatapath.datapath.l7_policy.L7Policy`."""

    def events(self) -> Iterable[HTTPEvent]:
        """Those since the last call."""
        ...

    def fileno(self) -> int:
        """Readable when there are events."""
        ...


def _url(event: HTTPEvent) -> str:
    """Of what is asked for: a path mostly, but it may be all of a URL, or ``*``."""
    if event.path.lower().startswith(("http://", "https://")):
        return event.path
    slash = "/" if event.path and not event.path.startswith("/") else ""
    return f"http://{event.host or place(*event.server)}{slash}{event.path}"


def request_flow(event: HTTPEvent, names: Names, *, clock: int, node: str, emitter: Emitter) -> Flow:
    """The flow of what was asked for over HTTP, or answered.

    :param clock: nanoseconds that the monotonic clock is behind the time of day.
    """
    answer = event.verdict == "response"
    (client, _), (server, port) = event.client, event.server
    ends = (event.server, event.client) if answer else (event.client, event.server)
    (source, source_port), (destination, destination_port) = ends
    service = names.service(server, port, Protocol.TCP)
    verdict = _VERDICTS.get(event.verdict, Verdict.FORWARDED)
    l4 = TCP(source_port, destination_port)
    l7 = Layer7(
        L7FlowType.RESPONSE if answer else L7FlowType.REQUEST,
        round(event.latency * 1e9) if event.latency else 0,
        HTTP(event.status, event.method, _url(event), event.protocol),
    )
    sent = event.at == "client"
    identities = {server if sent else client: event.identity}
    return Flow(
        time=clock + round(event.time * 1e9),
        verdict=verdict,
        ip=IP(str(source), str(destination), IPVersion.IPv6 if server.version == 6 else IPVersion.IPv4),
        l4=l4,
        source=names.endpoint(source, identities.get(source, 0)),
        destination=names.endpoint(destination, identities.get(destination, 0)),
        type=FlowType.L7,
        node_name=node,
        source_names=names.domains(source, destination),
        destination_names=names.domains(destination, source),
        l7=l7,
        event_type=EventType(MonitorEvent.L7, 0),
        source_service=service if answer else None,
        destination_service=None if answer else service,
        traffic_direction=TrafficDirection.EGRESS if sent else TrafficDirection.INGRESS,
        drop_reason=_REASONS.get(event.verdict, DropReason.DROP_REASON_UNKNOWN),
        is_reply=answer,
        socket_cookie=event.connection,
        emitter=emitter,
        summary=summary(l4, l7),
    )
