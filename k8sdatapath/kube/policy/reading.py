"""What all languages of policies have in common: label selectors, ports, and fields that must be known.

A field that is not known is refused: to skip a part of a policy could open what it closes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from k8sdatapath.errors import near_misses
from k8sdatapath.kube.decode import NAME
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.model import IPNetwork, network
from k8sdatapath.model.address import shown
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import (
    NAMESPACE_LABELS,
    POD_NAMESPACE,
    Block,
    Operator,
    Requirement,
    Selector,
)
from k8sdatapath.model.visibility import Visibility, to_visibility

__all__ = [
    "AUDIT",
    "PODS",
    "VISIBLE",
    "audited",
    "by_name",
    "cidr",
    "known",
    "kube_key",
    "label_selector",
    "name_field",
    "named",
    "namespaces",
    "nodes",
    "only_one",
    "pods",
    "port_name",
    "this_node",
    "visible",
    "within_pods",
]

_KEY = re.compile(
    r"(?:(?=.{1,253}/)[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?", re.A
)
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?)?", re.A)
_OPERATORS = {
    "In": Operator.IN,
    "NotIn": Operator.NOT_IN,
    "Exists": Operator.EXISTS,
    "DoesNotExist": Operator.ABSENT,
}
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?")
_CIDR = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}")

AUDIT = "k8sdatapath.io/audit"
"""Annotation of a policy of any kind: ``"true"``, it only looks on; of a pod: policies only look on at it."""
VISIBLE = ("k8sdatapath.io/visibility", "policy.cilium.io/proxy-visibility", "io.cilium.proxy-visibility")
"""Annotations of a pod, of which the first that is there says what is told of it."""
OBJECT = ("apiVersion", "kind", "metadata", "spec", "status")
PODS = Requirement(POD_NAMESPACE)
"""Only pods: neither nodes nor the world."""
_NODES = (Requirement("reserved:host"), Requirement("reserved:remote-node"))
"""This node, and the others."""


def known(field: Field, fields: Collection[str], unable: Mapping[str, str] = {}) -> Field:
    """The mapping here, if it has none but these fields.

    :param unable: fields that there are, but that cannot be enforced, and why.
    """
    field["any"]  # refuses what is no mapping
    for name, value in (field.value or {}).items():
        if name not in fields and value is not None:
            reason = unable.get(name)
            field[name].refuse(reason or f"no such field: {near_misses(name, [*fields, *unable])}")
    return field


def only_one(
    field: Field, fields: Collection[str], unable: Mapping[str, str] = {}, *, beside: Collection[str] = ()
) -> str:
    """The name of the one field that is set here.

    :param beside: fields that may be set as well.
    """
    known(field, [*fields, *beside], unable)
    found = [name for name in fields if field[name].value is not None]
    if len(found) != 1:
        given = " and ".join(found) if found else "none"
        field.refuse(f"exactly one of {', '.join(fields)} is needed here, this has {given}")
    return found[0]


def named(root: Field, *, namespaced: bool) -> tuple[str, str]:
    """Namespace and name of an object; the namespace is empty for what has none."""
    metadata = root["metadata"].given()
    return (_name(metadata["namespace"], "default") if namespaced else ""), _name(metadata["name"])


def audited(metadata: Field) -> bool:
    """Whether an object is annotated so."""
    return metadata["annotations"][AUDIT].choice("true", "false", default="false") == "true"


def visible(metadata: Field) -> tuple[Visibility, ...]:
    """What is told of a pod, by its annotations."""
    found = (metadata["annotations"][name] for name in VISIBLE)
    given = next((each for each in found if each.value is not None), None)
    return () if given is None else given.made(lambda value: to_visibility(given.text()))


def _name(field: Field, default: str | None = None) -> str:
    text = field.text(default)
    if not NAME.fullmatch(text):
        field.refuse(f"{shown(text)} is not a name (a-z, 0-9, - and .)")
    return text


def label_selector(field: Field, key: Callable[[Field, str], str]) -> Iterator[Requirement]:
    """The requirements of a LabelSelector.

    :param key: the key of an identity's label, of one that the selector names.
    """
    known(field, ("matchLabels", "matchExpressions"))
    labels = field["matchLabels"]
    labels["any"]
    for name in labels.value or {}:
        if type(name) is not str:
            labels.refuse(f"{shown(name)} is not the key of a label")
        yield Requirement(key(labels[name], name), Operator.IN, [_value(labels[name])])
    for each in field["matchExpressions"].items():
        known(each, ("key", "operator", "values"))
        name = key(each["key"], each["key"].text())
        operator = _OPERATORS[each["operator"].choice(*_OPERATORS)]
        values = [_value(value) for value in each["values"].items()]
        wanted = operator in (Operator.IN, Operator.NOT_IN)
        if wanted is not bool(values):
            each["values"].refuse(f"{each['operator'].value} needs {'some' if wanted else 'none'}")
        yield Requirement(name, operator, values)


def _value(field: Field) -> str:
    text = field.text()
    if not _VALUE.fullmatch(text):
        field.refuse(f"{shown(text)} is not the value of a label")
    return text


def kube_key(field: Field, name: str) -> str:
    """The key of a pod's label."""
    if not _KEY.fullmatch(name):
        field.refuse(f"{shown(name)} is not the key of a label")
    return f"k8s:{name}"


