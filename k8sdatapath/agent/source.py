"""Where an agent's objects come from, and what it reads off them on their way to the services."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from attrs import evolve

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.component import ObjectKey
from k8sdatapath.kube.events import Batch, ObjectEvent, ObjectSource
from k8sdatapath.kube.objects import KubeNode, KubePod, KubeService
from k8sdatapath.kube.replay import Recorder, Replay
from k8sdatapath.kube.static_source import StaticSource
from k8sdatapath.kube.watch import KubeWatch
from k8sdatapath.model import IPAddress, Selection

__all__ = ["RESOURCES", "NodeSource", "open_source"]

RESOURCES = ("services", "endpointslices", "nodes", "pods")
"""What is asked of an API server. The role in ``deploy/`` allows just this."""

Pods = Mapping[str, tuple[IPAddress, ...]]


def open_source(config: AgentConfig) -> ObjectSource:
    """Where the objects of a configuration are.

    :raises SourceError: there is no such place, or it cannot be used.
    """
    source = _open(config)
    return Recorder(source, config.record) if config.record is not None else source


def _open(config: AgentConfig) -> ObjectSource:
    if config.sources:
        return StaticSource(*config.sources)
    if config.replay is not None:
        return Replay(config.replay)
    if config.kubeconfig is not None:
        return KubeWatch.from_kubeconfig(config.kubeconfig, None, RESOURCES, node=config.node_name)
    if config.api_host:  # told to the official client as the kubelet would
        os.environ["KUBERNETES_SERVICE_HOST"] = config.api_host
        os.environ["KUBERNETES_SERVICE_PORT"] = str(config.api_port or 443)
    return KubeWatch.in_cluster(RESOURCES, node=config.node_name)


class NodeSource:
    """A source as it is, but for what a node knows better than the cluster.

    The addresses of the node's devices are added to those of its Node object; if there is none, one is made
    of them, so that node ports are somewhere. Services that ask for no selection get ``selection``.

    :param name: the node's.
    :param own: the addresses of its devices.
    :param on_pods: told of the node's pods, by name, when they have changed; and whether these are all.
    """

    def __init__(
        self,
        source: ObjectSource,
        name: str,
        own: Iterable[IPAddress],
        on_pods: Callable[[Pods, bool], object],
        *,
        selection: Selection = Selection.RANDOM,
    ) -> None:
        self._source = source
        self._name = name
        self._own = tuple(own)
        self._on_pods = on_pods
        self._selection = selection
        self._pods: dict[ObjectKey, KubePod] = {}
        self._node_seen = False
        self.synced = False
        self.last_batch = time.monotonic()
        """When the source last gave a sign of life, by ``time.monotonic()``."""

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """The source's, so changed."""
        for batch in self._source.batches(timeout):
            self.last_batch = time.monotonic()
            if batch.events or batch.synced != self.synced:
                batch = self._taken(batch)
            yield batch

    def _taken(self, batch: Batch) -> Batch:
        events = [self._event(each) for each in batch.events]
        if batch.synced and not self._node_seen:
            self._node_seen = True
            made = KubeNode(self._name, addresses=self._own)
            events.append(ObjectEvent("Node", "", self._name, made, time.monotonic()))
        self._take_pods(batch)
        self.synced = batch.synced
        return Batch(tuple(events), batch.synced)

    def _event(self, event: ObjectEvent) -> ObjectEvent:
        known = event.object
        if isinstance(known, KubeNode) and known.name == self._name:
            self._node_seen = True
            addresses = tuple(dict.fromkeys((*known.addresses, *self._own)))
            return evolve(event, object=evolve(known, addresses=addresses))
        if isinstance(known, KubeService) and known.selection is Selection.RANDOM:
            return evolve(event, object=evolve(known, selection=self._selection))
        return event

    def _take_pods(self, batch: Batch) -> None:
        before = dict(self._pods)
        for event in batch.events:
            if event.kind != "Pod" or event.error is not None:
                continue
            if isinstance(event.object, KubePod) and event.object.node == self._name:
                self._pods[event.key] = event.object
            else:
                self._pods.pop(event.key, None)
        if self._pods != before or batch.synced != self.synced:
            pods = {f"{pod.namespace}/{pod.name}": pod.addresses for pod in self._pods.values()}
            self._on_pods(pods, batch.synced)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NodeSource {self._name} {self._source!r}>"
