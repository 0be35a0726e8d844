"""ClusterNetworkPolicy of ``policy.networking.k8s.io/v1alpha2``: the tiers above and below all others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.reading import (
    OBJECT,
    by_name,
    cidr,
    known,
    named,
    namespaces,
    nodes,
    only_one,
    pods,
    port_name,
)
from k8sdatapath.model import Protocol, port
from k8sdatapath.model.address import shown
from k8sdatapath.model.policy import (
    ALL_PORTS,
    Action,
    Block,
    NetworkPeer,
    Policy,
    PortMatch,
    Rule,
    Selector,
    Tier,
    Toward,
)

__all__ = ["cluster_network_policy"]

MAX_ITEMS = 25
"""In each of its lists."""

_ACTIONS = {"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}
_SIDE = {Toward.INGRESS: "from", Toward.EGRESS: "to"}
_PEERS = {
    Toward.INGRESS: ("namespaces", "pods"),
    Toward.EGRESS: ("namespaces", "pods", "nodes", "networks", "domainNames"),
}
_EGRESS_ONLY = {name: f"this API has {name} for egress only" for name in ("nodes", "networks", "domainNames")}
_NAMELESS = ("networks", "nodes", "domainNames")
"""Peers without ports that have names."""
_DOMAIN = re.compile(
    r"(\*\.)?(?:[a-z0-9](?:[-a-z0-9_]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[-a-z0-9_]{0,61}[a-z0-9])?\.?", re.I
)


def cluster_network_policy(root: Field, around: Around) -> Iterator[Policy]:
    """Read one."""
    known(root, OBJECT)
    _, name = named(root, namespaced=False)
    spec = known(root["spec"].given(), ("tier", "priority", "subject", "ingress", "egress"))
    priority = spec["priority"].given()
    if type(priority.value) is not int or not 0 <= priority.value <= 1000:
        priority.refuse(f"{shown(priority.value)} is not a priority (0 to 1000)")
    subject = spec["subject"].given()
    yield Policy(
        f"ClusterNetworkPolicy {name}",
        _selector(subject, only_one(subject, ("namespaces", "pods"))),
        [_rule(each, toward, around) for toward in Toward for each in _few(spec[toward.name.lower()])],
        tier=Tier[spec["tier"].choice("Admin", "Baseline").upper()],
        priority=priority.value,
        where=root.where,
    )


def _few(field: Field, least: int = 0) -> list[Field]:
    items = field.items()
    if not least <= len(items) <= MAX_ITEMS:
        field.refuse(f"{len(items)} items: from {least} to {MAX_ITEMS} are expected")
    return items


def _selector(field: Field, kind: str) -> Selector:
    if kind == "namespaces":
        return Selector(namespaces(field["namespaces"]))
    both = known(field["pods"], ("namespaceSelector", "podSelector"))
    own = both["podSelector"].given()
    return Selector([*namespaces(both["namespaceSelector"]), *pods(own)])


def _rule(field: Field, toward: Toward, around: Around) -> Rule:
    side = _SIDE[toward]
    known(field, ("name", "action", side, "protocols"))
    action = _ACTIONS[field["action"].choice(*_ACTIONS)]
    name = field["name"].text("")
    if len(name) > 100:
        field["name"].refuse("more than 100 characters")
    name = name if name.isprintable() else shown(name)  # it is going to be in tables and logs
    given = _few(field[side].given(), 1)
    peers = [peer for each in given for peer in _peers(each, toward, action, around)]
    protocols = field["protocols"]
    ports = [ALL_PORTS]
    if protocols.value is not None:
        ports = [_port(each) for each in _few(protocols, 1)]
    for each, found in zip(protocols.items(), ports, strict=False):
        for peer in given if found.name else ():
            for kind in _NAMELESS:
                if peer[kind].value is not None:
                    each["destinationNamedPort"].refuse(f"{kind} have no ports with names")
    return Rule(f"{field.path} ({name})" if name else field.path, toward, peers, ports, action)


def _peers(field: Field, toward: Toward, action: Action, around: Around) -> Iterator[NetworkPeer]:
    kind = only_one(field, _PEERS[toward], _EGRESS_ONLY if toward is Toward.INGRESS else {})
    if kind == "networks":
        yield from (Block(cidr(each)) for each in _few(field["networks"], 1))
    elif kind == "nodes":
        yield from nodes(field["nodes"])
    elif kind == "domainNames":
        if action is not Action.ALLOW:
            field["domainNames"].refuse("this API has domainNames for Accept only")
        yield from (_domain(each, around) for each in _few(field["domainNames"], 1))
    else:
        yield _selector(field, kind)


def _domain(field: Field, around: Around) -> Selector:
    """Its ``*`` stands for one or more labels, which is ``**`` in a pattern of Cilium's."""
    if not _DOMAIN.fullmatch(field.text()):
        field.refuse(f"{shown(field.value)} is not a domain name, nor one after *.")
    return by_name(field, f"*{field.value}" if field.value.startswith("*") else field.value, around)


def _port(field: Field) -> PortMatch:
    kind = only_one(field, ("tcp", "udp", "sctp", "destinationNamedPort"))
    if kind == "destinationNamedPort":
        return PortMatch(name=port_name(field[kind]))
    protocol = Protocol[kind.upper()]
    ports = known(field[kind], ("destinationPort",))["destinationPort"].given()
    if only_one(ports, ("number", "range")) == "number":
        number = ports["number"].made(port)
        return PortMatch(protocol, number, number)
    ends = known(ports["range"], ("start", "end"))
    first, last = ends["start"].made(port), ends["end"].made(port)
    if last <= first:
        ends["end"].refuse(f"{last} is not after the first port of the range, {first}")
    return PortMatch(protocol, first, last)
