"""Flows that were recorded somewhere, asked what other policies would have made of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from attrs import evolve, frozen

from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.errors import ModelError, SourceError
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.model.http import written
from k8sdatapath.model.policy import Policy, PortMatch
from k8sdatapath.model.workload import NamedPort, Workload

__all__ = ["Changed", "RecordedFlow", "recorded_flows", "what_if"]

Side: TypeAlias = Workload | IPAddress

_PORTS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_TYPES = {"ICMPv4": 1, "ICMPv6": 58}


@frozen
class RecordedFlow:
    """Who has dialled whom.

    :ivar source: a workload by its labels, or an address outside of the cluster; likewise ``destination``.
    :ivar protocol: of IP, by number.
    :ivar port: of the destination; of ICMP the type.
    :ivar request: of HTTP over it, as for :meth:`PolicySet.verdict`, or the name that was asked for; empty:
        the connection itself was recorded.
    :ivar unlabelled: of an end no labels were recorded: it is taken for an address outside.
    """

    source: Side
    destination: Side
    protocol: int
    port: int
    request: str = ""
    unlabelled: bool = False


@frozen
class Changed:
    """Flows that are judged otherwise.

    :ivar flows: how many were recorded.
    :ivar allowed: whether they are allowed after the change.
    :ivar why: what decides then.
    :ivar request: it is about these requests; empty: about connections.
    """

    source: str
    destination: str
    protocol: int
    port: int
    flows: int
    allowed: bool
    why: str
    request: str = ""

    @property
    def ports(self) -> str:
        """Protocol and port, for people."""
        return str(PortMatch(self.protocol, self.port, self.port))

    def __str__(self) -> str:
        word = "allowed" if self.allowed else "denied"
        what = f" {', '.join(self.request.splitlines())}" if self.request else ""
        return f"{self.flows} x {self.source} -> {self.destination} at {self.ports}{what}: {word}: {self.why}"


def recorded_flows(path: str | os.PathLike[str]) -> Iterator[RecordedFlow]:
    """Flows as ``hubble observe -o json`` and ``k8sdatapath observe -o json`` write them, one a line.

    Answers, and what is no packet between two ends, are passed over.

    :raises SourceError: a line that is no such flow.
    :raises OSError: the file cannot be read.
    """
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                    found = _flow(value.get("flow", value))
                except (ValueError, TypeError, AttributeError, KeyError, ModelError) as error:
                    raise SourceError(f"{path}, line {number}: this is no flow: {error}") from None
                if found is not None:
                    yield found


def what_if(
    before: Iterable[Policy],
    after: Iterable[Policy],
    flows: Iterable[RecordedFlow],
    *,
    workloads: Iterable[Workload] = (),
    names: Mapping[str, Iterable[Any]] = {},
    host_firewall: HostFirewall | bool | None = None,
) -> tuple[Changed, ...]:
    """The flows that some policies, instead of others, judge otherwise; the most frequent first.

    :param workloads: those that tell which ports have names, which flows do not: by name, or by labels.
    :param names: the addresses of DNS names, for policies by name.
    :param host_firewall: policies are for nodes as well, as for :class:`PolicySet`.
    """
    old, new = (PolicySet(each, names=names, host_firewall=host_firewall) for each in (before, after))
    named: dict[str | frozenset[str], tuple[NamedPort, ...]] = {}
    for each in workloads:
        named[each.name] = named[_own(each)] = each.ports
    found = []
    for flow, count in Counter(flows).most_common():
        destination = _with_ports(flow.destination, named)
        asked = flow.source, destination, flow.port, flow.protocol
        was, now = (each.verdict(*asked, request=flow.request) for each in (old, new))
        if was.allowed is not now.allowed:
            ends = _called(flow.source), _called(flow.destination)
            found.append(Changed(*ends, flow.protocol, flow.port, count, now.allowed, str(now), flow.request))
    return tuple(found)


def _flow(value: dict[str, Any]) -> RecordedFlow | None:
    ends, ports = value.get("IP"), value.get("l4")
    if not ends or not ports or value.get("is_reply"):
        return None
    name, own = next(iter(ports.items()))
    if name in _PORTS:
        protocol, port = _PORTS[name], int(own.get("destination_port", 0))
    elif name in _TYPES:
        protocol, port = _TYPES[name], int(own.get("type", 0))
    else:
        return None
    source = _side(value.get("source") or {}, ends["source"])
    destination = _side(value.get("destination") or {}, ends["destination"])
    unlabelled = not all((value.get(end) or {}).get("labels") for end in ("source", "destination"))
    return RecordedFlow(source, destination, protocol, port, _request(value.get("l7") or {}), unlabelled)


def _request(value: dict[str, Any]) -> str:
    """What was asked for; of HTTP with its headers, as far as they were recorded."""
    http, names = value.get("http") or {}, value.get("dns") or {}
    if not http.get("method"):
        return str(names.get("query", "")).removesuffix(".")
    url = urlsplit(str(http.get("url", "")))
    target = f"{url.path or '/'}{url.query and f'?{url.query}'}"
    headers = [f"{each['key']}: {each['value']}" for each in http.get("headers") or ()]
    host = [] if any(each.lower().startswith("host:") for each in headers) else [f"Host: {url.netloc}"]
    text = "\n".join([f"{http['method']} {target}", *host, *headers])
    written(text)  # refuses what is none
    return text


def _side(end: dict[str, Any], ip: str) -> Side:
    """Who is outside of the cluster is known by his address alone."""
    labels = [str(each) for each in end.get("labels") or ()]
    if not labels or any(each.startswith(("reserved:world", "cidr:", "fqdn:")) for each in labels):
        return address(ip)
    pod = "/".join(filter(None, (end.get("namespace"), end.get("pod_name"))))
    return Workload(pod or ", ".join(labels), labels, addresses=[ip])


def _with_ports(side: Side, named: Mapping[str | frozenset[str], tuple[NamedPort, ...]]) -> Side:
    if not isinstance(side, Workload):
        return side
    return evolve(side, ports=named.get(side.name) or named.get(_own(side), ()))


def _own(workload: Workload) -> frozenset[str]:
    """Its labels and its namespace, but for what else the cluster says of it."""
    told = (each for each in workload.labels if each.startswith("k8s:"))
    return frozenset(each for each in told if not each.startswith("k8s:io.cilium.k8s."))


def _called(side: Side) -> str:
    return side.name if isinstance(side, Workload) else str(side)
