"""Reads Kubernetes objects out of plain values, and says of every field that cannot be what it should be.

Defaults are those an API server would fill in, so that a manifest means here what it means in a cluster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeObject, KubeService, Port
from k8sdatapath.model import BackendState, IPAddress, Protocol, Selection, address, port
from k8sdatapath.model.address import shown

__all__ = ["SELECTION", "backend_state", "decode"]

SELECTION = "k8sdatapath.io/selection"
"""Annotation of a Service: ``random`` or ``maglev``."""

_SERVICE_NAME = "kubernetes.io/service-name"
_OTHER_PROXY = "service.kubernetes.io/service-proxy-name"

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_PORT_NAME = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?")


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
    elif read := _READERS.get((version, kind)):
        metadata = Field(document, f"{where} ({kind})")["metadata"].given()
        name, namespace = _named(metadata["name"]), _named(metadata["namespace"], "default")
        found = read(Field(document, f"{where} ({kind} {namespace}/{name})"), namespace, name, ignored)
        if found is not None:
            yield found
    else:
        ignored[kind] += 1


def backend_state(ready: bool | None, serving: bool | None, terminating: bool | None) -> BackendState | None:
    """What the conditions of an endpoint make of it; None: it is given no new flows, come what may."""
    if ready is None or ready:  # also while terminating: so it is published on purpose
        return BackendState.ACTIVE
    # Serving, if unknown, is as ready: false.
    return BackendState.TERMINATING if serving and terminating else None


def _service(root: Field, namespace: str, name: str, ignored: Counter[str]) -> KubeService | None:
    spec, metadata = root["spec"].given(), root["metadata"]
    kind = spec["type"].choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName", default="ClusterIP")
    addresses, ports = _cluster_ips(spec), _service_ports(spec["ports"])
    selection = metadata["annotations"][SELECTION].choice("random", "maglev", default="random")
    if metadata["labels"][_OTHER_PROXY].value is not None:
        ignored["Service of another proxy"] += 1
    elif kind == "ExternalName" or not addresses:
        ignored["ExternalName Service" if kind == "ExternalName" else "Service without a cluster IP"] += 1
    elif not ports:
        spec["ports"].refuse("missing")
    else:
        ignored.update(_not_yet(spec, kind, ports))
        return KubeService(namespace, name, addresses, ports, Selection[selection.upper()], root.where)
    return None


def _not_yet(spec: Field, kind: str, ports: tuple[Port, ...]) -> Iterator[str]:
    """What a Service asks for beyond its cluster IPs."""
    if kind != "ClusterIP":
        yield f"{kind} part of a Service"
    if spec["externalIPs"].items():
        yield "externalIPs"
    if spec["sessionAffinity"].choice("None", "ClientIP", default="None") != "None":
        yield "sessionAffinity"
    if spec["internalTrafficPolicy"].choice("Cluster", "Local", default="Cluster") != "Cluster":
        yield "internalTrafficPolicy"
    yield from ("SCTP port" for port in ports if port.protocol is Protocol.SCTP)


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
        made = Port(_port_name(given["name"]), given["port"].made(port), _protocol(given["protocol"]))
        if not isinstance(given["targetPort"].value, str | None):
            given["targetPort"].made(port)
        if given["nodePort"].value not in (None, 0):
            given["nodePort"].made(port)
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
    service, ports = root["metadata"]["labels"][_SERVICE_NAME], _slice_ports(root["ports"])
    if family == "FQDN" or service.value is None:
        ignored["FQDN EndpointSlice" if family == "FQDN" else "EndpointSlice of no Service"] += 1
        return None
    version = int(family[-1])
    endpoints = [_endpoint(each, version) for each in root["endpoints"].items()]
    serving = tuple(endpoint for endpoint in endpoints if endpoint)
    return EndpointSlice(namespace, name, service.text(), version, ports, serving, root.where)


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


def _endpoint(field: Field, version: int) -> Endpoint | None:
    addresses = [_usable_address(one) for one in field["addresses"].given().items()]
    if not addresses:
        field["addresses"].refuse("empty")
    for index, ip in enumerate(addresses):
        if ip.version != version:
            field["addresses"].items()[index].refuse(f"{ip} is IPv{ip.version}, addressType is IPv{version}")
    conditions = field["conditions"]
    ready, serving, terminating = (conditions[name].flag() for name in ("ready", "serving", "terminating"))
    # By the API all addresses are of one pod, and the first is the one to use.
    state = backend_state(ready, serving, terminating)
    return Endpoint(addresses[0], state) if state else None


def _usable_address(field: Field) -> IPAddress:
    field.text()
    ip = field.made(address)
    if ip.is_unspecified or ip.is_loopback or ip.is_link_local or ip.is_multicast:
        field.refuse(f"{ip} is unspecified, loopback, link-local or multicast: no pod or Service can have it")
    return ip


def _protocol(field: Field) -> Protocol:
    return Protocol[field.choice("TCP", "UDP", "SCTP", default="TCP")]


def _named(field: Field, default: str | None = None) -> str:
    name = field.text(default)
    if not _NAME.fullmatch(name):
        field.refuse(f"{shown(name)} is not a name (a-z, 0-9, - and .)")
    return name


def _port_name(field: Field) -> str:
    name = field.text("")
    if not _PORT_NAME.fullmatch(name):
        field.refuse(f"{shown(name)} is not a port name (a-z, 0-9, -)")
    return name


_READERS: dict[tuple[str, str], Callable[[Field, str, str, Counter[str]], KubeObject | None]] = {
    ("v1", "Service"): _service,
    ("discovery.k8s.io/v1", "EndpointSlice"): _endpoint_slice,
}
# Lists of one kind leave it out of their items.
_LISTS: dict[tuple[str, str], dict[str, str]] = {("v1", "List"): {}} | {
    (version, f"{kind}List"): {"apiVersion": version, "kind": kind} for version, kind in _READERS
}