def _namespace_key(field: Field, name: str) -> str:
    return NAMESPACE_LABELS + kube_key(field, name).removeprefix("k8s:")


def _node_key(field: Field, name: str) -> str:
    """The key of a node's label."""
    return "node:" + kube_key(field, name.removeprefix("node:")).removeprefix("k8s:")


def pods(field: Field) -> Iterator[Requirement]:
    """What a selector of pods asks of their labels."""
    yield PODS
    yield from label_selector(field, kube_key)


def namespaces(field: Field) -> Iterator[Requirement]:
    """What a selector of namespaces asks of the pods in them."""
    yield PODS
    yield from label_selector(field, _namespace_key)


def nodes(field: Field) -> Iterator[Selector]:
    """Nodes by their labels: this one, and the others."""
    requirements = list(label_selector(field, _node_key))
    return (Selector([*requirements, each]) for each in _NODES)


def port_name(field: Field) -> str:
    """A name that a port of a pod can have, which is never all digits."""
    name = field.text()
    if not _PORT_NAME.fullmatch(name):
        field.refuse(f"{shown(name)} is not a port name (at most 15 of a-z, 0-9 and -, with a letter)")
    return name


def this_node(field: Field) -> Selector:
    """The node that policies are enforced on, if it has some labels."""
    return Selector([*label_selector(field, _node_key), _NODES[0]])


def within_pods(namespace: str, requirements: Iterable[Requirement]) -> Selector:
    """Pods of one namespace."""
    own = Requirement(POD_NAMESPACE, Operator.IN, [namespace])
    return Selector([*(each for each in requirements if each != PODS), own])


def cidr(field: Field, *, bare: bool = False) -> IPNetwork:
    """A network; its length is not left out, as the API has it.

    :param bare: an address alone will do.
    """
    if not (bare and "/" not in field.text()) and not _CIDR.fullmatch(field.text()):
        field.refuse(f"{shown(field.value)} is not a network: write 10.0.0.0/8 or fd00::/8")
    return field.made(network)


def excepts(field: Field, outer: IPNetwork) -> list[IPNetwork]:
    """Parts of a network that are left out of it."""
    found = []
    for each in field.items():
        inner = cidr(each)
        each.made(lambda value: Block(outer, [value]))
        found.append(inner)
    return found


def name_field(field: Field) -> Field:
    """Where one name stands, ``matchName``, or those that fit a ``matchPattern``."""
    kind = only_one(field, ("matchName", "matchPattern"))
    if kind == "matchName" and "*" in field[kind].text():
        field[kind].refuse("a name has no *: a pattern is matchPattern")
    return field[kind]


def by_name(field: Field, pattern: str, around: Around) -> Selector:
    """Addresses that have a DNS name, by what DNS has answered."""
    if not around.names:
        field.refuse(
            "nobody tells which addresses DNS names have: a node needs dns=True, files --name NAME=ADDRESS"
        )
    name = field.made(lambda _: NamePattern(pattern))
    return Selector([Requirement(name.label.removesuffix("="))])
