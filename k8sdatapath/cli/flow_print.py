"""Flows for people: lines, tables and lists, in the shapes that ``hubble observe`` has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum

from attrs import field, frozen

from k8sdatapath.cli.drop_words import drop_text
from k8sdatapath.model.flow import (
    DNS,
    SCTP,
    TCP,
    UDP,
    AuthType,
    DebugCapturePoint,
    Endpoint,
    Flow,
    FlowEvent,
    L7FlowType,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    NodeState,
    NodeStatus,
    PolicyMatch,
    SocketTranslationPoint,
    TraceObservationPoint,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.model.identity import Reserved

__all__ = ["TIME_FORMATS", "Shape", "cells", "clean", "kind_of", "wants_colour"]

_SECOND = 10**9


def _digits(count: int) -> Callable[[datetime, int], str]:
    """At most so many of a second, and none that is 0 at the end."""

    def told(when: datetime, rest: int) -> str:
        fraction = f".{rest:09}"[: 1 + count].rstrip("0")
        return f"{when:%Y-%m-%dT%H:%M:%S}{fraction.rstrip('.')}Z"

    return told


#: By the name that Go has for it.
TIME_FORMATS: dict[str, Callable[[datetime, int], str]] = {
    "StampMilli": lambda when, rest: f"{when:%b} {when.day:>2} {when:%H:%M:%S}.{rest // 10**6:03}",
    "YearMonthDay": lambda when, rest: f"{when:%Y-%m-%d}",
    "YearMonthDayHour": lambda when, rest: f"{when:%Y-%m-%dT%H-07:00}".replace("-07:00", "Z"),
    "YearMonthDayHourMinute": lambda when, rest: f"{when:%Y-%m-%dT%H:%MZ}",
    "RFC3339": lambda when, rest: f"{when:%Y-%m-%dT%H:%M:%SZ}",
    "RFC3339Milli": _digits(3),
    "RFC3339Micro": _digits(6),
    "RFC3339Nano": _digits(9),
    "RFC1123Z": lambda when, rest: f"{when:%a, %d %b %Y %H:%M:%S} +0000",
}

_POINTS = {
    int(point) % 101: point.name.lower().replace("_", "-")  # TO_ENDPOINT is 0 on the wire of events
    for point in TraceObservationPoint
    if point
}
_SOCKETS: dict[int, str] = {
    SocketTranslationPoint.SOCK_XLATE_POINT_PRE_DIRECTION_FWD: "pre-xlate-fwd",
    SocketTranslationPoint.SOCK_XLATE_POINT_POST_DIRECTION_FWD: "post-xlate-fwd",
    SocketTranslationPoint.SOCK_XLATE_POINT_PRE_DIRECTION_REV: "pre-xlate-rev",
    SocketTranslationPoint.SOCK_XLATE_POINT_POST_DIRECTION_REV: "post-xlate-rev",
}
_MATCHES: dict[int, str] = {
    PolicyMatch.NONE: "none",
    PolicyMatch.L3_ONLY: "L3-Only",
    PolicyMatch.L3_L4: "L3-L4",
    PolicyMatch.L4_ONLY: "L4-Only",
    PolicyMatch.ALL: "all",
    PolicyMatch.L3_PROTO: "L3-Proto",
    PolicyMatch.L4_PROTO_ONLY: "Proto-Only",
}
_JUDGED: dict[int, str] = {
    Verdict.FORWARDED: "ALLOWED",
    Verdict.REDIRECTED: "ALLOWED",
    Verdict.DROPPED: "DENIED",
    Verdict.ERROR: "DENIED",
    Verdict.AUDIT: "AUDITED",
}
_NAMES_WIDTH = 50
_COLOURS = {"host": 36, "port": 33, "identity": 35, "good": 32, "bad": 31, "mind": 33}
_MOODS: dict[int, str] = {
    Verdict.FORWARDED: "good",
    Verdict.REDIRECTED: "good",
    Verdict.DROPPED: "bad",
    Verdict.ERROR: "bad",
    Verdict.AUDIT: "mind",
    Verdict.TRACED: "mind",
    Verdict.TRANSLATED: "mind",
}


def kind_of(flow: Flow) -> str:
    """What kind of event a flow is, for people: ``to-endpoint``, ``Policy denied``, ``http-request``."""
    if flow.l7 is not None:
        record = flow.l7.record
        protocol = type(record).__name__.lower() if record is not None else "l7"
        where = f" {record.observation_source}" if isinstance(record, DNS) else ""
        return f"{protocol}-{_name(L7FlowType, flow.l7.type).lower()}{where}".rstrip()
    event = flow.event_type
    if event is None:
        return "UNKNOWN"
    if event.type == MonitorEvent.DROP:
        return drop_text(event.sub_type or flow.drop_reason)
    if event.type == MonitorEvent.TRACE:
        return _POINTS.get(event.sub_type, f"{event.sub_type}")
    if event.type == MonitorEvent.POLICY_VERDICT:
        match = _MATCHES.get(flow.policy_match_type, "none")
        return f"policy-verdict:{match} {_name(TrafficDirection, flow.traffic_direction)}"
    if event.type == MonitorEvent.TRACE_SOCK:
        point = flow.sock_xlate_point
        return _SOCKETS.get(point) or _name(SocketTranslationPoint, point)
    if event.type == MonitorEvent.CAPTURE:
        return _name(DebugCapturePoint, flow.debug_capture_point)
    return "UNKNOWN"


def _name(kind: type[IntEnum], value: int) -> str:
    return kind(value).name if value in kind.__members__.values() else str(value)


def clean(text: str) -> str:
    """A text that cannot move the cursor: who sends a URL must not write to the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@frozen(kw_only=True)
