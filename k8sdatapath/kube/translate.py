"""Kubernetes objects into services of the model. Pure: no files, no cluster, no kernel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

from attrs import Factory, frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.endpoints import choose
from k8sdatapath.kube.frontends import Claim, Won, claims_of_pod, claims_of_service, keeping_port, settle
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeNode, KubeObject, KubePod, KubeService, Port
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Backend, Exposure, Frontend, FrontendKind, Protocol, Service

__all__ = ["HealthCheck", "Translation", "health_check", "host_ports_of", "services_of", "translate"]


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
    :ivar errors: what cannot be, and was left out.
    """

    services: tuple[Service, ...]
    health_checks: tuple[HealthCheck, ...] = ()
    ignored: Counter[str] = Factory(Counter)
    notes: tuple[str, ...] = ()
    errors: tuple[ManifestError, ...] = ()


def translate(
    objects: Iterable[KubeObject], node: NodeView | None = None, *, strict: bool = True
) -> Translation:
    """What the objects ask of a node: one service per port and cluster IP of each Service, one per host port.

    :param node: None: there are only cluster IPs, no node to be local to, and no ports of it.
    :param strict: refuse everything if two Services have one cluster IP and port, or one node port. Else the
        first of them by name has it: see :attr:`Translation.errors`.
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
    errors: list[ManifestError] = []
    claims = [claim for each in services for claim in claims_of_service(each, node)]
    ignored = Counter("Node" for each in known if isinstance(each, KubeNode))
    if node is None:
        ignored.update(what for each in services for what in _unreachable(each))
        ignored.update("Pod" for _ in pods)
    else:
        claims += [claim for pod in pods if pod.node == node.name for claim in claims_of_pod(pod, node)]
    got = settle(claims, node, notes, errors)
    if strict and errors:
        raise errors[0]
    found: list[Service] = []
    checks: list[HealthCheck] = []
    for service in services:
        parts = slices.get((service.namespace, service.name), [])
        found += services_of(service, got.get(id(service), {}), parts, node, notes)
        if check := health_check(service, parts, node):
            checks.append(check)
    for pod in pods:
        found += host_ports_of(pod, got.get(id(pod), {}), notes)
    # what holds of each port of a Service is said once
    return Translation(tuple(found), tuple(checks), ignored, tuple(dict.fromkeys(notes)), tuple(errors))


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


def services_of(
    service: KubeService,
    won: Won,
    slices: Collection[EndpointSlice],
    node: NodeView | None,
    notes: list[str],
    before: Mapping[Frontend, Service] = MappingProxyType({}),
) -> Iterator[Service]:
    """One for each port and family. Who has not even got the cluster IP, has nothing there.

    :param before: services that there were; of their backends those that stay are given again.
    """
    for index, port in enumerate(service.ports):
        for address in service.addresses:
            mine = won.get((index, address.version))
            if mine and port.protocol is Protocol.SCTP:
                targets = {number for _, number in _copies(port, address.version, slices)}
                mine = keeping_port(mine, targets, notes)
            if mine and mine[0].kind is FrontendKind.CLUSTER_IP:
                was = before.get(mine[0].frontend)
                yield _service(service, port, mine, slices, node, notes, () if was is None else was.backends)


def _service(
    service: KubeService,
    port: Port,
    won: list[Claim],
    slices: Collection[EndpointSlice],
    node: NodeView | None,
    notes: list[str],
    before: tuple[Backend, ...],
) -> Service:
    """One port in one family. The first that it has won is its cluster IP."""
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
            _copies(port, version, slices),
            node,
            local=internal or external,
            protocol=port.protocol,
            before=before,
        ),
        name=f"{name}:{port.name}" if port.name else name,
        selection=service.selection,
        exposed=[Exposure(each.kind, each.frontend.address, each.frontend.port) for each in others],
        internal_local=internal,
        external_local=external,
        affinity_timeout=service.affinity_timeout,
        source_ranges=ranges,
    )


def _copies(port: Port, version: int, slices: Iterable[EndpointSlice]) -> Iterator[tuple[Endpoint, int]]:
    for part in slices:
        if part.version == version:
            for number in numbers_in(part, port):
                yield from ((endpoint, number) for endpoint in part.endpoints)


def numbers_in(part: EndpointSlice, port: Port) -> list[int]:
    """The ports of endpoints of a slice that a port of their Service leads to."""
    return [own.number for own in part.ports if own.name == port.name and own.protocol is port.protocol]


def health_check(
    service: KubeService, slices: Collection[EndpointSlice], node: NodeView | None
) -> HealthCheck | None:
    """What a node answers about a Service, if load balancers ask about it."""
    if node is None or not (
        service.health_port and service.kind == "LoadBalancer" and service.external_local
    ):
        return None
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


def host_ports_of(pod: KubePod, won: Won, notes: list[str]) -> Iterator[Service]:
    """One for each host port and family."""
    for index, port in enumerate(pod.ports):
        for address in pod.addresses:
            mine = won.get((index, address.version))
            if mine and port.protocol is Protocol.SCTP:
                mine = keeping_port(mine, {port.target}, notes)
            if mine:
                frontends = [claim.frontend for claim in mine]
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
