"""Flows as values: their JSON, there and back."""

from __future__ import annotations

import json

import pytest

from k8sdatapath.errors import ModelError
from k8sdatapath.model.flow import (
    DNS,
    HTTP,
    IP,
    TCP,
    UDP,
    DropReason,
    Endpoint,
    EventType,
    Flow,
    FlowEvent,
    FlowType,
    Header,
    ICMPv4,
    ICMPv6,
    IPVersion,
    L7FlowType,
    Layer7,
    LostEvent,
    LostEventSource,
    TCPFlags,
    Verdict,
    WorkloadRef,
)
from k8sdatapath.model.flow_words import summary
from k8sdatapath.model.message import timestamp, timestamp_text

DENIED = Flow(
    time=1_700_000_000_123_000_000,
    verdict=Verdict.DROPPED,
    drop_reason=DropReason.POLICY_DENIED,
    ip=IP("10.0.0.1", "10.0.0.2", IPVersion.IPv4),
    l4=TCP(40000, 8080, TCPFlags.SYN),
    source=Endpoint(identity=300, namespace="my-app", labels=("k8s:app=web",), pod_name="web-1"),
    destination=Endpoint(identity=301, workloads=(WorkloadRef("api", "Deployment"),)),
    type=FlowType.L3_L4,
    event_type=EventType(1, 133),
    node_name="default/one",
    summary="TCP Flags: SYN",
)


def test_a_flow_is_told_in_hubbles_words() -> None:
    assert json.loads(DENIED.to_json()) == {
        "time": "2023-11-14T22:13:20.123Z",
        "verdict": "DROPPED",
        "drop_reason": 133,
        "drop_reason_desc": "POLICY_DENIED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 8080, "flags": {"SYN": True}}},
        "source": {
            "identity": 300,
            "namespace": "my-app",
            "labels": ["k8s:app=web"],
            "pod_name": "web-1",
        },
        "destination": {"identity": 301, "workloads": [{"name": "api", "kind": "Deployment"}]},
        "Type": "L3_L4",
        "event_type": {"type": 1, "sub_type": 133},
        "node_name": "default/one",
        "Summary": "TCP Flags: SYN",
    }


@pytest.mark.parametrize(
    "response",
    [
        DENIED,
        Flow(is_reply=True, l7=Layer7(L7FlowType.REQUEST, 2**63, HTTP(headers=(Header("a", "b"),)))),
        Flow(is_reply=False, verdict=77, l4=ICMPv6(128, 0)),
        LostEvent(LostEventSource.HUBBLE_RING_BUFFER, 2**64 - 1, 0, 1, 10**18),
    ],
    ids=["denied", "http", "unknown numbers", "lost"],
)
def test_a_line_is_read_as_it_was_written(response: Flow | LostEvent) -> None:
    event = FlowEvent(response, "one", 5)
    assert FlowEvent.from_json(event.to_json()) == event


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "not JSON"),
        ("[]", "is not a Flow"),
        ('{"time": "yesterday"}', "is not a point in time"),
        ('{"time": "2023-13-01T00:00:00Z"}', "is not a point in time that there is"),
        ('{"verdict": "LOST"}', "'LOST' is not a Verdict"),
        ('{"source": 5}', "is not a Endpoint"),
        ('{"l4": {"TCP": {"source_port": "80"}}}', "source_port of a TCP: '80' is not a int"),
        ('{"l4": 5}', "l4 of a Flow"),
        ('{"source": {"labels": "x"}}', "is not a list"),
        ('{"socket_cookie": "-x"}', "socket_cookie of a Flow"),
        ('{"socket_cookie": "99999999999999999999"}', "does not fit into 64 bits"),
        ('{"source": {"pod_name": "\\ud800"}}', "pod_name of a Endpoint: it cannot be"),
        ('{"proxy_port": 9999999999}', "does not fit into 32 bits"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_flow_is_refused_with_its_place(text: str, wrong: str) -> None:
    with pytest.raises(ModelError) as caught:
        Flow.from_json(text)
    assert wrong in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_000_000, "1970-01-01T00:00:00.001Z"),
        (1_001_000, "1970-01-01T00:00:00.001001Z"),
        (1_700_000_000 * 10**9, "2023-11-14T22:13:20Z"),
    ],
)
def test_time_has_the_digits_it_needs(nanoseconds: int, text: str) -> None:
    assert timestamp_text(nanoseconds) == text
    assert timestamp(text) == nanoseconds


def test_time_may_be_of_another_zone() -> None:
    assert timestamp("2023-11-14T23:43:20.5+01:30") == 1_700_000_000_500_000_000


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (Flow(l4=TCP(1, 2, TCPFlags.ACK | TCPFlags.SYN)), "TCP Flags: SYN, ACK"),
        (Flow(l4=UDP(1, 2)), "UDP"),
        (Flow(l4=ICMPv4(8, 0)), "ICMPv4 EchoRequest"),
        (Flow(l4=ICMPv6(200, 0)), "ICMPv6 200"),
        (Flow(), ""),
        (
            Flow(l7=Layer7(L7FlowType.REQUEST, 0, HTTP(0, "GET", "http://web/", "HTTP/1.1"))),
            "HTTP/1.1 GET http://web/",
        ),
        (
            Flow(l7=Layer7(L7FlowType.RESPONSE, 12_000_000, HTTP(200, "GET", "http://web/", "HTTP/1.1"))),
            "HTTP/1.1 200 12ms (GET http://web/)",
        ),
        (Flow(l7=Layer7(L7FlowType.REQUEST, 0, DNS("a.b.", qtypes=("A",)))), "DNS Query a.b. A"),
        (
            Flow(l7=Layer7(L7FlowType.RESPONSE, 0, DNS("a.b.", ("10.0.0.1",), 30, qtypes=("A",)))),
            'DNS Answer "10.0.0.1" TTL: 30 (a.b. A)',
        ),
    ],
)
def test_the_summary_says_what_was_seen(flow: Flow, words: str) -> None:
    assert summary(flow.l4, flow.l7) == words
