"""Manifests that are no policies, as far as policies mean them: groups, Services, pods, nodes, namespaces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from attrs import evolve, field, frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.decode import SERVICE_NAME
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import NetworkGroup, PolicyService
from k8sdatapath.kube.policy.limits import MAX_ENTRIES
from k8sdatapath.kube.policy.reading import audited, cidr, named, visible
from k8sdatapath.model import IPAddress, IPNetwork, Protocol, address, network
from k8sdatapath.model.address import port
from k8sdatapath.model.visibility import Visibility
from k8sdatapath.model.workload import NamedPort, Workload

__all__ = [
    "TEMPLATES",
    "Manifest",
    "PolicyPod",
    "backends_of",
    "flattened",
    "gathered",
    "group",
    "host_network_of",
    "labels_of",
    "named_in",
    "namespace",
    "namespaces_of",
    "node",
    "pod",
    "service",
    "template",
    "template_of",
    "titled",
    "workloads_of",
]

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "Deployment": ("template",),
    "StatefulSet": ("template",),
    "DaemonSet": ("template",),
    "ReplicaSet": ("template",),
    "Job": ("template",),
    "CronJob": ("jobTemplate", "spec", "template"),
}
"""Kinds that make pods, and where in their ``spec`` it stands how these are."""

_GROUPS = ("cilium.io/v2", "cilium.io/v2alpha1")


_WITHOUT_NAMESPACE = (
    "Namespace",
    "Node",
    "CiliumClusterwideNetworkPolicy",
    "CiliumCIDRGroup",
    "ClusterNetworkPolicy",
)


@frozen
class Manifest:
    """One object, as plain values."""

    version: str
    kind: str
    value: Any
    where: str


def flattened(document: Any, where: str, kinds: Collection[str] = ()) -> Iterator[Manifest]:
    """The object of a document, or those of a List.

    :param kinds: those whose lists are taken apart as well; none: all.
    """
    waiting = [(document, where)]
    while waiting:
        value, here = waiting.pop()
        root = Field(value, here)
        version, kind = root["apiVersion"].text(), root["kind"].text()
        single = kind.removesuffix("List")
        if kind == "List" or (kind != single and (single in kinds or not kinds) and "items" in value):
            inherited = {} if kind == "List" else {"apiVersion": version, "kind": single}
            inside = []
            for index, item in enumerate(root["items"].items()):
                each = {**inherited, **item.value} if type(item.value) is dict else item.value
                inside.append((each, f"{here}, items[{index}]"))
            waiting += reversed(inside)
        else:
            yield Manifest(version, kind, value, here)


def named_in(manifest: Manifest) -> tuple[str, str]:
    """Namespace and name of an object: who says no namespace is in ``default``, if the kind has any."""
    metadata = Field(manifest.value, manifest.where)["metadata"].given()
    name, space = metadata["name"].text(), metadata["namespace"].text("")
    return (space if manifest.kind in _WITHOUT_NAMESPACE else space or "default"), name


def titled(root: Field) -> Field:
    """The same field, which says in errors what object it is of."""
    metadata = root["metadata"].given()
    title = "/".join(str(metadata[each].value or "") for each in ("namespace", "name")).lstrip("/")
    return Field(root.value, f"{root.where} ({root['kind'].value} {title[:80]})")


def labels_of(field: Field) -> dict[str, str]:
    """A mapping of text to text; empty, if it is absent."""
    field["any"]  # refuses what is no mapping
    return {str(key): field[key].text() for key in field.value or ()}


def group(root: Field) -> NetworkGroup:
    """A CiliumCIDRGroup."""
    root = titled(root)
    _, name = named(root, namespaced=False)
    items = root["spec"].given()["externalCIDRs"].given().items()
    if len(items) > MAX_ENTRIES:
        root["spec"]["externalCIDRs"].refuse(f"{len(items)} networks: at most {MAX_ENTRIES} are expected")
    labels = labels_of(root["metadata"]["labels"])
    networks = tuple(dict.fromkeys(cidr(each) for each in items))
    return NetworkGroup(name, networks, _k8s(labels), root.where)


def service(root: Field) -> PolicyService:
    """A Service; what is behind it, if it selects nothing, is told by its slices."""
    root = titled(root)
    space, name = named(root, namespaced=True)
    selector = labels_of(root["spec"]["selector"])
    return PolicyService(space, name, selector or None, (), _k8s(labels_of(root["metadata"]["labels"])))


def backends_of(root: Field) -> tuple[tuple[str, str], tuple[IPNetwork, ...]]:
    """Of an EndpointSlice: the Service, by namespace and name, and the addresses behind it."""
    root = titled(root)
    space, _ = named(root, namespaced=True)
    key = space, root["metadata"]["labels"][SERVICE_NAME].text("")
    if root["addressType"].choice("IPv4", "IPv6", "FQDN") == "FQDN":
        return key, ()
    found = (one.made(network) for each in root["endpoints"].items() for one in each["addresses"].items())
    return key, tuple(dict.fromkeys(found))


def gathered(
    manifests: Iterable[Manifest],
) -> tuple[dict[str, NetworkGroup], dict[tuple[str, str], PolicyService]]:
    """The groups by name, and the Services by namespace and name."""
    groups: dict[str, NetworkGroup] = {}
    services: dict[tuple[str, str], PolicyService] = {}
    behind: dict[tuple[str, str], tuple[IPNetwork, ...]] = {}
    for each in manifests:
        root = Field(each.value, each.where)
        if each.kind == "CiliumCIDRGroup" and each.version in _GROUPS:
            found = group(root)
            if groups.setdefault(found.name, found) is not found:
                root["metadata"]["name"].refuse(f"there is one already: {groups[found.name].where}")
        elif (each.version, each.kind) == ("v1", "Service"):
            made = service(root)
            services[made.namespace, made.name] = made
        elif (each.version, each.kind) == ("discovery.k8s.io/v1", "EndpointSlice"):
            key, addresses = backends_of(root)
            behind[key] = behind.get(key, ()) + addresses
    for key, addresses in behind.items():
        if key in services and services[key].selector is None:
            services[key] = evolve(services[key], addresses=tuple(dict.fromkeys(addresses)))
    return groups, services


@frozen
class PolicyPod:
    """A pod, as far as policies can tell it from others.

    :ivar audit: policies only look on at it.
    :ivar visible: what is told of it; nothing, if its annotation says what cannot be.
    :ivar uid: of two pods with one address, who has it now.
    :ivar node: where it runs; empty: it is not scheduled yet.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    service_account: str = ""
    addresses: tuple[IPAddress, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    audit: bool = False
    visible: tuple[Visibility, ...] = ()
    node: str = ""
    uid: str = ""
    where: str = field(default="", eq=False)

    def workload(self, namespace_labels: Mapping[str, str]) -> Workload:
        """As one side of a connection."""
        return Workload.pod(
            f"{self.namespace}/{self.name}",
            self.labels,
            namespace_labels=namespace_labels,
            service_account=self.service_account,
            addresses=self.addresses,
            ports=self.ports,
            audit=self.audit,
            on=self.node,
            visible=self.visible,
        )


def pod(root: Field) -> PolicyPod | None:
    """None: it is over, or it has the node's addresses, and policies are not for it."""
    root = titled(root)
    space, name = named(root, namespaced=True)
    status, metadata = root["status"], root["metadata"]
    found = template(root, space, name)
    if found is None or status["phase"].text("Running") in ("Succeeded", "Failed"):
        return None
    ips = [each["ip"] for each in status["podIPs"].items()] or [status["podIP"]]
    return evolve(
        found,
        addresses=tuple(each.made(address) for each in ips if each.value not in (None, "")),
        node=root["spec"]["nodeName"].text(""),
        uid=metadata["uid"].text(""),
    )


def template(field: Field, namespace: str, name: str) -> PolicyPod | None:
    """What a pod, or a template of pods, says of who they are; None: they are in the node's network."""
    spec = field["spec"].given()
    if spec["hostNetwork"].flag():
        return None
    return PolicyPod(
        namespace,
        name,
        labels_of(field["metadata"]["labels"]),
        spec["serviceAccountName"].text("default") or "default",
        ports=tuple(sorted(set(_ports(spec)))),
        audit=audited(field["metadata"]),
        visible=_visible(field["metadata"]),
        where=field.where,
    )


def _visible(metadata: Field) -> tuple[Visibility, ...]:
    """Nobody is cut off for what is to be told of him."""
    try:
        return visible(metadata)
    except ManifestError:
        return ()


def template_of(root: Field) -> PolicyPod | None:
    """What pods of a Deployment, or of another kind that makes pods, are going to be; None: of the node."""
    root = titled(root)
    space, name = named(root, namespaced=True)
    inside = root["spec"]
    for each in TEMPLATES[root["kind"].text()]:
        inside = inside[each]
    return template(inside.given(), space, name)


def _ports(spec: Field) -> Iterator[NamedPort]:
    sidecars = (each for each in spec["initContainers"].items() if each["restartPolicy"].value == "Always")
    for container in (*spec["containers"].items(), *sidecars):
        for each in container["ports"].items():
            if name := each["name"].text(""):
                protocol = Protocol[each["protocol"].choice("TCP", "UDP", "SCTP", default="TCP")]
                yield NamedPort(name, each["containerPort"].made(port), protocol)


def namespace(root: Field) -> tuple[str, dict[str, str]]:
    """Name and labels of a namespace."""
    root = titled(root)
    _, name = named(root, namespaced=False)
    return name, labels_of(root["metadata"]["labels"])


def node(root: Field, *, remote: bool = True) -> Workload:
    """A node, with its internal and external addresses."""
    root = titled(root)
    _, name = named(root, namespaced=False)
    addresses = (
        each["address"].made(address)
        for each in root["status"]["addresses"].items()
        if each["type"].text() in ("InternalIP", "ExternalIP")
    )
    labels = labels_of(root["metadata"]["labels"])
    return Workload.node(name, labels, addresses=dict.fromkeys(addresses), remote=remote)


def namespaces_of(manifests: Iterable[Manifest]) -> dict[str, dict[str, str]]:
    """The labels of the namespaces among manifests, by name."""
    there = (each for each in manifests if (each.version, each.kind) == ("v1", "Namespace"))
    return dict(namespace(Field(each.value, each.where)) for each in there)


def host_network_of(manifests: Iterable[Manifest]) -> Iterator[str]:
    """The names of pods, and of what makes pods, that are in the network of their node."""
    for each in manifests:
        if (each.version, each.kind) == ("v1", "Pod") or each.kind in TEMPLATES:
            inside = Field(each.value, each.where)
            for key in ("spec", *TEMPLATES[each.kind]) if each.kind in TEMPLATES else ():
                inside = inside[key]
            if inside["spec"]["hostNetwork"].flag():
                yield "/".join(named_in(each))


def workloads_of(manifests: Iterable[Manifest]) -> Iterator[Workload]:
    """The pods and nodes among manifests; pods have the labels of their namespaces.

    Of what makes pods, such as a Deployment, there is one pod of its name, without an address.
    """
    there = list(manifests)
    around = namespaces_of(there)
    for each in there:
        root = Field(each.value, each.where)
        if (each.version, each.kind) == ("v1", "Node"):
            yield node(root)
        elif (each.version, each.kind) == ("v1", "Pod") or each.kind in TEMPLATES:
            found = template_of(root) if each.kind in TEMPLATES else pod(root)
            if found is not None:
                yield found.workload(around.get(found.namespace, {}))


def _k8s(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"k8s:{key}={value}" for key, value in labels.items())
