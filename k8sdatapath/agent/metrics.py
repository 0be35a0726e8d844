"""What Prometheus is told: read when it asks, from the kernel and the agent's parts. Packets pay nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeAlias

import k8sdatapath
from k8sdatapath.datapath.policy_rows import Because, Cause
from k8sdatapath.errors import DatapathError, MissingExtraError
from k8sdatapath.hubble.metrics import BUCKETS
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.policy import Action, Toward

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from k8sdatapath.datapath.identity_policy import IdentityPolicy
    from k8sdatapath.datapath.policy_pairs import EndpointPolicy
    from k8sdatapath.hubble.metrics import FlowMetrics
    from k8sdatapath.kube import KubeWatch
    from k8sdatapath.node import Node, PodTracker
    from k8sdatapath.reconcile import Histogram, PolicyReconciler, Reconciler

__all__ = ["MetricSource", "Metrics"]

RuleKey: TypeAlias = tuple[Toward, Action, Because, tuple[Cause, ...]]
"""What tells a rule's count from others."""


class MetricSource(Protocol):
    """Something with numbers to tell."""

    def collect(self) -> Iterable[Metric]:
        """The numbers as they are now."""
        ...


class Metrics:
    """All that an agent tells Prometheus.

    :raises MissingExtraError: ``prometheus_client`` is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
        except ModuleNotFoundError:
            raise MissingExtraError("telling Prometheus", "metrics") from None
        self._registry: CollectorRegistry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self.add(_Build())

    def add(self, source: MetricSource) -> None:
        """Tell its numbers too, from now on."""
        self._registry.register(_Guarded(source))

    def text(self) -> tuple[str, bytes]:
        """The content type, and all numbers as they are now."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return CONTENT_TYPE_LATEST, generate_latest(self._registry)


