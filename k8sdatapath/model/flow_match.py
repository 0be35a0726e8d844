"""What filters of flows mean: made into functions once, then asked for each flow.

The meaning is Hubble's, field by field. Whoever writes filters may be anybody: text is bounded, and regular
expressions are RE2's, which take time in proportion to the text. Without the package ``google-re2`` there are
none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import (
    DNS,
    HTTP,
    SCTP,
    TCP,
    UDP,
    DropReason,
    Endpoint,
    Flow,
    Interface,
    MonitorEvent,
    ServiceRef,
    Verdict,
    WorkloadRef,
)
from k8sdatapath.model.flow_filter import EventTypeFilter, FlowFilter
from k8sdatapath.model.flow_limits import check_size, texts
from k8sdatapath.model.flow_patterns import addresses, expressions, globs, named
from k8sdatapath.model.flow_selectors import label_selector
from k8sdatapath.model.message import parts

__all__ = ["MAX_FILTERS", "MAX_TEXT", "MAX_VALUES", "Matcher", "is_policy_verdict", "matcher"]

Matcher: TypeAlias = Callable[[Flow], bool]
_Test: TypeAlias = Callable[[Any], bool]

MAX_FILTERS = 256
"""Filters in one list."""
MAX_VALUES = 1024
"""Values of one field."""
MAX_TEXT = 4096
"""Characters of one value."""

_PROTOCOLS = ("icmp", "icmpv4", "icmpv6", "sctp", "tcp", "udp", "vrrp", "igmp", "dns", "http", "kafka")
_STATUS = re.compile(r"[1-5][0-9]{2}|[1-5][0-9]?\+", re.ASCII)
_HTTP_FIELDS = ("http_status_code", "http_method", "http_path", "http_url", "http_header")


def matcher(allow: Iterable[FlowFilter] = (), deny: Iterable[FlowFilter] = ()) -> Matcher:
    """What tells whether a flow is meant: by any of ``allow`` (none are all), and by none of ``deny``.

    :raises ModelError: a filter that cannot be; it says which value of which field.
    :raises MissingExtraError: it has regular expressions, and there is no RE2.
    """
    allowed, denied = _any("allow", allow), _any("deny", deny)
    if denied is None:
        return allowed or (lambda flow: True)
    if allowed is None:
        return lambda flow: not denied(flow)
    return lambda flow: allowed(flow) and not denied(flow)


def _any(what: str, filters: Iterable[FlowFilter]) -> Matcher | None:
    filters = tuple(filters)
    if len(filters) > MAX_FILTERS:
        raise ModelError(f"{what}: {len(filters)} filters are more than {MAX_FILTERS}")
    check_size(what, filters)
    found = [_all(f"{what}[{index}]", each) for index, each in enumerate(filters)]
    if len(found) < 2:
        return found[0] if found else None
    return lambda flow: any(test(flow) for test in found)


def _all(where: str, given: FlowFilter) -> Matcher:
    """The test of one filter."""
    tests: list[Matcher] = []
    for each in parts(FlowFilter):
        values = getattr(given, each.attribute)
        if not values:
            continue
        if each.attribute == "experimental":
            if values.cel_expression:
                raise ModelError(f"{where}.experimental.cel_expression: expressions of CEL are not supported")
            continue
        if len(values) > MAX_VALUES:
            raise ModelError(f"{where}.{each.name}: {len(values)} values are more than {MAX_VALUES}")
        long = next((len(text) for text in texts(values) if len(text) > MAX_TEXT), 0)
        if long:
            raise ModelError(f"{where}.{each.name}: a text of {long} characters, more than {MAX_TEXT}")
        try:
            tests.append(_TESTS[each.attribute](values))
        except (ModelError, ValueError) as error:
            raise ModelError(f"{where}.{each.name}: {error}") from None
    requests = [name for name in _HTTP_FIELDS if getattr(given, name)]
    if requests and given.event_type and all(each.type != MonitorEvent.L7 for each in given.event_type):
        raise ModelError(f"{where}.{requests[0]}: with event_type, which has to have {MonitorEvent.L7:d}")
    if len(tests) < 2:
        return tests[0] if tests else lambda flow: True
    return lambda flow: all(test(flow) for test in tests)


def _of_side(side: str, test: _Test) -> Matcher:
    """The test of one end, which has to be there."""

    def tested(flow: Flow) -> bool:
        end = flow.source if side == "source" else flow.destination
        return end is not None and test(end)

    return tested


def _ip(attribute: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        test = addresses(values)
        return lambda flow: flow.ip is not None and test(getattr(flow.ip, attribute))

    return build


def _pod(side: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        test = named(values)
        return _of_side(side, lambda end: test(end.namespace, end.pod_name))

    return build


def _service(side: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        test = named(values)

        def tested(flow: Flow) -> bool:
            found: ServiceRef | None = getattr(flow, f"{side}_service")
            return found is not None and test(found.namespace, found.name)

        return tested

    return build


def _fqdn(side: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        test = globs(values)
        return lambda flow: any(test(name) for name in getattr(flow, f"{side}_names"))

    return build


def _label(side: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        tests = [label_selector(value) for value in values]
        return _of_side(side, lambda end: any(test(end.labels) for test in tests))

    return build


def _identity(side: str) -> Callable[[Collection[int]], Matcher]:
    def build(values: Collection[int]) -> Matcher:
        wanted = frozenset(values)
        return _of_side(side, lambda end: end.identity in wanted)

    return build


def _workload(side: str) -> Callable[[Sequence[WorkloadRef]], Matcher]:
    def build(values: Sequence[WorkloadRef]) -> Matcher:
        def test(end: Endpoint) -> bool:
            return any(
                wanted.name in ("", has.name) and wanted.kind in ("", has.kind)
                for wanted in values
                for has in end.workloads
            )

        return _of_side(side, test)

    return build


def _cluster(side: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        test = globs(values)
        return _of_side(side, lambda end: test(end.cluster_name))

    return build


def _port(attribute: str) -> Callable[[Sequence[str]], Matcher]:
    def build(values: Sequence[str]) -> Matcher:
        for value in values:
            if not (value.isascii() and value.isdigit() and len(value) < 6 and int(value) < 65536):
                raise ModelError(f"{shown(value)} is not a port")
        wanted = frozenset(map(int, values))
        return lambda flow: isinstance(flow.l4, TCP | UDP | SCTP) and getattr(flow.l4, attribute) in wanted

    return build


def _among(read: Callable[[Flow], Any]) -> Callable[[Collection[Any]], Matcher]:
    """Whether what is read of a flow is one of the values."""

    def build(values: Collection[Any]) -> Matcher:
        wanted = frozenset(values)
        return lambda flow: read(flow) in wanted

    return build


def _http(test: Callable[[HTTP], bool]) -> Matcher:
    def tested(flow: Flow) -> bool:
        record = flow.l7.record if flow.l7 is not None else None
        return isinstance(record, HTTP) and test(record)

    return tested


# -- the fields that are like no other ----------------------------------------------------------------


def _protocol(values: Sequence[str]) -> Matcher:
    wanted = {value.lower() for value in values}
    for value in wanted.difference(_PROTOCOLS):
        raise ModelError(f"{shown(value)} is not a protocol ({', '.join(_PROTOCOLS)})")
    if "icmp" in wanted:
        wanted |= {"icmpv4", "icmpv6"}

    def test(flow: Flow) -> bool:
        if flow.l4 is not None and type(flow.l4).__name__.lower() in wanted:
            return True
        record = flow.l7.record if flow.l7 is not None else None
        return record is not None and type(record).__name__.lower() in wanted

    return test


def _reply(flow: Flow) -> bool | None:
    """Hubble's rule, which its user interface needs: what was dropped is no reply."""
    return False if flow.is_reply is None and flow.verdict == Verdict.DROPPED else flow.is_reply


