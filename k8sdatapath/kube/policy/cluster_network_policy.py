"""ClusterNetworkPolicy of ``policy.networking.k8s.io/v1alpha2``: the tiers above and below all others."""

from __future__ import annotations

from collections.abc import Iterator

from k8sdatapath.kube.decode import PORT_NAME
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.reading import OBJECT, cidr, known, named, namespaces, only_one, pods
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
_PEERS = {Toward.INGRESS: ("namespaces", "pods"), Toward.EGRESS: ("namespaces", "pods", "networks")}
_UNABLE = {
    Toward.INGRESS: {"networks": "this API has networks for egress only"},
    Toward.EGRESS: {
        "nodes": "policies that tell nodes apart are not enforced yet",
        "domainNames": "policies by DNS name are not enforced yet",
    },
}


def cluster_network_policy(root: Field) -> Iterator[Policy]:
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
        [_rule(each, toward) for toward in Toward for each in _few(spec[toward.name.lower()])],
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


def _rule(field: Field, toward: Toward) -> Rule:
    side = _SIDE[toward]
    known(field, ("name", "action", side, "protocols"))
    action = _ACTIONS[field["action"].choice(*_ACTIONS)]
    name = field["name"].text("")
    if len(name) > 100:
        field["name"].refuse("more than 100 characters")
    peers = [peer for each in _few(field[side].given(), 1) for peer in _peers(each, toward)]
    protocols = field["protocols"]
    ports = [ALL_PORTS]
    if protocols.value is not None:
        ports = [_port(each) for each in _few(protocols, 1)]
    for each, found in zip(protocols.items(), ports, strict=False):
        if found.name and any(isinstance(peer, Block) for peer in peers):
            each["destinationNamedPort"].refuse("networks have no ports with names")
    return Rule(f"{field.path} ({name})" if name else field.path, toward, peers, ports, action)


def _peers(field: Field, toward: Toward) -> Iterator[NetworkPeer]:
    kind = only_one(field, _PEERS[toward], _UNABLE[toward])
    if kind == "networks":
        yield from (Block(cidr(each)) for each in _few(field["networks"], 1))
    else:
        yield _selector(field, kind)


def _port(field: Field) -> PortMatch:
    kind = only_one(field, ("tcp", "udp", "sctp", "destinationNamedPort"))
    if kind == "destinationNamedPort":
        name = field[kind].text()
        if not name or not PORT_NAME.fullmatch(name):
            field[kind].refuse(f"{shown(name)} is not a port name (a-z, 0-9, -)")
        return PortMatch(name=name)
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
