"""Policies, and who is who, kept up to date with the objects they are made of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from attrs import define, evolve, field, frozen

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ManifestError, ModelError
from k8sdatapath.kube.events import ObjectEvent
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.objects import KubeRaw
from k8sdatapath.kube.policy import KINDS, decode_policies
from k8sdatapath.kube.policy.around import API_SERVERS, KUBERNETES, Around, NetworkGroup, PolicyService
from k8sdatapath.kube.policy.objects import (
    TEMPLATES,
    Manifest,
    PolicyPod,
    backends_of,
    group,
    named_in,
    namespace,
    node,
    pod,
    service,
    template_of,
)
from k8sdatapath.kube.policy.reading import visible
from k8sdatapath.kube.resources import RESOURCES, Resource
from k8sdatapath.model import IPNetwork
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload

__all__ = ["Origin", "PolicyDelta", "PolicyTranslator", "manifest_events", "policy_resources"]

T = TypeVar("T")

_RESOURCES = (
    RESOURCES["networkpolicies"],
    RESOURCES["namespaces"],
    Resource("v1", "Pod", "pods"),
    Resource("v1", "Node", "nodes"),
    Resource("apps/v1", "Deployment", "deployments"),
    Resource("apps/v1", "StatefulSet", "statefulsets"),
    Resource("apps/v1", "DaemonSet", "daemonsets"),
    Resource("batch/v1", "Job", "jobs"),
)
_CILIUM = (
    Resource("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
    Resource("cilium.io/v2", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies"),
    Resource("cilium.io/v2", "CiliumCIDRGroup", "ciliumcidrgroups"),
    Resource("v1", "Service", "services"),
    Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices"),
)
_TIERS = (Resource("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"),)


def policy_resources(
    *, cilium: bool = False, tiers: bool = False, templates: bool = True
) -> tuple[Resource, ...]:
    """What is to be watched for policies, as it is: who pods are, and NetworkPolicies.

    :param cilium: Cilium's policies too; its resource definitions must be in the cluster.
    :param tiers: likewise ClusterNetworkPolicies.
    :param templates: what makes pods, too: who they are going to be is known before they are there.
    """
    found = _RESOURCES + _CILIUM * cilium + _TIERS * tiers
    return tuple(each for each in found if templates or each.kind not in TEMPLATES)


def manifest_events(manifests: Iterable[Manifest]) -> Iterator[ObjectEvent]:
    """Objects of files as events, as a source that watches would tell of them."""
    now = time.monotonic()
    for each in manifests:
        space, name = named_in(each)
        raw = KubeRaw(each.kind, space, name, each.value, each.where)
        yield ObjectEvent(each.kind, space, name, raw, now)


@frozen
class Origin:
    """What an object was last read as.

    :ivar policies: the names of its policies.
    :ivar generation: its ``metadata.generation``, which grows with each change of what it asks; 0: not told.
    """

    policies: tuple[str, ...]
    generation: int = 0


@frozen(kw_only=True)
class PolicyDelta:
    """How policies and workloads have changed.

    :ivar policies: those that are new or different; ``removed`` the names of those that are no more.
    :ivar origins: objects that were read, and as what; None: they are no more.
    :ivar workloads: pods, nodes and templates that are new or different; ``gone`` the names of those that are
        no more. Templates have no addresses.
    :ivar local: names of those among ``workloads`` that are pods of this node.
    :ivar errors: objects that say what cannot be, or cannot be enforced, and why; None: not any more. What
        was last known of them holds.
    :ivar missing: what a policy names that is not there; empty: not any more.
    :ivar synced: all deltas so far are together everything that is wanted.
    """

    policies: tuple[Policy, ...] = ()
    removed: tuple[str, ...] = ()
    origins: Mapping[ObjectKey, Origin | None] = field(factory=dict)
    workloads: tuple[Workload, ...] = ()
    gone: tuple[str, ...] = ()
    local: frozenset[str] = frozenset()
    errors: Mapping[ObjectKey, ManifestError | None] = field(factory=dict)
    missing: Mapping[ObjectKey, tuple[str, ...]] = field(factory=dict)
    synced: bool = True


@define
class _Written:
    """An object that is a policy, or several, and what has been made of it."""

    value: Any
    where: str
    policies: tuple[Policy, ...] = ()
    asked: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()


Space: TypeAlias = tuple[str, str]
"""Namespace and name."""


class PolicyTranslator:
    """What objects ask of policies::

        translator = PolicyTranslator("n1")
        for batch in watch.batches():
            delta = translator.update(batch.events)

    An object that is wrong changes nothing: what it last said right holds, and its error is told. A policy
    may name what is not there yet: that is nobody, is told in ``missing``, and changes when it comes.

    :param node: pods of which node are local.
    :param names: somebody tells the addresses of DNS names; otherwise policies by name are refused.
    :param requests: somebody looks at requests; otherwise policies that ask for some are refused.
    :param nodes: policies are enforced for nodes too; otherwise those for nodes are refused.
    """

    def __init__(
        self, node: str = "", *, names: bool = False, requests: bool = False, nodes: bool = False
    ) -> None:
        self.node, self.names, self.requests, self.nodes = node, names, requests, nodes
        self._written: dict[ObjectKey, _Written] = {}
        self._groups: dict[str, NetworkGroup] = {}
        self._services: dict[Space, PolicyService] = {}
        self._slices: dict[Space, tuple[Space, tuple[IPNetwork, ...]]] = {}
        self._namespaces: dict[str, dict[str, str]] = {}
        self._pods: dict[ObjectKey, PolicyPod] = {}  # templates too
        self._within: dict[str, set[ObjectKey]] = defaultdict(set)
        self._workloads: dict[ObjectKey, Workload] = {}
        self._local: set[str] = set()
        self._asking: dict[str, set[ObjectKey]] = defaultdict(set)  # kind -> policies that asked for it
        self._troubled: set[ObjectKey] = set()
        # what is to be told
        self._policies: dict[str, Policy | None] = {}
        self._origins: dict[ObjectKey, Origin | None] = {}
        self._changed: dict[str, Workload | None] = {}
        self._errors: dict[ObjectKey, ManifestError | None] = {}
        self._missing: dict[ObjectKey, tuple[str, ...]] = {}
        self._stale: set[str] = set()  # kinds that policies may have to be read anew for
        self._takers: Mapping[str, Callable[[ObjectKey, Field | None], None]] = {
            "Namespace": self._take_namespace,
            "Pod": self._take_pod,
            "Node": self._take_node,
            "CiliumCIDRGroup": self._take_group,
            "Service": self._take_service,
            "EndpointSlice": self._take_slice,
            **dict.fromkeys(TEMPLATES, self._take_template),
            **dict.fromkeys(KINDS, self._take_policy),
        }

    def __repr__(self) -> str:
        return f"<PolicyTranslator {len(self._written)} policies, {len(self._workloads)} workloads>"

    @property
    def policies(self) -> dict[str, Policy]:
        """All that are wanted, by name."""
        return {policy.name: policy for each in self._written.values() for policy in each.policies}

    @property
    def workloads(self) -> dict[str, Workload]:
        """All that are known, by name."""
        return {each.name: each for each in self._workloads.values()}

    def update(self, events: Iterable[ObjectEvent]) -> PolicyDelta:
        """Take in how objects are now, and tell what that changes."""
        self.take(events)
        return self.delta()

    def take(self, events: Iterable[ObjectEvent]) -> None:
        """Take in how objects are now."""
        for event in events:
            if event.error is not None:
                self._trouble(event.key, event.error)
            elif event.kind in self._takers:
                raw = event.object
                root = Field(raw.value, raw.where) if isinstance(raw, KubeRaw) else None
                try:
                    self._takers[event.kind](event.key, root)
                except ManifestError as error:
                    self._trouble(event.key, error)
                except ModelError as error:
                    self._trouble(event.key, ManifestError(root.where if root else "", "", str(error)))
                else:
                    self._at_ease(event.key)

    def delta(self) -> PolicyDelta:
        """What all events since the last delta come to."""
        for key in {key for kind in self._stale for key in self._asking[kind]}:
            try:
                self._read(key, self._written[key].value, self._written[key].where)
            except ManifestError as error:
                self._trouble(key, error)
            else:
                self._at_ease(key)
        told = PolicyDelta(
            policies=tuple(each for each in self._policies.values() if each is not None),
            removed=tuple(name for name, each in self._policies.items() if each is None),
            origins=self._origins,
            workloads=tuple(each for each in self._changed.values() if each is not None),
            gone=tuple(name for name, each in self._changed.items() if each is None),
            local=frozenset(name for name in self._changed if name in self._local),
            errors=self._errors,
            missing=self._missing,
        )
        self._policies, self._origins, self._changed = {}, {}, {}
        self._errors, self._missing, self._stale = {}, {}, set()
        return told

    # -- what is wrong --

    def _trouble(self, key: ObjectKey, error: ManifestError) -> None:
        self._troubled.add(key)
        self._errors[key] = error

    def _at_ease(self, key: ObjectKey) -> None:
        if key in self._troubled:
            self._troubled.remove(key)
            self._errors[key] = None

    # -- policies, and what they speak of --

    def _take_policy(self, key: ObjectKey, root: Field | None) -> None:
        if root is not None:
            self._read(key, root.value, root.where)
            return
        written = self._written.pop(key, None)
        if written is not None:
            for kind in written.asked:
                self._asking[kind].discard(key)
            self._policies |= {each.name: None for each in written.policies}
            self._origins[key] = None
            if written.missing:
                self._missing[key] = ()

    def _read(self, key: ObjectKey, value: Any, where: str) -> None:
        around = Around(
            self._groups,
            self._behind(),
            self.names,
            self.requests,
            self.nodes,
            questions=self.names,
            complete=False,
        )
        before = self._written.get(key)
        found = tuple(decode_policies(value, where, around))
        after = _Written(value, where, found, frozenset(around.asked), tuple(around.missing))
        known = {} if before is None else {each.name: each for each in before.policies}
        for each in found:
            if known.pop(each.name, None) != each:
                self._policies[each.name] = each
        self._policies |= dict.fromkeys(known)
        if after.missing != (before.missing if before is not None else ()):
            self._missing[key] = after.missing
        self._written[key] = after
        generation = Field(value, where)["metadata"]["generation"].value
        names = tuple(each.name for each in found)
        self._origins[key] = Origin(names, generation if type(generation) is int else 0)
        for kind in after.asked:
            self._asking[kind].add(key)

    def _behind(self) -> dict[Space, PolicyService]:
        """The Services; those that select nothing with the addresses behind them."""
        if not self._slices:
            return self._services
        behind: dict[Space, tuple[IPNetwork, ...]] = defaultdict(tuple)
        for of, addresses in self._slices.values():
            behind[of] += addresses
        return {
            key: each if each.selector is not None else evolve(each, addresses=behind[key])
            for key, each in self._services.items()
        }

    def _take_group(self, key: ObjectKey, root: Field | None) -> None:
        self._put(self._groups, key[2], None if root is None else group(root), key[0])

    def _take_service(self, key: ObjectKey, root: Field | None) -> None:
        more = (API_SERVERS,) if key[1:] == KUBERNETES else ()
        self._put(self._services, key[1:], None if root is None else service(root), key[0], *more)

    def _take_slice(self, key: ObjectKey, root: Field | None) -> None:
        found = None if root is None else backends_of(root)
        concerned = {each[0] for each in (self._slices.get(key[1:]), found) if each is not None}
        more = (API_SERVERS,) if KUBERNETES in concerned else ()
        self._put(self._slices, key[1:], found, key[0], *more)

    def _put(self, there: dict[Any, T], key: Any, found: T | None, *kinds: str) -> None:
        if there.get(key) != found:
            self._stale.update(kinds)
        if found is None:
            there.pop(key, None)
        else:
            there[key] = found

    # -- who is who --

    def _take_namespace(self, key: ObjectKey, root: Field | None) -> None:
        name = key[2]
        before, first = self._namespaces.get(name), not self._namespaces
        if root is None:
            self._namespaces.pop(name, None)  # whoever was in it goes by himself
            return
        _, labels = namespace(root)
        self._namespaces[name] = labels
        if first:  # from now on they are known, and whose namespace is not has to wait
            for each in self._pods:
                self._make(each)
        elif before != labels:
            for each in self._within[name]:
                self._make(each)

    def _take_pod(self, key: ObjectKey, root: Field | None) -> None:
        self._know(key, None if root is None else pod(root))
        if root is not None:  # what cannot be seen is told; who the pod is, is known all the same
            visible(root["metadata"])

    def _take_template(self, key: ObjectKey, root: Field | None) -> None:
        self._know(key, None if root is None else template_of(root))

    def _know(self, key: ObjectKey, found: PolicyPod | None) -> None:
        if found is not None:
            self._pods[key] = found
            self._within[key[1]].add(key)
        elif self._pods.pop(key, None) is not None:
            self._within[key[1]].discard(key)
        self._make(key)

    def _make(self, key: ObjectKey) -> None:
        """Make the workload of a pod anew; who is in a namespace that is not known yet is nobody."""
        found = self._pods.get(key)
        around = self._namespaces.get(key[1])
        if found is None or (around is None and self._namespaces):
            self._replace(key, None)
            return
        made = found.workload(around or {})
        (self._local.add if self.node and found.node == self.node else self._local.discard)(made.name)
        self._replace(key, made if key[0] == "Pod" else evolve(made, name=f"{key[0]} {made.name}"))

    def _take_node(self, key: ObjectKey, root: Field | None) -> None:
        self._replace(key, None if root is None else node(root, remote=key[2] != self.node))

    def _replace(self, key: ObjectKey, found: Workload | None) -> None:
        before = self._workloads.pop(key, None)
        if found is not None:
            self._workloads[key] = found
            if found != before:
                self._changed[found.name] = found
        elif before is not None:
            self._changed[before.name] = None
            self._local.discard(before.name)
