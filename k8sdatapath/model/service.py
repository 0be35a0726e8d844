"""A service: what clients dial, and who answers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import Any, NoReturn, Self

from attrs import field, fields, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, IPNetwork, is_special, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.address import network as to_network
from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.backend import Backend, BackendState, Scope
from k8sdatapath.model.enums import flag, member
from k8sdatapath.model.frontend import Exposure, Frontend, FrontendKind, Protocol, to_kind, to_protocol

__all__ = ["MAX_AFFINITY", "Selection", "Service"]

_key, _role, _address = attrgetter("key"), attrgetter("role"), attrgetter("address")

MAX_AFFINITY = 86400
"""The longest timeout of affinity, in seconds: a day, as in Kubernetes."""


class Selection(IntEnum):
    """How a new flow is given a backend."""

    RANDOM = 0
    """Any of them, each as likely."""
    MAGLEV = 1
    """The one that a hash of the flow names: the same on every node, and for most flows after a change."""
    ROUND_ROBIN = 2
    """One after the other, for each frontend of a node on its own."""


def to_selection(value: Selection | str | int) -> Selection:
    """Make a selection of its name (``"maglev"``) or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is Selection else member(Selection, value, "selection")


def _to_name(value: str) -> str:
    if isinstance(value, str):
        return value
    raise ModelError(f"{shown(value)} is not a name")


def _to_timeout(value: int) -> int:
    if type(value) is int and 0 <= value <= MAX_AFFINITY:
        return value
    raise ModelError(f"{shown(value)} is not a timeout of affinity (0 to {MAX_AFFINITY} seconds)")


def _to_backends(backends: Iterable[Backend]) -> tuple[Backend, ...]:
    """Sort them: a service has a set of backends, so order must not make two services differ."""
    if isinstance(backends, Backend):
        raise ModelError("backends is an iterable of Backend; this is a single one")
    given = list(backends)
    if set(map(type, given)) - {Backend}:
        strange = next(each for each in given if type(each) is not Backend)
        raise ModelError(f"{shown(strange)} is not a Backend")
    given.sort(key=_key)
    if len(set(map(_key, given))) < len(given):
        twice = next(one for one, other in pairwise(given) if one.key == other.key)
        raise ModelError(f"backend {twice} is given twice")
    return tuple(given)


def _to_exposed(exposed: Iterable[Exposure]) -> tuple[Exposure, ...]:
    """Sort them, as backends."""
    if exposed == ():
        return ()
    if isinstance(exposed, Exposure):
        raise ModelError("exposed is an iterable of Exposure; this is a single one")
    found = tuple(exposed)
    for each in found:
        if type(each) is not Exposure:
            raise ModelError(f"{shown(each)} is not an Exposure")
    return tuple(sorted(found, key=lambda each: (each.kind, int(each.address), each.port)))


def _to_ranges(ranges: Iterable[Any]) -> tuple[IPNetwork, ...]:
    """Sort them, as backends; twice the same is once."""
    if ranges == ():
        return ()
    if isinstance(ranges, str):
        raise ModelError(f"source_ranges is an iterable of networks; {shown(ranges)} is a single one")
    found = {to_network(each) for each in ranges}
    return tuple(sorted(found, key=lambda each: (int(each.network_address), each.prefixlen)))


def _may_be_at(kind: FrontendKind, ip: IPAddress) -> bool:
    """Whether a special address can be dialled: ports of the node are at its own, at loopback as well."""
    own = kind in (FrontendKind.NODE_PORT, FrontendKind.HOST_PORT)
    return own and not (ip.is_unspecified or ip.is_multicast)


