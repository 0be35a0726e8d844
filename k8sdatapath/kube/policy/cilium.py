"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy of ``cilium.io/v2``: their rules.

Where Cilium reads a field otherwise than Kubernetes does, it is read as Cilium does: an empty list of rules
isolates nothing, an empty rule allows nobody, a network means addresses of the world only.
"""

from __future__ import annotations

from collections.abc import Iterator

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.cilium_peers import cidr_set, endpoints, key, names, services
from k8sdatapath.kube.policy.cilium_ports import Ports, ports
from k8sdatapath.kube.policy.reading import (
    OBJECT,
    PODS,
    cidr,
    known,
    label_selector,
    named,
    nodes,
    this_node,
)
from k8sdatapath.model.host_firewall import HOST
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import (
    ALL_PORTS,
    EVERYBODY,
    POD_NAMESPACE,
    Action,
    Block,
    NetworkPeer,
    Operator,
    Policy,
    Requirement,
    Rule,
    Selector,
    Toward,
)

__all__ = ["cilium_clusterwide_policy", "cilium_policy", "whole"]

_SECTIONS = {
    "ingress": (Toward.INGRESS, Action.ALLOW),
    "ingressDeny": (Toward.INGRESS, Action.DENY),
    "egress": (Toward.EGRESS, Action.ALLOW),
    "egressDeny": (Toward.EGRESS, Action.DENY),
}
_PART = " specs["
_SIDE = {Toward.INGRESS: "from", Toward.EGRESS: "to"}
_PEERS = {
    Toward.INGRESS: ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes"),
    Toward.EGRESS: ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", "Services", "FQDNs"),
}
_UNABLE = {
    "Requires": "Cilium itself has it no more since 1.19",
    "Groups": "groups of a cloud provider are not enforced",
}
_UNABLE_RULE = {
    "authentication": "mutual authentication is not enforced",
}
_NO_NODES = {
    "nodeSelector": "policies for nodes are clusterwide, and enforced where there is a host firewall"
}

_WORLD = ("world", "world-ipv4", "world-ipv6")
_IN_CLUSTER = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
_ENTITIES: dict[str, tuple[Selector, ...]] = {
    "all": (EVERYBODY,),
    "none": (),
    "world": tuple(Selector([Requirement(f"reserved:{name}")]) for name in _WORLD),
    "cluster": (
        Selector([PODS]),
        *(Selector([Requirement(f"reserved:{name}")]) for name in _IN_CLUSTER),
    ),
    **{
        name: (Selector([Requirement(f"reserved:{name}")]),)
        for name in ("world-ipv4", "world-ipv6", *_IN_CLUSTER)
    },
}


def cilium_policy(root: Field, around: Around) -> Iterator[Policy]:
    """Read one for the pods of a namespace; it has as many parts as ``specs``."""
    known(root, (*OBJECT, "specs"))
    namespace, name = named(root, namespaced=True)
    yield from _policies(root, f"CiliumNetworkPolicy {namespace}/{name}", namespace, around)


def cilium_clusterwide_policy(root: Field, around: Around) -> Iterator[Policy]:
    """Read one for pods of all namespaces, or for nodes."""
    known(root, (*OBJECT, "specs"))
    _, name = named(root, namespaced=False)
    yield from _policies(root, f"CiliumClusterwideNetworkPolicy {name}", "", around)


def _policies(root: Field, title: str, namespace: str, around: Around) -> Iterator[Policy]:
    specs = root["specs"].items()
    if root["spec"].value is None and not specs:
        root["spec"].refuse("missing: neither spec nor specs is here")
    if root["spec"].value is not None:
        yield _policy(root["spec"], title, namespace, around)
    for index, spec in enumerate(specs):
        yield _policy(spec, f"{title}{_PART}{index}]", namespace, around)


def whole(name: str) -> str:
    """The object that a policy of this name is, or is a part of."""
    return name.partition(_PART)[0]


def _policy(spec: Field, title: str, namespace: str, around: Around) -> Policy:
    fields = ("endpointSelector", "enableDefaultDeny", "labels", "description", "log", *_SECTIONS)
    for_nodes = around.nodes and not namespace
    known(spec, (*fields, "nodeSelector") if for_nodes else fields, _NO_NODES)
    if all(spec[name].value is None for name in _SECTIONS):
        spec.refuse(f"one of {', '.join(_SECTIONS)} is needed here")
    if spec["nodeSelector"].value is None:
        subject = _subject(spec["endpointSelector"].given(), namespace)
    elif spec["endpointSelector"].value is None:
        subject = this_node(spec["nodeSelector"])
    else:
        spec["nodeSelector"].refuse("a policy is for pods or for nodes: endpointSelector is here too")
    switches = known(spec["enableDefaultDeny"], ("ingress", "egress"))
    rules: list[Rule] = []
    isolates: set[Toward] = set()
    for section, (toward, action) in _SECTIONS.items():
        for field in spec[section].items():
            isolates.add(toward)
            rules += _rule(field, toward, action, namespace, around)
    for toward in Toward:
        switch = switches[toward.name.lower()].flag()
        if switch is not None:
            (isolates.add if switch else isolates.discard)(toward)
    if for_nodes and HOST in subject.requirements and any(rule.l7 for rule in rules):
        spec.refuse("requests to nodes themselves are not looked at: rules are for pods")
    return Policy(title, subject, rules, isolates, where=spec.where)


def _subject(field: Field, namespace: str) -> Selector:
    requirements = list(label_selector(field, key))
    own = Requirement(POD_NAMESPACE, Operator.IN, [namespace]) if namespace else PODS
    for each in requirements:
        if namespace and each.key == POD_NAMESPACE and each != own:
            field.refuse(f"a policy of namespace {namespace} cannot select pods of others: {each}")
    return Selector([*requirements, own])


def _rule(field: Field, toward: Toward, action: Action, namespace: str, around: Around) -> Iterator[Rule]:
    """None, for a rule that says nothing: it only isolates."""
    side = _SIDE[toward]
    unable = {side + name: reason for name, reason in _UNABLE.items()} | _UNABLE_RULE
    fields = [side + name for name in _PEERS[toward]]
    known(field, (*fields, "toPorts", "icmps"), unable)
    given = [name for name in fields if field[name].value is not None]
    filled = [name for name in given if field[name].items()]
    if len(filled) > 1:
        field.refuse(f"{filled[0]} and {filled[1]} cannot be in one rule: write two")
    if action is Action.DENY and "toFQDNs" in given:
        field["toFQDNs"].refuse("a deny cannot name peers by DNS: who is not in the answers would pass")
    found = ports(field, around)
    if found is not None and "toServices" in filled:
        field["toServices"].refuse("toServices and ports cannot be in one rule, as Cilium has it")
    if not given and found is None:
        return
    peers = list(_peers(field, side, namespace, around)) if given else [EVERYBODY]
    for each in [Ports(field.path, (ALL_PORTS,))] if found is None else found:
        if each.requests and action is Action.DENY:
            field["toPorts"].refuse("a deny cannot ask for requests: allow those that are not meant")
        if toward is Toward.INGRESS and any(isinstance(one, NamePattern) for one in each.requests):
            field["toPorts"].refuse("names are held to rules where a pod asks for them: write it as egress")
        yield Rule(each.path, toward, peers, each.matches, action, each.requests)


def _peers(field: Field, side: str, namespace: str, around: Around) -> Iterator[NetworkPeer]:
    for each in field[f"{side}Endpoints"].items():
        yield endpoints(each, namespace)
    for each in field[f"{side}Entities"].items():
        entity = each.choice(*_ENTITIES)
        yield from _ENTITIES[entity]
        if entity in ("kube-apiserver", "cluster"):  # on nodes as well, or outside of the cluster
            yield from (Block(address) for address in around.api_servers())
    for each in field[f"{side}CIDR"].items():
        yield Block(cidr(each, bare=True), pods=False)
    for each in field[f"{side}CIDRSet"].items():
        yield from cidr_set(each, around)
    for each in field[f"{side}Nodes"].items():
        yield from nodes(each)
    for each in field["toServices"].items() if side == "to" else ():
        yield from services(each, namespace, around)
    for each in field["toFQDNs"].items() if side == "to" else ():
        yield names(each, around)
