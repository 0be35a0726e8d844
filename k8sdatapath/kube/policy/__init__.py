"""Policies out of manifests, in the languages that Kubernetes has for them.

``network_policy``: the API's own. ``cilium``, and its ``_peers``, ``_ports`` and ``_http``: Cilium's two.
``cluster_network_policy``: the tiers of an administrator. ``reading``: what they have in common.
``around``: what they speak of without saying it. ``objects``: that, and pods, out of manifests. ``limits``:
how much is too much. All become values of ``k8sdatapath.model.policy``, and whatever could not be enforced is
refused by the name of its field.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from k8sdatapath.errors import ManifestError, near_misses
from k8sdatapath.kube.documents import parse_json, parse_yaml
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.cilium import cilium_clusterwide_policy, cilium_policy
from k8sdatapath.kube.policy.cluster_network_policy import cluster_network_policy
from k8sdatapath.kube.policy.limits import MAX_BYTES, modest, sized
from k8sdatapath.kube.policy.network_policy import network_policy
from k8sdatapath.kube.policy.objects import Manifest, flattened, gathered, titled
from k8sdatapath.kube.policy.reading import AUDIT, audited
from k8sdatapath.model.policy import Policy

__all__ = [
    "AUDIT",
    "KINDS",
    "checked",
    "decode_policies",
    "parse_policies",
    "policies_of",
    "read_manifests",
    "read_policies",
]

_READERS: Mapping[tuple[str, str], Callable[[Field, Around], Iterator[Policy]]] = {
    ("networking.k8s.io/v1", "NetworkPolicy"): network_policy,
    ("cilium.io/v2", "CiliumNetworkPolicy"): cilium_policy,
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"): cilium_clusterwide_policy,
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): cluster_network_policy,
}
KINDS = frozenset(kind for _, kind in _READERS)
"""The kinds of objects that are policies."""


def read_policies(*paths: str | os.PathLike[str], names: bool = False) -> tuple[Policy, ...]:
    """The policies in files, YAML or (``.json``) JSON.

    What they refer to, such as a CiliumCIDRGroup or a Service, is to be in these files too.

    :param names: somebody will tell the addresses of DNS names, such as ``names`` of a PolicySet.
    :raises ManifestError: one says something that cannot be, or cannot be enforced; or two have one name.
    :raises OSError: a file cannot be read.
    """
    return policies_of(read_manifests(*paths), names=names)


def read_manifests(*paths: str | os.PathLike[str]) -> list[Manifest]:
    """All objects in files.

    :raises ManifestError: a file is no YAML or JSON, or larger than manifests are.
    :raises OSError: a file cannot be read.
    """
    found: list[Manifest] = []
    for path in map(Path, paths):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ManifestError(str(path), "", f"{size} bytes, at most {MAX_BYTES} are read of one file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)  # a device has no size
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ManifestError(str(path), f"byte {error.start}", "this is not UTF-8 text") from None
        found += _manifests(text, str(path))
    return found


def parse_policies(
    text: str, where: str = "text", *, names: bool = False, nodes: bool = False
) -> tuple[Policy, ...]:
    """The policies in a text; objects of other kinds are passed over, but for what policies refer to.

    :param names: as for :func:`read_policies`.
    :param nodes: policies for nodes are enforced, as by a node with ``host_firewall``.
    :raises ManifestError: one says something that cannot be, or cannot be enforced.
    """
    return policies_of(_manifests(text, where), names=names, nodes=nodes)


def policies_of(
    manifests: Iterable[Manifest], *, names: bool = False, nodes: bool = False
) -> tuple[Policy, ...]:
    """The policies among manifests, which are all that there is.

    :raises ManifestError: one says something that cannot be, or cannot be enforced; or two have one name.
    """
    found, wrong = checked(manifests, names=names, nodes=nodes)
    if wrong:
        raise wrong[0]
    return found


def checked(
    manifests: Iterable[Manifest], *, names: bool = False, nodes: bool = False
) -> tuple[tuple[Policy, ...], tuple[ManifestError, ...]]:
    """The same, and what is wrong with each object that has none for it."""
    there = list(manifests)
    groups, services = gathered(there)
    found: dict[str, Policy] = {}
    wrong: list[ManifestError] = []
    for each in there:
        around = Around(groups, services, names, nodes=nodes)
        try:
            for policy in tuple(decode_policies(each.value, each.where, around)):
                if policy.name in found:
                    raise ManifestError(policy.where, "", f"it is in {found[policy.name].where} too")
                found[policy.name] = policy
        except ManifestError as error:
            wrong.append(error)
    return tuple(found.values()), tuple(wrong)


def decode_policies(document: Any, where: str, around: Around | None = None) -> Iterator[Policy]:
    """The policies of one object: one, several, or none if it is of another kind.

    :param around: what it may refer to.
    :raises ManifestError: the field that cannot be, or cannot be enforced, and why.
    """
    for each in flattened(document, where, KINDS):
        root = Field(each.value, each.where)
        if read := _READERS.get((each.version, each.kind)):
            root = sized(titled(root))
            audit = audited(root["metadata"])
            yield from (modest(evolve(each, audit=audit)) for each in read(root, around or Around()))
        elif each.kind in KINDS:
            versions = ", ".join(version for version, name in _READERS if name == each.kind)
            root["apiVersion"].refuse(f"{each.kind} is read as {versions}")
        elif "networkpolic" in each.kind.casefold():
            root["kind"].refuse(f"policies of this kind are not read: {near_misses(each.kind, KINDS)}")


def _manifests(text: str, where: str) -> list[Manifest]:
    parse = parse_json if where.endswith(".json") else parse_yaml
    found: list[Manifest] = []
    for number, document in enumerate(parse(text, where), 1):
        if document is not None:
            found += flattened(document, f"{where}: document {number}")
    return found
