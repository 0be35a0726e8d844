"""An agent's part that has sockets of its node skip the stack: which services, namespaces and networks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping

from k8sdatapath.errors import DatapathError
from k8sdatapath.model import Accelerated, IPAddress, IPNetwork
from k8sdatapath.node import Node

__all__ = ["AcceleratedServices"]

_log = logging.getLogger(__name__)


class AcceleratedServices:
    """Keeps what is accelerated as a configuration has it, as services and pods come and go.

    :param services: as ``namespace/name``.
    :param namespaces: all their services, and their pods on this node.
    """

    def __init__(
        self,
        node: Node,
        *,
        services: Iterable[str] = (),
        namespaces: Iterable[str] = (),
        networks: Iterable[IPNetwork] = (),
    ) -> None:
        self._node = node
        self._services = frozenset(services)
        self._namespaces = frozenset(namespaces)
        self._networks = frozenset(map(Accelerated, networks))
        self._pods: frozenset[Accelerated] = frozenset()
        self._lock = threading.Lock()
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why it is not as it should be; empty if it is."""
        return self._problem

    def follow_pods(self, pods: Mapping[str, Iterable[IPAddress]]) -> None:
        """These are the pods of the node, by ``namespace/name``."""
        self._pods = frozenset(
            Accelerated(address)
            for name, addresses in pods.items()
            if name.partition("/")[0] in self._namespaces
            for address in addresses
        )
        self.update()

    def update(self, _change: object = None) -> None:
        """Services may have changed."""
        accelerator = self._node.accelerator
        if accelerator is None:
            return
        with self._lock:
            try:
                plan = accelerator.plan({*self._networks, *self._pods, *self._wanted()})
                if not plan.empty:
                    _log.info("accelerated services: %s", plan.apply())
                self._problem = ""
            except DatapathError as error:
                self._problem = str(error)
                _log.error("what is accelerated stays as it was: %s", error)

    def _wanted(self) -> Iterator[Accelerated]:
        if not self._services and not self._namespaces:
            return
        for service in self._node.services:
            name = service.name.partition(":")[0]
            if name in self._services or name.partition("/")[0] in self._namespaces:
                yield from Accelerated.of(service)
