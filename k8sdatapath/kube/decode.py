"""Reads Kubernetes objects out of plain values, and says of every field that cannot be what it should be.

Defaults are those an API server would fill in, so that a manifest means here what it means in a cluster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.objects import (
    Endpoint,
    EndpointSlice,
    HostPort,
    KubeNode,
    KubeObject,
    KubePod,
    KubeService,
    Port,
)
from k8sdatapath.model import IPAddress, IPNetwork, Protocol, Selection, address, network, port
from k8sdatapath.model.address import is_special, shown
from k8sdatapath.model.service import MAX_AFFINITY

__all__ = ["SELECTION", "decode"]

SELECTION = "k8sdatapath.io/selection"
"""Annotation of a Service: ``random``, ``maglev`` or ``round-robin``."""

_AFFINITY = 10800
"""Seconds, where a Service does not say."""

SERVICE_NAME = "kubernetes.io/service-name"
TRIGGERED = "endpoints.kubernetes.io/last-change-trigger-time"
_ZONE = "topology.kubernetes.io/zone"
OTHER_PROXY = "service.kubernetes.io/service-proxy-name"

_TEMPLATE_HASH = "pod-template-hash"

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
PORT_NAME = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?")


def decode(document: Any, where: str, ignored: Counter[str]) -> Iterator[KubeObject]:
    """Read one document: an object, or a List of them.

    :param where: file and document, for errors.
    :param ignored: counts what is there but not load-balanced, by what it is.
    :raises ManifestError: the field that cannot be, and why.
    """
    root = Field(document, where)
    version, kind = root["apiVersion"].text(), root["kind"].text()
    if not _KIND.fullmatch(kind):
        root["kind"].refuse(f"{shown(kind)} is not a kind (a-z, A-Z, 0-9)")
    if (version, kind) in _LISTS:
        for index, item in enumerate(root["items"].items()):
            bare = type(item.value) is dict
            each = {**_LISTS[version, kind], **item.value} if bare else item.value
            yield from decode(each, f"{where}, items[{index}]", ignored)
    elif (read := _READERS.get((version, kind))) and not (read is _pod and _nowhere(root)):
        metadata = Field(document, f"{where} ({kind})")["metadata"].given()
        name, namespace = _named(metadata["name"]), _named(metadata["namespace"], "default")
        found = read(Field(document, f"{where} ({kind} {namespace}/{name})"), namespace, name, ignored)
        if found is not None:
            yield found
    else:
        ignored[f"{kind} of {version}" if _is_of_another_version(version, kind) else kind] += 1


def _is_of_another_version(version: str, kind: str) -> bool:
    """Whether it is read here at other versions. Without its slices, a Service refuses everybody."""
    group = version.rpartition("/")[0]
    return any(kind == known and group == read.rpartition("/")[0] for read, known in _READERS)


def _service(root: Field, namespace: str, name: str, ignored: Counter[str]) -> KubeService | None:
    spec, metadata = root["spec"].given(), root["metadata"]
    kind = spec["type"].choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName", default="ClusterIP")
    addresses, ports = _cluster_ips(spec), _service_ports(spec["ports"])
    selection = metadata["annotations"][SELECTION].choice("random", "maglev", "round-robin", default="random")
    if metadata["labels"][OTHER_PROXY].value is not None:
        ignored["Service of another proxy"] += 1
    elif kind == "ExternalName" or not addresses:
        ignored["ExternalName Service" if kind == "ExternalName" else "Service without a cluster IP"] += 1
    elif not ports:
        spec["ports"].refuse("missing")
    else:
        return KubeService(
            namespace,
            name,
            addresses,
            ports,
            Selection[selection.upper().replace("-", "_")],
            kind,
            _load_balancer_ips(root["status"]["loadBalancer"], ignored) if kind == "LoadBalancer" else (),
            tuple(_usable_address(each) for each in spec["externalIPs"].items()),
            _local(spec["internalTrafficPolicy"]),
            _local(spec["externalTrafficPolicy"]),
            _affinity(spec),
            tuple(_source_range(each) for each in spec["loadBalancerSourceRanges"].items()),
            _optional_port(spec["healthCheckNodePort"]),
            root.where,
        )
    return None


def _load_balancer_ips(status: Field, ignored: Counter[str]) -> tuple[IPAddress, ...]:
    """Without those of mode Proxy: there the load balancer dials node ports instead.

    An API server lets any address in here. ``minikube tunnel``, for one, says 127.0.0.1, which is nobody's to
    balance and no reason to refuse the Service.
    """
    found = [
        each["ip"].made(address)
        for each in status["ingress"].items()
        if each["ipMode"].choice("VIP", "Proxy", default="VIP") == "VIP" and each["ip"].text("")
    ]
    usable = tuple(ip for ip in found if not is_special(ip))
    if len(usable) < len(found):
        ignored["load balancer address that no Service can have"] += len(found) - len(usable)
    return usable


def _local(policy: Field) -> bool:
    return policy.choice("Cluster", "Local", default="Cluster") == "Local"


def _affinity(spec: Field) -> int:
    timeout = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
    if spec["sessionAffinity"].choice("None", "ClientIP", default="None") == "None":
        return 0
    seconds = timeout.value
    if seconds is None:
        return _AFFINITY
    if type(seconds) is not int or not 0 < seconds <= MAX_AFFINITY:
        timeout.refuse(f"{shown(seconds)} is not a number of seconds (1 to {MAX_AFFINITY})")
    return seconds


def _source_range(field: Field) -> IPNetwork:
    field.text()
    return field.made(network)


def _optional_port(field: Field) -> int:
    return 0 if field.value in (None, 0) else field.made(port)


def _cluster_ips(spec: Field) -> tuple[IPAddress, ...]:
    """None for a headless Service, and for one that no API server has given an address."""
    first = spec["clusterIP"]
    fields = spec["clusterIPs"].items() or [first]
    if first.text("") and first.value != fields[0].value:
        fields[0].refuse(f"{shown(fields[0].value)} differs from clusterIP, {shown(first.value)}")
    if all(each.value in (None, "", "None") for each in fields):
        return ()
    found = tuple(_usable_address(each) for each in fields)
    for each, ip in zip(fields[1:], found[1:], strict=True):
        if len(found) > 2 or ip.version == found[0].version:
            each.refuse(f"{ip} is one too many: a Service has one cluster IP of a family")
    return found


def _service_ports(ports: Field) -> tuple[Port, ...]:
    found: dict[tuple[int, Protocol], Port] = {}
    names: set[str] = set()
    fields = ports.items()
    for given in fields:
        number, node_port = given["port"].made(port), _optional_port(given["nodePort"])
        made = Port(_port_name(given["name"]), number, _protocol(given["protocol"]), node_port)
        if not isinstance(given["targetPort"].value, str | None):
            given["targetPort"].made(port)
        if not made.name and len(fields) > 1:
            given["name"].refuse("missing: several ports need names to tell them apart")
        if made.name in names:
            given["name"].refuse(f"{shown(made.name)} is given twice")
        if found.setdefault((made.number, made.protocol), made) is not made:
            given["port"].refuse(f"{made.number}/{made.protocol.name} is given twice")
        names.add(made.name)
    return tuple(found.values())


def _endpoint_slice(root: Field, namespace: str, name: str, ignored: Counter[str]) -> EndpointSlice | None:
    family = root["addressType"].choice("IPv4", "IPv6", "FQDN")
    service, ports = root["metadata"]["labels"][SERVICE_NAME], _slice_ports(root["ports"])
    if family == "FQDN" or service.value is None:
        ignored["FQDN EndpointSlice" if family == "FQDN" else "EndpointSlice of no Service"] += 1
        return None
    version = int(family[-1])
    endpoints = tuple(_endpoint(each, version) for each in root["endpoints"].items())
    triggered = unix_time(root["metadata"]["annotations"][TRIGGERED].value)
    return EndpointSlice(
        namespace, name, service.text(), version, ports, endpoints, triggered, where=root.where
    )


def unix_time(value: Any) -> float:
    """0 for what is no time: it is for statistics only."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return 0.0
    return time.timestamp() if time.tzinfo is not None else 0.0


