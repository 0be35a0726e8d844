"""Flows for people: lines, tables and lists, in the shapes that ``hubble observe`` has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

from attrs import field, frozen

from k8sdatapath.model.flow import (
    DNS,
    SCTP,
    TCP,
    UDP,
    DropReason,
    Endpoint,
    Flow,
    FlowEvent,
    L7FlowType,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    NodeStatus,
    PolicyMatch,
    SocketTranslationPoint,
    TraceObservationPoint,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.message import timestamp_text

__all__ = ["TIME_FORMATS", "Shape", "cells", "drop_text", "kind_of"]

_SECOND = 10**9


def _digits(count: int) -> Callable[[datetime, int], str]:
    return lambda when, rest: f"{when:%Y-%m-%dT%H:%M:%S}.{rest:09}"[: 20 + count] + "Z"


#: By the name that Go has for it.
TIME_FORMATS: dict[str, Callable[[datetime, int], str]] = {
    "StampMilli": lambda when, rest: f"{when:%b} {when.day:>2} {when:%H:%M:%S}.{rest // 10**6:03}",
    "YearMonthDay": lambda when, rest: f"{when:%Y-%m-%d}",
    "YearMonthDayHour": lambda when, rest: f"{when:%Y-%m-%dT%H-07:00}".replace("-07:00", "Z"),
    "YearMonthDayHourMinute": lambda when, rest: f"{when:%Y-%m-%dT%H:%MZ}",
    "RFC3339": lambda when, rest: f"{when:%Y-%m-%dT%H:%M:%SZ}",
    "RFC3339Milli": _digits(3),
    "RFC3339Micro": _digits(6),
    "RFC3339Nano": lambda when, rest: timestamp_text(int(when.timestamp()) * _SECOND + rest),
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
_DROPS: dict[int, str] = {DropReason.POLICY_DENY: "Policy denied by denylist"}
_MATCHES: dict[int, str] = {
    PolicyMatch.NONE: "none",
    PolicyMatch.L3_ONLY: "L3-Only",
    PolicyMatch.L3_L4: "L3-L4",
    PolicyMatch.L4_ONLY: "L4-Only",
    PolicyMatch.ALL: "all",
    PolicyMatch.L3_PROTO: "L3-Proto",
    PolicyMatch.L4_PROTO_ONLY: "Proto-Only",
}
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


def drop_text(reason: int) -> str:
    """A reason for people: ``Policy denied``."""
    if reason in _DROPS:
        return _DROPS[DropReason(reason)]
    known = reason in DropReason.__members__.values()
    return (
        DropReason(reason).name.removeprefix("DROP_").replace("_", " ").capitalize() if known else str(reason)
    )


def kind_of(flow: Flow) -> str:
    """What kind of event a flow is, for people: ``to-endpoint``, ``Policy denied``, ``http-request``."""
    if flow.l7 is not None and flow.l7.record is not None:
        half = "response" if flow.l7.type == L7FlowType.RESPONSE else "request"
        record = flow.l7.record
        where = f" {record.observation_source}" if isinstance(record, DNS) else ""
        return f"{type(record).__name__.lower()}-{half}{where}".rstrip()
    event = flow.event_type
    if event is None:
        return "unknown"
    if event.type == MonitorEvent.DROP:
        return drop_text(event.sub_type or flow.drop_reason)
    if event.type == MonitorEvent.TRACE:
        return _POINTS.get(event.sub_type, f"{event.sub_type}")
    if event.type == MonitorEvent.POLICY_VERDICT:
        match = _MATCHES.get(flow.policy_match_type, "none")
        return f"policy-verdict:{match} {_name(TrafficDirection, flow.traffic_direction)}"
    if event.type == MonitorEvent.TRACE_SOCK:
        return _SOCKETS.get(event.sub_type, str(event.sub_type))
    return f"{event.type} {event.sub_type}"


def _name(kind: type[TrafficDirection] | type[Verdict] | type[LostEventSource], value: int) -> str:
    return kind(value).name if value in kind.__members__.values() else str(value)


def _verdict(flow: Flow) -> str:
    if flow.event_type is not None and flow.event_type.type == MonitorEvent.POLICY_VERDICT:
        words: dict[int, str] = {Verdict.DROPPED: "DENIED", Verdict.AUDIT: "AUDITED"}
        return words.get(flow.verdict, "ALLOWED")
    return _name(Verdict, flow.verdict)


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
        """A point in time."""
        seconds, rest = divmod(nanoseconds, _SECOND)
        return TIME_FORMATS[self.time](datetime.fromtimestamp(seconds, UTC), rest)

    def line(self, event: FlowEvent) -> str:
        """One line, as ``-o compact`` has it."""
        told = event.response
        if isinstance(told, LostEvent):
            cpu = f" CPU({told.cpu})" if told.cpu is not None else ""
            between = f" (first: {self.when(told.first)}, last: {self.when(told.last)})" if told.first else ""
            what = f"EVENTS LOST: {_name(LostEventSource, told.source)}{cpu} {told.num_events_lost}{between}"
            return f"{self.when(event.time or told.last)}: {self.paint(what, 'bad')}"
        if isinstance(told, NodeStatus) or told is None:
            return f"{clean(told.message) if told else 'nothing'}"
        node = f" [{clean(told.node_name or event.node_name)}]" if self.node else ""
        source, destination = self.ends(told)
        arrow = "<>" if told.is_reply is None else "->"
        if told.is_reply:
            source, destination, arrow = destination, source, "<-"
        verdict = self.paint(_verdict(told), _MOODS.get(told.verdict, "mind"))
        because = self.because(told)
        return (
            f"{self.when(told.time)}{node}: {source} {arrow} {destination} {clean(kind_of(told))}{because} "
            f"{verdict} ({clean(told.summary)})"
        )

    def because(self, flow: Flow) -> str:
        """The policies that decided, if they are to be told."""
        lists = {
            "ALLOWED BY": (*flow.ingress_allowed_by, *flow.egress_allowed_by),
            "DENIED BY": (*flow.ingress_denied_by, *flow.egress_denied_by),
        }
        if not self.policies:
            return ""
        told = [
            f" {what} {', '.join(clean(f'{each.namespace}/{each.name}'.lstrip('/')) for each in policies)}"
            for what, policies in lists.items()
            if policies
        ]
        return "".join(told)

    def ends(self, flow: Flow) -> tuple[str, str]:
        """Source and destination: by name if there is one, with port and identity."""
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
                    host = f"{end.namespace}/{end.pod_name}"
                elif service is not None and service.name:
                    host = f"{service.namespace}/{service.name}"
                elif names[index]:
                    host = ",".join(names[index])
            host = self.paint(clean(host), "host")
            port = f":{self.paint(str(ports[index]), 'port')}" if ports[index] else ""
            found.append(f"{host}{port}{self._identity(end)}")
        return found[0], found[1]

    def _identity(self, end: Endpoint | None) -> str:
        if end is None or not end.identity:
            return ""
        known = end.identity in Reserved.__members__.values()
        name = Reserved(end.identity).name.lower().replace("_", "-") if known else f"ID:{end.identity}"
        return f" {self.paint(f'({name})', 'identity')}"


def cells(shape: Shape, event: FlowEvent) -> dict[str, str]:
    """What ``-o dict`` and ``-o table`` tell, under Hubble's heads."""
    flow = event.response
    if not isinstance(flow, Flow):
        return {"TIMESTAMP": shape.when(event.time), "SUMMARY": shape.line(event)}
    source, destination = shape.ends(flow)
    found = {"TIMESTAMP": shape.when(flow.time)}
    if shape.node:
        found["NODE"] = clean(flow.node_name or event.node_name)
    verdict = _verdict(flow)
    found |= {"SOURCE": source, "DESTINATION": destination, "TYPE": clean(kind_of(flow)), "VERDICT": verdict}
    return {**found, "SUMMARY": clean(flow.summary) + shape.because(flow)}


def wants_colour(when: str, environment: dict[str, str]) -> bool:
    """Whether to paint: ``auto`` is on a terminal, unless NO_COLOR is set."""
    if when == "auto":
        return sys.stdout.isatty() and not environment.get("NO_COLOR")
    return when == "always"
