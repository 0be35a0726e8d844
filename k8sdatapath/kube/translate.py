"""Kubernetes objects into services of the model. Pure: no files, no cluster, no kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.objects import EndpointSlice, KubeObject, KubeService, Port
from k8sdatapath.model import Backend, BackendState, Frontend, IPAddress, Protocol, Service

__all__ = ["translate"]


def translate(objects: Iterable[KubeObject]) -> tuple[Service, ...]:
    """What the objects ask for: one service per port and cluster IP of each Service, in their order.

    SCTP ports are left out.

    :raises ManifestError: two objects of one kind and name, or two Services with one frontend.
    """
    named: dict[tuple[type[KubeObject], str, str], KubeObject] = {}
    for each in objects:
        first = named.setdefault((type(each), each.namespace, each.name), each)
        if first is not each:
            raise ManifestError(each.where, "metadata.name", f"there is one already: {first.where}")
    slices: defaultdict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for each in named.values():
        if isinstance(each, EndpointSlice):
            slices[each.namespace, each.service].append(each)
    served: dict[Frontend, Service] = {}
    owners: dict[Frontend, KubeService] = {}
    for each in named.values():
        if isinstance(each, KubeService):
            for path, service in _services(each, slices.get((each.namespace, each.name), [])):
                owner = owners.setdefault(service.frontend, each)
                if owner is not each:
                    raise ManifestError(each.where, path, f"{service.frontend} is taken by {owner.where}")
                served[service.frontend] = service
    return tuple(served.values())


def _services(service: KubeService, slices: list[EndpointSlice]) -> Iterator[tuple[str, Service]]:
    """Its services, each with the field that its frontend comes from."""
    for index, port in enumerate(service.ports):
        if port.protocol is Protocol.SCTP:
            continue
        name = f"{service.namespace}/{service.name}" + (f":{port.name}" if port.name else "")
        for address in service.addresses:
            yield (
                f"spec.ports[{index}].port",
                Service(
                    address,
                    port.number,
                    port.protocol,
                    backends=_backends(port, address.version, slices),
                    name=name,
                    selection=service.selection,
                ),
            )


def _backends(port: Port, version: int, slices: list[EndpointSlice]) -> Iterable[Backend]:
    """The union of the slices. Where two copies of an endpoint differ, the active one counts."""
    found: dict[tuple[IPAddress, int], Backend] = {}
    for part in slices:
        if part.version != version:
            continue
        for own in part.ports:
            if own.name == port.name and own.protocol is port.protocol:
                for endpoint in part.endpoints:
                    place = endpoint.address, own.number
                    if place not in found or endpoint.state is BackendState.ACTIVE:
                        found[place] = Backend(*place, state=endpoint.state)
    return found.values()
