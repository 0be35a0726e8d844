"""Who the other side is, in the rules of Cilium's policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from k8sdatapath.errors import near_misses
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around, NetworkGroup, PolicyService
from k8sdatapath.kube.policy.reading import (
    PODS,
    by_name,
    cidr,
    excepts,
    known,
    kube_key,
    label_selector,
    name_field,
    only_one,
    within_pods,
)
from k8sdatapath.model.address import shown
from k8sdatapath.model.policy import (
    NAMESPACE_LABELS,
    POD_NAMESPACE,
    Block,
    NetworkPeer,
    Operator,
    Requirement,
    Selector,
    within,
)

__all__ = ["cidr_set", "endpoints", "key", "names", "services"]

SOURCES = ("any", "k8s", "reserved", "container", "unspec")
_PRESENT = (Operator.IN, Operator.EXISTS)


def key(field: Field, name: str) -> str:
    """A key may have its source before it; what only Kubernetes says of a pod has that of Kubernetes."""
    source, colon, rest = name.partition(":")
    if not colon:
        source, rest = "any", name
    if source not in SOURCES:
        field.refuse(f"{shown(source)} is not a source of labels: there is any, k8s, reserved")
    name = kube_key(field, rest)
    derived = name == POD_NAMESPACE or name.startswith((NAMESPACE_LABELS, "k8s:io.cilium.k8s.policy."))
    return name if derived else f"{source}:{rest}"


def endpoints(field: Field, namespace: str) -> Selector:
    """Those of the policy's namespace, unless it says otherwise; only pods, unless it says reserved."""
    requirements = list(label_selector(field, key))
    keys = [each.key for each in requirements]
    if any(each.key.startswith("reserved:") and each.operator in _PRESENT for each in requirements):
        return Selector(requirements)
    if namespace and not any(key == POD_NAMESPACE or key.startswith(NAMESPACE_LABELS) for key in keys):
        return Selector([*requirements, Requirement(POD_NAMESPACE, Operator.IN, [namespace])])
    return Selector([*requirements, PODS])


def cidr_set(field: Field, around: Around) -> Iterator[Block]:
    """A network, or those of groups, without some."""
    known(field, ("cidr", "cidrGroupRef", "cidrGroupSelector", "except"))
    kind = only_one(field, ("cidr", "cidrGroupRef", "cidrGroupSelector"), beside=("except",))
    if kind == "cidr":
        outer = cidr(field["cidr"])
        yield Block(outer, excepts(field["except"], outer), pods=False)
        return
    if kind == "cidrGroupRef":
        groups: Iterable[NetworkGroup] = _group(field["cidrGroupRef"], around)
    else:
        groups = around.selected_groups(Selector(label_selector(field["cidrGroupSelector"], key)))
    without = [cidr(each) for each in field["except"].items()]
    for network in dict.fromkeys(each for group in groups for each in group.networks):
        if not any(within(network, each) for each in without):
            yield Block(network, [each for each in without if within(each, network)], pods=False)


def _group(field: Field, around: Around) -> Iterator[NetworkGroup]:
    around.asked.add("CiliumCIDRGroup")
    name = field.text()
    if name in around.groups:
        yield around.groups[name]
    else:
        _missing(
            field, around, f"no CiliumCIDRGroup {shown(name)} is here: {near_misses(name, around.groups)}"
        )


def services(field: Field, namespace: str, around: Around) -> Iterator[NetworkPeer]:
    """The pods of Services, or the addresses behind those that select none."""
    kind = only_one(field, ("k8sService", "k8sServiceSelector"))
    own = field[kind]
    if kind == "k8sService":
        known(own, ("serviceName", "namespace"))
        found: Iterable[PolicyService] = _service(own, own["namespace"].text("") or namespace, around)
    else:
        known(own, ("selector", "namespace"))
        selector = Selector(label_selector(own["selector"].given(), key))
        found = around.selected_services(own["namespace"].text("") or namespace, selector)
    for each in found:
        if each.selector is None:
            yield from (Block(address, pods=False) for address in each.addresses)
        else:
            wanted = (
                Requirement(f"k8s:{name}", Operator.IN, [value]) for name, value in each.selector.items()
            )
            yield within_pods(each.namespace, wanted)


def _service(field: Field, namespace: str, around: Around) -> Iterator[PolicyService]:
    around.asked |= {"Service", "EndpointSlice"}
    name = field["serviceName"].text()
    if not namespace:
        field["namespace"].refuse("missing: a policy of the whole cluster has no namespace of its own")
    if (namespace, name) in around.services:
        yield around.services[namespace, name]
    else:
        there = [f"{space}/{other}" for space, other in around.services]
        title = f"{namespace}/{name}"
        _missing(field, around, f"no Service {shown(title)} is here: {near_misses(title, there)}")


def names(field: Field, around: Around) -> Selector:
    """Addresses that have a DNS name, by what DNS has answered."""
    name = name_field(field)
    return by_name(name, name.value, around)


def _missing(field: Field, around: Around, reason: str) -> None:
    """Nobody, until it comes; an error where nothing is to come."""
    if around.complete:
        field.refuse(reason)
    around.missing.append(f"{field.path}: {reason}")
