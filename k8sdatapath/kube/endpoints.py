"""Which endpoints of a Service port are given new flows: all that decides it, in one pure function.

kube-proxy is the reference (``CategorizeEndpoints``), down to what it does with hints and with endpoints that
are about to end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import TypeAlias

from k8sdatapath.kube.objects import Endpoint
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Backend, BackendState, Protocol
from k8sdatapath.model.backend import backend_key

__all__ = ["choose"]

_Place: TypeAlias = int
"""The key of a backend."""

_PORT = 0xFFFF
_node_hints = attrgetter("node_hints")
_zone_hints = attrgetter("zone_hints")


def choose(
    copies: Iterable[tuple[Endpoint, int]],
    node: NodeView | None = None,
    *,
    local: bool = False,
    protocol: Protocol = Protocol.TCP,
    before: Iterable[Backend] = (),
) -> tuple[Backend, ...]:
    """The backends that endpoints make, each told in which of the two sets it is.

    The set for all: the ready endpoints that hints mean for this node; if there is none, the terminating ones
    that still serve, wherever they are. The local set: the ready endpoints on this node, whatever their
    hints; if there is none, the terminating ones on it that still serve. Neither looks at the other.

    The rest are in no set, and kept for the flows that they have. For UDP only while they serve: a client
    that never pauses would hold on to a dead one for ever.

    :param copies: endpoints of one Service port and family, with port numbers. Where slices tell different
        things of one of them, the copy on this node counts, then the ready one.
    :param node: None: nothing is local, and hints do not count.
    :param local: whether anybody uses the local set.
    :param before: backends that there were. Those that stay as they are, are given again.
    """
    name = node.name if node is not None else ""
    found: dict[_Place, Endpoint] = {}
    for endpoint, port in copies:
        place = backend_key(endpoint.address, port)
        known = found.setdefault(place, endpoint)
        if known is not endpoint and _merit(endpoint, name) > _merit(known, name):
            found[place] = endpoint
    old = {each.key: each for each in before}
    if (everybody := _all_of(found, old, name if local else "")) is not None:
        return everybody  # what follows would come to the same
    ready = {place: each for place, each in found.items() if each.ready}
    leaving = {place for place, each in found.items() if not each.ready and each.serving and each.terminating}
    here = {place for place, each in found.items() if each.node == name} if local and name else set()
    cluster = _meant(ready, node) or leaving
    own = here & ready.keys() or here & leaving
    return tuple(
        _backend(
            old,
            place,
            each,
            BackendState.ACTIVE if each.ready else BackendState.TERMINATING,
            place in cluster or place in leaving,  # who leaves is asked only while nobody is active
            place in own,
        )
        for place, each in found.items()
        if each.ready or each.serving or protocol is not Protocol.UDP
    )


def _all_of(
    found: Mapping[_Place, Endpoint], old: Mapping[_Place, Backend], here: str
) -> tuple[Backend, ...] | None:
    """As nearly always: everybody is ready, for everybody; None: not so. In one pass, for speed."""
    made = []
    for place, each in found.items():
        if not each.ready or each.node_hints or each.zone_hints:
            return None
        local = bool(here) and each.node == here
        same = old.get(place)
        if same is None or same.state is not BackendState.ACTIVE or not same.cluster or same.local != local:
            same = Backend(each.address, place & _PORT, local=local)
        made.append(same)
    return tuple(made)


def _backend(
    old: Mapping[_Place, Backend],
    place: _Place,
    endpoint: Endpoint,
    state: BackendState,
    cluster: bool,
    local: bool,
) -> Backend:
    same = old.get(place)
    if same is not None and (same.state, same.cluster, same.local) == (state, cluster, local):
        return same
    return Backend(endpoint.address, place & _PORT, state=state, cluster=cluster, local=local)


def _meant(ready: Mapping[_Place, Endpoint], node: NodeView | None) -> Collection[_Place]:
    """Those meant for this node, by the narrowest hints that all of them have and one of them meets."""
    if node is not None:
        for name, hints in (node.name, _node_hints), (node.zone, _zone_hints):
            fit = {place for place, each in ready.items() if name in hints(each)}
            if fit and all(map(hints, ready.values())):
                return fit
    return ready.keys()


def _merit(endpoint: Endpoint, node: str) -> tuple[object, ...]:
    """Orders the copies of an endpoint, so that which of them counts does not hang on the order of slices."""
    return (
        bool(node) and endpoint.node == node,
        endpoint.ready,
        endpoint.serving,
        endpoint.terminating,
        sorted(endpoint.node_hints),
        sorted(endpoint.zone_hints),
    )
