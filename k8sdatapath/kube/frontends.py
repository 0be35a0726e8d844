"""Which frontends Services and pods ask for, and who has them where several ask for one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TypeAlias

from attrs import frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.objects import KubePod, KubeService
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Frontend, FrontendKind, IPAddress

__all__ = [
    "Claim",
    "Won",
    "claims_of_pod",
    "claims_of_service",
    "keeping_port",
    "refuse",
    "settle",
    "strongest",
    "trespass",
    "trespasses",
]


@frozen
class Claim:
    """A frontend that a port of an object asks for.

    :ivar path: the field that asks.
    """

    kind: FrontendKind
    frontend: Frontend
    owner: KubeService | KubePod
    port: int
    """The index of the port."""
    path: str

    def __str__(self) -> str:
        return f"{self.owner.namespace}/{self.owner.name}: {self.frontend} ({self.kind.name})"


Won: TypeAlias = dict[tuple[int, int], list[Claim]]
"""What an owner has got: by index of the port and IP version, the strongest kind first."""


def claims_of_service(service: KubeService, node: NodeView | None) -> Iterator[Claim]:
    """Its cluster IPs; of the families of those, and if the node is known, all that makes it reachable."""
    families = {address.version for address in service.addresses}
    node_ports: tuple[IPAddress, ...] = ()
    if node is not None and service.kind != "ClusterIP":
        node_ports = node.node_port_addresses + node.loopback_addresses
    for index, port in enumerate(service.ports):
        path = f"spec.ports[{index}]"
        asked = [(FrontendKind.CLUSTER_IP, service.addresses, port.number, f"{path}.port")]
        if node is not None:
            if port.node_port:
                asked.append((FrontendKind.NODE_PORT, node_ports, port.node_port, f"{path}.nodePort"))
            asked += [
                (FrontendKind.LOAD_BALANCER, service.load_balancer_ips, port.number, "status.loadBalancer"),
                (FrontendKind.EXTERNAL_IP, service.external_ips, port.number, "spec.externalIPs"),
            ]
        for kind, addresses, number, where in asked:
            for address in addresses:
                if address.version in families:
                    yield Claim(kind, Frontend(address, number, port.protocol), service, index, where)


def claims_of_pod(pod: KubePod, node: NodeView) -> Iterator[Claim]:
    """Its host ports, in the families that it has."""
    families = {address.version for address in pod.addresses}
    for index, port in enumerate(pod.ports):
        everywhere = node.addresses + node.loopback_addresses
        for address in everywhere if port.address is None else (port.address,):
            if address.version in families:
                frontend = Frontend(address, port.number, port.protocol)
                yield Claim(FrontendKind.HOST_PORT, frontend, pod, index, "spec.containers")


def settle(
    claims: Iterable[Claim], node: NodeView | None, notes: list[str], errors: list[ManifestError]
) -> dict[int, Won]:
    """Give every frontend to one claim. Returns what each owner has got, by its ``id()``.

    What an API server makes sure of is an error where it is not so: cluster IPs and node ports are unique.
    All else may overlap in a sound cluster. There the stronger claim counts, and a note tells who has lost.
    """
    rivals: dict[Frontend, list[Claim]] = {}
    for claim in claims:
        if trespasses(claim, node):
            notes.append(trespass(claim))
        else:
            rivals.setdefault(claim.frontend, []).append(claim)
    got: dict[int, Won] = {}
    for each in rivals.values():
        first = each[0] if len(each) == 1 else strongest(each)
        place = first.port, first.frontend.address.version
        got.setdefault(id(first.owner), {}).setdefault(place, []).append(first)
        for claim in each if len(each) > 1 else ():
            refuse(claim, first, notes, errors)
    for won in got.values():
        for mine in won.values():
            mine.sort(key=_kind)
    return got


def strongest(rivals: Sequence[Claim]) -> Claim:
    """Who of those that claim a frontend has it.

    Cluster IPs are stronger than node ports, then come load balancers, external IPs and host ports. Among
    the same, Services count in the order of their names; of pods the youngest.
    """
    kind = min(map(_kind, rivals))
    same = [claim for claim in rivals if claim.kind is kind]
    if kind is FrontendKind.HOST_PORT:
        return max(same, key=_age)
    return min(same, key=lambda claim: (claim.owner.namespace, claim.owner.name, claim.port))


def refuse(claim: Claim, first: Claim, notes: list[str], errors: list[ManifestError]) -> None:
    """Say that ``claim`` has lost to ``first``, unless both are of one owner."""
    if first.owner is claim.owner:
        return
    if first.kind is claim.kind and claim.kind <= FrontendKind.NODE_PORT:
        reason = f"{claim.frontend} is taken by {first.owner.where}"
        errors.append(ManifestError(claim.owner.where, claim.path, reason))
    else:
        notes.append(f"{claim} is left out: it belongs to {first.owner.namespace}/{first.owner.name}")


def trespasses(claim: Claim, node: NodeView | None) -> bool:
    """Whether a node keeps a frontend for node ports, and somebody else claims it."""
    if node is None or claim.kind <= FrontendKind.NODE_PORT:
        return False
    frontend = claim.frontend
    own = frontend.address.is_loopback or frontend.address in node.addresses
    return own and node.reserves(frontend.port)


def trespass(claim: Claim) -> str:
    """The note about a claim that trespasses."""
    return f"{claim} is left out: this node keeps it for node ports"


def keeping_port(claims: Iterable[Claim], targets: Collection[int], notes: list[str]) -> list[Claim]:
    """Of claims of SCTP those whose port is that of all endpoints: its checksum covers it."""
    kept = []
    for claim in claims:
        others = sorted(set(targets) - {claim.frontend.port})
        if others:
            ports = ", ".join(map(str, others))
            notes.append(f"{claim} is left out: SCTP keeps its port, and cannot go on to {ports}")
        else:
            kept.append(claim)
    return kept


_kind = attrgetter("kind")


def _age(claim: Claim) -> tuple[object, ...]:
    pod = claim.owner
    assert isinstance(pod, KubePod)
    return pod.born, pod.namespace, pod.name, -claim.port
