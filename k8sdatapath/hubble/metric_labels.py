"""What metrics of flows are labelled with, as Hubble's configuration says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TypeAlias

from attrs import frozen

from k8sdatapath.errors import ModelError, near_misses
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import Endpoint, Flow, TrafficDirection
from k8sdatapath.model.identity import Reserved

__all__ = ["METRICS", "MetricOptions"]

#: Metrics, and the options that only they have.
METRICS: dict[str, frozenset[str]] = {
    "dns": frozenset(["query", "ignoreAAAA"]),
    "drop": frozenset(),
    "flow": frozenset(),
    "flows-to-world": frozenset(["any-drop", "port", "syn-only"]),
    "httpV2": frozenset(["exemplars"]),  # of traces, which no flow of ours has
    "icmp": frozenset(),
    "policy": frozenset(),
    "port-distribution": frozenset(),
    "tcp": frozenset(),
}

_Read: TypeAlias = Callable[["_Side"], str]


@frozen
class _Side:
    """One end of a flow, with what the flow says of it."""

    end: Endpoint
    ip: str
    names: tuple[str, ...]

    @property
    def workload(self) -> str:
        return self.end.workloads[0].name if self.end.workloads else ""

    @property
    def reserved(self) -> str:
        return next((label for label in self.end.labels if label.startswith("reserved:")), "")

    @property
    def app(self) -> str:
        for key in ("k8s:app.kubernetes.io/name", "k8s:app", "k8s:k8s-app"):
            for label in self.end.labels:
                if label.startswith(f"{key}="):
                    return label.partition("=")[2]
        return ""


def _joined(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace and name else name


_CONTEXTS: dict[str, _Read] = {
    "identity": lambda side: ",".join(side.end.labels),
    "namespace": lambda side: side.end.namespace,
    "pod": lambda side: _joined(side.end.namespace, side.end.pod_name),
    "pod-name": lambda side: side.end.pod_name,
    "dns": lambda side: ",".join(side.names),
    "ip": lambda side: side.ip,
    "reserved-identity": lambda side: side.reserved.rstrip("="),
    "workload": lambda side: _joined(side.end.namespace, side.workload),
    "workload-name": lambda side: side.workload,
    "app": lambda side: side.app,
}
_PARTS: dict[str, _Read] = {
    "ip": _CONTEXTS["ip"],
    "namespace": _CONTEXTS["namespace"],
    "pod": _CONTEXTS["pod-name"],
    "workload": _CONTEXTS["workload-name"],
    "workload_kind": lambda side: side.end.workloads[0].kind if side.end.workloads else "",
    "app": _CONTEXTS["app"],
}
_NOBODY = Endpoint()
_WORLD = {Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6}


def _sides(flow: Flow) -> tuple[_Side, _Side]:
    source, destination = (flow.ip.source, flow.ip.destination) if flow.ip is not None else ("", "")
    return (
        _Side(flow.source or _NOBODY, source, flow.source_names),
        _Side(flow.destination or _NOBODY, destination, flow.destination_names),
    )


@frozen
class MetricOptions:
    """A metric and its labels: ``MetricOptions.parse("drop:sourceContext=pod|ip;labelsContext=source_app")``.

    :ivar source: contexts of the source by direction of traffic, ``""`` for any; the first that says
        something is told.
    :ivar labels: further labels, such as ``source_namespace``.
    :ivar flags: what only this metric has.
    """

    name: str
    source: Mapping[str, tuple[str, ...]]
    destination: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> MetricOptions:
        """Read Hubble's way of writing it.

        :raises ModelError: a metric, an option or a label that there is not.
        """
        name, _, rest = text.strip().partition(":")
        if name not in METRICS:
            raise ModelError(f"there is no metric {shown(name)}; {near_misses(name, METRICS)}")
        source: dict[str, tuple[str, ...]] = {}
        destination: dict[str, tuple[str, ...]] = {}
        labels: tuple[str, ...] = ()
        flags: set[str] = set()
        for option in filter(None, rest.split(";")):
            key, _, value = option.partition("=")
            if key in METRICS[name]:
                flags.add(key)
                continue
            for sides, prefix in ((source, "source"), (destination, "destination")):
                if key in (f"{prefix}Context", f"{prefix}EgressContext", f"{prefix}IngressContext"):
                    way = key.removeprefix(prefix).removesuffix("Context").upper()
                    sides[way] = _known(value.split("|"), _CONTEXTS, f"{name}: {key}")
                    break
            else:
                if key != "labelsContext":
                    raise ModelError(f"{name}: there is no option {shown(key)}")
                labels = _known([*dict.fromkeys(value.split(","))], _label_names(), f"{name}: {key}")
        return cls(name, source, destination, labels, frozenset(flags))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of the labels that contexts give."""
        ends = (("source", self.source), ("destination", self.destination))
        return (*(name for name, contexts in ends if contexts), *self.labels)

    def about(self, values: tuple[str, ...], pods: Set[tuple[str, str]]) -> bool:
        """Whether the last of a series' values are the names of some pods, given as namespace and name."""
        told = dict(zip(self.label_names, values[len(values) - len(self.label_names) :], strict=True))
        names = {name for _, name in pods}
        for end, contexts in (("source", self.source), ("destination", self.destination)):
            known = {each for way in contexts.values() for each in way}
            value, name = told.get(end, ""), told.get(f"{end}_pod", "")
            namespace, _, short = value.rpartition("/")
            if "pod" in known and (namespace, short) in pods:
                return True
            if "pod-name" in known and value in names:
                return True
            if (told[f"{end}_namespace"], name) in pods if f"{end}_namespace" in told else name in names:
                return True
        return False

    def label_values(self, flow: Flow) -> tuple[str, ...]:
        """Those of a flow, in the same order."""
        if not self.source and not self.destination and not self.labels:
            return ()
        sides = _sides(flow)
        way = TrafficDirection(flow.traffic_direction).name if flow.traffic_direction in (1, 2) else ""
        found = []
        for contexts, side in ((self.source, sides[0]), (self.destination, sides[1])):
            if contexts:
                wanted = contexts.get(way) or contexts.get("", ())
                found.append(next(filter(None, (_CONTEXTS[each](side) for each in wanted)), ""))
        for label in self.labels:
            if label == "traffic_direction":
                found.append(way.lower() or "unknown")
            else:
                end, _, part = label.partition("_")
                found.append(_PARTS[part](sides[0] if end == "source" else sides[1]))
        return tuple(found)


def _label_names() -> tuple[str, ...]:
    return (*(f"{end}_{part}" for end in ("source", "destination") for part in _PARTS), "traffic_direction")


def _known(values: list[str], known: Mapping[str, object] | tuple[str, ...], where: str) -> tuple[str, ...]:
    for value in values:
        if value not in known:
            raise ModelError(f"{where}: {shown(value)} is none; {near_misses(value, known)}")
    return tuple(values)


def to_world(flow: Flow) -> bool:
    """Whether a flow leads out of the cluster."""
    return flow.destination is not None and flow.destination.identity in _WORLD