@frozen
class Service:
    """One port of one Kubernetes Service in one address family: its frontends and the backends behind them.

    ::

        Service("10.96.0.10", 80, backends=[Backend("10.244.1.2", 8080)])
        Service("fd00:10:96::a", 53, "UDP", backends=dns, name="kube-system/dns:dns", selection="maglev")
        Service("10.96.0.10", 80, exposed=[Exposure("node_port", "192.0.2.11", 30080)], external_local=True)

    :param backends: a set, kept in the order of their addresses. None is allowed: connections are refused.
    :param name: for people, ``namespace/name:port`` of Kubernetes; those that differ in it alone are equal.
    :param kind: of the main frontend, the one of ``address`` and ``port``.
    :param exposed: where else it can be dialled, a set like the backends.
    :param internal_local: its cluster IP leads to the backends of ``Scope.LOCAL`` only.
    :param external_local: all other frontends do, for traffic that comes from outside of the node.
    :param affinity_timeout: a client is given the same backend again until it has opened no connection for so
        many seconds. 0: each connection may get another one.
    :param source_ranges: who may use its load balancer addresses. None given: everybody.
    :raises ModelError: a value that cannot be, a backend or frontend given twice, anything that is of the
        other address family, another port behind a frontend of SCTP, or an address that no service can have:
        unspecified, multicast, and loopback or link-local but for ports of the node.
    """

    address: IPAddress = field(converter=to_address)
    port: int = field(converter=to_port)
    protocol: Protocol = field(default=Protocol.TCP, converter=to_protocol)
    backends: tuple[Backend, ...] = field(default=(), converter=_to_backends, kw_only=True)
    name: str = field(default="", converter=_to_name, kw_only=True, eq=False)
    selection: Selection = field(default=Selection.RANDOM, converter=to_selection, kw_only=True)
    kind: FrontendKind = field(default=FrontendKind.CLUSTER_IP, converter=to_kind, kw_only=True)
    exposed: tuple[Exposure, ...] = field(default=(), converter=_to_exposed, kw_only=True)
    internal_local: bool = field(default=False, converter=flag, kw_only=True)
    external_local: bool = field(default=False, converter=flag, kw_only=True)
    affinity_timeout: int = field(default=0, converter=_to_timeout, kw_only=True)
    source_ranges: tuple[IPNetwork, ...] = field(default=(), converter=_to_ranges, kw_only=True)

    def __attrs_post_init__(self) -> None:
        family = type(self.address)
        self._check_backends(self.backends)
        if self.exposed:
            places = {(int(self.address), self.port)}
            for count, each in enumerate(self.exposed, 2):
                if type(each.address) is not family:
                    self._strange(f"exposure {each}", each.address.version)
                places.add((int(each.address), each.port))
                if len(places) < count:
                    raise ModelError(f"exposure {each} is given twice, or is the frontend of the service")
        for source in self.source_ranges:
            if source.version != self.address.version:
                self._strange(f"source range {source}", source.version)
        for kind, frontend in zip(self.kinds, self.frontends, strict=True):
            if is_special(frontend.address) and not _may_be_at(kind, frontend.address):
                reason = "unspecified, loopback, link-local or multicast, which no service can have"
                raise ModelError(f"{frontend} ({kind.name}) is {reason}")

    def _check_backends(self, backends: tuple[Backend, ...]) -> None:
        family = type(self.address)
        if set(map(type, map(_address, backends))) - {family}:
            backend = next(each for each in backends if type(each.address) is not family)
            self._strange(f"backend {backend}", backend.address.version)
        for frontend in self.frontends if self.protocol is Protocol.SCTP else ():
            for backend in backends:
                if frontend.port != backend.port:
                    reason = "SCTP keeps its port, which its checksum covers; give both the same"
                    raise ModelError(f"{frontend} cannot lead to {backend}: {reason}")

    def _strange(self, what: str, version: int) -> NoReturn:
        raise ModelError(f"{what} is IPv{version}, its service {self.frontend} IPv{self.address.version}")

    @cached_property
    def frontend(self) -> Frontend:
        """The main one: what clients in the cluster dial."""
        return Frontend(self.address, self.port, self.protocol)

    @cached_property
    def frontends(self) -> tuple[Frontend, ...]:
        """All that clients can dial: the main one, then the exposed."""
        rest = (Frontend(each.address, each.port, self.protocol) for each in self.exposed)
        return (self.frontend, *rest)

    @property
    def kinds(self) -> tuple[FrontendKind, ...]:
        """Those of its frontends, in the same order."""
        return (self.kind, *(each.kind for each in self.exposed))

    @property
    def candidates(self) -> tuple[Backend, ...]:
        """The backends that new flows may be given, those of ``Scope.CLUSTER``."""
        return self.candidates_in(Scope.CLUSTER)

    def candidates_in(self, scope: Scope) -> tuple[Backend, ...]:
        """The backends of a set that new flows may be given: the active, or if none is, the terminating.

        Those of weight 0 are never among them.
        """
        if self.alike:
            first = self.backends[0] if self.backends else _NOBODY
            in_scope = first.local if scope is Scope.LOCAL else first.cluster
            return self.backends if in_scope and first.weight else ()
        if scope is Scope.LOCAL:
            able = [backend for backend in self.backends if backend.local and backend.weight]
        else:
            able = [backend for backend in self.backends if backend.cluster and backend.weight]
        active = [backend for backend in able if backend.state is BackendState.ACTIVE]
        return tuple(active or able)

    @cached_property
    def alike(self) -> bool:
        """Whether all backends have one role: then new flows may be given each of them, or none."""
        return len(set(map(_role, self.backends))) <= 1

    def place_of(self, key: int) -> int | None:
        """Where the backend of an address and port is among the backends, by its key."""
        place = bisect_left(self.backends, key, key=_key)
        return place if place < len(self.backends) and self.backends[place].key == key else None

    def with_backends(self, backends: Iterable[Backend]) -> Self:
        """The same service with others behind it.

        :raises ModelError: these backends cannot be.
        """
        made = self._copy(_to_backends(backends))
        made._check_backends(made.backends)
        return made

    def exchange(self, gone: Iterable[int], come: Iterable[Backend]) -> Self:
        """The same service without some backends and with others, at the cost of these: the rest get no look.

        :param gone: their keys.
        :raises ModelError: one that goes is not there, or one that comes is, or cannot be.
        """
        backends, new = list(self.backends), tuple(come)
        for key in gone:
            place = bisect_left(backends, key, key=_key)
            if place == len(backends) or backends[place].key != key:
                raise ModelError(f"{self} has no backend of the key {key}")
            del backends[place]
        for each in new:
            if type(each) is not Backend:
                raise ModelError(f"{shown(each)} is not a Backend")
            place = bisect_left(backends, each.key, key=_key)
            if place < len(backends) and backends[place].key == each.key:
                raise ModelError(f"backend {each} is given twice")
            backends.insert(place, each)
        made = self._copy(tuple(backends))
        made._check_backends(new)
        if self.backends and self.alike and set(map(_role, new)) <= {self.backends[0].role}:
            object.__setattr__(made, "alike", True)
        return made

    def _copy(self, backends: tuple[Backend, ...]) -> Self:
        made = object.__new__(type(self))
        for name, value in zip(_REST, _rest(self), strict=True):
            object.__setattr__(made, name, value)
        object.__setattr__(made, "backends", backends)
        return made

    def __str__(self) -> str:
        return f"{self.name} ({self.frontend})" if self.name else str(self.frontend)


_NOBODY = Backend("0.0.0.0", 1, weight=0)
_REST = (*(each.name for each in fields(Service) if each.name != "backends"), "frontend", "frontends")
_rest = attrgetter(*_REST)
