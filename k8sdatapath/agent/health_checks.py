"""What an agent answers load balancers that ask whether its node serves a Service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from k8sdatapath.kube.health import HealthServer
from k8sdatapath.kube.translate import HealthCheck
from k8sdatapath.model import IPAddress
from k8sdatapath.resource import Resource

__all__ = ["HealthAnswers"]

_log = logging.getLogger("k8sdatapath.agent.agent")


class HealthAnswers(Resource):
    """Answers at the addresses of a node, which come and go.

    :param healthy: whether the node works at all.
    """

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._server: HealthServer | None = None
        self._unheard: frozenset[tuple[IPAddress, int]] = frozenset()

    def update(self, addresses: tuple[IPAddress, ...], checks: Iterable[HealthCheck]) -> None:
        """Answer by these from now on."""
        if self._server is None or self._server.addresses != addresses:
            self.close()
            self._server = HealthServer(addresses, healthy=self._healthy)
        self._server.update(checks)

    def retry(self) -> None:
        """Listen at ports that somebody else had, and tell of those that somebody has."""
        failed = self._server.retry() if self._server is not None else {}
        for (address, port), error in failed.items():
            if (address, port) not in self._unheard:
                _log.warning("health checks at %s port %s cannot be answered yet: %s", address, port, error)
        self._unheard = frozenset(failed)

    def close(self) -> None:
        """Answer nothing any more."""
        if self._server is not None:
            self._server.close()
