"""Who is behind the addresses and numbers of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from threading import Lock
from typing import Protocol as Interface

from attrs import evolve, frozen

from k8sdatapath.datapath.formerly import Formerly
from k8sdatapath.model import Frontend, IPAddress, Protocol, Service, address
from k8sdatapath.model.flow_ends import Endpoint, PolicyRef, ServiceRef, WorkloadRef
from k8sdatapath.model.flow_enums import PolicyMatch
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.workload import Workload

__all__ = ["KnownNames", "Names", "Ruling"]

_RESERVED = {int(each): (f"reserved:{each.name.lower().replace('_', '-')}",) for each in Reserved}
_PROTOCOLS = frozenset(map(int, Protocol))
_MOST_NAMESPACES = 16384
"""Whose cookies are remembered, which are never given twice; who has gone first is forgotten first."""
_MOST_NAMES = 100_000
"""Domain names that are remembered; those asked for the longest ago are forgotten."""


@frozen
class Ruling:
    """Why a policy let a packet pass, or did not.

    :ivar policies: those whose rules say so, or that isolate the pod.
    :ivar rule: whether a rule says so; else it is what becomes of whatever no rule allows.
    :ivar match: what the rule asks for.
    """

    policies: tuple[PolicyRef, ...]
    rule: bool
    match: PolicyMatch = PolicyMatch.NONE


class Names(Interface):
    """What a flow's numbers stand for. Asked for each flow that somebody reads, from any thread: be quick.

    A flow is of the past. ``at`` is when it was seen, in nanoseconds of CLOCK_MONOTONIC; None is now.
    """

    def endpoint(self, where: IPAddress, identity: int, at: int | None = None) -> Endpoint:
        """Who was at an address; the identity is what the kernel knew, or 0."""

    def namespace(self, cookie: int) -> Endpoint | None:
        """Whose a network namespace is: of a socket that has no address yet."""

    def addresses(self, cookie: int) -> tuple[IPAddress, ...]:
        """Which addresses there are in a network namespace."""

    def service(self, where: IPAddress, port: int, protocol: int, at: int | None = None) -> ServiceRef | None:
        """The service that had this frontend, or the one that has this backend."""

    def domains(self, where: IPAddress, asker: IPAddress) -> tuple[str, ...]:
        """Under which names somebody has found an address."""

    def ruling(self, counter: int, at: int | None = None) -> Ruling | None:
        """What a rule's counter stood for."""

    def device(self, index: int) -> str:
        """The name of a device."""


