"""Which flows are meant: filters as values, the same that Hubble's clients send and its exporters are given.

All fields that are given have to match, of each any of its values; a filter without fields is every flow.
What they mean is :func:`k8sdatapath.model.flow_match.matcher`.
"""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.model.flow import (
    DropReason,
    Header,
    Interface,
    IPVersion,
    TCPFlags,
    TrafficDirection,
    Verdict,
    WorkloadRef,
)
from k8sdatapath.model.message import Kind, Message, part

__all__ = ["EventTypeFilter", "Experimental", "FlowFilter"]


@frozen
class EventTypeFilter(Message):
    """A kind of event; 0 is any.

    :ivar match_sub_type: whether only that sub type is meant.
    """

    type: int = part(Kind.PLAIN)
    match_sub_type: bool = part(Kind.PLAIN, bool)
    sub_type: int = part(Kind.PLAIN)


@frozen
class Experimental(Message):
    """What is not to be relied on."""

    cel_expression: tuple[str, ...] = part(Kind.PLAIN, str, many=True)


@frozen(kw_only=True)
class FlowFilter(Message):
    """Which flows are meant: ``FlowFilter(verdict=(Verdict.DROPPED,), source_pod=("shop/web",))``.

    :ivar source_ip: addresses and networks.
    :ivar source_pod: ``namespace/prefix``; ``namespace/`` is all pods there, ``/prefix`` is of any namespace,
        ``prefix`` of ``default``. Services are named the same way.
    :ivar source_fqdn: names, ``*`` is any run of what names are made of.
    :ivar source_label: label selectors; a key without a source is of any: ``app=web``, ``reserved:world``.
    :ivar source_workload: without a name or kind, any.
    :ivar http_status_code: ``404``, or ``5+`` for all that begin with 5.
    :ivar http_path: regular expressions of RE2's syntax that occur in it, as ``http_url`` and ``dns_query``.
    :ivar tcp_flags: sets of flags; a segment may have more.
    :ivar reply: what was dropped counts as no reply.
    :ivar node_name: ``[cluster/]name``, with ``*``.
    """

    source_ip: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    source_pod: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_ip: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_pod: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    verdict: tuple[Verdict | int, ...] = part(Kind.ENUM, Verdict, many=True)
    event_type: tuple[EventTypeFilter, ...] = part(Kind.ONE, EventTypeFilter, many=True)
    source_fqdn: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_fqdn: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    http_status_code: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    source_label: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_label: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    protocol: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    source_port: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_port: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    reply: tuple[bool, ...] = part(Kind.PLAIN, bool, many=True)
    source_service: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_service: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    dns_query: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    source_identity: tuple[int, ...] = part(Kind.PLAIN, many=True)
    destination_identity: tuple[int, ...] = part(Kind.PLAIN, many=True)
    http_method: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    http_path: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    tcp_flags: tuple[TCPFlags | int, ...] = part(Kind.BITS, TCPFlags, many=True)
    node_name: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    ip_version: tuple[IPVersion | int, ...] = part(Kind.ENUM, IPVersion, many=True)
    source_workload: tuple[WorkloadRef, ...] = part(Kind.ONE, WorkloadRef, many=True)
    destination_workload: tuple[WorkloadRef, ...] = part(Kind.ONE, WorkloadRef, many=True)
    trace_id: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    uuid: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    traffic_direction: tuple[TrafficDirection | int, ...] = part(Kind.ENUM, TrafficDirection, many=True)
    http_url: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    http_header: tuple[Header, ...] = part(Kind.ONE, Header, many=True)
    drop_reason_desc: tuple[DropReason | int, ...] = part(Kind.ENUM, DropReason, many=True)
    source_ip_xlated: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    interface: tuple[Interface, ...] = part(Kind.ONE, Interface, many=True)
    node_labels: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    source_cluster_name: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    destination_cluster_name: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    ip_trace_id: tuple[int, ...] = part(Kind.LONG, many=True)
    encrypted: tuple[bool, ...] = part(Kind.PLAIN, bool, many=True)
    experimental: Experimental | None = part(Kind.ONE, Experimental)
