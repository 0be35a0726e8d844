"""Which frontends Services and pods ask for, and who has them where several ask for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.objects import KubePod, KubeService
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Frontend, FrontendKind, IPAddress, Protocol

__all__ = ["Claim", "claims_of_pod", "claims_of_service", "settle"]


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


def claims_of_service(service: KubeService, node: NodeView | None) -> Iterator[Claim]:
    """Its cluster IPs; of the families of those, and if the node is known, all that makes it reachable."""
    families = {address.version for address in service.addresses}
    node_ports: tuple[IPAddress, ...] = ()
    if node is not None and service.kind != "ClusterIP":
        node_ports = node.node_port_addresses + node.loopback_addresses
    for index, port in enumerate(service.ports):
        if port.protocol is Protocol.SCTP:
            continue
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
        if port.protocol is Protocol.SCTP:
            continue
        everywhere = node.addresses + node.loopback_addresses
        for address in everywhere if port.address is None else (port.address,):
            if address.version in families:
                frontend = Frontend(address, port.number, port.protocol)
                yield Claim(FrontendKind.HOST_PORT, frontend, pod, index, "spec.containers")


def settle(
    claims: Iterable[Claim], node: NodeView | None, notes: list[str]
) -> dict[tuple[int, int, int], list[Claim]]:
    """Give every frontend to one claim. Returns what each port has got, by owner, index and IP version.

    What an API server makes sure of is an error where it is not so: cluster IPs and node ports are unique.
    All else may overlap in a sound cluster. There the stronger claim counts, and a note tells who has lost:
    cluster IPs are stronger than node ports, then come load balancers, external IPs and host ports.
    Among the same, Services count in the order of their names, and pods in the order given.

    :raises ManifestError: two Services with one cluster IP and port, or one node port.
    """
    given: dict[Frontend, Claim] = {}
    got: dict[tuple[int, int, int], list[Claim]] = {}
    for claim in sorted(claims, key=_strength):
        if node is not None and _trespasses(claim, node):
            notes.append(f"{claim} is left out: this node keeps it for node ports")
            continue
        first = given.setdefault(claim.frontend, claim)
        if first is claim:
            key = id(claim.owner), claim.port, claim.frontend.address.version
            got.setdefault(key, []).append(claim)
        elif first.owner is not claim.owner:
            if first.kind is claim.kind and claim.kind <= FrontendKind.NODE_PORT:
                reason = f"{claim.frontend} is taken by {first.owner.where}"
                raise ManifestError(claim.owner.where, claim.path, reason)
            notes.append(f"{claim} is left out: it belongs to {first.owner.namespace}/{first.owner.name}")
    return got


def _strength(claim: Claim) -> tuple[object, ...]:
    kind, owner = claim.kind, claim.owner
    named = kind in (FrontendKind.LOAD_BALANCER, FrontendKind.EXTERNAL_IP)
    return (kind, owner.namespace, owner.name) if named else (kind,)


def _trespasses(claim: Claim, node: NodeView) -> bool:
    frontend = claim.frontend
    strange = claim.kind > FrontendKind.NODE_PORT
    own = frontend.address.is_loopback or frontend.address in node.addresses
    return strange and own and node.reserves(frontend.port)
