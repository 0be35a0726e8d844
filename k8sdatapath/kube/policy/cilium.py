"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy of ``cilium.io/v2``: their rules of layers 3 and 4.

Where Cilium reads a field otherwise than Kubernetes does, it is read as Cilium does: an empty list of rules
isolates nothing, an empty rule allows nobody, a network means addresses of the world only.
"""

from __future__ import annotations

from collections.abc import Iterator

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.cilium_ports import ports
from k8sdatapath.kube.policy.reading import (
    OBJECT,
    PODS,
    cidr,
    excepts,
    known,
    kube_key,
    label_selector,
    named,
)
from k8sdatapath.model.address import shown
from k8sdatapath.model.policy import (
    ALL_PORTS,
    EVERYBODY,
    NAMESPACE_LABELS,
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

__all__ = ["cilium_clusterwide_policy", "cilium_policy"]

_SECTIONS = {
    "ingress": (Toward.INGRESS, Action.ALLOW),
    "ingressDeny": (Toward.INGRESS, Action.DENY),
    "egress": (Toward.EGRESS, Action.ALLOW),
    "egressDeny": (Toward.EGRESS, Action.DENY),
}
_SIDE = {Toward.INGRESS: "from", Toward.EGRESS: "to"}
_PEERS = ("Endpoints", "Entities", "CIDR", "CIDRSet")
_UNABLE = {
    "Requires": "Cilium itself has it no more since 1.19",
    "Nodes": "policies that tell nodes apart are not enforced yet",
    "Groups": "groups of a cloud provider are not enforced",
    "FQDNs": "policies by DNS name are not enforced yet",
    "Services": "policies by Service are not enforced yet",
}
_UNABLE_RULE = {
    "authentication": "mutual authentication is not enforced",
}
_NO_NODES = {"nodeSelector": "policies for nodes themselves are not enforced yet"}

_PRESENT = (Operator.IN, Operator.EXISTS)
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


def cilium_policy(root: Field) -> Iterator[Policy]:
    """Read one for the pods of a namespace; it has as many parts as ``specs``."""
    known(root, (*OBJECT, "specs"))
    namespace, name = named(root, namespaced=True)
    yield from _policies(root, f"CiliumNetworkPolicy {namespace}/{name}", namespace)


def cilium_clusterwide_policy(root: Field) -> Iterator[Policy]:
    """Read one for pods of all namespaces."""
    known(root, (*OBJECT, "specs"))
    _, name = named(root, namespaced=False)
    yield from _policies(root, f"CiliumClusterwideNetworkPolicy {name}", "")


def _policies(root: Field, title: str, namespace: str) -> Iterator[Policy]:
    specs = root["specs"].items()
    if root["spec"].value is None and not specs:
        root["spec"].refuse("missing: neither spec nor specs is here")
    if root["spec"].value is not None:
        yield _policy(root["spec"], title, namespace)
    for index, spec in enumerate(specs):
        yield _policy(spec, f"{title} specs[{index}]", namespace)


def _policy(spec: Field, title: str, namespace: str) -> Policy:
    fields = ("endpointSelector", "enableDefaultDeny", "labels", "description", "log", *_SECTIONS)
    known(spec, fields, _NO_NODES)
    if all(spec[name].value is None for name in _SECTIONS):
        spec.refuse(f"one of {', '.join(_SECTIONS)} is needed here")
    subject = _subject(spec["endpointSelector"].given(), namespace)
    switches = known(spec["enableDefaultDeny"], ("ingress", "egress"))
    rules: list[Rule] = []
    isolates: set[Toward] = set()
    for section, (toward, action) in _SECTIONS.items():
        for field in spec[section].items():
            isolates.add(toward)
            rules += _rule(field, toward, action, namespace)
    for toward in Toward:
        switch = switches[toward.name.lower()].flag()
        if switch is not None:
            (isolates.add if switch else isolates.discard)(toward)
    return Policy(title, subject, rules, isolates, where=spec.where)


def _subject(field: Field, namespace: str) -> Selector:
    requirements = list(label_selector(field, _key))
    own = Requirement(POD_NAMESPACE, Operator.IN, [namespace]) if namespace else PODS
    for each in requirements:
        if namespace and each.key == POD_NAMESPACE and each != own:
            field.refuse(f"a policy of namespace {namespace} cannot select pods of others: {each}")
    return Selector([*requirements, own])


def _rule(field: Field, toward: Toward, action: Action, namespace: str) -> Iterator[Rule]:
    """None, for a rule that says nothing: it only isolates."""
    side = _SIDE[toward]
    unable = {side + name: reason for name, reason in _UNABLE.items()} | _UNABLE_RULE
    known(field, (*(side + name for name in _PEERS), "toPorts", "icmps"), unable)
    given = [side + name for name in _PEERS if field[side + name].value is not None]
    filled = [name for name in given if field[name].items()]
    if len(filled) > 1:
        field.refuse(f"{filled[0]} and {filled[1]} cannot be in one rule: write two")
    found = ports(field)
    if not given and found is None:
        return
    peers = list(_peers(field, side, namespace)) if given else [EVERYBODY]
    yield Rule(field.path, toward, peers, [ALL_PORTS] if found is None else found, action)


def _peers(field: Field, side: str, namespace: str) -> Iterator[NetworkPeer]:
    for each in field[f"{side}Endpoints"].items():
        yield _endpoints(each, namespace)
    for each in field[f"{side}Entities"].items():
        yield from _ENTITIES[each.choice(*_ENTITIES)]
    for each in field[f"{side}CIDR"].items():
        yield Block(cidr(each), pods=False)
    for each in field[f"{side}CIDRSet"].items():
        unable = {
            "cidrGroupRef": "groups of networks are not enforced yet",
            "cidrGroupSelector": "groups of networks are not enforced yet",
        }
        known(each, ("cidr", "except"), unable)
        outer = cidr(each["cidr"])
        yield Block(outer, excepts(each["except"], outer), pods=False)


def _endpoints(field: Field, namespace: str) -> Selector:
    """Those of the policy's namespace, unless it says otherwise; only pods, unless it says reserved."""
    requirements = list(label_selector(field, _key))
    keys = [each.key for each in requirements]
    if any(each.key.startswith("reserved:") and each.operator in _PRESENT for each in requirements):
        return Selector(requirements)
    if namespace and not any(key == POD_NAMESPACE or key.startswith(NAMESPACE_LABELS) for key in keys):
        return Selector([*requirements, Requirement(POD_NAMESPACE, Operator.IN, [namespace])])
    return Selector([*requirements, PODS])


def _key(field: Field, name: str) -> str:
    """A key may have its source before it; what only Kubernetes says of a pod has that of Kubernetes."""
    source, colon, key = name.partition(":")
    if not colon:
        source, key = "any", name
    if source not in ("any", "k8s", "reserved", "container", "unspec"):
        field.refuse(f"{shown(source)} is not a source of labels: there is any, k8s, reserved")
    name = kube_key(field, key)
    derived = name == POD_NAMESPACE or name.startswith((NAMESPACE_LABELS, "k8s:io.cilium.k8s.policy."))
    return name if derived else f"{source}:{key}"