class _Guarded:
    """A source that cannot be read just now costs its own numbers, not all."""

    def __init__(self, source: MetricSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is may not be known yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            yield from self._source.collect()
        except (DatapathError, OSError):
            return


class _Build:
    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        build = GaugeMetricFamily("k8sdatapath_build_info", "Which version this is.", labels=["version"])
        build.add_metric([k8sdatapath.__version__], 1)
        yield build


class NodeMetrics:
    """The datapath's: packets by outcome, how full the maps are, flows that were collected."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """As the kernel counts now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["outcome", "drop"]
        packets = CounterMetricFamily("k8sdatapath_packets", "Packets by what became of them.", labels=labels)
        octets = CounterMetricFamily("k8sdatapath_bytes", "Bytes of the same packets.", labels=labels)
        for name, counter in self._node.counters().items():
            values = [name.lower(), str(counter.outcome.drop).lower()]
            packets.add_metric(values, counter.packets)
            octets.add_metric(values, counter.bytes)
        yield packets
        yield octets
        used = GaugeMetricFamily("k8sdatapath_map_entries", "Elements of a map.", labels=["map"])
        room = GaugeMetricFamily("k8sdatapath_map_capacity", "Elements that a map can hold.", labels=["map"])
        for name, pressure in self._node.pressure().items():
            used.add_metric([name], pressure.used)
            room.add_metric([name], pressure.capacity)
        yield used
        yield room
        yield GaugeMetricFamily("k8sdatapath_services", "Services in the kernel.", len(self._node.services))
        text = "Flows that were alive when the full table forgot them, in one direction or begun anew."
        lost = CounterMetricFamily("k8sdatapath_flows_lost", text, labels=["what"])
        losses = self._node.flows.losses()
        lost.add_metric(["half"], losses.halves)
        lost.add_metric(["flow"], losses.flows)
        yield lost
        if (upkeep := self._node.upkeep) is not None:
            text = "Flows collected after they were over."
            yield CounterMetricFamily("k8sdatapath_flows_collected", text, upkeep.collected)
            text = "Flows of datagrams whose backend or frontend had gone."
            yield CounterMetricFamily("k8sdatapath_flows_reaped", text, upkeep.reaped)


class PodMetrics:
    """How many addresses of pods are in the datapath, and how many should be and are not."""

    def __init__(self, pods: PodTracker) -> None:
        self._pods = pods

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        from prometheus_client.core import GaugeMetricFamily

        statuses = self._pods.statuses
        family = GaugeMetricFamily(
            "k8sdatapath_pod_addresses", "Addresses of this node's pods.", labels=["state"]
        )
        family.add_metric(["attached"], sum(1 for each in statuses if not each.problem))
        family.add_metric(["not_found"], sum(1 for each in statuses if each.problem))
        yield family


class WatchMetrics:
    """How it goes with each resource of the API server."""

    def __init__(self, watch: KubeWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        gauges = {
            "connected": "Whether a watch is open.",
            "synced": "Whether it was listed completely once.",
            "objects": "How many there are.",
        }
        counters = {
            "events": "Changes that were told.",
            "lists": "How often it was listed.",
            "watches": "How often it was watched.",
            "errors": "Lists and watches that have failed.",
            "garbled": "What could not be read.",
        }
        statuses = self._watch.status
        for family, told in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, meaning in told.items():
                metric = family(f"k8sdatapath_watch_{name}", meaning, labels=["resource"])
                for resource, status in statuses.items():
                    metric.add_metric([resource], getattr(status, name))
                yield metric


class ReconcilerMetrics:
    """How fast the kernel follows, how often, and how many objects are not as they should be."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def collect(self) -> Iterator[Metric]:
        """As it is now; the first is named and measured as kube-proxy's."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        told = self._reconciler.metrics
        yield _histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From what made endpoints change to the kernel.",
            told.network_programming,
        )
        yield _histogram(
            "k8sdatapath_event_to_kernel_seconds",
            "From an event's bytes to the kernel.",
            told.event_to_kernel,
        )
        yield _histogram("k8sdatapath_change_seconds", "How long writing a batch took.", told.change)
        services = CounterMetricFamily(
            "k8sdatapath_service_changes", "Services that were written.", labels=["what"]
        )
        for what in ("added", "changed", "removed", "refused", "drifted"):
            services.add_metric([what], getattr(told, what))
        yield services
        failures = CounterMetricFamily("k8sdatapath_failures", "What went wrong.", labels=["what"])
        failures.add_metric(["write"], told.failures)
        failures.add_metric(["follower"], told.follower_failures)
        yield failures
        yield CounterMetricFamily("k8sdatapath_retries", "Services tried again.", told.retries)
        yield GaugeMetricFamily(
            "k8sdatapath_last_change_timestamp_seconds", "When something was last written.", told.last_change
        )
        wrong = GaugeMetricFamily("k8sdatapath_objects_wrong", "Objects with an error.", labels=["kind"])
        for kind, count in Counter(kind for kind, _, _ in self._reconciler.errors()).items():
            wrong.add_metric([kind], count)
        yield wrong
        text = "Services that could not be written as they are wanted."
        yield GaugeMetricFamily("k8sdatapath_services_failed", text, len(self._reconciler.failures()))
        ready = int(self._reconciler.synced)
        yield GaugeMetricFamily("k8sdatapath_synced", "Whether all services are programmed.", ready)


class PolicyMetrics:
    """How far policies are in force, and what they come to."""

    def __init__(self, policies: PolicyReconciler, enforced: IdentityPolicy) -> None:
        self._policies, self._enforced = policies, enforced
        self._seen = Counter[RuleKey]()
        self._packets = Counter[tuple[Toward, Action]]()

    def collect(self) -> Iterator[Metric]:
        """As it is now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = {
            "policies": ("Policies in force.", len(self._enforced.policies)),
            "policy_pods": (
                "Pods of this node with a policy.",
                sum(each.identity != Reserved.HOST for each in self._enforced.endpoints),
            ),
            "policy_pods_waiting": ("Pods that have no number yet.", len(self._policies.waiting)),
            "policy_objects_wrong": ("Objects that cannot be enforced.", len(self._policies.errors)),
            "policies_failed": ("What could not be put in force.", len(self._policies.failures)),
            "policy_synced": ("Whether all was put in force once.", int(self._policies.synced)),
            "policy_max_revision": ("The latest revision of policies.", self._enforced.revision),
        }
        for name, (meaning, value) in found.items():
            yield GaugeMetricFamily(f"k8sdatapath_{name}", meaning, value)
        statuses = Counter(enforcement(each, self._enforced.audit) for each in self._enforced.endpoints)
        text = "Pods, and the node if policies are for it, by what policies restrict."
        name = "k8sdatapath_policy_endpoint_enforcement_status"
        status = GaugeMetricFamily(name, text, labels=["enforcement"])
        for word in ENFORCEMENTS:
            status.add_metric([word], statuses[word])
        yield status
        self._look()
        text = "Packets that rules, or policies by default, have allowed or denied."
        packets = CounterMetricFamily("k8sdatapath_policy_packets", text, labels=["direction", "action"])
        for toward in Toward:
            for action in (Action.ALLOW, Action.DENY):
                packets.add_metric([toward.name.lower(), action.name.lower()], self._packets[toward, action])
        yield packets

    def _look(self) -> None:
        """Rules come and go with their counts; what was seen of them stays."""
        seen = Counter[RuleKey]()
        for each in self._enforced.counts():
            seen[each.toward, each.action, each.because, each.causes] += each.packets
        for rule, packets in seen.items():
            before = self._seen[rule]
            self._packets[rule[:2]] += packets - (before if before <= packets else 0)
        self._seen = seen


ENFORCEMENTS = ("none", "ingress", "egress", "both", "audit-ingress", "audit-egress", "audit-both")
"""Cilium's words for how an endpoint is restricted."""


def enforcement(endpoint: EndpointPolicy, audit: bool) -> str:
    """The word for an endpoint.

    :param audit: all policies only look on.
    """
    ways = endpoint.isolated
    if not ways:
        return "none"
    word = "both" if len(ways) == len(Toward) else next(iter(ways)).name.lower()
    return f"audit-{word}" if audit or endpoint.audited or ways <= endpoint.audits else word


class FlowFamilies:
    """Metrics of flows, under Hubble's names."""

    def __init__(self, counted: FlowMetrics) -> None:
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """As counted until now."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        text = "Flows that were not counted, as there were too many series of the metric."
        left_out = CounterMetricFamily("k8sdatapath_flow_series_left_out", text, labels=["metric"])
        for family in self._counted.families():
            labels = list(family.labels)
            left_out.add_metric([family.name], family.left_out)
            if family.buckets is None:
                counter = CounterMetricFamily(family.name, family.meaning, labels=labels)
                for values, count in family.counters.items():
                    counter.add_metric(values, count)
                yield counter
                continue
            histogram = HistogramMetricFamily(family.name, family.meaning, labels=labels)
            for values, row in family.buckets.items():
                ends = [*map(repr, BUCKETS), "+Inf"]
                rows = list(zip(ends, accumulate(row), strict=True))
                histogram.add_metric(values, rows, sum_value=family.counters[values])
            yield histogram
        yield left_out


def _histogram(name: str, meaning: str, histogram: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    buckets = [("+Inf" if end == inf else repr(end), count) for end, count in histogram.cumulative()]
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=histogram.sum)
