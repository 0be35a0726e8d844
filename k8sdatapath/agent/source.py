"""Where an agent's objects come from, and what it reads off them on their way to the services."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

from attrs import define, evolve

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.component import ObjectKey
from k8sdatapath.kube.events import Batch, ObjectEvent, ObjectSource
from k8sdatapath.kube.objects import KubeNode, KubePod, KubeService
from k8sdatapath.kube.replay import Recorder, Replay
from k8sdatapath.kube.static_source import StaticSource
from k8sdatapath.kube.watch import KubeWatch
from k8sdatapath.model import IPAddress, Selection

__all__ = ["RESOURCES", "Listener", "NodeSource", "open_source"]

RESOURCES = ("services", "endpointslices", "nodes", "pods")
"""What is asked of an API server. The role in ``deploy/`` allows just this."""

_LOOK = 1.0
"""Seconds between looks at the node's addresses."""

Pods = Mapping[str, tuple[IPAddress, ...]]
Nodes = tuple[KubeNode, ...]


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


@define(kw_only=True)
class Listener:
    """Who is told what a node's source has read.

    :ivar pods: of the node, by name; and whether these are all.
    :ivar nodes: all nodes of the cluster; only when all are known.
    :ivar addresses: that the node's own have changed. Returns those that clients may dial.
    """

    pods: Callable[[Pods, bool], object]
    nodes: Callable[[Nodes], object]
    addresses: Callable[[], tuple[IPAddress, ...]]


class NodeSource:
    """A source as it is, but for what a node knows better than the cluster.

    The addresses of the node's devices are added to those of its Node object, also when they change; if there
    is no such object, one is made, so that node ports are somewhere. Services that ask for no selection get
    ``selection``.

    :param name: the node's.
    """

    def __init__(
        self, source: ObjectSource, name: str, listener: Listener, selection: Selection = Selection.RANDOM
    ) -> None:
        self._source = source
        self._name = name
        self._listener = listener
        self._selection = selection
        self._own: tuple[IPAddress, ...] = ()
        self._looked = 0.0
        self._pods: dict[ObjectKey, KubePod] = {}
        self._nodes: dict[ObjectKey, KubeNode] = {}
        self._synced = False

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """The source's, so changed."""
        for batch in self._source.batches(timeout):
            now = time.monotonic()
            moved = now - self._looked >= _LOOK and self._look(now)
            if moved or batch.events or batch.synced != self._synced:
                batch = self._taken(batch, moved, now)
            yield batch

    def _look(self, now: float) -> bool:
        """Whether the node's addresses have changed."""
        before, self._looked = self._own, now
        self._own = self._listener.addresses()
        return self._own != before

    def _taken(self, batch: Batch, moved: bool, now: float) -> Batch:
        nodes, pods = dict(self._nodes), dict(self._pods)
        events = []
        own = "Node", "", self._name
        for event in batch.events:
            self._note(event)
            if event.key != own:
                events.append(self._selected(event))
        first = batch.synced and not self._synced
        if moved or first or self._nodes.get(own) != nodes.get(own):
            known = self._nodes.get(own, KubeNode(self._name))
            addresses = tuple(dict.fromkeys((*known.addresses, *self._own)))
            if batch.synced or own in self._nodes:
                events.append(ObjectEvent(*own, evolve(known, addresses=addresses), now))
        if first or self._pods != pods:
            named = {f"{pod.namespace}/{pod.name}": pod.addresses for pod in self._pods.values()}
            self._listener.pods(named, batch.synced)
        if batch.synced and (first or self._nodes != nodes):
            self._listener.nodes(tuple(self._nodes.values()))
        self._synced = batch.synced
        return Batch(tuple(events), batch.synced)

    def _note(self, event: ObjectEvent) -> None:
        """Remember pods of this node, and nodes; one that cannot be read is as it was."""
        if event.error is not None:
            return
        known = event.object
        self._pods.pop(event.key, None)
        self._nodes.pop(event.key, None)
        if isinstance(known, KubePod) and known.node == self._name:
            self._pods[event.key] = known
        elif isinstance(known, KubeNode):
            self._nodes[event.key] = known

    def _selected(self, event: ObjectEvent) -> ObjectEvent:
        known = event.object
        if isinstance(known, KubeService) and known.selection is Selection.RANDOM:
            return evolve(event, object=evolve(known, selection=self._selection))
        return event

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
