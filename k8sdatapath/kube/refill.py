"""Services of which some endpoints have changed and nothing else, at the cost of these.

That is what nearly all changes of a cluster are. Where every endpoint is ordinary and told once, no endpoint
makes a difference to others, so that those which stay need no look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

from k8sdatapath.errors import ModelError
from k8sdatapath.kube.frontends import Claim
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeService
from k8sdatapath.kube.translate import numbers_in
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Backend, Frontend, Protocol, Service

__all__ = ["Swap", "plain", "refilled"]

Swap: TypeAlias = tuple[EndpointSlice | None, EndpointSlice | None]
"""A slice as it was and as it is; None: there was none, or there is none."""


def plain(service: KubeService, slices: Collection[EndpointSlice], made: Mapping[Frontend, Service]) -> bool:
    """Whether a Service and what was made of it are such that it can be refilled."""
    if any(port.protocol is Protocol.SCTP for port in service.ports):  # the ports of all endpoints count
        return False
    if not all(endpoint.ordinary for part in slices for endpoint in part.endpoints):
        return False
    families = {address.version for address in service.addresses}
    told = sum(
        len(part.endpoints) * len(numbers_in(part, port))
        for part in slices
        if part.version in families
        for port in service.ports
    )
    return told == sum(len(each.backends) for each in made.values())


def refilled(
    service: KubeService,
    claims: Iterable[Claim],
    made: Mapping[Frontend, Service],
    swaps: Iterable[Swap],
    node: NodeView | None,
) -> dict[Frontend, Service] | None:
    """What is made otherwise of a plain Service when some of its slices are others.

    :param claims: its own.
    :param made: what was made of it.
    :returns: those of ``made`` that change; None: only a look at all endpoints can tell.
    """
    moved: list[tuple[EndpointSlice, list[Endpoint], list[Endpoint]]] = []
    for was, now in swaps:
        part = now or was
        if part is None or (was is not None and (was.version != part.version or was.ports != part.ports)):
            return None
        old, new = _by_self(was), _by_self(now)
        come = [new[each] for each in new.keys() - old.keys()]
        if not all(each.ordinary for each in come):
            return None
        moved.append((part, [old[each] for each in old.keys() - new.keys()], come))
    found: dict[Frontend, Service] = {}
    for claim in claims:
        before = made.get(claim.frontend)
        if before is None:  # no main frontend
            continue
        port, version = service.ports[claim.port], before.address.version
        here = node.name if node is not None and (before.internal_local or before.external_local) else None
        keys: list[tuple[int, int]] = []
        backends: list[Backend] = []
        for part, gone, come in moved:
            for number in numbers_in(part, port) if part.version == version else ():
                keys += [(int(each.address), number) for each in gone]
                backends += [Backend(each.address, number, local=each.node == here) for each in come]
        if keys or backends:
            try:
                after = before.exchange(keys, backends)
            except ModelError:  # one is told twice
                return None
            if after != before:
                found[after.frontend] = after
    return found


def _by_self(part: EndpointSlice | None) -> dict[int, Endpoint]:
    """Endpoints that stay are mostly the very same values."""
    return {} if part is None else dict(zip(map(id, part.endpoints), part.endpoints, strict=True))
