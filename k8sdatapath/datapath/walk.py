"""Walk: what becomes of a packet at each place of a node that it meets, and what would have to change.

One explanation is of one program. A packet that a program leaves to the node's stack meets the next one where
the node's routes lead it: at the pod that it is for, or at an uplink, if pods get another address there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from attrs import frozen

from k8sdatapath.datapath.explainer import Device, Explainer
from k8sdatapath.datapath.explanation import Explanation, Place
from k8sdatapath.datapath.request_judge import RequestJudge, RequestVerdict
from k8sdatapath.errors import KernelError
from k8sdatapath.model import Frontend, IPAddress
from k8sdatapath.model.http import HTTPReason, written
from k8sdatapath.model.policy import Toward
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.programs.base import in_netns
from k8sdatapath.tables.counters import Outcome

__all__ = ["AskedRequest", "Walk", "walk"]

_TO_THE_STACK = ("PASS", "TO_STACK")

_KNOWN = HTTPReason.__members__
_ADVICE = {
    "REJECT_NO_BACKEND": "Give the service a backend that is ready: it has none for this client.",
    "REJECT_NO_SERVICE": "Dial a port that the service has, or add this one to it.",
    "DROP_NO_SERVICE": "Dial a port that the service has, or add this one to it.",
    "DROP_NOT_LOCAL": "Run a backend on this node, or let the service's traffic policy be Cluster.",
    "DROP_SOURCE": "Add the client's network to the service's loadBalancerSourceRanges.",
    "DROP_NO_SOURCE": "Give the node an address of this family.",
    "DROP_NO_PORT": "End flows to that destination, or spread them over more addresses.",
    "DROP_NO_MEMORY": "Give the flow table more room: Capacity.flows.",
    "DROP_LEFT_ALONE": "Have netfilter masquerade this port, or take it out of Masquerade.netfilter.",
    "DROP_NO_PEER": "Add the node that has the destination to the overlay: it is on none that is known.",
    "DROP_INVALID_SOURCE_IP": "Send from the address that the pod was given.",
}


@frozen
class AskedRequest:
    """A request over the connection that the packet begins.

    :ivar pod: whose policy, or port, holds it to rules.
    :ivar toward: ``INGRESS``: at the server's socket; ``EGRESS``: at the client's.
    """

    line: str
    pod: IPAddress
    toward: Toward
    verdict: RequestVerdict

    @property
    def allowed(self) -> bool:
        """Whether it gets there."""
        return not self.verdict.reason or self.verdict.audited

    def as_dict(self) -> dict[str, Any]:
        """As texts and numbers, for JSON."""
        return {
            "request": self.line,
            "pod": str(self.pod),
            "direction": self.toward.name.lower(),
            "allowed": self.allowed,
            "rule": self.verdict.rule,
            "reason": self.verdict.reason,
            "audited": self.verdict.audited,
        }

    def __str__(self) -> str:
        end = "server" if self.toward is Toward.INGRESS else "client"
        text = f"{self.line} is {{}} at the {end} {self.pod}: {{}}."
        if not self.verdict.reason:
            return text.format("allowed", self.verdict.rule or "nothing of it is denied")
        words = (
            HTTPReason[self.verdict.reason].words if self.verdict.reason in _KNOWN else self.verdict.reason
        )
        looks_on = " The policy only looks on, so it passes." if self.verdict.audited else ""
        return text.format("denied", words) + looks_on


@frozen
class Walk:
    """The way of a packet through a node.

    :ivar stages: what became of it at each place, in order.
    :ivar advice: what would have to change for it to arrive, in sentences; empty if it does.
    :ivar requests: what becomes of the request that was asked about, wherever it is held to rules.
    """

    stages: tuple[Explanation, ...]
    advice: tuple[str, ...] = ()
    requests: tuple[AskedRequest, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """What became of it in the end."""
        return self.stages[-1].outcome

    def as_dict(self) -> dict[str, Any]:
        """As dicts, lists and texts, for JSON: its last explanation, with all as ``stages``."""
        stages = [each.as_dict() for each in self.stages]
        requests = [each.as_dict() for each in self.requests]
        return {**stages[-1], "stages": stages, "advice": list(self.advice), "requests": requests}

    def __str__(self) -> str:
        return "\n".join([*map(str, self.stages), *map(str, self.requests), *self.advice])

    def _repr_html_(self) -> str:
        said = (*map(str, self.requests), *self.advice)
        advice = "".join(f"<p>{escape(each)}</p>" for each in said)
        return "".join(each._repr_html_() for each in self.stages) + advice


def walk(
    explainer: Explainer,
    dialled: Frontend,
    source: IPAddress,
    *,
    port: int = 40000,
    netns: NetNs | None = None,
    request: str = "",
    requests: RequestJudge | None = None,
) -> Walk:
    """The way of the first packet from a pod of this node; nothing is changed.

    :param port: of the source.
    :param netns: of the node, whose routes are asked; None is that of the calling thread.
    :param request: of HTTP, over the connection: ``"GET /charge"``, and its headers on lines of their own.
    :param requests: who judges it; both or neither.
    :raises ModelError: as :meth:`Explainer.dial`; or the request is none.
    """
    stages = [explainer.dial(dialled, source, Place.POD, port=port)]
    left = stages[0].answer
    if stages[0].outcome.name in _TO_THE_STACK and left is not None and left.dport is not None:
        onward = Frontend(left.dst, left.dport, dialled.protocol)
        place, device = Place.TO_POD, None
        if not explainer.pod_device(left.dst):
            place, device = Place.TO_UPLINK, _uplink(netns, left.dst)
        if place is Place.TO_POD or (device is not None and explainer.masquerades(device)):
            stages.append(explainer.dial(onward, left.src, place, port=left.sport or 0, device=device))
    asked = tuple(_asked(explainer, requests, request, source, stages)) if requests else ()
    return Walk(tuple(stages), (*_advice(stages[-1]), *_advice_on(asked)), asked)


def _asked(
    explainer: Explainer,
    requests: RequestJudge,
    request: str,
    client: IPAddress,
    stages: Sequence[Explanation],
) -> Iterator[AskedRequest]:
    """What becomes of a request at those pods of this node that the connection has as its ends."""
    data, end = written(request), stages[-1].answer
    if end is None or end.dport is None:
        return
    ends = ((client, Toward.EGRESS), (end.dst, Toward.INGRESS))
    for pod, toward in ends:
        if explainer.pod_device(pod):
            egress = toward is Toward.EGRESS
            verdict = requests.judge(
                client if egress else end.src, end.dst, end.dport, data, at_client=egress
            )
            if verdict.held or verdict.reason:
                yield AskedRequest(request.partition("\n")[0], pod, toward, verdict)


def _advice_on(asked: Iterable[AskedRequest]) -> Iterator[str]:
    for each in asked:
        if not each.allowed and each.verdict.reason == HTTPReason.NO_RULE.name:
            yield f"Have a rule for requests of the pod {each.pod} allow {each.line}: k8sdatapath l7 rules."


def _uplink(netns: NetNs | None, destination: IPAddress) -> Device | None:
    """The device that it leaves by; None if there is no route."""

    def find() -> Device:
        with Netlink() as net:
            return Device.of_index(net.device_to(destination))

    try:
        return in_netns(netns, find)
    except KernelError:
        return None


def _advice(last: Explanation) -> Iterator[str]:
    for each in last.judgements:
        if not each.allowed:
            ends = ("to", "egress") if each.toward is Toward.EGRESS else ("from", "ingress")
            yield (
                f"Have a policy that selects the pod {each.pod} allow {ends[1]} {ends[0]} {each.peer}, "
                f"port {each.port}, or take away what denies it: {each.rule}."
            )
    if (advice := _ADVICE.get(last.outcome.name)) is not None:
        yield advice