class KnownNames:
    """Names that somebody has told, and some that are looked up.

    Who has left is remembered for flows that were seen before: of 16,384 addresses and as many namespaces.

    :param cluster: the name of this one.
    :param workload: finds out whose an address is, with its identity, of whom it was told nothing.
    :param service: finds the service of a frontend; or of a backend: where sockets are balanced, no packet
        shows what was dialled.
    :param ruling: says what a rule's counter stands for.
    :param device: says the name of a device by its number.
    """

    def __init__(
        self,
        *,
        cluster: str = "default",
        workload: Callable[[IPAddress], tuple[Workload, int] | None] = lambda _: None,
        service: Callable[[Frontend, int | None], Service | None] = lambda _, __: None,
        ruling: Callable[[int, int | None], Ruling | None] = lambda _, __: None,
        device: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._cluster = cluster
        self._workload, self._service, self._ruling, self._device = workload, service, ruling, device
        self._lock = Lock()
        self._ends: dict[IPAddress, tuple[str, Endpoint]] = {}
        self._addresses: dict[str, tuple[IPAddress, ...]] = {}
        self._former: Formerly[IPAddress, Endpoint] = Formerly()
        self._namespaces: dict[int, tuple[str, Endpoint, tuple[IPAddress, ...]]] = {}
        self._owners: dict[str, tuple[WorkloadRef, ...]] = {}
        self._domains: dict[tuple[IPAddress, IPAddress], tuple[str, ...]] = {}

    def learn(
        self,
        workload: Workload,
        identity: int = 0,
        *,
        owners: Iterable[WorkloadRef] = (),
        number: int = 0,
        netns: int = 0,
    ) -> None:
        """Somebody has addresses now, and none but these.

        :param owners: the Deployment or the like that it belongs to; without any, what :meth:`belongs` told.
        :param number: the one it goes by on this node.
        :param netns: the cookie of its network namespace.
        """
        plain = _endpoint(workload, identity, self._cluster)
        with self._lock:
            end = evolve(plain, id=number, workloads=tuple(owners) or self._owners.get(workload.name, ()))
            for each in self._addresses.get(workload.name, ()):
                if each not in workload.addresses:
                    self._leave(each, workload.name)
            for each in workload.addresses:
                if each in self._ends and not _same(self._ends[each][1], end):
                    self._leave(each)
            self._addresses[workload.name] = workload.addresses
            self._ends.update(dict.fromkeys(workload.addresses, (workload.name, end)))
            if netns:
                self._namespaces[netns] = (workload.name, end, workload.addresses)
                if len(self._namespaces) > _MOST_NAMESPACES:
                    del self._namespaces[self._spare_namespace()]

    def belongs(self, name: str, *owners: WorkloadRef) -> None:
        """What a workload belongs to, whoever tells the rest of it; without any owner this is forgotten."""
        with self._lock:
            if owners:
                self._owners[name] = owners
            else:
                self._owners.pop(name, None)
            for each in self._addresses.get(name, ()):
                whose, end = self._ends.get(each, ("", None))
                if end is not None and whose == name and end.workloads != owners:
                    if end.workloads:
                        self._former.left(each, end)
                    self._ends[each] = (name, evolve(end, workloads=owners))
            for cookie, (whose, end, addresses) in self._namespaces.items():
                if whose == name and owners:
                    self._namespaces[cookie] = (name, evolve(end, workloads=owners), addresses)

    def forget(self, *names: str) -> None:
        """These workloads are gone."""
        with self._lock:
            for name in names:
                for each in self._addresses.pop(name, ()):
                    self._leave(each, name)

    def left(self, workload: Workload, *owners: WorkloadRef) -> None:
        """Somebody has these addresses no more who was not told here, but is found out.

        :param owners: what it belongs to.
        """
        end = _endpoint(workload, 0, self._cluster, owners)
        with self._lock:
            for each in workload.addresses:
                last = self._former.last(each)
                if each not in self._ends and not (last is not None and _same(end, last)):
                    self._former.left(each, end)

    def vacate(self, addresses: Iterable[IPAddress]) -> None:
        """Nobody has these addresses any more."""
        with self._lock:
            for each in addresses:
                self._leave(each)

    def resolved(self, asker: IPAddress, name: str, addresses: Iterable[IPAddress]) -> None:
        """A name server has told somebody these addresses."""
        name = name.rstrip(".").lower()
        with self._lock:
            for each in addresses:
                before = self._domains.pop((each, asker), ())
                self._domains[each, asker] = tuple(sorted({*before, name}))
            while len(self._domains) > _MOST_NAMES:
                del self._domains[next(iter(self._domains))]

    def endpoint(self, where: IPAddress, identity: int, at: int | None = None) -> Endpoint:
        """Who was at an address."""
        former = self._former.at(where, at)
        if former is not None:
            return former if former.identity else evolve(former, identity=identity)
        known = self._ends.get(where)
        if known is not None:
            return known[1]
        found = self._workload(where)
        if found is not None:
            return _endpoint(*found, self._cluster, self._owners.get(found[0].name, ()))
        identity = identity or Reserved.WORLD
        return Endpoint(identity=identity, labels=_RESERVED.get(identity, ()), cluster_name=self._cluster)

    def namespace(self, cookie: int) -> Endpoint | None:
        """Whose a network namespace is."""
        found = self._namespaces.get(cookie)
        return None if found is None else found[1]

    def addresses(self, cookie: int) -> tuple[IPAddress, ...]:
        """Which addresses there are in a network namespace, or were."""
        found = self._namespaces.get(cookie)
        return () if found is None else found[2]

    def service(self, where: IPAddress, port: int, protocol: int, at: int | None = None) -> ServiceRef | None:
        """The service that had this frontend, or has this backend; None as well of one without a name."""
        if protocol not in _PROTOCOLS or not port:
            return None
        found = self._service(Frontend(where, port, Protocol(protocol)), at)
        if found is None or not found.name:
            return None
        namespace, _, name = found.name.partition(":")[0].rpartition("/")
        return ServiceRef(name, namespace)

    def domains(self, where: IPAddress, asker: IPAddress) -> tuple[str, ...]:
        """Under which names somebody has found an address."""
        return self._domains.get((where, asker), ())

    def ruling(self, counter: int, at: int | None = None) -> Ruling | None:
        """What a rule's counter stood for."""
        return self._ruling(counter, at)

    def device(self, index: int) -> str:
        """The name of a device."""
        return self._device(index)

    def _leave(self, where: IPAddress, name: str = "") -> None:
        """Whoever has an address, or this one, has it no more."""
        whose, end = self._ends.get(where, ("", None))
        if end is not None and name in ("", whose):
            del self._ends[where]
            self._former.left(where, end)
            if stay := tuple(each for each in self._addresses.get(whose, ()) if each != where):
                self._addresses[whose] = stay
            else:
                self._addresses.pop(whose, None)

    def _spare_namespace(self) -> int:
        """That of somebody who has no address any more, of the longest ago; or the first of all."""
        gone = (cookie for cookie, (name, *_) in self._namespaces.items() if name not in self._addresses)
        return next(gone, next(iter(self._namespaces)))


def _same(one: Endpoint, other: Endpoint) -> bool:
    """Whether somebody is who was there, maybe with more that is known of it."""
    who = (one.namespace, one.pod_name, one.labels)
    known = one.identity in (0, other.identity)
    return known and who == (other.namespace, other.pod_name, other.labels)


@lru_cache(maxsize=4096)
def _endpoint(
    workload: Workload, identity: int, cluster: str, owners: tuple[WorkloadRef, ...] = ()
) -> Endpoint:
    namespace, _, name = workload.name.rpartition("/") if workload.is_pod else ("", "", "")
    return Endpoint(
        identity=identity,
        namespace=namespace,
        labels=tuple(sorted(each.removesuffix("=") for each in workload.labels)),
        pod_name=name,
        workloads=owners,
        cluster_name=cluster,
    )


def policy_ref(name: str) -> PolicyRef:
    """A policy by what it is called here: ``kind namespace/name``."""
    kind, _, rest = name.rpartition(" ")
    namespace, _, short = rest.rpartition("/")
    return PolicyRef(name=short, namespace=namespace, kind=kind)


NOWHERE = address("::")
