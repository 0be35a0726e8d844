"""Metrics of flows, under Hubble's names.

What is counted is what is observed: one flow of a connection and direction every few seconds, not each
packet. Packets and bytes are in the datapath's own metrics.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from attrs import define, evolve, field, frozen

from k8sdatapath.errors import DatapathError, ModelError
from k8sdatapath.flow_source import FlowSource, Seen
from k8sdatapath.hubble.metric_labels import MetricOptions, to_world
from k8sdatapath.model.flow import (
    DNS,
    HTTP,
    TCP,
    DropReason,
    Flow,
    ICMPv4,
    ICMPv6,
    IPVersion,
    L7FlowType,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    PolicyMatch,
    TCPFlags,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.model.flow_match import is_policy_verdict
from k8sdatapath.model.flow_words import summary
from k8sdatapath.resource import Resource

__all__ = ["BUCKETS", "Family", "FlowMetrics", "MetricReader"]

_log = logging.getLogger(__name__)

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of durations, in seconds."""
MAX_SERIES = 10_000
"""Of one metric; whatever would begin another is counted as left out."""

_KEPT = 60.0
"""Seconds that series of a pod outlive it, so that what it did last is scraped."""

_Key: TypeAlias = tuple[str, ...]
_Counts: TypeAlias = Callable[[Flow, MetricOptions], Iterator[tuple[_Key, float]]]


@define
class Family:
    """A metric as it is now.

    :ivar labels: their names.
    :ivar counters: by values of the labels.
    :ivar buckets: of a histogram: how many durations fell into each of :data:`BUCKETS`, and above.
    """

    name: str
    meaning: str
    labels: _Key
    counters: dict[_Key, float] = field(factory=dict)
    buckets: dict[_Key, list[int]] | None = None
    left_out: int = 0

    def add(self, key: _Key, value: float) -> None:
        """Count one more flow."""
        if key not in self.counters and len(self.counters) >= MAX_SERIES:
            self.left_out += 1
            return
        if self.buckets is not None:
            row = self.buckets.setdefault(key, [0] * (len(BUCKETS) + 1))
            row[bisect_left(BUCKETS, value)] += 1
        self.counters[key] = self.counters.get(key, 0) + value

    def forget(self, key: _Key) -> None:
        """Have a series no more."""
        del self.counters[key]
        if self.buckets is not None:
            del self.buckets[key]


class FlowMetrics:
    """Counts flows: ``FlowMetrics(["drop", "flow:labelsContext=source_namespace"])``.

    :raises ModelError: a metric, an option or a label that there is not, or a metric twice.
    """

    def __init__(self, metrics: Iterable[str | MetricOptions]) -> None:
        options = [MetricOptions.parse(each) if isinstance(each, str) else each for each in metrics]
        twice = [name for name, count in Counter(each.name for each in options).items() if count > 1]
        if twice:
            raise ModelError(f"{twice[0]}: a metric has one set of labels, and is given once")
        self._lock = threading.Lock()
        self._lost = Family("hubble_lost_events", "Events that were lost, by where.", ("source",))
        self._counted: list[tuple[_Kind, MetricOptions, Family]] = []
        self._gone: dict[tuple[str, str], float] = {}
        for each in options:
            for kind in _KINDS[each.name]:
                labels = (*kind.labels, *(("query",) if "query" in each.flags else ()))
                labels = (*labels, *(("port",) if "port" in each.flags else ()), *each.label_names)
                family = Family(f"hubble_{kind.name}", kind.meaning, labels)
                if kind.histogram:
                    family.buckets = {}
                self._counted.append((kind, each, family))

    def see(self, item: Seen) -> None:
        """Count it."""
        with self._lock:
            if isinstance(item, LostEvent):
                known = item.source in LostEventSource.__members__.values()
                name = LostEventSource(item.source).name if known else str(item.source)
                self._lost.add((name,), item.num_events_lost)
                return
            for kind, options, family in self._counted:
                for key, value in kind.counts(item, options):
                    labels = options.label_values(_turned(item) if kind.answers else item)
                    family.add((*key, *labels), value)

    def forget(self, namespace: str, pod: str) -> None:
        """A pod is gone: a minute later what was counted under its name is not told any more."""
        with self._lock:
            now = time.monotonic()
            if next(iter(self._gone.values()), now) < now - _KEPT:  # so long has nobody asked for metrics
                self._drop_gone()
            self._gone.pop((namespace, pod), None)  # those that end first are first
            self._gone[namespace, pod] = now + _KEPT

    def keep(self, namespace: str, pod: str) -> None:
        """A pod of that name is there, whatever was said."""
        with self._lock:
            self._gone.pop((namespace, pod), None)

    def _drop_gone(self) -> None:
        now = time.monotonic()
        gone = {pod for pod, when in self._gone.items() if when <= now}
        for pod in gone:
            del self._gone[pod]
        for _, options, family in self._counted if gone else ():
            for key in [key for key in family.counters if options.about(key, gone)]:
                family.forget(key)

    def families(self) -> list[Family]:
        """All, as they are now."""
        with self._lock:
            self._drop_gone()
            return [_copy(each) for each in (self._lost, *(family for _, _, family in self._counted))]


