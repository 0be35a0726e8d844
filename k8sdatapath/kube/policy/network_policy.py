"""NetworkPolicy of ``networking.k8s.io/v1``, with the defaults that an API server fills in."""

from __future__ import annotations

from collections.abc import Iterator

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.reading import (
    OBJECT,
    cidr,
    excepts,
    known,
    named,
    namespaces,
    pods,
    port_name,
    within_pods,
)
from k8sdatapath.model import Protocol, port
from k8sdatapath.model.address import shown
from k8sdatapath.model.policy import (
    ALL_PORTS,
    EVERYBODY,
    Block,
    NetworkPeer,
    Policy,
    PortMatch,
    Rule,
    Selector,
    Toward,
)

__all__ = ["network_policy"]

_FROM = {Toward.INGRESS: "from", Toward.EGRESS: "to"}


def network_policy(root: Field, around: Around) -> Iterator[Policy]:
    """Read one."""
    known(root, OBJECT)
    namespace, name = named(root, namespaced=True)
    spec = known(root["spec"].given(), ("podSelector", "policyTypes", "ingress", "egress"))
    isolates = _isolates(spec)
    subject = within_pods(namespace, pods(spec["podSelector"]))
    rules = [
        _rule(each, toward, namespace) for toward in Toward for each in spec[toward.name.lower()].items()
    ]
    yield Policy(
        f"NetworkPolicy {namespace}/{name}",
        subject,
        [rule for rule in rules if rule.toward in isolates],
        isolates,
        where=root.where,
    )


def _isolates(spec: Field) -> set[Toward]:
    """Ingress where nothing is said, and egress too where it has rules."""
    types = spec["policyTypes"].items()
    if types:
        return {Toward[each.choice("Ingress", "Egress").upper()] for each in types}
    return {Toward.INGRESS, Toward.EGRESS} if spec["egress"].items() else {Toward.INGRESS}


def _rule(field: Field, toward: Toward, namespace: str) -> Rule:
    side = _FROM[toward]
    known(field, (side, "ports"))
    peers = [_peer(each, namespace) for each in field[side].items()]
    ports = [_port(each) for each in field["ports"].items()]
    return Rule(field.path, toward, peers or (EVERYBODY,), ports or (ALL_PORTS,))


def _peer(field: Field, namespace: str) -> NetworkPeer:
    known(field, ("podSelector", "namespaceSelector", "ipBlock"))
    block, around, own = field["ipBlock"], field["namespaceSelector"], field["podSelector"]
    if block.value is not None:
        if around.value is not None or own.value is not None:
            field.refuse("ipBlock stands alone: selectors belong into an item of their own")
        return _block(block)
    if around.value is None and own.value is None:
        field.refuse("one of podSelector, namespaceSelector, ipBlock is needed here, this has none")
    if around.value is None:
        return within_pods(namespace, pods(own))
    return Selector([*namespaces(around), *pods(own)])


def _block(field: Field) -> Block:
    known(field, ("cidr", "except"))
    outer = cidr(field["cidr"])
    return Block(outer, excepts(field["except"], outer))


def _port(field: Field) -> PortMatch:
    known(field, ("protocol", "port", "endPort"))
    protocol = Protocol[field["protocol"].choice("TCP", "UDP", "SCTP", default="TCP")]
    first, last = field["port"], field["endPort"]
    if isinstance(first.value, str):
        if last.value is not None:
            last.refuse(f"a range begins with a number, not with {shown(first.value)}")
        if first.value.isdecimal():
            first.refuse(f"{shown(first.value)} is text: a port has no quotes")
        return PortMatch(protocol, name=port_name(first))
    if first.value is None:
        if last.value is not None:
            last.refuse("a range needs its first port")
        return PortMatch(protocol)
    begin = first.made(port)
    end = begin if last.value is None else last.made(port)
    if end < begin:
        last.refuse(f"{end} is before the first port of the range, {begin}")
    return PortMatch(protocol, begin, end)
