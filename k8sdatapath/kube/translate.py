"""Kubernetes objects into services of the model. Pure: no files, no cluster, no kernel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from attrs import Factory, frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.endpoints import choose
from k8sdatapath.kube.frontends import Claim, claims_of_pod, claims_of_service, settle
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeNode, KubeObject, KubePod, KubeService, Port
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Backend, Exposure, FrontendKind, Service

__all__ = ["HealthCheck", "Translation", "translate"]


@frozen
class HealthCheck:
    """What a load balancer asks a node about a Service: whether it has ready endpoints, at a port for that.

    :ivar ipv4: how many, as an IPv4 load balancer is told; None: the Service has no IPv4. Likewise ``ipv6``.
    """

    namespace: str
    name: str
    port: int
    ipv4: int | None
    ipv6: int | None


@frozen
class Translation:
    """What objects ask for.

    :ivar services: in the order of the objects.
    :ivar ignored: counts what is not load-balanced, by what it is.
    :ivar notes: what is otherwise than somebody may think who wrote the objects.
    """

    services: tuple[Service, ...]
    health_checks: tuple[HealthCheck, ...] = ()
    ignored: Counter[str] = Factory(Counter)
    notes: tuple[str, ...] = ()


def translate(objects: Iterable[KubeObject], node: NodeView | None = None) -> Translation:
    """What the objects ask of a node: one service per port and cluster IP of each Service, one per host port.

    SCTP ports are left out.

    :param node: None: there are only cluster IPs, no node to be local to, and no ports of it.
    :raises ManifestError: two objects of one kind and name, or two Services with one frontend.
    """
    known = _unique(objects)
    services = [each for each in known if isinstance(each, KubeService)]
    pods = [each for each in known if isinstance(each, KubePod)]
    slices: defaultdict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for each in known:
        if isinstance(each, EndpointSlice):
            slices[each.namespace, each.service].append(each)
    notes: list[str] = []
    claims = [claim for each in services for claim in claims_of_service(each, node)]
    ignored = Counter("Node" for each in known if isinstance(each, KubeNode))
    if node is None:
        ignored.update(what for each in services for what in _unreachable(each))
        ignored.update("Pod" for _ in pods)
    else:
        here = [pod for pod in pods if pod.node == node.name]
        here.sort(key=lambda pod: pod.born, reverse=True)
        claims += [claim for pod in here for claim in claims_of_pod(pod, node)]
    found: list[Service] = []
    checks: list[HealthCheck] = []
    got = settle(claims, node, notes)
    for service in services:
        parts = slices.get((service.namespace, service.name), [])
        found += (
            _service(service, port, won, parts, node, notes)
            for index, port in enumerate(service.ports)
            for address in service.addresses
            if (won := got.get((id(service), index, address.version)))
        )
        if node and service.health_port and service.kind == "LoadBalancer" and service.external_local:
            checks.append(_health_check(service, parts, node))
    for pod in pods:
        found.extend(_host_ports(pod, got))
    # what holds of each port of a Service is said once
    return Translation(tuple(found), tuple(checks), ignored, tuple(dict.fromkeys(notes)))


def _unique(objects: Iterable[KubeObject]) -> list[KubeObject]:
    named: dict[tuple[type[KubeObject], str, str], KubeObject] = {}
    for each in objects:
        first = named.setdefault((type(each), each.namespace, each.name), each)
        if first is not each:
            raise ManifestError(each.where, "metadata.name", f"there is one already: {first.where}")
    return list(named.values())


def _unreachable(service: KubeService) -> Iterator[str]:
    """What a Service asks for beyond its cluster IPs, of a node that is not known."""
    if service.kind != "ClusterIP":
        yield f"{service.kind} part of a Service"
    if service.external_ips:
        yield "externalIPs"
    if service.internal_local:
        yield "internalTrafficPolicy"


def _service(
    service: KubeService,
    port: Port,
    won: list[Claim],
    slices: list[EndpointSlice],
    node: NodeView | None,
    notes: list[str],
) -> Service:
    """One port in one family. The first that it has won is its cluster IP: nothing is stronger."""
    main, *others = won
    name = f"{service.namespace}/{service.name}"
    version = main.frontend.address.version
    internal, external = service.internal_local and node is not None, service.external_local and bool(others)
    ranges = [each for each in service.source_ranges if each.version == version]
    if not any(claim.kind is FrontendKind.LOAD_BALANCER for claim in others):
        ranges = []
    elif service.source_ranges and not ranges:
        notes.append(f"{name}: its source ranges name no IPv{version}: all of IPv{version} may use it")
    if node is not None and service.kind == "NodePort" and not port.node_port:
        notes.append(f"{name}: port {port.number} has no nodePort, as an API server would give it")
    return Service(
        main.frontend.address,
        main.frontend.port,
        main.frontend.protocol,
        backends=choose(
            _copies(port, version, slices), node, local=internal or external, protocol=port.protocol
        ),
        name=f"{name}:{port.name}" if port.name else name,
        selection=service.selection,
        exposed=[Exposure(each.kind, each.frontend.address, each.frontend.port) for each in others],
        internal_local=internal,
        external_local=external,
        affinity_timeout=service.affinity_timeout,
        source_ranges=ranges,
    )


def _copies(port: Port, version: int, slices: list[EndpointSlice]) -> Iterator[tuple[Endpoint, int]]:
    for part in slices:
        if part.version == version:
            for own in part.ports:
                if own.name == port.name and own.protocol is port.protocol:
                    yield from ((endpoint, own.number) for endpoint in part.endpoints)


def _health_check(service: KubeService, slices: list[EndpointSlice], node: NodeView) -> HealthCheck:
    families = {address.version for address in service.addresses}
    ready = {
        version: len(
            {
                endpoint.address
                for part in slices
                if part.version == version
                for endpoint in part.endpoints
                if endpoint.ready and endpoint.node == node.name
            }
        )
        for version in families
    }
    return HealthCheck(service.namespace, service.name, service.health_port, ready.get(4), ready.get(6))


def _host_ports(pod: KubePod, got: dict[tuple[int, int, int], list[Claim]]) -> Iterator[Service]:
    for index, port in enumerate(pod.ports):
        for address in pod.addresses:
            if won := got.get((id(pod), index, address.version)):
                frontends = [claim.frontend for claim in won]
                main, *others = sorted(frontends, key=lambda f: (f.address.is_loopback, int(f.address)))
                yield Service(
                    main.address,
                    main.port,
                    main.protocol,
                    backends=[Backend(address, port.target)],
                    name=f"{pod.namespace}/{pod.name}:{port.number}",
                    kind=FrontendKind.HOST_PORT,
                    exposed=[Exposure(FrontendKind.HOST_PORT, each.address, each.port) for each in others],
                )
