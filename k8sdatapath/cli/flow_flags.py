"""The flags that say which flows are meant: Hubble's, with its meaning.

A flag that is given twice means either value, different flags all have to match, and ``--not`` turns the next
one round. A flag about either end (``--pod``) is two filters, one for each end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from attrs import define, field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import (
    DropReason,
    Header,
    Interface,
    IPVersion,
    MonitorEvent,
    TCPFlags,
    TraceObservationPoint,
    TrafficDirection,
    Verdict,
    WorkloadRef,
)
from k8sdatapath.model.flow_filter import EventTypeFilter, FlowFilter
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.message import parts

__all__ = ["FlowFlags", "add_filter_flags"]

Fields: TypeAlias = dict[str, list[Any]]


def _same(value: Any) -> Any:
    return value


def _verdict(text: str) -> Verdict:
    return Verdict[text.upper()]


def _drop_reason(text: str) -> DropReason:
    return DropReason[text.upper()]


def _direction(text: str) -> TrafficDirection:
    return TrafficDirection[text.upper()]


def _tcp_flags(text: str) -> TCPFlags:
    return sum((TCPFlags[name.strip().upper()] for name in text.split(",")), TCPFlags(0))


def _ip_version(text: str) -> IPVersion:
    return {"none": IPVersion.IP_NOT_USED, "v4": IPVersion.IPv4, "v6": IPVersion.IPv6}[
        text.lower().removeprefix("ip").replace("4", "v4").replace("6", "v6").replace("vv", "v")
    ]


def _identity(text: str) -> int:
    return int(text) if text.isdigit() else Reserved[text.upper().replace("-", "_")]


def _workload(text: str) -> WorkloadRef:
    kind, slash, name = text.partition("/")
    return WorkloadRef(name, kind) if slash else WorkloadRef(text)


def _header(text: str) -> Header:
    key, colon, value = text.partition(":")
    if not colon:
        raise ValueError
    return Header(key, value)


def _interface(text: str) -> Interface:
    return Interface(0, text)


def _trace_id(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError
    return number


def _event_type(text: str) -> EventTypeFilter:
    name, colon, sub = text.partition(":")
    kind = int(name) if name.isdigit() else MonitorEvent[name.upper().replace("-", "_")]
    if not colon:
        return EventTypeFilter(kind)
    if sub.isdigit():
        return EventTypeFilter(kind, True, int(sub))
    if kind != MonitorEvent.TRACE:
        raise ValueError
    point = TraceObservationPoint[sub.upper().replace("-", "_")]
    return EventTypeFilter(kind, True, 0 if point is TraceObservationPoint.TO_ENDPOINT else point)


#: Flags about one end: field without its side, how a value is read, what it says of itself.
ENDS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "ip": ("ip", str, "address or network"),
    "fqdn": ("fqdn", str, "DNS name, with * for any run"),
    "pod": ("pod", str, "[namespace/]prefix of a pod's name"),
    "service": ("service", str, "[namespace/]prefix of a service's name"),
    "label": ("label", str, "label selector, like app=web"),
    "port": ("port", str, "port"),
    "workload": ("workload", _workload, "[kind/]name of what a pod belongs to"),
    "identity": ("identity", _identity, "number, or name of a reserved identity"),
    "cluster": ("cluster_name", str, "name of the cluster, with * for any run"),
}
#: Flags about the flow: field, how a value is read, what it says of itself.
WHOLE: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "uuid": ("uuid", str, "the flow with this number"),
    "node-name": ("node_name", str, "[cluster/]node, with * for any run"),
    "node-label": ("node_labels", str, "label selector of nodes"),
    "protocol": ("protocol", str, "tcp, udp, icmp, sctp, http, dns, ..."),
    "tcp-flags": ("tcp_flags", _tcp_flags, "all of these flags, like syn,ack"),
    "type": ("event_type", _event_type, "drop, trace, l7, policy-verdict, trace-sock, ... [:sub type]"),
    "verdict": ("verdict", _verdict, "FORWARDED, DROPPED, AUDIT, REDIRECTED, TRANSLATED, ..."),
    "drop-reason-desc": ("drop_reason_desc", _drop_reason, "POLICY_DENIED, ..."),
    "http-status": ("http_status_code", str, "404, or 5+ for all that begin so"),
    "http-method": ("http_method", str, "GET, POST, ..."),
    "http-path": ("http_path", str, "regular expression in the path"),
    "http-url": ("http_url", str, "regular expression in the URL"),
    "http-header": ("http_header", _header, "key:value"),
    "trace-id": ("trace_id", str, "number of a trace"),
    "ip-trace-id": ("ip_trace_id", _trace_id, "number in an IP option"),
    "snat-ip": ("source_ip_xlated", str, "address that the source was given"),
    "ip-version": ("ip_version", _ip_version, "none, v4 or v6"),
    "traffic-direction": ("traffic_direction", _direction, "ingress or egress"),
    "interface": ("interface", _interface, "name of a device"),
}
_SHORT = {"type": ["-t"], "label": ["-l"]}
_SIDES = ("source", "destination")


@define
class _Pair:
    """The two filters that flags are collected in: one has what is of either end as source, one as other."""

    left: Fields = field(factory=dict)
    right: Fields = field(factory=dict)
    namespaces: dict[str, list[str]] = field(factory=dict)
    flags: dict[str, dict[str, str]] = field(factory=dict)
    """Of each name the flags that were given, by the end they are about."""

    def note(self, name: str, side: str, flag: str) -> None:
        """A flag was given.

        :raises ModelError: it and another do not go together.
        """
        flags = self.flags.setdefault(name, {})
        flags[side] = flag
        one = flags.get("source") or flags.get("destination")
        if one and "either" in flags:
            raise ModelError(f"{flags['either']} is about either end, and does not go with {one}")

    def add(self, name: str, side: str, value: Any) -> None:
        """Note a value: ``side`` is ``source``, ``destination``, ``either``, or nothing."""
        left, right = (f"{end}_{name}" if side else name for end in (side, side))
        if side == "either":
            left, right = f"source_{name}", f"destination_{name}"
        self.left.setdefault(left, []).append(value)
        self.right.setdefault(right, []).append(value)

    def filters(self) -> tuple[FlowFilter, ...]:
        """One filter, or two if they differ, or none if no flag was given."""
        found = []
        for fields, own in ((self.left, "source"), (self.right, "destination")):
            named = self._with_namespaces(fields, own)
            arguments: dict[str, Any] = {name: tuple(values) for name, values in named.items()}
            found.append(FlowFilter(**arguments))
        if found == [FlowFilter()] * 2:
            return ()
        return (found[0],) if found[0] == found[1] else tuple(found)

    def _with_namespaces(self, fields: Fields, own: str) -> Fields:
        """Names of pods and services get the namespaces that are theirs."""
        named = dict(fields)
        for side in _SIDES:
            mine = self.namespaces.get(side, [])
            either = self.namespaces.get("either", [])
            keys = [key for key in (f"{side}_pod", f"{side}_service") if key in named]
            for key in keys:
                named[key] = list(_qualified(named[key], mine or either))
            if not keys and (mine or (either and side == own and not _names(fields))):
                named[f"{side}_pod"] = [f"{namespace}/" for namespace in mine or either]
        return named


def _names(fields: Fields) -> bool:
    return any(f"{side}_{what}" in fields for side in _SIDES for what in ("pod", "service"))


def _qualified(names: Sequence[str], namespaces: Sequence[str]) -> Iterator[str]:
    for name in names:
        there, slash, _ = name.partition("/")
        if slash and namespaces and there not in namespaces:
            raise ModelError(f"{shown(name)} is in another namespace than {', '.join(namespaces)}")
        if slash or not namespaces:
            yield name
        else:
            yield from (f"{namespace}/{name}" for namespace in namespaces)


@frozen
class FlowFlags:
    """What the flags say.

    :ivar allow: flows that are meant, all if there are none.
    :ivar deny: those of them that are not.
    """

    allow: tuple[FlowFilter, ...]
    deny: tuple[FlowFilter, ...]

    @classmethod
    def of(cls, given: argparse.Namespace) -> FlowFlags:
        """Those that were parsed.

        :raises ModelError: they contradict each other.
        """
        if getattr(given, "not_", False):
            raise ModelError("--not is about the next flag, and there is none")
        meant, unmeant = _pair(given, turned=False), _pair(given, turned=True)
        return cls(
            (*meant.filters(), *getattr(given, "allowlist", ())),
            (*unmeant.filters(), *getattr(given, "denylist", ())),
        )


def _pair(given: argparse.Namespace, *, turned: bool) -> _Pair:
    name = "unmeant" if turned else "meant"
    if not hasattr(given, name):
        setattr(given, name, _Pair())
    found: _Pair = getattr(given, name)
    return found


class _Collect(argparse.Action):
    """Notes a value, in what is meant or, after ``--not``, in what is not."""

    def __init__(
        self, option_strings: Sequence[str], *, end: str, name: str, read: Callable[[str], Any], **known: Any
    ) -> None:
        super().__init__(option_strings, **{**known, "default": argparse.SUPPRESS})
        self._end, self._name, self._read = end, name, read

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        text = self.const if self.const is not None else values
        try:
            value = self._read(text)
        except (KeyError, ValueError):
            raise argparse.ArgumentError(self, f"it cannot be {shown(text)}") from None
        pair = _pair(namespace, turned=getattr(namespace, "not_", False))
        try:
            pair.note(self._name, self._end, self.option_strings[-1])
        except ModelError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        if self._name == "namespace":
            pair.namespaces.setdefault(self._end, []).append(value)
        else:
            pair.add(self._name, self._end, value)
        namespace.not_ = False


class _Not(argparse.Action):
    """Has the next flag tell what is not meant."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        if getattr(namespace, self.dest, False):
            raise argparse.ArgumentError(self, "it is about the next flag, which is another --not")
        setattr(namespace, self.dest, True)


