"""What ``k8sdatapath observe`` prints is what Hubble's own client prints, line for line."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from click.testing import Result
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.model.flow import (
    IP,
    TCP,
    DebugCapturePoint,
    Endpoint,
    EventType,
    Flow,
    FlowEvent,
    FlowType,
    IPTraceID,
    L7FlowType,
    Layer7,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    NodeState,
    NodeStatus,
    PolicyMatch,
    PolicyRef,
    SocketTranslationPoint,
    TrafficDirection,
    Verdict,
)
from tests.support.flows import SECOND, START


def told(flags: str, folder: Path, *events: FlowEvent) -> Result:
    path = folder / "flows.json"
    path.write_text("".join(f"{event.to_json()}\n" for event in events))
    result = CliRunner().invoke(app, ["observe", *flags.split(), "--input-file", str(path)])
    assert result.exit_code == 0, result.output
    return result


PLAIN = Flow(
    time=1234 * SECOND + 567_800_000,
    type=FlowType.L3_L4,
    node_name="k8s1",
    verdict=Verdict.DROPPED,
    ip=IP("1.1.1.1", "2.2.2.2"),
    source=Endpoint(identity=4),
    destination=Endpoint(identity=12345),
    l4=TCP(31793, 8080),
    event_type=EventType(MonitorEvent.DROP, 133),
    summary="TCP Flags: SYN",
    is_reply=False,
)
VERDICT = evolve(PLAIN, event_type=EventType(MonitorEvent.POLICY_VERDICT, 0), is_reply=None)
BY = "--print-policy-names"
TIME, CLIENT, SERVER = "Jan  1 00:20:34.567", "1.1.1.1:31793 (health)", "2.2.2.2:8080 (ID:12345)"
COMPACT: dict[str, tuple[Flow, str, str]] = {
    "a drop": (PLAIN, "", f"{TIME}: {CLIENT} -> {SERVER} Policy denied DROPPED (TCP Flags: SYN)"),
    "with its node": (
        PLAIN,
        "--print-node-name",
        f"{TIME} [k8s1]: {CLIENT} -> {SERVER} Policy denied DROPPED (TCP Flags: SYN)",
    ),
    "a reply": (
        evolve(PLAIN, is_reply=True),
        "",
        f"{TIME}: {SERVER} <- {CLIENT} Policy denied DROPPED (TCP Flags: SYN)",
    ),
    "of a trace": (
        evolve(PLAIN, ip_trace_id=IPTraceID(1234)),
        "",
        f"{TIME}: {CLIENT} -> {SERVER} Policy denied DROPPED (IP Trace ID: 1234; TCP Flags: SYN)",
    ),
    "denied": (
        evolve(
            VERDICT,
            traffic_direction=TrafficDirection.EGRESS,
            egress_denied_by=(PolicyRef("my-policy", "ns", kind="CiliumNetworkPolicy"),),
        ),
        BY,
        f"{TIME}: {CLIENT} <> {SERVER} policy-verdict:none EGRESS DENIED BY my-policy (CiliumNetworkPolicy) "
        "(TCP Flags: SYN)",
    ),
    "allowed": (
        evolve(
            VERDICT,
            verdict=Verdict.FORWARDED,
            traffic_direction=TrafficDirection.INGRESS,
            policy_match_type=PolicyMatch.L3_ONLY,
            ingress_allowed_by=(
                PolicyRef("one", "ns", kind="CiliumNetworkPolicy"),
                PolicyRef("two", kind="CiliumClusterwideNetworkPolicy"),
            ),
        ),
        BY,
        f"{TIME}: {CLIENT} <> {SERVER} policy-verdict:L3-Only INGRESS ALLOWED BY one (CiliumNetworkPolicy), "
        "two (CiliumClusterwideNetworkPolicy) (TCP Flags: SYN)",
    ),
    "audited": (
        evolve(VERDICT, verdict=Verdict.AUDIT, traffic_direction=TrafficDirection.EGRESS),
        "",
        f"{TIME}: {CLIENT} <> {SERVER} policy-verdict:none EGRESS AUDITED (TCP Flags: SYN)",
    ),
    "IPv6": (
        evolve(PLAIN, ip=IP("fd00::1", "fd00::2"), event_type=EventType(MonitorEvent.DROP, 155)),
        "",
        f"{TIME}: [fd00::1]:31793 (health) -> [fd00::2]:8080 (ID:12345) CT: Map insertion failed DROPPED "
        "(TCP Flags: SYN)",
    ),
    "IPv6 without ports": (
        evolve(PLAIN, ip=IP("fd00::1", "fd00::2"), l4=None, event_type=EventType(MonitorEvent.DROP, 222)),
        "",
        f"{TIME}: fd00::1 (health) -> fd00::2 (ID:12345) 222, 0 DROPPED (TCP Flags: SYN)",
    ),
    "nobody knows who": (
        evolve(PLAIN, source=None, destination=Endpoint(), event_type=EventType(MonitorEvent.TRACE, 0)),
        "",
        f"{TIME}: 1.1.1.1:31793 (unknown) -> 2.2.2.2:8080 (unknown) to-endpoint DROPPED (TCP Flags: SYN)",
    ),
    "no record": (
        evolve(PLAIN, l7=Layer7(L7FlowType.SAMPLE)),
        "",
        f"{TIME}: {CLIENT} -> {SERVER} l7-sample DROPPED (TCP Flags: SYN)",
    ),
    "a socket": (
        evolve(
            PLAIN,
            event_type=EventType(MonitorEvent.TRACE_SOCK, 9),
            sock_xlate_point=SocketTranslationPoint.SOCK_XLATE_POINT_PRE_DIRECTION_REV,
            verdict=Verdict.TRACED,
        ),
        "",
        f"{TIME}: {CLIENT} -> {SERVER} pre-xlate-rev TRACED (TCP Flags: SYN)",
    ),
    "captured": (
        evolve(
            PLAIN,
            event_type=EventType(MonitorEvent.CAPTURE, 4),
            debug_capture_point=DebugCapturePoint.DBG_CAPTURE_DELIVERY,
        ),
        "",
        f"{TIME}: {CLIENT} -> {SERVER} DBG_CAPTURE_DELIVERY DROPPED (TCP Flags: SYN)",
    ),
    "no event, no time": (
        evolve(PLAIN, event_type=None, time=0),
        "",
        f"N/A: {CLIENT} -> {SERVER} UNKNOWN DROPPED (TCP Flags: SYN)",
    ),
}


@pytest.mark.parametrize("case", COMPACT)
def test_lines_are_those_of_hubbles_client(case: str, tmp_path: Path) -> None:
    flow, flags, line = COMPACT[case]
    assert told(flags, tmp_path, FlowEvent.of(flow)).stdout == f"{line}\n"


LOST = LostEvent(LostEventSource.HUBBLE_RING_BUFFER, 5, 1, START, START)
TABLE = """\
TIMESTAMP             NODE   SOURCE               DESTINATION    TYPE            VERDICT   SUMMARY
Nov 14 22:13:20.000          HUBBLE_RING_BUFFER                  EVENTS LOST               CPU(1) - 5
Jan  1 00:20:34.567   k8s1   1.1.1.1:31793        2.2.2.2:8080   Policy denied   DROPPED   TCP Flags: SYN
"""
DICT = """\
  TIMESTAMP: Nov 14 22:13:20.000
     SOURCE: HUBBLE_RING_BUFFER
