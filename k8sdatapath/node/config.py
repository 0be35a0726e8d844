"""What a node consists of, and how much it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen
from attrs.converters import optional

from k8sdatapath.datapath.flow import Timeouts
from k8sdatapath.datapath.policy_tables import CONTRACT as POLICIES
from k8sdatapath.errors import ModelError
from k8sdatapath.model import IPNetwork, Masquerade, network
from k8sdatapath.model.address import shown
from k8sdatapath.model.host_firewall import HostFirewall, to_host_firewall
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node.tunnel import Tunnel, to_tunnel
from k8sdatapath.objects import ConfigValue
from k8sdatapath.pins import PinDir
from k8sdatapath.tables.level import Level, to_level

__all__ = ["POLICY_MAPS", "Capacity", "NodeConfig", "one_of_each_family"]

POLICY_MAPS = frozenset({*POLICIES, "kd_talks"})
"""What is there for policies alone."""

_SLOTS_PER_BLOCK = 16


def _names(devices: str | Iterable[str]) -> tuple[str, ...]:
    return (devices,) if isinstance(devices, str) else tuple(devices)


def _entries(most: int = (1 << 32) - 1) -> Any:
    """A field that says how much a table holds."""

    def check(_: object, attribute: Attribute[int], value: int) -> None:
        if type(value) is not int or not 0 < value <= most:
            raise ModelError(f"room for {value!r} {attribute.name} cannot be: 1 to {most}")

    return check


def one_of_each_family(given: Iterable[Any]) -> tuple[IPNetwork, ...]:
    """At most one of each family."""
    found = tuple(network(each) for each in ([given] if isinstance(given, str) else given))
    if len({each.version for each in found}) < len(found):
        raise ModelError(f"one network of each family, not {', '.join(map(str, found))}")
    return found


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _pins(given: PinDir | str | os.PathLike[str] | None) -> PinDir | None:
    return given if given is None or isinstance(given, PinDir) else PinDir(given)


def _to_level(given: Level | str | None) -> Level | None:
    return None if given is None else to_level(given)


def _a(kind: type, *, or_none: str = "") -> Any:
    """A field of this type; ``or_none``: it may be None, and what to do instead of what was given."""

    def check(_: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kind) and not (or_none and value is None):
            raise ModelError(f"{attribute.name} is a {kind.__name__}, not {shown(value)}{or_none}")

    return check


def _needs_cgroup(config: NodeConfig, attribute: Attribute[bool], value: bool) -> None:
    if value and config.cgroup is None:
        raise ModelError(f"{attribute.name} needs a cgroup: whose sockets are meant?")


def _needs_policy(config: NodeConfig, attribute: Attribute[bool], value: bool) -> None:
    if value and not config.policy:
        raise ModelError(f"{attribute.name} needs policy=True: what policies let pass is looked at")


@frozen(kw_only=True)
class Capacity:
    """How much a node's tables hold. Memory is taken when they are made.

    :ivar services: frontends, some 100 bytes each; and one for each of their addresses outside of
        :attr:`NodeConfig.service_networks`.
    :ivar backends: memberships of endpoints in services, 32 bytes each.
    :ivar slots: places in backend sets, 4 bytes each: one per backend, 251 and more per Maglev set.
    :ivar flows: directions of flows that are balanced per packet (two a flow), some 140 bytes each.
    :ivar clients: those that stay with a backend, by session affinity; some 100 bytes each.
    :ivar pods: addresses of local pods.
    :ivar policies: different ones that local pods have; this and all below only where policies are enforced.
    :ivar rules: of all of them, old and new ones together while they change; some 80 bytes each.
    :ivar parties: addresses of pods and nodes of the cluster, some 80 bytes each.
    :ivar networks: that policies tell apart.
    :ivar talks: connections that policies have let begin, some 120 bytes each.
    """

    services: int = field(default=65536, validator=_entries(most=1 << 30))
    backends: int = field(default=262144, validator=_entries(most=1 << 22))
    slots: int = field(default=1 << 20, validator=_entries())
    flows: int = field(default=262144, validator=_entries())
    clients: int = field(default=65536, validator=_entries())
    pods: int = field(default=4096, validator=_entries())
    policies: int = field(default=4096, validator=_entries(most=1 << 30))
    rules: int = field(default=262144, validator=_entries())
    parties: int = field(default=262144, validator=_entries())
    networks: int = field(default=65536, validator=_entries())
    talks: int = field(default=131072, validator=_entries())

    @classmethod
    def of(cls, max_entries: Mapping[str, int]) -> Capacity:
        """That of maps of these sizes."""
        return cls(
            services=max_entries["kd_frontends"],
            backends=max_entries["kd_backends"],
            slots=max_entries["kd_slots"] * _SLOTS_PER_BLOCK,
            flows=max_entries["kd_conntrack"],
            clients=max_entries["kd_affinity"],
            pods=max_entries["kd_endpoints"],
            policies=max(1, max_entries["kd_policies"] // 2),
            rules=max_entries["kd_rules"],
            parties=max_entries["kd_ipcache"],
            networks=max_entries["kd_networks"],
            talks=max_entries["kd_talks"],
        )

    @property
    def max_entries(self) -> dict[str, int]:
        """The same, by map."""
        return {
            "kd_frontends": self.services,
            "kd_sets": 3 * self.services,
            "kd_slots": -(-self.slots // _SLOTS_PER_BLOCK),
            "kd_backends": self.backends,
            "kd_conntrack": self.flows,
            "kd_affinity": self.clients,
            "kd_endpoints": self.pods,
            "kd_policies": 2 * self.policies,
            "kd_rules": self.rules,
            "kd_ipcache": self.parties,
            "kd_identities": self.parties,
            "kd_networks": self.networks,
            "kd_talks": self.talks,
        }


@frozen(kw_only=True)
class NodeConfig:
    """What a node consists of, and which hooks it uses.

    :ivar name: for messages.
    :ivar netns: the namespace of its devices; None is that of the calling thread.
    :ivar uplinks: devices towards the rest of the world, whose packets have Ethernet headers.
    :ivar cgroup: a cgroup2 directory; sockets of its processes are balanced when they connect.
    :ivar pins: where maps and links are pinned; None: the datapath ends with the process. A node owns its
        directory while it is open.
    :ivar service_networks: whose addresses are cluster IPs, all of them (Kubernetes: ServiceCIDR); at most
        one of each family. Who dials there what no service has is refused. Cluster IPs elsewhere are known
        one by one.
    :ivar pod_networks: which addresses pods of this node get (Kubernetes: ``podCIDRs`` of its Node); at most
        one of each family. With ``policy``, who has one of them and was not attached is cut off, whatever its
        device: new pods from before their first packet. The node's own addresses may be among them. None:
        those that are pinned; see :attr:`Node.pod_networks`.
    :ivar tc_lb: balance packets at pod devices and uplinks.
    :ivar socket_lb: balance sockets of ``cgroup``.
    :ivar pod_sockets: those in other network namespaces than the node's own too. False: what pods send is
        balanced per packet, and proxies beside them see what they dialled. Needs ``tc_lb``.
    :ivar protect_node_ports: refuse to processes of ``cgroup`` in the node's own namespace to bind a node
        port, where nobody would reach them (``EADDRINUSE``). Needs ``socket_lb``.
    :ivar redirect: hand translated packets to their device, past the node's netfilter and routing.
    :ivar xdp: continue flows between machines elsewhere in the drivers of the uplinks, where these can: see
        :attr:`Node.xdp_uplinks`. What arrives there must have whole checksums, and its VLAN tags in it: so
        it does from the wire, but not from a veth whose other end leaves checksums to the device.
    :ivar collect: take away flows that are over, in a thread that the node has while it is open; see
        :attr:`Node.upkeep`.
    :ivar timeouts: when flows are over.
    :ivar capacity: how much the tables hold.
    :ivar tunnel: how packets to pods of other nodes travel, ``"vxlan"`` or a :class:`Tunnel`; None: as the
        node's routes say.
    :ivar direct_routes: make routes to the pods of other nodes, through these nodes; see :attr:`Node.routes`.
    :ivar masquerade: what pods send to the world leaves under an address of the node; see
        :attr:`Node.masquerade`.
    :ivar host_firewall: policies are for the node itself too, at its uplinks, once :meth:`Node.attach_host`
        has told who it is; a :class:`HostFirewall` says which ports none of them closes, True: the usual
        ones. Needs ``policy`` and ``tc_lb``.
    :ivar flows: how much the programs tell of packets, for :attr:`Node.observer`: ``"drops"``,
        ``"aggregated"`` or ``"all"``; None: they tell nothing, and cannot be told to.
    :ivar flows_kept: how many flows the observer keeps, 168 bytes each.
    :ivar policy: pods send and receive what policies allow, and send under their own addresses only. A pod
        that is attached without its labels can do neither; see :attr:`Node.policy`.
    :ivar dns: learn from what name servers answer pods from port 53: policies by name (``toFQDNs``) are
        in force for the addresses, and flows have the names; and hold questions to the names that policies
        allow (``rules.dns``). See :attr:`Node.dns`. Needs ``policy``.
    :ivar dns_visibility: questions to name servers and their answers are flows of their own, also where no
        policy holds them to names. Needs ``dns`` and ``flows``.
    :ivar accelerate: sockets of ``cgroup`` that are connected within the node hand each other what they send,
        if they are chosen: see :attr:`Node.accelerator`. Needs ``cgroup``.
    :ivar l7: hold requests of HTTP to policies that ask for it, at the sockets of ``cgroup``; see
        :attr:`Node.l7`. Without it such policies are refused. Needs ``cgroup``.
    """

    name: str = ""
    netns: NetNs | None = field(
        default=None,
        validator=_a(NetNs, or_none=": open it with NetNs.open(name), and close it after the node"),
    )
    uplinks: tuple[str, ...] = field(default=(), converter=_names)
    cgroup: Path | None = field(default=None, converter=_path)
    pins: PinDir | None = field(default=None, converter=_pins)
    service_networks: tuple[IPNetwork, ...] = field(default=(), converter=one_of_each_family)
    pod_networks: tuple[IPNetwork, ...] | None = field(default=None, converter=optional(one_of_each_family))
    tc_lb: bool = True
    socket_lb: bool = True
    pod_sockets: bool = True
    protect_node_ports: bool = True
    redirect: bool = True
    xdp: bool = False
    collect: bool = True
    timeouts: Timeouts = field(factory=Timeouts, validator=_a(Timeouts))
    tunnel: Tunnel | None = field(default=None, converter=to_tunnel)
    direct_routes: bool = False
    masquerade: Masquerade | None = field(
        default=None,
        validator=_a(Masquerade, or_none=": Masquerade(exclude=[...]) says who is not the world"),
    )
    policy: bool = False
    dns: bool = field(default=False, validator=_needs_policy)
    dns_visibility: bool = field(default=False)
    host_firewall: HostFirewall | None = field(default=None, converter=to_host_firewall)
    flows: Level | None = field(default=None, converter=_to_level)
    flows_kept: int = field(default=65536, validator=_entries(most=1 << 24))
    accelerate: bool = field(default=False, validator=_needs_cgroup)
    l7: bool = field(default=False, validator=_needs_cgroup)
    capacity: Capacity = field(default=Capacity(), validator=_a(Capacity))

    @host_firewall.validator
    def _check_host_firewall(self, attribute: Attribute[Any], value: object) -> None:
        _a(HostFirewall, or_none=", nor True")(self, attribute, value)
        if value is not None and not (self.policy and self.tc_lb):
            raise ModelError("host_firewall needs policy=True and tc_lb=True: it is policies at uplinks")

    @dns_visibility.validator
    def _check_dns_visibility(self, attribute: Attribute[Any], value: object) -> None:
        _a(bool)(self, attribute, value)
        if value and not (self.dns and self.flows):
            raise ModelError("dns_visibility needs dns=True and flows: it is flows of name servers' messages")

    @property
    def sizes(self) -> dict[str, int]:
        """How many elements its maps have; those of policies one, where none are enforced."""
        sizes = self.capacity.max_entries
        return sizes if self.policy else sizes | dict.fromkeys(POLICY_MAPS & sizes.keys(), 1)

    @property
    def constants(self) -> dict[str, ConfigValue]:
        """What the programs are told when they are loaded."""
        networks = {f"service_ipv{each.version}": each for each in self.service_networks}
        return {
            "redirect": self.redirect,
            "pod_sockets": self.pod_sockets,
            "masquerade": self.masquerade is not None,
            "enforce": self.policy,
            "host_firewall": self.host_firewall is not None,
            "events": self.flows is not None,
            "dns": self.dns,
            **networks,
        }