class _Filters(argparse.Action):
    """Filters as JSON, one or several objects after each other."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        text, decoder, found = values.strip(), json.JSONDecoder(), []
        try:
            while text:
                value, end = decoder.raw_decode(text)
                found.append(_strict(value))
                text = text[end:].lstrip()
        except (ModelError, ValueError) as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, ()), *found])


def _strict(value: Any) -> FlowFilter:
    """A filter whose fields are all known: one that is not would find too much."""
    known = {each.name for each in parts(FlowFilter)}
    for name in value if isinstance(value, dict) else ():
        if name not in known:
            raise ModelError(f"a filter has no field {shown(name)}")
    return FlowFilter.from_dict(value)


def add_filter_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags; :meth:`FlowFlags.of` reads what it has parsed."""
    group = parser.add_argument_group("which flows (twice is either; --not turns the next one round)")
    group.add_argument(
        "--not", dest="not_", action=_Not, nargs=0, help="the next flag is of what is not meant"
    )

    def add(flag: str, end: str, name: str, read: Callable[[str], Any], text: str, *short: str) -> None:
        metavar = flag.rpartition("-")[2].upper()
        group.add_argument(
            *short, f"--{flag}", action=_Collect, end=end, name=name, read=read, metavar=metavar, help=text
        )

    for flag, (name, read, text) in ENDS.items():
        add(flag, "either", name, read, f"either end: {text}", *_SHORT.get(flag, ()))
        add(f"from-{flag}", "source", name, read, f"source: {text}")
        add(f"to-{flag}", "destination", name, read, f"destination: {text}")
    for prefix, end in (("", "either"), ("from-", "source"), ("to-", "destination")):
        short = ("-n",) if not prefix else ()
        add(f"{prefix}namespace", end, "namespace", str, "namespace of pods and services", *short)
        flags = [f"--{prefix}all-namespaces", *(["-A"] if not prefix else [])]
        group.add_argument(
            *flags,
            action=_Collect,
            end=end,
            name="namespace",
            read=str,
            nargs=0,
            const="",
            help="any namespace",
        )
    for flag, (name, read, text) in WHOLE.items():
        add(flag, "", name, read, text, *_SHORT.get(flag, ()))
    for flags, name, value in (
        (["-4", "--ipv4"], "ip_version", IPVersion.IPv4),
        (["-6", "--ipv6"], "ip_version", IPVersion.IPv6),
        (["--encrypted"], "encrypted", True),
        (["--unencrypted"], "encrypted", False),
    ):
        group.add_argument(
            *flags,
            action=_Collect,
            end="",
            name=name,
            read=_same,
            nargs=0,
            const=value,
            help=f"{name} is {value}",
        )
    for flag in ("allowlist", "denylist"):
        group.add_argument(
            f"--{flag}", action=_Filters, default=argparse.SUPPRESS, metavar="JSON", help="filters as JSON"
        )
