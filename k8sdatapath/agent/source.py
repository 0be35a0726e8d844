"""Where an agent's objects come from, and what it reads off them on their way to the services."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import define, evolve

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.component import ObjectKey
from k8sdatapath.kube.events import Batch, ObjectEvent, ObjectSource
from k8sdatapath.kube.objects import EndpointSlice, KubeNode, KubePod, KubeService
from k8sdatapath.kube.replay import Recorder, Replay
from k8sdatapath.kube.static_source import StaticSource
from k8sdatapath.kube.watch import KubeWatch
from k8sdatapath.model import IPAddress, Selection
from k8sdatapath.resource import Resource

__all__ = ["RESOURCES", "Listener", "NodeSource", "open_source"]

RESOURCES = ("services", "endpointslices", "nodes", "pods")
"""What is asked of an API server. The role in ``deploy/`` allows just this."""

_LOOK = 1.0
"""Seconds between looks at the node's addresses."""

Pods = Mapping[str, tuple[IPAddress, ...]]
Workloads = tuple[KubePod, ...]
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
    :ivar workloads: of the node's pods those with an object; only when all are known, and before ``nodes``.
    :ivar everybody: all pods with an object that the source tells of, whatever their node; as ``workloads``.
    :ivar nodes: all nodes of the cluster; only when all are known.
    :ivar addresses: that the node's own have changed. Returns those that clients may dial.
    """

    pods: Callable[[Pods, bool], object]
    workloads: Callable[[Workloads], object]
    everybody: Callable[[Workloads], object]
    nodes: Callable[[Nodes], object]
    addresses: Callable[[], tuple[IPAddress, ...]]


class NodeSource(Resource):
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
        self._key: ObjectKey = ("Node", "", name)
        self._pods: dict[ObjectKey, KubePod] = {}
        self._elsewhere: dict[ObjectKey, KubePod] = {}
        self._slices: dict[ObjectKey, frozenset[IPAddress]] = {}
        self._nodes: dict[ObjectKey, KubeNode] = {}
        self._news: set[ObjectKey] = set()
        """What of these the last batch has changed."""
        self._synced = False
        self._again = False

    def tell_again(self) -> None:
        """Tell of the node and of all nodes anew, from any thread: something else is to be made of them."""
        self._again = True

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """The source's, so changed."""
        for batch in self._source.batches(timeout):
            now = time.monotonic()
            again, self._again = self._again, False
            moved = (again or now - self._looked >= _LOOK) and (self._look(now) or again)
            if moved or batch.events or batch.synced != self._synced:
                batch = self._taken(batch, moved, now)
            yield batch

    def _look(self, now: float) -> bool:
        """Whether the node's addresses have changed."""
        before, self._looked = self._own, now
        self._own = self._listener.addresses()
        return self._own != before

    def _taken(self, batch: Batch, moved: bool, now: float) -> Batch:
        self._news = set()
        for event in batch.events:
            self._note(event)
        events = [self._selected(event) for event in batch.events if event.key != self._key or event.error]
        first = batch.synced and not self._synced
        if (moved or first or self._key in self._news) and (batch.synced or self._key in self._nodes):
            known = self._nodes.get(self._key, KubeNode(self._name))
            addresses = tuple(dict.fromkeys((*known.addresses, *self._own)))
            events.append(ObjectEvent(*self._key, evolve(known, addresses=addresses), now))
        kinds = {kind for kind, _, _ in self._news}
        if first or moved or kinds & {"Pod", "EndpointSlice"}:
            self._listener.pods(self._all_pods(), batch.synced)
        if batch.synced and (first or moved or "Pod" in kinds):
            self._listener.workloads(tuple(self._pods.values()))
            self._listener.everybody((*self._pods.values(), *self._elsewhere.values()))
        if batch.synced and (first or moved or "Node" in kinds):
            self._listener.nodes(tuple(self._nodes.values()))
        self._synced = batch.synced
        return Batch(tuple(events), batch.synced)

    def _note(self, event: ObjectEvent) -> None:
        """Remember what is of this node, and nodes; an object that cannot be read is as it was."""
        if event.error is not None:
            return
        known = event.object
        if event.kind == "EndpointSlice":
            local = self._local(known) if isinstance(known, EndpointSlice) else frozenset()
            self._put(self._slices, event.key, local or None)
        elif event.kind == "Pod":
            ours = isinstance(known, KubePod) and known.node == self._name
            self._put(self._pods, event.key, known if ours else None)
            self._put(self._elsewhere, event.key, None if ours else known)
        elif event.kind == "Node":
            self._put(self._nodes, event.key, known)

    def _local(self, known: EndpointSlice) -> frozenset[IPAddress]:
        return frozenset(each.address for each in known.endpoints if each.node == self._name)

    def _put(self, where: dict[ObjectKey, Any], key: ObjectKey, value: Any) -> None:
        if where.get(key) == value:
            return
        self._news.add(key)
        if value is None:
            del where[key]
        else:
            where[key] = value

    def _all_pods(self) -> Pods:
        """Those with an object, and those only known as endpoints, but for the node itself among these."""
        found: dict[str, tuple[IPAddress, ...]] = {}
        node = self._nodes.get(self._key)
        seen = {*self._own, *(node.addresses if node is not None else ())}
        for pod in self._pods.values():
            found[f"{pod.namespace}/{pod.name}"] = pod.addresses
            seen.update(pod.addresses)
        for (_, namespace, name), addresses in self._slices.items():
            for address in addresses - seen:
                found[f"{namespace}/{name} {address}"] = (address,)
        return found

    def _selected(self, event: ObjectEvent) -> ObjectEvent:
        known = event.object
        if self._selection is Selection.RANDOM or not isinstance(known, KubeService):
            return event
        if known.selection is not Selection.RANDOM:
            return event
        return evolve(event, object=evolve(known, selection=self._selection))

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def __repr__(self) -> str:
        return f"<NodeSource {self._name} {self._source!r}>"
