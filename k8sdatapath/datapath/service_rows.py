"""From a service to its rows in the maps, and back: pure values, nothing is read or written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import gcd
from operator import attrgetter, itemgetter
from typing import Any

from k8sdatapath.datapath.maglev import maglev_slots, table_size
from k8sdatapath.model import (
    Backend,
    BackendState,
    Exposure,
    Frontend,
    FrontendKind,
    IPNetwork,
    Protocol,
    Scope,
    Selection,
    Service,
)
from k8sdatapath.tables.backends import BackendRow
from k8sdatapath.tables.frontends import FrontendFlags, FrontendKey, FrontendRow
from k8sdatapath.tables.sets import SetKind
from k8sdatapath.tables.sources import NODE, SourceKey

__all__ = [
    "frontend_key",
    "frontend_rows",
    "members_of_sets",
    "only_backends_differ",
    "read_service",
    "scope_of",
    "slot_count",
    "slots",
    "source_keys",
]


def frontend_rows(service: Service, number: int) -> dict[FrontendKey, FrontendRow]:
    """The rows of all frontends of a service: one number, one policy."""
    flags = FrontendFlags(0)
    if service.internal_local:
        flags |= FrontendFlags.INTERNAL_LOCAL
    if service.external_local:
        flags |= FrontendFlags.EXTERNAL_LOCAL
    if service.source_ranges:
        flags |= FrontendFlags.SOURCE_RANGES
    if _has_endpoints(service):
        flags |= FrontendFlags.HAS_ENDPOINTS
    return {
        frontend_key(frontend): FrontendRow(
            number,
            service.affinity_timeout,
            0,
            int(flags | FrontendFlags.LOOPBACK if frontend.address.is_loopback else flags),
            service.selection,
            kind,
        )
        for frontend, kind in zip(service.frontends, service.kinds, strict=True)
    }


def only_backends_differ(one: Service, other: Service) -> bool:
    """Whether all that is written for two services is the same, but for backends and sets."""
    return _rest(one) == _rest(other) and _has_endpoints(one) == _has_endpoints(other)


_rest = attrgetter(
    "address",
    "port",
    "protocol",
    "selection",
    "kind",
    "exposed",
    "internal_local",
    "external_local",
    "affinity_timeout",
    "source_ranges",
)


def _has_endpoints(service: Service) -> bool:
    if service.alike:
        return bool(service.candidates_in(Scope.CLUSTER) or service.candidates_in(Scope.LOCAL))
    return any(backend.weight and (backend.cluster or backend.local) for backend in service.backends)


def frontend_key(frontend: Frontend) -> FrontendKey:
    """A frontend as the key that programs make of a packet."""
    return FrontendKey(frontend.address, frontend.port, frontend.protocol)


def source_keys(service: Service, number: int, *, node: bool) -> list[SourceKey]:
    """The entries of the trie that say who may use a service's load balancer addresses.

    :param node: whether the node itself may.
    """
    ranges = (*service.source_ranges, NODE) if node and service.source_ranges else service.source_ranges
    return [SourceKey.of(number, network) for network in ranges]


def slots(service: Service, ids: Sequence[int], scope: Scope) -> Sequence[int]:
    """The backend id for every slot of one of a service's sets; ``ids`` belong to its backends in order."""
    if scope is Scope.LOCAL and not (service.internal_local or service.external_local):
        return ()
    candidates = service.candidates_in(scope)
    if len(candidates) == len(service.backends):
        if service.alike and service.selection is not Selection.MAGLEV:
            return ids
        chosen = list(ids)
    else:
        wanted = set(candidates)
        chosen = [id for backend, id in zip(service.backends, ids, strict=True) if backend in wanted]
    if service.selection is Selection.MAGLEV and candidates:
        return maglev_slots(candidates, chosen, service.protocol)
    weights = [backend.weight for backend in candidates]
    if len(set(weights)) <= 1:
        return chosen
    return in_turns(zip(chosen, in_lowest_terms(weights), strict=True))


def members_of_sets(service: Service, ids: Sequence[int]) -> dict[SetKind, Sequence[int]]:
    """The slots of all sets of a service; ``ids`` belong to its backends in order."""
    cluster, local = slots(service, ids, Scope.CLUSTER), slots(service, ids, Scope.LOCAL)
    kept = () if cluster is ids else sorted(set(ids).difference(cluster, local))
    return {SetKind.CLUSTER: cluster, SetKind.LOCAL: local, SetKind.KEPT: kept}


