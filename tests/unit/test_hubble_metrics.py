"""Metrics of flows: what each counts, under which labels."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from attrs import evolve

from k8sdatapath.errors import ModelError
from k8sdatapath.flow_source import FlowRing
from k8sdatapath.hubble import metrics
from k8sdatapath.hubble.metrics import FlowMetrics, MetricReader
from k8sdatapath.model.flow import (
    DNS,
    TCP,
    UDP,
    DropReason,
    Endpoint,
    EventType,
    Flow,
    ICMPv4,
    ICMPv6,
    L7FlowType,
    Layer7,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    TCPFlags,
    TraceObservationPoint,
    TrafficDirection,
    Verdict,
)
from tests.support.flows import FULL, RESOLVED

OPENED = evolve(
    FULL,
    verdict=Verdict.FORWARDED,
    l4=TCP(40000, 80, TCPFlags.SYN),
    l7=None,
    event_type=EventType(MonitorEvent.TRACE, 0),
    is_reply=False,
    destination=Endpoint(identity=2, labels=("reserved:world",)),
)
ANSWERED = Flow(
    l7=Layer7(
        L7FlowType.RESPONSE,
        0,
        DNS("a.b.", ips=("10.0.0.1", "10.0.0.2"), rcode=0, qtypes=("A",), rrtypes=("A", "CNAME")),
    )
)
DENIED = evolve(FULL, l7=None, event_type=EventType(MonitorEvent.POLICY_VERDICT, 0))
DROPPED = evolve(DENIED, event_type=EventType(MonitorEvent.DROP, 133))
PODS = tuple(end.pod_name for end in (FULL.source, FULL.destination) if end is not None)


def counted(metric: str, *flows: Flow) -> dict[str, Mapping[tuple[str, ...], float]]:
    """By name of the metric."""
    found = FlowMetrics([metric])
    for each in flows:
        found.see(each)
    return {family.name: family.counters for family in found.families()[1:]}


@pytest.mark.parametrize(
    ("metric", "flows", "expected"),
    [
        (
            "flow",
            [OPENED, OPENED, FULL, DENIED, Flow()],
            {
                "hubble_flows_processed": {
                    ("Trace", "to-endpoint", "FORWARDED"): 2,
                    ("L7", "HTTP", "DROPPED"): 1,
                    ("PolicyVerdict", "", "DROPPED"): 1,
                    ("Unknown", "", "VERDICT_UNKNOWN"): 1,
                }
            },
        ),
        (
            "drop",
            [OPENED, DENIED, FULL],
            {"hubble_drop": {("POLICY_DENIED", "TCP"): 1, ("POLICY_DENIED", "HTTP"): 1}},
        ),
        (
            "tcp",
            [
                OPENED,
                evolve(OPENED, l4=TCP(1, 2, TCPFlags.SYN | TCPFlags.ACK)),
                evolve(OPENED, l4=TCP(1, 2, 5)),
            ],
            {
                "hubble_tcp_flags": {
                    ("SYN", "IPv4"): 1,
                    ("SYN-ACK", "IPv4"): 1,
                    ("FIN", "IPv4"): 1,
                    ("RST", "IPv4"): 1,
                }
            },
        ),
        (
            "icmp",
            [Flow(l4=ICMPv4(8, 0)), Flow(l4=ICMPv6(129, 0))],
            {"hubble_icmp": {("IPv4", "EchoRequest"): 1, ("IPv6", "EchoReply"): 1}},
        ),
        (
            "port-distribution",
            [OPENED, DENIED, evolve(OPENED, l4=UDP(1, 53)), evolve(OPENED, l4=UDP(1, 53), is_reply=True)],
            {"hubble_port_distribution": {("TCP", "80"): 1, ("UDP", "53"): 1}},
        ),
        ("policy", [DENIED, OPENED], {"hubble_policy_verdicts": {("egress", "l3-l4", "dropped"): 1}}),
        (
            "policy",
            [DROPPED, evolve(DROPPED, drop_reason=DropReason.INVALID_SOURCE_IP)],
            {"hubble_policy_verdicts": {("egress", "l3-l4", "dropped"): 1}},
        ),
        (
            "httpV2:labelsContext=source_pod,destination_pod",
            [FULL],
            {
                "hubble_http_requests": {
                    ("GET", "HTTP/1.1", "503", "client", PODS[1], PODS[0]): 1,
                },
                "hubble_http_request_duration_seconds": {("GET", "client", PODS[1], PODS[0]): 0.012},
            },
        ),
        (
            "flows-to-world:port;syn-only",
            [OPENED, DENIED, evolve(OPENED, l4=TCP(1, 80, TCPFlags.ACK))],
            {"hubble_flows_to_world": {("TCP", "FORWARDED", "80"): 1}},
        ),
        (
            "dns:query",
            [RESOLVED, ANSWERED],
            {
                "hubble_dns_queries": {("", "AAAA", "0", "db.shop.svc.cluster.local"): 1},
                "hubble_dns_responses": {("No Error", "A", "2", "a.b"): 1},
                "hubble_dns_response_types": {("A", "A", "a.b"): 1, ("CNAME", "A", "a.b"): 1},
            },
        ),
        (
            "dns:ignoreAAAA",
            [RESOLVED],
            {"hubble_dns_queries": {}, "hubble_dns_responses": {}, "hubble_dns_response_types": {}},
        ),
        (
            "httpV2",
            [FULL, evolve(FULL, traffic_direction=TrafficDirection.INGRESS)],
            {
                "hubble_http_requests": {
                    ("GET", "HTTP/1.1", "503", "server"): 1,
                    ("GET", "HTTP/1.1", "503", "client"): 1,
                },
                "hubble_http_request_duration_seconds": {("GET", "server"): 0.012, ("GET", "client"): 0.012},
            },
        ),
        (
            "drop:sourceContext=pod|ip;destinationContext=dns|ip;labelsContext=source_namespace,destination_app,"
            "source_workload_kind,traffic_direction",
            [DENIED],
            {
                "hubble_drop": {
                    (
                        "POLICY_DENIED",
                        "TCP",
                        "my-app/frontend-v1-abcde",
                        "api.example.org,www.example.org",
                        "my-app",
                        "backend",
                        "Deployment",
                        "egress",
                    ): 1
                }
            },
        ),
        (
            "drop:sourceEgressContext=workload-name;sourceIngressContext=ip;sourceContext=namespace",
            [
                DENIED,
                evolve(DENIED, traffic_direction=TrafficDirection.INGRESS),
                evolve(DENIED, traffic_direction=0),
            ],
            {
                "hubble_drop": {
                    ("POLICY_DENIED", "TCP", "frontend-v1"): 1,
                    ("POLICY_DENIED", "TCP", "10.244.1.5"): 1,
                    ("POLICY_DENIED", "TCP", "my-app"): 1,
                }
            },
        ),
        (
            "drop:sourceContext=reserved-identity|pod-name;destinationContext=reserved-identity|identity",
            [DENIED],
            {"hubble_drop": {("POLICY_DENIED", "TCP", "frontend-v1-abcde", "reserved:world"): 1}},
        ),
    ],
)
def test_metrics_count_what_hubbles_count(
    metric: str, flows: list[Flow], expected: dict[str, dict[tuple[str, ...], float]]
) -> None:
    flows = [evolve(each, trace_observation_point=TraceObservationPoint.TO_ENDPOINT) for each in flows]
    assert counted(metric, *flows) == expected


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("drops", "there is no metric 'drops'"),
        ("drop:port", "drop: there is no option 'port'"),
        ("drop:sourceContext=pods", "drop: sourceContext: 'pods' is none"),
        ("drop:labelsContext=source_name", "drop: labelsContext: 'source_name' is none"),
        ("kafka", "there is no metric 'kafka'"),
    ],
)
def test_what_there_is_not_is_said(text: str, wrong: str) -> None:
    with pytest.raises(ModelError, match=wrong):
        FlowMetrics([text])


def test_what_prometheus_would_refuse_is_refused() -> None:
    with pytest.raises(ModelError, match="tcp: a metric has one set of labels"):
        FlowMetrics(["tcp", "flow", "tcp:sourceContext=pod"])
    twice = FlowMetrics(["drop:labelsContext=source_ip,source_app,source_ip"])
    assert twice.families()[1].labels == ("reason", "protocol", "source_ip", "source_app")


def test_the_example_of_ciliums_documentation_is_taken() -> None:
    labels = "source_ip,source_namespace,source_workload,destination_ip,traffic_direction"
    found = FlowMetrics(["dns", "drop", f"httpV2:exemplars=true;labelsContext={labels}"])
    assert found.families()[-1].labels == ("method", "reporter", *labels.split(","))


def test_losses_are_counted_by_where_they_were() -> None:
    found = FlowMetrics([])
    for count in (3, 4):
        found.see(LostEvent(LostEventSource.HUBBLE_RING_BUFFER, count))
    assert found.families()[0].counters == {("HUBBLE_RING_BUFFER",): 7}


def test_the_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    found = FlowMetrics(["port-distribution"])
    for port in (1, 2, 3, 4, 1):
        found.see(evolve(OPENED, l4=UDP(9, port)))
    family = found.families()[1]
    assert family.counters == {("UDP", "1"): 2, ("UDP", "2"): 1}
    assert family.left_out == 2


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ("sourceContext=pod", [("my-app/one",), ("my-app/two",), ("other/one",)], [1, 2]),
        ("destinationContext=namespace|pod;sourceContext=pod-name", None, [1]),
        ("labelsContext=source_namespace,source_pod", None, [1, 2]),
        ("labelsContext=source_pod", [("one",), ("two",)], [1]),
        ("labelsContext=source_namespace", [("my-app",), ("other",)], [0, 1]),
        ("sourceContext=namespace", None, [0, 1]),
    ],
)
def test_series_of_a_pod_end_a_minute_after_it(
    options: str, before: list[tuple[str]] | None, after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FlowMetrics([f"httpV2:{options}"])
    for namespace, name in (("my-app", "one"), ("my-app", "two"), ("other", "one")):
        end = evolve(FULL.destination, namespace=namespace, pod_name=name)  # who has asked: it is an answer
        found.see(evolve(FULL, destination=end))
    counters = found.families()[1].counters
    series = list(counters)
    labels = len(series[0]) - 4
    assert before is None or [each[-labels:] for each in series] == before
    for pod in (("my-app", "one"), ("my-app", "two")):
        found.forget(*pod)
    found.keep("my-app", "two")
    assert found.families()[1].counters == counters
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    requests, durations = found.families()[1:]
    assert list(requests.counters) == [series[index] for index in after]
    assert durations.buckets is not None
    assert list(durations.buckets) == list(durations.counters)
    assert len(durations.counters) == len(requests.counters)


def test_pods_that_are_gone_leave_room_for_others_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    found = FlowMetrics(["httpV2:sourceContext=pod"])
    now = time.monotonic()
    for number in range(10):
        monkeypatch.setattr(time, "monotonic", lambda late=now + 130 * number: late)
        end = evolve(FULL.destination, namespace="my-app", pod_name=f"job-{number}")
        found.forget("my-app", f"job-{number - 1}")
        found.see(evolve(FULL, destination=end))
        found.forget("my-app", f"job-{number}")
    requests, _ = found.families()[1:]
    assert (len(requests.counters), requests.left_out) == (1, 0)


def test_durations_are_put_into_buckets() -> None:
    found = FlowMetrics(["httpV2"])
    found.see(FULL)
    rows = found.families()[2].buckets
    assert rows is not None
    assert rows["GET", "client"] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]


def test_flows_are_counted_as_they_come() -> None:
    ring, found = FlowRing(), FlowMetrics(["drop"])
    ring.add(FULL)
    with MetricReader(ring, found):
        deadline = time.monotonic() + 10
        while not found.families()[1].counters:
            ring.add(FULL)
            assert time.monotonic() < deadline
            time.sleep(0.01)
