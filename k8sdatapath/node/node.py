"""Node: the datapath of one node, running."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.component import Pressure
from k8sdatapath.datapath.conntrack_table import ConntrackTable, Sweep
from k8sdatapath.datapath.direct_routes import DirectRoutes
from k8sdatapath.datapath.flow_move import MOVED, FlowMove
from k8sdatapath.datapath.flow_reaper import FlowReaper
from k8sdatapath.datapath.overlay import Overlay
from k8sdatapath.datapath.service_table import CONTRACT, ServiceTable
from k8sdatapath.datapath.talks import live_ends
from k8sdatapath.errors import BpffsError, CapacityError, ModelError
from k8sdatapath.layout import addr
from k8sdatapath.model.address import shown
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node.accelerating import accelerator_of, let_go, stop_pinned
from k8sdatapath.node.attached_pods import AttachedPods
from k8sdatapath.node.composition import (
    is_of_pod,
    masquerading,
    pod_end_hooks,
    pod_hooks,
    pods_of,
    put_hooks,
)
from k8sdatapath.node.config import POLICY_MAPS, Capacity, NodeConfig
from k8sdatapath.node.device_keeper import DeviceKeeper
from k8sdatapath.node.devices import own_addresses
from k8sdatapath.node.explained import Explained
from k8sdatapath.node.hooks import Hooks, XdpHook
from k8sdatapath.node.loading import load, specs
from k8sdatapath.node.observing import NodeNames, observe
from k8sdatapath.node.requests import end_pinned_requests, l7_of, policy_of
from k8sdatapath.node.resizing import Move
from k8sdatapath.node.resolving import watch_names
from k8sdatapath.node.tunnel import Tunnel
from k8sdatapath.node.upgrade import upgrade
from k8sdatapath.node.upkeep import Upkeep
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir, PinLock
from k8sdatapath.programs.base import in_netns
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.counters import Counter, CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.pod_networks import PodNetworkRow
from k8sdatapath.tables.policy import TalkRow

if TYPE_CHECKING:
    from k8sdatapath.datapath.masquerader import Masquerader
    from k8sdatapath.datapath.socket_reaper import DestroyedSocket

__all__ = ["Node"]

_log = logging.getLogger(__name__)


class Node(Explained, AttachedPods):
    """The datapath of one node, running. Make one with :meth:`open`.

    :ivar services: the node's services.
    :ivar flows: its flows that are balanced per packet.
    :ivar notes: what is otherwise than configured, in sentences.
    :ivar upkeep: collects those that are over; None if the configuration has it so.
    :ivar overlay: the other nodes, if there is a tunnel to them.
    :ivar routes: routes to the pods of other nodes, if the configuration has it make any.
    :ivar masquerade: under which addresses pods leave, if the configuration has them do so.
    :ivar names: who has which addresses, as far as it was told; for those who read flows.
    :ivar observer: what becomes of packets, if the configuration has programs tell it.
    :ivar policy: who may talk to whom, if the configuration has that enforced.
    :ivar dns: who asks name servers what, if the configuration has the answers learned.
    :ivar accelerator: connections that skip the stack, if the configuration has it so.
    :ivar l7: which requests servers get, likewise.
    """

    def __init__(
        self,
        config: NodeConfig,
        objects: dict[str, Object],
        services: ServiceTable,
        hooks: Hooks,
        own: ExitStack,
    ) -> None:
        self.config = config
        self.services = services
        self._hooks = hooks
        self._own = own
        self._lock: PinLock | None = None
        self._maps_stay = RLock()  # held while maps are in use that a resize may close
        self._flows_stay = RLock()  # likewise of flows alone, which are collected while a resize gets ready
        self.notes: tuple[str, ...] = ()
        self.overlay: Overlay | None = None
        self.routes = DirectRoutes(netns=config.netns) if config.direct_routes else None
        self.masquerade: Masquerader | None = None
        self._pod_netns: dict[str, NetNs] = {}  # by device
        self._asking = {}
        own.callback(self._leave_all_netns)
        self.l7 = l7_of(config, objects, own)
        self.policy = policy_of(config, objects, self.l7, own)
        self._host: Workload | None = None
        self.names = NodeNames(self)
        self.observer = own.enter_context(observe(self, objects["pod"])) if config.flows is not None else None
        self.dns = own.enter_context(watch_names(self, objects["pod"])) if config.dns else None
        self.accelerator = accelerator_of(config, objects, own)
        self._flow_reaper: FlowReaper | None = None
        own.callback(self._unload)
        self._use(objects)
        self.upkeep: Upkeep | None = None
        if config.collect:
            self.upkeep = own.enter_context(Upkeep(self._sweep, self.reap_flows))
            services.on_leave = self.upkeep.reap_soon
        if config.uplinks and config.tc_lb:
            own.enter_context(DeviceKeeper(self.reattach, config.netns))

    def _use(self, objects: dict[str, Object]) -> None:
        self._objects = objects
        pod = objects["pod"]
        self._endpoints = pod.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        self._pod_networks = pod.map("kd_pod_networks", maps.Array[PodNetworkRow])
        self._talks = pod.map("kd_talks", maps.LRUHash[Tuple, TalkRow])
        self._counters = pod.map("kd_counters", maps.PerCpuArray[CounterRow])
        self._outcomes = outcomes(pod.spec.btf)
        self.flows = ConntrackTable.bind(pod, timeouts=self.config.timeouts)
        if tunnel := self.config.tunnel:
            self.overlay = Overlay.bind(
                objects["overlay"], device=tunnel.device, ipv6=tunnel.ipv6, netns=self.config.netns
            )

        if self.config.masquerade is not None:
            self.masquerade = _masquerader(self.config, objects)

    @classmethod
    def open(cls, config: NodeConfig, *, prune: bool = True) -> Node:
        """Load what is not there yet, take over what is pinned, and put the programs on their hooks.

        Programs of pinned links are replaced in one step each: no packet goes by unhandled. Pinned maps of
        other sizes than configured are resized; if what is in them would not fit, they stay: :attr:`notes`.

        :param prune: remove pinned links that ``config`` does not ask for, see :meth:`prune`. Without it they
            stay for now, and so do rules of masquerading: for a caller who has more to do that may fail.
        :raises ModelError: this is no configuration.
        :raises KernelError: a hook refused; nothing is left behind that was not there before.
        :raises PinsBusyError: another process has the pin directory.
        """
        if not isinstance(config, NodeConfig):
            raise ModelError(f"a node is opened with a NodeConfig, not with {shown(config)}")
        with ExitStack() as own, ExitStack() as undo:
            lock = None
            if config.pins is not None:
                lock = own.enter_context(config.pins.lock())
                FlowMove.resume(config.pins)
                undo.enter_context(config.pins.restored_on_error())
            if config.tunnel is not None:
                _make_tunnel(config, config.tunnel, own)
            if config.pins is not None:
                if not config.accelerate:
                    stop_pinned(config.pins)
                upgrade(config.pins, specs(config), config.sizes.keys() - POLICY_MAPS, before=_stop_pinned)
            objects = load(config, own)
            table = ServiceTable.bind(objects["pod"], service_networks=config.service_networks)
            services = own.enter_context(table)
            services.set_node_addresses(own_addresses(config.netns))  # before one is taken for a service's
            hooks = own.enter_context(Hooks(config.netns, config.pins))
            if config.masquerade is not None:
                with _masquerader(config, objects) as masquerader:
                    plan = masquerader.plan(masquerading(config))
                    (plan if prune else evolve(plan, dropped_rules=())).apply()  # before a program looks
            put_hooks(hooks, objects, config)
            hooks.adopt((hook for device in pods_of(hooks) for hook in pod_hooks(device)), objects)
            if config.l7:
                hooks.adopt((hook for device in pods_of(hooks) for hook in pod_end_hooks(device)), objects)
            node = cls(config, objects, services, hooks, own)
            node._lock = lock
            if node.routes is not None and config.pins is None:
                own.callback(node.routes.remove)
            node.update_addresses()
            if config.pod_networks is not None:  # the node's own addresses in them are known by now
                node.pod_networks = config.pod_networks
            try:
                node.resize(config.capacity)
            except CapacityError as error:
                node.notes = (f"tables keep the sizes they are pinned with: {error}",)
            if prune:
                node.prune()
            node._own = own.pop_all()
            return node

    def prune(self) -> None:
        """Take pinned programs off uplinks and cgroups that the configuration does not name; pods stay."""
        with self._maps_stay:  # so that no pod is attached meanwhile, whose links would be strange too
            self._hooks.drop_strange(known=is_of_pod)

    def check_pins(self) -> None:
        """See that what was pinned still is, so that it outlives the process and others find it.

        :raises BpffsError: some of it was removed by somebody else. Packets are handled as before for as long
            as this node is open; a node that is opened then pins everything anew.
        """
        pins = self.config.pins
        if pins is None or self._lock is None:
            return
        here = {pins.map_path(name) for loaded in self._objects.values() for name in loaded.map_fds}
        links = {pins.link_path(hook.name) for hook in self._hooks}
        gone = {path for path in here | links if not path.exists()}
        gone -= links - {pins.link_path(hook.name) for hook in self._hooks}  # of pods that have just gone
        if gone or not self._lock.valid:
            what = f"{min(gone).name} and {len(gone) - 1} more were" if len(gone) > 1 else "a pin was"
            raise BpffsError("keep pins", str(pins), errno.ENOENT, f"{what} removed: start again to pin anew")

    def update_addresses(self) -> None:
        """Look again which addresses the node has, as its upkeep does every few seconds.

        Services that are dialled at such an address leave its other ports to the node. See
        :meth:`ServiceTable.set_node_addresses`.
        """
        found = own_addresses(self.config.netns)
        self.services.set_node_addresses(found)
        if self.policy is None:
            return
        host = Workload.node(self.config.name or "this node", addresses=sorted(found, key=str), remote=False)
        if self.config.host_firewall is None or self._host is None:
            self.policy.learn({host: Reserved.HOST})
        else:
            self.policy.attach_host(evolve(host, labels=self._host.labels), self.config.host_firewall)

    def attach_host(self, workload: Workload) -> None:
        """Enforce policies for the node itself, or go on with other labels.

        Until then nothing of the node's own is denied; with pins, an earlier process's say holds. For after
        policies are there, so that nothing is open in between.

        :param workload: ``Workload.node(name, labels, remote=False)``. Which addresses it has the node finds
            itself.
        :raises ModelError: it is not this node, or that was not opened with ``host_firewall``.
        :raises CapacityError: there is no room for its rules; nothing was changed.
        """
        if self.config.host_firewall is None:
            raise ModelError("policies are for pods alone: open the node with NodeConfig(host_firewall=True)")
        if not workload.is_host:
            raise ModelError(f"{workload.name} is not this node: Workload.node(..., remote=False) is")
        self._host = workload
        self.update_addresses()

    def reattach(self) -> set[str]:
        """Put programs on uplinks that were deleted and made anew under their names; returns which.

        A node does so itself as soon as devices change.
        """
        with self._maps_stay:
            renewed = self._hooks.renew(self._objects, self.config.uplinks)
            if renewed and self.masquerade is not None:
                wanted = self.masquerade.plan(masquerading(self.config))
                evolve(wanted, rules={}, dropped_rules=()).apply()  # of what is excluded nothing has changed
        if renewed:
            _log.info("uplinks were made anew and are attached: %s", ", ".join(sorted(renewed)))
        return renewed

    @property
    def xdp_uplinks(self) -> tuple[str, ...]:
        """Uplinks whose drivers continue flows; on the others the programs at TC do all the work."""
        return tuple(hook.place for hook in self._hooks if isinstance(hook, XdpHook))

    def counters(self) -> dict[str, Counter]:
        """What the programs have done with packets since the maps were made, by outcome."""
        return read_counters(self._counters, self._outcomes)

    def pressure(self) -> dict[str, Pressure]:
        """How full each map is, counted now: what the programs remember as well as what was given to them.

        Where programs write, a full map costs no packet: what was silent longest is forgotten.
        """
        found = self.services.pressure()
        with self._maps_stay:
            for name, each in _maps_of(self._objects).items():
                if isinstance(each, maps.Hash | maps.LRUHash) and name not in {*found, *MOVED.values()}:
                    found[name] = Pressure(len(each), each.info.max_entries)
        return found

    @property
    def capacity(self) -> Capacity:
        """How much the tables hold as they are; not what is configured if :attr:`notes` says so."""
        found = {name: each.info.max_entries for name, each in _maps_of(self._objects).items()}
        if not self.config.policy:
            found |= {n: size for n, size in self.config.capacity.max_entries.items() if n in POLICY_MAPS}
        return Capacity.of(found)

    def resize(self, capacity: Capacity) -> None:
        """Give tables other sizes, while traffic flows. No flow is lost, be it old or begun meanwhile,
        but those whose requests are read: they end (:attr:`l7`).

        New maps are filled with what is in the old ones, then every hook gets programs over the new maps,
        each in one step; where flows or clients get other tables, by way of programs that know both. A table
        shrinks to the highest place in use, which may be more than are in use.

        :raises CapacityError: what is there would not fit; nothing was changed.
        """
        with self._maps_stay, ExitStack() as own, ExitStack() as done:
            there, old = _maps_of(self._objects), self._objects
            sizes = {name: each.info.max_entries for name, each in there.items()}
            config = self.config
            if capacity != config.capacity:
                config = evolve(config, capacity=capacity)
            changed = {name for name, size in config.sizes.items() if sizes[name] != size}
            if not changed:
                self.config = config
                return
            changed |= CONTRACT.keys()  # the service table goes to the new objects as a whole
            moved = not changed.isdisjoint(MOVED)
            if moved:
                changed |= {*MOVED, *MOVED.values(), "kd_moving"}
            unpinned = evolve(config, pins=None)
            new = load(unpinned, own, {name: each for name, each in there.items() if name not in changed})
            between = None
            if moved:
                given = _maps_of(new)
                given |= {to: given[name] for name, to in MOVED.items()}
                given |= {name: there[name] for name in MOVED}
                between = load(unpinned, done, given, moving=True)
            done.enter_context(self._flows_stay)
            if moved:
                self.flows.collect()  # what is over need not move
            move = Move(self._hooks, config.pins, changed, old, new, between)
            move.check()
            switch = move.switch
            if self.policy is not None:
                switch = partial(self.policy.move, new["pod"], move.switch)
            self.services.move(new["pod"], switch)
            self._own.push(own.pop_all())
            self.config = config
            self._unload()
            self._use(new)
            done.callback(_close_all, old)
            move.finish()
            let_go(self.accelerator)
            if self.l7 is not None:
                self.l7.go_on_in(new["stream"])
            if self.upkeep is not None:
                self.upkeep.sweep_soon()

    def _sweep(self) -> Sweep:
        self.update_addresses()
        if self.policy is not None:
            with self._maps_stay:
                self.policy.expire_names(lambda: live_ends(self._talks))
        with self._flows_stay:
            return self.flows.sweep()

    def reap_sockets(self, *, tcp: bool = False) -> tuple[DestroyedSocket, ...]:
        """Destroy the UDP sockets of this machine that are connected to backends which are gone.

        For after backends were removed: what their processes do next fails, and connects anew.

        :param tcp: TCP connections as well, which may be finishing what they began.
        """
        from k8sdatapath.datapath.socket_reaper import SocketReaper

        with SocketReaper.bind(self._objects["socket"]) as reaper:
            return reaper.reap_everywhere(tcp=tcp)

    def reap_flows(self) -> int:
        """Forget flows of UDP whose backend or frontend is gone; returns how many.

        The upkeep does so after each change. Without it, this is for after backends or services were removed;
        else such a flow is there until it was silent for long, or begins anew with its next datagram.
        """
        with self._flows_stay:
            if self._flow_reaper is None:
                self._flow_reaper = FlowReaper.bind(self._objects["pod"])
            return self._flow_reaper.reap()

    def _unload(self) -> None:
        """What was loaded to be run over flows or for questions, and not by packets."""
        self._stop_explaining()
        self.flows.close()
        if self.masquerade is not None:
            self.masquerade.close()
        if self._flow_reaper is not None:
            self._flow_reaper.close()
            self._flow_reaper = None

    def close(self) -> None:
        """Let go. Without pins the datapath ends here; with pins it runs on, and an open takes it over."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<Node {self.config.name or '(unnamed)'} {self.services!r} links={len(self._hooks)}>"


def _masquerader(config: NodeConfig, objects: Mapping[str, Object]) -> Masquerader:
    from k8sdatapath.datapath.masquerader import Masquerader  # others do without

    return Masquerader.bind(objects["host"], netns=config.netns)


def _maps_of(objects: Mapping[str, Object]) -> dict[str, maps.Map]:
    return {name: each for loaded in objects.values() for name, each in loaded.maps.items()}


def _close_all(objects: Mapping[str, Object]) -> None:
    for loaded in objects.values():
        loaded.close()


def _make_tunnel(config: NodeConfig, tunnel: Tunnel, own: ExitStack) -> None:
    """The tunnel's device lives as long as the datapath: with the node, or with its pins."""
    made = in_netns(config.netns, lambda: tunnel.make(config.uplinks))
    if made and config.pins is None:
        own.callback(in_netns, config.netns, tunnel.remove)


def _stop_pinned(pins: PinDir) -> None:
    """What an earlier process has pinned is about to become another version's, or size."""
    stop_pinned(pins)
    end_pinned_requests(pins)
