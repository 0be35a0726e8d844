"""The observer of a node's flows, and where it has its names from."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from k8sdatapath.datapath.flow_names import KnownNames, Ruling
from k8sdatapath.model import Frontend, IPAddress, Service
from k8sdatapath.model.workload import Workload
from k8sdatapath.objects import Object
from k8sdatapath.programs.base import in_netns

if TYPE_CHECKING:
    from k8sdatapath.datapath.flow_observer import FlowObserver
    from k8sdatapath.node.node import Node

__all__ = ["NodeNames", "observe"]

_STALE = 5.0
"""Seconds after which it is looked again which services have which backends, if somebody asks."""


class NodeNames(KnownNames):
    """The names that a node knows: its services, policies and devices, and the pods that it was told of."""

    def __init__(self, node: Node) -> None:
        super().__init__(workload=self._whose, service=self._served, ruling=self._ruled, device=self._called)
        self._node = node
        self._devices: dict[int, str] = {}
        self._backed: dict[Frontend, Service | None] = {}
        self._backed_at = -_STALE

    def _whose(self, address: IPAddress) -> tuple[Workload, int] | None:
        policy = self._node.policy
        return None if policy is None else policy.whose(address)

    def _served(self, frontend: Frontend, at: int | None) -> Service | None:
        services = self._node.services
        former = services.formerly(frontend, at) if at is not None else None
        if former is not None:
            return former
        if frontend in services:
            return services.get(frontend)
        now = time.monotonic()
        if now - self._backed_at > _STALE:
            self._backed, self._backed_at = _backed(services.dump()), now
        return self._backed.get(frontend)

    def _ruled(self, counter: int, at: int | None) -> Ruling | None:
        policy = self._node.policy
        return None if policy is None else policy.ruling(counter, at)

    def _called(self, index: int) -> str:
        if index not in self._devices:
            self._devices = in_netns(self._node.config.netns, lambda: dict(socket.if_nameindex()))
            self._devices.setdefault(index, "")
        return self._devices[index]


def _backed(services: Iterable[Service]) -> dict[Frontend, Service | None]:
    """The service of each backend; None of one that several have."""
    found: dict[Frontend, Service | None] = {}
    for service in services:
        for backend in service.backends:
            place = Frontend(backend.address, backend.port, service.protocol)
            found[place] = None if found.get(place, service) is not service else service
    return found


def observe(node: Node, pod: Object) -> FlowObserver:
    """The observer of a node whose programs tell events."""
    from k8sdatapath.datapath.flow_observer import FlowObserver  # large, and others have none

    name = f"default/{node.config.name}"
    observer = FlowObserver.bind(pod, names=node.names, node=name, capacity=node.config.flows_kept)
    try:
        observer.watch(node.config.flows or "off")
        if node.l7 is not None:
            observer.listen(node.l7)
    except BaseException:
        observer.close()
        raise
    return observer
