"""An agent's part that tells flows: in Hubble's protocol, and as metrics."""

from __future__ import annotations

import time
from contextlib import ExitStack
from hashlib import blake2b

from attrs import evolve

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.agent.metrics import FlowFamilies, Metrics
from k8sdatapath.agent.source import Nodes, Workloads
from k8sdatapath.agent.values import Aggregation
from k8sdatapath.hubble import AgentEvents, HubbleServer, PeerNode, Peers, ServerOptions, TlsFiles
from k8sdatapath.hubble.metrics import FlowMetrics, MetricReader
from k8sdatapath.kube.objects import KubeNode, KubePod
from k8sdatapath.model.agent_event import AgentEvent, AgentEventType, TimeNotification
from k8sdatapath.model.flow import WorkloadRef
from k8sdatapath.model.identity import CLUSTER_NUMBERS, LOCAL_NUMBERS
from k8sdatapath.model.workload import Workload
from k8sdatapath.node import Node
from k8sdatapath.resource import Resource

__all__ = ["AgentFlows", "level_of"]

_NUMBERS = range(CLUSTER_NUMBERS.stop, LOCAL_NUMBERS.start - 1)
"""Neither allocators give these, nor nodes to networks."""
_EVERY = (Aggregation.NONE, Aggregation.LOWEST, Aggregation.LOW)


def level_of(config: AgentConfig) -> str | None:
    """How much a node's programs are to tell; None if nobody asks."""
    if not config.telling:
        return None
    return "all" if config.aggregation in _EVERY else "aggregated"


class AgentFlows(Resource):
    """Tells the flows of a node, if the configuration says so.

    :ivar server: who is told; None: nobody.
    :ivar events: what the agent does, which is told too.
    """

    def __init__(self, config: AgentConfig, node: Node, metrics: Metrics | None) -> None:
        self._node = node
        self._pods: dict[str, KubePod] = {}
        self._numbers = _Numbers()
        self._by_policy = config.policy  # which knows who is where, with identities
        self._peers = Peers()
        self._port = config.hubble_listen.rpartition(":")[2]
        self._tls = config.hubble_cert is not None
        self.server: HubbleServer | None = None
        self.events: AgentEvents | None = None
        self._counted = FlowMetrics(config.hubble_metrics)
        with ExitStack() as own:
            if node.observer is not None and config.hubble:
                self.events = AgentEvents()
                self.events.add(AgentEvent(AgentEventType.AGENT_STARTED, TimeNotification(time.time_ns())))
                server = HubbleServer(node.observer, _options(config), events=self.events, peers=self._peers)
                self.server = own.enter_context(server)
            if node.observer is not None and config.hubble_metrics and metrics is not None:
                own.enter_context(MetricReader(node.observer, self._counted))
                metrics.add(FlowFamilies(self._counted))
            self._own = own.pop_all()

    def learn(self, pods: Workloads) -> None:
        """These are all pods that are known, of this node and others."""
        names = self._node.names
        if self._node.observer is None:
            return
        now = {f"{pod.namespace}/{pod.name}": pod for pod in pods}
        for name, pod in self._pods.items():
            lost = set(pod.addresses).difference(now[name].addresses if name in now else ())
            if lost and self._by_policy:
                names.left(evolve(_workload(pod), addresses=tuple(lost)), *_owners(pod))
        gone = self._pods.keys() - now.keys()
        for name in gone:
            names.belongs(name)
            self._counted.forget(*name.split("/"))
        if not self._by_policy:
            names.forget(*gone)
        for name, pod in now.items():
            if pod == self._pods.get(name):
                continue
            names.belongs(name, *_owners(pod))
            self._counted.keep(pod.namespace, pod.name)
            if not self._by_policy:
                workload = _workload(pod)
                names.learn(workload, self._numbers.of(workload.labels))
        self._pods = now

    def meet(self, nodes: Nodes) -> None:
        """These are all nodes; a relay is told where their agents serve flows: as this one does."""
        if self._port:
            self._peers.replace(self._peer(node) for node in nodes if node.addresses)

    def _peer(self, node: KubeNode) -> PeerNode:
        host = node.addresses[0]
        address = f"[{host}]:{self._port}" if host.version == 6 else f"{host}:{self._port}"
        tls_name = f"{node.name.replace('.', '-')}.default.hubble-grpc.cilium.io" if self._tls else ""
        return PeerNode(f"default/{node.name}", address, tls_name)

    def close(self) -> None:
        """Tell no more."""
        self._own.close()


def _workload(pod: KubePod) -> Workload:
    labels = dict(label.split("=", 1) for label in pod.labels)
    return Workload.pod(f"{pod.namespace}/{pod.name}", labels, addresses=pod.addresses)


def _owners(pod: KubePod) -> list[WorkloadRef]:
    return [WorkloadRef(pod.owner[1], pod.owner[0])] if pod.owner else []


class _Numbers:
    """Numbers for sets of labels where no allocator gives any: the same at other nodes and after a restart,
    but for a set whose number is taken by then: it gets the next.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[str, ...], int] = {}
        self._taken: set[int] = set()

    def of(self, labels: tuple[str, ...]) -> int:
        number = self._given.get(labels)
        if number is None:
            digest = blake2b("\0".join(labels).encode(), digest_size=8).hexdigest()
            number = _NUMBERS[int(digest, 16) % len(_NUMBERS)]
            while number in self._taken:
                number = number + 1 if number + 1 in _NUMBERS else _NUMBERS[0]
            self._given[labels] = number
            self._taken.add(number)
        return number


def _options(config: AgentConfig) -> ServerOptions:
    tls = None
    if config.hubble_cert is not None and config.hubble_key is not None:
        tls = TlsFiles(certificate=config.hubble_cert, key=config.hubble_key, clients=config.hubble_clients)
    listen = (f"unix://{config.hubble_socket}", *filter(None, [config.hubble_listen]))
    return ServerOptions(listen=listen, tls=tls, node=f"default/{config.node_name}")
