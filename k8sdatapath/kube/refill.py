"""Services of which some endpoints have changed and nothing else, at the cost of these.

That is what nearly all changes of a cluster are. Where every endpoint is ordinary and told once, no endpoint
makes a difference to others, so that those which stay need no look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import TypeAlias

from k8sdatapath.errors import ModelError
from k8sdatapath.kube.frontends import Claim
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeService, Port
from k8sdatapath.kube.translate import numbers_in
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Backend, Frontend, Protocol, Service
from k8sdatapath.model.backend import backend_key

__all__ = ["Swap", "plain", "refilled"]

Swap: TypeAlias = tuple[EndpointSlice | None, EndpointSlice | None]
"""A slice as it was and as it is; None: there was none, or there is none."""


def plain(
    service: KubeService,
    claims: Iterable[Claim],
    slices: Collection[EndpointSlice],
    made: Mapping[Frontend, Service],
) -> Mapping[Frontend, Port] | None:
    """Whether a Service is such that what was made of it can be refilled; then the port of each.

    :param claims: its own.
    """
    if any(port.protocol is Protocol.SCTP for port in service.ports):  # the ports of all endpoints count
        return None
    if not all(endpoint.ordinary for part in slices for endpoint in part.endpoints):
        return None
    families = {address.version for address in service.addresses}
    told = sum(
        len(part.endpoints) * len(numbers_in(part, port))
        for part in slices
        if part.version in families
        for port in service.ports
    )
    if told != sum(len(each.backends) for each in made.values()):
        return None
    ports = {claim.frontend: service.ports[claim.port] for claim in claims}
    return {frontend: ports[frontend] for frontend in made}


def refilled(
    service: KubeService,
    ports: Mapping[Frontend, Port],
    made: Mapping[Frontend, Service],
    swaps: Iterable[Swap],
    node: NodeView | None,
) -> dict[Frontend, Service] | None:
    """What is made otherwise of a plain Service when some of its slices are others.

    :param ports: what :func:`plain` has told.
    :param made: what was made of it.
    :returns: those of ``made`` that change; None: only a look at all endpoints can tell.
    """
    moved: list[tuple[EndpointSlice, list[Endpoint], list[Endpoint]]] = []
    for was, now in swaps:
        part = now or was
        if part is None or part.service != service.name:
            return None
        if was is not None and was is not part and _frame(was) != _frame(part):
            return None
        old, new = was.endpoints if was is not None else (), now.endpoints if now is not None else ()
        gone, come = _without(old, new), _without(new, old)
        if not all(each.ordinary for each in come):
            return None
        moved.append((part, gone, come))
    found: dict[Frontend, Service] = {}
    for frontend, port in ports.items():
        before = made[frontend]
        version = before.address.version
        here = node.name if node is not None and (before.internal_local or before.external_local) else None
        keys: list[int] = []
        backends: list[Backend] = []
        for part, gone, come in moved:
            for number in numbers_in(part, port) if part.version == version else ():
                keys += [backend_key(each.address, number) for each in gone]
                backends += [Backend(each.address, number, local=each.node == here) for each in come]
        if keys or backends:
            try:
                after = before.exchange(keys, backends)
            except ModelError:  # one is told twice
                return None
            if after.backends != before.backends:
                found[frontend] = after
    return found


_frame = attrgetter("service", "version", "ports")


def _without(endpoints: tuple[Endpoint, ...], others: tuple[Endpoint, ...]) -> list[Endpoint]:
    """Those that are not the very same as one of the others, as those that stay mostly are."""
    there = set(map(id, others))
    return [each for each in endpoints if id(each) not in there]