class Shape:
    """How to print flows.

    :ivar translate: names instead of addresses.
    :ivar node: whether the node's name is told.
    :ivar policies: whether the policies that decided are told.
    """

    time: str = "StampMilli"
    colour: bool = False
    translate: bool = True
    node: bool = False
    policies: bool = False
    paint: Callable[[str, str], str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        def paint(text: str, what: str) -> str:
            return f"\x1b[{_COLOURS[what]}m{text}\x1b[0m" if self.colour and text else text

        object.__setattr__(self, "paint", paint)

    def when(self, nanoseconds: int) -> str:
        """A point in time, 0 being none."""
        seconds, rest = divmod(nanoseconds, _SECOND)
        try:
            return TIME_FORMATS[self.time](datetime.fromtimestamp(seconds, UTC), rest) if seconds else "N/A"
        except (OverflowError, ValueError, OSError):  # a time that no calendar has, told by a server
            return "N/A"

    def line(self, event: FlowEvent) -> str:
        """One line, as ``-o compact`` has it."""
        told = event.response
        if isinstance(told, LostEvent):
            cpu = f" CPU({told.cpu})" if told.cpu is not None else ""
            between = f" (first: {self.when(told.first)}, last: {self.when(told.last)})" if told.first else ""
            what = f"EVENTS LOST: {_name(LostEventSource, told.source)}{cpu} {told.num_events_lost}{between}"
            return f"{self.when(event.time or told.last)}: {self.paint(what, 'bad')}"
        if isinstance(told, NodeStatus) or told is None:
            return f"{self.when(event.time)} [{clean(event.node_name)}]: {_about_nodes(told)}"
        node = f" [{clean(told.node_name or event.node_name)}]" if self.node else ""
        source, destination = (
            f"{host} {self._identity(end)}"
            for host, end in zip(self.ends(told), (told.source, told.destination), strict=True)
        )
        arrow = "<>" if told.is_reply is None else "->"
        if told.is_reply:
            source, destination, arrow = destination, source, "<-"
        return (
            f"{self.when(told.time)}{node}: {source} {arrow} {destination} {clean(kind_of(told))} "
            f"{self.verdict(told)} ({self.summary(told)})"
        )

    def verdict(self, flow: Flow) -> str:
        """What became of it, and by which policies, if they are to be told."""
        words: dict[int, str] = {}
        if flow.event_type is not None and flow.event_type.type == MonitorEvent.POLICY_VERDICT:
            words = _JUDGED
        text = words.get(flow.verdict) or _name(Verdict, flow.verdict)
        if self.policies:
            against = flow.verdict in (Verdict.DROPPED, Verdict.AUDIT)
            policies = (
                (*flow.egress_denied_by, *flow.ingress_denied_by)
                if against
                else (*flow.egress_allowed_by, *flow.ingress_allowed_by)
            )
            told = ", ".join(f"{each.name} ({each.kind})" if each.kind else each.name for each in policies)
            text += f" BY {clean(told)}" if told else ""
        return self.paint(text, _MOODS.get(flow.verdict, "mind"))

    def summary(self, flow: Flow) -> str:
        """A few words, with the number of a trace before them."""
        trace = flow.ip_trace_id
        before = f"IP Trace ID: {trace.trace_id}; " if trace is not None and trace.trace_id else ""
        auth = f"; {_name(AuthType, flow.auth_type)}" if flow.auth_type else ""
        return clean(f"{before}{flow.summary}{auth}")

    def ends(self, flow: Flow) -> tuple[str, str]:
        """Source and destination: by name if there is one, with port."""
        ports = (
            (flow.l4.source_port, flow.l4.destination_port)
            if isinstance(flow.l4, TCP | UDP | SCTP)
            else (0, 0)
        )
        addresses = (flow.ip.source, flow.ip.destination) if flow.ip is not None else ("", "")
        if flow.ip is None and flow.ethernet is not None:
            addresses = (flow.ethernet.source, flow.ethernet.destination)
        services = (flow.source_service, flow.destination_service)
        names = (flow.source_names, flow.destination_names)
        found = []
        for index, end in enumerate((flow.source, flow.destination)):
            service = services[index]
            host = addresses[index]
            if self.translate:
                if end is not None and end.pod_name:
                    host = f"{end.namespace}/{end.pod_name}".lstrip("/")
                elif service is not None and service.name:
                    host = f"{service.namespace}/{service.name}".lstrip("/")
                elif names[index]:
                    host = ",".join(names[index])
            bracketed = f"[{host}]" if ports[index] and ":" in host else host
            host = self.paint(clean(bracketed), "host")
            found.append(f"{host}:{self.paint(str(ports[index]), 'port')}" if ports[index] else host)
        return found[0], found[1]

    def _identity(self, end: Endpoint | None) -> str:
        number = end.identity if end is not None else 0
        known = not number or number in Reserved.__members__.values()
        name = _name(Reserved, number).lower().replace("_", "-") if number else "unknown"
        return self.paint(f"({name})" if known else f"(ID:{number})", "identity")


def _about_nodes(status: NodeStatus | None) -> str:
    """What a relay says of the nodes it asks."""
    if status is None:
        return "nothing"
    names = list(status.node_names)
    shown = names[:1]
    for name in names[1:]:
        if len(", ".join([*shown, name])) > _NAMES_WIDTH:
            break
        shown.append(name)
    more = f" (and {len(names) - len(shown)} more)" if len(shown) < len(names) else ""
    listed = f"{', '.join(shown)}{more}"
    forms: dict[int, str] = {
        NodeState.NODE_CONNECTED: f"Receiving flows from {len(names)} nodes: {listed}",
        NodeState.NODE_UNAVAILABLE: f"{len(names)} nodes are unavailable: {listed}",
        NodeState.NODE_GONE: f"{len(names)} nodes removed from cluster: {listed}",
        NodeState.NODE_ERROR: f'Error "{status.message}" on {len(names)} nodes: {listed}',
    }
    return clean(forms.get(status.state_change) or f"{_name(NodeState, status.state_change)}: {listed}")


def cells(shape: Shape, event: FlowEvent) -> dict[str, str]:
    """What ``-o dict`` and ``-o table`` tell, under Hubble's heads."""
    told = event.response
    node = {"NODE": ""} if shape.node else {}
    if not isinstance(told, Flow):
        found = {"TIMESTAMP": shape.when(event.time), **node, "SOURCE": "", "DESTINATION": ""}
        if not isinstance(told, LostEvent):
            return {**found, "TYPE": "", "VERDICT": "", "SUMMARY": shape.line(event)}
        lost = f"CPU({told.cpu or 0}) - {told.num_events_lost}"
        found["SOURCE"] = _name(LostEventSource, told.source)
        return {**found, "TYPE": "EVENTS LOST", "VERDICT": "", "SUMMARY": lost}
    if shape.node:
        node = {"NODE": clean(told.node_name or event.node_name)}
    source, destination = shape.ends(told)
    return {
        "TIMESTAMP": shape.when(told.time),
        **node,
        "SOURCE": source,
        "DESTINATION": destination,
        "TYPE": clean(kind_of(told)),
        "VERDICT": shape.verdict(told),
        "SUMMARY": shape.summary(told),
    }


def wants_colour(when: str, environment: dict[str, str]) -> bool:
    """Whether to paint: ``auto`` is on a terminal, unless NO_COLOR is set."""
    if when == "auto":
        return sys.stdout.isatty() and not environment.get("NO_COLOR")
    return when == "always"