def slot_count(service: Service, scope: Scope) -> int:
    """How many slots :func:`slots` will fill."""
    if scope is Scope.LOCAL and not (service.internal_local or service.external_local):
        return 0
    candidates = service.candidates_in(scope)
    if service.alike and service.selection is not Selection.MAGLEV:
        return len(candidates)
    weights = [backend.weight for backend in candidates]
    if service.selection is Selection.MAGLEV and weights:
        return table_size(len(weights))
    return sum(in_lowest_terms(weights))


def scope_of(row: FrontendRow, *, outside: bool) -> Scope:
    """The set that answers at a frontend: the rule that the programs apply."""
    flags = FrontendFlags(row.flags)
    if row.kind == FrontendKind.CLUSTER_IP:
        return Scope.LOCAL if flags & FrontendFlags.INTERNAL_LOCAL else Scope.CLUSTER
    return Scope.LOCAL if outside and flags & FrontendFlags.EXTERNAL_LOCAL else Scope.CLUSTER


def read_service(
    frontends: Iterable[tuple[FrontendKey, FrontendRow]],
    sets: Mapping[SetKind, Sequence[int]],
    rows: Mapping[int, BackendRow],
    sources: Sequence[IPNetwork],
) -> tuple[Service, list[int]]:
    """A service from what the kernel has of it, and the row ids of its backends in order.

    The kernel does not know names, nor the weights of Maglev sets and of backends that get no new flows.

    :param frontends: of one service number.
    :param sets: the ids in the slots of its sets; ``rows`` those that they may name.
    """
    (main, row), *others = sorted(frontends, key=_rank)
    turns = {kind: Counter(id for id in ids if id in rows) for kind, ids in sets.items()}
    counted = turns[SetKind.CLUSTER] or turns[SetKind.LOCAL]
    # in the order of addresses, which is a service's own
    ids = sorted(set().union(*turns.values()), key=lambda id: (int(rows[id].addr), rows[id].port))
    selection = Selection(row.selection)
    shares = iter(in_lowest_terms([counted[id] for id in ids if id in counted]))
    flags = FrontendFlags(row.flags)
    backends = []
    for id in ids:
        found = rows[id]
        weight = next(shares) if id in counted and selection is not Selection.MAGLEV else 1
        backends.append(
            Backend(
                found.addr,
                found.port,
                state=BackendState(found.state),
                weight=weight,
                cluster=found.is_in(Scope.CLUSTER),
                local=found.is_in(Scope.LOCAL),
            )
        )
    service = Service(
        main.addr,
        main.port,
        Protocol(main.protocol),
        backends=backends,
        selection=selection,
        kind=FrontendKind(row.kind),
        exposed=[Exposure(FrontendKind(other.kind), key.addr, key.port) for key, other in others],
        internal_local=bool(flags & FrontendFlags.INTERNAL_LOCAL),
        external_local=bool(flags & FrontendFlags.EXTERNAL_LOCAL),
        affinity_timeout=row.affinity_timeout,
        source_ranges=sources,
    )
    return service, ids


def in_turns(shares: Iterable[tuple[int, int]]) -> list[int]:
    """Each id as often as its share says, spread evenly: round robin goes through them in this order.

    Where two have the same place, the first of ``shares`` comes first, whatever the ids are.
    """
    places = [((turn + 0.5) / turns, id) for id, turns in shares for turn in range(turns)]
    return [id for _, id in sorted(places, key=itemgetter(0))]


def in_lowest_terms(counts: list[int]) -> list[int]:
    """The same proportions in the smallest whole numbers."""
    divisor = reduce(gcd, counts, 0) or 1
    return [count // divisor for count in counts]


def _rank(frontend: tuple[FrontendKey, FrontendRow]) -> Any:
    """The main frontend first: the cluster IP, or the host port; then by address, that of loopback last."""
    key, row = frontend
    main = (FrontendKind.CLUSTER_IP, FrontendKind.HOST_PORT)
    kind = main.index(row.kind) if row.kind in main else len(main)
    return kind, key.addr.is_loopback, int(key.addr), key.port