def _slice_ports(ports: Field) -> tuple[Port, ...]:
    found: dict[tuple[str, Protocol], Port] = {}
    for given in ports.items():
        name, protocol = _port_name(given["name"]), _protocol(given["protocol"])
        if given["port"].value is None:  # "all ports": nothing that a Service could translate to
            continue
        made = Port(name, given["port"].made(port), protocol)
        if found.setdefault((name, protocol), made) is not made:
            given["name"].refuse(f"a second {protocol.name} port of the name {shown(name)}")
    return tuple(found.values())


def _endpoint(field: Field, version: int) -> Endpoint:
    addresses = [_usable_address(one) for one in field["addresses"].given().items()]
    if not addresses:
        field["addresses"].refuse("empty")
    for index, ip in enumerate(addresses):
        if ip.version != version:
            field["addresses"].items()[index].refuse(f"{ip} is IPv{ip.version}, addressType is IPv{version}")
    conditions, hints = field["conditions"], field["hints"]
    ready, serving, terminating = (conditions[name].flag() for name in ("ready", "serving", "terminating"))
    return Endpoint(
        addresses[0],  # by the API all addresses are of one pod, and the first is the one to use
        ready is not False,
        serving is not False,
        terminating is True,
        field["nodeName"].text(""),
        *(() if hints.value is None else (_hinted(hints["forNodes"]), _hinted(hints["forZones"]))),
    )


