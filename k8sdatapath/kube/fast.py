"""Services and EndpointSlices straight from bytes: only fields that are used, without plain values between.

This knows the ordinary object, such as nearly all in a cluster are, and gives up on any other: wrong ones
too. ``kube.wire`` then reads it anew. What is made here is what would be made there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from socket import AF_INET, AF_INET6, inet_pton
from sys import intern
from typing import Any, Generic, Self, TypeVar

import msgspec

from k8sdatapath.kube import decode
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeObject, KubeService, Port
from k8sdatapath.kube.wire import GarbledError, Item, Notice, Page, PlainReader, parse
from k8sdatapath.model import IPAddress, Protocol, Selection

__all__ = ["FastReader"]

T = TypeVar("T")


_NONE = msgspec.Raw(b"null")


class _Fields(msgspec.Struct, gc=False):
    """Of a mapping, those fields that are used."""


class _Labels(_Fields):
    service: str | None = msgspec.field(name=decode.SERVICE_NAME, default=None)
    proxy: str | None = msgspec.field(name=decode.OTHER_PROXY, default=None)


class _Annotations(_Fields):
    triggered: Any = msgspec.field(name=decode.TRIGGERED, default=None)
    selection: Any = msgspec.field(name=decode.SELECTION, default=None)


class _Metadata(_Fields):
    name: str
    namespace: str
    uid: str = ""
    resourceVersion: str = ""
    labels: _Labels | None = None
    annotations: _Annotations | None = None


class _Port(_Fields):
    port: int
    name: str | None = None
    protocol: str | None = None
    nodePort: int | None = None
    targetPort: int | str | None = None


class _Object(_Fields):
    metadata: _Metadata
    kind: str | None = None
    apiVersion: str | None = None


class _ServiceSpec(_Fields):
    """With nothing that hardly any Service has."""

    clusterIP: str
    clusterIPs: list[str]
    ports: list[_Port]
    type: str = "ClusterIP"
    sessionAffinity: str = "None"
    sessionAffinityConfig: None = None
    internalTrafficPolicy: str = "Cluster"
    externalTrafficPolicy: str = "Cluster"
    externalIPs: None = None
    loadBalancerSourceRanges: None = None
    healthCheckNodePort: None = None


class _Service(_Object, kw_only=True):
    spec: _ServiceSpec


class _Name(_Fields):
    name: str


class _Hints(_Fields):
    forNodes: list[_Name] | None = None
    forZones: list[_Name] | None = None


class _Conditions(_Fields):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _Endpoint(_Fields):
    addresses: list[str]
    conditions: _Conditions | None = None
    nodeName: str | None = None
    hints: _Hints | None = None


class _Slice(_Object, kw_only=True):
    """What it is made of is known from earlier, nearly all: not read again, but recognised by its bytes."""

    addressType: str
    endpoints: list[msgspec.Raw] | None = None
    ports: msgspec.Raw = _NONE


class _Event(_Fields, Generic[T]):
    type: str
    object: T


class _ListMetadata(_Fields):
    resourceVersion: str = ""
    following: str = msgspec.field(name="continue", default="")


class _List(_Fields):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


_list = msgspec.json.Decoder(_List)
_endpoints = msgspec.json.Decoder(_Endpoint)
_port_list = msgspec.json.Decoder(list[_Port] | None)
_address_of = attrgetter("address")
_time = lru_cache(1024)(decode.unix_time)  # in whole seconds, so that many changes have the same
_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class _Memory:
    """The endpoints of each slice by their bytes: with one that changes, all others are told again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[bytes, Endpoint]] = {}
        self._listed: set[tuple[str, str]] = set()

    def endpoints(self, own: _Metadata, raws: list[bytes]) -> tuple[Endpoint, ...] | None:
        """Those of a slice; None: one is not ordinary."""
        key = own.namespace, own.name
        known = self._known.get(key, _NOTHING)
        found = [each for raw in raws if (each := known.get(raw) or _endpoint(raw))]
        if len(found) < len(raws):
            return None
        self._known[key] = dict(zip(raws, found, strict=True))
        return tuple(found)

    def forget(self, item: Item) -> None:
        """It has gone."""
        self._known.pop((item.namespace, item.name), None)

    def page(self, page: Page) -> None:
        """With the last page of a list it is known which others have gone."""
        self._listed.update((item.namespace, item.name) for item in page.items)
        if not page.following:
            self._known = {key: each for key, each in self._known.items() if key in self._listed}
            self._listed = set()


