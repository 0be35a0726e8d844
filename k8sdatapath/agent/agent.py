"""The agent: the parts of this library put together, as one process that keeps one node's datapath."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from k8sdatapath.agent.acceleration import AcceleratedServices
from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.agent.flows import AgentFlows, level_of
from k8sdatapath.agent.health import Checks, Probe
from k8sdatapath.agent.health_checks import HealthAnswers
from k8sdatapath.agent.metrics import (
    Metrics,
    NodeMetrics,
    PodMetrics,
    PolicyMetrics,
    ReconcilerMetrics,
    WatchMetrics,
)
from k8sdatapath.agent.options import OPTIONS
from k8sdatapath.agent.other_nodes import OtherNodes
from k8sdatapath.agent.pod_networks import PodNetworks
from k8sdatapath.agent.policies import follow_policies
from k8sdatapath.agent.source import Listener, Nodes, NodeSource, Pods, open_source
from k8sdatapath.agent.values import Acceleration
from k8sdatapath.agent.web import WebServer
from k8sdatapath.cni.server import CniServer
from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import DatapathError, MissingExtraError, NotSupportedError
from k8sdatapath.kube import KubeWatch, NodeView, ObjectSource
from k8sdatapath.kube.event_writer import EventWriter
from k8sdatapath.kube.local import node_local
from k8sdatapath.kube.replay import Recorder
from k8sdatapath.kube.translator import NodeDelta
from k8sdatapath.model import IPAddress
from k8sdatapath.net.local_ports import given_by_chance
from k8sdatapath.net.pod_devices import DevicePattern
from k8sdatapath.net.rtnetlink import Rtnetlink
from k8sdatapath.node import IdentifiedPods, Node, NodeConfig, PodTracker
from k8sdatapath.pins import PinDir
from k8sdatapath.reconcile import Applied, Follower, PolicyReconciler, Reconciler, State, Status
from k8sdatapath.resource import Resource

__all__ = ["Agent"]

_log = logging.getLogger(__name__)


class Agent(Resource):
    """A node's datapath, kept as its cluster has it until it is closed; then it runs on without.

    It works in the network namespace of the thread that makes it. Read it as an example: all that it puts
    together is public.

    :param config: what it is told.
    :param followers: called with what its Reconciler applies, one after the other.
    :raises PinsBusyError: another agent has the pin directory.
    :raises DatapathError: it cannot start; what was there before still is.
    """

    def __init__(self, config: AgentConfig, *followers: Follower) -> None:
        self.config = config
        self.checks = Checks()
        self._stopping = False
        self._backends_went = False
        self._others = OtherNodes(config)
        self._own_addresses: frozenset[tuple[int, IPAddress]] = frozenset()
        self._notes: frozenset[str] = frozenset()
        pins = PinDir(config.pins)
        with ExitStack() as own:
            self.metrics = _metrics()
            self.web = own.enter_context(self._listen()) if config.listen is not None else None
            objects = open_source(config)
            self.source = own.enter_context(self._node_source(objects))
            with pins.restored_on_error():  # while the node still has the lock
                self.node = own.enter_context(Node.open(self._node_config(pins), prune=False))
                self._others.serve(self.node)
                self._pod_networks = self._follow_pod_networks()
                self._check_acceleration()
            for note in self.node.notes:
                _log.warning("note: %s", note)
            self.flows = own.enter_context(AgentFlows(config, self.node, self.metrics))
            self._set_policy_modes()
            self.accelerated = self._accelerate()
            self._known = IdentifiedPods(self.node) if config.policy else None
            holder = self._known or self.node
            self.pods = own.enter_context(self._track(holder)) if config.cni_socket is None else None
            if config.cni_socket is not None:
                cni = own.enter_context(_cni_server(holder, config.cni_socket))
                self.checks.add("CNI", lambda: "" if cni.alive else "it has ended", Probe.LIVE)
            self._health = own.enter_context(HealthAnswers(self._is_healthy))
            self._events = own.enter_context(events) if (events := self._event_writer(objects)) else None
            self.policies = self._follow_policies(objects, own)
            self._local = node_local(self.source, self._given_view())
            self.reconciler = own.enter_context(
                Reconciler(
                    self._local,
                    self.node.services,
                    self._answer_health_checks,
                    self._take_note,
                    *([self.accelerated.update] if self.accelerated is not None else []),
                    *followers,
                    on_status=self._tell,
                )
            )
            self._look_at_ports()
            self._add_checks()
            self._add_metrics(objects)
            self.reconciler.start()
            own.callback(self._stop)
            self._own = own.pop_all()

    def _look_at_ports(self) -> None:
        """A process of the node must not be given a node port by chance: its answers would be a service's."""
        loose = given_by_chance(*self.config.node_port_range)
        if loose is not None:
            ports = "-".join(map(str, self.config.node_port_range))
            _log.warning(
                "node ports from %d to %d are given to sockets by chance (net.ipv4.ip_local_port_range): "
                "reserve them with sysctl -w net.ipv4.ip_local_reserved_ports=%s",
                *loose,
                ports,
            )

    # -- its parts --

    def _listen(self) -> WebServer:
        assert self.config.listen is not None
        self.checks.add("agent", lambda: "it is stopping" if self._stopping else "", Probe.READY)
        self.checks.add("services", self._unprogrammed, Probe.READY)
        self.checks.add("all services", self._left_out, Probe.READY, of_health=False)
        web = WebServer(self.config.listen, self.checks, self.metrics.text if self.metrics else lambda: None)
        _log.info("listening", extra={"address": str(web.where)})
        return web

    def _node_config(self, pins: PinDir) -> NodeConfig:
        config = self.config
        return NodeConfig(
            name=config.node_name,
            uplinks=config.uplinks,
            cgroup=config.cgroup,
            pins=pins,
            socket_lb=config.socket_lb,
            pod_sockets=config.pod_sockets,
            protect_node_ports=config.protect_node_ports,
            service_networks=config.service_networks,
            pod_networks=config.pod_networks or None,
            xdp=config.acceleration is not Acceleration.DISABLED,
            tunnel=config.tunnel,
            direct_routes=config.direct_routes,
            masquerade=self._others.masquerading,
            policy=config.policy,
            dns=config.policy,
            dns_visibility=config.dns_visibility,
            host_firewall=config.guard,
            l7=config.policy and config.l7,
            accelerate=config.accelerating,
            flows=level_of(config),
            flows_kept=config.flows_kept,
            capacity=config.capacity,
        )

    def _accelerate(self) -> AcceleratedServices | None:
        config = self.config
        if not config.accelerating:
            return None
        accelerated = AcceleratedServices(
            self.node,
            services=config.accelerated_services,
            namespaces=config.accelerated_namespaces,
            networks=config.accelerated_networks,
        )
        self.checks.add("acceleration", lambda: accelerated.problem, Probe.READY, of_health=False)
        return accelerated

    def _follow_pod_networks(self) -> PodNetworks | None:
        config = self.config
        followed = config.policy and not config.pod_networks
        return PodNetworks(self.node, config.node_name) if followed else None

    def _node_source(self, objects: ObjectSource) -> NodeSource:
        listener = Listener(
            pods=self._on_pods,
            workloads=self._others.follow_workloads,
            everybody=lambda pods: self.flows.learn(pods),
            nodes=self._on_nodes,
            addresses=self._on_addresses,
        )
        return NodeSource(objects, self.config.node_name, listener, self.config.selection)

    def _event_writer(self, objects: ObjectSource) -> EventWriter | None:
        watch = _watch(objects)
        if not self.config.write_events or watch is None:
            return None
        return EventWriter(watch.client, self.config.node_name)

    def _track(self, node: Node | IdentifiedPods) -> PodTracker:
        pattern = DevicePattern(self.config.pod_devices, uplinks=self.config.uplinks)
        return PodTracker(node, pattern, isolate=self.config.policy)

    def _follow_policies(self, objects: ObjectSource, own: ExitStack) -> PolicyReconciler | None:
        if self.node.policy is None or self._known is None:
            return None
        watch = _watch(objects)
        client = None if watch is None else watch.client
        tell = self._events.tell if self._events is not None else lambda key, status: None
        policies = follow_policies(
            self.config, client, self.node.policy, self._known, own, tell, self.flows.events
        )
        self.checks.add("policies", lambda: policies.problem, Probe.READY, of_health=False)
        if self.node.l7 is not None:
            known = self._known
            self.checks.add("requests", lambda: _unseen(known.unseen), Probe.READY, of_health=False)
        self.checks.add("policy reconciler", self._not_following_policies, Probe.LIVE)
        if self.metrics is not None:
            self.metrics.add(PolicyMetrics(policies, self.node.policy))
        return policies

    def _not_following_policies(self) -> str:
        if self.policies is None or self.policies.running or self._stopping:
            return ""
        return f"it has ended: {self.policies.error}"

    def _given_view(self) -> NodeView:
        return NodeView(
            self.config.node_name,
            addresses=self.config.node_addresses,
            node_port_networks=self.config.node_port_networks,
            node_port_range=self.config.node_port_range,
        )

    def _check_acceleration(self) -> None:
        lacking = set(self.config.uplinks) - set(self.node.xdp_uplinks)
        if lacking and self.config.acceleration is Acceleration.NATIVE:
            raise NotSupportedError(
                "native XDP",
                subject=", ".join(sorted(lacking)),
                hint="loadBalancer.acceleration: best-effort",
            )

    # -- what follows a change --

    def _on_pods(self, pods: Pods, complete: bool) -> None:
        if self.pods is not None:
            self.pods.update(pods, complete=complete)
        if self.accelerated is not None:
            self.accelerated.follow_pods(pods)

    def _on_nodes(self, nodes: Nodes) -> None:
        self.flows.meet(nodes)
        self._others.update(nodes)
        if self._pod_networks is not None:
            self._pod_networks.update(nodes)

    def _on_addresses(self) -> tuple[IPAddress, ...]:
        """Take over what addresses the node has; returns those that clients may dial."""
        with Rtnetlink() as kernel:
            rows = tuple(kernel.addresses())
            names = {link.index: link.name for link in kernel.links()}
        own = frozenset(rows)  # by device: one that was made anew has another number
        if own != self._own_addresses:
            try:
                self.node.services.set_node_addresses({address for _, address in own})
            except DatapathError as error:  # tried again at the next look
                _log.error("the node's addresses are not taken over: %s", error)
            else:
                self._own_addresses = own
                self._others.update_again()  # the node may leave under another
        if self.config.node_addresses:
            return self.config.node_addresses
        found = (address for index, address in rows if names.get(index) in self.config.uplinks)
        return tuple(each for each in found if not each.is_link_local)

    def _answer_health_checks(self, applied: Applied) -> None:
        """Answer load balancers, at the node's addresses as they are now."""
        delta = applied.delta
        if not isinstance(delta, NodeDelta) or delta.view is None:
            return
        self._note(delta)
        if self.config.health_checks:
            self._health.update(delta.view.node_port_addresses, delta.health_checks)

    def _is_healthy(self) -> bool:
        return all(finding.well for finding in self.checks.ask(Probe.HEALTHY))

    def _note(self, delta: NodeDelta) -> None:
        notes = frozenset(delta.notes)
        for note in sorted(notes - self._notes):
            _log.warning("note: %s", note)
        self._notes = notes

    def _end_sockets(self) -> None:
        """Let UDP clients know that are connected to a backend which has gone, where the kernel can.

        That looks through all processes of the machine, so it is not done for every change.
        """
        self._backends_went = False
        try:
            self.node.reap_sockets()
        except NotSupportedError:
            pass
        except DatapathError as error:
            _log.warning("sockets of backends that have gone were not ended: %s", error)

    def _take_note(self, applied: Applied) -> None:
        if self.node.config.cgroup is not None and (applied.report.changed or applied.report.removed):
            self._backends_went = True

    def _tell(self, key: ObjectKey, status: Status) -> None:
        """Tell of an object that has an error, or has it no more."""
        about = dict(zip(("object_kind", "object_namespace", "object_name"), key, strict=True))
        if status.state is State.ERROR:
            _log.error("not programmed: %s", status.reason, extra=about)
        else:
            _log.info("programmed again", extra=about)
        if self._events is not None:
            self._events.tell(key, status)

    # -- how it is --

    def _add_checks(self) -> None:
        self.checks.add("reconciler", self._not_reconciling, Probe.LIVE)
        self.checks.add("pins", self._unpinned, Probe.HEALTHY)
        if (masq := self._others.masq) is not None:
            self.checks.add("masqConfig", lambda: masq.problem, Probe.HEALTHY)
        self.checks.add("nodes", lambda: self._others.problem, Probe.HEALTHY)
        if self.pods is not None:
            pods = self.pods
            told = "not all pods have been looked for yet"
            self.checks.add("pods", lambda: pods.problem or ("" if pods.complete else told), Probe.READY)
            self.checks.add("pod tracker", lambda: "" if pods.alive else "it has ended", Probe.LIVE)

    def _add_metrics(self, objects: ObjectSource) -> None:
        if self.metrics is None:
            return
        self.metrics.add(NodeMetrics(self.node))
        self.metrics.add(ReconcilerMetrics(self.reconciler))
        if self.pods is not None:
            self.metrics.add(PodMetrics(self.pods))
        if (watch := _watch(objects)) is not None:
            self.metrics.add(WatchMetrics(watch))

    def _not_reconciling(self) -> str:
        if self.reconciler.running or self._stopping:
            return ""
        return f"it has ended: {self.reconciler.error}"

    def _unprogrammed(self) -> str:
        reconciler = getattr(self, "reconciler", None)
        if reconciler is not None and reconciler.synced:
            return ""
        return "not all services are programmed yet"

    def _left_out(self) -> str:
        """Services that do not fit. The others are served, and it is as likely so on every other node."""
        reconciler = getattr(self, "reconciler", None)
        failures = reconciler.failures() if reconciler is not None else {}
        if not failures:
            return ""
        frontend, error = next(iter(failures.items()))
        return f"{len(failures)} not in the kernel as wanted, such as {frontend}: {error}"

    def _unpinned(self) -> str:
        try:
            self.node.check_pins()
        except DatapathError as error:
            return str(error)
        return ""

    # -- life --

    def run(self, stop: threading.Event, news: Callable[[], AgentConfig | None] = lambda: None) -> None:
        """Go on until told to stop.

        :param news: is asked every second for a configuration to take over, see :meth:`reconfigure`.
        :raises DatapathError: it has ended by itself.
        """
        pruned, strangers = False, self.policies is not None
        while not stop.wait(0.2 if not pruned else 1.0):
            if not self.reconciler.running:
                raise self.reconciler.error or DatapathError("the reconciler has ended")
            if (config := news()) is not None:
                self.reconfigure(config)
            if self._backends_went:
                self._end_sockets()
            self._others.look_at_masq_file()
            self._health.retry()
            strangers = strangers and not self._forget_strangers()
            if not pruned and self.reconciler.synced:
                self.node.prune()
                pruned = True
                _log.info("ready", extra={"services": len(self.node.services)})

    def _forget_strangers(self) -> bool:
        """Remove who an earlier run has left in policies, once all is known; whether that is done."""
        policies, known, enforced = self.policies, self._known, self.node.policy
        if policies is None or known is None or enforced is None or not policies.synced or policies.problem:
            return False
        if not known.complete or (self.pods is not None and not self.pods.complete):
            return False
        try:
            enforced.forget_strangers()
        except DatapathError as error:
            _log.error("what an earlier run has left of policies stays for now: %s", error)
            return False
        return True

    def _set_policy_modes(self) -> None:
        policy, config = self.node.policy, self.config
        if policy is not None and policy.audit is not config.policy_audit:
            policy.audit = config.policy_audit
            _log.warning("policies %s", "only look on" if policy.audit else "are enforced")
        if policy is not None and policy.answer is not config.policy_answer:
            policy.answer = config.policy_answer

    def reconfigure(self, wanted: AgentConfig) -> tuple[str, ...]:
        """Take over what can change while packets flow and nothing has to be made anew.

        :returns: the words of what else is otherwise, and needs a new start.
        """
        words = self.config.differences(wanted)
        config = self.config.taking((each for each in words if OPTIONS[each].live), wanted)
        try:
            self.node.resize(config.capacity)
        except DatapathError as error:
            _log.error("tables keep their sizes: %s", error)
            sizes = [each for each in words if each.startswith("capacity.")]
            config = config.taking(sizes, self.config)
        if taken := self.config.differences(config):
            self.config = self._others.config = config
            self._set_policy_modes()
            self._local.translator.see_from(self._given_view())
            self.source.tell_again()
            _log.info("taken over: %s", ", ".join(taken))
        if later := tuple(each for each in words if not OPTIONS[each].live):
            _log.warning("needs a new start: %s", ", ".join(later))
        return later

    def _stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        """Stop. The datapath goes on as it is."""
        self._stopping = True
        self._own.close()

    def __repr__(self) -> str:
        return f"<Agent {self.config.node_name} {self.node!r}>"


def _cni_server(node: Node | IdentifiedPods, path: Path) -> CniServer:
    return CniServer(node, socket=path, state=path.with_suffix(".pods"))


def _metrics() -> Metrics | None:
    try:
        return Metrics()
    except MissingExtraError as error:
        _log.warning("%s", error)
        return None


def _unseen(devices: frozenset[str]) -> str:
    if not devices:
        return ""
    names = ", ".join(sorted(devices))
    return f"the network namespaces behind {names} are not seen: run in the host's pid namespace"


def _watch(objects: ObjectSource) -> KubeWatch | None:
    """The API server, if objects come from one."""
    watch = objects.source if isinstance(objects, Recorder) else objects
    return watch if isinstance(watch, KubeWatch) else None
