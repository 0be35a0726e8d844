"""Flows added up: by who talks to whom, and by why they were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from attrs import define, field, frozen

from k8sdatapath.model.flow import (
    SCTP,
    TCP,
    UDP,
    DropReason,
    Endpoint,
    Flow,
    LostEvent,
    ServiceRef,
    Verdict,
)
from k8sdatapath.model.identity import Reserved

__all__ = ["Link", "Party", "Tally"]

_APP = ("k8s:app.kubernetes.io/name=", "k8s:app=", "k8s:k8s-app=", "k8s:name=")
_MOST_PAIRS = 4096
"""Pairs of parties; what comes of others is added up as one."""


@frozen(order=True)
class Party:
    """Who takes part: all pods of a workload, a service, or somebody outside."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


_OTHERS = Party("", "others")


@lru_cache(maxsize=16384)
def _party(end: Endpoint | None, service: ServiceRef | None, names: tuple[str, ...], address: str) -> Party:
    if end is not None and end.namespace:
        app = next((label[len(key) :] for key in _APP for label in end.labels if label.startswith(key)), "")
        return Party(end.namespace, end.workloads[0].name if end.workloads else app or end.pod_name)
    if service is not None and service.name:
        return Party(service.namespace, service.name)
    if names:
        return Party("", names[0])
    if end is not None and end.identity and end.identity in Reserved.__members__.values():
        return Party("", Reserved(end.identity).name.lower().replace("_", "-"))
    return Party("", address or "unknown")


@define
class Link:
    """What one party has sent to another.

    :ivar flows: that went through.
    :ivar dropped: by reason.
    :ivar ports: as in ``80/TCP``, of what was sent there.
    :ivar latencies: of answers, in nanoseconds.
    """

    flows: int = 0
    dropped: Counter[str] = field(factory=Counter)
    ports: Counter[str] = field(factory=Counter)
    latencies: list[int] = field(factory=list)


class Tally:
    """Adds flows up; an answer counts for who was asked."""

    def __init__(self, flows: Iterable[Flow | LostEvent] = ()) -> None:
        self.links: dict[tuple[Party, Party], Link] = {}
        self.drops: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.lost = 0
        self.flows = 0
        self.first = self.last = 0
        for each in flows:
            self.add(each)

    def add(self, item: Flow | LostEvent) -> None:
        """Count one more."""
        if isinstance(item, LostEvent):
            self.lost += item.num_events_lost
            return
        self.flows += 1
        self.first = min(self.first or item.time, item.time)
        self.last = max(self.last, item.time)
        name = Verdict(item.verdict).name if item.verdict in Verdict.__members__.values() else "?"
        self.verdicts[name] += 1
        link = self._link(item)
        if item.verdict == Verdict.DROPPED:
            known = item.drop_reason in DropReason.__members__.values()
            reason = DropReason(item.drop_reason).name if known else str(int(item.drop_reason))
            self.drops[reason] += 1
            link.dropped[reason] += 1
        else:
            link.flows += 1
        if isinstance(item.l4, TCP | UDP | SCTP):
            port = item.l4.source_port if item.is_reply else item.l4.destination_port
            where = f"{port}/{type(item.l4).__name__}"
            if where in link.ports or len(link.ports) < 64:
                link.ports[where] += 1
        if item.l7 is not None and item.l7.latency_ns and len(link.latencies) < 10_000:
            link.latencies.append(item.l7.latency_ns)

    def _link(self, flow: Flow) -> Link:
        source, destination = (flow.ip.source, flow.ip.destination) if flow.ip is not None else ("", "")
        one = _party(flow.source, flow.source_service, flow.source_names, source)
        other = _party(flow.destination, flow.destination_service, flow.destination_names, destination)
        pair = (other, one) if flow.is_reply else (one, other)
        if pair not in self.links and len(self.links) >= _MOST_PAIRS:
            pair = (_OTHERS, _OTHERS)
        return self.links.setdefault(pair, Link())

    @property
    def seconds(self) -> float:
        """Between the first flow and the last."""
        return (self.last - self.first) / 10**9

    def busiest(self, number: int = 20) -> list[tuple[Party, Link]]:
        """Those that most was sent to, all of it together."""
        found: dict[Party, Link] = {}
        for (_, party), link in self.links.items():
            total = found.setdefault(party, Link())
            total.flows += link.flows
            total.dropped += link.dropped
            total.ports += link.ports
            total.latencies += link.latencies
        order = sorted(found.items(), key=lambda each: (-each[1].flows - each[1].dropped.total(), each[0]))
        return order[:number]

    def denied(self, number: int = 20) -> list[tuple[Party, Party, str, int]]:
        """Who was not let through to whom most often, and why."""
        found = [
            (one, other, reason, count)
            for (one, other), link in self.links.items()
            for reason, count in link.dropped.items()
        ]
        return sorted(found, key=lambda each: (-each[3], each))[:number]
