"""A throwaway cluster of nodes and pods on one machine."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import subprocess
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

from attrs import define, evolve, field

from k8sdatapath.errors import ClosedError, LabError, ModelError
from k8sdatapath.lab import leftovers, wiring
from k8sdatapath.lab.addressing import (
    MAX_NODES,
    MAX_OUTSIDE,
    MAX_PODS,
    ROUTER,
    SERVICES,
    Networks,
    Place,
    node_place,
    outside_place,
    pod_networks,
    pod_place,
    tunnel_addresses,
)
from k8sdatapath.lab.host import Host
from k8sdatapath.lab.process import Agent, start_keeper
from k8sdatapath.model import Peer
from k8sdatapath.model.address import shown
from k8sdatapath.model.identity import CLUSTER_NUMBERS, Reserved
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.visibility import Visibility, to_visibility
from k8sdatapath.model.workload import NamedPort, Workload
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netns import NetNs
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.datapath.flow_observer import FlowObserver
    from k8sdatapath.datapath.identity_policy import Existing, IdentityPolicy
    from k8sdatapath.datapath.service_table import ServiceTable
    from k8sdatapath.datapath.socket_accelerator import SocketAccelerator
    from k8sdatapath.node import Node, Tunnel

Routing: TypeAlias = Literal["native", "vxlan"]
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_SWITCH = "switch"


@define(eq=False, repr=False)
class Pod(Host):
    """A pod: a namespace behind a veth of its node.

    :ivar node: the node it is on.
    :ivar device: the node's end of the veth; the pod's own is ``eth0``.
    """

    node: LabNode
    device: str


@define(eq=False, repr=False)
class LabNode(Host):
    """A node: forwards between its pods and its uplink ``eth0``.

    :ivar number: 1, 2, ...
    :ivar pods: those on it.
    """

    number: int
    pods: list[Pod] = field(factory=list, init=False)
    _numbers: Iterator[int] = field(factory=lambda: itertools.count(1), init=False)
    _datapath: Node | None = field(default=None, init=False)

    @property
    def datapath(self) -> Node:
        """The datapath of this node.

        :raises LabError: if the lab was started without one.
        """
        if self._datapath is None:
            raise LabError(f"{self.name} has no datapath: the lab was started with datapath=False")
        return self._datapath

    @property
    def services(self) -> ServiceTable:
        """The services that its datapath balances."""
        return self.datapath.services

    @property
    def flows(self) -> FlowObserver:
        """What becomes of packets on it.

        :raises LabError: if the lab was started without ``flows``.
        """
        if self.datapath.observer is None:
            raise LabError(f'{self.name} tells no flows: start the lab with flows="aggregated", or "all"')
        return self.datapath.observer

    @property
    def accelerator(self) -> SocketAccelerator:
        """Its connections that skip the stack.

        :raises LabError: if the lab was started without ``accelerate=True``.
        """
        if self.datapath.accelerator is None:
            raise LabError(f"{self.name} accelerates nothing: start the lab with accelerate=True")
        return self.datapath.accelerator

    @property
    def policy(self) -> IdentityPolicy:
        """The policies that its datapath enforces.

        :raises LabError: if the lab was started without ``policy=True``.
        """
        if self.datapath.policy is None:
            raise LabError(f"{self.name} enforces no policies: start the lab with policy=True")
        return self.datapath.policy


class Lab(Resource):
    """A throwaway cluster: nodes, pods and hosts outside as network namespaces of this machine.

    ::

        with Lab.start() as lab:
            client, web = lab.pod("client"), lab.pod("web")
            web.serve_http(8080, "hello")
            lab.node.services.upsert(Service("10.96.0.10", 80, backends=[web.at(8080)]))
            client.get("http://10.96.0.10").text     # 'hello'

    Nothing in it is connected to the machine's own network, and nothing there is changed. It ends with
    the ``with``, with :meth:`close`, or with the process, even if that is killed.

    :ivar nodes: node 1 and, if asked for, more.
    :ivar externals: the hosts outside.
    """

    def __init__(self, name: str, datapath: dict[str, Any] | None, routing: Routing = "native") -> None:
        self.name = name
        self.routing: Routing = routing
        self.nodes: list[LabNode] = []
        self.externals: list[Host] = []
        self._datapath = datapath
        self._lock = threading.RLock()
        self._names = {_SWITCH}
        self._identities: dict[tuple[str, ...], int] = {}  # labels -> number
        self._numbers = itertools.count(1)
        self._process = os.getpid()
        self._closed = False
        self._stack = ExitStack()

    @classmethod
    def start(
        cls,
        nodes: int = 1,
        name: str | None = None,
        *,
        datapath: bool = True,
        routing: Routing = "native",
        **options: Any,
    ) -> Self:
        """Start a lab of so many nodes.

        :param name: what its namespaces are named after (``kdlab.NAME.POD``); made up if not given.
        :param datapath: open a :class:`~k8sdatapath.node.Node` on each node; ``options`` are for its
            configuration. Without one, pods talk by plain routing and there are no services.
        :param routing: how pods reach those of other nodes: ``"native"``: everybody on the wire has routes to
            them; ``"vxlan"``: through a tunnel between the nodes, and nobody else has.
        :raises LabError: if a lab of that name is running.
        :raises ModelError: a name or a number of nodes that cannot be.
        """
        if not 1 <= nodes <= MAX_NODES:
            raise ModelError(f"a lab has 1 to {MAX_NODES} nodes, not {nodes}")
        name = _checked(secrets.token_hex(3) if name is None else name)
        if routing not in get_args(Routing):
            raise ModelError(f"routing is one of {', '.join(get_args(Routing))}, not {shown(routing)}")
        if routing != "native" and not datapath:
            raise ModelError(f"{routing} is the datapath's: a lab without one has native routing")
        lab = cls(name, options if datapath else None, routing)
        try:
            lab._open(nodes)
        except BaseException:
            lab.close()
            raise
        return lab

    @property
    def node(self) -> LabNode:
        """The first node."""
        return self.nodes[0]

    def pod(
        self,
        name: str,
        node: LabNode | None = None,
        *,
        labels: Mapping[str, str] = {},
        namespace: str = "default",
        namespace_labels: Mapping[str, str] = {},
        ports: Iterable[NamedPort] = (),
        visible: str | Iterable[Visibility | str] = (),
    ) -> Pod:
        """Add a pod, to the first node if none is given.

        :param labels: what policies know it by, with its namespace and that one's labels.
        :param ports: those that have names.
        :param visible: requests and questions that are flows, as in ``"<Ingress/8080/TCP/HTTP>"``.
        :raises LabError: these cannot be told: HTTP needs ``l7=True``, DNS ``dns=True``.
        """
        if "/" in namespace:
            raise ModelError(f"{shown(namespace)} is not the name of a namespace")
        workload = Workload.pod(
            f"{namespace}/{_checked(name)}",
            labels,
            namespace_labels=namespace_labels,
            ports=ports,
            visible=to_visibility(visible),
        )
        with self._lock:
            node = self.node if node is None else node
            if node not in self.nodes:
                raise ModelError(f"a pod is on one of lab.nodes, not {shown(node)}")
            self._check_visible(workload.visible)
            self._reserve(name)
            return self._add_pod(name, node, workload)

    def apply(self, *policies: Policy | str, existing: Existing = "enforce") -> None:
        """Have all nodes enforce policies: values, or manifests as text, whose objects replace those of their
        names with all parts (``specs``).

        :raises ManifestError: a text says something that cannot be, or cannot be enforced: policies by DNS
            name need a lab that was started with ``dns=True``.
        :raises LabError: the lab was not started with ``policy=True``, or no policy is in what was given.
        """
        from k8sdatapath.kube.policy import parse_policies
        from k8sdatapath.kube.policy.cilium import whole

        guarded = all(node.datapath.config.host_firewall is not None for node in self.nodes)
        named = all(node.datapath.config.dns for node in self.nodes)
        values = [each for each in policies if not isinstance(each, str)]
        texts = [each for each in policies if isinstance(each, str)]
        read = [one for text in texts for one in parse_policies(text, nodes=guarded, names=named)]
        if texts and not read:
            raise LabError(f"no policy is in {shown(texts[0])}")
        names, objects = {each.name for each in read}, {whole(each.name) for each in read}
        for node in self.nodes:
            node.policy.upsert(*values, *read, existing=existing)
            gone = [name for name in node.policy.policies if name not in names and whole(name) in objects]
            if gone:
                node.policy.remove(*gone, existing=existing)

    def external(self, name: str) -> Host:
        """Add a host outside the cluster: it reaches services through node 1, and pods through theirs."""
        with self._lock:
            self._reserve(name)
            number = next(self._numbers)
            if number > MAX_OUTSIDE:
                raise LabError(f"a lab has at most {MAX_OUTSIDE} hosts outside")
            host = Host(*self._make(name, outside_place(number)))
            self._plug_in([host])
            self._join(host, self.node.place)
            self.externals.append(host)
            return host

    def close(self) -> None:
        """End the lab and take away all of it; does nothing the second time."""
        if os.getpid() != self._process:  # a forked child does not own it
            return
        with self._lock:
            self._closed = True
            self._stack.close()

    # ---- how it is made

    def _open(self, nodes: int) -> None:
        self._owner = self._stack.enter_context(Fd(os.pidfd_open(self._process), "pidfd of this process"))
        keeper = start_keeper(self.name, self._owner)
        try:
            leftovers.claim(self.name)
        except BaseException:
            _end(keeper)
            raise
        self._stack.callback(_release, self.name, keeper)
        Cgroup.create(leftovers.cgroup_name(self.name))
        self.nodes = [self._make_node(number) for number in range(1, nodes + 1)]
        self._switch = self._make_netns(_SWITCH, router=True)
        self._switch.call(wiring.make_switch)
        self._plug_in(self.nodes)
        for node in self.nodes:
            self._join(node, ROUTER)
        self._switch.call(wiring.add_routes, self._pod_routes(self.nodes))
        if self._datapath is not None:
            for node in self.nodes:
                self._open_datapath(node, self._datapath)
        for node in self.nodes:
            if self._tunnel(node):
                others = [other for other in self.nodes if other is not node]
                peers = [Peer(n.address, pod_networks(n.number), n.name) for n in others]
                assert node.datapath.overlay is not None
                node.datapath.overlay.plan(peers).apply()
        for node in self.nodes if self._datapath is not None else ():
            if node.datapath.policy is not None:
                others = [other for other in self.nodes if other is not node]
                node.datapath.policy.learn({self._as_workload(n): Reserved.REMOTE_NODE for n in others})

    def _as_workload(self, node: LabNode) -> Workload:
        """As other nodes know it."""
        inside = tunnel_addresses(node.number) if self._tunnel(node) else ()
        return Workload.node(node.name, addresses=(*node.addresses, *inside))

    def _make_node(self, number: int) -> LabNode:
        name = f"node{number}"
        self._reserve(name)
        return LabNode(*self._make(name, node_place(number), router=True), number=number)

    def _open_datapath(self, node: LabNode, options: dict[str, Any]) -> None:
        from k8sdatapath.node import Node, NodeConfig

        options = {"service_networks": SERVICES, **options}
        config = NodeConfig(
            name=node.name,
            netns=node.netns,
            cgroup=node.cgroup.path,
            uplinks=(wiring.DEVICE,),
            tunnel=self._tunnel(node),
            **options,
        )
        node._datapath = self._stack.enter_context(Node.open(config))
        if config.host_firewall is not None:
            labels = {"kubernetes.io/hostname": node.name}
            node._datapath.attach_host(Workload.node(node.name, labels, remote=False))

    def _tunnel(self, node: LabNode) -> Tunnel | None:
        """The way from a node to the pods of others, unless they are routed."""
        from k8sdatapath.node import Tunnel

        if self.routing == "native":
            return None
        return Tunnel(kind=self.routing, addresses=tunnel_addresses(node.number))

    def _pod_routes(self, nodes: Iterable[LabNode]) -> list[tuple[Networks, Place]]:
        """How others on the wire reach the pods of nodes."""
        return [(pod_networks(n.number), n.place) for n in nodes] if self.routing == "native" else []

    def _add_pod(self, name: str, node: LabNode, workload: Workload) -> Pod:
        number = next(node._numbers)
        if number > MAX_PODS:
            raise LabError(f"a node has at most {MAX_PODS} pods")
        device = f"p{number}-{name}"[:15]
        made = self._make(name, pod_place(node.number, number), parent=node.name)
        pod = Pod(*made, node=node, device=device)
        node.netns.call(wiring.add_pod, device, pod.netns, pod.place)
        if self._datapath is not None:
            self._attach(pod, evolve(workload, addresses=pod.addresses))
        tunnel = self._tunnel(node)
        pod.netns.call(wiring.set_up_pod, pod.place, tunnel.overhead if tunnel else 0)
        node.netns.call(wiring.wait_for, [device])
        node.pods.append(pod)
        return pod

    def _attach(self, pod: Pod, workload: Workload) -> None:
        """Everybody knows who it is before it can say anything."""
        identity = self._identities.setdefault(workload.labels, CLUSTER_NUMBERS[len(self._identities)])
        pod.node.datapath.attach_pod(
            pod.device,
            pod.addresses,
            pod_mac=pod.mac,
            identity=identity,
            workload=workload,
            netns=pod.netns,
        )
        pod.node.datapath.show(workload)
        for node in self.nodes:
            if node is not pod.node:
                node.datapath.names.learn(workload, identity)
            if node is not pod.node and node.datapath.policy is not None:
                node.datapath.policy.learn({workload: identity})

    def _check_visible(self, visible: Iterable[Visibility]) -> None:
        needed = {"HTTP": "l7", "DNS": "dns"}
        for each in visible:
            if not (self._datapath or {}).get(needed[each.kind]):
                raise LabError(f"{each} cannot be told: start the lab with {needed[each.kind]}=True")

    def _reserve(self, name: str) -> None:
        if self._closed:
            raise ClosedError(f"lab {self.name!r} is closed")
        if _checked(name) in self._names:
            raise LabError(f"lab {self.name!r} has a host {name!r} already")
        self._names.add(name)

    def _make(
        self, name: str, place: Place, *, parent: str = "", router: bool = False
    ) -> tuple[str, NetNs, Cgroup, Place, Agent]:
        """A namespace, a cgroup below that of ``parent``, and the agent in both."""
        netns = self._make_netns(name, router=router)
        cgroup = Cgroup.create("/".join(filter(None, (leftovers.cgroup_name(self.name), parent, name))))
        agent = Agent(name, netns, cgroup, self._owner)
        self._stack.callback(agent.close)
        return name, netns, cgroup, place, agent

    def _make_netns(self, name: str, *, router: bool) -> NetNs:
        netns = NetNs.create(leftovers.netns_name(self.name, name))
        self._stack.callback(netns.close)
        netns.call(wiring.prepare, router=router)
        return netns

    def _plug_in(self, hosts: Sequence[Host]) -> None:
        self._switch.call(wiring.plug_in, [(_port(host), host.netns, host.place) for host in hosts])

    def _join(self, host: Host, gateway: Place) -> None:
        """Set up a host that is plugged in, with routes to the pods of the nodes that are not its gateway."""
        others = [node for node in self.nodes if node.place not in (host.place, gateway)]
        host.netns.call(wiring.join_wire, host.place, gateway)
        host.netns.call(wiring.add_routes, self._pod_routes(others))
        self._switch.call(wiring.wait_for, [_port(host)])

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and os.getpid() == self._process:
            try:
                warnings.warn(
                    f"lab {self.name!r} was never closed", ResourceWarning, stacklevel=2, source=self
                )
            finally:
                self.close()

    def __repr__(self) -> str:
        pods = sum(len(node.pods) for node in self.nodes)
        state = "closed" if self._closed else f"{len(self.nodes)} nodes, {pods} pods"
        return f"<Lab {self.name} {state}>"


def _release(name: str, keeper: subprocess.Popen[bytes]) -> None:
    """Take away all of the lab. If that is interrupted, the keeper is still there to do it."""
    leftovers.release(name)
    _end(keeper)


def _end(keeper: subprocess.Popen[bytes]) -> None:
    keeper.kill()
    keeper.wait()


def _port(host: Host) -> str:
    return f"port{host.place.number}"


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ModelError(
            f"not a name for a lab or a host in it: {shown(name)}: lower case letters, digits and -"
        )
    return name
