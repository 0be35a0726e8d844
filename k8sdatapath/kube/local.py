"""A source of Kubernetes objects as one node sees them: what its datapath has to do."""

from __future__ import annotations

from collections.abc import Iterator

from k8sdatapath.kube.events import ObjectSource
from k8sdatapath.kube.translator import NodeDelta, ServiceTranslator
from k8sdatapath.kube.view import NodeView
from k8sdatapath.resource import Resource

__all__ = ["NodeLocal", "node_local"]


class NodeLocal(Resource):
    """Deltas of the services of one node. Make one with :func:`node_local`.

    :ivar translator: makes the services, and knows what is wrong with which object.
    """

    def __init__(self, source: ObjectSource, translator: ServiceTranslator) -> None:
        self.translator = translator
        self._source = source

    def deltas(self, timeout: float | None = None) -> Iterator[NodeDelta]:
        """What is wanted, then what changes. Nothing is wanted before the source is synced."""
        for batch in self._source.batches(timeout):
            if batch.synced:
                yield self.translator.update(batch.events)
            else:  # half of the objects would be half of the backends
                self.translator.take(batch.events)
                yield NodeDelta(
                    synced=False, view=self.translator.view, errors=self.translator.news_of_errors
                )

    def close(self) -> None:
        """Close the source of objects as well."""
        self._source.close()

    def __repr__(self) -> str:
        view = self.translator.view
        return f"<NodeLocal {view.name if view is not None else '(no node)'} {self._source!r}>"


def node_local(source: ObjectSource, node: NodeView | str | None = None) -> NodeLocal:
    """What a source of objects asks of one node.

    ::

        Reconciler(node_local(KubeWatch.in_cluster(), node="n1"), services).run()

    :param source: of Services and EndpointSlices; of the node's Node object and Pods as well, if they count.
    :param node: its name, or more of it: what a view leaves out is taken from the Node object. None: there
        are only cluster IPs, no node to be local to, and no ports of it.
    """
    return NodeLocal(source, ServiceTranslator(NodeView(node) if isinstance(node, str) else node))