class FastReader:
    """Reads a resource that there are many objects of."""

    def __init__(self, plain: PlainReader, kind: type[_Object], make: _Maker) -> None:
        self._plain = plain
        self._make = make
        self._memory = _Memory()
        self._object = msgspec.json.Decoder(kind)
        self._event = msgspec.json.Decoder(_Event[kind])  # type: ignore[valid-type]
        resource = plain.resource
        self._kinds = resource.kind, None
        self._versions = resource.api, None
        self._title = f"{plain.where} ({resource.kind}"

    @classmethod
    def of(cls, plain: PlainReader) -> Self | None:
        """For a resource that this knows, else None."""
        resource = plain.resource
        known = _KNOWN.get((resource.api, resource.kind))
        return None if known is None or resource.raw else cls(plain, *known)

    def page(self, body: bytes) -> Page:
        """One answer to a list request."""
        try:
            found = _list.decode(body)
        except _REFUSED:
            return self._plain.page(body)
        items = []
        for raw in found.items or ():
            try:
                item = self._ordinary(self._object.decode(raw))
            except _REFUSED:
                item = None
            try:
                items.append(item or self._plain.item(parse(bytes(raw))))
            except GarbledError:
                continue
        lost = len(found.items or ()) - len(items)
        page = Page(items, found.metadata.resourceVersion, found.metadata.following, lost)
        self._memory.page(page)
        return page

    def event(self, line: bytes) -> tuple[str, Item | Notice]:
        """One line of a watch."""
        try:
            event = self._event.decode(line)
        except _REFUSED:
            return self._plain.event(line)
        if event.type in ("MODIFIED", "ADDED", "DELETED"):
            item = self._ordinary(event.object)
            if item is not None:
                if event.type == "DELETED":
                    self._memory.forget(item)
                return event.type, item
        return self._plain.event(line)

    def _ordinary(self, value: Any) -> Item | None:
        if value.kind not in self._kinds or value.apiVersion not in self._versions:
            return None
        own = value.metadata
        found = self._make(value, f"{self._title} {own.namespace}/{own.name})", self._memory)
        if found is None:
            return None
        return Item(own.namespace, own.name, own.uid, own.resourceVersion, found)


def _service(value: _Service, where: str, _: _Memory) -> KubeService | None:
    own, spec = value.metadata, value.spec
    labels, annotations = own.labels, own.annotations
    external, internal = spec.externalTrafficPolicy, spec.internalTrafficPolicy
    addresses = tuple(map(_address, spec.clusterIPs))
    ports = _ports(spec.ports)
    if (
        not _named(own)
        or not ports
        or None in addresses
        or len({each.version for each in addresses if each}) < len(addresses)
        or spec.clusterIPs[:1] != [spec.clusterIP]
        or spec.type not in ("ClusterIP", "NodePort")
        or spec.sessionAffinity != "None"
        or external not in _POLICIES
        or internal not in _POLICIES
        or (labels is not None and labels.proxy is not None)
        or (annotations is not None and annotations.selection is not None)
    ):
        return None
    return KubeService(
        own.namespace,
        own.name,
        addresses,  # type: ignore[arg-type]
        ports,
        Selection.RANDOM,
        spec.type,
        internal_local=internal == "Local",
        external_local=external == "Local",
        where=where,
    )