def is_policy_verdict(flow: Flow) -> bool:
    """Whether a policy's verdict is told: as such, or, where a policy has denied, once, as a drop."""
    kind = flow.event_type.type if flow.event_type is not None else 0
    denied = flow.drop_reason in (DropReason.POLICY_DENIED, DropReason.POLICY_DENY)
    return kind == MonitorEvent.POLICY_VERDICT or (kind == MonitorEvent.DROP and denied)


def _event_type(values: Sequence[EventTypeFilter]) -> Matcher:
    verdicts = any(each.type == MonitorEvent.POLICY_VERDICT and not each.match_sub_type for each in values)

    def test(flow: Flow) -> bool:
        found = flow.event_type
        return (verdicts and is_policy_verdict(flow)) or (
            found is not None
            and any(
                wanted.type in (0, found.type)
                and (not wanted.match_sub_type or wanted.sub_type == found.sub_type)
                for wanted in values
            )
        )

    return test


def _tcp_flags(values: Sequence[int]) -> Matcher:
    def test(flow: Flow) -> bool:
        if not isinstance(flow.l4, TCP):
            return False
        flags = flow.l4.flags
        return any(flags & wanted == wanted for wanted in values)

    return test


def _interface(values: Sequence[Interface]) -> Matcher:
    def test(flow: Flow) -> bool:
        found = flow.interface
        return found is not None and any(
            wanted.index in (0, found.index) and wanted.name in ("", found.name) for wanted in values
        )

    return test


