"""Policies out of manifests, in the languages that Kubernetes has for them.

``network_policy``: the API's own. ``cilium`` and ``cilium_ports``: Cilium's two. ``cluster_network_policy``:
the tiers of an administrator. ``reading``: what they have in common. All become values of
``k8sdatapath.model.policy``, and whatever could not be enforced is refused by the name of its field.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.documents import parse_json, parse_yaml
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.cilium import cilium_clusterwide_policy, cilium_policy
from k8sdatapath.kube.policy.cluster_network_policy import cluster_network_policy
from k8sdatapath.kube.policy.network_policy import network_policy
from k8sdatapath.model.policy import Policy

__all__ = ["decode_policies", "parse_policies", "read_policies"]

_READERS: Mapping[tuple[str, str], Callable[[Field], Iterator[Policy]]] = {
    ("networking.k8s.io/v1", "NetworkPolicy"): network_policy,
    ("cilium.io/v2", "CiliumNetworkPolicy"): cilium_policy,
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"): cilium_clusterwide_policy,
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): cluster_network_policy,
}
_KINDS = {kind for _, kind in _READERS}


def read_policies(*paths: str | os.PathLike[str]) -> tuple[Policy, ...]:
    """The policies in files, YAML or (``.json``) JSON.

    :raises ManifestError: one says something that cannot be, or cannot be enforced; or two have one name.
    :raises OSError: a file cannot be read.
    """
    found: dict[str, Policy] = {}
    for path in paths:
        for policy in parse_policies(Path(path).read_text("utf-8-sig"), str(path)):
            if policy.name in found:
                raise ManifestError(policy.where, "", f"it is in {found[policy.name].where} too")
            found[policy.name] = policy
    return tuple(found.values())


def parse_policies(text: str, where: str = "text") -> tuple[Policy, ...]:
    """The policies in a text; objects of other kinds are passed over.

    :raises ManifestError: one says something that cannot be, or cannot be enforced.
    """
    parse = parse_json if where.endswith(".json") else parse_yaml
    found: list[Policy] = []
    for number, document in enumerate(parse(text, where), 1):
        if document is not None:
            found += decode_policies(document, f"{where}: document {number}")
    return tuple(found)


def decode_policies(document: Any, where: str) -> Iterator[Policy]:
    """The policies of one object: one, several, or none if it is of another kind.

    :raises ManifestError: the field that cannot be, or cannot be enforced, and why.
    """
    root = Field(document, where)
    version, kind = root["apiVersion"].text(), root["kind"].text()
    if kind == "List" or kind.removesuffix("List") in _KINDS - {kind}:
        for index, item in enumerate(root["items"].items()):
            inherited = {} if kind == "List" else {"apiVersion": version, "kind": kind.removesuffix("List")}
            each = {**inherited, **item.value} if type(item.value) is dict else item.value
            yield from decode_policies(each, f"{where}, items[{index}]")
    elif read := _READERS.get((version, kind)):
        metadata = root["metadata"].given()
        title = "/".join(str(metadata[each].value or "") for each in ("namespace", "name")).lstrip("/")
        yield from read(Field(document, f"{where} ({kind} {title[:80]})"))
    elif kind in _KINDS:
        versions = ", ".join(version for version, name in _READERS if name == kind)
        root["apiVersion"].refuse(f"{kind} is read as {versions}")