def _slice(value: _Slice, where: str, memory: _Memory) -> EndpointSlice | None:
    own = value.metadata
    labels, annotations = own.labels, own.annotations
    version, family = _FAMILIES.get(value.addressType, (0, None))
    ports = _ports_of(bytes(value.ports))
    if family is None or ports is None or labels is None or labels.service is None or not _named(own):
        return None
    endpoints = memory.endpoints(own, list(map(bytes, value.endpoints or ())))
    if endpoints is None or set(map(type, map(_address_of, endpoints))) - {family}:
        return None
    told = annotations.triggered if annotations is not None else None
    return EndpointSlice(
        own.namespace,
        own.name,
        labels.service,
        version,
        ports,
        endpoints,
        _time(told) if type(told) is str else 0.0,
        where=where,
    )


def _endpoint(raw: bytes) -> Endpoint | None:
    """One of a slice, unless it is not ordinary."""
    try:
        value = _endpoints.decode(raw)
    except _REFUSED:
        return None
    address = _address(value.addresses[0]) if len(value.addresses) == 1 else None
    if address is None:
        return None
    conditions, hints = value.conditions or _NO_CONDITIONS, value.hints
    return Endpoint(
        address,
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        intern(value.nodeName or ""),
        *(() if hints is None else (_hinted(hints.forNodes), _hinted(hints.forZones))),
    )


@lru_cache(4096)
def _ports_of(raw: bytes) -> tuple[Port, ...] | None:
    """Those of a slice, if they are ordinary: the same few for all slices of a cluster."""
    try:
        return _ports(_port_list.decode(raw) or ())
    except _REFUSED:
        return None


def _named(own: _Metadata) -> bool:
    return _is_name(own.name) and _is_name(own.namespace)


@lru_cache(1 << 15)
def _is_name(text: str) -> bool:
    return decode.NAME.fullmatch(text) is not None


def _ports(given: Iterable[_Port]) -> tuple[Port, ...] | None:
    """Those of a Service or a slice; None: one of them, or the lot, is not ordinary."""
    found = []
    for each in given:
        protocol, name, node = _PROTOCOLS.get(each.protocol), each.name or "", each.nodePort or 0
        target = each.targetPort
        if (
            protocol is None
            or not 0 < each.port < 65536
            or (name and not decode.PORT_NAME.fullmatch(name))
            or not 0 <= node < 65536
            or (type(target) is int and not 0 < target < 65536)
        ):
            return None
        found.append(_port(name, each.port, protocol, node))
    if len(found) > 1:
        names = {each.name for each in found}
        numbers = {(each.number, each.protocol) for each in found}
        if "" in names or len(names) < len(found) or len(numbers) < len(found):
            return None
    return tuple(found)


@lru_cache(4096)
def _port(name: str, number: int, protocol: Protocol, node: int) -> Port:
    return Port(name, number, protocol, node)


def _address(text: str) -> IPAddress | None:
    """One that a pod or a Service can have."""
    try:
        packed = inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return None
    first, second = packed[0], packed[1]
    if len(packed) == 4:
        special = first in (0, 127) or 224 <= first < 240 or (first == 169 and second == 254)
        return None if special else IPv4Address(packed)
    special = first in (0, 0xFF) or (first == 0xFE and second & 0xC0 == 0x80)
    return None if special else IPv6Address(packed)


def _hinted(hints: list[_Name] | None) -> frozenset[str]:
    return _set(tuple([each.name for each in hints])) if hints else _NOWHERE


@lru_cache(4096)
def _set(names: tuple[str, ...]) -> frozenset[str]:
    """Of few sets, each once: there are as many as zones and nodes."""
    return frozenset(names)


_NOWHERE: frozenset[str] = frozenset()
_NOTHING: dict[bytes, Endpoint] = {}
_NO_CONDITIONS = _Conditions()
_FAMILIES = {"IPv4": (4, IPv4Address), "IPv6": (6, IPv6Address)}
_POLICIES = ("Cluster", "Local")
_PROTOCOLS = {None: Protocol.TCP, "TCP": Protocol.TCP, "UDP": Protocol.UDP}  # SCTP is not ordinary
_Maker = Callable[[Any, str, _Memory], KubeObject | None]
_KNOWN: dict[tuple[str, str], tuple[type[_Object], _Maker]] = {
    ("v1", "Service"): (_Service, _service),
    ("discovery.k8s.io/v1", "EndpointSlice"): (_Slice, _slice),
}