DESTINATION:@
       TYPE: EVENTS LOST
    VERDICT:@
    SUMMARY: CPU(1) - 5
------------
  TIMESTAMP: Jan  1 00:20:34.567
     SOURCE: 1.1.1.1:31793
DESTINATION: 2.2.2.2:8080
       TYPE: Policy denied
    VERDICT: DROPPED BY my-policy (Kind)
    SUMMARY: TCP Flags: SYN
""".replace("@", " ")


@pytest.mark.parametrize(
    ("flags", "printed"),
    [("-o TABLE --print-node-name --color always", TABLE), ("-o dict --print-policy-names", DICT)],
)
def test_dict_and_table_are_those_of_hubbles_client(flags: str, printed: str, tmp_path: Path) -> None:
    denied = evolve(PLAIN, ingress_denied_by=(PolicyRef("my-policy", "ns", kind="Kind"),))
    assert told(flags, tmp_path, FlowEvent(LOST, "", START), FlowEvent.of(denied)).stdout == printed


@pytest.mark.parametrize(
    ("state", "flags", "said"),
    [
        ("NODE_UNAVAILABLE", "", f"{TIME} [relay]: 2 nodes are unavailable: one, two\n"),
        ("NODE_ERROR", "-o table", f'{TIME} [relay]: Error "why\\x1b" on 2 nodes: one, two\n'),
        ("NODE_ERROR", "-s", ""),
        ("NODE_CONNECTED", "", ""),
        ("NODE_CONNECTED", "--debug", f"{TIME} [relay]: Receiving flows from 2 nodes: one, two\n"),
        ("NODE_GONE", "-o json -D", '{"node_status":{"state_change":"NODE_GONE"'),
    ],
)
def test_what_a_relay_says_of_its_nodes_is_no_flow(state: str, flags: str, said: str, tmp_path: Path) -> None:
    status = NodeStatus(NodeState[state], ("one", "two"), "why\x1b")
    result = told(flags, tmp_path, FlowEvent(status, "relay", PLAIN.time))
    assert result.stdout == ""
    assert result.stderr.startswith(said)
    assert bool(result.stderr) is bool(said)


def test_many_nodes_are_not_all_named(tmp_path: Path) -> None:
    status = NodeStatus(NodeState.NODE_UNAVAILABLE, tuple(f"node-{number}" for number in range(40)))
    result = told("", tmp_path, FlowEvent(status, "relay", PLAIN.time))
    listed = "node-0, node-1, node-2, node-3, node-4, node-5"
    assert result.stderr == f"{TIME} [relay]: 40 nodes are unavailable: {listed} (and 34 more)\n"