def _hinted(hints: Field) -> frozenset[str]:
    return frozenset(each["name"].text() for each in hints.items())


def _node(root: Field, namespace: str, name: str, ignored: Counter[str]) -> KubeNode:
    """Addresses of other types are names. Internal ones come first: nodes are to meet each other there."""
    listed = root["status"]["addresses"].items()
    addresses = dict.fromkeys(
        _usable_address(each["address"])
        for wanted in ("InternalIP", "ExternalIP")
        for each in listed
        if each["type"].text() == wanted
    )
    spec = root["spec"]
    fields = spec["podCIDRs"].items() or [spec["podCIDR"]]
    networks = tuple(each.made(network) for each in fields if each.value is not None)
    zone = root["metadata"]["labels"][_ZONE].text("")
    return KubeNode(name, zone, tuple(addresses), networks, where=root.where)


def _nowhere(pod: Field) -> bool:
    """Whether it has no node, as in a manifest that somebody wrote; such a pod may lack even a name."""
    return pod["spec"]["nodeName"].value in (None, "")


def _pod(root: Field, namespace: str, name: str, ignored: Counter[str]) -> KubePod | None:
    spec, status = root["spec"], root["status"]
    ports = tuple(_host_ports(spec))
    ips = status["podIPs"].items()
    fields = [each["ip"] for each in ips] or [status["podIP"]]
    addresses = [_usable_address(each) for each in fields if each.value not in (None, "")]
    over = status["phase"].text("Running") in ("Succeeded", "Failed")
    if not addresses or over or spec["hostNetwork"].flag():
        ignored["Pod"] += 1
        return None
    born = root["metadata"]["creationTimestamp"].text(""), root["metadata"]["uid"].text("")
    first: dict[int, IPAddress] = {}  # of each family
    for ip in addresses:
        first.setdefault(ip.version, ip)
    return KubePod(
        namespace,
        name,
        spec["nodeName"].text(),
        tuple(first.values()),
        ports,
        born,
        root.where,
        _labels(root["metadata"]["labels"]),
        _owner(root["metadata"]),
    )


def _owner(metadata: Field) -> tuple[str, str] | None:
    """What made a pod: of a ReplicaSet that a Deployment has made, by its name, that one."""
    for each in metadata["ownerReferences"].items():
        if each["controller"].flag():
            kind, name = each["kind"].text(), each["name"].text()
            suffix = f"-{metadata['labels'][_TEMPLATE_HASH].text('')}"
            if kind == "ReplicaSet" and suffix != "-" and name.endswith(suffix):
                return "Deployment", name.removesuffix(suffix)
            return kind, name
    return None


def _labels(field: Field) -> frozenset[str]:
    field["any"]  # refuses what is no mapping
    return frozenset(f"{key}={field[key].text('')}" for key in field.value or ())


def _host_ports(spec: Field) -> Iterator[HostPort]:
    sidecars = (each for each in spec["initContainers"].items() if each["restartPolicy"].value == "Always")
    for container in (*spec["containers"].items(), *sidecars):
        for given in container["ports"].items():
            number = _optional_port(given["hostPort"])
            if number:
                ip = given["hostIP"].made(address) if given["hostIP"].text("") else None
                target, protocol = given["containerPort"].made(port), _protocol(given["protocol"])
                yield HostPort(number, protocol, target, None if ip is None or ip.is_unspecified else ip)


def _usable_address(field: Field) -> IPAddress:
    field.text()
    ip = field.made(address)
    if is_special(ip):
        field.refuse(f"{ip} is unspecified, loopback, link-local or multicast: no pod or Service can have it")
    return ip


def _protocol(field: Field) -> Protocol:
    return Protocol[field.choice("TCP", "UDP", "SCTP", default="TCP")]


def _named(field: Field, default: str | None = None) -> str:
    name = field.text(default)
    if not NAME.fullmatch(name):
        field.refuse(f"{shown(name)} is not a name (a-z, 0-9, - and .)")
    return name


def _port_name(field: Field) -> str:
    name = field.text("")
    if not PORT_NAME.fullmatch(name):
        field.refuse(f"{shown(name)} is not a port name (a-z, 0-9, -)")
    return name


_READERS: dict[tuple[str, str], Callable[[Field, str, str, Counter[str]], KubeObject | None]] = {
    ("v1", "Service"): _service,
    ("discovery.k8s.io/v1", "EndpointSlice"): _endpoint_slice,
    ("v1", "Pod"): _pod,
    ("v1", "Node"): _node,
}
# Lists of one kind leave it out of their items.
_LISTS: dict[tuple[str, str], dict[str, str]] = {("v1", "List"): {}} | {
    (version, f"{kind}List"): {"apiVersion": version, "kind": kind} for version, kind in _READERS
}
