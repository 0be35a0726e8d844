"""HostFirewall: policies for a node itself, and what they never cut."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen

from k8sdatapath.model.frontend import Protocol
from k8sdatapath.model.masquerade import to_ports
from k8sdatapath.model.policy import (
    EVERYBODY,
    Action,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Tier,
    Toward,
)

__all__ = ["HOST", "HostFirewall"]

HOST = Requirement("reserved:host")
"""Label of the node that policies are enforced on."""

_FIRST = -1
"""Before every priority that an administrator can give."""


@frozen(kw_only=True)
class HostFirewall:
    """Policies for the node itself, and the ports that none of them closes::

        NodeConfig(policy=True, host_firewall=HostFirewall(incoming=["22/TCP", "6443/TCP"]))

    :ivar incoming: ports of the node that everybody reaches, whatever policies say. By default SSH, DHCP,
        etcd, the API server and the kubelet.
    :ivar outgoing: ports that the node reaches anywhere. By default DNS, DHCP, etcd and the API server.
    """

    incoming: tuple[tuple[Protocol, int], ...] = field(
        default=("22/TCP", "68/UDP", "2379/TCP", "2380/TCP", "6443/TCP", "10250/TCP"), converter=to_ports
    )
    outgoing: tuple[tuple[Protocol, int], ...] = field(
        default=("53/TCP", "53/UDP", "67/UDP", "2379/TCP", "2380/TCP", "6443/TCP"), converter=to_ports
    )

    @property
    def failsafe(self) -> Policy:
        """The policy that keeps these ports open: of the first tier, and first in it."""
        sides = {Toward.INGRESS: ("incoming", self.incoming), Toward.EGRESS: ("outgoing", self.outgoing)}
        rules = [
            Rule(
                name, toward, [EVERYBODY], [PortMatch(each, port, port) for each, port in ports], Action.ALLOW
            )
            for toward, (name, ports) in sides.items()
            if ports
        ]
        return Policy("HostFirewall failsafe", Selector([HOST]), rules, tier=Tier.ADMIN, priority=_FIRST)


def for_nodes(policies: Iterable[Policy]) -> bool:
    """Whether some are for nodes, which takes a host firewall."""
    return any(HOST in each.subject.requirements for each in policies)


def to_host_firewall(given: HostFirewall | bool | None) -> HostFirewall | None:
    """As people write it: True is one that leaves the usual ports open."""
    return HostFirewall() if given is True else given or None
