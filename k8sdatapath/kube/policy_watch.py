"""An API server as a source of policies, of the kinds that it has."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from k8sdatapath.errors import ClosedError
from k8sdatapath.kube.events import Batch
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.policy.translator import policy_resources
from k8sdatapath.kube.resources import Resource
from k8sdatapath.kube.watch import KubeWatch
from k8sdatapath.kube.wire import GarbledError, parse
from k8sdatapath.resource import Resource as Closing

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["PolicyWatch"]

_log = logging.getLogger(__name__)
_RETRY = 1.0
_CILIUM, _TIERS = "/apis/cilium.io/v2", "/apis/policy.networking.k8s.io/v1alpha2"


class PolicyWatch(Closing):
    """What a :class:`PolicyTranslator` has to know of a cluster, for ``batches()`` as of a ``KubeWatch``.

    NetworkPolicies are watched, and Cilium's kinds and ClusterNetworkPolicies if the server has them when it
    is asked first. Kinds that it gets later are followed after a new start.

    :param client: of the official library, configured for the server.
    :param templates: what makes pods is watched too, so that it is known who they are going to be.
    :param patience: how long is waited for what.
    """

    def __init__(
        self, client: ApiClient, *, templates: bool = False, patience: Patience | None = None
    ) -> None:
        from k8sdatapath.kube.connection import ApiServer

        self._client, self._patience = client, patience or Patience()
        self._templates = templates
        self._server = ApiServer(client, self._patience)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.watch: KubeWatch | None = None
        """What is watched; None: it is not known yet what there is."""

    def __repr__(self) -> str:
        return f"<PolicyWatch {self.watch or self._client.configuration.host}>"

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """What there is, then what changes, until :meth:`close`."""
        while (found := self._resources()) is None:
            yield Batch((), False)
            if self._over.wait(_RETRY):
                return
        with self._lock:
            if self._over.is_set():
                return
            self.watch = KubeWatch(self._client, found, patience=self._patience)
        try:
            yield from self.watch.batches(timeout)
        except ClosedError:  # between the two lines above
            return

    def close(self) -> None:
        """End whatever is waited for, and the iteration; from any thread, more than once."""
        with self._lock:
            self._over.set()
            self._server.close()
        if self.watch is not None:
            self.watch.close()

    def _resources(self) -> tuple[Resource, ...] | None:
        """None: the server does not say now."""
        from k8sdatapath.kube.connection import RefusedError, UnreachableError

        try:
            there = {each for path in (_CILIUM, _TIERS) for each in self._plurals(path)}
        except (UnreachableError, RefusedError, GarbledError) as error:
            if not self._over.is_set():
                _log.info("the kinds of policies are not known yet: %s", error)
            return None
        asked = policy_resources(cilium=True, tiers=True, templates=self._templates)
        own = {each.plural for each in policy_resources(templates=self._templates)}
        cilium = any(plural.startswith("cilium") for plural in there)
        return tuple(
            each
            for each in asked
            if each.plural in own | there or (cilium and each.plural in ("services", "endpointslices"))
        )

    def _plurals(self, path: str) -> set[str]:
        """Of the kinds that there are in a group."""
        from k8sdatapath.kube.connection import RefusedError

        try:
            with self._server.get(path, {}) as answer:
                listed = parse(answer.body()).get("resources") or ()
        except RefusedError as error:
            if error.notice.code != 404:
                raise
            return set()
        return {str(each.get("name")) for each in listed if isinstance(each, dict)}