def _copy(family: Family) -> Family:
    rows = family.buckets and {key: list(row) for key, row in family.buckets.items()}
    return Family(family.name, family.meaning, family.labels, dict(family.counters), rows, family.left_out)


class MetricReader(Resource):
    """Counts the flows of a source as they come, until it is closed."""

    def __init__(self, source: FlowSource, metrics: FlowMetrics) -> None:
        self._cursor = source.follow()
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for item in self._cursor.take(0.5):
                    self._metrics.see(item)
        except DatapathError as error:
            if not self._stop.is_set():
                _log.error("flows are not counted any more: %s", error)

    def close(self) -> None:
        """Stop counting."""
        self._stop.set()
        self._thread.join()


# -- what is counted ----------------------------------------------------------------------------------


@frozen
class _Kind:
    name: str
    meaning: str
    labels: _Key
    counts: _Counts
    histogram: bool = False
    answers: bool = False
    """Counted by what answers, and told of who has asked, the source."""


def _turned(flow: Flow) -> Flow:
    """With who has asked as the source."""
    ip = flow.ip and evolve(flow.ip, source=flow.ip.destination, destination=flow.ip.source)
    return evolve(
        flow,
        ip=ip,
        source=flow.destination,
        destination=flow.source,
        source_names=flow.destination_names,
        destination_names=flow.source_names,
    )


def _family(flow: Flow) -> str:
    version = flow.ip.version if flow.ip is not None else 0
    return IPVersion(version).name if version in (1, 2) else "unknown"


def _verdict(flow: Flow) -> str:
    return Verdict(flow.verdict).name if flow.verdict in Verdict.__members__.values() else str(flow.verdict)


def _protocol(flow: Flow) -> str:
    record = flow.l7.record if flow.l7 is not None else None
    what = record if record is not None else flow.l4
    return type(what).__name__ if what is not None else "Unknown flow"