def _status(values: Sequence[str]) -> Matcher:
    for value in values:
        if not _STATUS.fullmatch(value):
            raise ModelError(f"{shown(value)} is neither a status like 404 nor a prefix like 5+")
    prefixes = tuple(value.removesuffix("+") for value in values)
    return _http(lambda record: record.code != 0 and str(record.code).startswith(prefixes))


def _method(values: Sequence[str]) -> Matcher:
    wanted = {value.lower() for value in values}
    return _http(lambda record: record.method.lower() in wanted)


def _url(values: Sequence[str]) -> Matcher:
    test = expressions(values)
    return _http(lambda record: test(record.url))


def _path(values: Sequence[str]) -> Matcher:
    test = expressions(values)

    def tested(record: HTTP) -> bool:
        try:
            return test(urlsplit(record.url).path)
        except ValueError:
            return False

    return _http(tested)


def _header(values: Collection[Any]) -> Matcher:
    wanted = frozenset(values)
    return _http(lambda record: not wanted.isdisjoint(record.headers))


def _query(values: Sequence[str]) -> Matcher:
    test = expressions(values)

    def tested(flow: Flow) -> bool:
        record = flow.l7.record if flow.l7 is not None else None
        return isinstance(record, DNS) and test(record.query)

    return tested


def _node(values: Sequence[str]) -> Matcher:
    tests = []
    for value in values:
        cluster, _, name = value.rpartition("/")
        if not cluster and not name:
            raise ModelError(f"{shown(value)} is neither a cluster nor a node")
        tests.append((globs([cluster or "*"]), globs([name or "*"])))

    def test(flow: Flow) -> bool:
        cluster, slash, name = flow.node_name.partition("/")
        if not slash:
            cluster, name = "default", flow.node_name
        return bool(name) and any(of_cluster(cluster) and of_name(name) for of_cluster, of_name in tests)

    return test


def _node_labels(values: Sequence[str]) -> Matcher:
    tests = [label_selector(value) for value in values]
    return lambda flow: any(test(flow.node_labels) for test in tests)


def _trace_id(flow: Flow) -> str | None:
    context = flow.trace_context
    return context.parent.trace_id if context is not None and context.parent is not None else None


_TESTS: dict[str, Callable[[Any], Matcher]] = {
    "source_ip": _ip("source"),
    "source_pod": _pod("source"),
    "destination_ip": _ip("destination"),
    "destination_pod": _pod("destination"),
    "verdict": _among(lambda flow: flow.verdict),
    "event_type": _event_type,
    "source_fqdn": _fqdn("source"),
    "destination_fqdn": _fqdn("destination"),
    "http_status_code": _status,
    "source_label": _label("source"),
    "destination_label": _label("destination"),
    "protocol": _protocol,
    "source_port": _port("source_port"),
    "destination_port": _port("destination_port"),
    "reply": _among(_reply),
    "source_service": _service("source"),
    "destination_service": _service("destination"),
    "dns_query": _query,
    "source_identity": _identity("source"),
    "destination_identity": _identity("destination"),
    "http_method": _method,
    "http_path": _path,
    "tcp_flags": _tcp_flags,
    "node_name": _node,
    "ip_version": _among(lambda flow: flow.ip.version if flow.ip is not None else 0),
    "source_workload": _workload("source"),
    "destination_workload": _workload("destination"),
    "trace_id": _among(_trace_id),
    "uuid": _among(lambda flow: flow.uuid),
    "traffic_direction": _among(lambda flow: flow.traffic_direction),
    "http_url": _url,
    "http_header": _header,
    "drop_reason_desc": _among(lambda flow: flow.drop_reason),
    "source_ip_xlated": _ip("source_xlated"),
    "interface": _interface,
    "node_labels": _node_labels,
    "source_cluster_name": _cluster("source"),
    "destination_cluster_name": _cluster("destination"),
    "ip_trace_id": _among(lambda flow: flow.ip_trace_id.trace_id if flow.ip_trace_id is not None else None),
    "encrypted": _among(lambda flow: flow.ip.encrypted if flow.ip is not None else None),
}
