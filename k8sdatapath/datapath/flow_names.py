"""Who is behind the addresses and numbers of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from threading import Lock
from typing import Protocol as Interface

from attrs import evolve, frozen

from k8sdatapath.model import Frontend, IPAddress, Protocol, Service, address
from k8sdatapath.model.flow import Endpoint, PolicyMatch, PolicyRef, ServiceRef, WorkloadRef
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.workload import Workload

__all__ = ["KnownNames", "Names", "Ruling"]

_RESERVED = {int(each): (f"reserved:{each.name.lower().replace('_', '-')}",) for each in Reserved}
_PROTOCOLS = frozenset(map(int, Protocol))
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
    """What a flow's numbers stand for. Asked for each flow that somebody reads, from any thread: be quick."""

    def endpoint(self, where: IPAddress, identity: int) -> Endpoint:
        """Who is at an address; the identity is what the kernel knew, or 0."""

    def namespace(self, cookie: int) -> Endpoint | None:
        """Whose a network namespace is: of a socket that has no address yet."""

    def service(self, where: IPAddress, port: int, protocol: int) -> ServiceRef | None:
        """The service that has this frontend, or the one that has this backend."""

    def domains(self, where: IPAddress, asker: IPAddress) -> tuple[str, ...]:
        """Under which names somebody has found an address."""

    def ruling(self, counter: int) -> Ruling | None:
        """What a rule's counter stands for."""

    def device(self, index: int) -> str:
        """The name of a device."""


class KnownNames:
    """Names that somebody has told, and some that are looked up.

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
        service: Callable[[Frontend], Service | None] = lambda _: None,
        ruling: Callable[[int], Ruling | None] = lambda _: None,
        device: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._cluster = cluster
        self._workload, self._service, self._ruling, self._device = workload, service, ruling, device
        self._lock = Lock()
        self._ends: dict[IPAddress, tuple[str, Endpoint]] = {}
        self._addresses: dict[str, tuple[IPAddress, ...]] = {}
        self._namespaces: dict[int, tuple[str, Endpoint]] = {}
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
            self._forget(workload.name)
            self._addresses[workload.name] = workload.addresses
            self._ends.update(dict.fromkeys(workload.addresses, (workload.name, end)))
            if netns:
                self._namespaces[netns] = (workload.name, end)

    def belongs(self, name: str, *owners: WorkloadRef) -> None:
        """What a workload belongs to, whoever tells the rest of it; without any owner this is forgotten."""
        with self._lock:
            if owners:
                self._owners[name] = owners
            else:
                self._owners.pop(name, None)
            for each in self._addresses.get(name, ()):
                if each in self._ends and self._ends[each][0] == name:
                    self._ends[each] = (name, evolve(self._ends[each][1], workloads=owners))
            for cookie, (whose, end) in self._namespaces.items():
                if whose == name:
                    self._namespaces[cookie] = (name, evolve(end, workloads=owners))

    def forget(self, *names: str) -> None:
        """These workloads are gone."""
        with self._lock:
            for name in names:
                self._forget(name)

    def vacate(self, addresses: Iterable[IPAddress]) -> None:
        """Nobody has these addresses any more."""
        with self._lock:
            for each in addresses:
                self._ends.pop(each, None)

    def resolved(self, asker: IPAddress, name: str, addresses: Iterable[IPAddress]) -> None:
        """A name server has told somebody these addresses."""
        name = name.rstrip(".").lower()
        with self._lock:
            for each in addresses:
                before = self._domains.pop((each, asker), ())
                self._domains[each, asker] = tuple(sorted({*before, name}))
            while len(self._domains) > _MOST_NAMES:
                del self._domains[next(iter(self._domains))]

    def endpoint(self, where: IPAddress, identity: int) -> Endpoint:
        """Who is at an address."""
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

    def service(self, where: IPAddress, port: int, protocol: int) -> ServiceRef | None:
        """The service that has this frontend or backend; None as well of one without a name."""
        if protocol not in _PROTOCOLS or not port:
            return None
        found = self._service(Frontend(where, port, Protocol(protocol)))
        if found is None or not found.name:
            return None
        namespace, _, name = found.name.partition(":")[0].rpartition("/")
        return ServiceRef(name, namespace)

    def domains(self, where: IPAddress, asker: IPAddress) -> tuple[str, ...]:
        """Under which names somebody has found an address."""
        return self._domains.get((where, asker), ())

    def ruling(self, counter: int) -> Ruling | None:
        """What a rule's counter stands for."""
        return self._ruling(counter)

    def device(self, index: int) -> str:
        """The name of a device."""
        return self._device(index)

    def _forget(self, name: str) -> None:
        for each in self._addresses.pop(name, ()):
            if each in self._ends and self._ends[each][0] == name:
                del self._ends[each]
        self._namespaces = {cookie: each for cookie, each in self._namespaces.items() if each[0] != name}


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