def _flows(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    event = flow.event_type
    if event is None:
        yield ("Unknown", "", _verdict(flow)), 1
        return
    words: dict[int, str] = {
        MonitorEvent.DROP: "Drop",
        MonitorEvent.CAPTURE: "Capture",
        MonitorEvent.TRACE: "Trace",
        MonitorEvent.POLICY_VERDICT: "PolicyVerdict",
        MonitorEvent.TRACE_SOCK: "TraceSock",
        MonitorEvent.L7: "L7",
    }
    sub = ""
    if event.type == MonitorEvent.TRACE:
        point = flow.trace_observation_point
        sub = getattr(point, "name", "").lower().replace("_", "-")
    elif event.type == MonitorEvent.L7:
        sub = type(flow.l7.record).__name__ if flow.l7 is not None and flow.l7.record is not None else ""
    yield (words.get(event.type, "Unknown"), sub, _verdict(flow)), 1


def _drops(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if flow.verdict == Verdict.DROPPED:
        known = flow.drop_reason in DropReason.__members__.values()
        reason = DropReason(flow.drop_reason).name if known else str(int(flow.drop_reason))
        yield (reason, _protocol(flow)), 1


def _tcp(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if not isinstance(flow.l4, TCP) or flow.verdict not in (Verdict.FORWARDED, Verdict.REDIRECTED):
        return
    flags, family = flow.l4.flags, _family(flow)
    if flags & TCPFlags.FIN:
        yield ("FIN", family), 1
    if flags & TCPFlags.RST:
        yield ("RST", family), 1
    if flags & TCPFlags.SYN:
        yield ("SYN-ACK" if flags & TCPFlags.ACK else "SYN", family), 1


def _icmp(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if isinstance(flow.l4, ICMPv4 | ICMPv6):
        kind = summary(flow.l4).partition(" ")[2]
        yield ("IPv4" if isinstance(flow.l4, ICMPv4) else "IPv6", kind), 1


def _ports(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    """Of new connections: where a SYN or a datagram that is no reply goes."""
    if flow.is_reply or flow.verdict not in (Verdict.FORWARDED, Verdict.REDIRECTED) or flow.l4 is None:
        return
    if isinstance(flow.l4, ICMPv4 | ICMPv6):
        yield (type(flow.l4).__name__, "0"), 1
    elif isinstance(flow.l4, TCP):
        if flow.l4.flags & TCPFlags.SYN and not flow.l4.flags & TCPFlags.ACK:
            yield ("TCP", str(flow.l4.destination_port)), 1
    elif (port := getattr(flow.l4, "destination_port", None)) is not None:
        yield (type(flow.l4).__name__, str(port)), 1


def _policy(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if not is_policy_verdict(flow):
        return
    match, known = flow.policy_match_type, PolicyMatch.__members__.values()
    name = PolicyMatch(match).name.lower().replace("_", "-") if match in known else "unknown"
    action = {Verdict.DROPPED: "dropped", Verdict.REDIRECTED: "redirected", Verdict.AUDIT: "audit"}
    way = flow.traffic_direction
    direction = TrafficDirection(way).name.lower() if way in (1, 2) else "unknown"
    verdict = Verdict(flow.verdict) if flow.verdict in Verdict.__members__.values() else Verdict.ERROR
    yield (direction, name, action.get(verdict, "forwarded")), 1


def _world(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if not to_world(flow) or flow.is_reply:
        return
    denied = flow.drop_reason == DropReason.POLICY_DENIED
    if flow.verdict == Verdict.DROPPED and not denied and "any-drop" not in options.flags:
        return
    syn = isinstance(flow.l4, TCP) and flow.l4.flags & TCPFlags.SYN and not flow.l4.flags & TCPFlags.ACK
    if "syn-only" in options.flags and isinstance(flow.l4, TCP) and not syn:
        return
    port = (str(getattr(flow.l4, "destination_port", "")),) if "port" in options.flags else ()
    yield (_protocol(flow), _verdict(flow), *port), 1


def _dns(flow: Flow, options: MetricOptions, answers: bool) -> tuple[DNS, _Key] | None:
    """The question or answer of a flow, if it is one that counts, and its query if that is told."""
    if flow.l7 is None or not isinstance(flow.l7.record, DNS):
        return None
    record = flow.l7.record
    if (flow.l7.type == L7FlowType.RESPONSE) is not answers:
        return None
    if "ignoreAAAA" in options.flags and "AAAA" in record.qtypes:
        return None
    return record, ((record.query.rstrip("."),) if "query" in options.flags else ())


def _queries(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if (found := _dns(flow, options, False)) is not None:
        yield ("", ",".join(found[0].qtypes), str(len(found[0].ips)), *found[1]), 1


def _responses(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if (found := _dns(flow, options, True)) is not None:
        record = found[0]
        rcode = _RCODES.get(record.rcode, str(record.rcode))
        yield (rcode, ",".join(record.qtypes), str(len(record.ips)), *found[1]), 1


def _response_types(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if (found := _dns(flow, options, True)) is not None:
        for kind in found[0].rrtypes:
            yield (kind, ",".join(found[0].qtypes), *found[1]), 1


def _answered(flow: Flow) -> HTTP | None:
    record = flow.l7.record if flow.l7 is not None and flow.l7.type == L7FlowType.RESPONSE else None
    return record if isinstance(record, HTTP) else None


def _reporter(flow: Flow) -> str:
    """Who has seen it: the direction is that of the request, which comes in at a server."""
    words: dict[int, str] = {TrafficDirection.INGRESS: "server", TrafficDirection.EGRESS: "client"}
    return words.get(flow.traffic_direction, "unknown")


def _requests(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if (record := _answered(flow)) is not None:
        yield (record.method, record.protocol, str(record.code), _reporter(flow)), 1


def _durations(flow: Flow, options: MetricOptions) -> Iterator[tuple[_Key, float]]:
    if (record := _answered(flow)) is not None and flow.l7 is not None:
        yield (record.method, _reporter(flow)), flow.l7.latency_ns / 10**9


_RCODES = {
    0: "No Error",
    1: "Format Error",
    2: "Server Failure",
    3: "Non-Existent Domain",
    5: "Query Refused",
}

_KINDS: dict[str, tuple[_Kind, ...]] = {
    "flow": (_Kind("flows_processed", "Flows.", ("type", "subtype", "verdict"), _flows),),
    "drop": (_Kind("drop", "Drops.", ("reason", "protocol"), _drops),),
    "tcp": (_Kind("tcp_flags", "Flags of TCP.", ("flag", "family"), _tcp),),
    "icmp": (_Kind("icmp", "Messages of ICMP.", ("family", "type"), _icmp),),
    "port-distribution": (
        _Kind("port_distribution", "New connections by port.", ("protocol", "port"), _ports),
    ),
    "policy": (_Kind("policy_verdicts", "Verdicts of policies.", ("direction", "match", "action"), _policy),),
    "flows-to-world": (
        _Kind("flows_to_world", "Flows out of the cluster.", ("protocol", "verdict"), _world),
    ),
    "dns": (
        _Kind("dns_queries", "Questions to name servers.", ("rcode", "qtypes", "ips_returned"), _queries),
        _Kind("dns_responses", "Answers of name servers.", ("rcode", "qtypes", "ips_returned"), _responses),
        _Kind("dns_response_types", "Records in answers.", ("type", "qtypes"), _response_types),
    ),
    "httpV2": (
        _Kind(
            "http_requests",
            "Requests.",
            ("method", "protocol", "status", "reporter"),
            _requests,
            answers=True,
        ),
        _Kind(
            "http_request_duration_seconds",
            "How long requests took.",
            ("method", "reporter"),
            _durations,
            histogram=True,
            answers=True,
        ),
    ),
}
